"""What the study measures: each number with its definition, interval and control."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mediant.core.result import Measure
from mediant.measures.effects import cluster_labels
from mediant.measures.intervals import Array, Estimate, estimate, estimate_ratio, mean_over_draws
from mediant.runs.folder import Json
from mediant.studies.activation_patching.config import Config
from mediant.studies.activation_patching.task import Data

ENOUGH = 5.0
CONTROLS = {
    "top_heads_effect": "layer_matched_heads_effect",
    "strongest_head_effect": "layer_matched_heads_effect",
    "top_heads_share": "top_heads_share_layer_matched",
    "sufficiency_top10": "sufficiency_layer_matched",
    "generality_heldout_template": "generality_layer_matched",
    "selectivity_kl": "selectivity_kl_layer_matched",
}
JOINT = "Mean change of {metric} when the counterfactual's values are written into the outputs of "
KL = "Mean KL divergence (nats per token) on unrelated sentences when {what} are mean-ablated; low is selective."
DEFINITIONS = {
    "accuracy": "Share of pairs whose answer is likelier than the counterfactual answer (chance 0.5).",
    "argmax_accuracy": "Share of pairs whose answer is what greedy decoding gives.",
    "total_effect": "Mean of {metric} on the counterfactual prompt minus on the clean prompt.",
    "top_heads_effect": JOINT + "the top {k} heads together (natural indirect effect).",
    "random_heads_effect": JOINT + "{k} heads drawn at random from the others; mean of {draws} draws.",
    "layer_matched_heads_effect": JOINT + "other heads, as many per layer as the top {k} have; mean of {draws} draws.",
    "all_heads_effect": JOINT + "every head of the model.",
    "strongest_head_effect": JOINT + "the first-ranked head alone.",
    "top_heads_share": "Effect of the top {k} heads as a share of the total effect (1 = all of it).",
    "top_heads_share_layer_matched": "The same for other heads, as many per layer; mean of {draws} draws.",
    "sufficiency_top10": "Share of the total effect restored when the clean values of the top {k} heads are written into the "
    "counterfactual run.",
    "sufficiency_layer_matched": "The same for other heads, as many per layer; mean of {few} draws.",
    "generality_heldout_template": "Effect of the top {k} heads as a share of the total effect, on templates used nowhere else.",
    "generality_layer_matched": "The same for other heads, as many per layer; mean of {few} draws.",
    "accuracy_heldout_template": "Accuracy on the held-out templates.",
    "selectivity_kl": KL.replace("{what}", "the top {k} heads"),
    "selectivity_kl_layer_matched": KL.replace("{what}", "as many other heads per layer"),
}


@dataclass(frozen=True)
class Measuring:
    """Turns per-pair numbers into measures."""

    config: Config
    data: Data

    def all(self, confirmed: Json, heldout: Json, disturbed: Array) -> dict[str, Measure]:
        """Every measure of the study."""
        clusters, seed = cluster_labels([p.template for p in self.data.confirm]), self.config.seed
        effects, restored, total = confirmed["effects"], confirmed["restored"], confirmed["total"]

        def mean(values: Array) -> Estimate:
            return estimate(values, clusters=clusters, seed=seed)

        def drawn(values: Array) -> Estimate:
            return mean_over_draws(values, clusters=clusters, seed=seed)

        found = {
            "accuracy": mean(confirmed["preferred"]),
            "argmax_accuracy": mean(confirmed["greedy"]),
            "total_effect": mean(total),
            "top_heads_effect": mean(effects["top"][0]),
            "random_heads_effect": drawn(effects["random"]),
            "layer_matched_heads_effect": drawn(effects["layer_matched"]),
            "all_heads_effect": mean(effects["all"][0]),
            "strongest_head_effect": mean(effects["strongest"][0]),
            "top_heads_share": estimate_ratio(effects["top"][0], total, clusters=clusters, seed=seed),
            "top_heads_share_layer_matched": _share(effects["layer_matched"], total, clusters, seed),
            "sufficiency_top10": estimate_ratio(restored["top"][0], restored["total"][0], clusters=clusters, seed=seed),
            "sufficiency_layer_matched": _share(restored["layer_matched"], restored["total"][0], clusters, seed),
        }
        measures = {name: self._measure(name, value) for name, value in found.items()} | self._heldout(heldout)
        measures["selectivity_kl"] = self._measure("selectivity_kl", estimate(disturbed[0], seed=seed))
        control = "selectivity_kl_layer_matched"
        return measures | {control: self._measure(control, mean_over_draws(disturbed[1:], seed=seed))}

    def _heldout(self, heldout: Json) -> dict[str, Measure]:
        """Do the heads matter as much on templates, and words, that were never looked at?"""
        if not heldout:
            return {"generality_heldout_template": self._measure("generality_heldout_template", None, self.data.heldout_reason)}
        clusters, seed = cluster_labels([p.template for p in self.data.heldout]), self.config.seed
        effects, total = heldout["effects"], heldout["total"]
        found = {
            "generality_heldout_template": estimate_ratio(effects["top"][0], total, clusters=clusters, seed=seed),
            "generality_layer_matched": _share(effects["layer_matched"], total, clusters, seed),
            "accuracy_heldout_template": estimate(heldout["preferred"], clusters=clusters, seed=seed),
        }
        return {name: self._measure(name, value) for name, value in found.items()}

    def _measure(self, name: str, found: Estimate | None, reason: str | None = None) -> Measure:
        definition = DEFINITIONS[name].format(
            metric=self.data.metric, k=self.config.top_k, draws=self.config.random_draws, few=self.config.control_draws
        )
        control = CONTROLS.get(name)
        if found is None:
            return Measure(value=None, n=0, ci95=None, definition=definition, control=None, reason=reason)
        if found.n < 2:
            reason = "a single pair has no interval"
        ci95 = found.ci95 if found.n > 1 else None
        return Measure(value=found.value, n=found.n, ci95=ci95, definition=definition, control=control, reason=reason)


def _share(draws: Array, total: Array, clusters: Sequence[str] | None, seed: int) -> Estimate:
    """Share of the total effect, averaged over random draws item by item."""
    return estimate_ratio(np.asarray(draws).mean(0), total, clusters=clusters, seed=seed)


def verdict(measures: dict[str, Measure]) -> str:
    """One sentence on whether the chosen heads beat their layer-matched control by `ENOUGH`, and if not, why."""
    top, control = measures["top_heads_effect"].value, measures["layer_matched_heads_effect"].value
    if top is None or control is None:
        raise ValueError("these two measures are always given")
    if control == 0:
        return (
            "Control missing: writing into other heads of the same layers changed nothing at all, so either there are none "
            "beside the chosen ones or they cannot matter; choose fewer heads."
        )
    ratio = abs(top) / abs(control)
    numbers = f"the top heads' joint effect is {top:+.2f}, that of layer-matched other heads {control:+.2f}"
    if ratio >= ENOUGH:
        return f"Control: {numbers}, {ratio:.1f} times smaller."
    return (
        f"Control failed: {numbers}, only {ratio:.1f} times smaller. What the layers do is then not concentrated in the chosen "
        "heads: other heads of the same layers carry a good part of it, or parts of opposite sign cancel inside the chosen set."
    )
