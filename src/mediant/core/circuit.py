"""A `Circuit` is a set of edges of a graph: within positions, by span, and between positions, by pair of spans.

>>> graph = CircuitGraph(n_layers=1, n_heads=1)
>>> circuit = Circuit.empty(graph, ("S2", "end"))
>>> circuit.within[1, 4, 0] = True
>>> circuit.n_edges, [str(e) for e in circuit.edges()]
(1, ['embed->final_resid @ end'])

Crossing edges are kept apart for the query, the key and the value that meet at a pair of positions; `crossing=None` leaves
all of them open, which is what a circuit without positions does.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mediant.core.edge import CircuitEdge
from mediant.core.errors import MediantError, RunError, complaints, unknown
from mediant.core.graph import PORTS, CircuitGraph
from mediant.core.site import Site

Mask = npt.NDArray[np.bool_]
SCHEMA = "mediant/circuit/1"


@dataclass(frozen=True)
class SpanSizes:
    """How many tokens and pairs of tokens spans stand for, on average over items.

    Attributes:
        tokens: per span.
        pairs: (query span, key span): pairs whose key is not later than the query.
    """

    tokens: npt.NDArray[np.float64]
    pairs: npt.NDArray[np.float64]


@dataclass(frozen=True)
class EdgeLabel:
    """One edge of a circuit as a reader sees it."""

    source: str
    target: str
    where: str

    def __str__(self) -> str:
        return f"{self.source}->{self.target} @ {self.where}"


@dataclass(eq=False)
class Circuit:
    """Edges that stay; all others take the other run's value.

    Attributes:
        spans: names of the spans.
        within: (span, target, source).
        crossing: (query/key/value, layer, head, query span, key span), or None for all open.
        about: how it was found.
    """

    graph: CircuitGraph
    spans: tuple[str, ...]
    within: Mask
    crossing: Mask | None = None
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def empty(cls, graph: CircuitGraph, spans: tuple[str, ...] = ("all",), *, crossing: bool = True) -> "Circuit":
        """No edges; with `crossing=False` all crossing edges stay open."""
        within = np.zeros((len(spans), graph.n_targets, graph.n_sources), dtype=np.bool_)
        pairs = np.zeros((3, graph.n_layers, graph.n_heads, len(spans), len(spans)), dtype=np.bool_) if crossing else None
        return cls(graph, spans, within, pairs)

    @property
    def n_edges(self) -> int:
        """Entries of the tables: q, k and v count apart, spans count once."""
        return int(self.within.sum()) + (0 if self.crossing is None else int(self.crossing.sum()))

    def n_abstract(self) -> int:
        """Edges between nodes: q, k and v of a head count once (Haklay et al. 2025); open crossing edges count."""
        graph = self.graph
        by_layer = self.within[:, :-1].reshape(len(self.spans), graph.n_layers, 3 * graph.n_heads + 1, graph.n_sources)
        heads = by_layer[:, :, :-1].reshape(len(self.spans), graph.n_layers, 3, graph.n_heads, graph.n_sources)
        total = int(heads.any(2).sum() + by_layer[:, :, -1].sum() + self.within[:, -1].sum())
        return total + (graph.n_layers * graph.n_heads if self.crossing is None else int(self.crossing.any(0).sum()))

    def n_concrete(self, sizes: SpanSizes, *, crossing: bool = True) -> float:
        """Mean number of edges between single tokens that this circuit stands for."""
        within = float((self.within.sum((1, 2)) * sizes.tokens).sum())
        if not crossing:
            return within
        if self.crossing is None:
            return within + 3 * self.graph.n_layers * self.graph.n_heads * float(sizes.pairs.sum())
        return within + float((self.crossing.sum((0, 1, 2)) * sizes.pairs).sum())

    def edges(self) -> Iterator[EdgeLabel]:
        """All edges but open crossing ones, in the model's order."""
        for span, target, source in zip(*(axis.tolist() for axis in np.nonzero(self.within)), strict=True):
            edge = self.graph.edge(target, source)
            yield EdgeLabel(str(edge.source), str(edge.target), self.spans[span])
        if self.crossing is not None:
            for part, layer, head, query, key in zip(*(axis.tolist() for axis in np.nonzero(self.crossing)), strict=True):
                label = f"{PORTS[part]}.{layer}.{head}"
                yield EdgeLabel(label, f"head_result.{layer}.{head}", f"{self.spans[key]}->{self.spans[query]}")

    def pruned(self) -> "Circuit":
        """Without nodes that no embedding reaches or that do not reach the final stream."""
        return _without_dead_ends(_without_unfed(self))

    def jaccard(self, other: "Circuit") -> float:
        """Shared edges over all edges; 1 where both are empty."""
        one, two = self._flat(), other._flat()
        either = int((one | two).sum())
        return 1.0 if either == 0 else int((one & two).sum()) / either

    def _flat(self) -> Mask:
        return self.within.ravel() if self.crossing is None else np.concatenate([self.within.ravel(), self.crossing.ravel()])

    def save(self, path: Path | str) -> None:
        """Write as JSON: one entry per edge."""
        graph = {"n_layers": self.graph.n_layers, "n_heads": self.graph.n_heads, "parallel": self.graph.parallel}
        found = {
            "schema": SCHEMA, "graph": graph, "spans": self.spans, "about": self.about,
            "crossing": "open" if self.crossing is None else "listed",
            "edges": [[e.source, e.target, e.where] for e in self.edges()],
        }  # fmt: skip
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Circuit":
        """Read what `save` wrote.

        Raises:
            RunError: the file is missing, broken, or names edges the graph does not have.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if found.get("schema") != SCHEMA:
                raise ValueError(f"it names schema {found.get('schema')!r}, expected {SCHEMA!r}")
            graph = CircuitGraph(**found["graph"])
            circuit = cls.empty(graph, tuple(found["spans"]), crossing=found["crossing"] == "listed")
            circuit.about = dict(found["about"])
            for source, target, where in found["edges"]:
                circuit._add(source, target, where)
        except (OSError, ValueError, KeyError, TypeError, MediantError) as error:
            raise RunError(f"{path} holds no circuit: {complaints(error)}") from error
        return circuit

    def _add(self, source: str, target: str, where: str) -> None:
        key, arrow, query = where.partition("->")
        if not arrow:
            self.within[(self._span(where), *self.graph.index(CircuitEdge(Site.parse(source), Site.parse(target))))] = True
            return
        port = Site.parse(source)
        if self.crossing is None or port.kind not in PORTS:
            raise ValueError(f"crossing edge {source}->{target} in a circuit that lists none, or from no port")
        self.crossing[PORTS.index(port.kind), port.layer, port.head, self._span(query), self._span(key)] = True

    def _span(self, name: str) -> int:
        if name not in self.spans:
            raise unknown("span", name, self.spans)
        return self.spans.index(name)


def _heads(circuit: Circuit, layer: int) -> tuple[slice, slice]:
    """A layer's head ports among the targets, and its heads among the sources."""
    graph = circuit.graph
    target, source = graph.first_target(layer), graph.first_source(layer)
    return slice(target, target + 3 * graph.n_heads), slice(source, source + graph.n_heads)


def _pairs(circuit: Circuit) -> Mask:
    graph, n = circuit.graph, len(circuit.spans)
    if circuit.crossing is not None:
        return circuit.crossing.copy()
    return np.broadcast_to(np.eye(n, dtype=np.bool_), (3, graph.n_layers, graph.n_heads, n, n)).copy()


def _without_unfed(circuit: Circuit) -> Circuit:
    """Drop edges out of nodes that no path from an embedding reaches."""
    graph, spans = circuit.graph, len(circuit.spans)
    within, pairs = circuit.within.copy(), _pairs(circuit)
    fed = np.zeros((spans, graph.n_sources), dtype=np.bool_)
    fed[:, 0] = True
    for layer in range(graph.n_layers):
        ports, heads = _heads(circuit, layer)
        within[:, ports] &= fed[:, None, :]
        # (span, part, head): does the port get anything at that span?
        port_fed = within[:, ports].any(-1).reshape(spans, 3, graph.n_heads)
        pairs[0, layer] &= port_fed[:, 0].T[:, :, None]
        for part in (1, 2):
            pairs[part, layer] &= port_fed[:, part].T[:, None, :]
        fed[:, heads] = pairs[:, layer].any(0).any(-1).T
        mlp = ports.stop
        within[:, mlp] &= fed
        fed[:, heads.stop] = within[:, mlp].any(-1)
    within[:, -1] &= fed
    return Circuit(graph, circuit.spans, within, None if circuit.crossing is None else pairs, circuit.about)


def _without_dead_ends(circuit: Circuit) -> Circuit:
    """Drop edges into nodes from which no path leads to the final stream."""
    graph, spans = circuit.graph, len(circuit.spans)
    within, pairs = circuit.within.copy(), _pairs(circuit)
    used = within[:, -1].copy()
    for layer in reversed(range(graph.n_layers)):
        ports, heads = _heads(circuit, layer)
        within[:, ports.stop] &= used[:, heads.stop, None]
        used |= within[:, ports.stop]
        pairs[:, layer] &= used[:, heads].T[None, :, :, None]
        wanted = np.stack([pairs[0, layer].any(-1), pairs[1, layer].any(-2), pairs[2, layer].any(-2)])
        within[:, ports] &= wanted.transpose(2, 0, 1).reshape(spans, -1)[:, :, None]
        used |= within[:, ports].any(1)
    return Circuit(graph, circuit.spans, within, None if circuit.crossing is None else pairs, circuit.about)
