"""From edge scores to circuits of every size.

    order = greedy(scores)                    # best edges first, grown backwards from the logits
    circuit = order.circuit(500)              # the first 500 edges, pruned

Greedy growth ("maximising Dijkstra", Hanna et al. 2024; with positions Haklay et al. 2025, appendix C) adds the edge of
largest |score| that ends in a node already reached, so no edge is spent where it cannot matter. One growth gives the
circuits of all sizes: each is a prefix, without the nodes that no embedding reaches. Growth from the embeddings is the same
on the reversed graph. With `joined` ports, q, k and v of a head are one edge scored by the largest of the three.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from mediant.core.circuit import Circuit, SpanSizes
from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import OutOfRange, TaskError, unknown

RULES = ("absolute", "most_negative")
STARTS = ("logits", "embeddings")
Ints = npt.NDArray[np.int64]
Node = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class EdgeOrder:
    """Edges in the order in which a search added them.

    Attributes:
        edges: one row per edge: (0, span, target, source) within, or (1, layer x head, query span, key span), with the port
            in the last column; -1 stands for all three ports.
        complete: no edge that can matter is missing, so the circuit of all of them does what the model does.
    """

    scores: EdgeScores
    edges: Ints
    crossing_open: bool
    method: str
    complete: bool = True

    def __len__(self) -> int:
        return len(self.edges)

    def circuit(self, n: int, *, prune: bool = True) -> Circuit:
        """The first `n` edges, without dead nodes; it may be smaller than `n`, and its own size is what to report."""
        if n < 0:
            raise OutOfRange(f"a circuit has 0 or more edges, not {n}")
        graph = self.scores.graph
        found = Circuit.empty(graph, self.scores.spans, crossing=not self.crossing_open)
        rows = self.edges[:n]
        inside, across = rows[rows[:, 0] == 0], rows[rows[:, 0] == 1]
        _fill_within(found, inside)
        if found.crossing is not None:
            parts = range(3)
            for part in parts:
                mine = across[(across[:, 4] == part) | (across[:, 4] == -1)]
                layers, heads = np.divmod(mine[:, 1], graph.n_heads)
                found.crossing[part, layers, heads, mine[:, 2], mine[:, 3]] = True
        found.about = {"method": self.method, "asked_for": n, "is_whole": self.complete and n >= len(self)}
        return found.pruned() if prune else found


def _fill_within(circuit: Circuit, rows: Ints) -> None:
    graph = circuit.graph
    single = rows[rows[:, 4] != -1]
    circuit.within[single[:, 1], single[:, 2], single[:, 3]] = True
    joined = rows[rows[:, 4] == -1]
    for part in range(3):
        circuit.within[joined[:, 1], joined[:, 2] + part * graph.n_heads, joined[:, 3]] = True


def greedy(
    scores: EdgeScores,
    *,
    start: str = "logits",
    rule: str = "absolute",
    joined: bool = True,
    sizes: SpanSizes | None = None,
    ends: Sequence[int] | None = None,
    limit: int | None = None,
    frugal: bool = False,
) -> EdgeOrder:
    """Grow from the logits (at the last span) or from the embeddings, best edge first.

    Args:
        rule: largest |score|, or most negative score (most helpful) first.
        sizes: pairs of spans that no item has (key later than query) are left out.
        ends: spans that hold some item's last token; the last one by default.
        limit: stop after so many edges.
        frugal: best first by score per concrete edge, so that an edge between long spans has to be worth its many tokens.

    Raises:
        UnknownName: no such start or rule.
        OutOfRange: frugal growth without sizes.
    """
    if start not in STARTS:
        raise unknown("start", start, STARTS)
    if frugal and sizes is None:
        raise OutOfRange("frugal growth weighs edges by the tokens of their spans; give sizes")
    growth = _Growth(scores, rule, joined, sizes, frugal=frugal)
    last = [len(scores.spans) - 1] if ends is None else list(ends)
    grown = growth.backward(last) if start == "logits" else growth.forward()
    edges = np.array(list(islice(grown, limit)), dtype=np.int64).reshape(-1, 5)
    complete = next(grown, None) is None
    return EdgeOrder(
        scores, edges, scores.crossing is None, f"greedy from the {start}, {rule}{', frugal' if frugal else ''}", complete
    )


def strongest(scores: EdgeScores, *, rule: str = "absolute", joined: bool = False, sizes: SpanSizes | None = None) -> EdgeOrder:
    """All edges by score alone; a prefix is a circuit after pruning, which may leave much less of it.

    Raises:
        TaskError: scores that cannot be compared between ports.
    """
    if scores.per_port:
        raise TaskError(f"{scores.method} are shares within each port, which no order over all edges compares; use greedy()")
    growth = _Growth(scores, rule, joined, sizes)
    found, values = [], []
    for node in growth.nodes():
        gain, edges, _ = growth.incoming(node)
        keep = np.isfinite(gain) if scores.crossing is None else np.ones(len(gain), dtype=bool)
        values.append(gain[keep])
        found.append(edges[keep])
    order = np.argsort(-np.concatenate(values), kind="stable")
    return EdgeOrder(scores, np.concatenate(found)[order], scores.crossing is None, f"top edges, {rule}")


class _Growth:
    """The search graph: nodes are ("source", span, index), ("port", span, first target of the port) and ("final", span, 0)."""

    def __init__(self, scores: EdgeScores, rule: str, joined: bool, sizes: SpanSizes | None, *, frugal: bool = False) -> None:
        if rule not in RULES:
            raise unknown("rule", rule, RULES)
        self.scores, self.graph, self.joined = scores, scores.graph, joined
        n = len(scores.spans)
        self.possible = np.ones((n, n), dtype=bool) if sizes is None else sizes.pairs > 0
        # Concrete edges behind one edge; q, k and v of a joined port are told apart where ports are read.
        self.tokens = np.maximum(sizes.tokens, 1e-9) if frugal and sizes is not None else np.ones(n)
        self.pairs = np.maximum(sizes.pairs, 1e-9) if frugal and sizes is not None else np.ones((n, n))
        self.parts = 3 if frugal and joined else 1
        self.within = np.abs(scores.within) if rule == "absolute" else -scores.within
        crossing = scores.crossing
        if crossing is None:
            # Without positions every crossing edge is kept: a head's output leads to its ports at once.
            shape = (3, self.graph.n_layers, self.graph.n_heads, n, n)
            self.crossing = np.broadcast_to(np.where(np.eye(n, dtype=bool), np.inf, -np.inf), shape)
            self.possible = np.eye(n, dtype=bool)
        else:
            self.crossing = np.abs(crossing) if rule == "absolute" else -crossing

    def nodes(self) -> Iterator[Node]:
        """Every node that has incoming edges."""
        graph = self.graph
        for span in range(len(self.scores.spans)):
            for source in range(1, graph.n_sources):
                yield "source", span, source
            for layer in range(graph.n_layers):
                for port in range(graph.n_heads * (1 if self.joined else 3)):
                    yield "port", span, graph.first_target(layer) + port
            yield "final", span, 0

    def incoming(self, node: Node) -> tuple[npt.NDArray[np.float64], Ints, list[Node]]:
        """Gains, edges and upstream nodes of a node's incoming edges."""
        kind, span, index = node
        graph = self.graph
        if kind == "port":
            return self._into_port(span, index)
        if kind == "final":
            return self._into(span, graph.n_targets - 1)
        if index == 0:
            return np.zeros(0), np.zeros((0, 5), dtype=np.int64), []
        layer, place = divmod(index - 1, graph.n_heads + 1)
        if place == graph.n_heads:
            return self._into(span, graph.first_target(layer) + 3 * graph.n_heads)
        return self._into_head(span, layer, place)

    def _into(self, span: int, target: int) -> tuple[npt.NDArray[np.float64], Ints, list[Node]]:
        n = self.graph.readable(target)
        edges = np.stack([np.full(n, x) for x in (0, span, target)] + [np.arange(n), np.zeros(n)], 1).astype(np.int64)
        return self.within[span, target, :n] / self.tokens[span], edges, [("source", span, u) for u in range(n)]

    def _into_port(self, span: int, target: int) -> tuple[npt.NDArray[np.float64], Ints, list[Node]]:
        gain, edges, upstream = self._into(span, target)
        if self.joined:
            rows = target + self.graph.n_heads * np.arange(3)
            gain = self.within[span, rows, : len(gain)].max(0) / (self.tokens[span] * self.parts)
            edges[:, 4] = -1
        return gain, edges, upstream

    def _into_head(self, span: int, layer: int, head: int) -> tuple[npt.NDArray[np.float64], Ints, list[Node]]:
        keys = np.flatnonzero(self.possible[span])
        place, first = layer * self.graph.n_heads + head, self.graph.first_target(layer) + head
        if self.joined:
            gain = self.crossing[:, layer, head, span, keys].max(0) / (self.pairs[span, keys] * self.parts)
            edges = np.stack([np.full(len(keys), x) for x in (1, place, span)] + [keys, np.full(len(keys), -1)], 1)
            return gain, edges, [("port", int(key), first) for key in keys]
        gains, tables, upstream = [], [], []
        for part in range(3):
            gains.append(self.crossing[part, layer, head, span, keys] / self.pairs[span, keys])
            tables.append(np.stack([np.full(len(keys), x) for x in (1, place, span)] + [keys, np.full(len(keys), part)], 1))
            port = first + part * self.graph.n_heads
            # The query that meets a key stands at the query's own position.
            upstream += [("port", span if part == 0 else int(key), port) for key in keys]
        return np.concatenate(gains), np.concatenate(tables), upstream

    def backward(self, ends: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """Edges from the final stream at the last tokens' spans backwards."""
        yield from self._grow([("final", span, 0) for span in ends], self.incoming)

    def forward(self) -> Iterator[tuple[int, ...]]:
        """Edges from all embeddings forwards."""
        outgoing: dict[Node, tuple[list[float], list[Ints], list[Node]]] = {}
        for node in self.nodes():
            gain, edges, upstream = self.incoming(node)
            for g, edge, source in zip(gain.tolist(), edges, upstream, strict=True):
                gains, rows, targets = outgoing.setdefault(source, ([], [], []))
                gains.append(g)
                rows.append(edge)
                targets.append(node)

        def of(node: Node) -> tuple[npt.NDArray[np.float64], Ints, list[Node]]:
            gains, rows, targets = outgoing.get(node, ([], [], []))
            return np.array(gains), np.array(rows, dtype=np.int64).reshape(-1, 5), targets

        yield from self._grow([("source", s, 0) for s in range(len(self.scores.spans))], of)

    def _grow(self, starts: list[Node], neighbours: "_Neighbours") -> Iterator[tuple[int, ...]]:
        """Best edge first among those at the nodes reached; each node's edges are sorted once and taken lazily."""
        heap: list[tuple[float, Node, int]] = []
        known: dict[Node, tuple[Ints, npt.NDArray[np.float64], Ints, list[Node]]] = {}

        def reach(node: Node) -> None:
            gain, edges, others = neighbours(node)
            order = np.argsort(-gain, kind="stable")
            known[node] = (order, gain, edges, others)
            if len(order):
                heapq.heappush(heap, (-float(gain[order[0]]), node, 0))

        for node in starts:
            reach(node)
        while heap:
            negated, node, place = heapq.heappop(heap)
            order, gain, edges, others = known[node]
            i = int(order[place])
            if place + 1 < len(order):
                heapq.heappush(heap, (-float(gain[order[place + 1]]), node, place + 1))
            if others[i] not in known:
                reach(others[i])
            # Edges that are always open are walked along, not counted.
            if np.isfinite(negated):
                yield tuple(edges[i].tolist())


class _Neighbours(Protocol):
    def __call__(self, node: Node) -> tuple[npt.NDArray[np.float64], Ints, list[Node]]: ...
