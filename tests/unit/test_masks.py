"""Learned gates: on planted circuits the edges that carry the answer stay open and the rest close."""

import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

import builders
from mediant.core.errors import OutOfRange, TaskError
from mediant.core.pair import Prompt
from mediant.interventions.ports import graph_of
from mediant.measures.faithfulness import CircuitBench, auroc
from mediant.search.circuits import strongest
from mediant.search.masks import Prepared, optimise_edges
from mediant.tasks.toys import Toy, plant


def known(toy: Toy) -> np.ndarray:
    graph = graph_of(toy.subject)
    table = np.zeros(graph.exists.shape, dtype=bool)
    for edge in toy.edges:
        table[graph.index(edge)] = True
    return table[graph.exists]


@pytest.mark.parametrize("sampling", ["hard_concrete", "uniform"])
@pytest.mark.parametrize("name", ["single", "and", "cancelling"])
def test_what_carries_the_answer_stays_open_and_the_rest_closes(name: str, sampling: str):
    toy = plant(name)
    # Drawn uniformly, gates find that at a price of 2 nats five edges cost more than the answer is worth.
    how = {"sparsity": 1.0, "draws": 16} if sampling == "uniform" else {"sparsity": 2.0}
    scores = optimise_edges(toy.subject, toy.pairs, steps=150, seed=1, sampling=sampling, **how)
    open_ = -scores.within[0][graph_of(toy.subject).exists]
    needed = known(toy)
    if name == "cancelling":
        # Plus and minus together do nothing, so one that suffices leaves them out.
        assert open_.max() > 0.9
        assert open_[~needed].max() < 0.5
        return
    assert auroc(open_, needed) == 1.0
    assert open_[needed].min() > 0.9
    assert open_[~needed].max() < 0.5


def test_pairs_of_unequal_length_diverge_as_each_does_alone():
    lm, long = builders.subject(), builders.ioi_pair()
    short = builders.ioi_pair("Tom", "Anna", 1)
    cut = [Prompt(prompt.text.replace(" went to the store", " went")) for prompt in (short.clean, short.counterfactual)]
    pairs = [replace(long, clean=Prompt(long.clean.text), counterfactual=Prompt(long.counterfactual.text)),
             replace(short, clean=cut[0], counterfactual=cut[1])]  # fmt: skip
    graph = graph_of(lm)
    gates = torch.rand(1, *graph.exists.shape, generator=torch.Generator().manual_seed(0)) * torch.from_numpy(graph.exists)
    alone = [float(Prepared(lm, [pair]).divergence(gates)) for pair in pairs]
    assert min(alone) > 1e-3
    assert float(Prepared(lm, pairs).divergence(gates)) == pytest.approx(np.mean(alone), rel=1e-4)
    twice = gates.expand(2, -1, -1)
    assert float(Prepared(lm, pairs, copies=2).divergence(twice)) == pytest.approx(np.mean(alone), rel=1e-4)


def test_an_or_needs_one_branch_and_the_circuit_that_is_kept_answers_as_the_model_does():
    toy = plant("or")
    scores = optimise_edges(toy.subject, toy.pairs, sparsity=2.0, steps=200)
    graph = graph_of(toy.subject)
    n = int((scores.within[0][graph.exists] < -0.5).sum())
    assert n <= len(toy.edges)
    found = CircuitBench(toy.subject, toy.pairs).run(strongest(scores).circuit(n))
    assert found.agrees.tolist() == [1.0]


def test_without_a_price_every_gate_stays_open_and_with_a_huge_one_all_close():
    toy = plant("single")
    exists = graph_of(toy.subject).exists
    assert (-optimise_edges(toy.subject, toy.pairs, sparsity=0.0, steps=20).within[0][exists]).min() > 0.9
    assert (-optimise_edges(toy.subject, toy.pairs, sparsity=1e4, steps=150).within[0][exists]).max() < 0.1


def test_the_same_seed_gives_the_same_gates_and_leaves_the_model_alone():
    lm = builders.subject()
    before = {name: p.clone() for name, p in lm.model.named_parameters()}
    one, two = (optimise_edges(lm, builders.pairs(), steps=3, seed=4).within for _ in range(2))
    assert np.array_equal(one, two)
    for name, p in lm.model.named_parameters():
        assert p.grad is None
        assert (p == before[name]).all()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(TaskError, match="no pairs"):
        optimise_edges(builders.subject(), [])
    with pytest.raises(OutOfRange, match="at least 1"):
        optimise_edges(builders.subject(), builders.pairs(), steps=0)


def test_a_step_leaves_nothing_behind():
    lm = builders.subject()
    ready, exists = Prepared(lm, builders.pairs()), torch.from_numpy(graph_of(lm).exists)

    def alive() -> int:
        gc.collect()
        return sum(type(each).__name__ == "_Store" for each in gc.get_objects())

    before = alive()
    for _ in range(2):
        wanted = torch.ones(exists.shape, requires_grad=True)
        torch.autograd.grad(ready.divergence((wanted * exists)[None]), wanted)
    assert alive() == before
