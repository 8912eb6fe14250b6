"""What carries the panel that is asked for, from the word that names it to the first word of the answer.

    record = carried(subject, strip, config, {"gaze": heads, "all": every})

Two questions about one strip differ in the panel they name. Values of the second run are put into the first, and what the answer
leans to is read at its first token: the share of the whole difference that a part hands on is how much of the panel it carries
(natural indirect effect over total effect, Vig et al. 2020). Residual streams say *where* the panel is known, sets of heads
say *who* moves it. Shares of several sets need not add up: one head may undo or read what another wrote.
"""

from collections.abc import Mapping, Sequence
from random import Random

import numpy as np

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Prompt
from mediant.core.site import Site
from mediant.measures.intervals import Array, Estimate, estimate_ratio
from mediant.runs.folder import Json
from mediant.search.patching import Patcher
from mediant.studies.gaze_heads import task
from mediant.studies.gaze_heads.config import Config
from mediant.studies.gaze_heads.method import SiteSet, derangement
from mediant.subject.vision import VisionSubject
from mediant.tasks.encode import PairBatch
from mediant.tasks.strips import PanelStrip

SPANS = {"ordinal": "the panel's number", "between": "the rest of the question", "last": "the last token"}


def carried(subject: VisionSubject, strip: PanelStrip, config: Config, sets: Mapping[str, Sequence[SiteSet]]) -> Json:
    """Total effect of naming another panel, and the part that each layer's residual streams and each head set carry.

    Returns:
        `total`: one logit difference per pair of panels; `resid`: (layer, span, pair) and `sets`: name -> (draw, pair), effects
        in the same unit. All empty where captions begin alike or numbers differ in tokens.
    """
    pairs = _pairs(subject, strip, config)
    if pairs is None:
        return {"strip": strip.id, "total": [], "resid": [], "sets": {}}
    layers = range(subject.shape.n_layers)
    patcher = Patcher(subject, pairs, capture=[Site("resid_post", layer) for layer in layers])
    grid = patcher.grid([Site("resid_post", layer) for layer in layers], list(SPANS))
    joint = {name: [patcher.joint(heads).tolist() for heads in draws] for name, draws in sets.items()}
    return {"strip": strip.id, "total": patcher.total.tolist(), "resid": grid.tolist(), "sets": joint}


def _pairs(subject: VisionSubject, strip: PanelStrip, config: Config) -> PairBatch | None:
    """Questions about each panel, each with one about another panel; None where no two can be compared."""
    order = derangement(strip.n, Random(f"{config.seed}-{strip.id}"))
    first = [subject.tokenizer(caption, add_special_tokens=False)["input_ids"][:1] for caption in strip.captions]
    asked = [(k, other) for k, other in enumerate(order) if first[k] and first[other] and first[k] != first[other]]
    if not asked:
        return None
    pixels = [strip.pixels] * len(asked)
    base, source = (subject.look(pixels, [task.asked(config, pair[i]) for pair in asked]) for i in (0, 1))
    if base.ids.shape != source.ids.shape or base.start != source.start:
        return None
    spans = []
    for row in range(base.n_rows):
        named = (base.ids[row] != source.ids[row]).nonzero()[:, 0].tolist()
        between = tuple(range(named[-1] + 1, base.stop[row] - 1))
        if not between:
            raise TaskError(f"{task.asked(config, 0)!r} has nothing between the panel's number and the answer")
        spans.append({"ordinal": tuple(named), "between": between})
    return PairBatch(
        tuple(_pair(strip, config, k, other) for k, other in asked),
        base.with_spans(spans), source.with_spans(spans),
        tuple(tuple(first[k]) for k, _ in asked), tuple(tuple(first[other]) for _, other in asked),
        rows_per_pair=1, keep=1,
    )  # fmt: skip


def _pair(strip: PanelStrip, config: Config, k: int, other: int) -> Pair:
    clean, counterfactual = Prompt(task.asked(config, k)), Prompt(task.asked(config, other))
    name = f"{strip.id}-{k}-{other}"
    return Pair(name, clean, counterfactual, strip.captions[k], strip.captions[other], strip.id)


def layer_sets(every: SiteSet, chosen: SiteSet) -> dict[str, list[SiteSet]]:
    """All heads of each layer, without the chosen ones: who else could move the panel."""
    layers = sorted({site.layer for site in every if site.layer is not None})
    return {f"layer {layer}": [tuple(s for s in every if s.layer == layer and s not in chosen)] for layer in layers}


def streams(records: Sequence[Json]) -> Array:
    """Share of the total effect that residual streams carry, (layer, span), over all pairs of all strips."""
    usable = [record for record in records if record["total"]]
    effects = np.concatenate([np.asarray(record["resid"], dtype=np.float64) for record in usable], axis=-1)
    return np.asarray(effects.sum(-1) / np.concatenate([record["total"] for record in usable]).sum())


def by_set(records: Sequence[Json], seed: int) -> dict[str, Estimate]:
    """Share of the total effect that each set of heads carries, draws averaged, resampling strips; {} where there is none."""
    usable = [record for record in records if record["total"]]
    total = np.concatenate([record["total"] for record in usable]) if usable else np.zeros(0)
    if not total.size or total.mean() == 0:
        return {}
    strips = [record["strip"] for record in usable for _ in record["total"]]
    effects = {name: np.concatenate([np.mean(record["sets"][name], axis=0) for record in usable]) for name in usable[0]["sets"]}
    return {name: estimate_ratio(values, total, clusters=strips, seed=seed) for name, values in effects.items()}
