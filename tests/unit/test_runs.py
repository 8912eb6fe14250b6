"""Run folders keep every finished item whole, once, and refuse what they cannot go on with; engines do nothing twice."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest

from mediant.core.errors import RunError
from mediant.runs import LocalEngine, Manifest, RunFolder, WorkItem
from mediant.runs.folder import disk_errors, read_manifest, write_atomically

MANIFEST = Manifest(
    study="s", preset="p", config={"n": 8, "model": "m"}, changed={"n": 8}, model_fingerprint="f", versions={"torch": "2"}
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.open(tmp_path / "run", MANIFEST)


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """A folder with two items that nobody holds any more."""
    folder = RunFolder.open(tmp_path / "left", MANIFEST)
    folder.append("a", {"x": 1})
    folder.append("b", {"x": 2})
    return folder.path


def resumed(path: Path, manifest: Manifest = MANIFEST) -> RunFolder:
    return RunFolder.open(path, manifest, resume=True)


def stored(folder: RunFolder) -> list[dict]:
    path = folder.path / "items.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_new_folder_holds_the_manifest_alone(folder: RunFolder):
    assert [file.name for file in folder.path.iterdir()] == ["manifest.json"]
    assert read_manifest(folder.path) == MANIFEST
    assert folder.done == {}


def test_an_item_is_one_line_and_reads_back_as_it_was_given_out(folder: RunFolder):
    record = folder.append("a/1", {"effects": [0.1, -1e-300, 1 / 3], "text": "é\n<\u2028>"})
    assert record == {"key": "a/1", "effects": [0.1, -1e-300, 1 / 3], "text": "é\n<\u2028>"}
    assert (folder.path / "items.jsonl").read_bytes().count(b"\n") == 1
    assert stored(folder) == [record]
    assert folder.done == {"a/1": record}


def test_a_resumed_run_has_the_items_that_were_stored(left: Path):
    again = resumed(left)
    assert again.done == {"a": {"key": "a", "x": 1}, "b": {"key": "b", "x": 2}}
    with pytest.raises(RunError, match="item 'a' was stored before"):
        again.append("a", {"x": 1})


def test_a_record_comes_back_as_json_would_give_it(folder: RunFolder):
    """Otherwise an undisturbed run would compute with tuples and whole-number keys where a resumed one has none."""
    assert folder.append("a", {"pair": (1, 2), "by": {3: 4}}) == {"key": "a", "pair": [1, 2], "by": {"3": 4}}


def test_a_key_is_stored_once(folder: RunFolder):
    folder.append("a", {"x": 1})
    with pytest.raises(RunError, match="item 'a' was stored before"):
        folder.append("a", {"x": 2})
    assert stored(folder) == [{"key": "a", "x": 1}]


def test_two_that_fill_one_folder_at_once_do_not_spoil_it(folder: RunFolder):
    with pytest.raises(RunError, match=r"another process is filling .*; wait for it, or choose another --out"):
        resumed(folder.path)
    folder.append("a", {"x": 1})
    assert stored(folder) == [{"key": "a", "x": 1}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_never_reaches_the_disk(folder: RunFolder, value: float):
    with pytest.raises(RunError, match="item 'a' holds numbers that are not finite"):
        folder.append("a", {"x": [1.0, value]})
    assert (stored(folder), folder.done) == ([], {})


@pytest.mark.parametrize("cut", ["{", '{"key":"c","x":3}', '{"key":"c","x":3}'[:9], "\x00\x00"])
def test_a_last_line_cut_short_is_dropped_from_the_file(left: Path, cut: str):
    path = left / "items.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + cut.encode())
    again = resumed(left)
    assert (list(again.done), path.read_bytes()) == (["a", "b"], whole)
    again.append("c", {"x": 3})
    assert [item["key"] for item in stored(again)] == ["a", "b", "c"]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"x":1}', "", "null"])
def test_a_broken_line_in_the_middle_is_refused_by_its_number(left: Path, line: str):
    path = left / "items.jsonl"
    path.write_text(f'{{"key":"a"}}\n{line}\n{{"key":"b"}}\n')
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"items.jsonl line 2 is broken: .*; start afresh with another --out"):
        resumed(left)
    assert path.read_bytes() == before


def test_a_key_that_occurs_twice_in_the_file_is_refused(left: Path):
    (left / "items.jsonl").write_text('{"key":"a"}\n{"key":"b"}\n{"key":"a"}\n')
    with pytest.raises(RunError, match="line 3: item 'a' occurs twice"):
        resumed(left)


def test_a_folder_that_was_refused_is_not_held(left: Path):
    path = left / "items.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"broken\n" + whole)
    for _ in range(2):
        with pytest.raises(RunError, match="line 1 is broken"):
            resumed(left)
    path.write_bytes(whole)
    assert list(resumed(left).done) == ["a", "b"]


def test_a_folder_that_holds_a_run_is_opened_on_request_only(folder: RunFolder):
    with pytest.raises(RunError, match="already holds a run; add --resume"):
        RunFolder.open(folder.path, MANIFEST)


def test_resuming_where_there_is_nothing_starts_a_run(tmp_path: Path):
    assert RunFolder.open(tmp_path / "deep" / "run", MANIFEST, resume=True).done == {}


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("x")
    for resume in (False, True):
        with pytest.raises(RunError, match="is not empty and holds no run; choose another --out"):
            RunFolder.open(tmp_path, MANIFEST, resume=resume)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"config": {"n": 9, "model": "m"}}, "config.n: 8 then, 9 now"),
        ({"config": {"n": 8}}, "config.model: 'm' then, None now"),
        ({"config": {"n": 8, "model": "m", "k": 1}}, "config.k: None then, 1 now"),
        ({"study": "t"}, "study: 's' then, 't' now"),
        ({"preset": "q"}, "preset: 'p' then, 'q' now"),
        ({"model_fingerprint": "g"}, "model_fingerprint: 'f' then, 'g' now"),
        ({"versions": {"torch": "3"}}, "versions.torch: '2' then, '3' now"),
        ({"changed": {}}, "changed.n: 8 then, None now"),
    ],
)
def test_a_run_cannot_go_on_as_another_and_the_difference_is_named(left: Path, changed: dict, message: str):
    other = Manifest.model_validate(MANIFEST.model_dump() | changed)
    with pytest.raises(RunError) as raised:
        resumed(left, other)
    assert f"cannot be resumed with these ({message})" in str(raised.value)


def test_a_manifest_of_another_shape_is_refused(left: Path):
    for broken in ("", "[]", "{}", MANIFEST.model_dump_json().replace("study", "studie")):
        (left / "manifest.json").write_text(broken)
        with pytest.raises(RunError, match="holds no run of this version"):
            resumed(left)


def test_a_file_is_written_whole_readable_and_with_nothing_beside_it(tmp_path: Path):
    path = write_atomically(tmp_path / "page.html", "é" * 100_000)
    assert path.read_text(encoding="utf-8") == "é" * 100_000
    assert path.stat().st_mode & 0o777 == 0o644
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_atomically(tmp_path / "result.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \udc80")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output error"):
        write_atomically(path, "new")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("result.json", "old")]


def test_a_failed_write_in_a_folder_is_explained(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(RunError, match=r"is full; free some space and go on with --resume \(finished items are kept\)"):
        folder.write("result.json", "{}")
    assert [file.name for file in folder.path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk that holds there is full"),
        (errno.EACCES, "cannot write to there: Permission denied; choose another --out"),
        (errno.EROFS, "cannot write to there: Read-only file system; choose another --out"),
    ],
)
def test_what_the_disk_says_becomes_what_to_do(number: int, words: str):
    with pytest.raises(RunError, match=words), disk_errors(Path("there")):
        raise OSError(number, os.strerror(number))


def test_a_full_quota_is_a_full_disk():
    with pytest.raises(RunError, match="go on with --resume"), disk_errors(Path("there")):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


@pytest.mark.parametrize("room", [0, 1, 10, 40])
def test_a_full_disk_leaves_whole_lines_and_room_makes_it_go_on(folder: RunFolder, room: int, monkeypatch: pytest.MonkeyPatch):
    """The disk has `room` bytes left: a write is cut there, as the system does it, and the next finds none."""
    folder.append("a", {"x": [1] * 10})
    write, left = os.write, room

    def limited(handle: int, data: bytes) -> int:
        nonlocal left
        if left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(handle, data[:left])
        left -= done
        return done

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", limited)
        with pytest.raises(RunError, match="is full"):
            folder.append("b", {"x": [2] * 100})
    assert stored(folder) == [{"key": "a", "x": [1] * 10}]
    assert list(folder.done) == ["a"]
    folder.append("b", {"x": [2] * 100})
    assert [item["key"] for item in stored(folder)] == ["a", "b"]


def test_engines_compute_what_is_missing_in_order_and_nothing_twice(folder: RunFolder):
    folder.append("b", {"value": "kept"})
    computed: list[str] = []

    def item(key: str) -> WorkItem:
        return WorkItem(key, lambda: computed.append(key) or {"value": key})

    engine = LocalEngine(show_progress=False)
    found = engine.map(folder, [item(key) for key in "cba"], title="")
    assert [record["value"] for record in found] == ["c", "kept", "a"]
    assert computed == ["c", "a"]
    assert [record["key"] for record in stored(folder)] == ["b", "c", "a"]
    assert engine.map(folder, [item(key) for key in "cba"], title="") == found
    assert computed == ["c", "a"]


def test_an_item_that_fails_keeps_those_before_it(folder: RunFolder):
    def fails() -> dict:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        LocalEngine(show_progress=False).map(folder, [WorkItem("a", dict), WorkItem("b", fails), WorkItem("c", dict)], title="")
    assert [record["key"] for record in stored(folder)] == ["a"]


def test_an_item_without_numbers_is_not_computed_again(folder: RunFolder):
    LocalEngine(show_progress=False).map(folder, [WorkItem("a", dict)], title="")
    LocalEngine(show_progress=False).map(folder, [WorkItem("a", lambda: pytest.fail("computed again"))], title="")


def test_progress_goes_to_standard_error_and_only_when_it_is_wanted(folder: RunFolder, capsys: pytest.CaptureFixture[str]):
    LocalEngine(show_progress=False).map(folder, [WorkItem("a", dict)], title="reading")
    assert capsys.readouterr() == ("", "")
    LocalEngine(show_progress=True).map(folder, [WorkItem("b", dict)], title="reading")
    shown = capsys.readouterr()
    assert (shown.out, "reading" in shown.err, "100%" in shown.err) == ("", True, True)


def test_workers_side_by_side_store_in_the_items_order(folder: RunFolder):
    second_done = threading.Event()

    def first() -> dict:
        assert second_done.wait(20)  # ends only once the other worker has done the second
        return {"value": 1}

    def second() -> dict:
        second_done.set()
        return {"value": 2}

    folder.append("c", {"value": "kept"})
    items = [WorkItem("a", first), WorkItem("b", second), WorkItem("c", lambda: pytest.fail("computed again"))]
    found = LocalEngine(show_progress=False).map(folder, items, title="", workers=2)
    assert [record["value"] for record in found] == [1, 2, "kept"]
    assert [record["key"] for record in stored(folder)] == ["c", "a", "b"]


def test_a_failure_ends_the_other_workers_and_keeps_what_was_done(folder: RunFolder):
    engine, failed, begun = LocalEngine(show_progress=False), threading.Event(), []

    def fails() -> dict:
        failed.set()
        raise RuntimeError("no memory")

    def long() -> dict:
        assert failed.wait(20)
        for _ in range(2000):
            time.sleep(0.01)
            engine.pause()
        return {}

    items = [WorkItem("a", dict), WorkItem("b", fails), WorkItem("c", long)]
    items += [WorkItem(f"d{i}", lambda i=i: begun.append(i) or {}) for i in range(50)]
    start = time.monotonic()
    with pytest.raises(RuntimeError, match="no memory"):
        engine.map(folder, items, title="", workers=2)
    assert time.monotonic() - start < 15
    assert [record["key"] for record in stored(folder)] == ["a"]
    with pytest.raises(RunError, match="stopped"):
        engine.pause()
