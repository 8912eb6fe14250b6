"""The algorithm, top to bottom: map the effects, rank heads, confirm the best ones against controls.

Every function takes one batch of pairs and returns plain numbers, one per pair, so that each call is one work
item of a run and nothing is averaged before it is stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mediant.core.pair import Pair
from mediant.core.ranking import Ranking
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.attention import Rows, attending
from mediant.interventions.edits import set_to
from mediant.interventions.execute import edit, run
from mediant.measures.controls import layer_matched, random_sets
from mediant.measures.divergence import disturbance, record_texts
from mediant.measures.intervals import Array
from mediant.search.patching import Patcher
from mediant.subject import Subject
from mediant.tasks.encode import Direction, encode

COMPONENTS = ("resid_post", "attn_out", "mlp_out")
Numbers = list[float]


def patcher(subject: Subject, pairs: Sequence[Pair], by: str, direction: Direction = "noising") -> Patcher:
    """A batch of pairs, run once clean and once counterfactual, with every head's source values at hand."""
    heads = [Site("head_z", layer) for layer in range(subject.shape.n_layers)]
    return Patcher(subject, encode(subject, pairs, direction=direction), by=by, capture=heads)


def baseline(ready: Patcher) -> dict[str, Numbers]:
    """What the untouched model does with each pair."""
    outcome = ready.outcome
    return {
        "before": ready.before.tolist(),
        "total": ready.total.tolist(),
        "preferred": outcome.preferred.double().tolist(),
        "greedy": outcome.greedy_right.double().tolist(),
    }


def effect_map(ready: Patcher, column: Span) -> list[list[Numbers]]:
    """Effect of each component of each layer at one column: (component, layer, pair)."""
    layers = range(ready.subject.shape.n_layers)
    effects = ready.grid([Site(kind, layer) for kind in COMPONENTS for layer in layers], [column])[:, 0]
    table: list[list[Numbers]] = effects.reshape(len(COMPONENTS), len(layers), -1).tolist()
    return table


def head_effects(ready: Patcher, layer: int) -> list[Numbers]:
    """Effect of each head of a layer, at all positions: (head, pair)."""
    sites = [Site("head_z", layer, head) for head in range(ready.subject.shape.n_heads)]
    effects: list[Numbers] = ready.grid(sites, [Span("all")])[:, 0].tolist()
    return effects


@dataclass(frozen=True)
class HeadSets:
    """The heads under test and the sets they are compared with; each control has as many heads."""

    top: tuple[Site, ...]
    random: tuple[tuple[Site, ...], ...]
    layer_matched: tuple[tuple[Site, ...], ...]
    every: tuple[Site, ...]

    def fewer(self, draws: int) -> "HeadSets":
        """The same with fewer draws of each control."""
        return HeadSets(self.top, self.random[:draws], self.layer_matched[:draws], self.every)


def head_sets(subject: Subject, ranking: Ranking, *, k: int, draws: int, seed: int) -> HeadSets:
    """Top `k` heads, random sets from the other heads, and random sets with the same number per layer."""
    top, every = tuple(ranking.sites(k)), tuple(subject.heads())
    random = random_sets(top, every, draws=draws, seed=seed)
    return HeadSets(top, random, layer_matched(top, every, draws=draws, seed=seed), every)


def confirm(ready: Patcher, sets: HeadSets) -> dict[str, list[Numbers]]:
    """Joint effects of the head sets and all their controls: set name -> (draw, pair)."""
    return against_layers(ready, sets) | {
        "strongest": [ready.joint(sets.top[:1]).tolist()],
        "random": [ready.joint(chosen).tolist() for chosen in sets.random],
        "all": [ready.joint(sets.every).tolist()],
    }


def against_layers(ready: Patcher, sets: HeadSets) -> dict[str, list[Numbers]]:
    """Joint effects of the top heads and of other heads of the same layers: set name -> (draw, pair)."""
    return {
        "total": [ready.total.tolist()],
        "top": [ready.joint(sets.top).tolist()],
        "layer_matched": [ready.joint(chosen).tolist() for chosen in sets.layer_matched],
    }


def attention_of(ready: Patcher, heads: Sequence[Site]) -> dict[str, list[Numbers]]:
    """Attention of each head from the last prompt token: head -> (pair, column)."""
    batch = ready.pairs.base
    wanted = [Rows(layer=site.layer, heads=(site.head,)) for site in heads if site.layer is not None and site.head is not None]
    with torch.no_grad(), attending(ready.subject, rows=wanted) as seen:
        run(ready.subject, batch)
    step = ready.pairs.rows_per_pair
    return {
        str(site): [observed.weights[row, 0, batch.start[row] : batch.stop[row]].tolist() for row in range(0, batch.n_rows, step)]
        for site, observed in zip(heads, seen.rows, strict=True)
    }


def disturbed(subject: Subject, texts: Sequence[str], sets: Sequence[Sequence[Site]]) -> list[Numbers]:
    """KL (nats per token) on unrelated texts when each head set is mean-ablated: (set, text).

    The mean is taken over the tokens of these very texts, so that only what varies is removed.
    """
    layers = [
        Site("head_z", layer) for layer in sorted({site.layer for heads in sets for site in heads if site.layer is not None})
    ]
    with torch.no_grad():
        with edit(subject, capture=[(site, Span("all")) for site in layers]) as seen:
            untouched = record_texts(subject, texts)
        means = {site.layer: seen.captured()[site, Span("all")].mean() for site in layers}
        return [
            disturbance(untouched, [set_to(site, "all", means[site.layer][site.head]) for site in heads]).double().tolist()
            for heads in sets
        ]


def per_pair(tables: Sequence[Sequence[Numbers]]) -> Array:
    """Join (row, pair) tables of several batches along the pairs."""
    return np.concatenate([np.asarray(table, dtype=np.float64) for table in tables], axis=-1)
