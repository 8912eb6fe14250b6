"""A mediator: which part of what a site holds, at which tokens, in which basis.

    whole = Mediator(Site("resid_post", 12), Span("last"))
    line = Mediator(Site("resid_post", 12), Span("last"), Rotation(basis))
    with edit(lm, line.swap(source)):          # `source`: the site's values there in another run
        ...

Z = (site, span, features, gate): searches find mediators, interventions write them, measures say what that did.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Activation, Edit, swap
from mediant.interventions.features import Featurizer


@dataclass(frozen=True, eq=False)
class Mediator:
    """What an interchange exchanges.

    Attributes:
        features: the basis; None for the site's own coordinates.
        gate: which features, by share, (k,) in [0, 1]; None for all of them.
    """

    site: Site
    span: Span
    features: Featurizer | None = None
    gate: Float[Tensor, " k"] | None = None

    def swap(self, source: Activation) -> Edit:
        """The edit that writes the source's values of this mediator, and nothing else of the site."""
        return replace(swap(self.site, self.span, source), features=self.features, gate=self.gate)

    def size(self, width: int) -> float:
        """How many dimensions of the site, `width` wide, it holds: its features, each by its gate."""
        if self.gate is not None:
            return float(self.gate.detach().sum())
        return float(width if self.features is None else self.features.n_features)

    @property
    def hard(self) -> "Mediator":
        """The same with every gate open or closed, whichever is nearer."""
        return self if self.gate is None else replace(self, gate=(self.gate.detach() > 0.5).to(torch.float32))
