"""Does a circuit do what the model does? Every edge outside it takes the counterfactual run's value, or another ablation's.

    bench = CircuitBench(lm, pairs, spans=schema)
    found = bench.run(circuit)                       # one forward: metric and agreement per pair
    hard(found.agrees), soft(found.metric, bench.full), normalised(found.metric, bench.full, bench.empty)

    hard        share of items whose answer (argmax at the last position) is the whole model's
    soft        mean m(C) / mean m(model)
    normalised  (m(C) - m(empty)) / (m(model) - m(empty)), means over items

All three are of means, never means of per-item ratios (Hanna et al. 2024; Mueller et al. 2025; Haklay et al. 2025 prefer
hard). CPR and CMD are areas under and beside the normalised curve over the share of edges kept (Mueller et al. 2025).
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mediant.core.circuit import Circuit, SpanSizes
from mediant.core.errors import OutOfRange, TaskError
from mediant.core.pair import Pair
from mediant.core.span import Span
from mediant.interventions.execute import run
from mediant.interventions.gates import Gates, run_gated
from mediant.interventions.nodes import TokenOrder
from mediant.measures.ablation import COUNTERFACTUAL, Ablation, ablated_run
from mediant.measures.intervals import Array
from mediant.measures.metrics import Metric, Outcome, metric
from mediant.subject import Subject
from mediant.tasks.encode import PairBatch, encode

PROPORTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, eq=False)
class CircuitOutcome:
    """One circuit on one batch of pairs: the metric, and whether the answer is the model's, per pair."""

    metric: Array
    agrees: Array


class CircuitBench:
    """A batch of pairs on which circuits are run, each in a single forward.

    Attributes:
        full, empty: metric of the whole model, and of the ablated run (by default the counterfactual's) with the clean answers.
        tokens: which tokens belong to which span.
    """

    def __init__(
        self,
        subject: Subject,
        pairs: Sequence[Pair],
        *,
        spans: Sequence[Span | str] | None = None,
        by: str | Metric = "logit_diff",
        order: Callable[[PairBatch], TokenOrder] | None = None,
        ablation: Ablation = COUNTERFACTUAL,
    ) -> None:
        self.ablation = ablation
        self.subject, self.pairs, self.metric = subject, encode(subject, pairs), metric(by)
        self.tokens = order(self.pairs) if order is not None else TokenOrder.of(self.pairs.base, spans)
        with torch.no_grad():
            clean = Outcome(self.pairs, run(subject, self.pairs.base, keep=self.pairs.keep).logits)
        with_attention = spans is not None or order is not None
        self._different = self._where_different()
        self.ablated = ablated_run(subject, self.pairs, self._different, ablation, with_attention=with_attention)
        self.full, self.best = self._measured(clean), clean.logits.argmax(-1)
        nothing = Outcome(self.pairs, self.ablated.logits)
        self.empty, self.empty_agrees = self._measured(nothing), (nothing.logits.argmax(-1) == self.best).double().cpu().numpy()
        self.greedy_right: Array = clean.greedy_right.double().cpu().numpy()
        self.preferred: Array = clean.preferred.double().cpu().numpy()

    def run(self, circuit: Circuit) -> CircuitOutcome:
        """One forward of a circuit."""
        with torch.no_grad():
            logits = run_gated(
                self.subject, self.pairs.base, self._different, gates_of(circuit), self.ablated, keep=self.pairs.keep
            )
        outcome = Outcome(self.pairs, logits)
        return CircuitOutcome(self._measured(outcome), (outcome.logits.argmax(-1) == self.best).double().cpu().numpy())

    def by_spans(self, order: Callable[[PairBatch], TokenOrder] | None = None) -> "CircuitBench":
        """The same pairs and the same two runs, for circuits of another schema; without one, for all tokens alike."""
        twin = copy(self)
        twin.tokens = order(self.pairs) if order is not None else TokenOrder.of(self.pairs.base)
        twin._different = twin._where_different()
        twin.ablated = self.ablated.reordered(self._different, twin._different)
        return twin

    def _where_different(self) -> TokenOrder:
        # Before the first different token a pair's two runs are equal, whatever the gates.
        return self.tokens.after(self.pairs.first_difference) if self.ablation.pairwise else self.tokens

    def sizes(self) -> list[SpanSizes]:
        """Tokens per span, and pairs of tokens per pair of spans, of every row."""
        return [span_sizes(row, self.tokens.n_spans) for row in self.tokens.span_of[:: self.pairs.rows_per_pair]]

    def _measured(self, outcome: Outcome) -> Array:
        return np.asarray(self.metric(outcome).double().cpu().numpy())


def gates_of(circuit: Circuit) -> Gates:
    """Gates that are open where the circuit has an edge."""
    crossing = None if circuit.crossing is None else torch.from_numpy(circuit.crossing).float()
    return Gates(torch.from_numpy(circuit.within).float(), crossing)


def span_sizes(span_of: Tensor, n_spans: int) -> SpanSizes:
    """Sizes for one row of span numbers (-1: padding)."""
    real = span_of[span_of >= 0].cpu().numpy()
    hot = np.eye(n_spans)[real]
    earlier = np.tril(np.ones((len(real), len(real))))
    return SpanSizes(hot.sum(0), hot.T @ earlier @ hot)


def mean_sizes(sizes: Sequence[SpanSizes]) -> SpanSizes:
    """Average over items."""
    return SpanSizes(np.mean([s.tokens for s in sizes], 0), np.mean([s.pairs for s in sizes], 0))


def hard(agrees: Array) -> float:
    """Share of items whose answer is the whole model's."""
    return float(np.mean(agrees))


def soft(of_circuit: Array, full: Array) -> float:
    """Ratio of mean metrics."""
    return float(np.mean(of_circuit) / np.mean(full))


def normalised(of_circuit: Array, full: Array, empty: Array) -> float:
    """Share of the way from the empty circuit's mean metric to the model's."""
    return float((np.mean(of_circuit) - np.mean(empty)) / (np.mean(full) - np.mean(empty)))


def has_room(full: Array, empty: Array) -> bool:
    """Whether model and empty circuit differ by at least 0.2 of the differences' own spread; below, faithfulness is noise."""
    difference = np.asarray(full) - np.asarray(empty)
    return bool(abs(difference.mean()) >= 0.2 * difference.std())


def cpr(proportions: Sequence[float], faithfulness: Sequence[float], *, log: bool = False) -> float:
    """Area under faithfulness over the share of edges kept, by trapezoids; on the log axis divided by its length."""
    return _area(proportions, np.asarray(faithfulness, dtype=float), log=log)


def cmd(proportions: Sequence[float], faithfulness: Sequence[float], *, log: bool = False) -> float:
    """Area between faithfulness and 1."""
    return _area(proportions, np.abs(1 - np.asarray(faithfulness, dtype=float)), log=log)


def _area(proportions: Sequence[float], heights: Array, *, log: bool) -> float:
    x = np.asarray(proportions, dtype=float)
    if len(x) != len(heights) or len(x) < 2 or (np.diff(x) <= 0).any() or (log and x[0] <= 0):
        raise OutOfRange(f"an area needs two or more rising positive proportions, one per value; got {list(proportions)}")
    if log:
        x = np.log(x)
        return float(np.trapezoid(heights, x) / (x[-1] - x[0]))
    return float(np.trapezoid(heights, x))


def size_at(sizes: Sequence[float], values: Sequence[float], threshold: float) -> float | None:
    """Smallest size at which a curve reaches a threshold, between measured sizes on the log axis; None if it never does.

    Raises:
        TaskError: sizes that do not rise.
    """
    if any(b <= a for a, b in pairwise(sizes)):
        raise TaskError(f"sizes must rise, got {list(sizes)}")
    for i, value in enumerate(values):
        if value >= threshold:
            if i == 0 or sizes[i - 1] <= 0:
                return float(sizes[i])
            share = (threshold - values[i - 1]) / (value - values[i - 1])
            return float(np.exp(np.log(sizes[i - 1]) + share * (np.log(sizes[i]) - np.log(sizes[i - 1]))))
    return None


def auroc(scores: Array, known: npt.NDArray[np.bool_]) -> float:
    """Chance that a known edge scores above another one (ties count half); the area under the ROC curve.

    Raises:
        TaskError: all edges known, or none.
    """
    scores, known = scores.ravel(), known.ravel()
    n_known = int(known.sum())
    n_other = len(known) - n_known
    if not n_known or not n_other:
        raise TaskError("an AUROC needs edges that are known and edges that are not")
    order = np.argsort(scores, kind="stable")
    ranks = np.empty(len(scores))
    ranks[order] = np.arange(1, len(scores) + 1)
    # Tied scores share their mean rank.
    _, group, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.bincount(group, ranks) / counts)[group]
    return float((ranks[known].sum() - n_known * (n_known + 1) / 2) / (n_known * n_other))
