"""What is lost when an edge's scores are summed over positions: cancellation and over-estimation.

    report = position_effects(lm, pairs)
    print(report.rows())

Two rankings of the same edges are compared (Haklay et al. 2025, section 1): by the sum over positions of |score|, against
by |sum over positions| - they differ where opposite signs cancel, which hides edges - and against the largest |score| at
one position - they differ where many small ones outvote a large one. The control compares the first rule with itself on
three disjoint parts of the pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mediant.core.errors import TaskError
from mediant.core.graph import CircuitGraph
from mediant.core.pair import Pair
from mediant.interventions.nodes import TokenOrder, observe
from mediant.interventions.port_gradients import differentiate
from mediant.interventions.ports import graph_of
from mediant.measures.intervals import Array
from mediant.measures.metrics import Metric, Outcome, metric
from mediant.subject import Subject
from mediant.tasks.encode import encode

RULES = ("sum of |score|", "|sum|", "largest |score|")
PARTS = 3


@dataclass(frozen=True)
class PositionEffect:
    """How far two rankings of edges differ among their top share.

    Attributes:
        difference: 1 - overlap of the two top lists; `control` the same between parts of the data.
        correlation: Spearman's, over the edges in either list.
    """

    effect: str
    share: float
    difference: float
    control: float
    correlation: float
    control_correlation: float


def position_effects(
    subject: Subject,
    pairs: Sequence[Pair],
    *,
    by: str | Metric = "logit_diff",
    shares: Sequence[float] = (0.01, 0.05, 0.1),
    batch_size: int = 8,
) -> list[PositionEffect]:
    """Cancellation and over-estimation at several shares of the edges.

    Raises:
        TaskError: fewer than two pairs for each part of the control.
    """
    if len(pairs) < 2 * PARTS:
        raise TaskError(f"the control compares {PARTS} parts of the pairs; {len(pairs)} pairs are too few")
    graph = graph_of(subject)
    parts = [_by_rule(subject, pairs[i::PARTS], by, batch_size, graph) for i in range(PARTS)]
    total = {rule: sum(part[rule] for part in parts) for rule in RULES}
    found = []
    for effect, rule in (("cancellation", RULES[1]), ("over-estimation", RULES[2])):
        for share in shares:
            n = max(1, round(share * graph.n_edges))
            control = [_compared(parts[i][RULES[0]], parts[j][RULES[0]], n) for i in range(PARTS) for j in range(i)]
            difference, correlation = _compared(np.asarray(total[RULES[0]]), np.asarray(total[rule]), n)
            mean = np.mean(control, axis=0)
            found.append(PositionEffect(effect, share, difference, float(mean[0]), correlation, float(mean[1])))
    return found


def _by_rule(subject: Subject, pairs: Sequence[Pair], by: str | Metric, batch_size: int, graph: CircuitGraph) -> dict[str, Array]:
    """Sums over pairs of each rule's score, per edge."""
    totals = {rule: np.zeros((graph.n_targets, graph.n_sources)) for rule in RULES}
    for start in range(0, len(pairs), batch_size):
        batch = encode(subject, pairs[start : start + batch_size])
        tokens = TokenOrder.of(batch.base)
        other = observe(subject, batch.source, tokens, keep=batch.keep)

        def measure(logits: Tensor, batch=batch) -> Tensor:  # type: ignore[no-untyped-def]
            return metric(by)(Outcome(batch, logits)).sum()

        clean = differentiate(subject, batch.base, tokens, measure, keep=batch.keep)
        change = (other.outputs - clean.nodes.outputs).transpose(0, 1)
        for first, gradients in clean.by_layer():
            n = graph.readable(first)
            scores = gradients.transpose(0, 1) @ change[:, :n].mT
            for rule, table in zip(RULES, _reduced(scores, tokens.rows), strict=True):
                totals[rule][first : first + scores.shape[1], :n] += table.double().cpu().numpy()
    return {rule: table[graph.exists] for rule, table in totals.items()}


def _reduced(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per edge, over pairs: sum of absolute scores, of absolute sums, and of largest absolute scores."""
    parts = [scores[rows == row] for row in rows.unique()]
    return (
        scores.abs().sum(0),
        torch.stack([part.sum(0).abs() for part in parts]).sum(0),
        torch.stack([part.abs().amax(0) for part in parts]).sum(0),
    )


def _compared(one: Array, two: Array, n: int) -> tuple[float, float]:
    tops = [set(np.argsort(-scores, kind="stable")[:n].tolist()) for scores in (one, two)]
    either = np.array(sorted(tops[0] | tops[1]))
    ranks = [np.argsort(np.argsort(scores[either], kind="stable"), kind="stable") for scores in (one, two)]
    correlation = float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if len(either) > 2 else float("nan")
    return 1 - len(tops[0] & tops[1]) / n, correlation
