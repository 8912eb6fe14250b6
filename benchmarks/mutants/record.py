"""Which tests run which lines: one forked process per test file, with a coverage context per test."""

import hashlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from benchmarks.mutants.tree import ROOMS, RUNS, SUITES, TREE

COVER = RUNS / "cover"
# No limits by the clock: a run may be stopped for a while. Rewritten asserts would only explain what nobody reads.
FLAGS = "--assert=plain -p no:anyio -p no:cacheprovider -p no:xdist --hypothesis-seed=0 --tb=no --timeout=0"


class Contexts:
    """Tells coverage which test is running, and keeps each test's seconds of processor time."""

    def __init__(self, measured: Any) -> None:
        self.measured = measured
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.measured.switch_context(item.nodeid)
        start = time.process_time()
        yield
        self.seconds[item.nodeid] = time.process_time() - start
        self.measured.switch_context("")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def record_file(test: str, target: Path) -> None:
    """Run one test file under coverage and write its tests, their times, and the lines of the rooms each ran."""
    import coverage

    start = time.process_time()
    measured = coverage.Coverage(data_file=None, source=[str(TREE / "src" / "mediant" / room) for room in ROOMS])
    measured.start()
    contexts = Contexts(measured)
    code = pytest.main([*FLAGS.split(), test], plugins=[contexts])
    measured.stop()
    data = measured.get_data()
    lines = {
        str(Path(file).relative_to(TREE)): {str(n): sorted(c) for n, c in data.contexts_by_lineno(file).items()}
        for file in data.measured_files()
    }
    told = {
        "sha": sha(test),
        "code": int(code),
        "failed": contexts.failed,
        "all_s": time.process_time() - start,
        "tests": contexts.seconds,
        "lines": lines,
    }
    part = target.with_suffix(".part")
    part.write_text(json.dumps(told), encoding="utf-8")
    part.replace(target)


def sha(test: str) -> str:
    """The first characters of a test file's hash."""
    return hashlib.sha256((TREE / test).read_bytes()).hexdigest()[:16]


def record(suites: Sequence[str] = SUITES) -> None:
    """Record every test file that is not recorded as it is now."""
    COVER.mkdir(parents=True, exist_ok=True)
    for suite in suites:
        for test in sorted((TREE / suite).glob("test_*.py")):
            name = str(test.relative_to(TREE))
            target = COVER / (name.replace("/", "__") + ".json")
            if target.exists() and json.loads(target.read_text(encoding="utf-8"))["sha"] == sha(name):
                continue
            target.unlink(missing_ok=True)
            print(f"recording {name}", flush=True)
            child = os.fork()
            if child == 0:
                try:
                    sys.stdout.flush()
                    record_file(name, target)
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    os._exit(0)
            os.waitpid(child, 0)
            if not target.exists():
                raise SystemExit(f"{name} could not be recorded")
