"""Attribution of nodes: exact where the model is linear, a slope where it is not, and complete along the whole way."""

import numpy as np
import pytest
import torch

import builders
from mediant.core.errors import OutOfRange, TaskError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edits
from mediant.interventions.edits import Activation
from mediant.interventions.execute import run
from mediant.measures.metrics import Outcome, metric
from mediant.search.node_attribution import attribute, attribute_features
from mediant.search.patching import Patcher
from mediant.tasks.encode import encode
from mediant.tasks.toys import plant

SITES = ["resid_pre.0", "head_z.0.1", "head_z.1.3", "attn_out.1", "mlp_post.1", "mlp_out.2", "resid_post.1", "resid_post.2"]


def test_on_a_linear_model_the_estimate_is_the_effect():
    toy = plant("linear")
    sites = [Site("head_z", layer, head) for layer in range(2) for head in range(3)] + [Site("mlp_out", 0), Site("resid_post", 0)]
    estimated = attribute(toy.subject, toy.pairs, sites)
    exact = Patcher(toy.subject, encode(toy.subject, toy.pairs)).grid(sites, ["all"])[:, 0]
    assert estimated == pytest.approx(exact, abs=1e-5)
    assert np.abs(exact).max() > 0.4


@pytest.mark.parametrize("span", ["all", "S2", "end"])
def test_the_estimate_is_the_slope_of_a_small_step_towards_the_source(span: str):
    lm, pairs = builders.subject(), builders.pairs()[:3]
    batch, measure, small = encode(lm, pairs), metric("logit_diff"), 1e-3
    estimated = attribute(lm, pairs, SITES, span, batch_size=2)
    with torch.no_grad():
        for site, row in zip(SITES, estimated, strict=True):
            one, two = (run(lm, each, capture=[(site, span)]).captured[site, span] for each in (batch.base, batch.source))
            ends = []
            for sign in (1, -1):
                moved = Activation(one.values + sign * small * (two.values - one.values), one.rows, one.cols)
                ends.append(measure(Outcome(batch, run(lm, batch.base, [edits.swap(site, span, moved)]).logits)))
            slope = ((ends[0] - ends[1]) / (2 * small)).numpy()
            assert row == pytest.approx(slope, abs=3e-3, rel=2e-2), site


def test_along_the_whole_way_estimates_of_the_embeddings_add_up_to_the_total_effect():
    lm, pairs = builders.subject(), builders.pairs()
    total = Patcher(lm, encode(lm, pairs)).total
    few, many = (attribute(lm, pairs, ["resid_pre.0"], steps=steps)[0] for steps in (1, 64))
    assert np.abs(many - total).max() < 0.1 * np.abs(total).max()
    assert np.abs(many - total).sum() < np.abs(few - total).sum() / 3


def test_features_share_out_their_sites_estimate_in_any_basis():
    lm, pairs = builders.subject(), builders.pairs()
    (neurons,) = attribute_features(lm, pairs, ["mlp_post.1"])
    assert neurons.shape == (lm.shape.d_mlp, len(pairs))
    assert neurons.sum(0) == pytest.approx(attribute(lm, pairs, ["mlp_post.1"])[0], abs=1e-6)
    whole = builders.rotation(lm.shape.d_model, lm.shape.d_model)
    (turned,) = attribute_features(lm, pairs, ["resid_post.1"], features=whole)
    assert turned.sum(0) == pytest.approx(attribute(lm, pairs, ["resid_post.1"])[0], abs=1e-4)
    # Patching one feature by a small step has that feature's slope.
    batch, place = encode(lm, pairs), (Site("resid_post", 1), Span("all"))
    with torch.no_grad():
        one, two = (run(lm, each, capture=[place]).captured[place] for each in (batch.base, batch.source))
        along = 1e-3 * (two.values - one.values) @ whole.basis[:, 3:4] @ whole.basis[:, 3:4].mT
        ends = [
            metric("logit_diff")(
                Outcome(batch, run(lm, batch.base, [edits.shift(*place, Activation(s * along, one.rows, one.cols))]).logits)
            )
            for s in (1, -1)
        ]
    assert turned[3] == pytest.approx(((ends[0] - ends[1]) / 2e-3).numpy(), abs=3e-3, rel=2e-2)


def test_a_shift_adds_to_every_token_its_own_and_leaves_no_gradient_in_the_model():
    lm = builders.subject()
    batch, place = lm.encode(builders.prompts()), (Site("resid_post", 0), Span("S2"))
    with torch.no_grad():
        plain = run(lm, batch, capture=[place]).captured[place]
        change = torch.randn(plain.values.shape, generator=torch.Generator().manual_seed(0))
        after = run(lm, batch, [edits.shift(*place, Activation(change, plain.rows, plain.cols))], capture=[place])
    torch.testing.assert_close(after.captured[place].values, plain.values + change)
    attribute(lm, builders.pairs(), SITES)
    assert all(p.grad is None for p in lm.model.parameters())
    with pytest.raises(TaskError, match="no pairs"):
        attribute(lm, [], SITES)
    with pytest.raises(OutOfRange, match="steps = 0"):
        attribute(lm, builders.pairs(), SITES, steps=0)
