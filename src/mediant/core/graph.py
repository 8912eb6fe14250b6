"""The graph of a decoder: parts that write to the residual stream, ports that read it, and every edge between them.

>>> graph = CircuitGraph(n_layers=2, n_heads=2)
>>> [str(site) for site in graph.sources]
['embed', 'head_result.0.0', 'head_result.0.1', 'mlp_out.0', 'head_result.1.0', 'head_result.1.1', 'mlp_out.1']
>>> graph.n_edges
46

Sources are ordered as the model computes them, so what a port can read is always the first so many of them: a table
of shape (target, source) with a triangular pattern holds one number per edge. Every query head has its own three
ports, also under grouped-query attention (Elhage et al. 2021; the counts are those of Haklay et al. 2025, section 2).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mediant.core.edge import CircuitEdge
from mediant.core.errors import OutOfRange
from mediant.core.site import Site

PORTS = ("q", "k", "v")


@dataclass(frozen=True)
class CircuitGraph:
    """Nodes and edges of a decoder.

    Attributes:
        parallel: attention and MLP of a block read the same stream, so heads do not feed their own layer's MLP.
    """

    n_layers: int
    n_heads: int
    parallel: bool = False

    @cached_property
    def sources(self) -> tuple[Site, ...]:
        """Writers: the embedding, then each layer's heads and MLP."""
        layers = [
            (*(Site("head_result", la, h) for h in range(self.n_heads)), Site("mlp_out", la)) for la in range(self.n_layers)
        ]
        return (Site("embed"), *(site for layer in layers for site in layer))

    @cached_property
    def targets(self) -> tuple[Site, ...]:
        """Readers: each layer's q, k, v ports of the heads and its MLP, then the final residual stream."""
        layers = [
            (*(Site(port, la, h) for port in PORTS for h in range(self.n_heads)), Site("mlp_in", la))
            for la in range(self.n_layers)
        ]
        return (*(site for layer in layers for site in layer), Site("final_resid"))

    @property
    def n_sources(self) -> int:
        """Number of writers."""
        return 1 + self.n_layers * (self.n_heads + 1)

    @property
    def n_targets(self) -> int:
        """Number of ports."""
        return self.n_layers * (3 * self.n_heads + 1) + 1

    def first_source(self, layer: int) -> int:
        """Index of a layer's first head among the sources."""
        return 1 + layer * (self.n_heads + 1)

    def first_target(self, layer: int) -> int:
        """Index of a layer's first query port among the targets."""
        return layer * (3 * self.n_heads + 1)

    def readable(self, target: int) -> int:
        """How many sources a port can read: sources 0 to this number, exclusive."""
        layer, port = divmod(target, 3 * self.n_heads + 1)
        if layer == self.n_layers:
            return self.n_sources
        after_heads = port == 3 * self.n_heads and not self.parallel
        return self.first_source(layer) + (self.n_heads if after_heads else 0)

    @cached_property
    def exists(self) -> npt.NDArray[np.bool_]:
        """Which entries of a (target, source) table are edges."""
        return np.arange(self.n_sources)[None, :] < np.array([self.readable(t) for t in range(self.n_targets)])[:, None]

    @property
    def n_edges(self) -> int:
        """Edges at one position."""
        return int(self.exists.sum())

    def n_positional_edges(self, n_positions: int) -> int:
        """Concrete edges over `n_positions` tokens: within positions, and crossing from an earlier or equal one."""
        return n_positions * self.n_edges + 3 * self.n_layers * self.n_heads * n_positions * (n_positions + 1) // 2

    def edge(self, target: int, source: int) -> CircuitEdge:
        """The edge at an entry of the table."""
        return CircuitEdge(self.sources[source], self.targets[target])

    def index(self, edge: CircuitEdge) -> tuple[int, int]:
        """Where an edge stands in the table: (target, source).

        Raises:
            OutOfRange: this graph has no such edge.
        """
        try:
            target, source = self._target_index[edge.target], self._source_index[edge.source]
        except KeyError as error:
            raise OutOfRange(
                f"edge {edge} does not exist here: sources are embed, head_result.LAYER.HEAD and mlp_out.LAYER, targets "
                f"q, k, v.LAYER.HEAD, mlp_in.LAYER and final_resid, with {self.n_layers} layers and {self.n_heads} heads"
            ) from error
        if not self.exists[target, source]:
            raise OutOfRange(f"edge {edge} does not exist: {edge.source} is computed after {edge.target} is read")
        return target, source

    @cached_property
    def _source_index(self) -> dict[Site, int]:
        return {site: i for i, site in enumerate(self.sources)}

    @cached_property
    def _target_index(self) -> dict[Site, int]:
        return {site: i for i, site in enumerate(self.targets)}
