"""What an edit did, counted while it acts: forwards, tokens, steps, and how much it changed what was there.

    count = FiringCount()
    count.add(old, new, steps=frozenset())
    count.report(edit)           # Firing(label="zero head_z.9.6 at last", forwards=1, tokens=8, change=1.0)

Two norms per firing would cost a small model's token as much as the edit itself, so small firings wait and are
measured many at a time.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.interventions.edits import Edit

# Numbers in a firing that waits, and how many wait for one another: together at most two megabytes per edit.
_SMALL = 4096
_TOGETHER = 64


@dataclass(frozen=True)
class Firing:
    """What an edit did: forwards it acted in, tokens it wrote, mean relative change, steps never reached."""

    label: str
    forwards: int
    tokens: int
    change: float
    unreached_steps: tuple[int, ...] = ()


class FiringCount:
    """The firings of one edit, so far."""

    def __init__(self) -> None:
        self.forwards = 0
        self.tokens = 0
        self.steps: set[int] = set()
        self._sizes: list[Float[Tensor, "firing 2"]] = []  # norms of the change and of what was there
        self._waiting: list[Float[Tensor, "2 n *d"]] = []

    def add(self, old: Float[Tensor, "n *d"], new: Float[Tensor, "n *d"], steps: frozenset[int]) -> None:
        """One firing: what was there, what was written instead, and the generated tokens or steps it concerned."""
        self.forwards += 1
        self.tokens += old.shape[0]
        self.steps |= steps
        if old.requires_grad or new.requires_grad:
            old, new = old.detach(), new.detach()
        if old.numel() > _SMALL:
            self._sizes.append(_sizes(new[None], old[None]))
            return
        both = torch.stack([new, old])
        if len(self._waiting) == _TOGETHER or (self._waiting and self._waiting[0].shape != both.shape):
            self._measure()
        self._waiting.append(both)

    def report(self, edit: Edit) -> Firing:
        """All of it in one line; a relative change is the norm of a firing's change by the norm of what was there."""
        self._measure()
        change = 0.0
        if self._sizes:
            changed, before = torch.cat([each.cpu() for each in self._sizes]).unbind(-1)
            change = float((changed / before.clamp(min=1e-12)).mean())
        missed = tuple(sorted(set(edit.steps or ()) - self.steps))
        return Firing(edit.label, self.forwards, self.tokens, change, missed)

    def _measure(self) -> None:
        if self._waiting:
            self._sizes.append(_sizes(*torch.stack(self._waiting, 1)))
            self._waiting.clear()


def _sizes(new: Float[Tensor, "firing n *d"], old: Float[Tensor, "firing n *d"]) -> Float[Tensor, "firing 2"]:
    """Per firing, the norm of the change and of what was there."""
    was = old.float().flatten(1)
    return torch.stack([torch.linalg.vector_norm(each, dim=-1) for each in (new.float().flatten(1) - was, was)], dim=-1)
