"""Image generators in the matrix: exchanges, searches and measures of pictures, checked by hand on a tiny generator."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import builders
import generators
from mediant.core.errors import OutOfRange, TaskError, UnknownName
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.search.picture_attribution import attribute_pictures, mean_gradients
from mediant.search.rotations import das_made
from mediant.search.site_masks import mask_places
from mediant.studies.mediation import method
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.data import Data
from mediant.studies.mediation.ground import Ground
from mediant.studies.mediation.mediators import Features, Neurons, Places, subspace
from mediant.studies.mediation.pictures import PICTURES, searches, task
from mediant.studies.mediation.pictures.ready import Pictures
from mediant.studies.mediation.pictures.task import PicturePair
from mediant.tasks.requests import Request

PICTURE, ALL = Span("picture"), Span("all")
SMALL = {"n_discovery": 4, "n_validation": 4, "epochs": 10, "n_axes": 3, "n_features": 32, "active": 4, "dictionary_steps": 20}


def pair(i: int) -> PicturePair:
    one = Request(f"r{i}", "colour", "a cat" if i % 2 else "the dog", (generators.picture(i),), 16, 32, seed=i)
    other = replace(one, references=(generators.picture(50 + i),))
    return PicturePair(f"p{i}", one, other, {"warmth": "cool" if i < 2 else "warm"})


@pytest.fixture(scope="module")
def field() -> searches.PictureGround:
    flux, pairs = generators.klein(), tuple(pair(i) for i in range(4))
    data = Data(
        "toy", "a toy", "", pairs, pairs, pairs, (), (), pairs, ("text", "picture", "reference"), "warmth", ("cool", "warm"), {}
    )
    config = Config(**{**SMALL, "batch_size": 3})
    return PICTURES.ground(config, flux, data, Site("resid_post", 1))


def test_exchanging_everything_makes_the_other_picture_and_nothing_none(field: searches.PictureGround):
    ready = Pictures(field.subject, field.data.judged, 1)
    last = field.subject.shape.n_layers - 1
    whole = Places("layer", ((Site("resid_post", last), PICTURE),))
    assert ready.change(whole.exchange(ready, [0])) == pytest.approx(ready.patcher.total, rel=1e-3)
    assert ready.disturbance(whole.exchange(ready, [0])) == pytest.approx(np.ones(4), rel=1e-3)
    assert ready.disturbance(whole.exchange(ready, [])) == pytest.approx(np.zeros(4), abs=1e-6)
    # A basis of all dimensions is the site itself; so are all its coordinates, and all neurons are all of `mlp_post`.
    width = field.width
    turned = subspace(Site("resid_post", last), PICTURE, builders.rotation(width, width).basis)
    assert ready.change(turned.exchange(ready, turned.available)) == pytest.approx(ready.patcher.total, rel=1e-3)
    neurons, layers = field.kinds["neuron"], range(last + 1)
    together = Places("mlp", tuple((Site("mlp_post", layer), ALL) for layer in layers))
    assert ready.change(neurons.exchange(ready, neurons.available)) == pytest.approx(
        ready.change(together.exchange(ready, layers)), rel=1e-4
    )


def test_attributions_along_the_way_add_up_to_the_whole_way(field: searches.PictureGround):
    # Completeness of integrated gradients (Sundararajan et al. 2017), at the inputs of the first block.
    patcher = Pictures(field.subject, field.data.judged[:2], 1).patcher
    (found,) = attribute_pictures(patcher, [(Site("embed"), ALL)], points=160)
    assert found.sum(0) == pytest.approx(patcher.total, rel=0.02)
    (first,) = attribute_pictures(patcher, [(Site("embed"), ALL)])
    assert abs(first.sum(0) - patcher.total).max() > abs(found.sum(0) - patcher.total).max()


def test_an_attribution_does_not_depend_on_the_basis(field: searches.PictureGround):
    patcher, place = Pictures(field.subject, field.data.judged[:2], 1).patcher, [(Site("resid_post", 1), PICTURE)]
    (own,) = attribute_pictures(patcher, place)
    (turned,) = attribute_pictures(patcher, place, features=builders.rotation(field.width, field.width))
    assert turned.sum(0) == pytest.approx(own.sum(0), rel=1e-3)
    (slope,) = mean_gradients(patcher, place)
    assert torch.equal(slope.values, patcher.gradients(place)[0].values)
    with pytest.raises(OutOfRange, match="points = 0"):
        mean_gradients(patcher, place, points=0)


SEARCHES = [
    (kind, one.slug) for kind in ("layer", "head", "neuron", "axis", "feature") for one in searches.searches_of(kind, Ground(
        Config(), generators.klein(), None, None, None, {}, 1))
]  # fmt: skip


@pytest.mark.parametrize(("kind", "slug"), SEARCHES)
def test_every_search_gives_each_unit_a_score_from_all_batches(field: searches.PictureGround, kind: str, slug: str):
    search = next(one for one in searches.searches_of(kind, field) if one.slug == slug)
    scores, among = search.scores(field, field.data.discovery), field.kinds[kind]
    known = among.n_features if isinstance(among, Features) else among.n_units
    assert len(scores) in (known, among.n_units)
    assert np.isfinite(scores).all()
    if scores.ndim == 2:
        assert scores.shape[1] == 4
        if slug == "patching":
            unit, ready = among.available[-1], Pictures(field.subject, field.data.discovery, 1)
            assert scores[unit] == pytest.approx(ready.change(among.exchange(ready, [unit])), abs=1e-5)
    assert PICTURES.searches("edge", field) == []


@pytest.mark.parametrize("search", searches.SUBSPACES, ids=lambda one: one.slug)
def test_every_subspace_of_pictures_has_orthonormal_columns(field: searches.PictureGround, search: searches.SubspaceSearch):
    basis = search.basis(field, field.data.discovery)
    assert basis.shape[0] == field.width
    assert 1 <= basis.shape[1] <= field.dimensions()
    torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]), atol=1e-4, rtol=0)


def test_learning_a_subspace_or_a_mask_of_features_comes_nearer_to_the_other_picture(field: searches.PictureGround):
    patcher, site = Pictures(field.subject, field.data.judged, 1).patcher, Site("resid_post", field.subject.shape.n_layers - 1)

    def wrong(found) -> float:
        edits = [replace(one, features=found.features) for one in patcher.swaps(site, PICTURE)]
        return float(patcher.wrong(patcher.outcome_of(edits)))

    short, long = (das_made([patcher], site, PICTURE, width=field.width, k=3, epochs=n, lr=0.05) for n in (1, 80))
    assert wrong(long) < 0.7 * wrong(short) < 1
    with pytest.raises(OutOfRange, match="dimensions, got k = 0"):
        das_made([patcher], site, PICTURE, width=field.width, k=0)
    basis = builders.rotation(field.width, field.width)
    mask = mask_places([patcher], [(site, PICTURE)], unit="neuron", price=1e-4, epochs=40, lr=0.2, features=basis)
    opened = tuple(torch.nonzero(mask.wishes[0] > 0)[:, 0].tolist())
    edits = [replace(one, features=basis, index=opened) for one in patcher.swaps(site, PICTURE)]
    assert float(patcher.wrong(patcher.outcome_of(edits))) < 0.2


def test_the_size_of_a_change_is_by_hand(field: searches.PictureGround):
    patcher, site = Pictures(field.subject, field.data.discovery[:2], 1).patcher, Site("resid_post", 1)
    own, other = (patcher.values([(site, PICTURE)], batch)[0] for batch in (patcher.base, patcher.source_batch))
    by_hand = [-float((other.values - own.values)[own.rows == row].square().sum()) for row in range(2)]
    places = field.places("layer").places
    found = searches.places_by_change(replace(field, config=Config(**SMALL)), field.data.discovery[:2], kind="layer")
    assert found[places.index((site, PICTURE))] == pytest.approx(by_hand, rel=1e-4)


def test_a_search_counts_the_pictures_it_makes(field: searches.PictureGround):
    by_name = {one.slug: one for one in searches.searches_of("head", field)}
    exact, estimate = (method.find(field, by_name[slug], "head") for slug in ("patching", "attribution"))
    # Of 4 pairs both pictures, and the source's again for values, in each of the layers; and one picture per head and pair.
    heads = len(field.subject.heads())
    assert exact["backwards"] == 0
    assert exact["forwards"] >= 4 * (2 + heads)
    assert estimate["backwards"] == pytest.approx(4)
    assert estimate["forwards"] < exact["forwards"]
    few = replace(field, config=Config(**{**SMALL, "n_exact": 3}))
    neuron = next(one for one in searches.searches_of("neuron", few) if one.slug == "patching")
    assert "allow it with n_exact" in method.find(few, neuron, "neuron")["reason"]
    assert isinstance(field.kinds["neuron"], Neurons)


def test_pairs_of_colours_cross_from_warm_to_cool_and_others_differ_in_the_instruction_alone():
    data = task.load(Config(n=8, n_discovery=6, n_validation=4, n_texts=4))
    assert [len(each) for each in (data.discovery, data.validation, data.judged, data.heldout, data.texts)] == [6, 4, 8, 8, 4]
    every = [*data.discovery, *data.validation, *data.judged]
    assert len({one.id for one in every}) == len(every)
    for one in every:
        warm = {side: getattr(one, side).factors["colour"] in task.WARM for side in ("clean", "counterfactual")}
        assert warm["clean"] != warm["counterfactual"]
        assert one.variables["warmth"] == ("warm" if warm["clean"] else "cool")
        assert (one.clean.instruction, one.clean.seed) == (one.counterfactual.instruction, one.counterfactual.seed)
        assert one.counterfactual.target is not None
    for one in data.other:
        assert np.array_equal(one.clean.references[0], one.counterfactual.references[0])
        assert one.clean.instruction != one.counterfactual.instruction
    for one in data.texts:
        assert one.clean.seed == one.counterfactual.seed
        assert not np.array_equal(one.clean.references[0], one.counterfactual.references[0])
    style = task.load(Config(task="style", n=8, n_discovery=4, n_validation=4, n_texts=4))
    assert style.missing["variable"].startswith("no variable with two values is known of 'style'")


def test_tasks_of_pictures_that_cannot_be_had_are_refused():
    with pytest.raises(UnknownName, match="did you mean 'colour'"):
        task.load(Config(task="color"))
    with pytest.raises(TaskError, match="no edges to search"):
        PICTURES.load(Config(kinds=("edge",)), generators.klein())
    with pytest.raises(OutOfRange, match="layer 99"):
        PICTURES.load(Config(site="resid_post.99"), generators.klein())
