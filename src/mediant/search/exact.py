"""Exact edge patching: run the model once for every edge with that edge alone taking the other run's value.

    scores = edge_patching(lm, pairs)

What attribution estimates to first order (Wang et al. 2022; "edge activation patching" in Mueller et al. 2025): slow, one
forward per edge and batch with many edges folded into each, and the oracle for small models. One edge at a time misses
parts that stand in for each other; `direction="denoising"` puts clean values into the counterfactual run instead and misses
parts that only work together; `edges_in_company` tries every edge in random circuits and misses neither.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import TaskError
from mediant.core.pair import Pair
from mediant.interventions.gates import Gates, run_gated
from mediant.interventions.nodes import TokenOrder, observe
from mediant.interventions.ports import graph_of
from mediant.measures.intervals import Array
from mediant.measures.metrics import Metric, Outcome, metric
from mediant.subject import Subject
from mediant.tasks.encode import Direction, PairBatch, encode

FOLD_TOKENS = 768


def edge_patching(
    subject: Subject,
    pairs: Sequence[Pair],
    *,
    by: str | Metric = "logit_diff",
    direction: Direction = "noising",
    batch_size: int = 16,
) -> EdgeScores:
    """Mean change of the metric when one edge, at all positions, takes its value from the other run.

    Raises:
        TaskError: no pairs, or pairs that cannot be aligned.
    """
    whole = Gates.constant(graph_of(subject), 1.0).within[0]
    return _over(subject, pairs, by, direction, batch_size, [whole], f"exact patching, {direction}")


def edges_in_company(
    subject: Subject,
    pairs: Sequence[Pair],
    *,
    by: str | Metric = "logit_diff",
    draws: int = 100,
    seed: int = 0,
    batch_size: int = 16,
) -> EdgeScores:
    """Mean change of the metric when one edge is cut from random circuits, which hold every other edge with chance 1/2.

    That is the edge's Banzhaf value. A back-up that never differs from its counterfactual in the whole model shows where
    what it stands in for is missing. Costs `draws` times as much as `edge_patching`.

    Raises:
        TaskError: no pairs, or pairs that cannot be aligned.
    """
    graph, random = graph_of(subject), torch.Generator().manual_seed(seed)
    exists = torch.from_numpy(graph.exists)
    circuits = [(torch.rand(exists.shape, generator=random) < 0.5).float() * exists for _ in range(draws)]
    return _over(subject, pairs, by, "noising", batch_size, circuits, f"exact patching in {draws} random circuits")


def _over(
    subject: Subject,
    pairs: Sequence[Pair],
    by: str | Metric,
    direction: Direction,
    batch_size: int,
    circuits: list[Tensor],
    how: str,
) -> EdgeScores:
    if not pairs:
        raise TaskError("no pairs were given, so there is nothing to patch")
    graph = graph_of(subject)
    total = np.zeros((1, graph.n_targets, graph.n_sources))
    for start in range(0, len(pairs), batch_size):
        batch = encode(subject, pairs[start : start + batch_size], direction=direction)
        for circuit in circuits:
            total += _batch(subject, batch, by, circuit) * len(batch.pairs) / len(circuits)
    return EdgeScores(graph, ("all",), total / len(pairs), None, len(pairs), [], how)


def _batch(subject: Subject, batch: PairBatch, by: str | Metric, circuit: Tensor) -> Array:
    """Every edge in turn; each copy of the batch in a fold is a span of its own, so gates differ from copy to copy."""
    graph, measure = graph_of(subject), metric(by)
    edges = np.argwhere(graph.exists)
    size = max(1, FOLD_TOKENS // batch.base.ids.numel())
    changes = np.zeros((1, graph.n_targets, graph.n_sources))
    for start in range(0, len(edges), size):
        chunk = edges[start : start + size]
        # The first copy is the circuit as it is; in each other one edge is turned over.
        copies = len(chunk) + 1
        base, source = batch.base.repeat(copies), batch.source.repeat(copies)
        number = torch.arange(copies, device=base.ids.device).repeat_interleave(batch.base.n_rows)[:, None]
        tokens = TokenOrder.from_spans(torch.where(base.mask, number, -1), copies)
        gates = Gates(circuit.expand(copies, -1, -1).clone())
        for copy, (target, writer) in enumerate(chunk.tolist(), start=1):
            gates.within[copy, target, writer] = 1 - circuit[target, writer]
        ablated = observe(subject, source, tokens, keep=batch.keep)
        with torch.no_grad():
            logits = run_gated(subject, base, tokens, gates, ablated, keep=batch.keep)
            values = [float(measure(Outcome(batch, part)).mean()) for part in logits.split(batch.base.n_rows)]
        was_open = circuit[chunk[:, 0], chunk[:, 1]].numpy() > 0
        changes[0, chunk[:, 0], chunk[:, 1]] = (np.asarray(values[1:]) - values[0]) * np.where(was_open, 1, -1)
    return changes
