"""Random controls: as many parts, elsewhere, and where the chosen ones are."""

from collections import Counter

from mediant.core import Site
from mediant.measures.controls import layer_matched, random_sets

POOL = [Site("head_z", layer, head) for layer in range(4) for head in range(5)]
CHOSEN = [Site("head_z", 1, 0), Site("head_z", 1, 3), Site("head_z", 3, 2)]


def layers(sites) -> Counter:
    return Counter(site.layer for site in sites)


def test_random_sets_have_the_size_of_the_chosen_and_none_of_them():
    for drawn in random_sets(CHOSEN, POOL, draws=50, seed=1):
        assert len(set(drawn)) == 3
        assert not set(drawn) & set(CHOSEN)


def test_random_sets_reach_every_other_site():
    seen = {site for drawn in random_sets(CHOSEN, POOL, draws=200, seed=2) for site in drawn}
    assert seen == set(POOL) - set(CHOSEN)


def test_layer_matched_sets_have_as_many_in_each_layer():
    for drawn in layer_matched(CHOSEN, POOL, draws=50, seed=3):
        assert layers(drawn) == layers(CHOSEN)
        assert not set(drawn) & set(CHOSEN)


def test_layer_matched_sets_reach_every_other_head_of_their_layers():
    seen = {site for drawn in layer_matched(CHOSEN, POOL, draws=200, seed=4) for site in drawn}
    assert seen == {site for site in POOL if site.layer in (1, 3)} - set(CHOSEN)


def test_a_layer_whose_heads_are_all_chosen_gives_what_is_left():
    whole = [site for site in POOL if site.layer == 2]
    assert layer_matched(whole, POOL, draws=1, seed=0) == ((),)
    assert len(random_sets(POOL[:18], POOL, draws=1, seed=0)[0]) == 2


def test_the_seed_decides():
    assert random_sets(CHOSEN, POOL, draws=3, seed=5) == random_sets(CHOSEN, POOL, draws=3, seed=5)
    assert random_sets(CHOSEN, POOL, draws=3, seed=5) != random_sets(CHOSEN, POOL, draws=3, seed=6)
    assert layer_matched(CHOSEN, POOL, draws=3, seed=5) == layer_matched(CHOSEN, POOL, draws=3, seed=5)
