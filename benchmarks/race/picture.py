"""Bars of all rows on one logarithmic axis: each contender's seconds by the row's floor; plain SVG, for light and dark."""

import html
import math
from typing import Any

WIDTH, LEFT, RIGHT = 900, 330, 70
BAR, GAP, GROUP = 15, 4, 34
STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 13px; }
  .small { font-size: 11px; fill: #656d76; }
  .grid { stroke: #8a8f98; stroke-opacity: 0.35; }
  .ours { fill: #2f6fde; }
  .bare { fill: #8a8f98; }
  .peer { fill: #d9822b; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .small { fill: #9198a1; }
    .ours { fill: #5b92f0; }
  }
"""


def picture(rows: list[dict[str, Any]]) -> str:
    """The whole drawing."""
    bars = [(row, _contenders(row)) for row in rows]
    most = max(seconds / row["floor_s"] for row, each in bars for _, seconds, _ in each)
    decades = max(1, math.ceil(math.log10(most)))
    height = 40 + sum(GROUP + len(each) * (BAR + GAP) for _, each in bars) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">',
        "<title>Seconds of each contender by the floor</title>", f"<style>{STYLE}</style>",
        f'<text class="small" x="{LEFT}" y="16">times the floor (logarithmic; shorter is better)</text>',
    ]  # fmt: skip

    def at(times: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * max(0.0, math.log10(times)) / decades

    for power in range(decades + 1):
        x = at(10**power)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="24" y2="{height - 24}"/>')
        parts.append(f'<text class="small" x="{x:.1f}" y="{height - 8}" text-anchor="middle">{10**power}</text>')
    y = 40
    for row, each in bars:
        parts.append(f'<text class="title" x="8" y="{y + 4}">{html.escape(row["title"])}</text>')
        y += 14
        for name, seconds, kind in each:
            end = at(seconds / row["floor_s"])
            parts.append(f'<text x="{LEFT - 8}" y="{y + 12}" text-anchor="end">{html.escape(name)}</text>')
            parts.append(f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{max(1.0, end - LEFT):.1f}" height="{BAR}" rx="2"/>')
            parts.append(f'<text class="small" x="{end + 5:.1f}" y="{y + 12}">{_short(seconds)}</text>')
            y += BAR + GAP
        y += GROUP - 14
    return "\n".join([*parts, "</svg>", ""])


def _contenders(row: dict[str, Any]) -> list[tuple[str, float, str]]:
    """Name, seconds and kind of all that were timed, ours first."""
    found = [("mediant", float(row["ours_s"]), "ours")]
    if row["bare"] and row["bare"]["seconds"]:
        found.append(("bare model", float(row["bare"]["seconds"]), "bare"))
    return found + [(peer["name"], float(peer["seconds"]), "peer") for peer in row["peers"] if peer["seconds"]]


def _short(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
