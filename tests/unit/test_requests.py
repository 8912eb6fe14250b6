"""Requests of the drawn world: answers are what the instruction says, references lend one property, held out stays held out."""

from itertools import product

import numpy as np
import pytest

from mediant.core.errors import UnknownName
from mediant.tasks.pictures import requests
from mediant.tasks.pictures.painter import PALETTE
from mediant.tasks.pictures.scene import CHARACTERS, COLOURS, OBJECTS, PLACES, STYLES
from mediant.tasks.pictures.still import Individual, Placed, Still, Thing, draw
from mediant.tasks.requests import BUCKETS, Request

BALL = Thing("ball", "red")


def one(what: Thing | Individual, **more: str) -> np.ndarray:
    return draw(Still((Placed(what, 0.5, 0.55, 0.6),), **more)).astype(int)


def differing(a: np.ndarray, b: np.ndarray) -> int:
    return int((np.abs(a - b).max(-1) > 30).sum())


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("split", ["main", "heldout"])
def test_the_same_seed_gives_the_same_requests_and_another_seed_others(bucket: str, split: str):
    first, again, other = (requests.generate(bucket, 4, seed=seed, split=split) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert (a.instruction, a.seed, a.name) == (b.instruction, b.seed, b.name)
        assert np.array_equal(a.target, b.target)
        assert not np.array_equal(a.target, c.target)
        assert a.seed != c.seed
        assert len(a.references) == (bucket != "text")


def test_held_out_combinations_never_occur_in_training_and_each_part_does():
    met = {"main": set(), "heldout": set()}
    for split in met:
        for request in requests.generate("text", 400, split=split):
            factors = request.factors
            met[split] |= {(factors["kind"], name, factors[name]) for name in ("colour", "place", "style") if name in factors}
    assert not any(requests.held_out(*each) for each in met["main"])
    values = {"colour": COLOURS, "place": PLACES, "style": STYLES}
    for name, known in values.items():
        assert {value for _, factor, value in met["main"] if factor == name} == set(known)
        for kind in requests.KINDS:
            banned = [value for value in known if requests.held_out(kind, name, value)]
            assert 1 <= len(banned) <= 2 if len(known) >= 7 else True
    assert all(
        any(
            requests.held_out(r.factors["kind"], name, r.factors[name])
            for name in ("colour", "place", "style")
            if name in r.factors
        )
        for r in requests.generate("text", 50, split="heldout")
    )


def test_colour_requests_show_their_swatch_on_the_thing_and_nowhere_else():
    for request in requests.generate("colour", 20):
        rgb = np.array([int(part) for part in request.factors["rgb"].split(",")])
        assert (request.references[0] == rgb).all()
        covered = (np.abs(request.target.astype(int) - rgb).max(-1) < 6).mean()
        assert 0.02 < covered < 0.5
        assert request.factors["colour"] == min(requests.SWATCHES, key=lambda name: ((np.array(PALETTE[name]) - rgb) ** 2).sum())


def test_style_requests_share_the_style_and_nothing_else_with_their_reference():
    for request in requests.generate("style", 30):
        assert request.factors["kind"] != request.factors["shown"]
        assert request.factors["place"] != request.factors["shown place"]
        assert request.factors["style"] not in request.instruction
    dark = [r for r in requests.generate("style", 60) if r.factors["style"] in ("neon", "chalk")]
    assert all(r.references[0].mean() < 100 > r.target.mean() for r in dark)


def test_the_individual_of_a_request_is_the_one_in_its_reference():
    for request in requests.generate("identity", 10):
        kind, wears, coat, *_ = request.factors["identity"].split()
        rgb = np.array([int(part) for part in coat.split(",")])
        assert kind == request.factors["kind"]
        assert wears in ("hat", "scarf", "glasses")
        for picture in (request.references[0], request.target):
            assert (np.abs(picture.astype(int) - rgb).max(-1) < 8).sum() > 40


def test_adding_and_removing_change_one_thing_and_leave_the_rest():
    for bucket in ("add", "remove"):
        for request in requests.generate(bucket, 10):
            changed = np.abs(request.references[0].astype(int) - request.target.astype(int)).max(-1) > 20
            columns = np.nonzero(changed.any(0))[0]
            assert 20 < changed.sum() < 0.3 * changed.size
            assert columns.max() < 36 or columns.min() > 28


@pytest.mark.parametrize("bucket", ["colour", "style", "identity"])
def test_pairs_have_one_instruction_and_two_references(bucket: str):
    for pair in requests.generate_pairs(bucket, 6):
        assert pair.source.instruction == pair.base.instruction
        assert pair.source.factors[bucket] != pair.base.factors[bucket]
        assert not np.array_equal(pair.source.references[0], pair.base.references[0])
        assert pair.source.seed != pair.base.seed
    assert len({pair.base.instruction for pair in requests.generate_pairs(bucket, 12)}) > 3


@pytest.mark.parametrize("bucket", ["colour", "style", "identity"])
def test_held_out_pairs_are_of_many_kinds_and_properties(bucket: str):
    pairs = requests.generate_pairs(bucket, 40, split="heldout")
    wanted = {pair.base.factors[bucket] for pair in pairs}
    assert len({(pair.base.instruction, *pair.base.factors.values()) for pair in pairs}) > 20
    assert len(wanted) >= 5
    if bucket == "colour":
        assert len({pair.base.instruction for pair in pairs}) >= 5


def test_every_two_individuals_and_things_look_different():
    coats = [Individual("fox", coat=coat) for coat in ((200, 60, 60), (60, 60, 200))]
    assert differing(one(coats[0]), one(coats[1])) > 200
    worn = [one(Individual("bear", wears=wears)) for wears in ("nothing", "hat", "scarf", "glasses")]
    assert all(differing(a, b) > 25 for i, a in enumerate(worn) for b in worn[:i])
    kinds = [*(Thing(kind, "red") for kind in OBJECTS), *(Individual(kind) for kind in CHARACTERS)]
    drawn = [one(what) for what in kinds]
    assert all(differing(a, b) > 60 for i, a in enumerate(drawn) for b in drawn[:i])
    for place, style in product(PLACES[:2], STYLES):
        assert differing(one(BALL, place=place, style=style), one(BALL)) > 100 or style in ("outline", "hatched")


def test_names_that_do_not_exist_are_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'colour'"):
        requests.generate("color", 1)
    with pytest.raises(UnknownName, match="unknown bucket 'add'"):
        requests.generate_pairs("add", 1)
    with pytest.raises(UnknownName, match="did you mean 'scarf'"):
        Individual("fox", wears="scarff")
    with pytest.raises(UnknownName, match="did you mean 'fox'"):
        Individual("foxx")


def test_noise_is_seeded_by_the_name_unless_it_is_given():
    assert (
        Request("task-1", "text", "a fox").seed == Request("task-1", "style", "a cat").seed != Request("task-2", "text", "a").seed
    )
    assert Request("task-1", "text", "a fox", seed=7).seed == 7


def test_every_word_of_any_request_is_in_the_vocabulary():
    known = set(" ".join(requests.vocabulary()).replace(",", " ").split())
    for bucket, split in product(BUCKETS, ("main", "heldout")):
        for request in requests.generate(bucket, 20, seed=5, split=split):
            assert set(request.instruction.replace(",", " ").split()) <= known
