"""Graphs, scores and circuits as plain data: counts, tables, pruning, and files that read back as they were."""

import json

import numpy as np
import pytest

from mediant.core.circuit import Circuit, SpanSizes
from mediant.core.edge import CircuitEdge
from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import OutOfRange, RunError
from mediant.core.graph import CircuitGraph

SMALL = CircuitGraph(3, 2)
SPANS = ("a", "b")


def count_by_hand(layers: int, heads: int, *, parallel: bool) -> int:
    """Pairs of (writer, later reader), one by one."""
    writers = [(-1, "embed"), *((la, kind) for la in range(layers) for kind in ["head"] * heads + ["mlp"])]
    readers = [*((la, kind) for la in range(layers) for kind in ["port"] * 3 * heads + ["mlp"]), (layers, "final")]
    return sum(
        w_layer < r_layer or (w_layer == r_layer and w == "head" and r == "mlp" and not parallel)
        for w_layer, w in writers
        for r_layer, r in readers
    )


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 3), (4, 2)])
def test_edges_are_counted_as_by_hand(layers: int, heads: int, parallel: bool):
    graph = CircuitGraph(layers, heads, parallel)
    assert graph.n_edges == count_by_hand(layers, heads, parallel=parallel) == graph.exists.sum()
    assert graph.exists.shape == (graph.n_targets, graph.n_sources) == (len(graph.targets), len(graph.sources))


def test_edge_counts_of_known_models():
    assert CircuitGraph(12, 12).n_edges == 32_491  # GPT-2 small
    assert CircuitGraph(12, 12, parallel=True).n_edges == 32_347
    assert CircuitGraph(30, 9).n_edges == 123_211  # SmolLM2-135M
    assert CircuitGraph(32, 32).n_edges == 1_592_881  # Llama-3-8B
    assert CircuitGraph(12, 12).n_positional_edges(12) == 423_588  # Greater-Than on GPT-2 small


def test_every_edge_has_a_name_and_a_place():
    for target, source in np.argwhere(SMALL.exists):
        assert SMALL.index(CircuitEdge.parse(str(SMALL.edge(int(target), int(source))))) == (target, source)
    with pytest.raises(OutOfRange, match="computed after"):
        SMALL.index(CircuitEdge.parse("mlp_out.1->q.1.0"))
    with pytest.raises(OutOfRange, match="3 layers and 2 heads"):
        SMALL.index(CircuitEdge.parse("head_result.0.2->q.1.0"))


def scores(seed: int = 0, draws: int = 2) -> EdgeScores:
    rng = np.random.default_rng(seed)

    def one() -> EdgeScores:
        within = rng.normal(size=(2, SMALL.n_targets, SMALL.n_sources)) * SMALL.exists
        return EdgeScores(SMALL, SPANS, within, rng.normal(size=(3, 3, 2, 2, 2)), 7, [], "eap", "logit_diff")

    found = one()
    found.draws = [one() for _ in range(draws)]
    return found


def test_scores_read_back_as_they_were_in_single_precision(tmp_path):
    before = scores()
    before.save(tmp_path / "s.safetensors", with_draws=True)
    after = EdgeScores.load(tmp_path / "s.safetensors")
    assert (after.graph, after.spans, after.n, after.method, after.metric) == (SMALL, SPANS, 7, "eap", "logit_diff")
    for one, two in zip([before, *before.draws], [after, *after.draws], strict=True):
        assert np.array_equal(one.within.astype(np.float32), two.within)
        assert np.array_equal(one.crossing.astype(np.float32), two.crossing)
    before.save(tmp_path / "s.safetensors")
    assert EdgeScores.load(tmp_path / "s.safetensors").draws == []
    (tmp_path / "s.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="holds no edge scores"):
        EdgeScores.load(tmp_path / "s.safetensors")


def test_top_edges_are_the_largest_by_size_and_name_their_span():
    found = scores()
    table = np.abs(found.within)
    first = found.top(5)
    assert [abs(s.score) for s in first] == sorted(table.ravel(), reverse=True)[:5]
    assert all(s.mediator.endswith((" @ a", " @ b")) for s in first)
    assert found.summed().top(1)[0].score == found.within.sum(0).ravel()[np.abs(found.within.sum(0)).argmax()]
    with pytest.raises(OutOfRange, match="asked for the top"):
        found.top(2 * SMALL.n_edges + 1)


def random_circuit(seed: int, share: float = 0.3, *, crossing: bool = True) -> Circuit:
    rng = np.random.default_rng(seed)
    found = Circuit.empty(SMALL, SPANS, crossing=crossing)
    found.within |= (rng.random(found.within.shape) < share) & SMALL.exists
    if found.crossing is not None:
        found.crossing |= rng.random(found.crossing.shape) < share
    return found


def live_by_walking(circuit: Circuit) -> set[tuple]:
    """Edges on some path from an embedding to the final stream, found by walking node by node."""
    heads, out = SMALL.n_heads, {}
    for span, target, source in np.argwhere(circuit.within).tolist():
        layer, port = divmod(target, 3 * heads + 1)
        node = ("final",) if layer == SMALL.n_layers else ("mlp", layer) if port == 3 * heads else ("port", layer, port)
        out.setdefault(("source", source, span), []).append(((*node, span), ("w", span, target, source)))
    pairs = circuit.crossing
    for layer in range(SMALL.n_layers):
        for span in range(2):
            mlp = SMALL.first_source(layer) + heads
            out.setdefault(("mlp", layer, span), []).append((("source", mlp, span), None))
            for head in range(heads):
                to = lambda q, la=layer, h=head: ("source", SMALL.first_source(la) + h, q)  # noqa: E731
                for part in range(3):
                    for other in range(2):
                        query, key = (span, other) if part == 0 else (other, span)
                        if pairs is None and span == other:
                            out.setdefault(("port", layer, part * heads + head, span), []).append((to(span), None))
                        elif pairs is not None and pairs[part, layer, head, query, key]:
                            edge = ("x", part, layer, head, query, key)
                            out.setdefault(("port", layer, part * heads + head, span), []).append((to(query), edge))

    def reached(starts, steps):
        seen, todo = set(starts), list(starts)
        while todo:
            for node, _ in steps.get(todo.pop(), []):
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
        return seen

    back: dict = {}
    for node, steps in out.items():
        for other, edge in steps:
            back.setdefault(other, []).append((node, edge))
    fed, used = reached([("source", 0, s) for s in range(2)], out), reached([("final", s) for s in range(2)], back)
    return {edge for node, steps in out.items() for other, edge in steps if edge and node in fed and other in used}


def listed(circuit: Circuit) -> set[tuple]:
    found = {("w", *place) for place in np.argwhere(circuit.within).tolist()}
    return found | (
        {("x", *place) for place in np.argwhere(circuit.crossing).tolist()} if circuit.crossing is not None else set()
    )


@pytest.mark.parametrize("crossing", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.15, 0.4])
@pytest.mark.parametrize("seed", range(6))
def test_pruning_keeps_exactly_the_edges_on_a_path_from_embedding_to_logits(seed: int, share: float, crossing: bool):
    circuit = random_circuit(seed, share, crossing=crossing)
    assert listed(circuit.pruned()) == live_by_walking(circuit)
    assert listed(circuit.pruned().pruned()) == listed(circuit.pruned())


def test_sizes_count_tokens_and_pairs_and_join_ports():
    circuit, sizes = Circuit.empty(SMALL, SPANS), SpanSizes(np.array([3.0, 2.0]), np.array([[6.0, 0.0], [6.0, 3.0]]))
    q, k, final = 0, 2, SMALL.n_targets - 1
    circuit.within[0, q, 0] = circuit.within[0, k, 0] = circuit.within[1, final, 0] = True
    circuit.crossing[:, 1, 1, 1, 0] = True
    circuit.crossing[2, 0, 0, 0, 0] = True
    assert circuit.n_edges == 3 + 4
    assert circuit.n_abstract() == 2 + 2
    assert circuit.n_concrete(sizes) == 3 + 3 + 2 + 3 * 6 + 6
    assert circuit.n_concrete(sizes, crossing=False) == 8
    flat = Circuit.empty(SMALL, ("all",), crossing=False)
    flat.within[0, q, 0] = True
    one = SpanSizes(np.array([5.0]), np.array([[15.0]]))
    assert flat.n_concrete(one) == 5 + 3 * 3 * 2 * 15
    assert flat.n_abstract() == 1 + 6
    whole = Circuit(SMALL, ("all",), SMALL.exists[None].copy())
    assert whole.n_concrete(one) == SMALL.n_positional_edges(5)


@pytest.mark.parametrize("crossing", [True, False])
def test_a_circuit_reads_back_as_it_was(tmp_path, crossing: bool):
    circuit = random_circuit(3, crossing=crossing)
    circuit.about = {"method": "by hand"}
    circuit.save(tmp_path / "c.json")
    again = Circuit.load(tmp_path / "c.json")
    assert listed(again) == listed(circuit)
    assert (again.crossing is None) is (not crossing)
    assert (again.spans, again.graph, again.about) == (SPANS, SMALL, {"method": "by hand"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "expected 'mediant/circuit/1'"),
        ({"edges": [["embed", "q.7.0", "a"]]}, "does not exist here"),
        ({"edges": [["embed", "q.0.0", "c"]]}, "unknown span 'c'"),
        ({"edges": [["embed", "head_result.0.0", "a->b"]]}, "no port"),
        ({"graph": {"layers": 3}}, "unexpected keyword"),
    ],
)
def test_a_broken_circuit_file_is_refused_with_what_is_wrong(tmp_path, change: dict, message: str):
    random_circuit(1).save(tmp_path / "c.json")
    data = json.loads((tmp_path / "c.json").read_text(encoding="utf-8")) | change
    (tmp_path / "c.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(RunError, match=message):
        Circuit.load(tmp_path / "c.json")


def test_overlap_of_circuits():
    one, two = random_circuit(1), random_circuit(2)
    shared, either = listed(one) & listed(two), listed(one) | listed(two)
    assert one.jaccard(two) == pytest.approx(len(shared) / len(either))
    assert one.jaccard(one) == 1.0
    assert Circuit.empty(SMALL).jaccard(Circuit.empty(SMALL)) == 1.0
