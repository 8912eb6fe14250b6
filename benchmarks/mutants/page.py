"""The page: how many mutants the tests notice, by room, and what is said of each that they do not."""

import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.mutants.faults import AT_LEAST, Fault
from benchmarks.mutants.tree import ROOMS, ROOT
from benchmarks.mutants.trial import MOST_FILES

PAGE = ROOT / "docs" / "mutation.md"
REASONS = Path(__file__).with_name("reasons.toml")
KINDS = {
    "equivalent": "Equivalent: no caller can see a difference",
    "speed": "Speed, memory or the way there, not the result",
    "message": "Only what an error or a report says in words",
    "setting": "A chosen constant or default, one unit aside",
    "rounding": "Below the numbers' rounding, or a guard against it",
    "gap": "Gaps left open",
    "": "Not looked at",
}
LEAD = """# Mutation testing

Small faults, one at a time, in `core`, `interventions`, `measures` and `search`: a mutant is killed when a test fails, and
survives when none does. `make mutants` makes this page.

- **Faults** are [cosmic-ray](https://cosmic-ray.readthedocs.io)'s: signs of arithmetic and comparison swapped or an edge moved,
  numbers one up or one down, conditions negated, `and` for `or`, `True` for `False`, loops skipped, `except` clauses that catch
  nothing, decorators removed. Not made: faults in annotations, docstrings and the arguments of raised errors, and swaps that
  could only raise a `TypeError`.
- **The sample**: {tried} of {possible:,} faults, drawn by a seeded hash, at least {least} of every file that has as many.
  Shares are weighted by each file's number of faults; intervals are Wilson's, 95 %, with the effective size.
- **Tests**: those of `unit` and `golden` that run the faulty line, nearest and fastest first, until one fails; for a fault that
  passes them, the other tests of the nearest files too, to {budget:.0f} seconds' worth and from at most {files} files. Where that
  seemed too few, files of these folders and of `contract` that are about its code were run whole. End-to-end and documentation
  tests are left out, so a survivor here may still be noticed there. Over five times the usual processor time and 20 s counts as
  killed.
- **At first** is what tests noticed before anybody had looked at the sample: it says how many of all the faults they notice.
  **Now** is after tests were added for gaps that the sample showed, and says nothing about faults outside it.
"""


def wilson(share: float, n: float) -> tuple[float, float]:
    """A 95 % interval for a share of n."""
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * ((share * (1 - share) + z * z / (4 * n)) / n) ** 0.5 / (1 + z * z / n)
    return middle - half, middle + half


def weighted(killed: dict[str, tuple[int, int]], sizes: dict[str, int]) -> tuple[float, float, float]:
    """Share over files, each with (killed, tried), weighted by its faults, and its interval at Kish's effective size."""
    files = [file for file, (_, tried) in killed.items() if tried]
    whole = sum(sizes[file] for file in files)
    share = sum(sizes[file] / whole * killed[file][0] / killed[file][1] for file in files)
    n = 1 / sum((sizes[file] / whole) ** 2 / killed[file][1] for file in files)
    return (share, *wilson(share, n))


def room_of(file: str) -> str:
    return file.split("/")[2]


def table(everything: dict[str, list[Fault]], rows: Sequence[dict[str, Any]]) -> list[str]:
    """One row a room, and one for all."""
    sizes = {file: len(made) for file, made in everything.items()}
    lines = [
        "| room | faults | tried | killed at first | share at first | 95 % | killed now | share now | survivors | of them gaps |",
        "|---|--:|--:|--:|--:|---|--:|--:|--:|--:|",
    ]
    reasons = read_reasons()
    for rooms in (*((room,) for room in ROOMS), ROOMS):
        mine = [row for row in rows if room_of(row["file"]) in rooms]
        if not mine:
            continue
        first, tried = Counter(r["file"] for r in mine if r["first"] == "killed"), Counter(r["file"] for r in mine)
        share, low, high = weighted({file: (first[file], n) for file, n in tried.items()}, sizes)
        now = Counter(r["file"] for r in mine if r["outcome"] == "killed")
        share_now, *_ = weighted({file: (now[file], n) for file, n in tried.items()}, sizes)
        left = [row for row in mine if row["outcome"] != "killed"]
        gaps = sum(reasons.get(row["key"], {}).get("kind", "") in ("gap", "") for row in left)
        name = f"`{rooms[0]}`" if len(rooms) == 1 else "**all**"
        possible = sum(n for file, n in sizes.items() if room_of(file) in rooms)
        lines.append(
            f"| {name} | {possible:,} | {len(mine)} | {sum(first.values())} | {share:.1%} | {low:.1%} to {high:.1%} "
            f"| {sum(now.values())} | {share_now:.1%} | {len(left)} | {gaps} |"
        )
    return lines


def read_reasons() -> dict[str, dict[str, str]]:
    """What is said of survivors, by key."""
    return tomllib.loads(REASONS.read_text(encoding="utf-8")) if REASONS.exists() else {}


def escaped(code: str) -> str:
    """Code for a cell of a table."""
    short = code if len(code) <= 110 else code[:107] + "..."
    return "`` " + short.replace("|", "\\|") + " ``"


def differing(before: str, after: str) -> tuple[str, str]:
    """The lines from a little before where they part."""
    start = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    cut = max(0, start - 40)
    lead = "..." if cut else ""
    return lead + before[cut:], (lead + after[cut:] if after != "(removed)" else after)


def survivors(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Survivors by kind of reason."""
    reasons = read_reasons()
    left = [row for row in rows if row["outcome"] != "killed"]
    lines = []
    for kind, title in KINDS.items():
        mine = [row for row in left if reasons.get(row["key"], {}).get("kind", "") == kind]
        if not mine:
            continue
        lines += ["", f"### {title} ({len(mine)})", "", "| where | fault | why no test fails |", "|---|---|---|"]
        for row in sorted(mine, key=lambda row: (row["file"], row["line"])):
            before, after = differing(row["before"], row["after"])
            why = reasons.get(row["key"], {}).get("why", row["by"])
            where = row["file"].removeprefix("src/mediant/")
            lines.append(f"| `{where}:{row['line']}` | {escaped(before)} → {escaped(after)} | {why} |")
    return lines


def killers(rows: Sequence[dict[str, Any]]) -> str:
    """How the killed were killed."""
    ways: Counter[str] = Counter()
    for by in (row["by"] for row in rows):
        ways["time" if "processor time" in by else "import" if "(import)" in by else by.split("/")[1] if "/" in by else by] += 1
    told = {
        "unit": "unit tests",
        "golden": "golden tests",
        "contract": "contract tests",
        "import": "imports that fail",
        "time": "the limit",
    }
    return "Killed by " + ", ".join(f"{told.get(way, way)} ({n})" for way, n in ways.most_common()) + "."


def write(everything: dict[str, list[Fault]], sample: Sequence[Fault], rows: Sequence[dict[str, Any]], budget: float) -> None:
    """Write the page from the results of a sample, whose tests ran for `budget` seconds at most."""
    keys = {fault.key: fault for fault in sample}
    mine = [{**row, "line": keys[row["key"]].line} for row in rows if row["key"] in keys and row["outcome"] != "no Python"]
    missing = len(sample) - sum(row["key"] in keys for row in rows)
    tried = Counter(row["file"] for row in mine)
    least = min(tried[file] for file, made in everything.items() if len(made) >= AT_LEAST)
    possible = sum(map(len, everything.values()))
    lines = [LEAD.format(tried=len(mine), possible=possible, least=least, budget=budget, files=MOST_FILES)]
    lines += [*table(everything, mine), "", killers([row for row in mine if row["outcome"] == "killed"])]
    if missing:
        lines.append(f"{missing} more faults of the sample are not tried yet; `make mutants` goes on with them.")
    lines += ["", "## Survivors", *survivors(mine)]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
