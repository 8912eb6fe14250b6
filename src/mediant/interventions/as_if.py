"""The run that ports would see if every node had written something else, such as its mean over other prompts, or nothing.

    clean = observe(lm, batch, tokens)
    nothing = as_if(lm, batch, tokens, clean, torch.zeros_like(clean.outputs))

Streams are sums of what nodes wrote, so they follow from the outputs; queries, keys, values and attention are then the model's
own on those streams. With the outputs of another run this is that run.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.interventions.execute import run
from mediant.interventions.nodes import Nodes, Observing, TokenOrder
from mediant.subject import Batch, Subject


def as_if(
    subject: Subject,
    batch: Batch,
    tokens: TokenOrder,
    observed: Nodes,
    outputs: Float[Tensor, "source token d_model"],
    *,
    keep: int = 1,
    with_attention: bool = False,
) -> Nodes:
    """One forward.

    Args:
        observed: any run of the same batch or of one aligned with it, for what streams hold besides outputs (biases).
    """
    passage = _AsIf(subject, tokens, observed, outputs, with_attention=with_attention)
    with torch.no_grad(), passage.open():
        logits = run(subject, batch, keep=keep).logits
    return passage.nodes(logits)


class _AsIf(Observing):
    def __init__(self, subject: Subject, tokens: TokenOrder, observed: Nodes, outputs: Tensor, *, with_attention: bool) -> None:
        super().__init__(subject, tokens, with_attention=with_attention)
        self.observed, self.outputs, self.shift = observed, outputs, outputs - observed.outputs
        self._ports: Tensor | None = None

    def _moved(self, target: int, stream: Float[Tensor, "token d_model"]) -> Tensor:
        return stream + self.shift[: self.graph.readable(target)].sum(0)

    def at_embedding(self, stream: Tensor) -> Tensor:
        """Nothing: streams are set where they are read."""
        return stream

    def at_attention(self, layer: int, stream: Tensor) -> None:  # noqa: ARG002
        """All ports read one stream."""
        moved = self._moved(self.graph.first_target(layer), self.observed.attention_in[layer])
        n = 3 * self.graph.n_heads
        every, normed = torch.ones(n, dtype=torch.bool, device=moved.device), self.ports.normed(layer, moved)
        made = self.ports.project(normed.expand(n, -1, -1), self.ports.weights(layer), every)
        self._ports = made.unflatten(0, (3, self.graph.n_heads))
        self.attention_in.append(moved)

    def at_port(self, layer: int, port: int, values: Tensor) -> Tensor:  # noqa: ARG002
        """Put them in the place of the model's own."""
        assert self._ports is not None  # noqa: S101 - the stream is read before it is projected
        self.projected.append(self._ports[port].to(values.dtype))
        return self.tokens.put(values, self._ports[port].transpose(0, 1))

    def at_heads(self, layer: int, mixed: Tensor, projected: Tensor) -> None:
        """Nothing: outputs are given."""

    def at_mlp(self, layer: int, stream: Tensor) -> Tensor:
        """The stream that the outputs add up to."""
        self.mlp_in.append(self._moved(self.graph.first_target(layer) + 3 * self.graph.n_heads, self.observed.mlp_in[layer]))
        return self.tokens.put(stream, self.mlp_in[-1])

    def at_mlp_output(self, layer: int, output: Tensor) -> None:
        """Nothing: outputs are given."""

    def at_final(self, stream: Tensor) -> Tensor:
        """The stream that the outputs add up to."""
        self.final_in = self._moved(self.graph.n_targets - 1, self.observed.final_in)
        return self.tokens.put(stream, self.final_in)
