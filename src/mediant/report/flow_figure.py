"""Who tells whom: groups as boxes, and between them arrows as wide as what they carry.

figure = flows(["text", "picture", "reference"], {("reference", "text"): 0.9, ("text", "picture"): 0.8})
"""

from collections.abc import Mapping, Sequence
from math import cos, hypot, pi, sin
from typing import TYPE_CHECKING

from mediant.report.figures import ACCENT, MUTED, plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WIDEST, REACH = 14.0, 0.62


def flows(panels: Sequence[tuple[str, Mapping[tuple[str, str], float]]], groups: Sequence[str]) -> "Figure":
    """Panels side by side, each with the groups on a circle and an arrow per flow (from, to) -> share from 0 to 1."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for i, (title, shares) in enumerate(panels):
        at = {
            name: (2.8 * i + cos(pi / 2 - 2 * pi * j / len(groups)), sin(pi / 2 - 2 * pi * j / len(groups)))
            for j, name in enumerate(groups)
        }
        for (source, target), share in shares.items():
            _arrow(figure, at[source], at[target], share)
        figure.add_trace(
            Scatter(
                x=[x for x, _ in at.values()], y=[y for _, y in at.values()], mode="markers+text",
                text=[plain(name) for name in at], textposition="middle center",
                marker={"size": 62, "color": "rgba(138,143,152,0.18)", "line": {"color": MUTED}},
                hoverinfo="skip", showlegend=False,
            )
        )  # fmt: skip
        figure.add_annotation(x=2.8 * i, y=1.75, text=plain(title), showarrow=False, font={"size": 14})
    figure.update_xaxes(visible=False, range=[-1.6, 2.8 * len(panels) - 1.2])
    figure.update_yaxes(visible=False, range=[-1.3, 2.0], scaleanchor="x")
    figure.update_layout(height=330)
    return figure


def _arrow(figure: "Figure", begin: tuple[float, float], end: tuple[float, float], share: float) -> None:
    """An arrow beside the straight line, so that the one back has room."""
    dx, dy = end[0] - begin[0], end[1] - begin[1]
    length = hypot(dx, dy)
    side = (-dy / length * 0.09, dx / length * 0.09)
    gap = (1 - REACH) / 2
    tail = begin[0] + gap * dx + side[0], begin[1] + gap * dy + side[1]
    tip = end[0] - gap * dx + side[0], end[1] - gap * dy + side[1]
    strong = share >= 0.05
    figure.add_annotation(
        x=tip[0], y=tip[1], ax=tail[0], ay=tail[1], xref="x", yref="y", axref="x", ayref="y", text="", showarrow=True,
        arrowhead=2, arrowsize=0.6 if share > 0.3 else 1.0, arrowwidth=max(1.0, WIDEST * share * 0.6),
        arrowcolor=ACCENT if strong else MUTED, opacity=0.9 if strong else 0.45,
    )  # fmt: skip
    beside = 1.9 + 1.1 * share  # The wider the arrow, the further its number.
    figure.add_annotation(
        x=(tail[0] + tip[0]) / 2 + beside * side[0], y=(tail[1] + tip[1]) / 2 + beside * side[1], text=f"{share:.0%}",
        showarrow=False, font={"size": 11},
    )  # fmt: skip
