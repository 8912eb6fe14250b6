"""From records to measures with intervals: what each number means is said here.

Answers of one strip are not independent, so whole strips are resampled. A control of several draws resamples draws as well.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mediant.core.ranking import Ranking
from mediant.core.result import Measure
from mediant.core.site import Site
from mediant.measures.intervals import Array, Estimate, estimate, mean_over_draws
from mediant.measures.judges import same_text
from mediant.runs.folder import Json
from mediant.search.gaze import GazeScores
from mediant.studies.gaze_heads import carriers
from mediant.studies.gaze_heads.config import Config
from mediant.studies.gaze_heads.method import HeadSets, spearman
from mediant.tasks.regions import SIZES

FEWEST_JUDGED = 3
CONTROL = "_layer_matched_random"


@dataclass(frozen=True, eq=False)
class Steered:
    """What one experiment gave: answers per condition and draw, and the answers without steering, one per strip."""

    answers: Mapping[str, Sequence[Sequence[Json]]]
    baseline: Sequence[Json]

    def before(self, record: Json) -> Json:
        """The unsteered answer to the same strip."""
        found: Json = self._by_strip[record["strip"]]
        return found

    @property
    def _by_strip(self) -> dict[str, Json]:
        return {one["strip"]: one for one in self.baseline}

    def eligible(self) -> list[int]:
        """Places of answers whose target is not what the model describes anyway (DECISIONS: the corrected no-effect rule)."""
        before = self._by_strip
        first = next(iter(self.answers.values()))[0]
        return [i for i, record in enumerate(first) if before[record["strip"]]["described"] != record["target"]]


@dataclass(frozen=True, eq=False)
class Measuring:
    """Makes measures of one run's records."""

    config: Config
    exact: bool

    def right(self, record: Json) -> float:
        """Whether an answer counts as describing its target."""
        return float(record["exact"] if self.exact else record["described"] == record["target"] and not record["junk"])

    @property
    def how(self) -> str:
        """The judge in words."""
        return (
            "word for word the target panel's caption"
            if self.exact
            else "nearest to the target panel's caption by shared words, rare ones weighing more, and no junk"
        )

    def per_strip(self, records: Sequence[Json], value: Callable[[Json], float], definition: str) -> Measure:
        """Mean over answers, resampling strips."""
        if not records:
            return missing("no answer is left to count", definition)
        found = estimate([value(r) for r in records], clusters=[r["strip"] for r in records], seed=self.config.seed)
        return measure(found, definition)

    def per_draw(self, draws: Sequence[Sequence[Json]], value: Callable[[Json], float], definition: str) -> Measure:
        """Mean over draws and answers, resampling both."""
        if not draws or not draws[0]:
            return missing("no answer is left to count", definition)
        table = np.array([[value(r) for r in records] for records in draws], dtype=np.float64)
        labels = [r["strip"] for r in draws[0]]
        if len(draws) == 1:
            return measure(estimate(table[0], clusters=labels, seed=self.config.seed), definition)
        return measure(mean_over_draws(table, clusters=labels, seed=self.config.seed), definition)

    def conditions(
        self, prefix: str, steered: Steered, value: Callable[[Json], float], what: str, *, only: Sequence[int] | None = None
    ) -> dict[str, Measure]:
        """One measure per head set: `prefix` for the gaze heads, `prefix_NAME` for the others."""
        found = {}
        for name, draws in steered.answers.items():
            kept = [[records[i] for i in only] if only is not None else list(records) for records in draws]
            told = f"{what}; {HEADS[name]}"
            one = self.per_draw(kept, value, told)
            key = prefix if name == "gaze" else f"{prefix}_{name}"
            found[key] = one.model_copy(update={"control": prefix + CONTROL}) if name == "gaze" else one
        return found

    def redirect(self, prefix: str, steered: Steered, question: str) -> dict[str, Measure]:
        """Share of answers that describe the target, whole, per fact, and as published."""
        only = steered.eligible()
        what = f"share of answers to {question!r} that are {self.how}, over targets the model would not describe anyway"
        found = self.conditions(f"{prefix}_accuracy", steered, self.right, what, only=only)
        found[f"{prefix}_chance"] = Measure(
            value=1 / self.config.panels, n=len(only), ci95=None, reason="a count, not an estimate",
            definition="what describing a panel drawn at random would give, untouched answers aside",
        )  # fmt: skip
        if self.exact:
            facts = "mean share of the target's facts (who, does, colour, what, where) named, over the same targets"
            found |= self.conditions(f"{prefix}_attributes", steered, _facts, facts, only=only)
        published = (
            "share of answers judged, by forced choice between the captions, to describe the target, over all targets; an answer "
            f"like the unsteered one is a miss, also where that one describes the target (all but {len(only)} targets)"
        )

        def as_published(record: Json) -> float:
            before = steered.before(record)["text"]
            return float(record["described"] == record["target"] and not record["junk"] and not same_text(record["text"], before))

        found |= self.conditions(f"{prefix}_accuracy_as_published", steered, as_published, published)
        if self.exact:
            facts = "mean share of the target's facts named, over all targets; an answer like the unsteered one counts as none"
            found |= self.conditions(
                f"{prefix}_attributes_as_published",
                steered,
                lambda r: _facts(r) * (not same_text(r["text"], steered.before(r)["text"])),
                facts,
            )
        return found

    def settled(self, answers: Mapping[str, Sequence[Sequence[Json]]], question: str) -> dict[str, Measure]:
        """Share of answers to questions that name a panel that are right: untouched, and while heads look at that panel."""
        told = f"share of answers to questions such as {question!r} that are {self.how}, on test strips"
        untouched = answers["untouched"][0]
        found = {
            "caption_accuracy": self.per_strip(untouched, self.right, told),
            "caption_accuracy_as_published": self.per_strip(
                untouched,
                lambda r: float(r["described"] == r["target"] and not r["junk"]),
                "share of answers to the same questions judged, by forced choice between the captions, to describe that panel",
            ),
        }
        for name, draws in answers.items():
            if name != "untouched":
                who = f"{told}, while heads look at the panel asked for: {name.replace('_', ' ')}"
                found[f"caption_accuracy_{name}"] = self.per_draw(draws, self.right, who)
        return found

    def judged(
        self, prefix: str, steered: Steered, verdicts: Mapping[str, Sequence[Sequence[Json]]], judge: str
    ) -> dict[str, Measure]:
        """Share of answers that a model that sees takes for the target, over targets not described anyway."""
        only = steered.eligible()
        merged = {
            name: [
                [{**r, "verdict": v} for r, v in zip(records, verdicts[name][i], strict=True)] for i, records in enumerate(draws)
            ]
            for name, draws in steered.answers.items()
        }
        what = f"share of answers that {judge}, shown the strip, takes for the target panel's description and not for junk"
        hit = Steered(merged, steered.baseline)
        return self.conditions(f"{prefix}_accuracy_judged", hit, _judged_right, what, only=only)

    def dynamic(self, narrations: Mapping[str, Sequence[Sequence[Json]]]) -> dict[str, Measure]:
        """Whether narration follows the schedule: per segment, and as a rank correlation per strip."""
        found = {}
        for name, draws in narrations.items():
            tail = "" if name == "gaze" else f"_{name}"
            flat = [[{"strip": r["strip"], "hit": _hit(s)} for r in records for s in r["segments"]] for records in draws]
            what = "share of segments judged, by forced choice, to describe the panel the schedule names"
            found[f"dynamic_segment_accuracy{tail}"] = self.per_draw(flat, lambda r: r["hit"], f"{what}; {HEADS[name]}")
            rho = [[{"strip": r["strip"], "rho": _rho(r)} for r in records] for records in draws]
            told = f"mean over strips of Spearman's correlation of panels scheduled and described; {HEADS[name]}"
            kept = [[one for one in records if one["rho"] is not None] for records in rho]
            if all(len(records) == len(rho[0]) for records in kept):
                found[f"dynamic_spearman{tail}"] = self.per_draw(kept, lambda r: r["rho"], told)
            else:
                pooled = [one for records in kept for one in records]
                found[f"dynamic_spearman{tail}"] = self.per_strip(pooled, lambda r: r["rho"], told)
            junk = [
                [{"strip": r["strip"], "junk": float(s["junk"])} for r in records for s in r["segments"]] for records in draws
            ]
            found[f"dynamic_junk{tail}"] = self.per_draw(
                junk, lambda r: r["junk"], f"share of segments that are junk; {HEADS[name]}"
            )
        return found

    def carriers(self, records: Sequence[Json]) -> dict[str, Measure]:
        """How much of the panel that is asked for each set of heads carries."""
        shares, found = carriers.by_set(records, self.config.seed), {}
        for name, who in HEADS.items():
            told = (
                "share of the effect of naming another panel, on the logits of the two captions' first tokens, that is had by "
                f"giving these heads alone the values of the other question (natural indirect over total effect); {who}"
            )
            one = measure(shares[name], told) if shares else missing("no two captions of a strip begin differently", told)
            tail = "" if name == "gaze" else f"_{name}"
            control = {"control": f"panel_share_carried{CONTROL}"} if name == "gaze" else {}
            found[f"panel_share_carried{tail}"] = one.model_copy(update=control)
        return found

    def regions(self, looked: Mapping[str, Sequence[Sequence[Json]]], baseline: Sequence[Json]) -> dict[str, Measure]:
        """Share of things named, by size, over things that are not named anyway."""
        before = {one["strip"]: one["named"] for one in baseline}
        found = {}
        for size in SIZES:
            for name, draws in looked.items():
                kept = [[r for r in records if r["size"] == size and r["target"] not in before[r["strip"]]] for records in draws]
                tail = "" if name == "gaze" else f"_{name}"
                tokens = np.mean([r["tokens"] for r in kept[0]]) if kept[0] else 0.0
                told = (
                    f"share of {size} things ({SIZE_RULE[size]}) that are named, and no other thing of the picture, when heads "
                    f"look at their box, {tokens:.1f} image tokens on average, over things not named without; {HEADS[name]}"
                )
                one = self.per_draw(kept, lambda r: float(r["named"] == [r["target"]]), told)
                control = {"control": f"region_accuracy_{size}{CONTROL}"} if name == "gaze" else {}
                found[f"region_accuracy_{size}{tail}"] = one.model_copy(update=control)
        return found


SIZE_RULE = {"small": "under 32 x 32 pixels", "medium": "under 96 x 96 pixels", "large": "96 x 96 pixels and more"}
HEADS = {
    "gaze": "top K heads by gaze score",
    "random": "as many random heads, over several draws",
    "layer_matched_random": "random heads, as many in each layer, over several draws",
    "bottom5": "heads of the lowest 5 % of scores, the paper's control, as many as there are up to K",
    "all": "all heads",
    "image_heads": "as many heads with the most attention on the image in one forward",
    "localisation_heads": "as many heads with much and spatially concentrated attention on the image",
}


def _facts(record: Json) -> float:
    return float(np.mean(record["facts"]))


def _judged_right(record: Json) -> float:
    return float(record["verdict"]["panel"] == record["target"] and not record["verdict"]["junk"])


def _hit(segment: Json) -> float:
    return float(segment["described"] == segment["target"] and not segment["junk"])


def _rho(record: Json) -> float | None:
    """Correlation of one narration; None with fewer than three judged segments."""
    pairs = [(k, s["described"]) for k, s in zip(record["order"], record["segments"], strict=True) if s["described"] is not None]
    return spearman(*zip(*pairs, strict=True)) if len(pairs) >= FEWEST_JUDGED else None


def measure(found: Estimate, definition: str) -> Measure:
    """An estimate as a measure."""
    return Measure(value=found.value, n=found.n, ci95=found.ci95, definition=definition, control=None)


def missing(reason: str, definition: str) -> Measure:
    """A measure that cannot be given."""
    return Measure(value=None, n=0, ci95=None, definition=definition, reason=reason)


def looks(scores: GazeScores, published: GazeScores, sets: HeadSets, ranking: Ranking, seed: int) -> dict[str, Measure]:
    """How well heads look where they should, on strips other than those they were ranked on."""
    found = {}
    diagonal, routing = scores.diagonal(), scores.routing().mean(1)
    tops = {name: [heads[:10] for heads in draws] for name, draws in sets.named().items()}
    tops["gaze"] = [tuple(ranking.sites(min(10, len(ranking))))]
    for name, draws in tops.items():
        tail = "" if name == "gaze" else f"_{name}"
        who = "ten best-ranked heads" if name == "gaze" else f"up to ten heads of: {HEADS[name]}"
        for key, table, what in (
            ("diagonal_score_top10", diagonal, "attention mass on the panel asked for, at the last prompt token"),
            (
                "routing_accuracy_best",
                routing,
                "share of questions in which the panel asked for gets the most attention of all panels",
            ),
        ):
            chosen = [heads[:1] for heads in draws] if key.startswith("routing") and name == "gaze" else draws
            told = f"{what}, mean over {'the best-ranked head' if chosen is not draws else who}, on test strips"
            values = np.array([_of(table, heads) for heads in chosen if heads])
            if not len(values):
                found[key + tail] = missing("no head has a score in the lowest 5 % outside the top K", told)
            elif len(values) == 1:
                found[key + tail] = measure(estimate(values[0], seed=seed), told)
            else:
                found[key + tail] = measure(mean_over_draws(values, seed=seed), told)
    again, route = published.diagonal(), published.routing().mean(1)
    best = ranking.sites(1)
    heads = tuple(ranking.sites(min(10, len(ranking))))
    found["diagonal_score_top10_as_published"] = measure(
        estimate(_of(again, heads), seed=seed), "the same on the very strips the heads were ranked on, which favours them"
    )
    found["routing_accuracy_best_as_published"] = measure(
        estimate(_of(route, best), seed=seed), "the same on the very strips the heads were ranked on, which favours them"
    )
    return found


def _of(table: Array, heads: Sequence[Site]) -> Array:
    """Per picture, mean over heads of a (picture, layer, head) table."""
    found: Array = np.mean([table[:, site.layer, site.head] for site in heads], axis=0)
    return found


def shares(sets: HeadSets, total: int) -> dict[str, Measure]:
    """How many heads each set really turns, as a share of all."""
    found = {}
    for name, draws in sets.named().items():
        counts = [len(heads) for heads in draws]
        tail = "" if name == "gaze" else f"_{name}"
        told = f"number of heads turned, as a share of all {total}; {HEADS[name]}"
        found[f"k_share_of_heads{tail}"] = Measure(
            value=float(np.mean(counts)) / total, n=total, ci95=None, definition=told, reason="a count, not an estimate"
        )
    return found
