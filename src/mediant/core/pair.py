"""Prompts with named spans, and pairs of them: the data every causal question starts from.

>>> clean = Prompt("When Mary and John left, John", {"S2": (25, 29)})
>>> clean.text[slice(*clean.spans["S2"])]
'John'

A `Pair` holds a *clean* prompt with its answer and a *counterfactual* prompt with another answer.
Which of the two is the *base* (receives a value) and which the *source* (gives it) is decided by the
intervention, not by the data.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mediant.core.errors import SpanError
from mediant.core.span import RESERVED


@dataclass(frozen=True)
class Prompt:
    """A text and its named spans as character ranges `(start, stop)`; a span may be given as text that occurs once.

    Attributes:
        image: what the text asks about, an array (height, width, 3) of uint8, put before it; for subjects with eyes.

    Raises:
        SpanError: a range is empty or outside the text, or its name is reserved.
    """

    text: str
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    image: Any = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.text, str):
            raise SpanError(f"a prompt is a text, got {type(self.text).__name__}")
        found = {name: find_once(self.text, at, name) if isinstance(at, str) else at for name, at in self.spans.items()}
        object.__setattr__(self, "spans", found)
        for name, (start, stop) in self.spans.items():
            if name in RESERVED or not name or ":" in name:
                raise SpanError(f"span name {name!r} is reserved; choose another (reserved: {', '.join(RESERVED)})")
            if not 0 <= start < stop <= len(self.text):
                raise SpanError(f"span {name!r} ({start}, {stop}) lies outside the {len(self.text)} characters of {self.text!r}")

    def locate(self, **names: str) -> "Prompt":
        """The same prompt with spans added by their text, each of which must occur exactly once."""
        spans = dict(self.spans)
        for name, piece in names.items():
            spans[name] = find_once(self.text, piece, name)
        return replace(self, spans=spans)


def find_once(text: str, piece: str, name: str) -> tuple[int, int]:
    """Character range of `piece` in `text`; a `SpanError` unless it occurs exactly once."""
    count = sum(text.startswith(piece, i) for i in range(len(text))) if piece else 0
    if count != 1:
        raise SpanError(f"span {name!r}: {piece!r} occurs {count} times in {text!r}; give [start, stop] instead")
    start = text.index(piece)
    return start, start + len(piece)


@dataclass(frozen=True)
class Pair:
    """A clean and a counterfactual prompt, their answers, and what varied.

    Attributes:
        id: unique within its task; run folders are keyed by it.
        answer: continuation of `clean` (with its leading space, where the tokenizer needs one).
        counterfactual_answer: continuation of `counterfactual`.
        template: items that share one are resampled together in intervals.
        variables: values of the task's causal variables, for reports and splits.
        answers, counterfactual_answers: where many continuations are right, all of one token each; `answer` and
            `counterfactual_answer` are then one of them.
    """

    id: str
    clean: Prompt
    counterfactual: Prompt
    answer: str
    counterfactual_answer: str
    template: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    counterfactual_answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("clean", "counterfactual"):
            given = getattr(self, name)
            object.__setattr__(self, name, given if isinstance(given, Prompt) else Prompt(given))


@dataclass(frozen=True)
class Task:
    """Pairs with known answers, and what they ask.

    Attributes:
        span_names: the spans every clean prompt defines, in reading order where that is fixed.
        metric: name of the measure that suits the answers (see `mediant.measures.metrics`).
    """

    name: str
    description: str
    pairs: tuple[Pair, ...]
    span_names: tuple[str, ...] = ()
    metric: str = "logit_diff"
