"""Edges as gates: one number per edge says how much of its current value a port reads.

    gates = Gates.constant(graph, 1.0)                       # the clean run; 0.0 is the ablated run
    gates.within[0, target, source] = 0.0                    # cut one edge
    logits = run_gated(lm, batch, tokens, gates, ablated)

A port at a token reads

    ablated stream + sum over sources u of gate[u] * (output of u in this run - output of u in the ablated run)

so ones give the clean run, zeros the ablated one, a subset of ones a circuit, and the derivative by the gates at one is
edge attribution (Syed et al. 2023; Hanna et al. 2024). Positional gates have one table per span. *Crossing* gates
(Haklay et al. 2025) say, for a head and a pair of tokens, whether the query, the key and the value that meet there are
those of this run or of the ablated run; the softmax is taken over the mixed logits.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import EditError
from mediant.core.graph import CircuitGraph
from mediant.interventions.execute import run
from mediant.interventions.nodes import Nodes, TokenOrder
from mediant.interventions.ports import Passage, Score
from mediant.interventions.tape import Tape
from mediant.subject import Batch, Subject


@dataclass(eq=False)
class Gates:
    """How much of each edge's current value is read: 1 this run's, 0 the ablated run's.

    Attributes:
        within: edges within a position, by span of the position.
        crossing: edges between positions (query, key and value part), by span of the query and of the key; None leaves
            all of them open.
    """

    within: Float[Tensor, "span target source"]
    crossing: Float[Tensor, "3 layer head query key"] | None = None

    @classmethod
    def constant(cls, graph: CircuitGraph, value: float, *, n_spans: int = 1, crossing: bool = False) -> "Gates":
        """All gates at one value; entries that are no edges are 0."""
        table = torch.from_numpy(graph.exists).to(torch.float32) * value
        pairs = torch.full((3, graph.n_layers, graph.n_heads, n_spans, n_spans), value) if crossing else None
        return cls(table.expand(n_spans, -1, -1).clone(), pairs)

    @property
    def differentiable(self) -> bool:
        """Whether a gradient by some gate is wanted."""
        return torch.is_grad_enabled() and (
            self.within.requires_grad or (self.crossing is not None and self.crossing.requires_grad)
        )


def run_gated(subject: Subject, batch: Batch, tokens: TokenOrder, gates: Gates, ablated: Nodes, *, keep: int = 1) -> Tensor:
    """Logits (batch, keep, vocab) of one forward under gates.

    Args:
        ablated: what stands in for closed edges; observed with attention where there are crossing gates.

    Raises:
        EditError: other edits are in force, gates of another number of spans, or `ablated` without attention.
    """
    if subject.in_force:
        raise EditError("gates replace what every port reads, so other edits would be lost; leave their context first")
    if gates.within.shape[0] != tokens.n_spans:
        raise EditError(f"gates for {gates.within.shape[0]} span(s), but the tokens are ordered by {tokens.n_spans}")
    if gates.crossing is not None and not ablated.attention:
        raise EditError("crossing gates need the ablated run's attention: observe it with_attention=True")
    passage = Gated(subject, tokens, gates, ablated)
    with torch.set_grad_enabled(gates.differentiable), passage.open():
        return run(subject, batch, keep=keep).logits


class Gated(Passage):
    """Feeds every port what its gates let through."""

    def __init__(self, subject: Subject, tokens: TokenOrder, gates: Gates, ablated: Nodes) -> None:
        super().__init__(subject)
        self.tokens, self.gates, self.ablated = tokens, gates, ablated
        self.tape = Tape(torch.zeros_like(ablated.outputs), tokens.bounds, differentiable=gates.differentiable)
        # Heads that no port reads need not be written.
        self._wanted = ((gates.within != 0).any(0).any(0) | gates.differentiable).tolist()
        self._ports: Tensor | None = None

    def read(self, target: int, base: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
        """What one port reads."""
        gates = self.gates.within[:, target : target + 1, : self.graph.readable(target)].to(base)
        return base + self.tape.read(gates)[0]

    def at_embedding(self, stream: Tensor) -> Tensor:
        """Note the embedding."""
        self._note(0, self.tokens.pick(stream.detach())[None])
        return stream

    def at_attention(self, layer: int, stream: Tensor) -> None:
        """Queries, keys and values of every head from its own ports; those with all gates closed are the ablated run's."""
        first, n = self.graph.first_target(layer), 3 * self.graph.n_heads
        gates = self.gates.within[:, first : first + n, : self.graph.readable(first)].to(stream)
        made, weights = self.ablated.projected[layer].flatten(0, 1).clone(), self.ports.weights(layer)
        for block in self.tape.inputs(gates, self.ablated.attention_in[layer]):
            new = self.ports.project(self.ports.normed(layer, block.streams), weights, block.ports)
            made[block.ports, block.tokens] = new.to(made.dtype)
        self._ports = made.unflatten(0, (3, self.graph.n_heads))

    def at_port(self, layer: int, port: int, values: Tensor) -> Tensor:  # noqa: ARG002
        """Put them in the place of the model's own."""
        assert self._ports is not None  # noqa: S101 - the stream is read before it is projected
        return self.tokens.put(values.detach(), self._ports[port].transpose(0, 1))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, score: Score) -> Tensor:
        """Mix this run's and the ablated run's queries, keys and values pair by pair."""
        if self.gates.crossing is None:
            return super().attend(layer, query, key, value, score)
        q, k, v = (self._by_token(self.gates.crossing[part, layer]) for part in range(3))
        old = self.ablated.attention[layer]
        logits = _mix(q, _mix(k, score(query, key), score(query, old.key)), _mix(k, score(old.query, key), old.logits))
        weights = logits.softmax(-1)
        opened, closed = (weights * v).to(value.dtype), (weights * (1 - v)).to(value.dtype)
        mixed: Tensor = opened @ value + closed @ old.value
        return mixed

    def at_heads(self, layer: int, mixed: Tensor, projected: Tensor) -> None:
        """Note the heads' outputs."""
        first = self.graph.first_source(layer)
        if any(self._wanted[first : first + self.graph.n_heads]):
            self._note(first, self.tokens.pick(self.ports.head_outputs(layer, mixed, projected)))

    def at_mlp(self, layer: int, stream: Tensor) -> Tensor:
        """The stream the MLP's gates let through."""
        first = self.graph.first_target(layer) + 3 * self.graph.n_heads
        return self.tokens.put(stream.detach(), self.read(first, self.ablated.mlp_in[layer]))

    def at_mlp_output(self, layer: int, output: Tensor) -> None:
        """Note the MLP's output."""
        self._note(self.graph.first_source(layer) + self.graph.n_heads, self.tokens.pick(output)[None])

    def at_final(self, stream: Tensor) -> Tensor:
        """The stream the final gates let through."""
        return self.tokens.put(stream.detach(), self.read(self.graph.n_targets - 1, self.ablated.final_in))

    def _note(self, first: int, outputs: Tensor) -> None:
        self.tape.write(first, outputs - self.ablated.outputs[first : first + len(outputs)])

    def _by_token(self, table: Float[Tensor, "head query key"]) -> Float[Tensor, "batch head pos pos"]:
        """Gates of spans as gates of tokens; padding counts as the first span, which nobody reads."""
        span = self.tokens.span_of.clamp(min=0)
        return table[:, span[:, :, None], span[:, None, :]].transpose(0, 1)


def _mix(gate: Tensor, opened: Tensor, closed: Tensor) -> Tensor:
    """`gate * opened + (1 - gate) * closed`, where masked logits stay masked and give no NaN, forward or backward."""
    seen = opened.isfinite()
    mixed = gate * opened.masked_fill(~seen, 0.0) + (1 - gate) * closed.masked_fill(~seen, 0.0)
    return mixed.masked_fill(~seen, float("-inf"))
