"""Causal effects of a mediator, per item: total, natural indirect, natural direct, interaction.

With m(x) the metric on the base prompt and m(x') on the source (Pearl 2001; Vig et al. 2020):

    TE  = m(x') - m(x)
    NIE = m(x | do Z = Z(x')) - m(x)        what passes through Z
    NDE = m(x' | do Z = Z(x)) - m(x)        what passes beside it
    interaction = TE - NIE - NDE            zero where the two roads simply add up

A part that helps has a *negative* NIE when counterfactual values are written into it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mediant.core.errors import OutOfRange
from mediant.interventions.firings import Firing
from mediant.measures.intervals import Array, Estimate, estimate


@dataclass(frozen=True, eq=False)
class Effect:
    """The natural indirect effect of one intervention, item by item.

    Attributes:
        values: metric after minus before, one per pair.
        before, source: metric of the untouched base and source runs.
    """

    label: str
    values: Array
    before: Array
    source: Array
    ids: tuple[str, ...]
    clusters: tuple[str, ...] = ()
    firings: list[Firing] = field(default_factory=list)

    @property
    def total(self) -> Array:
        """Total effect per item: source minus base."""
        return self.source - self.before

    def estimate(self, *, seed: int = 0) -> Estimate:
        """Mean with its interval.

        Raises:
            OutOfRange: a single item has no interval.
        """
        if len(self.values) < 2:
            raise OutOfRange("an interval needs at least two pairs; patch a task's pairs instead of one")
        return estimate(self.values, clusters=self.clusters or None, seed=seed)

    @property
    def normalised(self) -> float:
        """Share of the total effect: mean NIE / mean TE; 0 where there is no total effect to share."""
        total = float(self.total.mean())
        return float(self.values.mean()) / total if total else 0.0

    def __str__(self) -> str:
        fired = sum(f.tokens for f in self.firings)
        n = len(self.values)
        interval = "one pair, no interval"
        if n > 1:
            low, high = self.estimate().ci95
            interval = f"95 % [{low:+.3f}, {high:+.3f}]"
        return (
            f"{self.label}: {self.values.mean():+.3f} ({interval}, n = {n}; {self.normalised:.0%} of the total effect "
            f"{self.total.mean():+.3f}; {fired} tokens written)"
        )


@dataclass(frozen=True, eq=False)
class Decomposition:
    """Total, indirect, direct effects and their interaction, one value per item."""

    total: Array
    indirect: Array
    direct: Array

    @property
    def interaction(self) -> Array:
        """What the two roads do together beyond their sum."""
        return self.total - self.indirect - self.direct


def normalised_patch_score(patched: Array, corrupted: Array, clean: Array) -> Array:
    """(m_do - m_corr) / (m_clean - m_corr) per item: 0 is the corrupted run, 1 the clean one."""
    return np.asarray((patched - corrupted) / (clean - corrupted))


def cluster_labels(templates: Sequence[str]) -> list[str] | None:
    """Cluster labels for intervals, or None where every item stands alone."""
    return list(templates) if len(set(templates)) > 1 else None
