"""The matrix: every search finds what was planted, report cards are right by hand, and controls that win are named."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import builders
from mediant.core.errors import TaskError
from mediant.core.result import Measure
from mediant.core.site import Site
from mediant.studies.mediation import method, searches, subspaces
from mediant.studies.mediation.answers import das_controls, half_carried, one_run
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.data import Data
from mediant.studies.mediation.ground import LAST, AnswerGround, Ground
from mediant.studies.mediation.measures import Measuring, Tried, beats, leading, verdicts
from mediant.studies.mediation.mediators import Features, Neurons, edges_of, places_of
from mediant.studies.mediation.ready import Answers
from mediant.subject.untrained import untrained
from mediant.tasks.toys import Toy, plant

SMALL = {"n_discovery": 4, "n_validation": 4, "epochs": 60, "edge_steps": 40, "n_axes": 2, "batch_size": 4}


def ground(toy: Toy, **changed: object) -> AnswerGround:
    """Four pairs of a toy's bits, named as a variable."""
    config = Config(**{**SMALL, **changed})
    pairs = tuple(replace(pair, id=f"{pair.id}-{i}", variables={"bit": "1"}) for pair in toy.pairs for i in range(4))
    data = Data("toy", "a toy", "logit_diff", pairs, pairs, pairs, (), (), (), ("last",), "bit", ("0", "1"), {})
    lm, site = toy.subject, Site("resid_post", 0)
    kinds = {
        "layer": places_of(lm, "layer", ["last"]), "sublayer": places_of(lm, "sublayer", ["last"]),
        "head": places_of(lm, "head", ["last"]), "neuron": Neurons(lm.shape.n_layers, lm.shape.d_mlp), "edge": edges_of(lm),
        "coordinate": Features("coordinate", site, LAST, lm.shape.d_model),
    }  # fmt: skip
    return Ground(config, lm, data, site, LAST, kinds, one_run(lm, data))


SEARCHES = [
    (kind, one.slug)
    for kind in ("sublayer", "head", "neuron", "edge", "coordinate")
    for one in searches.searches_of(kind, ground(plant("linear")))
    if one.slug != "acdc" and (kind, one.slug) != ("edge", "probe")
]


@pytest.mark.parametrize(("kind", "slug"), SEARCHES)
def test_every_search_finds_the_planted_unit_and_wants_others_least(kind: str, slug: str):
    # One head moves the bit to where the answer is read; of neurons, one fires when both bits are there.
    field = ground(plant("and" if kind == "neuron" else "single"))
    one = next(search for search in searches.searches_of(kind, field) if search.slug == slug)
    scores = one.scores(field, field.data.discovery)
    among, size = field.kinds[kind], 2 if kind == "edge" else 1
    ready = Answers(field.subject, field.data.judged, "logit_diff")
    mean = scores.mean(1) if scores.ndim == 2 else scores
    best, worst = (np.argsort(sign * mean, kind="stable")[:size].tolist() for sign in (1, -1))
    shares = [float(ready.change(among.exchange(ready, units)).mean() / ready.patcher.total.mean()) for units in (best, worst)]
    assert shares == pytest.approx([1.0, 0.0], abs=1e-5)


def test_patching_and_attribution_agree_where_the_model_is_linear_and_find_the_planted_heads():
    field = ground(plant("linear"))
    exact = searches.one_by_one(field, field.data.discovery, kind="head")
    assert searches.places_by_gradient(field, field.data.discovery, kind="head") == pytest.approx(exact, abs=1e-5)
    assert searches.places_by_gradient(field, field.data.discovery, kind="head", steps=3) == pytest.approx(exact, abs=1e-5)
    chosen = {field.kinds["head"].label(i) for i in np.flatnonzero(np.abs(exact).max(1) > 1e-6)}
    assert chosen == {str(site) for site in plant("linear").mediators}
    by_feature = searches.features_one_by_one(field, field.data.discovery, kind="coordinate")
    assert searches.features_by_gradient(field, field.data.discovery, kind="coordinate") == pytest.approx(by_feature, abs=1e-5)


@pytest.mark.parametrize("search", subspaces.SUBSPACES, ids=lambda one: one.slug)
def test_every_subspace_has_orthonormal_columns_and_as_many_as_asked(search: subspaces.SubspaceSearch):
    field = ground(plant("single"), share=0.2)
    try:
        basis = search.basis(field, field.data.discovery)
    except TaskError as error:
        assert search.slug in ("amnesic", "boundless_das"), error  # noqa: PT017 - may find nothing to take in one dimension
        return
    assert basis.shape[0] == field.subject.shape.d_model
    assert 1 <= basis.shape[1] <= field.dimensions() == 2
    torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]), atol=1e-4, rtol=0)


def test_das_and_the_patches_own_directions_carry_the_planted_bit_and_a_random_subspace_does_not():
    field = ground(plant("single"), share=0.1, epochs=300)
    ready = Answers(field.subject, field.data.judged, "logit_diff")
    for search in (subspaces.by_das, subspaces.by_differences, subspaces.by_gradients):
        kind = subspaces_kind(field, search(field, field.data.discovery))
        share = ready.change(kind.exchange(ready, kind.available)) / ready.patcher.total
        # A learned direction may lean over, so that it hands on more than there is.
        assert (share >= 0.99).all(), search
    drawn = method.random_subspace(field, 0)
    assert abs(float((ready.change(drawn.exchange(ready, drawn.available)) / ready.patcher.total).mean())) < 0.8


def subspaces_kind(field: AnswerGround, basis: torch.Tensor) -> Features:
    from mediant.studies.mediation.mediators import subspace

    return subspace(field.site, LAST, basis)


def test_the_site_is_the_first_that_carries_half():
    field = ground(plant("linear"))
    # A bit reaches the last token in layer 0, so its stream there carries everything.
    assert half_carried(field.subject, field.data, 4) == Site("resid_post", 0)
    lm, pairs = builders.subject(), tuple(builders.pairs())
    data = replace(field.data, discovery=pairs)
    ready = Answers(lm, pairs, "logit_diff").patcher
    shares = [ready.joint([Site("resid_post", la)], "last").mean() / ready.total.mean() for la in range(3)]
    assert half_carried(lm, data, 2).layer == next(la for la, share in enumerate(shares) if share >= 0.5)


def test_a_search_counts_the_prompts_it_runs_and_says_why_it_was_not_run():
    field = ground(plant("linear"))
    by_name = {one.slug: one for one in searches.searches_of("head", field)}
    exact, estimate, many = (method.find(field, by_name[slug], "head") for slug in ("patching", "attribution", "integrated"))
    assert exact["backwards"] == 0
    assert estimate["forwards"] == pytest.approx(3 * 4)
    assert estimate["backwards"] == pytest.approx(4)
    assert many["backwards"] == pytest.approx(4 * field.config.gradient_steps)
    assert exact["stability"] == 1.0
    nameless = replace(field, data=replace(field.data, variable="", missing={"variable": "nobody named one"}))
    assert method.find(nameless, by_name["probe"], "head") == {"reason": "nobody named one"}
    empty = method.entry_of(field, by_name["probe"], "head", {"reason": "nobody named one"})
    assert (empty.name, empty.reason, empty.order) == ("head_probe", "nobody named one", [])


def test_sizes_are_shares_of_what_there_is():
    config, lm = Config(), builders.subject()
    heads = places_of(lm, "head", ["last"])
    assert method.sizes(config, heads) == [1, 4]
    site = Features("axis", Site("resid_post", 0), LAST, 576, builders.rotation(576, 48))
    assert method.sizes(config, site) == [2, 6, 17, 48]
    assert method.at_share(config, site) == 17
    drawn = method.random_units(config, Neurons(30, 1536), 0)
    assert len(drawn) == len(set(drawn)) == 1382
    assert drawn != method.random_units(config, Neurons(30, 1536), 1)
    assert drawn == method.random_units(config, Neurons(30, 1536), 0)


def entry(order: list[int]) -> method.Entry:
    heads = places_of(builders.subject(), "head", ["last"])
    search = searches.Search("patching", "patching", "patched one by one", searches.neurons_by_lens)
    return method.Entry("head", search, heads, order, 0.5, 10.0, 0.0)


def measured(shares: list[float], random: float) -> dict[str, Measure]:
    """Measures of one entry whose curve over sizes 1, 2, 4 is `shares`, at a control of `random`."""
    pairs = tuple(replace(pair, id=f"{pair.id}-{i}") for i in range(3) for pair in builders.pairs())
    data = Data(
        "toy", "", "logit_diff", pairs, pairs, pairs, (), (), pairs, ("last",), "", (), {"heldout": "none", "other": "none"}
    )
    total = np.linspace(-3, -5, len(pairs))
    one = entry([0, 1, 2, 3])
    judged = {
        "judged": {one.name: shares[-1] * total},
        "texts": {one.name: np.full(len(pairs), 0.25)},
        "heldout": {},
        "other": {},
    }
    table = np.stack([random * total, random * total])
    drawn = {"judged": {"head": table}, "texts": {"head": np.full((2, len(pairs)), 0.5)}, "heldout": {}, "other": {}}
    curves = {one.name: np.stack([share * total for share in shares])}
    tried = Tried(judged, drawn, {"judged": total, "validation": total}, curves, {one.name: [1, 2, 4]})
    return Measuring(Config(), data, {}).all([one], tried, {})


def test_a_report_card_by_hand():
    found = measured([0.2, 0.7, 0.9], 0.1)
    assert found["head_patching_faithfulness"].value == pytest.approx(0.9)
    assert found["head_random_faithfulness"].value == pytest.approx(0.1)
    assert found["head_patching_disturbance"].value == pytest.approx(0.25)
    # Between sizes 2 and 4 on the log axis: half way from 0.7 to 0.9.
    assert found["head_patching_sparsity"].value == pytest.approx(np.sqrt(2 * 4) / 12)
    assert found["head_patching_generality"].reason == "none"
    assert found["head_patching_stability"].value == 0.5
    assert found["head_patching_forwards"].value == 10
    assert beats(found, entry([0]))
    assert verdicts(found, [entry([0])]) == ["1 of 1 searches carry more than as many random units of their kind."]


def test_what_never_suffices_and_what_random_units_do_as_well_is_said():
    found = measured([0.1, 0.2, 0.3], 0.3)
    assert found["head_patching_sparsity"].value is None
    assert "4 units, the largest set tried, carry less than 80%" in (found["head_patching_sparsity"].reason or "")
    assert not beats(found, entry([0]))
    assert "Not shown to be better than random: patched one by one of heads." in verdicts(found, [entry([0])])


def iia(value: float, half: float = 0.05) -> Measure:
    return Measure(value=value, n=100, ci95=(value - half, value + half), definition="share")


def test_das_that_does_as_well_on_random_weights_says_so():
    found = measured([0.1, 0.2, 0.9], 0.1)
    good = found | {"das_iia": iia(0.9), "das_iia_random_weights": iia(0.5), "das_iia_over_random_weights": iia(0.4)}
    assert verdicts(good, [entry([0])])[-1] == (
        "DAS turns 0.90 of the answers here and 0.50 in the same architecture with random weights: 0.40 more, pair by pair "
        "(0.35 to 0.45)."
    )
    bad = found | {"das_iia": iia(0.9), "das_iia_random_weights": iia(0.87), "das_iia_over_random_weights": iia(0.03)}
    said = verdicts(bad, [entry([0])])[-1]
    assert said.startswith("Control failed: DAS turns 0.90 of the answers here and 0.87")
    assert "+0.03 pair by pair, and an interval of -0.02 to +0.08 leaves it open whether that is more." in said
    worse = found | {"das_iia": iia(0.1), "das_iia_random_weights": iia(0.5), "das_iia_over_random_weights": iia(-0.4)}
    assert "an interval of -0.45 to -0.35 says that it is no more." in verdicts(worse, [entry([0])])[-1]


def test_what_is_more_than_random_is_decided_pair_by_pair():
    # Effects differ a lot between pairs, and the search adds the same little to each: intervals of the two overlap.
    spread = np.linspace(0.2, 1.8, 20)
    pairs = tuple(replace(pair, id=f"{pair.id}-{i}") for i in range(5) for pair in builders.pairs())
    total, one = np.full(20, -4.0), entry([0, 1])
    drawn = np.stack([0.3 * spread * total, 0.3 * spread * total])
    for more, wins in ((0.02, True), (0.0, False), (-0.02, False)):
        judged = (0.3 * spread + more) * total
        tried = Tried(
            {"judged": {one.name: judged}, "texts": {one.name: spread}, "heldout": {}, "other": {}},
            {"judged": {"head": drawn}, "texts": {"head": drawn}, "heldout": {}, "other": {}},
            {"judged": total, "validation": total}, {one.name: np.stack([judged])}, {one.name: [1]},
        )  # fmt: skip
        data = Data(
            "toy", "", "logit_diff", pairs, pairs, pairs, (), (), pairs, ("last",), "", (), {"heldout": "none", "other": "none"}
        )
        found = Measuring(Config(), data, {}).all(
            [one], tried, {"das_iia": (spread > 0.5) * 1.0, "das_iia_random_weights": (spread > 1) * 1.0}
        )
        assert found["head_patching_over_random"].value == pytest.approx(more, abs=1e-12)
        assert beats(found, one) == wins
        own, random = found["head_patching_faithfulness"].ci95, found["head_random_faithfulness"].ci95
        assert own[0] < random[1]
        assert found["das_iia_over_random_weights"].value == pytest.approx(np.mean((spread > 0.5) & (spread <= 1)))


def test_the_leading_search_is_chosen_on_validation_pairs_at_the_compared_size():
    config, total = Config(share=0.25), {"validation": np.array([-2.0, -2.0])}
    first, second = entry([0, 1, 2, 3]), replace(entry([0, 1, 2, 3]), search=replace(entry([0]).search, slug="attribution"))
    assert first.name != second.name
    size = method.compared(config, first)
    sizes = [1, size, 2 * size] if size > 1 else [size, 2, 3]
    at = sizes.index(size)
    low, high = np.full((3, 2), -1.9), np.full((3, 2), -0.1)
    low[at], high[at] = -0.5, -1.0
    tried = Tried({}, {}, total, {first.name: low, second.name: high}, {first.name: sizes, second.name: sizes})
    assert leading([first, second], tried, config) is second


def test_das_controls_are_the_same_search_where_there_is_nothing():
    lm, pairs = builders.subject(), tuple(builders.pairs())
    data = Data("ioi", "", "logit_diff", pairs, pairs, pairs, (), (), (), ("last",), "", (), {})
    field = Ground(Config(**{**SMALL, "epochs": 100, "share": 0.2}), lm, data, Site("resid_post", 2), LAST, {}, 1)
    found = das_controls(field, pairs, pairs[:2])
    assert {name: len(hits) for name, hits in found.items()} == {
        "das_iia": 4, "das_iia_shuffled_answers": 4, "das_iia_random_weights": 4, "das_iia_heldout": 2,
    }  # fmt: skip
    assert found["das_iia_heldout"] == found["das_iia"][:2]
    # The last layer's stream holds the answer itself, so a few dimensions of it turn most, in random weights too.
    assert np.mean(found["das_iia"]) >= 0.75
    nobody = untrained(lm, seed=7)
    assert nobody.name == "tiny-llama, random weights"
    weights = [dict(one.model.named_parameters())["model.layers.0.mlp.up_proj.weight"] for one in (lm, nobody)]
    assert not torch.equal(*weights)
    assert not any(p.requires_grad for p in nobody.model.parameters())


def test_what_cannot_be_searched_so_says_why():
    field = ground(plant("single"))
    edge = next(one for one in searches.searches_of("edge", field) if one.slug == "probe")
    assert "none of its own" in method.find(field, edge, "edge")["reason"]
    few = replace(field, config=Config(**{**SMALL, "n_exact": 3}))
    neuron = next(one for one in searches.searches_of("neuron", few) if one.slug == "patching")
    assert method.find(few, neuron, "neuron")["reason"] == (
        "4 neurons one by one, on 4 pairs, are 16 runs; allow it with n_exact = 4"
    )


def test_acdc_puts_the_edges_it_keeps_first():
    field = ground(plant("single"), acdc_edges=6)
    scores = searches.edges_by_acdc(field, field.data.discovery)
    edges = edges_of(field.subject)
    assert {edges.label(int(i)) for i in np.argsort(scores)[:2]} == {str(edge) for edge in plant("single").edges}
