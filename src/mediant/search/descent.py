"""Gradient descent on parameters of an intervention: the one loop behind every mediator that is learned.

    course = descend([parameter], loss, steps=200, rates=[1e-2], temperatures=(1.0, 0.01))

`loss(step, temperature)` builds the intervention from the parameters, runs the subject under it and says how wrong the outcome
is. The subject's own weights get no gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mediant.core.errors import OutOfRange


@dataclass(frozen=True)
class Course:
    """How a descent went.

    Attributes:
        losses: per step.
        temperatures: of what was soft, per step; all 1 where nothing was.
    """

    losses: list[float]
    temperatures: list[float]

    @property
    def steps(self) -> int:
        """Updates made."""
        return len(self.losses)


def descend(
    parameters: Sequence[Tensor], loss: Callable[[int, float], Tensor], *, steps: int, rates: Sequence[float],
    temperatures: tuple[float, float] = (1.0, 1.0),
) -> Course:  # fmt: skip
    """AdamW without weight decay; its steps shrink linearly to nothing, and the temperature falls linearly to its last value.

    Args:
        rates: first step size per parameter.

    Raises:
        OutOfRange: no steps.
    """
    if steps < 1:
        raise OutOfRange(f"learning takes at least 1 step, got {steps}")
    groups = [{"params": [one], "lr": rate} for one, rate in zip(parameters, rates, strict=True)]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
    cooling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    first, last = temperatures
    losses, heats = [], []
    for step in range(steps):
        heats.append(first + (last - first) * step / max(1, steps - 1))
        with torch.enable_grad():
            value = loss(step, heats[-1])
            # By these alone: a plain backward would leave gradients in the model.
            gradients = torch.autograd.grad(value, parameters)
        for one, gradient in zip(parameters, gradients, strict=True):
            one.grad = gradient
        optimiser.step()
        cooling.step()
        losses.append(float(value.detach()))
    return Course(losses, heats)
