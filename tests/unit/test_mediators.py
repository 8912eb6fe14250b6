"""Units of every kind: exchanging all of them hands on everything, none nothing, and each is what the core's own swap does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import builders
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edits
from mediant.interventions.execute import run
from mediant.interventions.features import PCA
from mediant.studies.mediation.mediators import Features, Kind, Neurons, edges_of, places_of, subspace
from mediant.studies.mediation.ready import Answers
from mediant.tasks.toys import plant


@pytest.fixture
def ready() -> Answers:
    return Answers(builders.subject(), builders.pairs(), "logit_diff")


def effect(ready: Answers, kind: Kind, units: list[int]) -> np.ndarray:
    return ready.change(kind.exchange(ready, units))


def kinds(ready: Answers) -> list[Kind]:
    shape, last = ready.subject.shape, Span("last")
    site = Site("resid_post", shape.n_layers - 1)
    return [
        places_of(ready.subject, "head", ["last"]), places_of(ready.subject, "sublayer", ["last"]),
        places_of(ready.subject, "layer", ["last"]), Neurons(shape.n_layers, shape.d_mlp), edges_of(ready.subject),
        Features("coordinate", site, last, shape.d_model), subspace(site, last, torch.eye(shape.d_model)),
    ]  # fmt: skip


def test_no_units_change_nothing(ready: Answers):
    for kind in kinds(ready):
        assert effect(ready, kind, []) == pytest.approx(np.zeros(len(ready.patcher.before)), abs=1e-5), kind.name


def test_all_units_hand_on_everything_where_nothing_goes_past_them(ready: Answers):
    for kind in kinds(ready):
        whole = effect(ready, kind, list(kind.available))
        if kind.name == "neuron":
            # Heads go past them. Nothing goes past all heads, since the last token is the same in both prompts.
            assert np.abs(whole - ready.patcher.total).max() > 1e-2
        else:
            assert whole == pytest.approx(ready.patcher.total, abs=1e-4), kind.name


def test_a_set_of_heads_is_the_joint_patch_of_them(ready: Answers):
    heads = places_of(ready.subject, "head", ["last"])
    sites = [site for site, _ in heads.places]
    assert effect(ready, heads, [1, 7, 9]) == pytest.approx(ready.patcher.joint([sites[i] for i in (1, 7, 9)]), abs=1e-6)
    assert heads.label(7) == "head_z.1.3"
    layers = places_of(ready.subject, "layer", ["last", "S"])
    assert layers.label(4) == "resid_post.1 at S"


def test_neurons_of_one_layer_together_are_a_patch_of_it(ready: Answers):
    shape = ready.subject.shape
    neurons = Neurons(shape.n_layers, shape.d_mlp)
    layer = list(range(shape.d_mlp, 2 * shape.d_mlp))
    assert effect(ready, neurons, layer) == pytest.approx(ready.patcher.joint([Site("mlp_post", 1)]), abs=1e-5)
    single = ready.patcher.effect([replace(ready.patcher.swap(Site("mlp_post", 1), "all"), index=(2,))])[0]
    assert effect(ready, neurons, [shape.d_mlp + 2]) == pytest.approx(single, abs=1e-6)
    assert neurons.label(shape.d_mlp + 2) == "mlp_post.1[2]"


def test_closing_an_edge_in_its_gate_is_the_edges_effect_on_a_planted_circuit():
    toy = plant("single")
    ready = Answers(toy.subject, toy.pairs, "logit_diff")
    edges = edges_of(toy.subject)
    effects = np.array([effect(ready, edges, [i])[0] for i in edges.available])
    named = {edges.label(i) for i in np.flatnonzero(np.abs(effects) > 1e-6)}
    assert named == {str(edge) for edge in toy.edges}
    targets, sources = edges.places.T
    assert edges.units(targets, sources) == list(edges.available)


def test_features_of_a_lossy_basis_leave_what_they_do_not_hold(ready: Answers):
    lm, site, last = ready.subject, Site("resid_post", 1), Span("last")
    with torch.no_grad():
        base, source = (run(lm, each, capture=[(site, last)]).captured[site, last].values for each in sides(ready))
    axes = PCA.fit(torch.cat([base, source]), 2)
    kind = Features("axis", site, last, lm.shape.d_model, axes)
    wanted = base + ((source - base) @ axes.axes[:, 1:]) @ axes.axes[:, 1:].mT
    pairs = ready.patcher.pairs
    rows, cols = pairs.base.locate(last)
    with torch.no_grad():
        by_hand = run(lm, pairs.base, [edits.swap(site, last, edits.Activation(wanted, rows, cols))])
    torch.testing.assert_close(kind.exchange(ready, [1]).logits, by_hand.last, atol=1e-4, rtol=0)
    assert (kind.n_units, kind.n_features, list(kind.available)) == (lm.shape.d_model, 2, [0, 1])
    assert replace(kind, overcomplete=True).n_units == 2


def sides(ready: Answers) -> tuple[object, object]:
    return ready.patcher.pairs.base, ready.patcher.pairs.source
