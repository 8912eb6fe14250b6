"""The command: `python -m benchmarks.mutants --help`."""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from benchmarks.mutants import page, tree
from benchmarks.mutants.faults import AT_LEAST, Fault, compiles, draw, faults, modules, mutated, shown
from benchmarks.mutants.record import record
from benchmarks.mutants.trial import FIRST_S, THEN_S, Covering, trial

Row = dict[str, Any]


def read_rows() -> list[Row]:
    """Results so far; the last word on a mutant counts."""
    if not tree.RESULTS.exists():
        return []
    rows = [json.loads(line) for line in tree.RESULTS.read_text(encoding="utf-8").splitlines()]
    return list({row["key"]: row for row in rows}.values())


def write_row(row: Row) -> None:
    """Add one result."""
    with tree.RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def turns(sample: list[Fault]) -> list[Fault]:
    """One mutant of every file, then a second of every file: what an interrupted run leaves is a sample too."""
    by_file: dict[str, list[Fault]] = {}
    for fault in sample:
        by_file.setdefault(fault.file, []).append(fault)
    return [fault for turn in zip_longest(*by_file.values()) for fault in turn if fault is not None]


def run(sample: list[Fault], again: bool, whole: Sequence[str], as_first: bool) -> None:
    """Try every mutant of the sample that has no result; with `again`, also those that survived; `whole` files or what covers."""
    covering = Covering.read()
    rows = {row["key"]: row for row in read_rows()}
    known = {key for key, row in rows.items() if row["outcome"] == "killed" or not again}
    todo = [fault for fault in turns(sample) if fault.key not in known]
    for i, fault in enumerate(todo):
        source = (tree.TREE / fault.file).read_text(encoding="utf-8")
        text = mutated(source, fault.operator, fault.occurrence)
        start = time.monotonic()
        outcome, by = trial(fault, text, covering, whole) if compiles(text) else ("no Python", "")
        before, after = shown(source, text, fault.line)
        row = {
            "key": fault.key,
            "file": fault.file,
            "line": fault.line,
            "operator": fault.operator,
            "before": before,
            "after": after,
        }
        first = rows[fault.key]["first"] if fault.key in rows and not as_first else outcome
        write_row({**row, "first": first, "outcome": outcome, "by": by})
        print(
            f"{i + 1}/{len(todo)} {time.monotonic() - start:.0f} s {outcome} {fault.file}:{fault.line} {fault.operator} {by}",
            flush=True,
        )


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.mutants", description=__doc__)
    parser.add_argument("--size", type=int, default=400, help="mutants in the sample")
    parser.add_argument("--at-least", type=int, default=AT_LEAST, help="of every file that has as many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rooms", nargs="+", choices=tree.ROOMS, default=list(tree.ROOMS))
    parser.add_argument("--suites", nargs="+", choices=tree.SUITES, default=list(tree.SUITES), help="tests to record")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every Nth mutant, from the Ith on")
    parser.add_argument("--again", action="store_true", help="try survivors again")
    parser.add_argument("--fresh", action="store_true", help="forget the results")
    parser.add_argument("--only", nargs="+", default=(), metavar="KEY", help="these mutants alone")
    parser.add_argument("--tests", nargs="+", default=(), metavar="FILE", help="run these files whole, not what covers")
    parser.add_argument("--as-first", action="store_true", help="count the outcome as the first one: no test was added since")
    parser.add_argument("--page", action="store_true", help="write docs/mutation.md from the results there are, and stop")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    everything = {file: faults(tree.ROOT, file) for file in modules(tree.ROOT)}
    sample = draw(everything, chosen.size, chosen.seed, chosen.at_least)
    if not chosen.page:
        tree.build()
        tree.enter()
        tree.warm()
        if not chosen.tests:
            record(chosen.suites)
        if chosen.fresh:
            tree.RESULTS.unlink(missing_ok=True)
        mine = [f for f in sample if f.file.split("/")[2] in chosen.rooms and (not chosen.only or f.key in chosen.only)]
        run(mine[chosen.part[0] :: chosen.part[1]], chosen.again or bool(chosen.only), chosen.tests, chosen.as_first)
    page.write(everything, sample, read_rows(), FIRST_S + THEN_S)


if __name__ == "__main__":
    main()
