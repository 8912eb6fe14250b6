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

import torch
import torch.nn.functional as F
from torch import Tensor

from mediant.core.errors import OutOfRange, TaskError, unknown
from mediant.core.pair import Pair
from mediant.core.ranking import Ranking, Scored
from mediant.core.site import HEAD_KINDS, Site
from mediant.core.span import Span
from mediant.interventions.edits import Activation, Edit, swap
from mediant.interventions.execute import run
from mediant.search.descent import Course, descend
from mediant.search.feature_masks import TEMPERATURES
from mediant.subject import Subject
from mediant.tasks.encode import PairBatch, encode

UNITS = ("head", "site", "neuron")


@dataclass(frozen=True, eq=False)
class SiteMask:
    """Which units stay.

    Attributes:
        wishes: per site, how much each of its units wants to be open, (unit,); open above 0.
        course: losses in nats, prices included.
    """

    unit: str
    wishes: dict[Site, Tensor]
    course: Course

    @property
    def chosen(self) -> list[str]:
        """Labels of open units: sites, heads' sites, or a site with a neuron's number in brackets."""
        return [label for site, wish in self.wishes.items() for label, w in self._labelled(site, wish) if w > 0]

    @property
    def ranking(self) -> Ranking:
        """Units by wish, those wanted most first; a helpful unit is negative, as everywhere."""
        entries = [Scored(label, -w) for site, wish in self.wishes.items() for label, w in self._labelled(site, wish)]
        return Ranking(self.unit, entries, "most_negative", "cross-entropy", f"mask learned in {self.course.steps} steps")

    def _labelled(self, site: Site, wish: Tensor) -> list[tuple[str, float]]:
        values = wish.tolist()
        if self.unit == "site":
            return [(str(site), values[0])]
        if self.unit == "head":
            return [(str(replace(site, head=i)), w) for i, w in enumerate(values)]
        return [(f"{site}[{i}]", w) for i, w in enumerate(values)]


def mask_sites(
    subject: Subject, pairs: Sequence[Pair], sites: Sequence[Site | str], span: Span | str = "all", *, unit: str = "site",
    price: float = 0.01, epochs: int = 20, lr: float = 5e-2, batch_size: int = 16,
) -> SiteMask:  # fmt: skip
    """Learn which units' counterfactual values turn clean answers into the counterfactual ones.

    Args:
        sites: for `head`, sites of all heads of a layer; for `neuron`, sites whose coordinates are units.
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
    places = [subject.validate(site) for site in sites]
    _check(places, unit)
    where = Span.of(span)
    parts = [_Part(subject, pairs[i : i + batch_size], places, where) for i in range(0, len(pairs), batch_size)]
    wishes = [torch.zeros(parts[0].n_units(site, unit), requires_grad=True) for site in places]

    def loss(step: int, heat: float) -> Tensor:
        gates = [torch.sigmoid(wish / heat) for wish in wishes]
        part = parts[step % len(parts)]
        shaped = [gate[:, None] if unit == "head" else gate for gate in gates]
        return part.wrong(shaped) + price * torch.cat([gate.flatten() for gate in gates]).sum()

    rates = [lr] * len(wishes)
    course = descend(wishes, loss, steps=epochs * len(parts), rates=rates, temperatures=TEMPERATURES)
    return SiteMask(unit, dict(zip(places, (wish.detach() for wish in wishes), strict=True)), course)


def _check(sites: Sequence[Site], unit: str) -> None:
    for site in sites:
        if unit == "head" and (site.kind not in HEAD_KINDS or site.head is not None):
            raise OutOfRange(f"units are heads, so sites hold all heads of a layer, such as head_z.0; got {site}")
        if unit != "head" and site.kind in HEAD_KINDS and site.head is None:
            raise OutOfRange(f"site {site} is all heads together; give unit='head', or one head, e.g. '{site}.0'")


class _Part:
    """Some pairs with the counterfactual's values."""

    def __init__(self, subject: Subject, pairs: Sequence[Pair], sites: Sequence[Site], span: Span) -> None:
        self.subject, self.span = subject, span
        self.pairs: PairBatch = encode(subject, pairs)
        with torch.no_grad():
            found = run(subject, self.pairs.source, capture=[(site, span) for site in sites], keep=self.pairs.keep).captured
        self.source: dict[Site, Activation] = {site: found[site, span] for site in sites}

    def n_units(self, site: Site, unit: str) -> int:
        """Gates of a site."""
        return 1 if unit == "site" else int(self.source[site].values.shape[1])

    def wrong(self, gates: Sequence[Tensor]) -> Tensor:
        """Cross-entropy (nats) of the counterfactual answer between the two answers, mean over pairs."""
        edits: list[Edit] = [
            replace(swap(site, self.span, source), gate=gate)
            for (site, source), gate in zip(self.source.items(), gates, strict=True)
        ]
        out = run(self.subject, self.pairs.base, edits, keep=self.pairs.keep)
        answer, other = self.pairs.log_likelihoods(out.logits)
        return F.softplus(answer - other).mean()
