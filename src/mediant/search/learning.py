"""Learning a mediator: its parameters are turned until exchanging it gives the causal model's answers.

found = learn(ready, [parameter], soft, hard, epochs=8, lr=1e-2)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mediant.core.errors import OutOfRange
from mediant.interventions.mediator import Mediator
from mediant.search.descent import Course, descend
from mediant.search.interchange import Interchanges


@dataclass(frozen=True, eq=False)
class Learned:
    """A mediator that was learned.

    Attributes:
        course: losses are cross-entropies in nats, prices included.
        tokens: how many tokens times layers were computed forward.
        wishes: of a mask, how much each feature wants to be exchanged, (k,); exchanged above 0.
    """

    mediator: Mediator
    course: Course
    tokens: int
    wishes: Tensor | None = None


def learn(
    ready: Interchanges, parameters: Sequence[Tensor], soft: Callable[[float], Mediator], hard: Callable[[], Mediator], *,
    epochs: int, rates: Sequence[float], temperatures: tuple[float, float] = (1.0, 1.0),
    cost: Callable[[Mediator], Tensor] | None = None,
) -> Learned:  # fmt: skip
    """Descend on the cross-entropy of the causal model's answers.

    Args:
        soft: the mediator at a temperature, of which the parameters get gradients.
        hard: what it has become.
        rates: first step size per parameter.
        cost: nats added to the loss, for a mediator that shall be small.

    Raises:
        OutOfRange: no epochs.
    """
    if epochs < 1:
        raise OutOfRange(f"learning takes at least 1 epoch, got {epochs}")
    begun = ready.subject.work.token_layers

    def loss(step: int, heat: float) -> Tensor:
        mediator = soft(heat)
        logits, batch = ready.step(mediator, step)
        return F.cross_entropy(logits.float(), batch.expected) + (cost(mediator) if cost else 0.0)

    course = descend(parameters, loss, steps=epochs * ready.n_batches, rates=rates, temperatures=temperatures)
    with torch.no_grad():
        found = hard()
    return Learned(found, course, ready.subject.work.token_layers - begun)
