"""Automated circuit discovery: cut every edge for good whose loss is not missed, from the logits backwards.

    found = acdc(lm, pairs, threshold=0.01)
    found.circuit, found.forwards

Ports are visited from the last to the first, and the parts that a port reads likewise; an edge stays cut when cutting it, beside
all that is cut already, raises the divergence from the model's own answer by less than a threshold (Conmy et al. 2023, arXiv
2304.14997). What no open port reads any more is not asked about. One forward per edge asked about: a method for small models, or
for the edges that a faster one has left.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mediant.core.circuit import Circuit
from mediant.core.errors import OutOfRange, TaskError
from mediant.core.graph import CircuitGraph
from mediant.core.pair import Pair
from mediant.interventions.ports import graph_of
from mediant.search.masks import Prepared
from mediant.subject import Subject


@dataclass(frozen=True, eq=False)
class Discovered:
    """A circuit, and what finding it took.

    Attributes:
        divergence: nats from the model's own answer to the circuit's.
        forwards: runs made.
    """

    circuit: Circuit
    divergence: float
    forwards: int


def acdc(
    subject: Subject, pairs: Sequence[Pair], *, threshold: float, within: Circuit | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Discovered:  # fmt: skip
    """Search in one batch of pairs.

    Args:
        threshold: nats; a larger one leaves fewer edges.
        within: only edges of this circuit are kept to begin with.
        tell: called with ports visited and ports in all.

    Raises:
        TaskError: no pairs, or pairs that cannot be aligned.
        OutOfRange: a threshold below 0.
    """
    if not pairs:
        raise TaskError("no pairs were given, so there is nothing to search in")
    if threshold < 0:
        raise OutOfRange(f"a threshold is 0 nats or more, got {threshold}")
    graph, ready = graph_of(subject), Prepared(subject, pairs)
    kept = torch.from_numpy(graph.exists if within is None else within.within[0] & graph.exists).float()
    forwards = 1

    def divergence() -> float:
        with torch.no_grad():
            return float(ready.divergence(kept[None]))

    now = divergence()
    for place, target in enumerate(reversed(range(graph.n_targets))):
        if not _is_read(graph, target, kept):
            kept[target] = 0
        for source in reversed(kept[target].nonzero().flatten().tolist()):
            kept[target, source] = 0
            then, forwards = divergence(), forwards + 1
            if then - now < threshold:
                now = then
            else:
                kept[target, source] = 1
        if tell is not None:
            tell(place + 1, graph.n_targets)
    circuit = Circuit(graph, ("all",), kept.bool().numpy()[None], None, {"method": f"ACDC, threshold {threshold:g} nats"})
    return Discovered(circuit, now, forwards)


def _is_read(graph: CircuitGraph, target: int, kept: torch.Tensor) -> bool:
    """Whether what a port makes its head or MLP write is read by an open port."""
    if target == graph.n_targets - 1:
        return True
    layer, port = divmod(target, 3 * graph.n_heads + 1)
    writer = graph.first_source(layer) + (graph.n_heads if port == 3 * graph.n_heads else port % graph.n_heads)
    return bool(kept[:, writer].any())
