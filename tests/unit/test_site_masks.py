"""Masks over sites: on planted models the units that carry the answer are chosen, also where none matters alone."""

from dataclasses import replace

import pytest
import torch

import builders
from mediant.core.errors import EditError, OutOfRange, TaskError, UnknownName
from mediant.core.site import Site
from mediant.interventions import edits
from mediant.interventions.edits import Activation
from mediant.interventions.execute import run
from mediant.search.feature_masks import TEMPERATURES
from mediant.search.patching import Patcher
from mediant.search.site_masks import mask_sites
from mediant.tasks.encode import encode
from mediant.tasks.toys import plant


def heads(n_layers: int) -> list[Site]:
    return [Site("head_z", layer) for layer in range(n_layers)]


@pytest.mark.parametrize(("toy", "wanted"), [("single", ["head_z.0.0"]), ("or", ["head_z.0.0", "head_z.0.1"])])
def test_heads_that_have_to_change_for_the_answer_to_change_are_chosen(toy: str, wanted: list[str]):
    planted = plant(toy)
    found = mask_sites(planted.subject, planted.pairs, heads(planted.subject.shape.n_layers), unit="head", epochs=150)
    assert found.chosen == wanted
    assert {entry.mediator for entry in found.ranking.top(len(wanted))} == set(wanted)
    patcher = Patcher(planted.subject, encode(planted.subject, planted.pairs))
    assert patcher.joint([Site.parse(name) for name in wanted]) == pytest.approx(patcher.total, abs=1e-5)
    if toy == "or":
        # Patched one at a time neither matters, since the other does the same.
        assert [abs(float(patcher.joint([Site.parse(name)])[0])) < 1e-6 for name in wanted] == [True, True]
    assert found.course.temperatures[0] == TEMPERATURES[0]
    assert found.course.temperatures[-1] == pytest.approx(TEMPERATURES[1])


def test_one_of_two_that_each_suffice_is_enough_and_a_high_price_buys_nothing():
    planted = plant("and")
    found = mask_sites(planted.subject, planted.pairs, heads(1), unit="head", price=0.05, epochs=150)
    assert found.chosen in (["head_z.0.0"], ["head_z.0.1"], ["head_z.0.0", "head_z.0.1"])
    assert mask_sites(planted.subject, planted.pairs, heads(1), unit="head", price=5.0, epochs=60).chosen == []


def test_neurons_and_whole_sites_are_units_too():
    planted = plant("linear")
    neurons = mask_sites(planted.subject, planted.pairs, ["mlp_post.0"], unit="neuron", epochs=100, price=0.02)
    assert neurons.chosen == ["mlp_post.0[0]"]
    sites = mask_sites(planted.subject, planted.pairs, ["mlp_out.0", "mlp_out.1", "head_z.0.1"], epochs=100, price=0.02)
    assert "mlp_out.1" not in sites.chosen
    assert "mlp_out.0" in sites.chosen


def test_one_gate_per_head_is_each_head_swapped_by_its_share():
    lm = builders.subject()
    batch, place = encode(lm, builders.pairs()), Site("head_z", 1)
    with torch.no_grad():
        source = run(lm, batch.source, capture=[(place, "all")]).captured[place, "all"]
        share = torch.tensor([0.0, 1.0, 0.25, 0.0])
        at_once = edits.swap(place, "all", source)
        together = run(lm, batch.base, [replace(at_once, gate=share[:, None])]).logits
        base = run(lm, batch.base, capture=[(place, "all")]).captured[place, "all"].values
        mixed = base + share[:, None] * (source.values - base)
        one_by_one = run(lm, batch.base, [edits.swap(place, "all", Activation(mixed, source.rows, source.cols))]).logits
    torch.testing.assert_close(together, one_by_one)
    with pytest.raises(EditError, match="a gate for each"):
        run(lm, batch.base, [replace(at_once, gate=torch.ones(3, 1))])


def test_what_makes_no_sense_is_refused():
    lm, pairs = builders.subject(), builders.pairs()
    with pytest.raises(TaskError, match="no pairs"):
        mask_sites(lm, [], ["mlp_out.0"])
    with pytest.raises(OutOfRange, match="price is 0 or more"):
        mask_sites(lm, pairs, ["mlp_out.0"], price=-1)
    with pytest.raises(OutOfRange, match=r"such as head_z\.0; got mlp_out\.0"):
        mask_sites(lm, pairs, ["mlp_out.0"], unit="head")
    with pytest.raises(OutOfRange, match="all heads together"):
        mask_sites(lm, pairs, ["head_z.0"])
    with pytest.raises(UnknownName, match="unit 'layers'"):
        mask_sites(lm, pairs, ["mlp_out.0"], unit="layers")
