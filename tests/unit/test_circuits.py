"""Growing circuits: against a plain search that looks at every edge at every step."""

import numpy as np
import pytest

from mediant.core.circuit import SpanSizes
from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import OutOfRange, UnknownName
from mediant.core.graph import CircuitGraph
from mediant.search.circuits import greedy, strongest

GRAPH = CircuitGraph(2, 2)
SPANS = ("a", "b")


def scores(seed: int = 0, *, crossing: bool = True, spans: tuple[str, ...] = SPANS) -> EdgeScores:
    rng = np.random.default_rng(seed)
    within = rng.normal(size=(len(spans), GRAPH.n_targets, GRAPH.n_sources)) * GRAPH.exists
    pairs = rng.normal(size=(3, 2, 2, len(spans), len(spans))) if crossing else None
    return EdgeScores(GRAPH, spans, within, pairs)


def all_edges(found: EdgeScores, *, joined: bool) -> dict[tuple, tuple[float, tuple, tuple]]:
    """Every edge: key -> (gain, upstream node, downstream node), written out one by one."""
    edges: dict[tuple, tuple[float, tuple, tuple]] = {}
    n, heads = len(found.spans), GRAPH.n_heads
    for span in range(n):
        for target in range(GRAPH.n_targets):
            layer, port = divmod(target, 3 * heads + 1)
            head = port % heads
            for source in range(GRAPH.readable(target)):
                gain = abs(found.within[span, target, source])
                if layer == GRAPH.n_layers:
                    node, key = ("final", span), (0, span, target, source, 0)
                elif port == 3 * heads:
                    node, key = ("source", span, GRAPH.first_source(layer) + heads), (0, span, target, source, 0)
                elif joined:
                    first = GRAPH.first_target(layer) + head
                    gain = max(abs(found.within[span, first + part * heads, source]) for part in range(3))
                    node, key = ("port", span, first), (0, span, first, source, -1)
                else:
                    node, key = ("port", span, target), (0, span, target, source, 0)
                edges[key] = (gain, ("source", span, source), node)
        for layer in range(GRAPH.n_layers):
            for head in range(heads):
                out, first = ("source", span, GRAPH.first_source(layer) + head), GRAPH.first_target(layer) + head
                for key_span in range(n):
                    parts = [abs(found.crossing[part, layer, head, span, key_span]) for part in range(3)]
                    if joined:
                        edges[1, layer * heads + head, span, key_span, -1] = (max(parts), ("port", key_span, first), out)
                        continue
                    for part in range(3):
                        at = span if part == 0 else key_span
                        edges[1, layer * heads + head, span, key_span, part] = (
                            parts[part],
                            ("port", at, first + part * heads),
                            out,
                        )
    return edges


def concrete(key: tuple, sizes: SpanSizes) -> float:
    """Edges between single tokens behind one edge."""
    kind, place, *rest, part = key
    number = sizes.tokens[place] if kind == 0 else sizes.pairs[rest[0], rest[1]]
    return number * (3 if part == -1 else 1)


def grown_by_hand(found: EdgeScores, n: int, *, joined: bool, backward: bool, sizes: SpanSizes | None = None) -> list[tuple]:
    edges = all_edges(found, joined=joined)
    if sizes is not None:
        edges = {key: (gain / concrete(key, sizes), *ends) for key, (gain, *ends) in edges.items()}
    last = len(found.spans) - 1
    reached = {("final", last)} if backward else {("source", s, 0) for s in range(len(found.spans))}
    order: list[tuple] = []
    for _ in range(n):
        end = 2 if backward else 1
        open_edges = [(edge[0], key) for key, edge in edges.items() if edge[end] in reached and key not in order]
        if not open_edges:
            break
        _, best = max(open_edges)
        order.append(best)
        reached.add(edges[best][1 if backward else 2])
    return order


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("start", ["logits", "embeddings"])
@pytest.mark.parametrize("seed", range(3))
def test_growth_always_takes_the_best_edge_at_a_node_already_reached(seed: int, start: str, joined: bool):
    found = scores(seed)
    order = greedy(found, start=start, joined=joined)
    by_hand = grown_by_hand(found, 10_000, joined=joined, backward=start == "logits")
    assert [tuple(row) for row in order.edges.tolist()] == by_hand


@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("start", ["logits", "embeddings"])
def test_frugal_growth_takes_the_best_edge_per_concrete_edge(start: str, joined: bool):
    found, sizes = scores(3), SpanSizes(np.array([1.0, 7.0]), np.array([[1.0, 0.5], [7.0, 28.0]]))
    order = greedy(found, start=start, joined=joined, sizes=sizes, frugal=True)
    by_hand = grown_by_hand(found, 10_000, joined=joined, backward=start == "logits", sizes=sizes)
    assert [tuple(row) for row in order.edges.tolist()] == by_hand
    assert by_hand != grown_by_hand(found, 10_000, joined=joined, backward=start == "logits")
    with pytest.raises(OutOfRange, match="give sizes"):
        greedy(found, frugal=True)


def test_circuits_of_rising_size_contain_one_another_and_end_in_the_whole_reachable_graph():
    order = greedy(scores(1))
    previous = None
    for n in (0, 5, 20, 60, len(order)):
        circuit = order.circuit(n)
        assert circuit.n_abstract() <= n
        if previous is not None:
            assert not (previous.within & ~circuit.within).any()
        previous = circuit
    with pytest.raises(OutOfRange, match="0 or more"):
        order.circuit(-1)


def test_without_positions_every_head_leads_straight_to_its_ports():
    found = scores(2, crossing=False, spans=("all",))
    order = greedy(found, joined=False)
    assert (order.edges[:, 0] == 0).all()
    assert len(order) == GRAPH.n_edges
    whole = order.circuit(len(order))
    assert whole.crossing is None
    assert np.array_equal(whole.within[0], GRAPH.exists)


def test_pairs_of_spans_that_no_item_has_are_left_out():
    sizes = SpanSizes(np.array([2.0, 1.0]), np.array([[3.0, 0.0], [2.0, 1.0]]))
    order = greedy(scores(), sizes=sizes)
    across = order.edges[order.edges[:, 0] == 1]
    assert len(across)
    assert not ((across[:, 2] == 0) & (across[:, 3] == 1)).any()


def test_the_most_helpful_rule_takes_negative_scores_first():
    found = scores(3, crossing=False, spans=("all",))
    order = strongest(found, rule="most_negative")
    values = [found.within[0, t, u] for _, _, t, u, _ in order.edges.tolist()]
    assert values == sorted(values)
    assert len(order) == GRAPH.n_edges
    top = greedy(found, rule="most_negative", joined=False).edges[0]
    assert found.within[0, top[2], top[3]] == found.within[0, -1].min()


def test_what_is_not_a_rule_or_a_start_is_refused():
    with pytest.raises(UnknownName, match="rule"):
        greedy(scores(), rule="largest")
    with pytest.raises(UnknownName, match="start"):
        greedy(scores(), start="middle")


def test_the_strongest_edges_are_not_weighed_by_their_tokens():
    found, sizes = scores(3), SpanSizes(np.array([1.0, 7.0]), np.array([[1.0, 0.0], [7.0, 28.0]]))
    possible = {
        key: gain for key, (gain, *_) in all_edges(found, joined=False).items() if key[0] == 0 or sizes.pairs[key[2], key[3]] > 0
    }
    order = [tuple(edge) for edge in strongest(found, sizes=sizes).edges.tolist()]
    ranked = sorted(possible, key=lambda key: -possible[key])
    assert [key for key in order if key in possible][: len(ranked)] == ranked
