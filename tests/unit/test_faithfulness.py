"""Faithfulness: closed forms of its areas, circuits whose outcome is known, and one forward per circuit."""

import numpy as np
import pytest
import torch

from builders import pairs, subject
from mediant.core.circuit import Circuit
from mediant.core.errors import OutOfRange, TaskError
from mediant.interventions import run, swap
from mediant.interventions.nodes import TokenOrder
from mediant.interventions.ports import graph_of
from mediant.measures.faithfulness import (
    PROPORTIONS,
    CircuitBench,
    auroc,
    cmd,
    cpr,
    has_room,
    mean_sizes,
    normalised,
    size_at,
    soft,
)
from mediant.measures.metrics import METRICS, Outcome
from mediant.search.attribution import eap
from mediant.search.circuits import greedy

pytestmark = pytest.mark.usefixtures("no_gradients")
SPANS = ["0:5", "5:9", "9:"]


def test_areas_of_the_step_and_of_the_perfect_curve():
    assert list(PROPORTIONS) == sorted(set(PROPORTIONS))
    assert (PROPORTIONS[0] > 0, PROPORTIONS[-1]) == (True, 1.0)
    step = [0.0] * 9 + [1.0]
    assert cpr(PROPORTIONS, step) == pytest.approx(0.25)
    assert cmd(PROPORTIONS, step) == pytest.approx(0.749)
    assert cpr(PROPORTIONS, [1.0] * 10) == pytest.approx(0.999)
    assert cmd(PROPORTIONS, [1.0] * 10) == 0.0
    rng = np.random.default_rng(0)
    for _ in range(20):
        curve = rng.normal(1, 1, 10).tolist()
        assert cpr(PROPORTIONS, curve) + cmd(PROPORTIONS, curve) >= 0.999 - 1e-12
    assert cpr(PROPORTIONS, [2.0] * 10, log=True) == pytest.approx(2.0)
    with pytest.raises(OutOfRange, match="rising"):
        cpr([0.5, 0.5], [1, 1])


def test_the_size_at_a_threshold_lies_between_measured_sizes_on_the_log_axis():
    assert size_at([10, 100, 1000], [0.0, 0.5, 1.0], 0.75) == pytest.approx(10**2.5)
    assert size_at([10, 100], [0.9, 1.0], 0.8) == 10
    assert size_at([10, 100], [0.1, 0.2], 0.8) is None
    assert size_at([10, 100, 1000], [0.9, 0.1, 0.9], 0.8) == 10
    with pytest.raises(TaskError, match="rise"):
        size_at([10, 10], [0, 1], 0.5)


def test_auroc_is_the_chance_that_a_known_edge_scores_above_another():
    rng = np.random.default_rng(1)
    scores, known = rng.integers(0, 5, 40).astype(float), rng.random(40) < 0.3
    wins = [(a > b) + 0.5 * (a == b) for a in scores[known] for b in scores[~known]]
    assert auroc(scores, known) == pytest.approx(np.mean(wins))
    assert auroc(-scores, known) == pytest.approx(1 - np.mean(wins))
    with pytest.raises(TaskError, match="known"):
        auroc(scores, np.zeros(40, dtype=bool))


def test_no_verdict_where_model_and_empty_circuit_are_alike():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=500)
    assert not has_room(noise, rng.normal(size=500))
    assert has_room(noise + 1, noise)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "gemma3", "olmo2", "neox"])
@pytest.mark.parametrize("spans", [None, SPANS])
def test_the_whole_graph_is_the_model_and_no_edge_the_counterfactual(family: str, spans):
    lm = subject(family, attention="eager")
    bench = CircuitBench(lm, pairs(), spans=spans)
    names = ("all",) if spans is None else tuple(spans)
    empty = Circuit.empty(graph_of(lm), names, crossing=spans is not None)
    whole = Circuit(empty.graph, names, np.broadcast_to(empty.graph.exists, empty.within.shape).copy())
    if spans is not None:
        whole.crossing = np.ones_like(empty.crossing)
    found, nothing = bench.run(whole), bench.run(empty)
    assert np.allclose(found.metric, bench.full, atol=1e-4)
    assert found.agrees.tolist() == [1.0] * 4
    assert np.allclose(nothing.metric, bench.empty, atol=1e-4)
    assert normalised(found.metric, bench.full, bench.empty) == pytest.approx(1, abs=1e-3)
    assert soft(bench.full, bench.full) == 1.0
    source = METRICS["logit_diff"](Outcome(bench.pairs, run(lm, bench.pairs.source).logits))
    assert np.allclose(bench.empty, source.numpy(), atol=1e-5)


def test_cutting_one_heads_last_edges_is_patching_that_head_on_the_straight_path():
    """A head in the last layer reaches the logits by one edge and through its own MLP; with both cut it is swapped."""
    lm = subject("llama")
    bench, graph = CircuitBench(lm, pairs()), graph_of(lm)
    circuit = Circuit(graph, ("all",), graph.exists[None].copy())
    head = graph.first_source(2) + 1
    circuit.within[0, :, head] = False
    places = [("head_z.2.1", "all")]
    seen = run(lm, bench.pairs.source, capture=places).captured["head_z.2.1", "all"]
    patched = METRICS["logit_diff"](Outcome(bench.pairs, run(lm, bench.pairs.base, swap("head_z.2.1", "all", seen)).logits))
    assert np.allclose(bench.run(circuit).metric, patched.numpy(), atol=1e-5)
    assert np.abs(patched.numpy() - bench.full).max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_an_order_grown_to_its_end_gives_the_model_and_says_so(family: str):
    lm = subject(family)
    bench = CircuitBench(lm, pairs(), spans=SPANS)
    order = greedy(eap(lm, pairs(), spans=SPANS), sizes=mean_sizes(bench.sizes()))
    whole = order.circuit(len(order))
    assert whole.about["is_whole"]
    assert not whole.within[:2, -1].any()  # nobody reads earlier tokens' last streams
    found = bench.run(whole)
    assert np.allclose(found.metric, bench.full, atol=1e-4)
    assert (found.agrees == 1).all()
    assert not order.circuit(len(order) - 1).about["is_whole"]
    short = greedy(order.scores, limit=5)
    assert not short.circuit(5).about["is_whole"]


def test_the_same_runs_serve_every_schema():
    lm, circuits = subject(), {}
    bench = CircuitBench(lm, pairs(), spans=SPANS)
    flipped = CircuitBench(lm, pairs(), spans=SPANS[::-1])
    flat = CircuitBench(lm, pairs())
    rng = np.random.default_rng(0)
    circuit = Circuit.empty(graph_of(lm), tuple(SPANS))
    circuit.within |= (rng.random(circuit.within.shape) < 0.5) & graph_of(lm).exists
    circuit.crossing |= rng.random(circuit.crossing.shape) < 0.5
    circuits[flipped] = bench.by_spans(lambda batch: TokenOrder.of(batch.base, SPANS[::-1]))
    circuits[flat] = bench.by_spans()
    assert np.allclose(circuits[flipped].run(circuit).metric, flipped.run(circuit).metric, atol=1e-5)
    single = Circuit(graph_of(lm), ("all",), circuit.within[:1])
    assert np.allclose(circuits[flat].run(single).metric, flat.run(single).metric, atol=1e-5)
    assert not np.allclose(bench.run(circuit).metric, flipped.run(circuit).metric, atol=1e-2)


def test_a_circuit_costs_one_forward(monkeypatch):
    lm, calls = subject(), []
    bench = CircuitBench(lm, pairs(), spans=SPANS)
    handle = lm.base.register_forward_hook(lambda *_: calls.append(1))
    try:
        for _ in range(3):
            bench.run(Circuit.empty(graph_of(lm), tuple(SPANS)))
    finally:
        handle.remove()
    assert len(calls) == 3


def test_span_sizes_count_tokens_and_pairs_of_every_prompt():
    lm = subject()
    bench = CircuitBench(lm, pairs(), spans=SPANS)
    mean = mean_sizes(bench.sizes())
    assert mean.tokens.tolist() == [5, 4, 5]
    assert mean.pairs.tolist() == [[15, 0, 0], [20, 10, 0], [25, 20, 15]]
    assert mean.pairs.sum() == 14 * 15 / 2


def test_contexts_and_gates_do_not_mix():
    from mediant.core.errors import EditError
    from mediant.interventions import edit, zero

    lm = subject()
    bench = CircuitBench(lm, pairs())
    with edit(lm, zero("mlp_out.1", "all")), pytest.raises(EditError, match="leave their context first"):
        bench.run(Circuit.empty(graph_of(lm), crossing=False))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "neox"])
def test_in_bfloat16_too_the_whole_graph_is_the_model_to_rounding(family: str):
    lm = subject(family, dtype=torch.bfloat16)
    bench = CircuitBench(lm, pairs(), spans=SPANS)
    empty = Circuit.empty(graph_of(lm), tuple(SPANS))
    whole = Circuit(
        empty.graph, tuple(SPANS), np.broadcast_to(empty.graph.exists, empty.within.shape).copy(), np.ones_like(empty.crossing)
    )
    assert np.allclose(bench.run(whole).metric, bench.full, atol=0.15)
    assert np.allclose(bench.run(empty).metric, bench.empty, atol=0.15)


def test_tokens_before_the_first_difference_are_left_out_and_change_nothing():
    lm = subject()
    bench = CircuitBench(lm, pairs(), spans=SPANS)
    first = bench.pairs.first_difference
    shorter = bench.tokens.after(first)
    assert len(shorter.rows) == 4 * 5 < len(bench.tokens.rows) == 4 * 14
    assert bool((shorter.cols >= first[shorter.rows]).all())
    assert shorter.bounds == (0, 0, 0, 20)
    assert torch.equal(shorter.span_of, bench.tokens.span_of)
    circuit = Circuit.empty(graph_of(lm), tuple(SPANS))
    circuit.within |= (np.random.default_rng(0).random(circuit.within.shape) < 0.5) & circuit.graph.exists
    circuit.crossing |= np.random.default_rng(1).random(circuit.crossing.shape) < 0.5
    expected = bench.run(circuit).metric
    bench._different = bench.tokens
    from mediant.interventions.nodes import observe

    bench.ablated = observe(lm, bench.pairs.source, bench.tokens, with_attention=True)
    assert np.allclose(bench.run(circuit).metric, expected, atol=1e-4)


def test_proportions_rise_from_a_thousandth_to_the_whole():
    assert list(PROPORTIONS) == sorted(set(PROPORTIONS))
    assert (PROPORTIONS[0], PROPORTIONS[-1]) == (0.001, 1.0)
