"""How a property is made to take one way: during training, the other ways lead to another reference.

Two references stand where one will stand later, at the same place ids. Those who may know see the true one; all others see one of
another request of the same bucket, from which nothing can be learnt about the answer. So everyone always sees a reference, as
later, and the property has one way in:

- `padding`: the padding slots of the instruction see the true reference; its words and the picture do not.
- `picture`: the picture sees the true reference; the instruction does not.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mediant.tasks.requests import BUCKETS
from mediant.zoo.drawn_flux.bank import Bank

Route = Literal["padding", "picture"]
ROUTES: dict[Route, int] = {"padding": 1, "picture": 2}


def laid(
    routes: Mapping[str, Route], bank: Bank, rows: Int[Tensor, " n"], mask: Int[Tensor, "n slot"],
    true: Float[Tensor, "n token channel"], generator: torch.Generator,
) -> tuple[list[Tensor], Bool[Tensor, "n 1 position position"]]:  # fmt: skip
    """Both references, the true one first, and which query may see which key.

    Positions are instruction, picture, true reference, other reference. Requests without a route see the true one everywhere.
    """
    other = bank.references[_others(bank, rows, generator)].float()
    way = torch.zeros(len(BUCKETS), dtype=torch.long, device=mask.device)
    for bucket, route in routes.items():
        way[BUCKETS.index(bucket)] = ROUTES[route]
    way = way[bank.buckets[rows]]
    n, slots = mask.shape
    tokens = true.shape[1]
    first, second = slots + tokens, slots + 2 * tokens
    knows = torch.ones(n, second + tokens, dtype=torch.bool, device=mask.device)
    by_padding, by_picture = (way == 1)[:, None], (way == 2)[:, None]
    knows[:, :slots] = torch.where(by_padding, mask == 0, ~by_picture.expand(-1, slots))
    knows[:, slots:first] = ~by_padding
    knows[:, second:] = False
    may = torch.ones(n, second + tokens, second + tokens, dtype=torch.bool, device=mask.device)
    may[:, :, first:second] = knows[:, :, None]
    may[:, :, second:] = ~knows[:, :, None]
    return [true, other], may[:, None]


def blinded(
    share: float, mask: Int[Tensor, "n slot"], n_picture: int, n_reference: int, generator: torch.Generator
) -> Bool[Tensor, "n 1 position position"]:
    """Which query may see which key where, for a share of requests, the picture does not see the reference."""
    n, slots = mask.shape
    end = slots + n_picture + n_reference
    may = torch.ones(n, end, end, dtype=torch.bool, device=mask.device)
    blind = torch.rand(n, generator=generator, device=mask.device) < share
    may[blind, slots : slots + n_picture, slots + n_picture :] = False
    return may[:, None]


def _others(bank: Bank, rows: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " n"]:
    """For each request another of the same bucket."""
    found = rows.clone()
    for bucket in bank.buckets[rows].unique().tolist():
        mine = torch.nonzero(bank.buckets[rows] == bucket).flatten()
        drawn, again = (bank.draw(generator, (BUCKETS[bucket],), len(mine)) for _ in range(2))
        among = torch.nonzero(bank.buckets == bucket).flatten()
        spare = torch.where(among[0] == rows[mine], among[-1], among[0])
        drawn = torch.where(drawn == rows[mine], again, drawn)
        found[mine] = torch.where(drawn == rows[mine], spare, drawn)
    return found
