"""Weight files are checked before they are loaded; a fingerprint sees every byte."""

import hashlib
import json
import os
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from safetensors.numpy import save_file

from mediant.core.errors import SubjectError, UnsafeWeights
from mediant.subject import weights


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    return made


def tensors(path: Path, seed: int = 0) -> Path:
    values = np.random.default_rng(seed).standard_normal((3, 5)).astype(np.float32)
    save_file({"a": values, "b": values[0]}, path)
    return path


def index(folder: Path, *names: object) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {f"w{i}": name for i, name in enumerate(names)}})
    )


def test_one_whole_safetensors_file_is_the_model(folder: Path) -> None:
    file = tensors(folder / "model.safetensors")
    assert weights.check_folder(folder) == [file]
    assert weights.check_folder(str(folder)) == [file]


def test_the_parts_of_an_index_are_the_model_and_other_files_are_not(folder: Path) -> None:
    names = ["model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors"]
    for name in [*names, "adapter_model.safetensors"]:
        tensors(folder / name)
    index(folder, *names, names[0])
    assert weights.check_folder(folder) == [folder / names[1], folder / names[0]]


def test_pickles_beside_safetensors_do_no_harm(folder: Path) -> None:
    file = tensors(folder / "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    assert weights.check_folder(folder) == [file]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "w.pt", "w.pth", "w.pkl", "w.ckpt", "pytorch_model.bin.index.json"])
def test_pickles_alone_are_refused_with_the_reason_and_the_cure(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\x80")
    with pytest.raises(UnsafeWeights, match=rf"\({name}\): opening a pickle can run any code.*save_pretrained"):
        weights.check_folder(folder)


def test_pickles_are_refused_as_such_even_without_a_config(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"\x80")
    with pytest.raises(UnsafeWeights):
        weights.check_folder(tmp_path)


def test_a_folder_without_config_lists_what_was_found(tmp_path: Path) -> None:
    tensors(tmp_path / "model.safetensors")
    with pytest.raises(SubjectError, match=r"has no config\.json.*found: model\.safetensors$"):
        weights.check_folder(tmp_path)


def test_a_folder_without_weights_lists_what_was_found(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(SubjectError, match=r"has no weights: expected model\.safetensors.*found: config\.json, tokenizer\.json$"):
        weights.check_folder(folder)


def test_a_long_list_of_files_is_cut(folder: Path) -> None:
    for i in range(20):
        (folder / f"n{i:02}").touch()
    with pytest.raises(SubjectError, match=r"found: config\.json, n00, .*, n10 and 9 more$"):
        weights.check_folder(folder)


def test_an_empty_folder_a_missing_one_and_a_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(SubjectError, match="the folder is empty"):
        weights.check_folder(tmp_path / "empty")
    for name in ("file", "absent"):
        with pytest.raises(SubjectError, match=f"{name} is not a folder"):
            weights.check_folder(tmp_path / name)


def test_a_folder_of_gguf_points_to_the_file(folder: Path) -> None:
    (folder / "x.gguf").touch()
    with pytest.raises(SubjectError, match=r"give the \.gguf file itself; found: config\.json, x\.gguf"):
        weights.check_folder(folder)


def test_missing_parts_of_an_index_are_named(folder: Path) -> None:
    tensors(folder / "one.safetensors")
    index(folder, "one.safetensors", "two.safetensors")
    with pytest.raises(SubjectError, match=r"lists 2 weight files, of which two\.safetensors are missing"):
        weights.check_folder(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "sub/model.safetensors", "pytorch_model.bin"])
def test_an_index_may_only_name_safetensors_of_its_own_folder(folder: Path, name: str) -> None:
    tensors(folder.parent / "model.safetensors")
    index(folder, name)
    with pytest.raises(UnsafeWeights, match="expected safetensors files in the same folder"):
        weights.check_folder(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": []}}'])
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(SubjectError, match="is not an index of weights"):
        weights.check_folder(folder)


def test_an_empty_index_is_refused(folder: Path) -> None:
    index(folder)
    with pytest.raises(SubjectError, match="lists 0 weight files"):
        weights.check_folder(folder)


def test_a_safetensors_file_cut_anywhere_is_refused_by_name(folder: Path) -> None:
    file = tensors(folder / "model.safetensors")
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        with pytest.raises(SubjectError, match=rf"model\.safetensors is not a whole safetensors file .* {length} bytes on disk"):
            weights.check_folder(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole + b"tail",
        lambda whole: struct.pack("<Q", 1 << 50) + whole[8:],
        lambda whole: whole.replace(b"F32", b"F99"),
        lambda whole: whole.replace(b"[3,5]", b"[3,6]"),
        lambda whole: whole[:8] + b"x" + whole[9:],
    ],
)
def test_a_damaged_safetensors_header_is_refused(folder: Path, damage: object) -> None:
    file = tensors(folder / "model.safetensors")
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    with pytest.raises(SubjectError, match="is not a whole safetensors file"):
        weights.check_folder(folder)


def test_every_part_of_an_index_is_checked(folder: Path) -> None:
    tensors(folder / "one.safetensors")
    (folder / "two.safetensors").write_bytes(b"short")
    index(folder, "one.safetensors", "two.safetensors")
    with pytest.raises(SubjectError, match=r"two\.safetensors is not a whole"):
        weights.check_folder(folder)


def test_the_fingerprint_of_one_file_is_its_sha256sum(tmp_path: Path) -> None:
    file = tensors(tmp_path / "w.safetensors")
    told = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout
    assert weights.fingerprint([file]) == told.split()[0]


def test_the_fingerprint_of_several_files_is_the_sum_of_their_sums_in_any_order_and_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        for seed, name in enumerate("ab"):
            tensors(tmp_path / place / name, seed)
    told = subprocess.run(["sha256sum", "a", "b"], capture_output=True, check=True, cwd=tmp_path / "here").stdout
    here, there = ([tmp_path / place / name for name in "ab"] for place in ("here", "there"))
    assert weights.fingerprint(here) == hashlib.sha256(told).hexdigest()
    assert weights.fingerprint(here[::-1]) == weights.fingerprint(here) == weights.fingerprint(there)


def test_swapping_the_content_of_two_parts_changes_the_fingerprint(tmp_path: Path) -> None:
    a, b = tensors(tmp_path / "a", 0), tensors(tmp_path / "b", 1)
    before = weights.fingerprint([a, b])
    content = a.read_bytes(), b.read_bytes()
    a.write_bytes(content[1])
    b.write_bytes(content[0])
    assert weights.fingerprint([a, b]) != before


def test_changing_any_single_byte_changes_the_fingerprint(tmp_path: Path) -> None:
    file = tensors(tmp_path / "w.safetensors")
    whole = file.read_bytes()
    seen = {weights.fingerprint([file])}
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        seen.add(weights.fingerprint([file]))
    assert len(seen) == len(whole) + 1


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files hashed, in order; the clock stands a minute later, so that files count as settled."""
    calls: list[Path] = []
    real, now = weights.sha256_of, time.time_ns()

    def counted(path: Path) -> str:
        calls.append(path)
        return real(path)

    monkeypatch.setattr(weights, "sha256_of", counted)
    monkeypatch.setattr(weights.time, "time_ns", lambda: now + 60_000_000_000)
    return calls


def test_an_unchanged_file_is_hashed_once(tmp_path: Path, hashed: list[Path]) -> None:
    file = tensors(tmp_path / "w")
    first = weights.fingerprint([file])
    assert weights.fingerprint([file]) == first
    assert hashed == [file]


def test_a_changed_value_is_seen_though_size_and_modification_time_are_the_same(tmp_path: Path, hashed: list[Path]) -> None:
    file = tensors(tmp_path / "w")
    first, old = weights.fingerprint([file]), file.stat()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"\x7f")
    while file.stat().st_ctime_ns == old.st_ctime_ns:  # until the file system's clock has moved on
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (old.st_size, old.st_mtime_ns)
    assert weights.fingerprint([file]) == hashlib.sha256(file.read_bytes()).hexdigest() != first


def test_a_file_just_written_is_not_trusted_to_its_times(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tensors(tmp_path / "w")
    monkeypatch.setattr(weights.time, "time_ns", lambda: file.stat().st_mtime_ns + 1_000)
    weights.fingerprint([file])
    weights.fingerprint([file])
    assert hashed == [file, file]


def test_a_damaged_memory_of_a_checksum_is_made_anew(tmp_path: Path, cache: Path, hashed: list[Path]) -> None:
    file = tensors(tmp_path / "w")
    first = weights.fingerprint([file])
    (memo,) = (cache / "fingerprints").iterdir()
    for damage in ("", "[]", "{}", '{"state": [1], "sha256": "x"}'):
        memo.write_text(damage)
        assert weights.fingerprint([file]) == first
    assert hashed == [file] * 5


def test_a_cache_that_cannot_be_written_costs_only_time(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").touch()
    monkeypatch.setenv("MEDIANT_CACHE", str(tmp_path / "occupied"))
    file = tensors(tmp_path / "w")
    assert weights.fingerprint([file]) == weights.fingerprint([file]) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert hashed == [file, file]


def test_a_missing_file_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match="absent does not exist"):
        weights.fingerprint([tmp_path / "absent"])


def gguf_file(path: Path, alignment: int | None = None) -> Path:
    """A GGUF by the format's own writer: every kind of value, plain and quantised tensors, no padding at the end."""
    writer = GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_string("a.string", "ü" * 3)
    writer.add_bool("a.bool", True)
    writer.add_float64("a.float64", 0.5)
    writer.add_int8("an.int8", -1)
    writer.add_uint64("a.uint64", 1 << 40)
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.strings", ["", "x", "yy"])
    values = np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 64)
    writer.add_tensor("plain", values[:, :16])
    for kind in (GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_1):
        writer.add_tensor(f"q{kind.name}", quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("last", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [None, 64, 256])
def test_a_whole_gguf_passes_and_one_cut_anywhere_is_truncated(tmp_path: Path, alignment: int | None) -> None:
    file = gguf_file(tmp_path / "x.gguf", alignment)
    whole = file.read_bytes()
    weights.check_gguf(file)
    weights.check_gguf(str(file), hashlib.sha256(whole).hexdigest())
    for length in [*range(4, len(whole), 7), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(SubjectError, match=r"x\.gguf is truncated"):
            weights.check_gguf(file)


def test_a_wrong_checksum_tells_both_sums_and_what_to_do(tmp_path: Path) -> None:
    file = gguf_file(tmp_path / "x.gguf")
    got, expected = hashlib.sha256(file.read_bytes()).hexdigest(), "ab" * 32
    with pytest.raises(SubjectError, match=rf"its SHA-256 is {got}, expected {expected}; delete it"):
        weights.check_gguf(file, expected)


@pytest.mark.parametrize("content", [b"", b"GGU", b"PK\x03\x04 a zip file", b"FUGG" + bytes(20)])
def test_another_kind_of_file_is_told_by_its_first_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(SubjectError, match=r"is not a GGUF file: it starts with b'.*', expected b'GGUF'"):
        weights.check_gguf(tmp_path / "x.gguf")


def test_a_missing_gguf_is_named(tmp_path: Path) -> None:
    with pytest.raises(SubjectError, match=r"absent\.gguf does not exist"):
        weights.check_gguf(tmp_path / "absent.gguf")


def header(version: int = 3, tensors: int = 0, values: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (header(version=1), "has GGUF version 1, expected 2 or 3"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "has GGUF version 50331648"),
        (header(values=1 << 60), "is truncated"),
        (header(tensors=1 << 60), "is truncated"),
        (header(values=1) + struct.pack("<Q", 1 << 62), "is truncated"),
        (header(values=1) + struct.pack("<QBI", 1, 65, 99), "value of the unknown type 99"),
        (header(values=1) + struct.pack("<QBIIQ", 1, 65, 9, 9, 1), "array of the unknown type 9"),
        (header(values=1) + struct.pack("<QBIIQ", 1, 65, 9, 10, 1 << 61), "is truncated"),
        (header(tensors=1) + struct.pack("<QBIQIQ", 1, 65, 1, 4, 999, 0), "tensor 'A' has the unknown type 999"),
        (header(tensors=1) + struct.pack("<QBIQIQ", 1, 65, 1, 4, 0, 0), "is truncated: 57 bytes, its header promises 80"),
    ],
)
def test_a_hostile_or_newer_gguf_header_ends_in_an_error_at_once(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(SubjectError, match=complaint):
        weights.check_gguf(tmp_path / "x.gguf")
