"""Ablated runs: with another run's outputs they are that run; means and zeros against sums by hand; circuits under each."""

import numpy as np
import pytest
import torch

import builders
from mediant.core import Pair
from mediant.core.errors import TaskError
from mediant.interventions.as_if import as_if
from mediant.interventions.gates import Gates, run_gated
from mediant.interventions.nodes import TokenOrder, observe
from mediant.interventions.ports import graph_of
from mediant.measures.ablation import Ablation, ablated_run, alike
from mediant.measures.faithfulness import CircuitBench
from mediant.measures.metrics import METRICS, Outcome
from mediant.search.attribution import eap
from mediant.tasks.encode import encode

SPANS = ["0:5", "5:9", "9:"]
NAMES = ["Mary", "John", "Tom", "Anna"]
POOL = tuple(builders.ioi_pair(a, b, 10 + i) for i, (a, b) in enumerate((a, b) for a in NAMES for b in NAMES if a != b))


def setting(family: str):
    lm = builders.subject(family)
    batch = encode(lm, builders.pairs())
    return lm, batch, TokenOrder.of(batch.base, SPANS)


@pytest.mark.parametrize("family", list(builders.BUILDERS))
def test_with_another_runs_outputs_it_is_that_run(family: str):
    lm, batch, tokens = setting(family)
    clean, other = (observe(lm, b, tokens, with_attention=True) for b in (batch.base, batch.source))
    found = as_if(lm, batch.base, tokens, clean, other.outputs, with_attention=True)
    assert not torch.allclose(clean.logits, other.logits, atol=1e-2)
    assert torch.allclose(found.logits, other.logits, atol=1e-4)
    for layer in range(lm.shape.n_layers):
        assert torch.allclose(found.attention_in[layer], other.attention_in[layer], atol=1e-5)
        assert torch.allclose(found.mlp_in[layer], other.mlp_in[layer], atol=1e-5)
        assert torch.allclose(found.projected[layer], other.projected[layer], atol=1e-4)
        for name in ("query", "key", "value", "mixed"):
            assert torch.allclose(getattr(found.attention[layer], name), getattr(other.attention[layer], name), atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
@pytest.mark.parametrize("kind", ["mean", "zero"])
@pytest.mark.parametrize("crossing", [True, False])
def test_empty_circuits_are_the_ablated_run_and_full_ones_the_clean_run(family: str, kind: str, crossing: bool):
    lm, batch, tokens = setting(family)
    ablation = Ablation(kind, POOL if kind == "mean" else ())
    other = ablated_run(lm, batch, tokens, ablation, with_attention=True)
    clean = observe(lm, batch.base, tokens)
    for value, expected in ((0.0, other.logits), (1.0, clean.logits)):
        gates = Gates.constant(graph_of(lm), value, n_spans=3, crossing=crossing)
        assert torch.allclose(run_gated(lm, batch.base, tokens, gates, other), expected, atol=2e-4)


def test_the_mean_is_over_alike_prompts_with_other_answers_node_by_node():
    lm, batch, tokens = setting("llama")
    ablation = Ablation("mean", POOL, most=3, seed=1)
    rounds = alike(lm, batch.pairs, ablation)
    assert [len(chosen) for chosen in rounds] == [4, 4, 4]
    for chosen in rounds:
        for pair, other in zip(batch.pairs, chosen, strict=True):
            assert other.template == pair.template
            assert other.answer not in (pair.answer, pair.counterfactual_answer)
    found = ablated_run(lm, batch, tokens, ablation)
    runs = [observe(lm, encode(lm, chosen).base, tokens) for chosen in rounds]
    assert torch.allclose(found.outputs, torch.stack([r.outputs for r in runs]).mean(0), atol=1e-5)
    assert torch.allclose(found.final_in, torch.stack([r.final_in for r in runs]).mean(0), atol=1e-5)
    # What a head projects from the mean stream is not the mean of what it projects.
    means = torch.stack([r.projected[1] for r in runs]).mean(0)
    assert not torch.allclose(found.projected[1], means, atol=1e-4)


@pytest.mark.parametrize("kind", ["mean", "zero"])
def test_attribution_is_the_derivative_of_the_gates_under_every_ablation(kind: str):
    lm, batch, tokens = setting("llama")
    ablation = Ablation(kind, POOL if kind == "mean" else ())
    other = ablated_run(lm, batch, tokens, ablation, with_attention=True)
    gates = Gates.constant(graph_of(lm), 1.0, n_spans=3, crossing=True)
    gates.within.requires_grad_()
    gates.crossing.requires_grad_()
    METRICS["logit_diff"](Outcome(batch, run_gated(lm, batch.base, tokens, gates, other, keep=batch.keep))).mean().backward()
    scores = eap(lm, builders.pairs(), spans=SPANS, ablation=ablation)
    assert np.abs(scores.within).max() > 0.1
    assert np.allclose(scores.within, -gates.within.grad.numpy(), atol=3e-5)
    assert np.allclose(scores.crossing[2], -gates.crossing.grad[2].numpy(), atol=3e-5)


def test_a_bench_under_means_ablates_every_token():
    lm = builders.subject()
    bench = CircuitBench(lm, builders.pairs(), spans=SPANS, ablation=Ablation("mean", POOL))
    assert len(bench.by_spans()._different.rows) == int(bench.pairs.base.mask.sum())
    assert not np.allclose(bench.empty, CircuitBench(lm, builders.pairs(), spans=SPANS).empty, atol=1e-2)


def test_a_pair_without_alike_prompts_is_named():
    lm, batch, tokens = setting("llama")
    stranger = tuple(Pair(p.id, p.clean, p.counterfactual, p.answer, p.counterfactual_answer, "other") for p in POOL)
    with pytest.raises(TaskError, match="pair pair-0: none of the 12 references has its template"):
        ablated_run(lm, batch, tokens, Ablation("mean", stranger))
