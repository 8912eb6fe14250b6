"""The algorithm, top to bottom: score edges by span, grow circuits of every size, run them, compare.

Four rankings are compared: edges by position (the claim), edges for all positions alike (the baseline, also ranked by
helpfulness alone for CPR), edges by position with the spans' names dealt out anew in every prompt (a control that must
do worse), and edges in random order (one drawn per batch).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mediant.core.circuit import Circuit, SpanSizes
from mediant.core.edge_scores import EdgeScores
from mediant.core.pair import Pair
from mediant.measures.ablation import Ablation
from mediant.measures.completeness import completeness, minimality
from mediant.measures.faithfulness import PROPORTIONS, CircuitBench, CircuitOutcome, mean_sizes, span_sizes
from mediant.measures.intervals import Array
from mediant.search.circuits import EdgeOrder, greedy
from mediant.studies.positional_circuits.config import Config
from mediant.studies.positional_circuits.task import Data
from mediant.subject import Subject
from mediant.tasks.schema import SpanTable

KINDS = ("positional", "shuffled", "nonpositional", "helpful")
Numbers = list[float]


@dataclass(frozen=True, eq=False)
class Curve:
    """Circuits of rising size from one ranking.

    Attributes:
        sizes: tokens and pairs per span, mean over the items circuits are run on.
    """

    circuits: tuple[Circuit, ...]
    sizes: SpanSizes

    def concrete(self, *, crossing: bool = True) -> Numbers:
        """Edges between single tokens."""
        return [c.n_concrete(self.sizes, crossing=crossing) for c in self.circuits]

    def abstract(self) -> Numbers:
        """Edges between nodes at spans."""
        return [float(c.n_abstract()) for c in self.circuits]

    def asked(self) -> Numbers:
        """Edges asked for, before pruning."""
        return [float(c.about["asked_for"]) for c in self.circuits]


def sizes_of(table: SpanTable, pairs: Sequence[Pair]) -> SpanSizes:
    """Mean sizes of a schema's spans over some pairs."""
    import torch

    return mean_sizes([span_sizes(torch.tensor(table.of(pair)), len(table.names)) for pair in pairs])


def orders(scores: EdgeScores, shuffled: EdgeScores, data: Data, config: Config) -> dict[str, EdgeOrder]:
    """Edges in order of growth, for each ranking."""
    flat, tables = scores.summed(), (data.table, data.shuffled)
    sizes = [sizes_of(table, data.evaluation) for table in (*tables, _single(data))]
    return {
        "positional": greedy(scores, sizes=sizes[0], ends=data.table.ends, frugal=config.frugal),
        "shuffled": greedy(shuffled, sizes=sizes[1], ends=data.shuffled.ends, frugal=config.frugal),
        "nonpositional": greedy(flat, sizes=sizes[2], frugal=config.frugal),
        # Each port by itself: a helpful query would drag a harmful key along.
        "helpful": greedy(flat, rule="most_negative", joined=False),
    }


def curves(found: dict[str, EdgeOrder], data: Data, config: Config) -> dict[str, Curve]:
    """Circuits of each ranking: evenly spaced in log size by position, at the benchmark's proportions without."""
    sizes = {"positional": sizes_of(data.table, data.evaluation), "shuffled": sizes_of(data.shuffled, data.evaluation)}
    whole = sizes_of(_single(data), data.evaluation)
    result = {}
    for kind, order in found.items():
        result[kind] = Curve(_circuits(kind, order, config), sizes.get(kind, whole))
    return result


def _circuits(kind: str, order: EdgeOrder, config: Config) -> tuple[Circuit, ...]:
    if kind in ("nonpositional", "helpful"):
        return at_proportions(order)
    # The control only has to show where it reaches the threshold, which is among the larger circuits.
    return evenly(order, config.n_sizes) if kind == "positional" else evenly(order, config.n_sizes // 2 + 1, smallest=0.05)


def evenly(order: EdgeOrder, n: int, smallest: float = 0.002) -> tuple[Circuit, ...]:
    """`n` circuits between a small share of the edges and all of them, evenly spaced on the log axis."""
    asked = np.unique(np.geomspace(max(1, smallest * len(order)), len(order), n).round().astype(int))
    return tuple(order.circuit(int(k)) for k in asked)


def at_proportions(order: EdgeOrder) -> tuple[Circuit, ...]:
    """The largest circuits within each of the benchmark's shares of the graph's edges; small ones may be empty."""
    total = order.scores.graph.n_edges
    return tuple(order.circuit(_prefix(order, round(p * total))) for p in PROPORTIONS)


def _prefix(order: EdgeOrder, wanted: int) -> int:
    """Longest prefix whose circuit has at most `wanted` edges; pruned circuits only grow with the prefix."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if order.circuit(middle).n_edges <= wanted:
            low = middle
        else:
            high = middle - 1
    return low


def random_order(scores: EdgeScores, seed: int) -> EdgeOrder:
    """Edges without positions in an order grown from random scores."""
    drawn = np.random.default_rng(seed).normal(size=(1, *scores.within.shape[1:])) * scores.graph.exists
    return greedy(EdgeScores(scores.graph, ("all",), drawn))


def _single(data: Data) -> SpanTable:
    """All tokens in one span."""
    return SpanTable(("all",), {name: (0,) * len(row) for name, row in data.table.spans.items()})


def ablation_of(config: Config, data: Data) -> Ablation:
    """What cut edges carry; means are over the discovery pairs' prompts."""
    return Ablation(config.ablation, data.discovery if config.ablation == "mean" else (), seed=config.seed)


def evaluate(
    subject: Subject,
    pairs: Sequence[Pair],
    data: Data,
    drawn: dict[str, Curve],
    chance: Sequence[Circuit],
    config: Config,
    pause: Callable[[], None],
) -> dict[str, object]:
    """Run every circuit on one batch: the whole model's numbers, and per ranking a (size, pair) table of each measure."""
    whole = CircuitBench(subject, pairs, by=data.metric, order=data.table.order, ablation=ablation_of(config, data))
    record: dict[str, object] = {
        "full": whole.full.tolist(), "empty": whole.empty.tolist(), "preferred": whole.preferred.tolist(),
        "greedy": whole.greedy_right.tolist(),
    }  # fmt: skip
    groups: list[tuple[CircuitBench, dict[str, Sequence[Circuit]]]] = [
        (whole, {"positional": drawn["positional"].circuits}),
        (whole.by_spans(data.shuffled.order), {"shuffled": drawn["shuffled"].circuits}),
        (whole.by_spans(), {kind: drawn[kind].circuits for kind in ("nonpositional", "helpful")} | {"random": chance}),
    ]
    while groups:
        # Let go of each bench when its circuits have run: it holds every node's output.
        bench, rankings = groups.pop()
        for kind, circuits in rankings.items():
            found = []
            for circuit in circuits:
                pause()
                found.append(_outcome(bench, circuit))
            record[kind] = {"metric": [f.metric.tolist() for f in found], "agrees": [f.agrees.tolist() for f in found]}
    return record


def _outcome(bench: CircuitBench, circuit: Circuit) -> CircuitOutcome:
    """A run, or what is known without one: the whole graph is the model, and no edge the ablated run."""
    if circuit.about["is_whole"]:
        return CircuitOutcome(bench.full, np.ones(len(bench.full)))
    if not circuit.within.any():
        return CircuitOutcome(bench.empty, bench.empty_agrees)
    return bench.run(circuit)


def spread(n: int, wanted: int) -> list[int]:
    """At most `wanted` of `n` items, evenly spread over the wordings, which stand next to each other."""
    return [int(i) for i in np.unique(np.linspace(0, n - 1, min(wanted, n)).round())]


def take_out(subject: Subject, pairs: Sequence[Pair], data: Data, circuit: Circuit, config: Config) -> dict[str, object]:
    """Run a circuit, and the model, on one batch without some of its nodes; which ones depends on the seed alone."""
    bench = CircuitBench(subject, pairs, by=data.metric, order=data.table.order, ablation=ablation_of(config, data))
    found = completeness(bench, circuit, draws=config.knockouts, seed=config.seed)
    single = minimality(bench, circuit, n_nodes=config.n_nodes, seed=config.seed)
    return {"circuit": found.circuit.tolist(), "model": found.model.tolist(), "single": single.tolist()}


def stability(scores: EdgeScores, n: int, data: Data, config: Config) -> list[float]:
    """Jaccard overlap of every two circuits of `n` edges grown from resampled scores."""
    sizes = sizes_of(data.table, data.evaluation)
    grown = [greedy(one, sizes=sizes, ends=data.table.ends, limit=n, frugal=config.frugal) for one in scores.draws]
    found = [order.circuit(n) for order in grown]
    return [a.jaccard(b) for i, a in enumerate(found) for b in found[i + 1 :]]


def joined(records: Sequence[dict[str, object]], kind: str, name: str) -> Array:
    """A (size, pair) table over all batches."""
    return np.concatenate([np.asarray(r[kind][name]) for r in records], axis=1)  # type: ignore[index]


def flat(records: Sequence[dict[str, object]], name: str) -> Array:
    """Per-pair numbers over all batches."""
    return np.concatenate([np.asarray(r[name], dtype=float) for r in records])
