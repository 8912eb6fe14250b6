"""Is something outside a circuit doing the same job, and is every part of it needed? (Wang et al. 2023, section 4)

    found = completeness(bench, circuit, draws=8)
    incompleteness(found.circuit, found.model, bench.full, bench.empty)
    minimality(bench, circuit, n_nodes=20)           # (node, pair): the metric without each of 20 of its nodes

Completeness compares circuit and model after the same nodes were taken out of both: where the model has a back-up that the
circuit lacks, the circuit loses more. A node is one head, MLP or embedding at one span; without it, all edges that leave it
take the counterfactual's value.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mediant.core.circuit import Circuit
from mediant.core.errors import TaskError
from mediant.measures.faithfulness import CircuitBench
from mediant.measures.intervals import Array

Place = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Knockouts:
    """The same nodes out of circuit and model.

    Attributes:
        circuit, model: metric, (draw, pair).
    """

    circuit: Array
    model: Array


def nodes(circuit: Circuit) -> list[Place]:
    """(span, source) of every node that some edge of the circuit leaves."""
    return [(int(span), int(source)) for span, source in np.argwhere(circuit.within.any(1))]


def without(circuit: Circuit, places: Sequence[Place]) -> Circuit:
    """The circuit less all edges that leave some nodes."""
    within = circuit.within.copy()
    for span, source in places:
        within[span, :, source] = False
    return Circuit(circuit.graph, circuit.spans, within, circuit.crossing, circuit.about)


def whole(circuit: Circuit) -> Circuit:
    """All edges of the graph, over the same spans."""
    within = np.broadcast_to(circuit.graph.exists, circuit.within.shape).copy()
    crossing = None if circuit.crossing is None else np.ones_like(circuit.crossing)
    return Circuit(circuit.graph, circuit.spans, within, crossing)


def completeness(bench: CircuitBench, circuit: Circuit, *, draws: int = 8, share: float = 0.1, seed: int = 0) -> Knockouts:
    """Take random shares of the circuit's nodes out of circuit and model: two forwards per draw.

    Raises:
        TaskError: a circuit without edges.
    """
    places, rng = _places(circuit), np.random.default_rng(seed)
    size = max(1, round(share * len(places)))
    by_circuit, by_model = [], []
    for _ in range(draws):
        gone = [places[i] for i in rng.choice(len(places), size, replace=False)]
        by_circuit.append(bench.run(without(circuit, gone)).metric)
        by_model.append(bench.run(without(whole(circuit), gone)).metric)
    return Knockouts(np.stack(by_circuit), np.stack(by_model))


def minimality(bench: CircuitBench, circuit: Circuit, *, n_nodes: int = 20, seed: int = 0) -> Array:
    """Metric of the circuit without one node at a time, (node, pair), for a random sample of its nodes; one forward each.

    Raises:
        TaskError: a circuit without edges.
    """
    places = _places(circuit)
    chosen = np.random.default_rng(seed).choice(len(places), min(n_nodes, len(places)), replace=False)
    return np.stack([bench.run(without(circuit, [places[i]])).metric for i in chosen])


def incompleteness(of_circuit: Array, of_model: Array, full: Array, empty: Array) -> float:
    """Mean over knockouts of |m(C - K) - m(M - K)|, as a share of m(M) - m(empty); 0 is complete."""
    return float(np.abs(of_circuit.mean(1) - of_model.mean(1)).mean() / abs(full.mean() - empty.mean()))


def needed(less: Array, of_circuit: Array, full: Array, empty: Array, *, least: float = 0.01) -> float:
    """Share of nodes without which the circuit's metric changes by at least `least` of m(M) - m(empty)."""
    change = np.abs(less.mean(1) - of_circuit.mean()) / abs(full.mean() - empty.mean())
    return float((change >= least).mean())


def _places(circuit: Circuit) -> list[Place]:
    places = nodes(circuit)
    if not places:
        raise TaskError("the circuit has no edges, so nothing can be taken out of it")
    return places
