"""A circuit as a picture: spans as columns, layers as rows, one slider position per size.

    figure = circuit_figure([order.circuit(n) for n in (25, 50, 100)], scores)

Lines within a column carry a part's output up to the port that reads it; lines between columns are attention drawing from
one span to a later one. Orange edges help the answer, blue ones work against it, and width goes with |score|. Hovering
names a node and its strongest edges; scrolling and dragging zoom.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from mediant.core.circuit import Circuit
from mediant.core.edge_scores import EdgeScores
from mediant.core.graph import PORTS
from mediant.report.figures import MUTED, plain

if TYPE_CHECKING:
    from plotly.graph_objects import Figure, Scatter

HELPS, WORKS_AGAINST = "#e0701c", "#2f6fde"
WIDTHS = (0.8, 1.8, 3.2)
Place = tuple[float, float]


@dataclass
class _Drawing:
    """Lines by colour and width, and nodes with what to say of them."""

    lines: dict[tuple[str, int], list[tuple[Place, Place]]] = field(default_factory=lambda: defaultdict(list))
    nodes: dict[Place, str] = field(default_factory=dict)
    edges_of: dict[Place, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))


def circuit_figure(circuits: Sequence[Circuit], scores: EdgeScores) -> "Figure":
    """All circuits in one figure; a slider shows one at a time, the last one first."""
    from plotly.graph_objects import Figure

    figure, spans_of_traces = Figure(), []
    strongest = [float(np.abs(t).max()) for t in (scores.within, scores.crossing) if t is not None]
    reach = max(strongest) or 1.0
    for circuit in circuits:
        traces = _traces(_draw(circuit, scores, reach))
        spans_of_traces.append(len(traces))
        figure.add_traces(traces)
    starts = np.concatenate([[0], np.cumsum(spans_of_traces)])
    steps = []
    for i, circuit in enumerate(circuits):
        shown = [bool(starts[i] <= t < starts[i + 1]) for t in range(int(starts[-1]))]
        steps.append({"method": "update", "args": [{"visible": shown}], "label": f"{circuit.n_abstract()}"})
    for t, trace in enumerate(figure.data):
        trace.visible = bool(starts[-2] <= t)
    names = circuits[0].spans
    n_layers = circuits[0].graph.n_layers
    figure.update_xaxes(
        tickvals=list(range(len(names))), ticktext=[plain(n) for n in names], showgrid=True, range=[-0.5, len(names) - 0.4]
    )
    ticks = list(range(0, n_layers, max(1, n_layers // 10)))
    figure.update_yaxes(
        title_text="layer", tickvals=[-1, *ticks, n_layers], ticktext=["embed", *map(str, ticks), "logits"], showgrid=False,
        zeroline=False,
    )  # fmt: skip
    slider = {
        "active": len(circuits) - 1,
        "steps": steps,
        "currentvalue": {"prefix": "edges between nodes at spans: "},
        "pad": {"t": 40},
    }
    figure.update_layout(height=760, sliders=[slider], dragmode="pan", hovermode="closest", showlegend=False)
    return figure


def _place(circuit: Circuit, source: int, span: int) -> tuple[Place, str]:
    """Where a writing node stands, and its name."""
    graph, name = circuit.graph, circuit.spans[span]
    if source == 0:
        return (float(span), -1.0), f"embedding at {name}"
    layer, head = divmod(source - 1, graph.n_heads + 1)
    if head == graph.n_heads:
        return (span + 0.36, layer + 0.4), f"MLP {layer} at {name}"
    return (span - 0.3 + 0.56 * head / max(1, graph.n_heads - 1), float(layer)), f"head {layer}.{head} at {name}"


def _target_place(circuit: Circuit, target: int, span: int) -> tuple[Place, str, str]:
    """Where a port belongs, its node's name and its own."""
    graph = circuit.graph
    layer, port = divmod(target, 3 * graph.n_heads + 1)
    if layer == graph.n_layers:
        return (float(span), float(graph.n_layers)), f"logits at {circuit.spans[span]}", ""
    if port == 3 * graph.n_heads:
        place, name = _place(circuit, graph.first_source(layer) + graph.n_heads, span)
        return place, name, ""
    part, head = divmod(port, graph.n_heads)
    place, name = _place(circuit, graph.first_source(layer) + head, span)
    return place, name, f" ({PORTS[part]})"


def _draw(circuit: Circuit, scores: EdgeScores, reach: float) -> _Drawing:
    drawing, graph = _Drawing(), circuit.graph
    for span, target, source in np.argwhere(circuit.within).tolist():
        start, name = _place(circuit, source, span)
        end, reader, port = _target_place(circuit, target, span)
        _add(drawing, (start, name), (end, reader + port), float(scores.within[span, target, source]), reach)
    if circuit.crossing is None or scores.crossing is None:
        return drawing
    for layer, head, query, key in np.argwhere(circuit.crossing.any(0)).tolist():
        parts = scores.crossing[:, layer, head, query, key]
        start, name = _place(circuit, graph.first_source(layer) + head, key)
        end, reader = _place(circuit, graph.first_source(layer) + head, query)
        _add(drawing, (start, name), (end, reader), float(parts[np.abs(parts).argmax()]), reach)
    return drawing


def _add(drawing: _Drawing, start: tuple[Place, str], end: tuple[Place, str], score: float, reach: float) -> None:
    colour = HELPS if score < 0 else WORKS_AGAINST
    drawing.lines[colour, int(np.searchsorted([0.03 * reach, 0.2 * reach], abs(score)))].append((start[0], end[0]))
    text = f"{score:+.3f}  {start[1]} → {end[1]}"
    for place, name in (start, end):
        drawing.nodes[place] = name.split(" (")[0]
        drawing.edges_of[place].append((abs(score), text))


def _traces(drawing: _Drawing) -> "list[Scatter]":
    from plotly.graph_objects import Scatter

    traces = []
    for (colour, width), lines in sorted(drawing.lines.items(), key=lambda item: item[0][1]):
        x = [value for a, b in lines for value in (a[0], b[0], None)]
        y = [value for a, b in lines for value in (a[1], b[1], None)]
        look = {"color": colour, "width": WIDTHS[width]}
        traces.append(Scatter(x=x, y=y, mode="lines", line=look, opacity=0.25 + 0.3 * width, hoverinfo="skip"))
    places = list(drawing.nodes)
    hover = []
    for place in places:
        strongest = sorted(drawing.edges_of[place], reverse=True)[:6]
        hover.append("<br>".join([f"<b>{plain(drawing.nodes[place])}</b>", *(plain(text) for _, text in strongest)]))
    traces.append(
        Scatter(
            x=[p[0] for p in places], y=[p[1] for p in places], mode="markers", hovertext=hover, hoverinfo="text",
            marker={"size": 7, "color": MUTED, "line": {"width": 1, "color": "#ffffff"}},
        )
    )  # fmt: skip
    return traces
