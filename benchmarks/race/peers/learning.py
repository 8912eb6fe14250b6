"""The recipe of learning a subspace by hand, for peers that offer hooks: the same start, optimiser and schedule as ours."""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor


def started(width: int, k: int, seed: int = 0) -> Tensor:
    """Where the search begins, as in `mediant.search.rotations`."""
    return torch.randn(width, k, generator=torch.Generator().manual_seed(seed)) / width**0.5


def exchanged(base: Tensor, source: Tensor, basis: Tensor) -> Tensor:
    """The base's value with the source's inside the subspace."""
    return base + (source - base) @ basis @ basis.mT


def learned(logits: Callable[[Tensor], Tensor], wanted: Tensor, *, width: int, k: int, steps: int) -> Tensor:
    """Losses of some steps; `logits` runs the model with values exchanged in a basis."""
    free = started(width, k).requires_grad_()
    return descended([free], lambda: F.cross_entropy(logits(torch.linalg.qr(free)[0]), wanted), steps=steps)


def descended(parameters: Iterable[Tensor], loss_of: Callable[[], Tensor], *, steps: int) -> Tensor:
    """Losses of some steps with the optimiser and schedule that all contenders have."""
    optimiser = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    cooling = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    losses = []
    for _ in range(steps):
        loss = loss_of()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cooling.step()
        losses.append(loss.detach())
    return torch.stack(losses)
