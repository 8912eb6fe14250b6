"""A `Span` names positions; which tokens it means is decided per prompt.

>>> Span.of("S2"), Span.of("last"), Span.index(-2)
(Span('S2'), Span('last'), Span('-2:-1'))

Prompts of different length, padding on either side and key/value caches then need no care: an edit
on `Span("S2")` finds each prompt's own second subject.
"""

import re
from dataclasses import dataclass

from mediant.core.errors import SpanError

RESERVED = {
    "all": "every real token of the prompt, and every generated one",
    "prompt": "every real token of the prompt",
    "last": "the last token of the prompt",
    "generated": "every token after the prompt",
}


@dataclass(frozen=True, order=True, repr=False)
class Span:
    """Positions by name, or by index range relative to the prompt's own tokens (negative from its end).

    `name` is a span the prompt defines or one of `RESERVED`; `start`/`stop` select tokens like a slice
    (`stop=None` runs to the end of the prompt). Exactly one of the two forms is used.
    """

    name: str = ""
    start: int | None = None
    stop: int | None = None

    def __post_init__(self) -> None:
        if bool(self.name) == (self.start is not None) or (self.name and self.stop is not None):
            raise SpanError(f"a span is a name or a range of tokens, got name {self.name!r} and start {self.start}")

    @classmethod
    def of(cls, span: "Span | str | int") -> "Span":
        """A span from its name, its written range (`2:5`, `-2:`) or one position (`-1`; as a number also from the start)."""
        if isinstance(span, Span):
            return span
        if isinstance(span, int) or re.fullmatch(r"-\d{1,9}", span):
            return cls.index(int(span))
        written = re.fullmatch(r"(-?\d{1,9}):(-?\d{1,9})?", span)
        return cls("", int(written[1]), int(written[2]) if written[2] else None) if written else cls(span)

    @classmethod
    def index(cls, position: int) -> "Span":
        """One token, counted from the prompt's first real token, or from its end when negative."""
        return cls("", position, position + 1 if position != -1 else None)

    @classmethod
    def slice(cls, start: int, stop: int | None = None) -> "Span":
        """Tokens `start` to `stop` (exclusive) of the prompt."""
        return cls("", start, stop)

    def __str__(self) -> str:
        if self.name:
            return self.name
        return f"{self.start}:{'' if self.stop is None else self.stop}"

    def __repr__(self) -> str:
        return f"Span({str(self)!r})"
