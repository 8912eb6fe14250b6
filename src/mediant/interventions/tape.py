"""What the nodes of a run wrote so far, and the gated sums that later ports read of it.

    tape = Tape(torch.empty(n_sources, n_tokens, d_model), bounds=(0, 40, 100), differentiable=False)
    tape.write(0, embeddings[None])
    tape.read(gates)                     # gates (span, port, source) -> (port, token, d_model)

Tokens are ordered by span, so a sum over nodes is one matrix product per span.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

BLOCK = 128  # tokens at a time, so that what all ports read stays in the cache


@dataclass(eq=False)
class Block:
    """What some ports read at neighbouring tokens.

    Attributes:
        ports: which ports, of those asked for; the others' gates are all closed there.
        tokens: which tokens.
        streams: what each of these ports reads.
    """

    ports: Bool[Tensor, " port"]
    tokens: slice
    streams: Float[Tensor, "open token d_model"]


class Tape:
    """Node outputs written once and read by every later port, with one buffer for values and one for gradients.

    Reading is a matrix product per span on slices of the buffer. Under autograd the buffer is shared by all reads instead
    of being saved for each: memory grows with nodes, not with edges. A chain of empty tensors keeps backward in order: a
    write's gradient is asked for only when all reads after it have added theirs.
    """

    def __init__(self, values: Float[Tensor, "source token d_model"], bounds: Sequence[int], *, differentiable: bool) -> None:
        self.store = _Store(values, bounds, torch.zeros_like(values) if differentiable else None)
        self.differentiable = differentiable
        self.order = values.new_zeros((), requires_grad=differentiable)

    def write(self, first: int, values: Float[Tensor, "node token d_model"]) -> None:
        """Store the values of neighbouring nodes."""
        if self.differentiable:
            self.order = _Write.apply(  # type: ignore[no-untyped-call]
                values, self.order, self.store, first
            )
        else:
            self.store.values[first : first + len(values)] = values

    def read(self, gates: Float[Tensor, "span port source"]) -> Float[Tensor, "port token d_model"]:
        """Gated sums over the first nodes."""
        if self.differentiable:
            out: Tensor = _Read.apply(  # type: ignore[no-untyped-call]
                gates, self.order, self.store
            )
            return out
        return self.store.sums(gates)

    def inputs(self, gates: Float[Tensor, "span port source"], base: Float[Tensor, "token d_model"]) -> Iterator[Block]:
        """Base plus gated sums, where gates are open; few tokens at a time, so that every port's copy stays in the cache."""
        if self.differentiable:
            live = (gates != 0).any(0).any(1) | gates.requires_grad
            if bool(live.any()):
                yield Block(live, slice(None), base + self.read(gates[:, live]))
        else:
            yield from self.store.blocks(gates, base)


@dataclass(eq=False)
class _Store:
    """The buffers. Autograd's nodes hold these and not the tape, whose order holds them: nobody would ever free the circle."""

    values: Float[Tensor, "source token d_model"]
    bounds: Sequence[int]
    gradients: Float[Tensor, "source token d_model"] | None

    def blocks(self, gates: Float[Tensor, "span port source"], base: Float[Tensor, "token d_model"]) -> Iterator[Block]:
        """Base plus gated sums, a few tokens at a time."""
        for table, start, stop in zip(gates, self.bounds, self.bounds[1:], strict=False):
            ports, nodes = (table != 0).any(1), (table != 0).any(0)
            if start == stop or not bool(ports.any()):
                continue
            few = int(nodes.sum()) * 2 < len(nodes)
            table = table[ports][:, nodes] if few else table[ports]
            n_blocks = -(-(stop - start) // BLOCK)
            edges = [start + (stop - start) * i // n_blocks for i in range(n_blocks + 1)]
            for a, b in pairwise(edges):
                known = self.values[: gates.shape[2], a:b]
                known = (known[nodes] if few else known).transpose(0, 1)
                # One product per token: a third faster than one wide product with as few rows as there are ports.
                here = base[a:b, None].expand(-1, len(table), -1)
                streams = torch.baddbmm(here, table.expand(b - a, -1, -1), known)
                yield Block(ports, slice(a, b), streams.transpose(0, 1))

    def slices(self, n: int) -> list[tuple[int, int, Tensor]]:
        """Per span, its bounds and the first `n` nodes' values there as one matrix (node, token x d_model)."""
        return [(a, b, self.values[:n, a:b].flatten(1)) for a, b in pairwise(self.bounds)]

    def sums(self, gates: Float[Tensor, "span port source"]) -> Float[Tensor, "port token d_model"]:
        """Gated sums."""
        nothing = self.values.new_zeros(self.values.shape[1:])
        out = self.values.new_zeros(gates.shape[1], *nothing.shape)
        for block in self.blocks(gates, nothing):
            out[block.ports, block.tokens] = block.streams
        return out


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, order: Tensor, store: _Store, first: int) -> Tensor:
        """Put the values on the tape; what is returned only marks the order."""
        ctx.store, ctx.place = store, slice(first, first + len(values))
        store.values[ctx.place] = values
        return torch.zeros_like(order)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        """What all later reads have added up."""
        gradients = ctx.store.gradients[ctx.place]
        return gradients, gradients.new_zeros(()), None, None


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, order: Tensor, store: _Store) -> Tensor:  # noqa: ARG004 - `order` makes the chain
        """Gated sums."""
        ctx.store = store
        ctx.save_for_backward(gates)
        return store.sums(gates)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        """By a gate: node times gradient, summed over tokens; by a node: gates times gradient, added on the tape."""
        (gates,), store, (gradient,) = ctx.saved_tensors, ctx.store, gradients
        n, by_gate = gates.shape[2], torch.zeros_like(gates)
        for span, (a, b, known) in enumerate(store.slices(n)):
            part = gradient[:, a:b].flatten(1)
            by_gate[span] = part @ known.mT
            store.gradients[:n, a:b] += (gates[span].mT @ part).unflatten(1, (b - a, gradient.shape[-1]))
        return by_gate, gradient.new_zeros(()), None
