"""Requests drawn and encoded once, and learnt from again and again.

bank = Bank.drawn(vae, words, encode, folder)
rows = bank.draw(random, ("colour", "style"), 64)
bank.references[rows], bank.targets[rows], bank.ids[rows]      # latents (n, token, channel), and token ids
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from mediant.tasks.pictures import requests
from mediant.tasks.pictures.painter import Pixels
from mediant.tasks.requests import BUCKETS, lengthened

# How many of 1,000 requests are of each bucket.
SHARES = {"text": 300, "colour": 120, "style": 280, "identity": 200, "add": 50, "remove": 50}
# Share of instructions that go on with words that say nothing, in place of padding.
LONG = 0.3
_AT_ONCE = 64
Tokenize = Callable[[Sequence[str]], Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Bank:
    """Latents and tokens of requests; those without a reference have zeros there.

    Attributes:
        buckets: per request, its bucket's place in `BUCKETS`.
        mask: 0 where a slot is padding.
    """

    references: Float[Tensor, "n token channel"]
    targets: Float[Tensor, "n token channel"]
    ids: Int[Tensor, "n slot"]
    mask: Int[Tensor, "n slot"]
    buckets: Int[Tensor, " n"]

    @classmethod
    def drawn(
        cls, n: int, seed: int, encode: Callable[[Pixels], Tensor], tokenize: Tokenize, file: Path
    ) -> "Bank":  # fmt: skip
        """`n` requests of the main split, kept in a file."""
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".partial")
            save_file(_encoded(n, seed, encode, tokenize), partial)
            partial.replace(file)
        return cls(**load_file(file))

    def draw(self, generator: torch.Generator, buckets: Sequence[str], n: int) -> Int[Tensor, " n"]:
        """Rows of requests of these buckets."""
        places = torch.tensor([BUCKETS.index(bucket) for bucket in buckets])
        among = torch.nonzero(torch.isin(self.buckets, places)).flatten()
        return among[torch.randint(len(among), (n,), generator=generator)]


def pictures(n: int, seed: int) -> Pixels:
    """Pictures of the main split, references and answers alike, as often as the bank has them."""
    random, found = Random(f"pictures/{seed}"), list[Pixels]()
    while len(found) < n:
        request = requests.draw_request(random, _bucket(random), "")
        assert request.target is not None  # noqa: S101 - drawn requests have their answer
        found += [request.target, *request.references]
    return np.stack(found[:n])


def _bucket(random: Random) -> str:
    return random.choices(list(SHARES), list(SHARES.values()))[0]


def _encoded(n: int, seed: int, encode: Callable[[Pixels], Tensor], tokenize: Tokenize) -> dict[str, Tensor]:
    random = Random(f"bank/{seed}")
    parts: dict[str, list[Tensor]] = {"references": [], "targets": [], "ids": [], "mask": [], "buckets": []}
    blank = np.zeros((requests.SIZE, requests.SIZE, 3), np.uint8)
    for begin in range(0, n, _AT_ONCE):
        drawn = [requests.draw_request(random, _bucket(random), "") for _ in range(min(_AT_ONCE, n - begin))]
        shown = np.stack([each.references[0] if each.references else blank for each in drawn])
        has = torch.tensor([bool(each.references) for each in drawn])
        parts["references"].append((encode(shown) * has[:, None, None]).half())
        parts["targets"].append(encode(np.stack([each.target for each in drawn if each.target is not None])).half())
        tokens = tokenize(_some_lengthened(random, [each.instruction for each in drawn], tokenize))
        parts["ids"].append(tokens["input_ids"])
        parts["mask"].append(tokens["attention_mask"])
        parts["buckets"].append(torch.tensor([BUCKETS.index(each.bucket) for each in drawn]))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


def _some_lengthened(random: Random, instructions: Sequence[str], tokenize: Tokenize) -> list[str]:
    """Some with so many words more that they still fit: a word of them is a token, and so is the comma before."""
    room = (tokenize(instructions)["attention_mask"] == 0).sum(1).tolist()
    return [
        lengthened(each, random.randint(1, spare - 1)) if spare > 1 and random.random() < LONG else each
        for each, spare in zip(instructions, room, strict=True)
    ]
