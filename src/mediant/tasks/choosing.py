"""Choosing words a tokenizer keeps whole, and distinct combinations of them, from one seed.

A task's space of sentences is split into *cells* (a frame, an order of names, ...). `draw` spreads the
items evenly over the cells and never repeats a combination:

>>> from random import Random
>>> sorted(draw([2, 100], 4, Random(0)))[:2]
[(0, 0), (0, 1)]
>>> digits(17, (3, 10))
(1, 7)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Literal, TypeVar

from mediant.core.errors import TaskError, unknown

SingleToken = Callable[[str], bool]
"""Tells whether a text such as " Mary" is one token for the subject's tokenizer."""
Split = Literal["main", "heldout"]

Option = TypeVar("Option")
Word = TypeVar("Word", str, tuple[str, str])


def pick(what: str, name: str, options: Mapping[str, Option]) -> Option:
    """The option called `name`, or an `UnknownName` that lists the nearest ones."""
    if name not in options:
        raise unknown(what, name, options)
    return options[name]


def whole(words: Iterable[Word], single_token: SingleToken | None, *, what: str, at_least: int) -> list[Word]:
    """Words (or tuples of word forms) that are one token each after a space; all of them when `single_token` is None.

    Raises:
        TaskError: fewer than `at_least` remain.
    """
    offered = list(words)
    kept = [word for word in offered if single_token is None or all(single_token(f" {form}") for form in _forms(word))]
    if len(kept) < at_least:
        raise TaskError(
            f"only {len(kept)} of {len(offered)} {what} are single tokens for this tokenizer, need at least {at_least}; "
            "leave single_token out to allow words of several tokens"
        )
    return kept


def _forms(word: str | tuple[str, str]) -> tuple[str, ...]:
    return (word,) if isinstance(word, str) else word


def require_whole(answers: Iterable[str], single_token: SingleToken | None, *, mend: str) -> None:
    """Refuse answers of several tokens, whose logits could not be compared.

    Raises:
        TaskError: with the offending answers, and `mend` as the way out.
    """
    split = [answer for answer in answers if single_token is not None and not single_token(answer)]
    if split:
        raise TaskError(f"expected answers of one token, but this tokenizer splits {', '.join(map(repr, split))}; {mend}")


def draw(capacities: Sequence[int], n: int, rng: Random) -> list[tuple[int, int]]:
    """`n` distinct `(cell, index)` with `index < capacities[cell]`, in random order.

    Cells are served in turn, from the first; a full one is skipped.

    Raises:
        TaskError: `n` is below 1 or above the sum of the capacities.
    """
    if n < 1:
        raise TaskError(f"expected at least 1 pair, got n={n}")
    if n > sum(capacities):
        raise TaskError(
            f"asked for {n} pairs, but these templates and words allow only {sum(capacities)} distinct ones; "
            f"ask for at most {sum(capacities)}"
        )
    drawn = [
        (cell, index) for cell, share in enumerate(_shares(capacities, n)) for index in rng.sample(range(capacities[cell]), share)
    ]
    rng.shuffle(drawn)
    return drawn


def _shares(capacities: Sequence[int], n: int) -> list[int]:
    shares = [0] * len(capacities)
    while n:
        for cell, capacity in enumerate(capacities):
            if n and shares[cell] < capacity:
                shares[cell] += 1
                n -= 1
    return shares


def shuffled(items: Iterable[Option], rng: Random) -> list[Option]:
    """A new list of the items in random order."""
    mixed = list(items)
    rng.shuffle(mixed)
    return mixed


def digits(index: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """`index` written in the mixed base `sizes`, most significant first: one choice per size."""
    found = []
    for size in reversed(sizes):
        index, digit = divmod(index, size)
        found.append(digit)
    return tuple(reversed(found))


def numbered(task: str, split: Split, index: int) -> str:
    """A pair's id: `ioi-0007`, or `ioi-heldout-0007` so that both splits fit in one run folder."""
    return f"{task}-{index:04d}" if split == "main" else f"{task}-{split}-{index:04d}"
