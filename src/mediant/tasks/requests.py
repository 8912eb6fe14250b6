"""Requests to an image generator: an instruction, reference images that it calls "this image", and what is known of the answer.

    from mediant.tasks.pictures import requests
    for request in requests.generate("colour", 3, seed=0):
        request.instruction, request.references[0].shape, request.factors["colour"]

What a request is for is its *bucket*: `text` has no reference; `colour`, `style` and `identity` take one property of it; `add`
and `remove` edit it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from zlib import crc32

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
BUCKETS = ("text", "colour", "style", "identity", "add", "remove")
# Says nothing about a picture; takes the place of padding.
FILLER = "please take all the time you need and do it with great care before you show it to me thank you"


@dataclass(frozen=True, eq=False)
class Request:
    """One picture asked for.

    Attributes:
        references: images of shape (height, width, 3), in the order the generator is given them.
        height, width: of the picture asked for, in pixels.
        factors: what is known of the answer: factor -> value, as words.
        target: the answer as it was drawn, where that is known.
        seed: of the noise; by default made of the name, as in the paper.
    """

    name: str
    bucket: str
    instruction: str
    references: tuple[Pixels, ...] = ()
    height: int = 64
    width: int = 64
    factors: Mapping[str, str] = field(default_factory=dict)
    target: Pixels | None = None
    seed: int = -1

    def __post_init__(self) -> None:
        if self.seed < 0:
            object.__setattr__(self, "seed", crc32(self.name.encode()))


def lengthened(instruction: str, n_words: int) -> str:
    """The instruction with so many words behind it that say nothing about the picture; fewer are a beginning of more."""
    words = islice(cycle(FILLER.split()), n_words)
    return f"{instruction}, {' '.join(words)}" if n_words else instruction


@dataclass(frozen=True, eq=False)
class RequestPair:
    """One instruction with two references: what `source` takes from its own is to be seen in the picture of `base`."""

    source: Request
    base: Request


def with_reference_of(pair: RequestPair) -> Request:
    """The base with the source's reference; noise and instruction stay its own."""
    return replace(pair.base, references=pair.source.references, factors=pair.source.factors, target=pair.source.target)
