"""One mutant against the tests that run its lines: nearest and fastest first, in a forked process, until one fails."""

import json
import os
import resource
import shutil
import sys
import traceback
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from benchmarks.mutants import tree
from benchmarks.mutants.faults import Fault
from benchmarks.mutants.record import COVER, FLAGS

# Seconds of processor time that the tests need without a fault: first the nearest, then the others of those that run the line.
FIRST_S, THEN_S = 4.0, 8.0
# For whole files that were never recorded.
MINUTES_S = 300.0
# Reading a test file costs more than many of its tests.
MOST_FILES = 12
SLOWER, PATIENCE_S, MEMORY = 5.0, 20.0, 8 * 2**30


@dataclass
class Covering:
    """Which tests run which lines, and how long each takes."""

    seconds: dict[str, float] = field(default_factory=dict)
    lines: dict[str, dict[int, set[str]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    mentions: dict[str, str] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)

    @classmethod
    def read(cls) -> "Covering":
        """All that `record` wrote; a test that fails under coverage is left out."""
        covering = cls()
        for path in sorted(COVER.glob("*.json")):
            told = json.loads(path.read_text(encoding="utf-8"))
            failed = set(told["failed"])
            covering.failing |= failed
            covering.seconds.update({test: s for test, s in told["tests"].items() if test not in failed})
            for file, lines in told["lines"].items():
                for line, tests in lines.items():
                    covering.lines[file][int(line)].update(test for test in tests if test and test not in failed)
        for name in {test.split("::")[0] for test in covering.seconds}:
            covering.mentions[name] = name + (tree.TREE / name).read_text(encoding="utf-8")
        return covering

    def of(self, fault: Fault) -> set[str]:
        """Tests that run its lines; where no function is in the file, tests whose file names it."""
        file = self.lines.get(fault.file, {})
        if fault.lines:
            return {test for line in fault.lines for test in file.get(line, ())}
        return {test for test in self.seconds if self.near(fault, test)}

    def near(self, fault: Fault, test: str) -> bool:
        """Whether a test's file names the module, or imports from its package."""
        stem = Path(fault.file).stem
        dotted = fault.file.removeprefix("src/").removesuffix(".py").replace("/", ".")
        text = self.mentions[test.split("::")[0]]
        package = f"from {dotted.rpartition('.')[0]} import"
        return dotted in text or package in text or stem in text.partition(".py")[0]

    def stages(self, fault: Fault) -> list[list[str]]:
        """What to run first, and what if that passes: others on the line, then the nearest files' other tests."""
        on_line = self.of(fault)
        turn: dict[str, int] = {}
        seen: Counter[str] = Counter()
        for test in sorted(on_line, key=self.seconds.__getitem__):
            file = test.split("::")[0]
            turn[test], seen[file] = seen[file], seen[file] + 1
        # One test of every file, then a second of every file: tests of different files notice different things.
        ordered = sorted(on_line, key=lambda test: (not self.near(fault, test), turn[test], self.seconds[test]))
        files = {test.split("::")[0] for test in on_line if self.near(fault, test)}
        beside = [test for test in self.seconds if test.split("::")[0] in files and test not in on_line]
        queue = [*ordered, *sorted(beside, key=self.seconds.__getitem__)]
        stages: list[list[str]] = [[], []]
        spent, opened = 0.0, set[str]()
        for test in queue:
            file = test.split("::")[0]
            if len(opened) == MOST_FILES and file not in opened:
                continue
            after = spent + self.seconds[test]
            if not stages[0] or after <= FIRST_S:
                stages[0].append(test)
            elif after <= FIRST_S + THEN_S or not stages[1]:
                stages[1].append(test)
            else:
                continue  # too slow for what is left; quicker ones may follow
            opened.add(file)
            spent = after
        return [stage for stage in stages if stage]


class FirstFailure:
    """Runs the wanted tests alone, in the order given, and ends the process at the first that fails."""

    def __init__(self, wanted: Sequence[str], report: int, failing: Collection[str]) -> None:
        self.place = {test: i for i, test in enumerate(wanted)}
        self.failing = failing
        self.whole_files = not any("::" in test for test in wanted)
        self.report = report

    def tell(self, outcome: str, by: str) -> None:
        """Write the outcome and end at once, without the tests' own cleaning up."""
        os.write(self.report, json.dumps([outcome, by]).encode())
        os._exit(0)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.whole_files:
            items[:] = [item for item in items if item.nodeid not in self.failing]
            return
        items[:] = sorted((item for item in items if item.nodeid in self.place), key=lambda item: self.place[item.nodeid])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.tell("killed", f"{report.nodeid} (import)")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.tell("killed", report.nodeid)


def run_tests(tests: Sequence[str], report: int, limit_s: float, failing: Collection[str]) -> None:
    """In the forked process: limits, then pytest."""
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit_s), int(limit_s) + 5))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    sys.dont_write_bytecode = True
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    ending = FirstFailure(tests, report, failing)
    code = pytest.main([*FLAGS.split(), *files], plugins=[ending])
    # Exit 4: a `conftest.py` could not be imported. Exit 5: no test was left, as when a fault changes their names.
    by = {0: "", 4: "tests/conftest.py (import)", 5: ""}.get(int(code), f"pytest's exit {int(code)}")
    ending.tell("killed" if by else "survived", by)


def attempt(tests: Sequence[str], limit_s: float, failing: Collection[str] = ()) -> tuple[str, str]:
    """Outcome and killer of one run in a forked process."""
    shutil.rmtree(tree.TREE / ".hypothesis", ignore_errors=True)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            run_tests(tests, write, limit_s, failing)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(9)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    if told:
        outcome, by = json.loads(told)
        return str(outcome), str(by)
    by = (
        f"more than {limit_s:.0f} s of processor time"
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (9, 24)
        else "the process ended"
    )
    return "killed", by


def trial(fault: Fault, text: str, covering: Covering, whole: Sequence[str] = ()) -> tuple[str, str]:
    """Put the fault into the copy, run the tests stage by stage, or whole test files, and put the file back as it was."""
    stages = [list(whole)] if whole else covering.stages(fault)
    if not stages:
        return "survived", "no test runs the line"
    file = tree.TREE / fault.file
    kept, times = file.read_bytes(), file.stat()
    outcome, by = "survived", ""
    try:
        file.write_text(text, encoding="utf-8")
        for stage in stages:
            usual_s = sum(s for test, s in covering.seconds.items() if test.split("::")[0] in whole or test in stage)
            limit_s = PATIENCE_S + SLOWER * (usual_s or MINUTES_S)
            outcome, by = attempt(stage, limit_s, covering.failing)
            if outcome == "killed":
                break
    finally:
        file.write_bytes(kept)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    return outcome, by
