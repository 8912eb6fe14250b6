"""Requests drawn and encoded once, and learnt from again and again.

bank = Bank.drawn(30_000, 0, encode, tokenize, file, workers=1)
rows = bank.draw(generator, ("colour", "style"), 64)
bank.references[rows], bank.targets[rows], bank.ids[rows]      # latents (n, token, channel), and token ids
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from mediant.tasks.pictures import requests
from mediant.tasks.pictures.painter import Pixels
from mediant.tasks.requests import BUCKETS, Request, lengthened
from mediant.training.sharding import drawn_in_shards

# How many of 1,000 requests are of each bucket.
SHARES = {"text": 300, "colour": 120, "style": 280, "identity": 200, "add": 50, "remove": 50}
# Share of instructions that go on with words that say nothing, in place of padding.
LONG = 0.3
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
        cls, n: int, seed: int, encode: Callable[[Pixels], Tensor], tokenize: Tokenize, file: Path, *,
        enlarge: int = 1, workers: int = 1,
    ) -> "Bank":  # fmt: skip
        """`n` requests of the main split, kept in a file.

        Args:
            enlarge: how much longer the reference's side is than the picture's.
            workers: processes that draw.
        """
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            drawn = drawn_in_shards(partial(_shard, f"bank/{seed}"), n, workers=workers)
            partial_file = file.with_suffix(".partial")
            save_file(_encoded(drawn, encode, tokenize, enlarge), partial_file)
            partial_file.replace(file)
        return cls(**load_file(file))

    def to(self, device: torch.device) -> "Bank":
        """The same on a device."""
        return Bank(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})

    def draw(self, generator: torch.Generator, buckets: Sequence[str], n: int) -> Int[Tensor, " n"]:
        """Rows of requests of these buckets; the generator is of the bank's device."""
        places = torch.tensor([BUCKETS.index(bucket) for bucket in buckets], device=self.buckets.device)
        among = torch.nonzero(torch.isin(self.buckets, places)).flatten()
        return among[torch.randint(len(among), (n,), generator=generator, device=self.buckets.device)]


def pictures(n: int, seed: int, *, workers: int = 1) -> Pixels:
    """Pictures of the main split, references and answers alike, as often as the bank has them."""
    found = list[Pixels]()
    # Every request has its answer, so as many requests as pictures are enough.
    for drawn in drawn_in_shards(partial(_shard, f"pictures/{seed}"), n, workers=workers):
        for request in drawn:
            assert request.target is not None  # noqa: S101 - drawn requests have their answer
            found += [request.target, *request.references]
        if len(found) >= n:
            break
    return np.stack(found[:n])


def enlarged(pixels: Pixels, by: int) -> Pixels:
    """Pictures (n, height, width, 3) with a side `by` times longer; every pixel becomes a square of them."""
    return pixels.repeat(by, 1).repeat(by, 2)


def _shard(seed: str, i: int, n: int) -> list[Request]:
    random = Random(f"{seed}/{i}")
    return [requests.draw_request(random, random.choices(list(SHARES), list(SHARES.values()))[0], "") for _ in range(n)]


def _encoded(
    every: Iterator[list[Request]], encode: Callable[[Pixels], Tensor], tokenize: Tokenize, enlarge: int
) -> dict[str, Tensor]:  # fmt: skip
    words = Random("words")
    parts: dict[str, list[Tensor]] = {"references": [], "targets": [], "ids": [], "mask": [], "buckets": []}
    blank = np.zeros((requests.SIZE, requests.SIZE, 3), np.uint8)
    for drawn in every:
        shown = np.stack([each.references[0] if each.references else blank for each in drawn])
        latents = encode(enlarged(shown, enlarge))
        has = torch.tensor([bool(each.references) for each in drawn], device=latents.device)
        parts["references"].append((latents * has[:, None, None]).half().cpu())
        parts["targets"].append(encode(np.stack([each.target for each in drawn if each.target is not None])).half().cpu())
        tokens = tokenize(_some_lengthened(words, [each.instruction for each in drawn], tokenize))
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
