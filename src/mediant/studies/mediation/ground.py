"""What every search is given: the subject, the pairs it may see, and the units to choose among."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from mediant.core.pair import Pair
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.dictionary import load_dictionary
from mediant.interventions.features import PCA, Featurizer
from mediant.measures.intervals import Array
from mediant.search.dictionary_learning import LearnedDictionary, learn_dictionary
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.data import Data, Item
from mediant.studies.mediation.mediators import Edges, Features, Kind, Places
from mediant.subject import Subject
from mediant.subject.open_model import OpenModel

Model = TypeVar("Model", bound=OpenModel)
Values = Float[Tensor, "n d"]
LAST = Span("last")


@dataclass(eq=False)
class Ground(Generic[Model, Item]):
    """The subject, the data, and the kinds of units.

    Attributes:
        site, span: where coordinates, axes, features and subspaces are those of.
        one: tokens times layers of one run of a discovery pair's side.
        learned: what is known of the dictionary that was learned; None where one was given.
    """

    config: Config
    subject: Model
    data: Data[Item]
    site: Site
    span: Span
    kinds: dict[str, Kind]
    one: int
    learned: LearnedDictionary | None = None

    @property
    def by(self) -> str:
        """The metric's name."""
        return self.data.metric

    def places(self, kind: str) -> Places:
        """A kind whose units are places."""
        found = self.kinds[kind]
        assert isinstance(found, Places)  # noqa: S101 - rows are typed by their name
        return found

    def features(self, kind: str) -> Features:
        """A kind whose units are features of the site."""
        found = self.kinds[kind]
        assert isinstance(found, Features)  # noqa: S101 - rows are typed by their name
        return found

    def edges(self) -> Edges:
        """The edges."""
        found = self.kinds["edge"]
        assert isinstance(found, Edges)  # noqa: S101 - rows are typed by their name
        return found

    @property
    def width(self) -> int:
        """Numbers a token has at the site."""
        return self.subject.shape.d_model

    def dimensions(self) -> int:
        """Dimensions of a subspace of the size at which cells are compared."""
        return max(1, round(self.config.share * self.width))


AnswerGround = Ground[Subject, Pair]


def fitted_axes(ground: Ground[Model, Item], values: Values) -> Features:
    """Principal axes of a site's values."""
    axes = PCA.fit(values, min(ground.config.n_axes, len(values) - 1, ground.width))
    return Features("axis", ground.site, ground.span, ground.width, axes)


def given_dictionary(ground: Ground[Model, Item], values: Callable[[], Values], sides: tuple[Values, Values]) -> Features:
    """A sparse dictionary's features: the one given, or one learned from these values.

    Args:
        sides: values of clean and counterfactual items, whose features are searched where they differ.
    """
    config = ground.config
    if config.dictionary is not None:
        basis: Featurizer = load_dictionary(config.dictionary)
    else:
        ground.learned = learn_dictionary(
            values(), n_features=config.n_features, active=config.active, steps=config.dictionary_steps, seed=config.seed
        )
        basis = ground.learned.dictionary
    clean, other = sides
    differ = (basis.encode(clean) != basis.encode(other)).any(0).nonzero()[:, 0].tolist()
    return Features("feature", ground.site, ground.span, ground.width, basis, tuple(differ), overcomplete=True)


def halves(pairs: Sequence[Item]) -> tuple[Sequence[Item], Sequence[Item]]:
    """Every other pair, and the rest: both have all wordings."""
    return pairs[::2], pairs[1::2]


def mean_of(scores: Array) -> Array:
    """Scores per unit from scores per unit and pair."""
    return np.asarray(scores.mean(1) if scores.ndim == 2 else scores)
