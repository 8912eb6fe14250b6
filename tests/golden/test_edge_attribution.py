"""Edge attribution against the gates' own derivative, finite differences, integrals and exact patching."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import builders
from mediant.core.errors import SpanError, TaskError, UnknownName
from mediant.interventions.gates import Gates, run_gated
from mediant.interventions.nodes import TokenOrder, observe
from mediant.interventions.ports import graph_of
from mediant.measures.ablation import Ablation
from mediant.measures.metrics import METRICS, Outcome
from mediant.search import attribution
from mediant.search.attribution import Accumulator, accumulate, eap
from mediant.tasks.encode import encode
from mediant.tasks.toys import plant

SPANS = ["0:5", "5:9", "9:"]
FAMILIES = list(builders.BUILDERS)


def gated_metric(lm, batch, tokens, gates, ablated) -> torch.Tensor:
    """Mean logit difference under gates."""
    return METRICS["logit_diff"](Outcome(batch, run_gated(lm, batch.base, tokens, gates, ablated, keep=batch.keep))).mean()


def setting(name: str, spans=SPANS):
    lm = builders.subject(name)
    batch = encode(lm, builders.pairs())
    tokens = TokenOrder.of(batch.base, spans)
    return lm, batch, tokens, observe(lm, batch.source, tokens, with_attention=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_derivative_of_the_metric_by_the_gates(family: str):
    lm, batch, tokens, ablated = setting(family)
    gates = Gates.constant(graph_of(lm), 1.0, n_spans=3, crossing=True)
    gates.within.requires_grad_()
    gates.crossing.requires_grad_()
    gated_metric(lm, batch, tokens, gates, ablated).backward()
    scores = eap(lm, builders.pairs(), spans=SPANS, batch_size=3)
    assert np.abs(scores.within).max() > 0.1
    assert np.allclose(scores.within, -gates.within.grad.numpy(), atol=2e-5)
    # Values enter linearly, so their edges' finite change is the derivative.
    assert np.allclose(scores.crossing[2], -gates.crossing.grad[2].numpy(), atol=2e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_gradients_by_gates_are_finite_differences(family: str):
    lm, batch, tokens, ablated = setting(family)
    graph, rng = graph_of(lm), np.random.default_rng(0)
    start = Gates.constant(graph, 0.7, n_spans=3, crossing=True)
    start.within.requires_grad_()
    start.crossing.requires_grad_()
    gated_metric(lm, batch, tokens, start, ablated).backward()
    edges = np.argwhere(np.abs(start.within.grad.numpy()) > 0.01)
    for place in [tuple(edges[i]) for i in rng.integers(len(edges), size=6)]:
        values = []
        for step in (0.05, -0.05):
            moved = Gates(start.within.detach().clone(), start.crossing.detach())
            moved.within[place] += step
            values.append(gated_metric(lm, batch, tokens, moved, ablated).item())
        assert (values[0] - values[1]) / 0.1 == pytest.approx(start.within.grad[place].item(), abs=5e-3)
    pairs = np.argwhere(np.abs(start.crossing.grad.numpy()) > 0.01)
    for place in [tuple(pairs[i]) for i in rng.integers(len(pairs), size=6)]:
        values = []
        for step in (0.05, -0.05):
            moved = Gates(start.within.detach(), start.crossing.detach().clone())
            moved.crossing[place] += step
            values.append(gated_metric(lm, batch, tokens, moved, ablated).item())
        assert (values[0] - values[1]) / 0.1 == pytest.approx(start.crossing.grad[place].item(), abs=5e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spans", [None, SPANS])
def test_open_gates_are_the_clean_run_and_closed_gates_the_ablated_run(family: str, spans):
    lm, batch, tokens, ablated = setting(family, spans)
    clean, other = (gated.logits for gated in (observe(lm, batch.base, tokens), ablated))
    for crossing in (False, True):
        make = {"n_spans": tokens.n_spans, "crossing": crossing}
        for value, expected in ((1.0, clean), (0.0, other)):
            found = run_gated(lm, batch.base, tokens, Gates.constant(graph_of(lm), value, **make), ablated)
            assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(clean, other, atol=0.1)


def test_refining_spans_never_changes_the_total_and_one_span_is_no_positions():
    lm = builders.subject()
    coarse, fine, none = (eap(lm, builders.pairs(), spans=spans) for spans in (["0:"], SPANS, None))
    assert np.allclose(fine.within.sum(0), coarse.within[0], atol=1e-6)
    assert np.allclose(fine.summed().within, none.within, atol=1e-6)
    assert np.allclose(fine.crossing.sum((-1, -2)), coarse.crossing.sum((-1, -2)), atol=1e-9)


def test_attribution_is_exact_on_a_linear_network_except_through_attention_patterns():
    toy = plant("linear")
    lm, batch = toy.subject, encode(toy.subject, toy.pairs)
    tokens = TokenOrder.of(batch.base)
    ablated, graph = observe(lm, batch.source, tokens), graph_of(lm)
    before = gated_metric(lm, batch, tokens, Gates.constant(graph, 1.0), ablated).item()
    for method in ("eap", "ig-inputs", "ig-activations", "clean-corrupted"):
        scores = eap(lm, toy.pairs, method=method, steps=3)
        found = 0
        for target, source in np.argwhere(graph.exists):
            gates = Gates.constant(graph, 1.0)
            gates.within[0, target, source] = 0.0
            exact = gated_metric(lm, batch, tokens, gates, ablated).item() - before
            assert scores.within[0, target, source] == pytest.approx(exact, abs=1e-5), (method, target, source)
            found += abs(exact) > 0.1
        assert found >= 4


def test_integrated_gradients_of_the_embedding_sum_to_the_whole_change():
    """Completeness: what the embeddings' own edges carry along the way is the metric's change, the finer the closer."""
    lm, batch, tokens, ablated = setting("qwen3", None)
    clean = observe(lm, batch.base, tokens)
    change = (
        (METRICS["logit_diff"](Outcome(batch, clean.logits)) - METRICS["logit_diff"](Outcome(batch, ablated.logits)))
        .mean()
        .item()
    )
    errors = []
    for steps in (10, 160):
        scores = eap(lm, builders.pairs(), method="ig-inputs", steps=steps)
        errors.append(abs(-scores.within[0, :, 0].sum() - change))
    assert abs(change) > 0.5
    assert errors[1] < 0.02
    assert errors[1] < errors[0] / 5


def test_metric_and_pairs_are_means_over_items_whatever_the_batches():
    lm = builders.subject("qwen3")
    one, four = (eap(lm, builders.pairs(), spans=SPANS, batch_size=size) for size in (1, 4))
    assert one.n == four.n == 4
    assert np.allclose(one.within, four.within, atol=1e-5)
    assert np.allclose(one.crossing, four.crossing, atol=1e-6)


def test_bootstrap_draws_are_poisson_weighted_means_of_the_items():
    lm, n = builders.subject(), 12
    drawn = eap(lm, builders.pairs(), bootstrap=n, seed=3, batch_size=2)
    singles = [eap(lm, [pair]).within for pair in builders.pairs()]
    rng = np.random.default_rng(3)
    weights = np.concatenate([rng.poisson(1.0, (2, n)) for _ in range(2)])
    for i in range(n):
        expected = sum(w * s for w, s in zip(weights[:, i], singles, strict=True)) / max(1, weights[:, i].sum())
        assert np.allclose(drawn.draws[i].within, expected, atol=1e-5)


def test_two_forwards_and_one_backward_per_batch(monkeypatch):
    lm, counts = builders.subject(), {"forward": 0, "backward": 0}
    handle = lm.base.register_forward_hook(lambda *_: counts.__setitem__("forward", counts["forward"] + 1))
    original = torch.autograd.grad

    def counted(outputs, inputs, *args, **kwargs):
        # The pull-back through one norm is no backward through the model.
        counts["backward"] += outputs.ndim == 0
        return original(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    try:
        for spans in (None, SPANS):
            counts.update(forward=0, backward=0)
            eap(lm, builders.pairs(), spans=spans, batch_size=2)
            assert counts == {"forward": 4, "backward": 2}
    finally:
        handle.remove()


@pytest.mark.parametrize("method", ["eap", "ig-inputs"])
def test_sums_beside_are_those_of_an_attribution_of_their_own(method: str):
    lm, graph = builders.subject(), graph_of(builders.subject())

    def dealt(batch) -> TokenOrder:
        """Another name for each span in every prompt, and one span less."""
        spans = TokenOrder.of(batch.base, SPANS).span_of
        shift = torch.arange(len(spans))[:, None]
        return TokenOrder.from_spans(torch.where(spans < 0, -1, (spans + shift) % 2), 2)

    def true(batch) -> TokenOrder:
        return TokenOrder.of(batch.base, SPANS)

    sums = [Accumulator(graph, names, crossing=True, bootstrap=n) for names, n in ((("a", "b", "c"), 3), (("a", "b"), 0))]
    accumulate(sums[0], lm, builders.pairs(), order=true, method=method, beside=[(sums[1], dealt)])
    for total, order in zip(sums, (true, dealt), strict=True):
        alone = Accumulator(graph, total.spans, crossing=True)
        accumulate(alone, lm, builders.pairs(), order=order, method=method)
        assert np.allclose(total.scores("", "").within, alone.scores("", "").within, atol=1e-5)
        assert np.allclose(total.scores("", "").crossing, alone.scores("", "").crossing, atol=1e-7)
    assert not np.allclose(sums[0].within[0].sum(0)[:, :, None].sum(), 0)


def test_no_tensor_holds_one_number_per_edge_and_token(monkeypatch):
    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.size = max(self.size, out.numel())
            return out

    monkeypatch.setattr(attribution, "BLOCK", 8)
    lm, watch = builders.subject(), Largest()
    graph, batch = graph_of(lm), encode(lm, builders.pairs())
    total = Accumulator(graph, ("a", "b", "c"), crossing=True)
    with watch:
        accumulate(total, lm, builders.pairs(), order=lambda pairs: TokenOrder.of(pairs.base, SPANS))
    tokens, ports = int(batch.base.mask.sum()), 3 * graph.n_heads
    attention = 3 * batch.base.n_rows * graph.n_heads * batch.base.n_cols**2
    one_block = 8 * ports * graph.n_sources
    outputs = graph.n_sources * tokens * lm.shape.d_model
    weights = max(p.numel() for p in lm.model.parameters())
    assert watch.size <= max(attention, one_block, outputs, weights, total.within.size)
    assert ports * graph.n_sources * tokens > 2 * one_block  # what a layer's edges at all tokens would take


def test_what_cannot_be_attributed_is_refused():
    lm = builders.subject()
    with pytest.raises(UnknownName, match="did you mean 'ig-inputs'"):
        eap(lm, builders.pairs(), method="ig-input")
    with pytest.raises(UnknownName, match="ablation"):
        Ablation("means")
    with pytest.raises(TaskError, match="needs references"):
        Ablation("mean")
    with pytest.raises(TaskError, match="with zero ablation take 'eap' or 'ig-inputs'"):
        eap(lm, builders.pairs(), ablation=Ablation("zero"), method="clean-corrupted")
    with pytest.raises(TaskError, match="no pairs"):
        eap(lm, [])
    with pytest.raises(SpanError, match="token 9 of prompt 0 is in no span"):
        eap(lm, builders.pairs(), spans=["0:9"])
    with pytest.raises(SpanError, match="token 5 of prompt 0 is in span '0:6' and in '5:'"):
        eap(lm, builders.pairs(), spans=["0:6", "5:"])
