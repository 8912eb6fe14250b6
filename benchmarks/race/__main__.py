"""Run the race, append its rows to `results/race.jsonl`, write `docs/race.md` and its picture.

    python -m benchmarks.race                          # everything
    python -m benchmarks.race --rows sweep heads --rounds 5
    python -m benchmarks.race --quick                  # small inputs, two rounds; writes nothing
    python -m benchmarks.race --page                   # only the page, from the rows that are there

Ends with an error where a contender's result is not ours.
"""

import argparse
import os
import sys
import time

# Before anything reads them: one thread, no progress bars, and nothing asked of a network.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TQDM_DISABLE="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import torch
from benchmarks.race import floor, page
from benchmarks.race.arena import Arena
from benchmarks.race.contest import Entry, Result, hold
from benchmarks.race.rows import ROWS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.race", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which rows (all)")
    parser.add_argument("--rounds", type=int, help="how often each contender is timed (each row has its own number)")
    parser.add_argument("--quick", action="store_true", help="small inputs and two rounds, to see whether everything runs")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page from the rows that are there")
    options = parser.parse_args()
    if options.page:
        page.write()
        return 0
    torch.set_num_threads(1)
    machine = floor.measured(quick=options.quick)
    print(f"{machine.flops / 1e9:.1f} GFLOP/s, {machine.bytes / 1e9:.1f} GB/s", flush=True)
    arena, results, begun = Arena(quick=options.quick), list[Result](), time.perf_counter()
    arena.assemble()
    for key in options.rows:
        result = hold(ROWS[key](arena), machine, rounds=options.rounds or (2 if options.quick else None))
        results.append(result)
        show(result)
        print(f"  ({time.perf_counter() - begun:.0f} s so far)", flush=True)
    if not options.quick:
        page.record(results, machine)
        page.write()
    return 0 if all(result.sound for result in results) else 1


def show(result: Result) -> None:
    """Print a row."""
    print(f"\n{result.event.title}  [{result.rounds} rounds; target: {result.event.target}; {result.verdict}]")
    print(f"  {'mediant':45} {result.seconds:9.4f} s   floor {result.floor:.4f} s, {result.seconds / result.floor:.2f} x")
    for entry in (*([result.bare] if result.bare else []), *result.entries):
        print(f"  {entry.name:45} {told(entry)}")
    if note := result.event.note():
        print(f"  {note}")


def told(entry: Entry) -> str:
    """One line about a contender."""
    if entry.seconds is None or entry.ratio is None:
        return f"{entry.status}: {entry.reason or entry.deviation}"
    deviation = "" if entry.deviation is None else f"   deviation {entry.deviation:.0e}"
    return f"{entry.seconds:9.4f} s   {entry.ratio:6.2f} x ours{deviation}"


if __name__ == "__main__":
    sys.exit(main())
