"""Interplay: do two parts add up, stand in for each other, need each other, or cancel?

Patching one part at a time misses redundancy: with a back-up in place neither part seems to matter. So two
parts are also patched together, and the first is patched again while the second is held at its base value:

    additive      e(a, b) = e(a) + e(b)
    redundant     together far more than the sum: either alone suffices (OR)
    conjunctive   together far less than the sum: each alone is needed (AND)
    backup        b changes when a is ablated and makes up for it (self-repair): holding b restores a's effect
    cancelling    opposite effects that vanish together
"""

from dataclasses import dataclass
from typing import Literal

from mediant.core.site import Site
from mediant.core.span import Span
from mediant.search.patching import Patcher
from mediant.search.paths import held_effect

Kind = Literal["additive", "redundant", "conjunctive", "backup", "cancelling"]


@dataclass(frozen=True)
class Interplay:
    """Mean effects of two sites alone, together, and of the first with the second held.

    Attributes:
        compensation: effect of `a` with `b` held, minus effect of `a`: what `b` makes up for.
        scale: |total effect|, against which differences are judged.
    """

    a: Site
    b: Site
    alone_a: float
    alone_b: float
    together: float
    held: float
    scale: float
    tolerance: float = 0.1

    @property
    def compensation(self) -> float:
        """How much of `a`'s effect `b` hides."""
        return self.held - self.alone_a

    @property
    def kind(self) -> Kind:
        """Which of the five it is, judged with `tolerance` x `scale`."""
        slack = self.tolerance * self.scale
        total = self.alone_a + self.alone_b
        if abs(self.compensation) > slack and abs(self.held) > abs(self.alone_a):
            return "backup"
        opposite = self.alone_a * self.alone_b < 0 and min(abs(self.alone_a), abs(self.alone_b)) > slack
        if opposite and abs(self.together) < min(abs(self.alone_a), abs(self.alone_b)):
            return "cancelling"
        if abs(self.together) > abs(total) + slack:
            return "redundant"
        if abs(self.together) < abs(total) - slack:
            return "conjunctive"
        return "additive"


def interplay(patcher: Patcher, a: Site, b: Site, *, span: Span | str = "all", tolerance: float = 0.1) -> Interplay:
    """Measure how two sites work together; `b` must not come before `a` for a back-up to be seen."""
    alone_a, alone_b, together, held = (
        float(values.mean())
        for values in (
            patcher.joint([a], span),
            patcher.joint([b], span),
            patcher.joint([a, b], span),
            held_effect(patcher, a, [b], span=span),
        )
    )
    return Interplay(a, b, alone_a, alone_b, together, held, abs(float(patcher.total.mean())), tolerance)
