"""Learn a sparse dictionary of activations: directions of which few together account for any one of them.

    learned = learn_dictionary(values, n_features=1152, active=16, steps=600)      # values: (n, d) of a site
    learned.dictionary, learned.explained                                          # a featurizer; share of variance, held out

Of every activation only the `active` largest features count (top-k autoencoders, Gao et al. 2024, arXiv 2406.04093). Their
auxiliary loss, which shall keep features from dying, is left out: on planted features and on few activations it revived none.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import OutOfRange
from mediant.interventions.dictionary import SparseDictionary

# Share of activations kept for testing.
HELD = 0.1


@dataclass(frozen=True, eq=False)
class LearnedDictionary:
    """A dictionary and how good it is.

    Attributes:
        explained: share of the variance of held-out activations that it reconstructs.
        dead: share of features active on none of the activations.
        n: activations it was learned from.
    """

    dictionary: SparseDictionary
    explained: float
    dead: float
    n: int


def learn_dictionary(
    values: Float[Tensor, "n d"],
    *,
    n_features: int,
    active: int,
    steps: int,
    batch_size: int = 256,
    lr: float = 2e-3,
    seed: int = 0,
) -> LearnedDictionary:
    """Adam on the squared error of reconstruction, decoder rows kept at length 1.

    Raises:
        OutOfRange: more features active than there are, no steps, or too few activations to hold some out.
    """
    if not 1 <= active <= n_features or steps < 1:
        raise OutOfRange(f"1 to {n_features} features may be active and steps are at least 1, got {active} and {steps}")
    if len(values) < 20:
        raise OutOfRange(f"a dictionary is learned from 20 activations or more, got {len(values)}")
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(values), generator=random)
    n_held = max(1, round(HELD * len(values)))
    held, known = values[order[:n_held]].float(), values[order[n_held:]].float()
    model = _Model(known, n_features, active, random)
    optimiser = torch.optim.Adam(model.parameters, lr=lr)
    for step in range(steps):
        x = known[torch.randint(len(known), (batch_size,), generator=random)]
        for one, gradient in zip(model.parameters, torch.autograd.grad(model.loss(x), model.parameters), strict=True):
            one.grad = gradient
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimiser.step()
        model.norm()
    found = model.dictionary()
    with torch.no_grad():
        error = (found.decode(found.encode(held)) - held).square().sum()
        explained = 1 - float(error / (held - known.mean(0)).square().sum().clamp(min=1e-12))
        dead = float((found.encode(values.float()) > 0).any(0).logical_not().float().mean())
    return LearnedDictionary(found, explained, dead, len(known))


class _Model:
    """The autoencoder's weights; activations are scaled to a mean square of 1 while it learns."""

    def __init__(self, known: Float[Tensor, "n d"], n_features: int, active: int, random: torch.Generator) -> None:
        self.active = active
        self.scale = (known - known.mean(0)).square().mean().sqrt().clamp(min=1e-6)
        decoder = torch.randn(n_features, known.shape[1], generator=random)
        self.decoder = (decoder / decoder.norm(dim=-1, keepdim=True)).requires_grad_()
        self.encoder = self.decoder.detach().mT.clone().requires_grad_()
        self.bias = torch.zeros(n_features, requires_grad=True)
        self.offset = (known.mean(0) / self.scale).requires_grad_()

    @property
    def parameters(self) -> list[Tensor]:
        return [self.decoder, self.encoder, self.bias, self.offset]

    def loss(self, x: Float[Tensor, "n d"]) -> Tensor:
        """Mean squared error of the reconstruction."""
        x = x / self.scale
        kept = _largest(((x - self.offset) @ self.encoder + self.bias).relu(), self.active)
        error: Tensor = (x - kept @ self.decoder - self.offset).square().mean()
        return error

    def norm(self) -> None:
        """Bring the decoder's rows back to length 1."""
        with torch.no_grad():
            self.decoder /= self.decoder.norm(dim=-1, keepdim=True).clamp(min=1e-6)

    def dictionary(self) -> SparseDictionary:
        """The same in the activations' own scale."""
        return SparseDictionary(
            self.encoder.detach(), self.decoder.detach(), self.bias.detach() * self.scale, self.offset.detach() * self.scale,
            rule="topk", k=self.active,
        )  # fmt: skip


def _largest(raw: Float[Tensor, "n k"], many: int) -> Float[Tensor, "n k"]:
    values, places = raw.topk(many, dim=-1)
    return torch.zeros_like(raw).scatter(-1, places, values)
