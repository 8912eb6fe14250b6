"""Scores of every edge of a circuit graph, per span or over all positions.

>>> graph = CircuitGraph(n_layers=1, n_heads=1)
>>> scores = EdgeScores(graph, ("all",), np.zeros((1, graph.n_targets, graph.n_sources)), n=4)
>>> scores.within[0, 4, 0] = -2.0
>>> scores.top(1)
[Scored(mediator='embed->final_resid', score=-2.0, ci95=None, n=0)]

A score is the change of the metric when the edge takes its value from the other run: a helpful edge is negative.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mediant.core.errors import OutOfRange, RunError, complaints
from mediant.core.graph import CircuitGraph
from mediant.core.ranking import Scored

Table = npt.NDArray[np.float64]


@dataclass(eq=False)
class EdgeScores:
    """One score per edge.

    Attributes:
        spans: names of the spans; a single one where scores are summed over positions.
        within: (span, target, source), 0 where there is no edge.
        crossing: (query/key/value, layer, head, query span, key span), or None.
        draws: the same tables for bootstrap resamples of the items: (within, crossing) each.
        n: items.
        method, metric: how the scores came about.
        per_port: scores are shares of what a port reads, so they say nothing across ports.
    """

    graph: CircuitGraph
    spans: tuple[str, ...]
    within: Table
    crossing: Table | None = None
    n: int = 0
    draws: list["EdgeScores"] = field(default_factory=list)
    method: str = ""
    metric: str = "logit_diff"
    per_port: bool = False

    def __post_init__(self) -> None:
        expected = (len(self.spans), self.graph.n_targets, self.graph.n_sources)
        if self.within.shape != expected:
            raise OutOfRange(
                f"edge scores have shape {self.within.shape}, this graph with {len(self.spans)} span(s) needs {expected}"
            )

    def summed(self) -> "EdgeScores":
        """Scores over all positions: what a search without positions sees."""
        within = self.within.sum(0, keepdims=True)
        draws = [d.summed() for d in self.draws]
        return EdgeScores(self.graph, ("all",), within, None, self.n, draws, self.method, self.metric, self.per_port)

    def top(self, k: int, *, span: int | None = None) -> list[Scored]:
        """The `k` edges of largest |score| within positions, over all spans or in one.

        Raises:
            OutOfRange: fewer edges exist.
        """
        table = self.within if span is None else self.within[span : span + 1]
        places = np.flatnonzero(np.broadcast_to(self.graph.exists, table.shape))
        if not 0 <= k <= len(places):
            raise OutOfRange(f"asked for the top {k} of {len(places)} edges")
        order = places[np.argsort(-np.abs(table.reshape(-1)[places]), kind="stable")[:k]]
        found = []
        for flat in order.tolist():
            s, target, source = np.unravel_index(flat, table.shape)
            label = str(self.graph.edge(int(target), int(source)))
            name = self.spans[span if span is not None else int(s)]
            found.append(Scored(label if len(self.spans) == 1 else f"{label} @ {name}", float(table.reshape(-1)[flat])))
        return found

    def save(self, path: Path | str, *, with_draws: bool = False) -> None:
        """Write as safetensors, in single precision and without the entries that are no edges.

        Raises:
            RunError: the file cannot be written.
        """
        from safetensors.numpy import save_file

        about = {
            "n_layers": self.graph.n_layers, "n_heads": self.graph.n_heads, "parallel": self.graph.parallel,
            "spans": self.spans, "n": self.n, "method": self.method, "metric": self.metric, "per_port": self.per_port,
        }  # fmt: skip
        tables = {}
        for i, one in enumerate([self, *(self.draws if with_draws else [])]):
            # Masks and slices may leave an array in another order in memory, which safetensors would write as it lies.
            tables[f"within.{i}"] = np.ascontiguousarray(one.within[:, self.graph.exists], dtype=np.float32)
            if one.crossing is not None:
                tables[f"crossing.{i}"] = np.ascontiguousarray(one.crossing, dtype=np.float32)
        try:
            save_file(tables, str(path), {"edge_scores": json.dumps(about)})
        except (OSError, ValueError) as error:
            raise RunError(f"cannot write edge scores to {path}: {error}") from error

    @classmethod
    def load(cls, path: Path | str) -> "EdgeScores":
        """Read what `save` wrote.

        Raises:
            RunError: the file is missing, broken or holds something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                about = json.loads((file.metadata() or {})["edge_scores"])
                tables = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118 - not a mapping
            graph = CircuitGraph(about["n_layers"], about["n_heads"], about["parallel"])
            found, how = [], (about["method"], about["metric"], about.get("per_port", False))
            for i in range(sum(name.startswith("within") for name in tables)):
                within = np.zeros((len(about["spans"]), graph.n_targets, graph.n_sources))
                within[:, graph.exists] = tables[f"within.{i}"]
                crossing = tables.get(f"crossing.{i}")
                found.append(cls(graph, tuple(about["spans"]), within, crossing, about["n"], [], *how))
            found[0].draws = found[1:]
            return found[0]
        except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError) as error:
            raise RunError(f"{path} holds no edge scores: {complaints(error)}") from error
