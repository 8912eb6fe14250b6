"""What every search is given: the subject, the pairs it may see, and the units to choose among.

The site whose coordinates, axes, features and subspaces are searched is chosen here too, on discovery pairs: the first layer
whose stream at the last token carries half of the effect.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.pair import Pair, Prompt
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.dictionary import load_dictionary
from mediant.interventions.execute import run
from mediant.interventions.features import PCA, Featurizer
from mediant.measures.intervals import Array
from mediant.search.dictionary_learning import LearnedDictionary, learn_dictionary
from mediant.search.directions import per_prompt
from mediant.search.patching import Patcher
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.mediators import Edges, Features, Kind, Neurons, Places, edges_of, places_of
from mediant.studies.mediation.task import Data
from mediant.subject import Subject
from mediant.tasks import plain_text
from mediant.tasks.encode import encode

LAST = Span("last")
HALF, BATCH = 0.5, 32
# Many models keep a stream of enormous length at the first token, which would be all that a dictionary learns.
AFTER_FIRST = "1:"


@dataclass(eq=False)
class Ground:
    """The subject, the data, and the kinds of units.

    Attributes:
        learned: what is known of the dictionary that was learned; None where one was given.
    """

    config: Config
    subject: Subject
    data: Data
    site: Site
    kinds: dict[str, Kind]
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

    def dimensions(self) -> int:
        """Dimensions of a subspace of the size at which cells are compared."""
        return max(1, round(self.config.share * self.subject.shape.d_model))


def half_carried(subject: Subject, data: Data, batch_size: int) -> Site:
    """The first layer whose stream at the last token carries half of the effect on discovery pairs; the last where none does."""
    sites = [Site("resid_post", layer) for layer in range(subject.shape.n_layers)]
    effects, total = [], []
    for i in range(0, len(data.discovery), batch_size):
        ready = Patcher(subject, encode(subject, data.discovery[i : i + batch_size]), by=data.metric)
        effects.append(ready.grid(sites, [LAST])[:, 0])
        total.append(ready.total)
    share = np.concatenate(effects, axis=1).mean(1) / np.concatenate(total).mean()
    return next((site for site, one in zip(sites, share, strict=True) if one >= HALF), sites[-1])


def prepare_ground(config: Config, subject: Subject, data: Data, site: Site) -> Ground:
    """All kinds of units; axes are fitted and a dictionary is learned where rows ask for them."""
    width, shape = subject.shape.d_model, subject.shape
    ground = Ground(config, subject, data, site, {})
    prompts = [side for pair in data.discovery for side in (pair.clean, pair.counterfactual)]
    for kind in config.kinds:
        if kind in ("layer", "sublayer", "head"):
            ground.kinds[kind] = places_of(subject, kind, _later(subject, data))
        elif kind == "neuron":
            ground.kinds[kind] = Neurons(shape.n_layers, shape.d_mlp)
        elif kind == "edge":
            ground.kinds[kind] = edges_of(subject)
        elif kind == "coordinate":
            ground.kinds[kind] = Features(kind, site, LAST, width)
        elif kind == "axis":
            values = values_at(subject, prompts, site, "last")
            axes = PCA.fit(values, min(config.n_axes, len(values) - 1, width))
            ground.kinds[kind] = Features(kind, site, LAST, width, axes)
        elif kind == "feature":
            ground.kinds[kind] = _dictionary(ground, prompts)
    return ground


def _dictionary(ground: Ground, prompts: Sequence[Prompt]) -> Features:
    config, subject, site = ground.config, ground.subject, ground.site
    if config.dictionary is not None:
        basis: Featurizer = load_dictionary(config.dictionary)
    else:
        texts: list[Prompt | str] = [*prompts, *plain_text.sentences(plain_text.count(), seed=config.seed)]
        ground.learned = learn_dictionary(
            values_at(subject, texts, site, AFTER_FIRST), n_features=config.n_features, active=config.active,
            steps=config.dictionary_steps, seed=config.seed,
        )  # fmt: skip
        basis = ground.learned.dictionary
    clean, other = (values_at(subject, [getattr(p, side) for p in ground.data.discovery], site, "last") for side in SIDES)
    differ = (basis.encode(clean) != basis.encode(other)).any(0).nonzero()[:, 0].tolist()
    return Features("feature", site, LAST, subject.shape.d_model, basis, tuple(differ), overcomplete=True)


SIDES = ("clean", "counterfactual")


def values_at(
    subject: Subject, prompts: Sequence[Prompt | str], site: Site, span: str, *, batch_size: int = 32
) -> Float[Tensor, "n d"]:
    """A site's values at the tokens of a span, prompt by prompt."""
    found = []
    for i in range(0, len(prompts), batch_size):
        with torch.no_grad():
            out = run(subject, subject.encode(list(prompts[i : i + batch_size])), capture=[(site, span)])
        found.append(out.captured[site, Span.of(span)].values)
    return torch.cat(found)


def values_of_sides(subject: Subject, pairs: Sequence[Pair], sites: Sequence[Site], span: Span) -> dict[Site, Array]:
    """Values of the clean prompts, then of the counterfactual ones, averaged over the tokens of a span: (2 x pair, d) per site.

    Of a counterfactual, a span is the tokens at the same places as the clean prompt's.
    """
    parts: dict[Site, tuple[list[Array], list[Array]]] = {site: ([], []) for site in sites}
    for i in range(0, len(pairs), BATCH):
        batch = encode(subject, pairs[i : i + BATCH])
        for side, prompts in enumerate((batch.base, batch.source)):
            with torch.no_grad():
                found = run(subject, prompts, capture=[(site, span) for site in sites]).captured
            for site in sites:
                parts[site][side].append(per_prompt(found[site, span], prompts.n_rows, span)[:: batch.rows_per_pair])
    return {site: np.concatenate([*clean, *other]) for site, (clean, other) in parts.items()}


def _later(subject: Subject, data: Data) -> tuple[str, ...]:
    """Spans of which some token can differ between the two prompts; the others' streams carry nothing."""
    batch = encode(subject, data.discovery)
    return tuple(name for name in data.spans if len(batch.changed(Span.of(name))[0]))


def halves(pairs: Sequence[Pair]) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """Every other pair, and the rest: both have all wordings."""
    return pairs[::2], pairs[1::2]


def mean_of(scores: Array) -> Array:
    """Scores per unit from scores per unit and pair."""
    return np.asarray(scores.mean(1) if scores.ndim == 2 else scores)
