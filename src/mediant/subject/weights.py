"""Checks of weight files before anything is loaded, and their fingerprint.

    files = check_folder("path/to/model")     # safetensors that are whole, or an error that says what is wrong
    fingerprint(files)                        # 64 hexadecimal digits that change with any weight

A pickle can run any code when it is opened, so a folder that has nothing else is refused. Only headers
are read here, except for checksums.
"""

import hashlib
import json
import os
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from mediant.core.errors import SubjectError, UnsafeWeights
from mediant.subject.catalogue import cache_dir

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.bin.index.json")
ONE_FILE = "model.safetensors"
_DIFFUSERS = "diffusion_pytorch_model"
# A file changed within the resolution of file times keeps its times, so a fresh one is hashed again.
_SETTLED_NS = 2_000_000_000
_GGUF_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY, _GGUF_UINT32 = 8, 9, 4


def check_pipeline(path: Path) -> list[Path]:
    """The safetensors files of all parts of a diffusion pipeline's folder.

    Raises:
        UnsafeWeights: a part has pickles only.
        SubjectError: a part without weights, or with some that are missing or not whole.
    """
    parts = sorted(entry for entry in path.iterdir() if (entry / "config.json").is_file())
    found = []
    for part in parts:
        of_library = any(entry.name.startswith(_DIFFUSERS) for entry in part.iterdir())
        found += check_folder(part, stem=_DIFFUSERS if of_library else "model")
    if not found:
        raise SubjectError(f"{path} has no parts with weights; expected folders such as transformer and vae")
    return found


def check_folder(path: Path | str, *, stem: str = "model") -> list[Path]:
    """The safetensors files that make up the model in a folder, in the order of names.

    Args:
        stem: how the names of its weight files begin.

    Raises:
        UnsafeWeights: the weights are there as pickles only.
        SubjectError: no folder, no `config.json`, no weights, or a weight file that is missing or not whole.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise SubjectError(f"{folder} is not a folder; expected one with config.json, {ONE_FILE} and tokenizer files")
    names = sorted(entry.name for entry in folder.iterdir())
    parts = _weight_files(folder, names, stem)
    if "config.json" not in names:
        raise SubjectError(f"{folder} has no config.json, which says how the model is built; {_found(names)}")
    for part in parts:
        _check_safetensors(part)
    return parts


def fingerprint(paths: Sequence[Path]) -> str:
    """A content hash of weight files: SHA-256 over every byte, so that no changed weight goes unseen.

    For one file it is what `sha256sum` prints. For several it is the SHA-256 of the lines `sha256sum`
    prints for them, in the order of names. Where the files lie does not matter. A file is read once (about
    a second per gigabyte); its checksum is kept in the cache until its size, times or inode change.
    """
    if len(paths) == 1:
        return _remembered_sha256(paths[0])
    lines = (f"{_remembered_sha256(path)}  {path.name}\n" for path in sorted(paths, key=lambda path: path.name))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_gguf(path: Path | str, sha256: str | None = None) -> None:
    """Check that a GGUF file is one, is whole and, where `sha256` is given, is the expected one.

    Raises:
        SubjectError: otherwise; the message names the file and both checksums.
    """
    file = Path(path)
    size = _size(file)
    try:
        with file.open("rb") as stream:
            needed = _gguf_size(_GgufHeader(stream, file, size))
    except OSError as error:
        raise SubjectError(f"{file} cannot be read: {error.strerror}") from error
    if needed > size:
        raise SubjectError(f"{file} is truncated: {size:,} bytes, its header promises {needed:,}; copy or download it again")
    if sha256 is not None and (got := sha256_of(file)) != sha256:
        raise SubjectError(
            f"{file} is not the expected file: its SHA-256 is {got}, expected {sha256}; delete it and get it again, "
            "and do not use it if the sums still differ"
        )


def _weight_files(folder: Path, names: list[str], stem: str) -> list[Path]:
    one, index = f"{stem}.safetensors", f"{stem}.safetensors.index.json"
    if one in names:
        return [folder / one]
    if index in names:
        return [folder / shard for shard in _shards(folder / index)]
    pickles = sorted({entry.name for pattern in PICKLES for entry in folder.glob(pattern)})
    if pickles:
        raise UnsafeWeights(
            f"{folder} holds pickled weights only ({_some(pickles)}): opening a pickle can run any code, so it is refused. "
            "Take the safetensors version, or convert where you trust the file: load it with "
            f"transformers and call model.save_pretrained(FOLDER), which writes {ONE_FILE}"
        )
    if any(name.endswith(".gguf") for name in names):
        raise SubjectError(f"{folder} holds GGUF weights: give the .gguf file itself; {_found(names)}")
    raise SubjectError(f"{folder} has no weights: expected {one}, or {index} with its parts; {_found(names)}")


def _shards(index: Path) -> list[str]:
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SubjectError(f"{index} is not an index of weights: expected JSON with a 'weight_map' of file names") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UnsafeWeights(f"{index} names {shard!r} as weights; expected safetensors files in the same folder")
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing or not shards:
        raise SubjectError(
            f"{index} lists {len(shards)} weight files, of which {_some(missing) or 'all'} are missing; get them again"
        )
    return shards


def _check_safetensors(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    size = _size(path)
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise SubjectError(
            f"{path} is not a whole safetensors file ({reason}; {size:,} bytes on disk); it was cut short or changed: "
            "copy or download it again"
        ) from error


def _size(path: Path) -> int:
    if not path.is_file():
        raise SubjectError(f"{path} does not exist or is not a file; expected a file with weights")
    return path.stat().st_size


def _found(names: list[str]) -> str:
    return f"found: {_some(names)}" if names else "the folder is empty"


def _some(names: list[str], limit: int = 12) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _remembered_sha256(path: Path) -> str:
    """SHA-256 of a file, kept in the cache under the file's place and valid while its state stays the same."""
    _size(path)
    before = path.stat()
    state = [before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino, before.st_dev]
    memo = cache_dir() / "fingerprints" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()}.json"
    try:
        kept = json.loads(memo.read_text(encoding="utf-8"))
        if kept["state"] == state:
            return str(kept["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # absent or damaged: hash the file again
    digest = sha256_of(path)
    if time.time_ns() - max(before.st_mtime_ns, before.st_ctime_ns) > _SETTLED_NS:
        _keep(memo, {"state": state, "sha256": digest})
    return digest


def _keep(memo: Path, content: dict[str, object]) -> None:
    partial = memo.with_suffix(f".{os.getpid()}")
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content), encoding="utf-8")
        partial.replace(memo)
    except OSError:  # a cache that cannot be written costs time only
        with suppress(OSError):
            partial.unlink()


@dataclass
class _GgufHeader:
    """Reads the header of a GGUF file, never past its end."""

    stream: BinaryIO
    path: Path
    size: int

    def take(self, count: int) -> bytes:
        self._room(count)
        return self.stream.read(count)

    def skip(self, count: int) -> None:
        self._room(count)
        self.stream.seek(count, os.SEEK_CUR)

    def uint32(self) -> int:
        return int(struct.unpack("<I", self.take(4))[0])

    def uint64(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def string(self) -> bytes:
        return self.take(self.uint64())

    def value(self, kind: int) -> int | None:
        """Step over a value; only a `uint32` is handed back, as the one that can be needed."""
        if kind == _GGUF_UINT32:
            return self.uint32()
        if kind == _GGUF_STRING:
            self.skip(self.uint64())
        elif kind == _GGUF_ARRAY:
            self._array(self.uint32(), self.uint64())
        elif kind in _GGUF_SCALARS:
            self.skip(_GGUF_SCALARS[kind])
        else:
            raise SubjectError(f"{self.path} is damaged: its header has a value of the unknown type {kind}; get it again")
        return None

    def _array(self, kind: int, count: int) -> None:
        if kind in _GGUF_SCALARS:
            self.skip(count * _GGUF_SCALARS[kind])
        elif kind == _GGUF_STRING:
            for _ in range(count):
                self.skip(self.uint64())
        else:
            raise SubjectError(f"{self.path} is damaged: its header has an array of the unknown type {kind}; get it again")

    def _room(self, count: int) -> None:
        if self.stream.tell() + count > self.size:
            raise SubjectError(f"{self.path} is truncated: it ends within its header ({self.size:,} bytes); get it again")


def _gguf_size(header: _GgufHeader) -> int:
    """Bytes that the file must have, by its own header."""
    magic = header.stream.read(4)
    if magic != b"GGUF":
        raise SubjectError(f"{header.path} is not a GGUF file: it starts with {magic!r}, expected b'GGUF'")
    version = header.uint32()
    if version not in (2, 3):
        raise SubjectError(f"{header.path} has GGUF version {version}, expected 2 or 3, little-endian")
    n_tensors, n_values, alignment = header.uint64(), header.uint64(), 32
    for _ in range(n_values):
        key, value = header.string(), header.value(header.uint32())
        if key == b"general.alignment" and value:
            alignment = value
    end = max((_tensor_end(header) for _ in range(n_tensors)), default=0)
    return -(-header.stream.tell() // alignment) * alignment + end if n_tensors else header.stream.tell()


def _tensor_end(header: _GgufHeader) -> int:
    """Where a tensor's data end, counted from the start of all data."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name = header.string().decode(errors="replace")
    n_values = 1
    for _ in range(header.uint32()):
        n_values *= header.uint64()
    kind, offset = header.uint32(), header.uint64()
    try:
        block_values, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError) as error:
        raise SubjectError(f"{header.path}: tensor {name!r} has the unknown type {kind}; update the package gguf") from error
    return int(offset + n_values // block_values * block_bytes)
