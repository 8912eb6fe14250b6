"""What heads are asked to look at: one region, one after the other, or wherever a user points while the model speaks.

>>> from mediant.core.site import Site
>>> Look((Site("head_z", 3, 5),), Schedule.every(50, ["panel 2", "panel 0"])).schedule.starts
(0, 50)

`mediant.interventions.looking` carries it out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from mediant.core.errors import EditError, OutOfRange, unknown
from mediant.core.site import Site
from mediant.subject.regions import Box, Clip

Mode = Literal["boost_suppress", "boost", "suppress_image", "suppress_all", "max_suppress_all"]
When = Literal["always", "decode"]
# A span of the batch, or a region of each row's image.
Target = str | Box | Clip
BETA = 1e4


@dataclass(frozen=True)
class Schedule:
    """What to look at, and from when on.

    Attributes:
        targets: span names or regions, in order.
        starts: decode step at which each target's turn begins (step 0 makes the second new token); or "sentence": the next
            target's turn begins, row by row, when a sentence has ended. Before the first start nothing is done.
    """

    targets: tuple[Target, ...]
    starts: tuple[int, ...] | Literal["sentence"] = (0,)

    def __post_init__(self) -> None:
        if not self.targets:
            raise EditError("a schedule needs at least one target")
        if isinstance(self.starts, str):
            if self.starts != "sentence":
                raise unknown("schedule", self.starts, ["sentence"])
        elif len(self.starts) != len(self.targets) or list(self.starts) != sorted(set(self.starts)) or self.starts[0] < 0:
            raise OutOfRange(f"{len(self.targets)} targets need as many rising steps from 0 on, got {self.starts}")

    @classmethod
    def every(cls, steps: int, targets: Sequence[Target]) -> "Schedule":
        """A new target every so many decode steps."""
        return cls(tuple(targets), tuple(range(0, steps * len(targets), steps)))


class Live:
    """A target that another thread may change while the model speaks; the next token is said under it.

        target = Live()
        target.turn_to(seen.within(box))            # columns of each row's target; one set stands for all rows
        target.turn_to()                            # nowhere: the heads are let go

    Attributes:
        turns: every target so far, in order; `Seen.turn` counts them.
    """

    def __init__(self) -> None:
        self.turns: list[tuple[tuple[int, ...], ...]] = []

    def turn_to(self, *columns: Sequence[int]) -> None:
        """Look at these columns of the batch from the next forward on."""
        self.turns.append(tuple(tuple(each) for each in columns))

    @property
    def targets(self) -> tuple[str, ...]:
        """A name for each turn."""
        return tuple(f"turn {i}" for i in range(len(self.turns)))

    def columns(self, turn: int, row: int) -> tuple[int, ...]:
        """One row's target in one turn."""
        rows = self.turns[turn]
        return rows[row] if len(rows) > 1 else rows[0]


@dataclass(frozen=True)
class Look:
    """What is done to which heads.

    Attributes:
        heads: `head_z` sites of query heads; none at all leaves the model untouched.
        target: a schedule, the one span or region to look at all the time, or a live target.
        mode: what is suppressed besides boosting the target. `boost_suppress`: other image tokens (the paper); `boost`: nothing;
            `suppress_image`: other image tokens, without a boost; `suppress_all`: these and the prompt's text;
            `max_suppress_all`: these and every generated token.
        beta: added to (boost) or taken from (suppress) logits.
        mass: instead of `beta`, the share of attention, between 0 and 1, that the target shall have.
        when: "always" from the first row of the prompt on; "decode" on rows of generated tokens alone.
        image: the span of all image tokens.
    """

    heads: tuple[Site, ...]
    target: Schedule | Live | Target
    mode: Mode = "boost_suppress"
    beta: float = BETA
    mass: float | None = None
    when: When = "always"
    image: str = "image"

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise unknown("mode", self.mode, get_args(Mode))
        if self.when not in get_args(When):
            raise unknown("time", self.when, get_args(When))
        if not (math.isfinite(self.beta) and self.beta > 0):
            raise OutOfRange(f"beta must be a number above 0, got {self.beta}")
        if self.mass is not None and not 0 < self.mass < 1:
            raise OutOfRange(f"a share of attention lies between 0 and 1, got {self.mass}")
        if self.mass is not None and self.mode != "boost_suppress":
            raise EditError("a wanted share of attention is reached by a bias on the target alone; leave the mode out")

    @property
    def schedule(self) -> Schedule | Live:
        """The target as a schedule, where it is not a live one."""
        return self.target if isinstance(self.target, Schedule | Live) else Schedule((self.target,))
