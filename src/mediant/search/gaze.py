"""Heads that look at what the answer is about: attention of the last prompt token on the region that was asked for.

    scores = find(vlm, strips.drawn(40, seed=0))            # each panel of each strip is asked for
    scores.ranking().sites(8)

The score of a head is the attention mass it puts on the region asked for, not divided by what it puts on all regions: a head that
hardly looks at the image scores low even where that little is well placed (Gandikota & Bau 2026, whose text speaks of a
correlation; their code measures this mass). One forward gives the rows of all heads; only the last token's rows are computed, so
memory grows with the prompt's length and not with its square.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float

from mediant.core.errors import TaskError
from mediant.core.ranking import Ranking, Scored
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.attention import Rows, attending
from mediant.interventions.execute import run
from mediant.measures.intervals import Array
from mediant.subject import Batch, Subject
from mediant.subject.regions import Box
from mediant.subject.vision import Pixels, VisionSubject
from mediant.tasks.strips import ORDINALS, PanelStrip

Score = Literal["mass", "selectivity"]


def attention_on(
    subject: Subject, batch: Batch, spans: Sequence[str]
) -> tuple[Float[np.ndarray, "row layer head span"], Float[np.ndarray, "row layer head"]]:
    """Attention of each row's last prompt token on each span, for every head, from one forward.

    Also how it is spread over the image's tokens: the entropy, in nats, of each head's attention within the span "image".
    """
    rows = [Rows(layer, "last") for layer in range(subject.shape.n_layers)]
    with torch.no_grad(), attending(subject, rows=rows) as seen:
        run(subject, batch)
    found = np.zeros((batch.n_rows, subject.shape.n_layers, subject.shape.n_heads, len(spans)))
    spread = np.zeros(found.shape[:3])
    for layer, observed in enumerate(seen.rows):
        weights = observed.weights.double().cpu()
        for row in range(batch.n_rows):
            for j, span in enumerate(spans):
                found[row, layer, :, j] = weights[row][:, batch.columns(row, Span(span))].sum(-1).numpy()
            on_image = weights[row][:, batch.columns(row, Span("image"))]
            shares = on_image / on_image.sum(-1, keepdim=True).clamp(min=1e-12)
            spread[row, layer] = torch.special.entr(shares).sum(-1).numpy()
    return found, spread


def asked_for(
    subject: VisionSubject, pixels: Pixels, boxes: Sequence[Box], questions: Sequence[str]
) -> tuple[Float[np.ndarray, "query layer head region"], Float[np.ndarray, "query layer head"]]:
    """`attention_on` every box of one picture, while question `k` asks for box `k`."""
    regions = {f"region {k}": box for k, box in enumerate(boxes)}
    batch = subject.look([pixels] * len(questions), questions, regions=[regions] * len(questions))
    return attention_on(subject, batch, list(regions))


def find(subject: VisionSubject, strips: Sequence[PanelStrip], question: str = "What happens in the {k} panel?") -> "GazeScores":
    """Where every head looks while each panel of some strips is asked for.

    Args:
        question: {k} becomes "first", "second" and so on.

    Raises:
        TaskError: no strips, or strips of different numbers of panels.
    """
    if len({strip.n for strip in strips}) != 1:
        raise TaskError("heads are found on one or more strips that have the same number of panels")
    seen = [asked_for(subject, s.pixels, s.boxes, [question.format(k=ORDINALS[k]) for k in range(s.n)]) for s in strips]
    return GazeScores(np.stack([mass for mass, _ in seen]), np.stack([spread for _, spread in seen]))


@dataclass(frozen=True, eq=False)
class GazeScores:
    """Attention on regions when each of them was asked for.

    Attributes:
        mass: (picture, query, layer, head, region); query `k` asked for region `k`.
        spread: (picture, query, layer, head), the entropy of attention over image tokens.
    """

    mass: Array
    spread: Array

    def __post_init__(self) -> None:
        if self.mass.ndim != 5 or self.mass.shape[1] != self.mass.shape[4] or not self.mass.size:
            raise TaskError(
                f"expected attention as (picture, query, layer, head, region) with a query per region, got {self.mass.shape}"
            )

    @property
    def n_regions(self) -> int:
        """Queries, and regions, per picture."""
        return int(self.mass.shape[1])

    def diagonal(self) -> Array:
        """Per picture and head, mean mass on the region asked for: (picture, layer, head)."""
        found: Array = np.einsum("sklhk->slh", self.mass) / self.n_regions
        return found

    def selectivity(self) -> Array:
        """Per head, mean share of its attention on all regions that falls on the one asked for: (layer, head)."""
        mean = self.mass.mean(0)
        share = mean / np.maximum(mean.sum(-1, keepdims=True), 1e-12)
        found: Array = np.einsum("klhk->lh", share) / self.n_regions
        return found

    def routing(self) -> Array:
        """Per picture, query and head, whether the region asked for gets most: (picture, query, layer, head)."""
        asked = np.arange(self.n_regions)[None, :, None, None]
        return np.asarray(self.mass.argmax(-1) == asked, dtype=np.float64)

    def image_heads(self) -> Ranking:
        """Heads by their attention on all regions together, whatever was asked for (after arXiv 2510.02790)."""
        return self._ranked(self.mass.mean((0, 1)).sum(-1), "attention mass on the image", "image heads")

    def localisation_heads(self) -> Ranking:
        """Heads with much attention on the image, the least spread first (after Kang et al. 2025, arXiv 2503.06287).

        Much is what lies before the elbow of the sorted masses, the point farthest from the chord between the first and the
        last; other heads follow behind. Spread is Shannon's entropy over image tokens, not one of connected components.
        """
        mass, spread = self.mass.mean((0, 1)).sum(-1), self.spread.mean((0, 1))
        enough = mass >= np.sort(mass.ravel())[::-1][elbow(mass.ravel())]
        return self._ranked(-spread + np.where(enough, 0.0, -1e3), "concentration of image attention", "localisation heads")

    def _ranked(self, table: Array, what: str, method: str) -> Ranking:
        entries = [
            Scored(str(Site("head_z", layer, head)), float(table[layer, head]), n=len(self.mass))
            for layer in range(table.shape[0])
            for head in range(table.shape[1])
        ]
        return Ranking("head", entries, rule="most_positive", metric=what, method=method)

    def ranking(self, score: Score = "mass") -> Ranking:
        """Heads by their score, the highest first."""
        table = self.diagonal().mean(0) if score == "mass" else self.selectivity()
        what = "attention mass on the region asked for" if score == "mass" else "share of image attention on the region asked for"
        return self._ranked(table, what, "gaze heads")


def elbow(values: Array) -> int:
    """Place, in descending order, of the value farthest below the chord between the largest and the smallest."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    chord = np.linspace(ordered[0], ordered[-1], len(ordered))
    return int(np.argmax(chord - ordered))
