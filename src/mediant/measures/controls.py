"""Random controls: would any other parts have done as well?

>>> from mediant.core.site import Site
>>> pool = [Site("head_z", layer, head) for layer in range(2) for head in range(3)]
>>> chosen = [Site("head_z", 1, 0)]
>>> [str(site) for site in layer_matched(chosen, pool, draws=1, seed=0)[0]][0].startswith("head_z.1.")
True

A set drawn anywhere controls for the number of parts; a layer-matched one also for where they are, which matters
because late layers move an answer more than early ones whatever they hold.
"""

from collections.abc import Sequence
from random import Random

from mediant.core.site import Site

SiteSet = tuple[Site, ...]


def random_sets(chosen: Sequence[Site], pool: Sequence[Site], *, draws: int, seed: int) -> tuple[SiteSet, ...]:
    """Sets of as many sites as `chosen`, drawn from the rest of `pool` (or all that is left)."""
    others, rng = _others(chosen, pool), Random(seed)
    return tuple(tuple(rng.sample(others, min(len(chosen), len(others)))) for _ in range(draws))


def layer_matched(chosen: Sequence[Site], pool: Sequence[Site], *, draws: int, seed: int) -> tuple[SiteSet, ...]:
    """Sets with as many sites in each layer as `chosen` has there, drawn from the rest of the layer (or all that is left)."""
    others, rng = _others(chosen, pool), Random(seed)
    return tuple(tuple(_matched(chosen, others, rng)) for _ in range(draws))


def _others(chosen: Sequence[Site], pool: Sequence[Site]) -> list[Site]:
    taken = set(chosen)
    return [site for site in pool if site not in taken]


def _matched(chosen: Sequence[Site], others: Sequence[Site], rng: Random) -> list[Site]:
    found: list[Site] = []
    for layer in sorted({site.layer for site in chosen if site.layer is not None}):
        here = [site for site in others if site.layer == layer]
        found += rng.sample(here, min(sum(site.layer == layer for site in chosen), len(here)))
    return found
