"""Disjoint sets of pairs, of prompts or of requests for pictures: to search on, to choose a size on, and to judge on.

`judged` pairs differ in one variable; `other` pairs in everything but it, so that a mediator of the variable alone, exchanged
between them, changes nothing; `texts` have nothing to do with the task.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Data(Generic[Item]):
    """Disjoint sets of pairs.

    Attributes:
        heldout: of wording that no other set uses; `other`: see above. Empty ones have their reason in `missing`.
        spans: named by every pair of `discovery`, in reading order, `last` among them.
        values: the two values of `variable`; empty where there is none.
    """

    name: str
    description: str
    metric: str
    discovery: tuple[Item, ...]
    validation: tuple[Item, ...]
    judged: tuple[Item, ...]
    heldout: tuple[Item, ...]
    other: tuple[Item, ...]
    texts: tuple[Item, ...]
    spans: tuple[str, ...]
    variable: str
    values: tuple[str, ...]
    missing: dict[str, str]

    @property
    def sets(self) -> dict[str, tuple[Item, ...]]:
        """What cells are judged on, by name."""
        return {"judged": self.judged, "heldout": self.heldout, "other": self.other, "texts": self.texts}
