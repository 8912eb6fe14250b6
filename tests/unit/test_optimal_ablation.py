"""Optimal ablation: never worse than mean or zero, equal to a search by hand, and known exactly on a planted head."""

import pytest
import torch
import torch.nn.functional as F

import builders
from mediant.core.errors import OutOfRange, TaskError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edits
from mediant.interventions.execute import run
from mediant.search.optimal_ablation import optimal_ablation
from mediant.tasks.encode import encode


def missed(site: Site, constant: torch.Tensor) -> float:
    """KL at the last token, by whole forwards."""
    lm, batch = builders.subject(), encode(builders.subject(), builders.pairs()).base
    with torch.no_grad():
        plain = run(lm, batch).last.log_softmax(-1)
        after = run(lm, batch, [edits.set_to(site, "all", constant)]).last.log_softmax(-1)
    return float(F.kl_div(after, plain, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("site", ["head_z.1.2", "mlp_out.2", "attn_out.0"])
def test_the_constant_is_missed_least_and_losses_are_those_of_whole_forwards(site: str):
    lm, place = builders.subject(), Site.parse(site)
    found = optimal_ablation(lm, builders.pairs(), site, batch_size=3)
    assert found.loss < found.mean_loss
    assert found.loss < found.zero_loss
    assert found.loss == pytest.approx(missed(place, found.constant), rel=1e-3, abs=1e-6)
    assert found.zero_loss == pytest.approx(missed(place, torch.zeros_like(found.constant)), rel=1e-3, abs=1e-6)
    for seed in range(5):
        nudge = 0.05 * builders.vector(len(found.constant), seed) * found.constant.norm() / len(found.constant) ** 0.5
        assert missed(place, found.constant + nudge) > found.loss * 0.98
    assert torch.equal(found.edit().value, found.constant)
    assert all(p.grad is None for p in lm.model.parameters())


def test_a_part_that_is_always_the_same_is_not_missed():
    lm, pairs = builders.subject(), builders.pairs()[:1]
    # At the very first token a head attends to that token alone, and all prompts begin with "When".
    found = optimal_ablation(lm, pairs, "head_z.0.1", Span.index(0))
    assert found.loss == pytest.approx(0, abs=1e-6)
    assert found.mean_loss == pytest.approx(0, abs=1e-6)


def test_batches_take_turns_so_a_round_that_moves_nothing_loses_what_the_mean_loses():
    found = optimal_ablation(builders.subject(), builders.pairs(), "mlp_out.1", batch_size=2, lr=0.0, rounds=1)
    assert found.losses == pytest.approx([found.mean_loss], rel=1e-5)


def test_what_makes_no_sense_is_refused():
    lm = builders.subject()
    with pytest.raises(TaskError, match="no pairs"):
        optimal_ablation(lm, [], "mlp_out.0")
    with pytest.raises(OutOfRange, match="at least 1 round"):
        optimal_ablation(lm, builders.pairs(), "mlp_out.0", rounds=0)
    with pytest.raises(OutOfRange, match=r"head_z\.0\.0"):
        optimal_ablation(lm, builders.pairs(), "head_z.0")
