"""Heads, sublayers or neurons that together carry an answer, chosen by learning a mask over them.

    found = mask_sites(lm, pairs, [Site("head_z", layer) for layer in range(30)], unit="head", price=0.02)
    found.chosen                                   # sites whose gate is open
    found.ranking                                  # all of them, by how much the search wants them open

Every unit has a gate between the clean run's value and the counterfactual's; gates are learned so that the answer becomes the
counterfactual's with as few of them open as the price says, and cool until each is open or closed (desiderata-based masking,
Davies et al. 2023, arXiv 2307.03637; De Cao et al. 2020, 2004.14992). Unlike patching one unit at a time, it sees units that only
work, or only matter, together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mediant.core.errors import OutOfRange, TaskError, unknown
from mediant.core.pair import Pair
from mediant.core.ranking import Ranking, Scored
from mediant.core.site import HEAD_KINDS, Site
from mediant.core.span import Span
from mediant.interventions.edits import Edit
from mediant.interventions.features import Featurizer
from mediant.search.descent import Course, descend
from mediant.search.feature_masks import TEMPERATURES
from mediant.search.patching import Patcher
from mediant.subject import Subject
from mediant.tasks.encode import encode

UNITS = ("head", "site", "neuron")
Place = tuple[Site, Span]


@runtime_checkable
class Exchanging(Protocol):
    """A batch of pairs made ready: what writes a source's values, and how far an outcome is from the source's."""

    def swaps(self, site: Site, span: Span | str) -> list[Edit]:
        """The edits that write the source's values, one per step of what is made."""
        ...

    def outcome_of(self, edits: Sequence[Edit], *, gradients: bool = False) -> Any:
        """What comes of it."""
        ...

    def wrong(self, outcome: Any) -> Tensor:
        """0 where it is as the source's."""
        ...


@dataclass(frozen=True, eq=False)
class SiteMask:
    """Which units stay.

    Attributes:
        wishes: per place, how much each of its units wants to be open, (unit,); open above 0.
        course: losses in nats, prices included.
    """

    unit: str
    places: tuple[Place, ...]
    wishes: tuple[Tensor, ...]
    course: Course

    @property
    def chosen(self) -> list[str]:
        """Labels of open units: sites, heads' sites, or a site with a neuron's number in brackets."""
        return [label for label, wish in self._labelled() if wish > 0]

    @property
    def ranking(self) -> Ranking:
        """Units by wish, those wanted most first; a helpful unit is negative, as everywhere."""
        entries = [Scored(label, -wish) for label, wish in self._labelled()]
        return Ranking(self.unit, entries, "most_negative", "cross-entropy", f"mask learned in {self.course.steps} steps")

    def _labelled(self) -> list[tuple[str, float]]:
        several = len({span for _, span in self.places}) > 1
        found = []
        for (site, span), wish in zip(self.places, self.wishes, strict=True):
            at = f" at {span}" if several else ""
            for i, w in enumerate(wish.tolist()):
                name = {"site": str(site), "neuron": f"{site}[{i}]"}.get(self.unit) or str(replace(site, head=i))
                found.append((name + at, w))
        return found


def mask_sites(
    subject: Subject, pairs: Sequence[Pair], sites: "Sequence[Site | str | Place]", span: Span | str = "all", *,
    unit: str = "site", price: float = 0.01, epochs: int = 20, lr: float = 5e-2, batch_size: int = 16,
) -> SiteMask:  # fmt: skip
    """Learn which units' counterfactual values turn clean answers into the counterfactual ones.

    Args:
        sites: for `head`, sites of all heads of a layer; for `neuron`, sites whose coordinates are units; each at `span`, or with
            a span of its own.
        price: nats per open gate.

    Raises:
        TaskError: no pairs.
        OutOfRange: a price below 0, or no epochs.
        UnknownName: another unit.
    """
    if unit not in UNITS:
        raise unknown("unit", unit, UNITS)
    if not pairs:
        raise TaskError("no pairs were given, so there is nothing to learn a mask from")
    if price < 0 or epochs < 1:
        raise OutOfRange(f"a price is 0 or more and epochs at least 1, got {price} and {epochs}")
    places = tuple(_place(subject, one, span) for one in sites)
    _check([site for site, _ in places], unit)
    parts = [
        Patcher(subject, encode(subject, pairs[i : i + batch_size]), capture=[site for site, _ in places])
        for i in range(0, len(pairs), batch_size)
    ]
    return mask_places(parts, places, unit=unit, price=price, epochs=epochs, lr=lr)


def mask_places(
    parts: Sequence[Exchanging], places: Sequence[Place], *, unit: str, price: float, epochs: int, lr: float,
    features: Featurizer | None = None,
) -> SiteMask:  # fmt: skip
    """The same from batches that are ready, of whatever is made: answers or pictures.

    Args:
        features: the basis whose features are units, for `neuron`; None for the site's own coordinates.
    """
    n_units = [_n_units(parts[0], place, unit) if features is None else features.n_features for place in places]
    wishes = [torch.zeros(n, requires_grad=True) for n in n_units]

    def loss(step: int, heat: float) -> Tensor:
        gates = [torch.sigmoid(wish / heat) for wish in wishes]
        shaped = [gate[:, None] if unit == "head" else gate for gate in gates]
        part = parts[step % len(parts)]
        swaps = [(one, gate) for place, gate in zip(places, shaped, strict=True) for one in part.swaps(*place)]
        edits = [replace(one, features=features, gate=gate) for one, gate in swaps]
        wrong = part.wrong(part.outcome_of(edits, gradients=True))
        return wrong + price * torch.cat([gate.flatten() for gate in gates]).sum()

    rates = [lr] * len(wishes)
    course = descend(wishes, loss, steps=epochs * len(parts), rates=rates, temperatures=TEMPERATURES)
    return SiteMask(unit, tuple(places), tuple(wish.detach() for wish in wishes), course)


def _place(subject: Subject, given: "Site | str | Place", span: Span | str) -> Place:
    site, at = given if isinstance(given, tuple) else (given, span)
    return subject.validate(site), Span.of(at)


def _check(sites: Sequence[Site], unit: str) -> None:
    for site in sites:
        if unit == "head" and (site.kind not in HEAD_KINDS or site.head is not None):
            raise OutOfRange(f"units are heads, so sites hold all heads of a layer, such as head_z.0; got {site}")
        if unit != "head" and site.kind in HEAD_KINDS and site.head is None:
            raise OutOfRange(f"site {site} is all heads together; give unit='head', or one head, e.g. '{site}.0'")


def _n_units(part: Exchanging, place: Place, unit: str) -> int:
    if unit == "site":
        return 1
    return int(part.swaps(*place)[0].value.shape[1])
