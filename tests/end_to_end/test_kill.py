"""A run killed at any moment goes on to the very same result, and does nothing twice.

What is killed are real processes, with SIGKILL, which no code of theirs can see coming.
"""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from conftest import Arguments, Mediant

SCRIPT = Path(__file__).parents[1] / "run_kills.py"
ROUNDS, KILLS = 4, 5


def script(*arguments: object) -> dict[str, Any]:
    done = subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def faults(end: dict[str, Any]) -> dict[str, Any]:
    """What is wrong with the end of a run that went on."""
    return {name: end[name] for name in ("status", "differ", "missing", "twice") if end[name]}


@pytest.fixture(scope="module")
def killed(arguments: Arguments, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return script("study", tmp_path_factory.mktemp("kills") / "study", ROUNDS, KILLS, *arguments())


def test_most_kills_hit_an_unfinished_run_and_at_different_points(killed: dict[str, Any]):
    deaths = [death for end in killed["rounds"] for death in end["deaths"]]
    hit = [death for death in deaths if death["status"] == -signal.SIGKILL and death["unfinished"]]
    assert (len(deaths), killed["total"] > 20) == (20, True)
    assert len(hit) >= 15
    assert len({death["stored"] for death in hit}) >= 6


def test_a_killed_run_goes_on_to_the_same_bytes_and_stores_no_key_twice(killed: dict[str, Any]):
    assert [faults(end) for end in killed["rounds"]] == [{}] * ROUNDS


def test_circuits_killed_while_they_are_scored_or_run_end_in_the_same_bytes(
    agreement: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory
):
    small = ["--preset", "smoke", "--n", "24", "--n-discovery", "12", "--device", "cpu", "--model", agreement, "--task", pairs]
    command = ["run", "positional-circuits", *map(str, small)]
    found = script("study", tmp_path_factory.mktemp("kills") / "circuits", 2, 5, *command)
    deaths = [death for end in found["rounds"] for death in end["deaths"]]
    assert sum(death["status"] == -signal.SIGKILL and death["unfinished"] for death in deaths) >= 7
    assert len({death["stored"] for death in deaths}) >= 4
    assert [faults(end) for end in found["rounds"]] == [{}] * 2
    assert [end["left"] for end in found["rounds"]] == [0, 0]


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """One death for every line of the code that keeps a run."""
    found: list[dict[str, Any]] = script("lines", tmp_path_factory.mktemp("kills") / "lines")["points"]
    assert len(found) > 80
    assert {point["died"] for point in found} == {-signal.SIGKILL}
    return found


def test_once_a_run_has_begun_it_can_die_at_any_line(points: list[dict[str, Any]]):
    begun = [point for point in points if point["began"]]
    assert len(begun) > 50
    assert [found for point in begun if (found := faults(point))] == []


def test_a_run_can_die_while_it_begins(points: list[dict[str, Any]]):
    assert [found for point in points if not point["began"] and (found := faults(point))] == []


def test_a_run_that_went_on_leaves_nothing_half_written_behind(points: list[dict[str, Any]]):
    assert [point["left"] for point in points if point["left"]] == []


def test_a_last_line_cut_anywhere_is_done_again(mediant: Mediant, arguments: Arguments, finished: Path, tmp_path: Path):
    whole = (finished / "items.jsonl").read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    random = Random(5)
    for number, cut in enumerate((random.randrange(ends[3], ends[4]), ends[-2] - 1)):
        folder = shutil.copytree(finished, tmp_path / str(number))
        (folder / "result.json").unlink()
        (folder / "items.jsonl").write_bytes(whole[:cut])
        assert mediant(*arguments(folder, "--resume")).code == 0
        assert (folder / "items.jsonl").read_bytes() == whole
        assert (folder / "result.json").read_bytes() == (finished / "result.json").read_bytes()
