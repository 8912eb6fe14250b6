"""Features that hold a variable, chosen by learning a mask: differential binary masking.

    found = dbm(ready)                                          # of the site's own coordinates
    found = dbm(ready, PCA.fit(ready.values(), 64))             # of principal axes, or of a sparse dictionary's features
    found.mediator.gate                                         # (k,) ones and zeros

Every feature has a gate between the base's and the source's value, (1 - g) f_base + g f_source with g = sigmoid(w / T), and a
price; the temperature T falls while it is learnt, so that gates end open or closed (Cao et al. 2020, arXiv 2004.14992; Davies et
al. 2023, 2307.03637; as in MIB, Mueller et al. 2025).
"""

from dataclasses import replace

import torch

from mediant.core.errors import OutOfRange
from mediant.interventions.features import Featurizer
from mediant.interventions.mediator import Mediator
from mediant.search.interchange import Interchanges
from mediant.search.learning import Learned, learn

TEMPERATURES = (1.0, 0.01)


def dbm(
    ready: Interchanges, features: Featurizer | None = None, *, price: float = 1e-4, epochs: int = 8, lr: float = 1e-2
) -> Learned:
    """Learn which features' exchange gives the causal model's answers.

    Args:
        features: the basis; None for the site's own coordinates ("neurons").
        price: nats per open gate; MIB's scripts use 0, its library 1e-4.

    Raises:
        OutOfRange: a price below 0.
    """
    if price < 0:
        raise OutOfRange(f"an open gate cannot cost less than nothing, got a price of {price}")
    k = ready.width if features is None else features.n_features
    wish = torch.zeros(k, requires_grad=True)

    def soft(temperature: float) -> Mediator:
        return Mediator(ready.site, ready.span, features, torch.sigmoid(wish / temperature))

    def hard() -> Mediator:
        return Mediator(ready.site, ready.span, features, (wish > 0).to(torch.float32))

    def cost(mediator: Mediator) -> torch.Tensor:
        assert mediator.gate is not None  # noqa: S101 - `soft` gives one
        return price * mediator.gate.sum()

    found = learn(ready, [wish], soft, hard, epochs=epochs, rates=[lr], temperatures=TEMPERATURES, cost=cost)
    return replace(found, wishes=wish.detach())
