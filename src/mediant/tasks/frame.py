"""A `Frame` is a sentence with slots; filling it gives a prompt that knows where each filler lies.

>>> frame = Frame("keys", "The {subject} near the {place}")
>>> prompt = frame.fill({"subject": "keys", "place": "door"}, {"subject": "subject"})
>>> prompt.text, dict(prompt.spans)
('The keys near the door', {'subject': (4, 8), 'end': (18, 22)})

Offsets come from composing the text, so a word that occurs twice (two mentions of one name) is never
confused with its twin.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import TypeVar

from mediant.core.errors import TaskError, unknown
from mediant.core.pair import Pair, Prompt


@dataclass(frozen=True)
class Frame:
    """A named sentence whose slots are written `{slot}`; every slot occurs once."""

    name: str
    text: str

    @property
    def slots(self) -> tuple[str, ...]:
        """Slot names in reading order."""
        return tuple(slot for _, slot, _, _ in Formatter().parse(self.text) if slot is not None)

    def fill(self, fillers: Mapping[str, str], spans: Mapping[str, str], *, before: str = "") -> Prompt:
        """The prompt `before` + this sentence.

        Besides the spans named here, "end" marks the last whitespace-separated word unless a slot claims it.

        Args:
            fillers: slot -> the text put there (without a leading space); more slots than needed are fine.
            spans: slot -> name of the span it becomes; other slots become none.
        """
        text = before
        found: dict[str, tuple[int, int]] = {}
        for literal, slot, _, _ in Formatter().parse(self.text):
            text += literal
            if slot is not None:
                start = len(text)
                text += fillers[slot]
                if slot in spans:
                    found[spans[slot]] = (start, len(text))
        found.setdefault("end", (len(text) - len(text.split()[-1]), len(text)))
        return Prompt(text, found)


AnyFrame = TypeVar("AnyFrame", bound=Frame)


def select_frames(frames: Sequence[AnyFrame], names: Sequence[str] | None) -> list[AnyFrame]:
    """The frames with these names, in their own order; all of them for None.

    Raises:
        UnknownName: a name that no frame has.
        TaskError: an empty list of names.
    """
    if names is None:
        return list(frames)
    known = [frame.name for frame in frames]
    for name in names:
        if name not in known:
            raise unknown("template", name, known)
    if not names:
        raise TaskError(f"expected at least one template, got an empty list; choose from: {', '.join(known)}, or leave it out")
    return [frame for frame in frames if frame.name in names]


def shared_spans(pairs: Iterable[Pair], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the span `names` that every clean prompt defines, in the given order."""
    defined = [pair.clean.spans for pair in pairs]
    return tuple(name for name in names if all(name in spans for spans in defined))
