"""Every search among the units of an image generator, and for subspaces of one of its streams.

As for answers, scores keep their sign: a unit whose exchange moves the picture towards the other one has a negative score.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import TaskError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.features import PCA, Rotation
from mediant.measures.intervals import Array
from mediant.search.directions import per_prompt
from mediant.search.linear_rules import Fit, Mask, fit_logistic, fit_mean_difference
from mediant.search.picture_attribution import attribute_pictures, mean_gradients
from mediant.search.picture_patching import PicturePatcher
from mediant.search.rotations import das_made
from mediant.search.site_masks import mask_places
from mediant.studies.mediation.ground import Ground
from mediant.studies.mediation.mediators import Kind
from mediant.studies.mediation.pictures.ready import Pictures
from mediant.studies.mediation.pictures.task import PicturePair
from mediant.studies.mediation.searches import DBM, Search, probe_weights, row, separation
from mediant.studies.mediation.subspaces import SubspaceSearch, leading, ordered
from mediant.subject.generator import ImageGenerator

PictureGround = Ground[ImageGenerator, PicturePair]
Pairs = Sequence[PicturePair]
ALL = Span("all")
CHANGE = ("change", "size of the change")


def parts(ground: PictureGround, pairs: Pairs) -> Iterator[Pictures]:
    """Batches, made ready one after another."""
    size = ground.config.batch_size
    for i in range(0, len(pairs), size):
        yield Pictures(ground.subject, pairs[i : i + size], ground.config.steps)


def _patchers(ground: PictureGround, pairs: Pairs) -> list[PicturePatcher]:
    return [part.patcher for part in parts(ground, pairs)]


def _all_of(ground: PictureGround, pairs: Pairs, one: Callable[[PicturePatcher], Array]) -> Array:
    """Scores (unit, pair) of all batches."""
    return np.concatenate([one(part.patcher) for part in parts(ground, pairs)], axis=1)


def units_one_by_one(ground: PictureGround, pairs: Pairs, *, kind: str) -> Array:
    """Exchange every unit by itself.

    Raises:
        TaskError: there are more than `n_exact` of them.
    """
    among: Kind = ground.kinds[kind]
    many, allowed = len(among.available), ground.config.n_exact
    if many > allowed:
        raise TaskError(f"{many:,} units one by one are {many * len(pairs):,} pictures; allow it with n_exact = {many}")
    found = np.zeros((_n_scores(among), len(pairs)))
    at = 0
    for part in parts(ground, pairs):
        columns = slice(at, at + len(part.pairs))
        for unit in among.available:
            found[unit, columns] = part.change(among.exchange(part, [unit]))
        at += len(part.pairs)
    return found


def _n_scores(kind: Kind) -> int:
    return max(kind.n_units, max(kind.available, default=0) + 1)


def _neurons(ground: PictureGround) -> list[tuple[Site, Span]]:
    return [(Site("mlp_post", layer), ALL) for layer in range(ground.subject.shape.n_layers)]


def places_by_gradient(ground: PictureGround, pairs: Pairs, *, kind: str, points: int = 1) -> Array:
    """Change times gradient, for every place at once."""
    places = ground.places(kind).places
    return _all_of(ground, pairs, lambda part: np.stack([one.sum(0) for one in attribute_pictures(part, places, points=points)]))


def neurons_by_gradient(ground: PictureGround, pairs: Pairs, *, points: int = 1) -> Array:
    """Change times gradient, neuron by neuron."""
    return _all_of(ground, pairs, lambda part: np.concatenate(attribute_pictures(part, _neurons(ground), points=points)))


def features_by_gradient(ground: PictureGround, pairs: Pairs, *, kind: str, points: int = 1) -> Array:
    """Change times gradient, feature by feature."""
    chosen = ground.features(kind)
    place = [(chosen.site, chosen.span)]
    return _all_of(ground, pairs, lambda part: attribute_pictures(part, place, features=chosen.features, points=points)[0])


def places_by_mask(ground: PictureGround, pairs: Pairs, *, kind: str) -> Array:
    """Gates on places, learned together."""
    places, unit, price = list(ground.places(kind).places), "site", 0.01
    if kind == "head":
        places = [(Site("head_z", layer), ALL) for layer in range(ground.subject.shape.n_layers)]
        unit, price = "head", 0.003
    return _masked(ground, pairs, places, unit, price)


def neurons_by_mask(ground: PictureGround, pairs: Pairs) -> Array:
    """Gates on neurons, learned together."""
    return _masked(ground, pairs, _neurons(ground), "neuron", 3e-5)


def _masked(ground: PictureGround, pairs: Pairs, places: list[tuple[Site, Span]], unit: str, price: float) -> Array:
    ready, epochs = _patchers(ground, pairs), ground.config.epochs
    found = mask_places(ready, places, unit=unit, price=price, epochs=epochs, lr=0.2)
    return -torch.cat(list(found.wishes)).double().numpy()


def features_by_mask(ground: PictureGround, pairs: Pairs, *, kind: str) -> Array:
    """Differential binary masking in the site's basis."""
    chosen, epochs = ground.features(kind), ground.config.epochs
    found = mask_places(
        _patchers(ground, pairs), [(chosen.site, chosen.span)], unit="neuron", price=1e-3, epochs=epochs, lr=0.1,
        features=chosen.features,
    )  # fmt: skip
    return -torch.cat(list(found.wishes)).double().numpy()


def labelled(ground: PictureGround, pairs: Pairs, places: Sequence[tuple[Site, Span]]) -> tuple[list[Array], Mask]:
    """Values of clean pictures, then of the others, averaged over tokens and steps; and which value of the variable each has."""
    sides: list[list[list[Array]]] = [[[], []] for _ in places]
    for part in parts(ground, pairs):
        for side, batch in enumerate((part.patcher.base, part.patcher.source_batch)):
            for mine, (_, span), found in zip(sides, places, part.patcher.values(places, batch), strict=True):
                mine[side].append(per_prompt(found, batch.n_rows, span))
    clean = np.array([pair.variables[ground.data.variable] == ground.data.values[0] for pair in pairs])
    return [np.concatenate([*one, *two]) for one, two in sides], np.concatenate([clean, ~clean])


def places_by_probe(ground: PictureGround, pairs: Pairs, *, kind: str) -> Array:
    """How well a probe of each place tells the variable's two values apart, on pictures it was not fitted on."""
    values, y = labelled(ground, pairs, ground.places(kind).places)
    return np.array([-separation(one, y) for one in values])


def neurons_by_probe(ground: PictureGround, pairs: Pairs) -> Array:
    """Sparse probes, a layer at a time."""
    values, y = labelled(ground, pairs, _neurons(ground))
    return np.concatenate([probe_weights(one, y) for one in values])


def features_by_probe(ground: PictureGround, pairs: Pairs, *, kind: str) -> Array:
    """One sparse probe on all features."""
    chosen = ground.features(kind)
    (values,), y = labelled(ground, pairs, [(chosen.site, chosen.span)])
    x = torch.from_numpy(values).float()
    return probe_weights((x if chosen.features is None else chosen.features.encode(x)).double().numpy(), y)


def places_by_change(ground: PictureGround, pairs: Pairs, *, kind: str) -> Array:
    """How much the values of each place differ between the two pictures, whatever that does."""
    places = ground.places(kind).places
    return _all_of(ground, pairs, lambda part: np.stack([one.sum(0) for one in _changes(part, places)]))


def neurons_by_change(ground: PictureGround, pairs: Pairs) -> Array:
    """How much each neuron differs."""
    return _all_of(ground, pairs, lambda part: np.concatenate(_changes(part, _neurons(ground))))


def features_by_change(ground: PictureGround, pairs: Pairs, *, kind: str) -> Array:
    """How much each feature differs."""
    chosen = ground.features(kind)

    def one(part: PicturePatcher) -> Array:
        return _changes(part, [(chosen.site, chosen.span)], None if chosen.features is None else chosen.features.encode)[0]

    return _all_of(ground, pairs, one)


def _changes(
    part: PicturePatcher, places: Sequence[tuple[Site, Span]], encode: Callable[[Tensor], Tensor] | None = None
) -> list[Array]:
    """Minus the squared change of every feature, per pair: (feature, pair) for each place."""
    found = []
    for one, two in zip(part.values(places), part.values(places, part.source_batch), strict=True):
        own, other = (each.values if encode is None else encode(each.values) for each in (one, two))
        squared = (other - own).square().flatten(1).double()
        sums = torch.zeros(part.base.n_rows, squared.shape[1], dtype=torch.float64, device=squared.device)
        found.append(-sums.index_add_(0, one.rows, squared).mT.cpu().numpy())
    return found


def searches_of(kind: str, ground: PictureGround) -> list[Search]:
    """Every search among units of a kind; none among edges."""
    points, exact = ground.config.gradient_steps, partial(units_one_by_one, kind=kind)
    if kind == "edge":
        return []
    if kind == "neuron":
        integrated = partial(neurons_by_gradient, points=points)
        return row(
            exact, neurons_by_gradient, integrated, neurons_by_mask, neurons_by_probe, neurons_by_change,
            probe="sparse probes", observed=CHANGE,
        )  # fmt: skip
    if kind in ("layer", "sublayer", "head"):
        gradient = partial(places_by_gradient, kind=kind)
        others = (partial(one, kind=kind) for one in (places_by_mask, places_by_probe, places_by_change))
        return row(exact, gradient, partial(gradient, points=points), *others, observed=CHANGE)
    gradient = partial(features_by_gradient, kind=kind)
    others = (partial(one, kind=kind) for one in (features_by_mask, features_by_probe, features_by_change))
    integrated = partial(gradient, points=points)
    return row(exact, gradient, integrated, *others, learned=DBM, probe="sparse probe", observed=CHANGE)


def _differences(ground: PictureGround, pairs: Pairs) -> Float[Tensor, "n d"]:
    place = [(ground.site, ground.span)]
    ready = _patchers(ground, pairs)
    return torch.cat([part.values(place, part.source_batch)[0].values - part.values(place)[0].values for part in ready])


def by_differences(ground: PictureGround, pairs: Pairs) -> Tensor:
    """The directions along which patching the whole stream moves it most."""
    return leading(_differences(ground, pairs), ground.dimensions())


def by_gradients(ground: PictureGround, pairs: Pairs, *, points: int | None = 1) -> Tensor:
    """The directions along which the metric is steepest, over pairs, tokens and steps."""
    many = ground.config.gradient_steps if points is None else points
    place = [(ground.site, ground.span)]
    slopes = [mean_gradients(part, place, points=many)[0].values for part in _patchers(ground, pairs)]
    return leading(torch.cat(slopes), ground.dimensions())


def by_das(ground: PictureGround, pairs: Pairs) -> Tensor:
    """A rotation, learned."""
    config = ground.config
    found = das_made(
        _patchers(ground, pairs), ground.site, ground.span, width=ground.width, k=ground.dimensions(), epochs=4 * config.epochs,
        seed=config.seed,
    )  # fmt: skip
    assert isinstance(found.features, Rotation)  # noqa: S101 - learned rotations are
    return ordered(_differences(ground, pairs), found.features.basis)


def by_class(ground: PictureGround, pairs: Pairs, *, fit: Fit) -> Tensor:
    """The one direction that tells the variable's values apart."""
    (x,), y = labelled(ground, pairs, [(ground.site, ground.span)])
    vector = fit(x, y).vector
    return torch.from_numpy(vector / np.linalg.norm(vector)).float()[:, None]


def by_variance(ground: PictureGround, pairs: Pairs) -> Tensor:
    """Principal axes, whatever they mean."""
    values = stream(ground, pairs)
    return PCA.fit(values, min(ground.dimensions(), len(values) - 1)).axes


def stream(ground: PictureGround, pairs: Pairs) -> Float[Tensor, "n d"]:
    """The site's values on both sides of pairs, token by token and step by step."""
    place = [(ground.site, ground.span)]
    sides = [(part, batch) for part in _patchers(ground, pairs) for batch in (part.base, part.source_batch)]
    return torch.cat([part.values(place, batch)[0].values for part, batch in sides])


SUBSPACES = (
    SubspaceSearch("patching", "difference", "directions of the patch", by_differences),
    SubspaceSearch("attribution", "gradient", "directions of the gradient", by_gradients),
    SubspaceSearch("integrated", "integrated", "directions of integrated gradients", partial(by_gradients, points=None)),
    SubspaceSearch("learning", "das", "DAS", by_das),
    SubspaceSearch(
        "probing", "mean_difference", "mean difference", partial(by_class, fit=fit_mean_difference), needs_variable=True
    ),
    SubspaceSearch("probing", "logistic", "logistic regression", partial(by_class, fit=fit_logistic), needs_variable=True),
    SubspaceSearch("observing", "variance", "principal axes", by_variance),
)
