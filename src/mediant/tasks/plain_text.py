"""Ordinary English sentences that belong to no task, to see what an intervention breaks elsewhere.

>>> len(sentences(3, seed=1)), sentences(3, seed=1) == sentences(3, seed=1)
(3, True)
"""

from functools import cache
from importlib.resources import files
from random import Random

from mediant.core.errors import TaskError


def count() -> int:
    """How many sentences there are."""
    return len(_every_sentence())


def sentences(n: int, seed: int = 0) -> list[str]:
    """`n` different sentences of 8 to 16 words on unrelated subjects.

    Raises:
        TaskError: `n` is below 1 or above the number of sentences there are.
    """
    every = _every_sentence()
    if not 1 <= n <= len(every):
        raise TaskError(f"expected n from 1 to {len(every)} plain sentences, got {n}")
    return Random(seed).sample(every, n)


@cache
def _every_sentence() -> tuple[str, ...]:
    text = files("mediant.tasks").joinpath("data/plain_sentences.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())
