"""Gradients of a metric by what every port reads and every head mixes, from one forward and one backward.

    found = differentiate(lm, batch, tokens, lambda logits: logits[:, -1, 7].sum())
    for first, gradients in found.by_layer():        # (port, token, d_model), ports from `first` on
        ...

The gradient by a port's input is taken at the projections' outputs, where autograd already has it per head, and pulled
back through the head's weights and the layer's norm one layer at a time: memory never holds all ports at once. Nothing
is split, folded or copied in the model (Syed et al. 2023 use one split input per head for the same numbers).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.interventions.execute import run
from mediant.interventions.nodes import Nodes, Observing, TokenOrder
from mediant.interventions.ports import Ports, Score
from mediant.subject import Batch, Subject


@dataclass(eq=False)
class PortGradients:
    """Gradients of one run.

    Attributes:
        nodes: what the run itself wrote and read.
        projections: per layer, by queries, keys and values of each head.
        embedding: by the stream entering the first layer, through every path.
        mlps, final: by the streams that MLPs and the final norm read.
        mixed: per layer, by the head's mixed values, when attention was asked for.
    """

    ports: Ports
    nodes: Nodes
    embedding: Float[Tensor, "token d_model"]
    projections: list[Float[Tensor, "3 head token d_head"]]
    mlps: list[Float[Tensor, "token d_model"]]
    final: Float[Tensor, "token d_model"]
    mixed: list[Float[Tensor, "batch head pos d_head"]]

    def by_layer(self) -> Iterator[tuple[int, Float[Tensor, "port token d_model"]]]:
        """Gradients by neighbouring ports that read the same sources, with the first one's index."""
        graph = self.ports.graph
        for layer, gradient in enumerate(self.projections):
            first = graph.first_target(layer)
            yield first, self.ports.pull_back(layer, self.nodes.attention_in[layer], gradient)
            yield first + 3 * graph.n_heads, self.mlps[layer][None]
        yield graph.n_targets - 1, self.final[None]


class _Differentiating(Observing):
    def __init__(self, subject: Subject, tokens: TokenOrder, embedding: Tensor | None, *, with_attention: bool) -> None:
        super().__init__(subject, tokens, with_attention=with_attention)
        self.embedding = embedding
        self.entering: list[Tensor] = []
        self.read_by_port: list[Tensor] = []
        self.read_by_mlp: list[Tensor] = []
        self.read_last: list[Tensor] = []
        self.mixtures: list[Tensor] = []

    def at_embedding(self, stream: Tensor) -> Tensor:
        """Start the graph here, at the model's embeddings or at those given."""
        super().at_embedding(stream)
        start = stream.detach() if self.embedding is None else self.tokens.put(stream.detach(), self.embedding)
        self.entering.append(start.requires_grad_(True))
        return start

    def at_port(self, layer: int, port: int, values: Tensor) -> Tensor:
        """A view of its own, so that its gradient is this port's alone."""
        super().at_port(layer, port, values)
        self.read_by_port.append(values.view_as(values))
        return self.read_by_port[-1]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, score: Score) -> Tensor:
        """Keep the mixed values."""
        mixed = super().attend(layer, query, key, value, score)
        if self.with_attention:
            self.mixtures.append(mixed)
        return mixed

    def at_mlp(self, layer: int, stream: Tensor) -> Tensor:
        """A view of its own, apart from the stream that goes on."""
        super().at_mlp(layer, stream)
        self.read_by_mlp.append(stream.view_as(stream))
        return self.read_by_mlp[-1]

    def at_final(self, stream: Tensor) -> Tensor:
        """A view of its own."""
        super().at_final(stream)
        self.read_last.append(stream.view_as(stream))
        return self.read_last[-1]


def differentiate(
    subject: Subject,
    batch: Batch,
    tokens: TokenOrder,
    measure: Callable[[Tensor], Tensor],
    *,
    embedding: Float[Tensor, "token d_model"] | None = None,
    with_attention: bool = False,
    keep: int = 1,
) -> PortGradients:
    """One forward and one backward.

    Args:
        measure: logits (batch, keep, vocab) -> one number.
        embedding: what enters the first layer instead of the batch's own embeddings.
    """
    passage = _Differentiating(subject, tokens, embedding, with_attention=with_attention)
    with torch.enable_grad():
        with passage.open():
            logits = run(subject, batch, keep=keep).logits
        places = [*passage.entering, *passage.read_by_port, *passage.read_by_mlp, *passage.read_last, *passage.mixtures]
        # A port nobody depends on (the last layer's queries of earlier tokens, a dead branch) has gradient 0.
        found = torch.autograd.grad(measure(logits), places, allow_unused=True)
    entering, *gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(places, found, strict=True)]
    n = passage.graph.n_layers
    by_head = [tokens.pick(g.permute(2, 0, 1, 3)) for g in gradients[: 3 * n]]
    return PortGradients(
        passage.ports,
        passage.nodes(logits.detach()),
        tokens.pick(entering),
        [torch.stack(by_head[3 * layer : 3 * layer + 3]) for layer in range(n)],
        [tokens.pick(g) for g in gradients[3 * n : 4 * n]],
        tokens.pick(gradients[4 * n]),
        gradients[4 * n + 1 :],
    )
