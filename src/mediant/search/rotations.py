"""Subspaces that hold a variable, found by learning a rotation: DAS and boundless DAS.

    found = das(ready, k=8)                    # ready: Interchanges at a site and span
    found.mediator.features.basis              # (d, k), orthonormal columns
    ready_test.hits(found.mediator)            # interchange accuracy on items it never saw

Distributed alignment search (Geiger et al. 2023, arXiv 2303.02536): the part of the base's value inside a subspace gives way to
the source's, h + R R^T (h_source - h), and R is turned until the model answers as the causal model does. Boundless DAS (Wu et al.
2023, 2305.08809) learns the whole rotation and how many of its first axes take part. Both can make structure where there is none:
the same search on a model with random weights, or towards shuffled answers, belongs beside every result.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import OutOfRange
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.features import Rotation
from mediant.interventions.mediator import Mediator
from mediant.search.descent import descend
from mediant.search.interchange import Interchanges
from mediant.search.learning import Learned, learn
from mediant.search.site_masks import Exchanging

# The soft boundary of boundless DAS cools from here to here (Wu et al. 2023).
BOUNDARY_TEMPERATURES = (50.0, 0.1)


def das(ready: Interchanges, *, k: int, epochs: int = 8, lr: float = 1e-2, seed: int = 0) -> Learned:
    """Learn the `k`-dimensional subspace whose exchange gives the causal model's answers.

    Raises:
        OutOfRange: a size that does not fit the site.
    """
    if not 1 <= k <= ready.width:
        raise OutOfRange(f"a subspace of {ready.site} has 1 to {ready.width} dimensions, got k = {k}")
    free = _started(ready.width, k, seed)

    def mediator() -> Mediator:
        return Mediator(ready.site, ready.span, Rotation(_orthonormal(free)))

    return learn(ready, [free], lambda _: mediator(), mediator, epochs=epochs, rates=[lr])


def das_made(
    parts: Sequence[Exchanging], site: Site, span: Span, *, width: int, k: int, epochs: int = 8, lr: float = 1e-2, seed: int = 0
) -> Mediator:
    """The same towards whatever the sources make, such as pictures: `parts` say how far an outcome is from theirs.

    Raises:
        OutOfRange: a size that does not fit the site.
    """
    if not 1 <= k <= width:
        raise OutOfRange(f"a subspace of {site} has 1 to {width} dimensions, got k = {k}")
    free = _started(width, k, seed)

    def loss(step: int, _: float) -> Tensor:
        part, features = parts[step % len(parts)], Rotation(_orthonormal(free))
        edits = [replace(one, features=features) for one in part.swaps(site, span)]
        return part.wrong(part.outcome_of(edits, gradients=True))

    descend([free], loss, steps=epochs * len(parts), rates=[lr])
    return Mediator(site, span, Rotation(_orthonormal(free.detach())))


def boundless_das(
    ready: Interchanges, *, epochs: int = 8, lr: float = 1e-2, boundary_lr: float = 1e-2, price: float = 0.0, seed: int = 0
) -> Learned:
    """Learn the whole rotation, and how many of its first axes are exchanged.

    Args:
        price: nats per share of axes exchanged; 0 as published.
    """
    free = _started(ready.width, ready.width, seed)
    share = torch.tensor(0.5, requires_grad=True)
    places = (torch.arange(ready.width) + 0.5) / ready.width

    def basis() -> Rotation:
        return Rotation(_orthonormal(free))

    def soft(temperature: float) -> Mediator:
        gate = torch.sigmoid((share - places) * ready.width / temperature)
        return Mediator(ready.site, ready.span, basis(), gate)

    def hard() -> Mediator:
        return Mediator(ready.site, ready.span, basis(), (places < share.detach()).to(torch.float32))

    return learn(
        ready, [free, share], soft, hard, epochs=epochs, rates=[lr, boundary_lr], temperatures=BOUNDARY_TEMPERATURES,
        cost=lambda _: price * share.clamp(0, 1),
    )  # fmt: skip


def _started(width: int, k: int, seed: int) -> Float[Tensor, "d k"]:
    return torch.randn(width, k, generator=torch.Generator().manual_seed(seed)).div(width**0.5).requires_grad_()


def _orthonormal(free: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    """Orthonormal columns that span what `free` spans; its gradient is the QR decomposition's."""
    basis, upper = torch.linalg.qr(free)
    # Without this, columns may flip their signs between steps, which no subspace notices but an ordered rotation would.
    found: Tensor = basis * upper.diagonal().sign()
    return found
