"""The report card of a cell: faithfulness, sparsity, generality, selectivity, stability, cost; and of each row's control."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mediant.core.result import Measure
from mediant.measures.effects import cluster_labels
from mediant.measures.faithfulness import size_at
from mediant.measures.intervals import Array, Estimate, estimate, estimate_ratio, mean_over_draws, resamples
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.data import Data
from mediant.studies.mediation.method import Entry, compared

SHARE = "Share of the total effect that comes with the counterfactual's values of {what}"
DEFINITIONS = {
    "faithfulness": SHARE + ", on pairs no search saw (1 = all of it).",
    "generality": "The same on sentence frames and words used nowhere else.",
    "leak": "The same between prompts in one frame that share the variable and differ in the words around it; a mediator of the "
    "variable alone leaks nothing.",
    "disturbance": "Mean KL divergence (nats) of the next token of unrelated sentences when {what} get another's values.",
    "sparsity": "Share of all units of the kind that carries {enough:.0%} of the total effect, on validation pairs.",
    "over_random": "Faithfulness of {what} less that of as many random ones, pair by pair; above 0 where something was found.",
    "stability": "Overlap of {what} found on either half of the discovery pairs (Jaccard; of subspaces, mean squared cosine).",
    "forwards": "Prompts run forward to find them, a whole forward of one discovery prompt being 1.",
    "backwards": "Of these, prompts that gradients were taken of.",
}
IIA = {
    "das_iia": "Share of pairs that prefer the counterfactual's answer when a subspace learned by DAS has its values.",
    "das_iia_heldout": "The same on held-out frames and words.",
    "das_iia_shuffled_answers": "The same of a subspace learned towards answers that are the counterfactual's or the clean "
    "prompt's by the toss of a coin; against the true ones.",
    "das_iia_random_weights": "The same search on the same architecture with random weights: what DAS makes of nothing.",
    "das_iia_over_random_weights": "Share of pairs turned on the trained weights less that on random weights, pair by pair.",
}
WORSE = "Not shown to be better than random"
CONTROLS = ("faithfulness", "generality", "leak", "disturbance")
# Set of pairs behind each of them.
SETS = {"faithfulness": "judged", "over_random": "judged", "generality": "heldout", "leak": "other", "disturbance": "texts"}


@dataclass(frozen=True)
class Tried:
    """What exchanges did, one row per entry or random draw.

    Attributes:
        entries: set of pairs -> entry's name -> change per pair (of texts: nats).
        random: set of pairs -> kind -> (draw, pair).
        total: set of pairs -> total effect per pair.
        curves: entry's name -> (size, validation pair).
        ladders: entry's name -> sizes.
    """

    entries: Mapping[str, Mapping[str, Array]]
    random: Mapping[str, Mapping[str, Array]]
    total: Mapping[str, Array]
    curves: Mapping[str, Array]
    ladders: Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Measuring:
    """Turns numbers per pair into measures."""

    config: Config
    data: Data[Any]
    definitions: Mapping[str, str]

    def all(self, entries: Sequence[Entry], tried: Tried, controls: Mapping[str, Sequence[float]]) -> dict[str, Measure]:
        """Every measure of the study."""
        found = {}
        for entry in entries:
            for what in DEFINITIONS:
                found[f"{entry.name}_{what}"] = self._empty(entry, what) if entry.reason else self._of(entry, what, tried)
        for kind in dict.fromkeys(entry.kind for entry in entries):
            for what in CONTROLS:
                found[f"{kind}_random_{what}"] = self._random(kind, what, tried)
        if "das_iia_random_weights" in controls:
            over = np.subtract(controls["das_iia"], controls["das_iia_random_weights"])
            controls = {**controls, "das_iia_over_random_weights": over.tolist()}
        for name, hits in controls.items():
            control = None if name.endswith(("random_weights", "shuffled_answers")) else "das_iia_random_weights"
            clusters = cluster_labels([p.template for p in (self.data.heldout if name.endswith("heldout") else self.data.judged)])
            one = estimate(hits, clusters=clusters, seed=self.config.seed)
            found[name] = Measure(value=one.value, n=one.n, ci95=one.ci95, definition=IIA[name], control=control)
        return found

    def _text(self, what: str) -> str:
        return self.definitions.get(what, DEFINITIONS[what])

    def _of(self, entry: Entry, what: str, tried: Tried) -> Measure:
        definition = self._text(what).format(what=f"the units found by {entry.search.name}", enough=self.config.enough)
        if what in CONTROLS:
            control, values = f"{entry.kind}_random_{what}", tried.entries[SETS[what]].get(entry.name)
            if values is None:
                reason = self.data.missing[SETS[what]]
                return Measure(value=None, n=0, definition=definition, control=control, reason=reason)
            one = self._share(what, values, tried)
            return Measure(value=one.value, n=one.n, ci95=one.ci95, definition=definition, control=control)
        if what == "sparsity":
            return self._sparsity(entry, tried, definition)
        if what == "over_random":
            table = tried.entries["judged"][entry.name] - tried.random["judged"][entry.kind]
            one = self._over_draws(what, table, tried)
            return Measure(value=one.value, n=one.n, ci95=one.ci95, definition=definition)
        n = len(self.data.discovery)
        if what == "stability":
            reason = "of one split into halves, so it has no interval"
            return Measure(value=entry.stability, n=n, definition=definition, reason=reason)
        cost = entry.forwards if what == "forwards" else entry.backwards
        return Measure(value=cost, n=n, definition=definition, reason="counted, so it has no interval")

    def _share(self, what: str, values: Array, tried: Tried) -> Estimate:
        pairs = self.data.sets[SETS[what]]
        clusters, seed = cluster_labels([pair.template for pair in pairs]), self.config.seed
        if what == "disturbance":
            return estimate(values, seed=seed)
        return estimate_ratio(values, tried.total[SETS[what]], clusters=clusters, seed=seed)

    def _random(self, kind: str, what: str, tried: Tried) -> Measure:
        definition = self._text(what).format(what=f"as many units drawn at random, {self.config.random_draws} times")
        table = tried.random[SETS[what]].get(kind)
        if table is None:
            return Measure(value=None, n=0, definition=definition, reason=self.data.missing[SETS[what]])
        one = self._over_draws(what, table, tried)
        return Measure(value=one.value, n=one.n, ci95=one.ci95, definition=definition)

    def _over_draws(self, what: str, table: Array, tried: Tried) -> Estimate:
        """Mean of a (draw, pair) table, as a share of the total effect where it is one."""
        name = SETS[what]
        total = None if what == "disturbance" else tried.total[name]
        clusters = cluster_labels([pair.template for pair in self.data.sets[name]])
        return mean_over_draws(table, total, clusters=clusters, seed=self.config.seed)

    def _sparsity(self, entry: Entry, tried: Tried, definition: str) -> Measure:
        assert entry.among is not None  # noqa: S101 - empty entries have no curve
        ladder, table, total = tried.ladders[entry.name], tried.curves[entry.name], tried.total["validation"]
        n, whole = table.shape[1], entry.among.n_units

        def size(rows: npt.NDArray[np.integer[Any]]) -> float | None:
            shares = table[:, rows].mean(1) / total[rows].mean()
            return size_at(ladder, shares.tolist(), self.config.enough)

        found = size(np.arange(n))
        if found is None:
            reason = f"{ladder[-1]} units, the largest set tried, carry less than {self.config.enough:.0%}"
            return Measure(value=None, n=n, definition=definition, reason=reason)
        drawn = [size(rows) for rows in resamples(n, None, draws=500, seed=self.config.seed)]
        reached = [one for one in drawn if one is not None]
        if len(reached) < 0.975 * len(drawn):
            reason = f"reached in {len(reached) / len(drawn):.0%} of resamples only, so it has no interval"
            return Measure(value=found / whole, n=n, definition=definition, reason=reason)
        low, high = np.percentile(reached, [2.5, 97.5])
        return Measure(value=found / whole, n=n, ci95=(float(low) / whole, float(high) / whole), definition=definition)

    def _empty(self, entry: Entry, what: str) -> Measure:
        definition = self._text(what).format(what=f"the units found by {entry.search.name}", enough=self.config.enough)
        return Measure(value=None, n=0, definition=definition, reason=entry.reason)


def leading(entries: Sequence[Entry], tried: Tried, config: Config) -> Entry:
    """The most faithful of several searches on validation pairs; those it is judged on would flatter whatever they chose."""

    def carried(entry: Entry) -> float:
        at = list(tried.ladders[entry.name]).index(compared(config, entry))
        return float(tried.curves[entry.name][at].mean() / tried.total["validation"].mean())

    return max(entries, key=carried)


def plural(kind: str) -> str:
    """What several units of a kind are called."""
    return "axes" if kind == "axis" else f"{kind}s"


def beats(measures: Mapping[str, Measure], entry: Entry) -> bool:
    """Whether a cell carries more than as many random units, pair by pair, with its whole interval."""
    over = measures[f"{entry.name}_over_random"]
    return over.ci95 is not None and over.ci95[0] > 0


def verdicts(measures: Mapping[str, Measure], entries: Sequence[Entry]) -> list[str]:
    """What the controls say, in sentences."""
    ran = [entry for entry in entries if not entry.reason]
    lost = [f"{entry.search.name} of {plural(entry.kind)}" for entry in ran if not beats(measures, entry)]
    said = [f"{len(ran) - len(lost)} of {len(ran)} searches carry more than as many random units of their kind."]
    if lost:
        said.append(f"{WORSE}: {', '.join(lost)}.")
    if "das_iia" in measures:
        said.append(_das(measures))
    return said


def _das(measures: Mapping[str, Measure]) -> str:
    own, none, over = (measures[name] for name in ("das_iia", "das_iia_random_weights", "das_iia_over_random_weights"))
    assert over.ci95 is not None  # noqa: S101 - it is given
    assert over.value is not None  # noqa: S101 - it is given
    low, high = over.ci95
    said = f"DAS turns {own.value:.2f} of the answers here and {none.value:.2f} in the same architecture with random weights"
    if low > 0:
        return f"{said}: {over.value:.2f} more, pair by pair ({low:.2f} to {high:.2f})."
    verdict = "leaves it open whether that is more" if high > 0 else "says that it is no more"
    return (
        f"Control failed: {said}, where nothing was learned; {over.value:+.2f} pair by pair, and an interval of {low:+.2f} to "
        f"{high:+.2f} {verdict}. What it found may be of its own making."
    )
