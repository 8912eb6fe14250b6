"""The few kinds of picture a page is made of, as plotly figures without colours of their own theme.

Colours follow the reader's light or dark setting: figures name a shared `coloraxis` or the palette below, and the
page's script fills in backgrounds, text and the diverging scale. Labels are data and may be hostile: they are
escaped here, because plotly would read markup in them.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

ACCENT, MUTED, SECOND, THIRD = "#2f6fde", "#8a8f98", "#d9822b", "#2e9d6a"
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One estimate with its interval, for `intervals`."""

    label: str
    value: float
    low: float
    high: float
    colour: str = ACCENT


def heat_maps(
    tables: Sequence[tuple[str, Array]], columns: Sequence[str], rows: Sequence[str], *, unit: str, row_title: str = "layer"
) -> "Figure":
    """Heat maps side by side, each on its own diverging scale centred at 0; tables have shape (row, column)."""
    from plotly.graph_objects import Figure, Heatmap
    from plotly.subplots import make_subplots

    figure: Figure = make_subplots(
        rows=1, cols=len(tables), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[plain(name) for name, _ in tables]
    )
    shown, lines = [plain(visible(c)) for c in columns], [plain(r) for r in rows]
    # Equal tokens would fall on one tick, so columns are numbered and the ticks carry the text.
    x = list(range(len(columns)))
    axes: dict[str, object] = {}
    for i, (name, table) in enumerate(tables, start=1):
        hover = [
            [f"{plain(name)}<br>{plain(row_title)} {r}, {c}<br>{v:+.3f} {plain(unit)}" for c, v in zip(shown, line, strict=True)]
            for r, line in zip(lines, table, strict=True)
        ]
        axis = f"coloraxis{i}" if i > 1 else "coloraxis"
        trace = Heatmap(
            z=table.tolist(), x=x, y=list(range(len(lines))), text=hover, hoverinfo="text", coloraxis=axis, xgap=1, ygap=1
        )
        figure.add_trace(trace, row=1, col=i)
        axes[axis] = _colour_axis(table, figure.layout[f"xaxis{i}" if i > 1 else "xaxis"].domain)
    figure.update_xaxes(tickvals=x, ticktext=shown, tickangle=-60, showgrid=False)
    ticks = list(range(0, len(lines), max(1, len(lines) // 10)))
    figure.update_yaxes(showgrid=False, tickvals=ticks, ticktext=[lines[i] for i in ticks])
    figure.update_yaxes(title_text=plain(row_title), title_standoff=14, automargin=True, col=1)
    figure.update_layout(**axes, height=520)
    return figure


def share_maps(
    tables: Sequence[tuple[str, Array]], columns: Sequence[str], rows: Sequence[str], *, row_title: str, column_title: str = "",
    written: bool = False,
) -> "Figure":  # fmt: skip
    """Heat maps of shares side by side, on one scale from 0 to the largest; tables have shape (row, column), first row on top.

    Args:
        written: every cell also shows its number; NaN is an empty cell.
    """
    from plotly.graph_objects import Figure, Heatmap
    from plotly.subplots import make_subplots

    figure: Figure = make_subplots(
        rows=1, cols=len(tables), shared_yaxes=True, horizontal_spacing=0.025, subplot_titles=[plain(name) for name, _ in tables]
    )
    x, y, reach = list(range(len(columns))), list(range(len(rows))), max(float(np.nanmax(table)) for _, table in tables)
    shown = [plain(visible(c)) for c in columns]
    for i, (name, table) in enumerate(tables, start=1):
        numbers = [[None if np.isnan(v) else float(v) for v in line] for line in table]
        hover = [
            [
                f"{plain(name)}<br>{plain(row_title)} {plain(r)}, {c}: {'empty' if v is None else f'{v:.2f}'}"
                for c, v in zip(shown, line, strict=True)
            ]
            for r, line in zip(rows, numbers, strict=True)
        ]
        text = [["" if v is None else f"{v:.2f}" for v in line] for line in numbers]
        figure.add_trace(
            Heatmap(
                z=numbers, x=x, y=y, customdata=hover, hovertemplate="%{customdata}<extra></extra>", coloraxis="coloraxis",
                xgap=1, ygap=1, **({"text": text, "texttemplate": "%{text}"} if written else {}),
            ),
            row=1, col=i,
        )  # fmt: skip
    tick = 1 if written else max(1, len(columns) // 12)
    figure.update_xaxes(tickvals=x[::tick], ticktext=shown[::tick], showgrid=False, zeroline=False)
    figure.update_xaxes(title_text=plain(column_title), title_standoff=6)
    figure.update_yaxes(tickvals=y, ticktext=[plain(r) for r in rows], showgrid=False, zeroline=False, autorange="reversed")
    figure.update_yaxes(title_text=plain(row_title), title_standoff=10, automargin=True, col=1)
    bar = {"thickness": 8, "outlinewidth": 0, "len": 0.9, "tickformat": ".1f"}
    figure.update_layout(height=130 + 26 * len(rows), coloraxis={"cmin": 0, "cmax": reach or 1.0, "colorbar": bar})
    return figure


def _colour_axis(table: Array, domain: tuple[float, float]) -> dict[str, object]:
    """A diverging scale of its own, centred at 0, with its bar above the panel."""
    reach = float(np.abs(table).max()) or 1.0
    bar = {
        "orientation": "h", "x": sum(domain) / 2, "y": 1.16, "len": 0.8 * (domain[1] - domain[0]), "thickness": 8,
        "yanchor": "middle", "tickvals": [-reach, 0, reach], "tickformat": "+.2f", "outlinewidth": 0,
    }  # fmt: skip
    return {"cmin": -reach, "cmax": reach, "colorbar": bar}


def intervals(points: Sequence[Point], *, unit: str, zero: bool = True) -> "Figure":
    """Estimates with their 95 % intervals, one per line, first on top."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    labels = [plain(p.label) for p in points]
    figure.add_trace(
        Scatter(
            x=[p.value for p in points], y=list(range(len(points))), mode="markers",
            marker={"size": 9, "color": [p.colour for p in points]},
            error_x={
                "type": "data", "symmetric": False, "array": [p.high - p.value for p in points],
                "arrayminus": [p.value - p.low for p in points], "thickness": 1.5, "color": MUTED,
            },
            hovertext=[f"{label}: {p.value:+.3f} [{p.low:+.3f}, {p.high:+.3f}]" for label, p in zip(labels, points, strict=True)],
            hoverinfo="text", showlegend=False,
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False, tickvals=list(range(len(points))), ticktext=labels)
    figure.update_xaxes(title_text=plain(unit), zeroline=zero)
    figure.update_layout(height=90 + 26 * len(points))
    return figure


def plain(text: str) -> str:
    """Text that plotly shows as it is."""
    return html.escape(text, quote=False)


def visible(token: str) -> str:
    """A token with its spaces and line breaks made visible."""
    return token.replace(" ", "·", 1).replace("\n", "⏎") if token.startswith(" ") else token.replace("\n", "⏎")


@dataclass(frozen=True)
class Line:
    """A curve with its 95 % band, for `curves`."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    colour: str = ACCENT


def curves(
    lines: Sequence[Line], *, x_title: str, y_title: str, level: float | None = None, unit: str = "edges", log: bool = True
) -> "Figure":
    """Curves with bands; `level` draws a dashed line across, `unit` names what x counts."""
    from plotly.graph_objects import Figure, Scatter

    figure = Figure()
    for line in lines:
        name, x = plain(line.label), list(line.x)
        figure.add_trace(
            Scatter(
                x=x + x[::-1], y=[*line.high, *list(line.low)[::-1]], mode="lines", fill="toself", fillcolor=_faint(line.colour),
                line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=name,
            )
        )  # fmt: skip
        hover = [f"{name}<br>{a:,.0f} {plain(unit)}: {b:.2f}" for a, b in zip(x, line.y, strict=True)]
        figure.add_trace(
            Scatter(
                x=x, y=list(line.y), mode="lines+markers", name=name, legendgroup=name, hovertext=hover, hoverinfo="text",
                line={"color": line.colour, "width": 2}, marker={"size": 6},
            )
        )  # fmt: skip
    if level is not None:
        figure.add_hline(y=level, line={"color": MUTED, "width": 1, "dash": "dash"})
    figure.update_xaxes(title_text=plain(x_title), **({"type": "log", "dtick": 1} if log else {}))
    figure.update_yaxes(title_text=plain(y_title))
    figure.update_layout(height=420, legend={"orientation": "h", "y": 1.12, "x": 0})
    return figure


def _faint(colour: str) -> str:
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},0.18)"
