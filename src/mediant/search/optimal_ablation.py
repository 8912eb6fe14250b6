"""Optimal ablation: the constant in whose place a part is missed least, and how much it is missed then.

    found = optimal_ablation(lm, pairs, Site("head_z", 9, 6))
    found.loss, found.mean_loss, found.zero_loss        # nats; what the part is needed for, under three kinds of ablation

Zero and mean are values that a part may never take, and some of the loss they cause is the rest of the model being led astray.
The constant that does the least harm leaves only what is lost with the part's information (Li & Janson 2024, arXiv 2409.09951).
It is never worse than the mean, from which the search starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import OutOfRange, TaskError
from mediant.core.pair import Pair
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edits
from mediant.interventions.edits import Edit
from mediant.interventions.execute import run
from mediant.interventions.replay import Recording, record, replay
from mediant.subject import Subject
from mediant.tasks.encode import PairBatch, encode

# A round of updates that gains less than this share of the loss is one too many; so many of them end the search.
ENOUGH, PATIENCE, ROUND = 1e-3, 3, 20


@dataclass(frozen=True, eq=False)
class OptimalAblation:
    """What a part is missed for.

    Attributes:
        constant: the value in its place at every token.
        loss, mean_loss, zero_loss: nats from the model's own answer with the constant, the mean and zero there.
        losses: mean over each round of the search.
    """

    site: Site
    constant: Float[Tensor, " d"]
    loss: float
    mean_loss: float
    zero_loss: float
    losses: list[float]

    def edit(self, span: Span | str = "all") -> Edit:
        """The edit that puts the constant there."""
        return edits.set_to(self.site, span, self.constant)


def optimal_ablation(
    subject: Subject, pairs: Sequence[Pair], site: Site | str, span: Span | str = "all", *, lr: float = 3e-2, rounds: int = 50,
    batch_size: int = 32,
) -> OptimalAblation:  # fmt: skip
    """Search the constant by gradients, over clean prompts.

    Args:
        lr: Adam's step, as a share of the root mean square of the part's values.
        rounds: of `ROUND` updates, at most.

    Raises:
        TaskError: no pairs.
        OutOfRange: no rounds, or a site of all heads together.
    """
    if not pairs:
        raise TaskError("no pairs were given, so nothing could be missed")
    if rounds < 1:
        raise OutOfRange(f"a search takes at least 1 round, got {rounds}")
    ready = _Ready(subject, pairs, subject.validate(site), Span.of(span), batch_size)
    if ready.mean.ndim > 1:
        raise OutOfRange(f"site {site} is all heads together; a constant stands for one, e.g. '{site}.0'")
    scale = float(ready.mean.square().mean().sqrt().clamp(min=1e-6))
    best, best_loss = ready.mean, ready.whole(ready.mean)
    mean_loss, zero_loss = best_loss, ready.whole(torch.zeros_like(ready.mean))
    constant, losses, idle, step = ready.mean.clone().requires_grad_(), list[float](), 0, 0
    optimiser = torch.optim.Adam([constant], lr=lr * max(scale, ready.spread))
    while len(losses) < rounds and idle < PATIENCE:
        total = 0.0
        for _ in range(ROUND):
            loss = ready.missed(constant, step)
            # By the constant alone: a plain backward would leave gradients in the model.
            (constant.grad,) = torch.autograd.grad(loss, constant)
            optimiser.step()
            total, step = total + float(loss.detach()) / ROUND, step + 1
        losses.append(total)
        now = ready.whole(constant.detach())
        idle = idle + 1 if now >= best_loss * (1 - ENOUGH) else 0
        if now < best_loss:
            best, best_loss = constant.detach().clone(), now
    return OptimalAblation(ready.site, best, best_loss, mean_loss, zero_loss, losses)


class _Ready:
    """Prompts recorded from the site on, with the model's own answers and the site's mean."""

    def __init__(self, subject: Subject, pairs: Sequence[Pair], site: Site, span: Span, batch_size: int) -> None:
        self.site, self.span = site, span
        self.parts: list[tuple[PairBatch, Recording, Tensor]] = []
        seen = []
        with torch.no_grad():
            for i in range(0, len(pairs), batch_size):
                batch = encode(subject, pairs[i : i + batch_size])
                base = record(subject, batch.base, keep=batch.keep)
                seen.append(run(subject, batch.base, capture=[(site, span)]).captured[site, span].values)
                self.parts.append((batch, base.above(site), batch.prompt_logits(base.logits).float().log_softmax(-1)))
        values = torch.cat(seen)
        self.mean, self.spread = values.mean(0), float(values.float().var(0, correction=0).mean().sqrt())

    def missed(self, constant: Tensor, step: int) -> Tensor:
        """KL (nats) of one batch, counted round and round."""
        batch, base, answer = self.parts[step % len(self.parts)]
        with torch.set_grad_enabled(constant.requires_grad):
            out = replay(base, edits.set_to(self.site, self.span, constant), keep=batch.keep)
            return F.kl_div(
                batch.prompt_logits(out.logits).float().log_softmax(-1), answer, log_target=True, reduction="batchmean"
            )

    def whole(self, constant: Tensor) -> float:
        """The same over all prompts."""
        n = [len(batch.pairs) for batch, _, _ in self.parts]
        return sum(float(self.missed(constant, i)) * size for i, size in enumerate(n)) / sum(n)
