"""A `Bias` adds to the logits of an attention edge; minus infinity cuts it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mediant.core.edge import AttentionEdge
from mediant.core.errors import EditError
from mediant.core.site import Site
from mediant.subject.open_model import OpenModel

CUT = float("-inf")


@dataclass(frozen=True)
class Bias:
    """Add `beta` to the logits of an attention edge; minus infinity cuts it.

    Attributes:
        steps: generated tokens, or steps of making a picture (from 0), whose rows are biased; None means the query span decides
            alone.
    """

    edge: AttentionEdge
    beta: float
    steps: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """Short name for reports."""
        return f"{'cut' if self.beta == CUT else f'bias {self.beta:+g}'} {self.edge}"


def bias(edge: AttentionEdge, beta: float, *, steps: tuple[int, ...] | None = None) -> Bias:
    """Strengthen (beta > 0) or weaken (beta < 0) an attention edge."""
    return Bias(edge, beta, steps)


def cut(edge: AttentionEdge, *, steps: tuple[int, ...] | None = None) -> Bias:
    """Remove an attention edge; the remaining weights are renormalised."""
    return Bias(edge, CUT, steps)


def check_biases(model: OpenModel, biases: Sequence[Bias]) -> None:
    """Refuse biases that are no numbers, or of heads this model does not have.

    Raises:
        EditError, OutOfRange: naming the bias.
    """
    for one in biases:
        if math.isnan(one.beta) or one.beta == math.inf:
            raise EditError(f"a bias must be a number, or minus infinity to cut, got {one.beta} on {one.edge}")
        model.validate(Site("head_z", one.edge.layer, one.edge.head))
