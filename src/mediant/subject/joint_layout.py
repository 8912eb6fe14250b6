"""Which columns of a joint sequence are text, the picture being made, and references.

>>> groups(4, [0, 0, 10, 10, 20])["reference2"]
(8,)

Diffusion transformers of this kind number tokens by (moment, row, column, slot): the picture has moment 0, references 10, 20, ...
Reading the groups off these ids leaves nothing to computed sizes.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from mediant.core.errors import SpanError, SubjectError
from mediant.subject.batch import Batch, TokenSpans

BETWEEN = 10


def groups(n_text: int, moments: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Columns of every group, from the number of text slots and the moments of the image tokens after them.

    Raises:
        SubjectError: the picture does not come first among image tokens.
    """
    if not moments or moments[0] != 0 or list(moments) != sorted(moments):
        raise SubjectError(
            "expected the picture's tokens, then those of each reference; this pipeline orders them otherwise, as those do that "
            "keep references in a cache"
        )
    found = {"text": tuple(range(n_text))}
    for moment in sorted(set(moments)):
        name = "picture" if moment == 0 else f"reference{moment // BETWEEN}"
        found[name] = tuple(n_text + i for i, each in enumerate(moments) if each == moment)
    references = tuple(n_text + i for i, each in enumerate(moments) if each)
    return found | ({"reference": references} if references else {})


def moments(ids: Int[Tensor, "row token 4"] | Int[Tensor, "token 4"]) -> list[int]:
    """Moments of tokens, which are the same in all rows."""
    first = ids[0] if ids.ndim == 3 else ids
    return [int(each) for each in first[:, 0].tolist()]


def bare(n_rows: int, n_cols: int, named: TokenSpans) -> Batch:
    """A batch for a forward that nobody declared: the groups are known, the parts of the text are not."""
    ids = torch.zeros(n_rows, n_cols, dtype=torch.long)
    return Batch(ids, torch.ones_like(ids, dtype=torch.bool), (dict(named),) * n_rows, (0,) * n_rows, (n_cols,) * n_rows)


def slots_of(text: str, ids: Sequence[int], real: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[int, ...]:
    """The slots whose tokens make up `text`, white space aside.

    Args:
        real: slots that are no padding, in order.

    Raises:
        SpanError: the text is not there exactly once.
    """
    ends = [len("".join(decode([ids[slot] for slot in real[: i + 1]]).split())) for i in range(len(real))]
    whole, wanted = "".join(decode([ids[slot] for slot in real]).split()), "".join(text.split())
    if not wanted:
        return ()
    if whole.count(wanted) != 1:
        raise SpanError(
            f"the instruction {text!r} was found {whole.count(wanted)} times among the text encoder's tokens, expected once; "
            + ("more text slots may be needed" if not whole.count(wanted) else "it repeats words of the prompt's template")
        )
    first = whole.index(wanted)
    return tuple(
        slot for slot, begin, end in zip(real, [0, *ends], ends, strict=False) if end > first and begin < first + len(wanted)
    )


def beginning(text: str, ids: Sequence[int], slots: Sequence[int], decode: Callable[[Sequence[int]], str]) -> tuple[int, ...]:
    """The first slots, as many as it takes to hold `text`, white space aside.

    Raises:
        SpanError: the tokens do not begin with it.
    """
    wanted = "".join(text.split())
    for n in range(len(ids) + 1):
        held = "".join(decode(ids[:n]).split())
        if len(held) >= len(wanted):
            break
    if not held.startswith(wanted):
        raise SpanError(f"the instruction begins with {decode(ids[:n])!r}, expected {text!r}")
    return tuple(slots[:n])
