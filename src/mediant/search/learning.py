"""Learning a mediator: its parameters are turned until exchanging it gives the causal model's answers.

    found = learn(ready, [parameter], soft, hard, epochs=8, lr=1e-2)

The subject stays as it is; only the mediator's own parameters get gradients, through the layers above it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mediant.core.errors import OutOfRange
from mediant.interventions.mediator import Mediator
from mediant.search.interchange import Interchanges


@dataclass(frozen=True, eq=False)
class Learned:
    """A mediator that was learned.

    Attributes:
        losses: cross-entropy (nats) per step.
        temperatures: of what was soft, per step; empty where nothing was.
        tokens: how many tokens times layers were computed forward.
    """

    mediator: Mediator
    losses: list[float]
    temperatures: list[float]
    tokens: int

    @property
    def steps(self) -> int:
        """Updates made."""
        return len(self.losses)


def learn(
    ready: Interchanges, parameters: Sequence[Tensor], soft: Callable[[float], Mediator], hard: Callable[[], Mediator], *,
    epochs: int, lr: float, rates: Sequence[float] | None = None, temperatures: tuple[float, float] | None = None,
    cost: Callable[[Mediator], Tensor] | None = None,
) -> Learned:  # fmt: skip
    """AdamW, without weight decay, on the cross-entropy of the causal model's answers; steps shrink linearly to nothing.

    Args:
        soft: the mediator at a temperature, of which the parameters get gradients.
        hard: what it has become.
        rates: step size per parameter, where they differ.
        temperatures: the first and the last; in between it falls linearly.
        cost: nats added to the loss, for a mediator that shall be small.
    """
    if epochs < 1:
        raise OutOfRange(f"learning takes at least 1 epoch, got {epochs}")
    groups = [{"params": [one], "lr": rate} for one, rate in zip(parameters, rates or [lr] * len(parameters), strict=True)]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    steps, begun = epochs * ready.n_batches, ready.subject.work.token_layers
    cooling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    losses, heats = [], []
    for step in range(steps):
        heat = _cooled(temperatures, step, steps) if temperatures else 1.0
        with torch.enable_grad():
            mediator = soft(heat)
            logits, batch = ready.step(mediator, step)
            loss = F.cross_entropy(logits.float(), batch.expected) + (cost(mediator) if cost else 0.0)
            # By these alone: a plain backward would leave gradients in the model.
            gradients = torch.autograd.grad(loss, parameters)
        for one, gradient in zip(parameters, gradients, strict=True):
            one.grad = gradient
        optimiser.step()
        cooling.step()
        losses.append(float(loss.detach()))
        heats += [heat] if temperatures else []
    with torch.no_grad():
        found = hard()
    return Learned(found, losses, heats, ready.subject.work.token_layers - begun)


def _cooled(temperatures: tuple[float, float], step: int, steps: int) -> float:
    """From the first to the last temperature, linearly; the last step has the last one."""
    first, last = temperatures
    return first + (last - first) * step / max(1, steps - 1)
