"""What came of the race: lines of `results/race.jsonl`, and the page `docs/race.md` written from each row's newest line."""

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.race.contest import TOLERANCE, Entry, Result
from benchmarks.race.floor import Machine
from benchmarks.race.picture import picture
from benchmarks.race.reasons import REASONS
from benchmarks.race.rows import ROWS

ROOT = Path(__file__).parents[2]
RESULTS, PAGE, PICTURE = (ROOT / name for name in ("benchmarks/results/race.jsonl", "docs/race.md", "docs/images/race.svg"))
PEERS = ("transformer-lens", "nnsight", "pyvene")
LIBRARIES = ("mediant", *PEERS, "torch", "transformers")

LEAD = """# The race

Mediant against the newest [TransformerLens](https://github.com/TransformerLensOrg/TransformerLens),
[nnsight](https://github.com/ndif-team/nnsight) and [pyvene](https://github.com/stanfordnlp/pyvene): one model, the same inputs,
equal results. This page is written by one command, which makes an environment of its own and, once that is there, takes about
ten minutes:

    make race

![Seconds of each contender by the floor, one group of bars per row](images/race.svg)
"""

RULES = """## Rules

- **One process, one thread, one model.** All contenders run SmolLM2-135M in float32 in the same process; those that rewire
  their model have a copy of it. No weight is folded or centred, and no weight has a gradient
  (but for the embedding in TransformerLens's own edge attribution, which needs one to begin from). Everybody's models are put
  together before the clock runs, but for pyvene's in sweeps and in learning, one per layer, which a second use would not leave as
  they were.
- **Equal results.** Each contender's result is compared with ours; a largest difference above {tolerance:g} of the result's
  largest number counts as *differs* and makes the command fail. Who differs is not timed.
- **In turn.** After a warm-up, in which results are compared, contenders run one after the other, round by round, and
  everybody comes first in some round. Seconds are medians over rounds, and ratios are medians of each round's ratio, so a slow
  moment of the machine hits all alike. In brackets: the lowest and highest ratio of a round. A target that lies between them is
  met or missed *within the scatter of rounds*.
- **Peers as fast as they document it,** and faster where a careful user would make them so: no gradients where none are
  needed, only the last token's logits, a key/value cache in generation, source values collected once, many cells folded into
  one batch.
- **One stumbling block removed for all.** The model library hands the last token's values to the unembedding as a view, which
  torch multiplies row by row. All models in the race, the bare one included, hand over a contiguous copy; otherwise everyone
  who folds cells into a batch would lose a multiple of it.
- **The floor** is the least arithmetic over the matrix rate of this machine, or the least bytes over its rate of reading,
  whichever takes longer, both measured at the start of the run: {flops:.0f} GFLOP/s and {bytes:.0f} GB/s. In sweeps only what
  a patch can change counts, from its layer up and from its column on, as if one batch held everything.
- **transformers stays below 5.24**, whose caches have another name: with it, TransformerLens 4.3 generates as if there were
  no cache.
"""


def record(results: list[Result], machine: Machine) -> None:
    """Append one line per row."""
    about = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"), "cpu": _cpu(), "threads": 1, "gflops": machine.flops / 1e9,
        "gb_per_s": machine.bytes / 1e9, "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(_line(result) | about) + "\n" for result in results)


def _line(result: Result) -> dict[str, Any]:
    event = result.event
    return {
        "row": event.key, "title": event.title, "told": event.told, "target": str(event.target), "verdict": result.verdict,
        "rounds": result.rounds, "ours_s": result.seconds, "floor_s": result.floor,
        "ours_over_floor": result.seconds / result.floor,
        "ours_over_bare": result.to_bare, "fastest_peer_over_ours": result.fastest.ratio if result.fastest else None,
        "bare": _entry(result.bare) if result.bare else None, "peers": [_entry(entry) for entry in result.entries],
        "note": event.note(),
    }  # fmt: skip


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name, "status": entry.status, "seconds": entry.seconds, "over_ours": entry.ratio, "scatter": entry.scatter,
        "deviation": entry.deviation, "reason": entry.reason,
    }  # fmt: skip


def write() -> None:
    """The page and its picture, from each row's newest line."""
    newest = {row["row"]: row for row in map(json.loads, RESULTS.read_text(encoding="utf-8").splitlines())}
    rows = [newest[key] for key in ROWS if key in newest]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(picture(rows), encoding="utf-8")
    last = max(rows, key=lambda row: str(row["when"]))
    parts = [
        LEAD,
        _summary(rows),
        _machine(rows),
        RULES.format(tolerance=TOLERANCE, flops=last["gflops"], bytes=last["gb_per_s"]),
    ]
    parts += [_section(i, row) for i, row in enumerate(rows, start=1)]
    PAGE.write_text("\n".join(parts), encoding="utf-8")


def _summary(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| | mediant | bare model | fastest peer | peer / ours | ours / bare | floor | ours / floor | target | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for i, row in enumerate(rows, start=1):
        equal = [peer for peer in row["peers"] if peer["status"] == "equal"]
        best = min(equal, key=lambda peer: float(peer["over_ours"]), default=None)
        bare = row["bare"]
        cells = [
            f"{i}. {row['title']}", f"**{_seconds(row['ours_s'])}**", _seconds(bare["seconds"]) if bare else "",
            f"{_seconds(best['seconds'])} ({best['name']})" if best else "none",
            f"**{best['over_ours']:.2f}**{_scatter(best)}" if best else "",
            f"{row['ours_over_bare']:.2f}" if row["ours_over_bare"] else "",
            _seconds(row["floor_s"]), f"{row['ours_over_floor']:.1f}", row["target"], _verdict(row),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _machine(rows: list[dict[str, Any]]) -> str:
    said = []
    for row in rows:
        names = ", ".join(f"{name} {number}" for name, number in row["versions"].items())
        told = f"{row['cpu']}, {row['threads']} thread; Python {row['python']}, {names}"
        if told not in said:
            said.append(told)
    return "\n".join(f"{told}." for told in said) + "\n"


def _section(number: int, row: dict[str, Any]) -> str:
    lines = [f"## {number}. {row['title']}", "", row["told"], ""]
    lines += ["| contender | seconds | by ours | largest difference |", "|---|---|---|---|"]
    lines.append(f"| floor | {_seconds(row['floor_s'])} | {1 / row['ours_over_floor']:.2f} | |")
    lines.append(f"| **mediant** | **{_seconds(row['ours_s'])}** | 1 | |")
    for entry in ([row["bare"]] if row["bare"] else []) + row["peers"]:
        if entry["seconds"] is None:
            lines.append(f"| {entry['name']} | {entry['status']} | | {entry['reason'] or _deviation(entry)} |")
        else:
            ratio = f"{entry['over_ours']:.2f}{_scatter(entry)}"
            lines.append(f"| {entry['name']} | {_seconds(entry['seconds'])} | {ratio} | {_deviation(entry)} |")
    reason = REASONS.get(row["row"], "") if row["verdict"].startswith("missed") else ""
    rounds = f"{row['rounds']} round" + ("s" if row["rounds"] > 1 else "")
    lines += [
        "",
        " ".join(part for part in (f"{rounds}. Target: {row['target']}; {_verdict(row)}.", row["note"], reason) if part),
        "",
    ]
    return "\n".join(lines)


def _verdict(row: dict[str, Any]) -> str:
    word, _, rest = str(row["verdict"]).partition(",")
    return f"**{word}**{',' if rest else ''}{rest}" if word == "missed" else str(row["verdict"])


def _scatter(entry: dict[str, Any]) -> str:
    """The lowest and highest ratio of a round."""
    return f" ({entry['scatter'][0]:.2f} to {entry['scatter'][1]:.2f})" if entry["scatter"] else ""


def _deviation(entry: dict[str, Any]) -> str:
    if entry["deviation"] is None:
        return ""
    return "0" if entry["deviation"] == 0 else f"{entry['deviation']:.0e}"


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor() or "unknown CPU"
    )
