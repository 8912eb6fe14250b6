"""What the study measures: each number with its definition, interval and control."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mediant.core.result import Measure
from mediant.measures.completeness import incompleteness, needed
from mediant.measures.effects import cluster_labels
from mediant.measures.faithfulness import PROPORTIONS, cmd, cpr, has_room, normalised, size_at
from mediant.measures.intervals import Array, Estimate, estimate, resamples
from mediant.studies.positional_circuits.config import Config
from mediant.studies.positional_circuits.method import Curve, flat, joined, spread
from mediant.studies.positional_circuits.task import Data

DRAWS = 1000
AT = " at which hard faithfulness reaches {t:g}, between measured sizes on the log axis"
DEFINITIONS = {
    "accuracy": "Share of pairs whose answer is likelier than the counterfactual answer (chance 0.5).",
    "argmax_accuracy": "Share of pairs whose answer is what greedy decoding gives.",
    "full_metric": "Mean {metric} of the whole model.",
    "empty_metric": "Mean {metric} of the empty circuit, which is the ablated run ({ablation}) with the clean answers.",
    "edges_positional_at_0.8": "Concrete edges (between single tokens, mean over pairs) of the positional circuit" + AT + ".",
    "edges_nonpositional_at_0.8": "The same for circuits that hold at all positions alike; all crossing edges stay and count.",
    "edge_ratio_at_0.8": "Non-positional over positional concrete edges; above 1, positions save edges.",
    "abstract_edge_ratio_at_0.8": "The same, counting edges between nodes at spans; q, k and v of a head are one.",
    "edge_ratio_without_crossing_at_0.8": "The same in concrete edges, leaving edges between positions out of both counts.",
    "edges_shuffled_at_0.8": "Concrete edges of circuits whose spans' names were dealt out anew in every prompt" + AT + ".",
    "edge_ratio_shuffled_spans": "Shuffled over true spans, in concrete edges; above 1, the schema carries information.",
    "soft_at_0.8": "Mean {metric} of the positional circuit over the whole model's, at the first size with hard >= {t:g}.",
    "normalised_at_0.8": "The same measured from the empty circuit.",
    "cpr": "Area under normalised faithfulness over the share of edges kept (linear axis), edges ranked by helpfulness.",
    "cmd": "Area between normalised faithfulness and 1 over the share of edges kept (linear axis), edges ranked by |score|.",
    "cpr_log": "CPR over the logarithm of the share, divided by its length.",
    "cmd_log": "CMD over the logarithm of the share, divided by its length.",
    "cpr_random": "CPR of circuits grown from random scores, a new draw per batch of pairs ({draws} draws).",
    "cmd_random": "CMD of circuits grown from random scores, a new draw per batch of pairs ({draws} draws).",
    "incompleteness_at_0.8": "Mean |difference| of {metric} between the positional circuit (first size with hard >= {t:g}) "
    "and the whole model, both without the same random tenth of its nodes, over what the model does; 0 is complete.",
    "incompleteness_empty": "The same for the empty circuit.",
    "needed_nodes_at_0.8": "Share of sampled nodes of that circuit without which its {metric} changes by at least 1 % of what "
    "the model does.",
    "stability_jaccard_at_0.8": "Mean Jaccard overlap of the positional circuits of two resamples of the discovery pairs, at the "
    "size where hard faithfulness reaches {t:g}.",
}
CONTROLS = {
    "edges_positional_at_0.8": "edges_shuffled_at_0.8",
    "edge_ratio_at_0.8": "edge_ratio_shuffled_spans",
    "cpr": "cpr_random",
    "cmd": "cmd_random",
    "incompleteness_at_0.8": "incompleteness_empty",
}
Statistic = Callable[[Array], float]


@dataclass(frozen=True, eq=False)
class Measuring:
    """Turns one task's records into measures."""

    config: Config
    data: Data
    records: Sequence[dict[str, object]]
    curves: dict[str, Curve]
    overlaps: Sequence[float] = ()
    parts: Sequence[dict[str, object]] = ()

    def all(self) -> dict[str, Measure]:
        """Every measure of the task."""
        simple = {
            "accuracy": estimate(flat(self.records, "preferred"), clusters=self.clusters, seed=self.config.seed),
            "argmax_accuracy": estimate(flat(self.records, "greedy"), clusters=self.clusters, seed=self.config.seed),
            "full_metric": estimate(self.full, clusters=self.clusters, seed=self.config.seed),
            "empty_metric": estimate(self.empty, clusters=self.clusters, seed=self.config.seed),
        }
        measures = {name: self._measure(name, found) for name, found in simple.items()}
        if not has_room(self.full, self.empty):
            reason = "whole model and empty circuit differ by less than 0.2 of the difference's own spread: no verdict"
            return measures | {name: self._measure(name, None, reason) for name in DEFINITIONS if name not in measures}
        stable = {"stability_jaccard_at_0.8": self._stability()}
        return measures | self._sizes() | self._at_threshold() | self._areas() | stable | self._parts()

    @property
    def full(self) -> Array:
        """Metric of the whole model per pair."""
        return flat(self.records, "full")

    @property
    def empty(self) -> Array:
        """Metric of the empty circuit per pair."""
        return flat(self.records, "empty")

    @property
    def clusters(self) -> list[str] | None:
        """Templates, which pairs are resampled by."""
        return cluster_labels([p.template for p in self.data.evaluation])

    def size(self, kind: str, sizes: Sequence[float], items: Array) -> float:
        """Size at the threshold over some pairs; not a number where it is never reached."""
        hits = joined(self.records, kind, "agrees")[:, items].mean(1)
        rising = np.maximum.accumulate(np.asarray(sizes) + 1e-6 * np.arange(len(sizes)))
        found = size_at(rising.tolist(), hits.tolist(), self.config.threshold)
        return float("nan") if found is None else found

    def asked_at_threshold(self) -> int | None:
        """Edges asked of the positional search where the threshold is reached, between measured sizes."""
        hits = joined(self.records, "positional", "agrees").mean(1)
        found = size_at(self.curves["positional"].asked(), hits.tolist(), self.config.threshold)
        return None if found is None else round(found)

    def first_at_threshold(self, kind: str = "positional") -> int | None:
        """First measured size with the hard faithfulness asked for."""
        hits = joined(self.records, kind, "agrees").mean(1)
        reached = np.flatnonzero(hits >= self.config.threshold)
        return int(reached[0]) if len(reached) else None

    def _sizes(self) -> dict[str, Measure]:
        c = self.curves
        of = {
            "concrete": {k: c[k].concrete() for k in ("positional", "nonpositional", "shuffled")},
            "abstract": {k: c[k].abstract() for k in ("positional", "nonpositional")},
            "within": {k: c[k].concrete(crossing=False) for k in ("positional", "nonpositional")},
        }

        def ratio(count: str, above: str, below: str = "positional") -> Statistic:
            return lambda i: self.size(above, of[count][above], i) / self.size(below, of[count][below], i)

        asked: dict[str, Statistic] = {
            "edges_positional_at_0.8": lambda i: self.size("positional", of["concrete"]["positional"], i),
            "edges_nonpositional_at_0.8": lambda i: self.size("nonpositional", of["concrete"]["nonpositional"], i),
            "edge_ratio_at_0.8": ratio("concrete", "nonpositional"),
            "abstract_edge_ratio_at_0.8": ratio("abstract", "nonpositional"),
            "edge_ratio_without_crossing_at_0.8": ratio("within", "nonpositional"),
            "edges_shuffled_at_0.8": lambda i: self.size("shuffled", of["concrete"]["shuffled"], i),
            "edge_ratio_shuffled_spans": ratio("concrete", "shuffled"),
        }
        return {name: self._measure(name, self._resampled(statistic)) for name, statistic in asked.items()}

    def _at_threshold(self) -> dict[str, Measure]:
        place = self.first_at_threshold()
        if place is None:
            reason = "no measured circuit reaches the threshold"
            return {name: self._measure(name, None, reason) for name in ("soft_at_0.8", "normalised_at_0.8")}
        metric = joined(self.records, "positional", "metric")[place]
        found = {
            "soft_at_0.8": self._resampled(lambda i: float(metric[i].mean() / self.full[i].mean())),
            "normalised_at_0.8": self._resampled(lambda i: normalised(metric[i], self.full[i], self.empty[i])),
        }
        return {name: self._measure(name, value) for name, value in found.items()}

    def _areas(self) -> dict[str, Measure]:
        asked: dict[str, Statistic] = {}
        for name, kind, area in (("cpr", "helpful", cpr), ("cmd", "nonpositional", cmd)):
            for suffix, log in (("", False), ("_log", True)):
                asked[name + suffix] = lambda i, k=kind, a=area, g=log: a(PROPORTIONS, self._faithfulness(k, i), log=g)  # type: ignore[misc]
            asked[f"{name}_random"] = lambda i, a=area: a(PROPORTIONS, self._faithfulness("random", i))  # type: ignore[misc]
        return {name: self._measure(name, self._resampled(statistic)) for name, statistic in asked.items()}

    def _faithfulness(self, kind: str, items: Array) -> list[float]:
        metric, full, empty = joined(self.records, kind, "metric"), self.full[items], self.empty[items]
        return [normalised(row[items], full, empty) for row in metric]

    def _parts(self) -> dict[str, Measure]:
        names = ("incompleteness_at_0.8", "incompleteness_empty", "needed_nodes_at_0.8")
        place = self.first_at_threshold()
        if place is None or not self.parts:
            return {name: self._measure(name, None, "no measured circuit reaches the threshold") for name in names}
        without, model, single = (
            np.concatenate([np.asarray(part[name]) for part in self.parts], axis=1) for name in ("circuit", "model", "single")
        )
        at = spread(len(self.full), self.config.n_parts)
        full, empty, alone = self.full[at], self.empty[at], joined(self.records, "positional", "metric")[place, at]
        asked: tuple[Statistic, ...] = (
            lambda i: incompleteness(without[:, i], model[:, i], full[i], empty[i]),
            lambda i: incompleteness(np.broadcast_to(empty[i], model[:, i].shape), model[:, i], full[i], empty[i]),
            lambda i: needed(single[:, i], alone[i], full[i], empty[i]),
        )
        return {name: self._measure(name, self._resampled(one, at)) for name, one in zip(names, asked, strict=True)}

    def _stability(self) -> Measure:
        values = np.asarray(self.overlaps)
        if not len(values):
            return self._measure("stability_jaccard_at_0.8", None, "no measured circuit reaches the threshold")
        low, high = np.percentile(values, [2.5, 97.5])
        return Measure(
            value=float(values.mean()), n=len(self.data.discovery), ci95=(float(low), float(high)),
            definition=self._definition("stability_jaccard_at_0.8"), control=None,
            reason="the interval is of the overlaps of pairs of circuits",
        )  # fmt: skip

    def _resampled(self, statistic: Statistic, at: Sequence[int] | None = None) -> Estimate | None:
        """The statistic over all pairs, or some, and its percentile interval over resamples of them."""
        at = range(len(self.full)) if at is None else at
        n, clusters = len(at), self.clusters and [self.clusters[i] for i in at]
        value = statistic(np.arange(n))  # type: ignore[arg-type]
        if not np.isfinite(value):
            return None
        drawn = [statistic(i) for i in resamples(n, clusters, draws=DRAWS, seed=self.config.seed)]  # type: ignore[arg-type]
        finite = [x for x in drawn if np.isfinite(x)]
        low, high = np.percentile(finite, [2.5, 97.5])
        return Estimate(value, (float(low), float(high)), n)

    def _definition(self, name: str) -> str:
        return DEFINITIONS[name].format(
            metric=self.data.metric, t=self.config.threshold, ablation=self.config.ablation, draws=len(self.records)
        )

    def _measure(self, name: str, found: Estimate | None, reason: str | None = None) -> Measure:
        definition, control = self._definition(name), CONTROLS.get(name)
        if found is None:
            reason = reason or f"hard faithfulness {self.config.threshold:g} is not reached at any measured size"
            return Measure(value=None, n=0, ci95=None, definition=definition, control=control, reason=reason)
        return Measure(value=found.value, n=found.n, ci95=found.ci95, definition=definition, control=control)


def verdict(name: str, measures: dict[str, Measure]) -> str:
    """Whether the paper's claim holds here, in all three ways of counting."""
    ratios = {
        "concrete edges": measures["edge_ratio_at_0.8"],
        "edges between spans": measures["abstract_edge_ratio_at_0.8"],
        "concrete edges without crossing ones": measures["edge_ratio_without_crossing_at_0.8"],
    }
    said = []
    for what, m in ratios.items():
        if m.value is None or m.ci95 is None:
            said.append(f"{what}: undecided ({m.reason})")
            continue
        better = "fewer" if m.ci95[0] > 1 else "more" if m.ci95[1] < 1 else "neither clearly fewer nor more"
        said.append(f"{what}: positions need {better} (ratio {m.value:.2f} [{m.ci95[0]:.2f}, {m.ci95[1]:.2f}])")
    control = measures["edge_ratio_shuffled_spans"]
    if control.value is None or control.ci95 is None:
        said.append(f"shuffled spans: undecided ({control.reason})")
    else:
        lost = "lose, as they must" if control.ci95[0] > 1 else "do not clearly lose, so the schema is not what helps"
        said.append(f"shuffled spans {lost} (ratio {control.value:.2f} [{control.ci95[0]:.2f}, {control.ci95[1]:.2f}])")
    return f"{name}: " + "; ".join(said) + "."
