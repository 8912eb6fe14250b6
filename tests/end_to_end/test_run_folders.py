"""Run folders that are taken, broken or on a full disk: one message, nothing lost, and a way on."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import trained
from conftest import Arguments, Mediant


def test_an_out_that_cannot_be_a_folder_is_refused(mediant: Mediant, arguments: Arguments, tmp_path: Path):
    (tmp_path / "file").write_text("precious")
    mediant(*arguments(tmp_path / "file")).refuses("cannot write to", "choose another --out")
    mediant(*arguments(tmp_path / "file" / "below")).refuses("cannot write to", "choose another --out")
    mediant(*arguments(tmp_path)).refuses("is not empty and holds no run; choose another --out")
    assert (tmp_path / "file").read_text() == "precious"


def test_an_out_that_holds_a_run_is_refused_and_kept(mediant: Mediant, arguments: Arguments, finished: Path):
    before = {file.name: file.read_bytes() for file in finished.iterdir()}
    mediant(*arguments(finished)).refuses("already holds a run; add --resume to go on with it, or choose another --out")
    mediant(*arguments(finished, "--resume", seed=7, n=21)).refuses(
        "was started with other settings", "config.n: 20 then, 21 now", "config.seed: 0 then, 7 now"
    )
    assert {file.name: file.read_bytes() for file in finished.iterdir()} == before


def test_a_run_cannot_go_on_with_other_weights(
    mediant: Mediant, arguments: Arguments, agreement: Path, finished: Path, tmp_path: Path
):
    model, folder = tmp_path / "model", shutil.copytree(finished, tmp_path / "run")
    trained.with_weights_changed(agreement, model, lambda tensors: tensors["model.norm.weight"].mul_(1.001))
    manifest = json.loads((folder / "manifest.json").read_text())
    for settings in (manifest["config"], manifest["changed"]):
        settings["model"] = str(model)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    mediant(*arguments(folder, "--resume", model=model)).refuses("was started with other settings", "model_fingerprint:")


def test_an_unfinished_run_is_not_shown(mediant: Mediant, finished: Path, tmp_path: Path):
    shutil.copy(finished / "manifest.json", tmp_path)
    mediant("show", tmp_path).refuses("holds an unfinished run; go on with it with --resume")
    mediant("compare", finished, tmp_path).refuses("holds an unfinished run")


def test_a_broken_result_is_not_shown(mediant: Mediant, finished: Path, tmp_path: Path):
    whole = (finished / "result.json").read_text()
    for broken in ("", "{}", whole[: len(whole) // 2], whole.replace('"n": 20', '"n": -1')):
        (tmp_path / "result.json").write_text(broken)
        mediant("show", tmp_path).refuses("result.json is not a result of this version")


def test_a_run_of_bytes_that_are_no_text_is_refused(mediant: Mediant, arguments: Arguments, finished: Path, tmp_path: Path):
    folder = shutil.copytree(finished, tmp_path / "run")
    for name in ("result.json", "manifest.json"):
        (folder / name).write_bytes(b"\xff\xfe")
    mediant("show", folder).refuses("result.json is not a result of this version")
    mediant(*arguments(folder, "--resume")).refuses("holds no run of this version")


def test_a_broken_manifest_is_refused(mediant: Mediant, arguments: Arguments, finished: Path, tmp_path: Path):
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "manifest.json").write_text('{"study": "activation-patching"')
    mediant(*arguments(folder, "--resume")).refuses("holds no run of this version")


def test_a_broken_line_amid_the_items_is_refused_by_number(
    mediant: Mediant, arguments: Arguments, finished: Path, tmp_path: Path
):
    folder = shutil.copytree(finished, tmp_path / "run")
    lines = (folder / "items.jsonl").read_text().splitlines(keepends=True)
    (folder / "items.jsonl").write_text("".join([*lines[:4], lines[4][:30] + "\n", *lines[5:]]))
    mediant(*arguments(folder, "--resume")).refuses("items.jsonl line 5 is broken", "start afresh with another --out")


@pytest.mark.parametrize("k", [0, 9])
def test_a_full_disk_keeps_what_is_finished_and_the_run_goes_on_when_there_is_room(
    mediant: Mediant, arguments: Arguments, finished: Path, k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write, written = os.write, 0

    def nearly_full(handle: int, data: bytes) -> int:
        """The item after the first `k` is cut short, as on a disk with a few bytes left."""
        nonlocal written
        if Path(f"/proc/self/fd/{handle}").readlink().name != "items.jsonl":
            return write(handle, data)
        written += 1
        if written > k + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data if written <= k else data[: len(data) // 2])

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", nearly_full)
        mediant(*arguments(folder)).refuses(
            f"the disk that holds {folder} is full", "go on with --resume (finished items are kept)"
        )
    kept = (folder / "items.jsonl").read_bytes()
    assert kept == b"".join((finished / "items.jsonl").read_bytes().splitlines(keepends=True)[:k])
    assert mediant(*arguments(folder, "--resume")).code == 0
    for name in ("result.json", "items.jsonl"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 16 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here; the test above plays a full one")
    yield disk
    # Lazily, so that a failing test, which may still hold a file there, leaves no disk behind.
    subprocess.run(["umount", "--lazy", disk], check=True)


def test_a_really_full_disk_first_under_the_items_then_under_the_page(
    mediant: Mediant, arguments: Arguments, finished: Path, small_disk: Path
):
    folder, whole = small_disk / "run", (finished / "items.jsonl").read_bytes()
    mediant(*arguments(folder)).refuses("is full; free some space and go on with --resume")
    kept = (folder / "items.jsonl").read_bytes()
    assert kept.endswith(b"\n")
    assert whole.startswith(kept)
    assert 0 < len(kept) < len(whole)
    subprocess.run(["mount", "-o", "remount,size=1m", small_disk], check=True)
    mediant(*arguments(folder, "--resume")).refuses("is full; free some space and go on with --resume")
    assert sorted(file.name for file in folder.iterdir()) == ["items.jsonl", "manifest.json"]
    assert (folder / "items.jsonl").read_bytes() == whole
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert mediant(*arguments(folder, "--resume")).code == 0
    assert (folder / "result.json").read_bytes() == (finished / "result.json").read_bytes()
    assert (folder / "index.html").read_bytes() == (finished / "index.html").read_bytes()
