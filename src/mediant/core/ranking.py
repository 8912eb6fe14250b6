"""A `Ranking` orders mediators by their effect and says by which rule.

>>> ranking = Ranking("head", [Scored("head_z.0.1", -2.0), Scored("head_z.0.0", 0.5)])
>>> [str(s.site) for s in ranking.top(1)]
['head_z.0.1']

Scores are natural indirect effects: the measure after the intervention minus before, so a part that
helps has a *negative* score when it is ablated. The order is by |score| unless the rule says signed.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from mediant.core.errors import MediantError, OutOfRange, RunError, unknown
from mediant.core.site import Site

Rule = Literal["absolute", "most_negative", "most_positive"]
_ORDER: dict[Rule, Callable[["Scored"], float]] = {
    "absolute": lambda s: -abs(s.score),
    "most_negative": lambda s: s.score,
    "most_positive": lambda s: -s.score,
}


@dataclass(frozen=True)
class Scored:
    """One mediator (a site in dotted form, or any other label) with its mean effect."""

    mediator: str
    score: float
    ci95: tuple[float, float] | None = None
    n: int = 0

    @property
    def site(self) -> Site:
        """The mediator as a `Site`."""
        return Site.parse(self.mediator)


@dataclass(frozen=True)
class Ranking:
    """Mediators in order of their effect.

    Attributes:
        unit: what is ranked: `head`, `layer`, `neuron`, `position`, ...
        rule: the order; ties are broken by the mediator's name, so the order is reproducible.
        metric, method, provenance: how the scores came about.
    """

    unit: str
    entries: list[Scored]
    rule: Rule = "absolute"
    metric: str = "logit_diff"
    method: str = ""
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rule not in _ORDER:
            raise unknown("rule", self.rule, _ORDER)
        key = _ORDER[self.rule]
        object.__setattr__(self, "entries", sorted(self.entries, key=lambda s: (key(s), s.mediator)))

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Scored]:
        return iter(self.entries)

    def top(self, k: int) -> list[Scored]:
        """The first `k` mediators.

        Raises:
            OutOfRange: fewer than `k` were ranked.
        """
        if not 0 <= k <= len(self.entries):
            raise OutOfRange(f"asked for the top {k} of {len(self.entries)} ranked {self.unit}s")
        return self.entries[:k]

    def sites(self, k: int) -> list[Site]:
        """The first `k` mediators as sites."""
        return [scored.site for scored in self.top(k)]

    def save(self, path: Path | str) -> None:
        """Write JSON; `Ranking.load` reads it back."""
        Path(path).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path | str) -> "Ranking":
        """Read what `save` wrote."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            data["entries"] = [
                Scored(e["mediator"], e["score"], tuple(e["ci95"]) if e["ci95"] else None, e["n"]) for e in data["entries"]
            ]
            return cls(**data)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MediantError) as error:
            raise RunError(f"{path} is not a saved ranking: {error}") from error
