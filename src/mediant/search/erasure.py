"""Amnesic projection: take away every direction in which two classes can be told apart, and see what is lost.

    gone = amnesic(lm, plural, singular, Site("resid_post", 12), "subject")
    print(gone.accuracies)                      # of probes, round by round, down to chance
    with edit(lm, gone.edit("subject")):        # beside `gone.random(seed)`, as many random directions
        ...

A probe is fitted, its direction taken out, the next one fitted on what is left, until probes do no better than chance on items
they never saw (INLP, Ravfogel et al. 2020, arXiv 2004.07667). What the model then no longer does needed that information *there*
(Elazar et al. 2021, 2006.00995); a probe alone only says that it can be read. Along what is taken out, the mean stays.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float

from mediant.core.errors import OutOfRange, TaskError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edits
from mediant.interventions.edits import Edit, Where
from mediant.interventions.features import Rotation
from mediant.measures.intervals import Array, Estimate
from mediant.search.directions import SPLIT, Prompts, labelled
from mediant.search.linear_rules import Fit, fit_logistic
from mediant.subject import Subject


@dataclass(frozen=True, eq=False)
class Erasure:
    """Directions taken out of a site.

    Attributes:
        basis: (d, k), orthonormal.
        mean: of all items' activations.
        accuracies: on validation items, of a probe on what was left before each direction was taken, and at the end.
        test: accuracy on test items of a probe fitted after all were taken.
    """

    site: Site
    basis: Float[np.ndarray, "d k"]
    mean: Float[np.ndarray, " d"]
    accuracies: list[Estimate]
    test: Estimate
    seed: int = field(default=0)

    @property
    def rank(self) -> int:
        """Directions taken."""
        return int(self.basis.shape[1])

    def edit(self, span: Span | str = "all") -> Edit:
        """The edit that takes them out."""
        return self._without(self.basis, span)

    def random(self, draw: int, span: Span | str = "all") -> Edit:
        """The control: as many random directions."""
        drawn = np.random.default_rng([self.seed, draw]).standard_normal(self.basis.shape)
        return self._without(np.linalg.qr(drawn)[0], span)

    def _without(self, basis: Array, span: Span | str) -> Edit:
        kept = torch.from_numpy((self.mean @ basis).astype(np.float32))
        return edits.set_to(self.site, span, kept, Where(features=Rotation(torch.from_numpy(basis.astype(np.float32)))))


def amnesic(
    subject: Subject, positives: Prompts, negatives: Prompts, site: Site, span: Span | str = "last", *, most: int = 30,
    fit: Fit = fit_logistic, split: tuple[float, float, float] = SPLIT, groups: Sequence[str] | None = None, seed: int = 0,
) -> Erasure:  # fmt: skip
    """Take directions out until probes do no better than chance on validation items, or `most` of them.

    Args:
        most: directions at most; probes stay above chance where that is too few, and `test` says so.

    Raises:
        TaskError: as for `mean_difference`, or a split without validation items.
        OutOfRange: no direction may be taken.
    """
    if most < 1:
        raise OutOfRange(f"amnesic projection takes at least one direction, got most = {most}")
    items = labelled(subject, positives, negatives, span, "", split, groups, seed)
    if not len(items.validation):
        raise TaskError(f"rounds end by accuracy on validation items, but the split {split} has none")
    x = items.activations([site])[site]
    mean, left, y = x.mean(0), x - x.mean(0), items.y
    found, accuracies = list[Array](), list[Estimate]()
    while True:
        rule = fit(left[items.fit], y[items.fit])
        accuracies.append(items.accuracy(rule(left), items.validation))
        length = float(np.linalg.norm(rule.vector))
        if accuracies[-1].ci95[0] <= 0.5 or len(found) == most or not length:
            break
        direction = rule.vector / length
        # Rounding apart, a probe on what is left has nothing of what was taken.
        direction -= sum((one * (one @ direction) for one in found), np.zeros_like(direction))
        found.append(direction / np.linalg.norm(direction))
        left = left - np.outer(left @ found[-1], found[-1])
    basis = np.stack(found, axis=1) if found else np.zeros((x.shape[1], 0))
    test = items.accuracy(fit(left[items.known], y[items.known])(left), items.test)
    return Erasure(site, basis, mean, accuracies, test, seed)
