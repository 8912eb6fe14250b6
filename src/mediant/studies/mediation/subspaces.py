"""Every search for a subspace of the site's stream: each gives orthonormal columns, those that matter most first.

    basis = SUBSPACES[0].basis(ground, ground.data.discovery)          # (d, k)

There are infinitely many subspaces, so none is a patch of each: what patching gives is the directions along which it moves the
stream most.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Prompt
from mediant.interventions.features import PCA, Rotation
from mediant.interventions.mediator import Mediator
from mediant.search.erasure import amnesic
from mediant.search.linear_rules import Fit, fit_logistic, fit_mean_difference
from mediant.search.node_attribution import gradients
from mediant.search.readout import unembedding_differences
from mediant.search.rotations import boundless_das, das
from mediant.studies.mediation.ground import LAST, AnswerGround
from mediant.studies.mediation.searches import exchanges
from mediant.studies.mediation.values import SIDES, values_at, values_of_sides

Basis = Callable[[Any, Sequence[Any]], Float[Tensor, "d k"]]


@dataclass(frozen=True)
class SubspaceSearch:
    """One way of searching; see `Search`."""

    family: str
    slug: str
    name: str
    basis: Basis
    needs_variable: bool = False


def by_das(ground: AnswerGround, pairs: Sequence[Pair]) -> Tensor:
    """A rotation, learned."""
    ready = exchanges(ground, pairs)
    found = das(ready, k=ground.dimensions(), epochs=ground.config.epochs, seed=ground.config.seed)
    return ordered(_differences(ground, pairs), _columns(found.mediator))


def by_boundless_das(ground: AnswerGround, pairs: Sequence[Pair]) -> Tensor:
    """The whole rotation and its boundary, learned; the axes inside the boundary, cut where cells are compared."""
    found = boundless_das(
        exchanges(ground, pairs), epochs=ground.config.epochs, boundary_lr=0.05, seed=ground.config.seed
    ).mediator
    assert found.gate is not None  # noqa: S101 - its boundary
    inside = _columns(found)[:, found.gate > 0]
    if not inside.shape[1]:
        raise TaskError("the boundary closed, so no axis is left")
    return ordered(_differences(ground, pairs), inside)[:, : ground.dimensions()]


def _columns(mediator: Mediator) -> Tensor:
    assert isinstance(mediator.features, Rotation)  # noqa: S101 - learned rotations are
    return mediator.features.basis.detach()


def ordered(differences: Float[Tensor, "n d"], basis: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
    """The same subspace, turned so that its first axes hold most of the difference between base and source."""
    _, _, axes = torch.linalg.svd(differences @ basis, full_matrices=True)
    turned: Tensor = basis @ axes.mT
    return turned


def _differences(ground: AnswerGround, pairs: Sequence[Pair]) -> Float[Tensor, "pair d"]:
    clean, other = (values_at(ground.subject, [getattr(p, side) for p in pairs], ground.site, "last") for side in SIDES)
    return other - clean


def by_differences(ground: AnswerGround, pairs: Sequence[Pair]) -> Tensor:
    """The directions along which patching the whole stream moves it most."""
    return leading(_differences(ground, pairs), ground.dimensions())


def by_gradients(ground: AnswerGround, pairs: Sequence[Pair], *, steps: int | None = 1) -> Tensor:
    """The directions along which the metric is steepest, over pairs."""
    many = ground.config.gradient_steps if steps is None else steps
    found = gradients(ground.subject, pairs, ground.site, LAST, by=ground.by, steps=many)
    return leading(torch.from_numpy(found).float(), ground.dimensions())


def by_unembedding(ground: AnswerGround, pairs: Sequence[Pair]) -> Tensor:
    """The directions along which the unembedding tells the two answers apart."""
    return leading(unembedding_differences(ground.subject, pairs), ground.dimensions())


def by_variance(ground: AnswerGround, pairs: Sequence[Pair]) -> Tensor:
    """Principal axes, whatever they mean."""
    values = values_at(ground.subject, [getattr(p, side) for p in pairs for side in SIDES], ground.site, "last")
    return PCA.fit(values, min(ground.dimensions(), len(values) - 1)).axes


def by_class(ground: AnswerGround, pairs: Sequence[Pair], *, fit: Fit) -> Tensor:
    """The one direction that tells the variable's values apart."""
    x = values_of_sides(ground.subject, pairs, [ground.site], LAST)[ground.site]
    clean = np.array([pair.variables[ground.data.variable] == ground.data.values[0] for pair in pairs])
    vector = fit(x, np.concatenate([clean, ~clean])).vector
    return torch.from_numpy(vector / np.linalg.norm(vector)).float()[:, None]


def by_amnesia(ground: AnswerGround, pairs: Sequence[Pair]) -> Tensor:
    """Every direction in which probes tell the values apart, taken away one after another."""
    classes: dict[str, dict[str, tuple[Prompt, str]]] = {value: {} for value in ground.data.values}
    for pair in pairs:
        here = str(pair.variables[ground.data.variable])
        there = next(value for value in ground.data.values if value != here)
        # One prompt may stand in several pairs.
        classes[here].setdefault(_known(pair.clean), (pair.clean, pair.id))
        classes[there].setdefault(_known(pair.counterfactual), (pair.counterfactual, pair.id))
    one, two = ([list(each) for each in zip(*found.values(), strict=True)] for found in classes.values())
    found = amnesic(
        ground.subject, one[0], two[0], ground.site, LAST, most=ground.dimensions(), groups=[*one[1], *two[1]],
        seed=ground.config.seed,
    )  # fmt: skip
    if not found.rank:
        raise TaskError("no probe tells the values apart, so there is nothing to take away")
    return torch.from_numpy(found.basis).float()


def _known(prompt: Prompt) -> str:
    """What tells prompts apart: their text, and their image where they have one."""
    return prompt.text if prompt.image is None else f"{prompt.text} {id(prompt.image)}"


def leading(rows: Float[Tensor, "n d"], k: int) -> Float[Tensor, "d k"]:
    """Leading right singular vectors."""
    axes: Tensor = torch.linalg.svd(rows.float(), full_matrices=False)[2][:k]
    return axes.mT


SUBSPACES = (
    SubspaceSearch("patching", "difference", "directions of the patch", by_differences),
    SubspaceSearch("attribution", "gradient", "directions of the gradient", by_gradients),
    SubspaceSearch("integrated", "integrated", "directions of integrated gradients", partial(by_gradients, steps=None)),
    SubspaceSearch("learning", "das", "DAS", by_das),
    SubspaceSearch("learning", "boundless_das", "boundless DAS", by_boundless_das),
    SubspaceSearch(
        "probing", "mean_difference", "mean difference", partial(by_class, fit=fit_mean_difference), needs_variable=True
    ),
    SubspaceSearch("probing", "logistic", "logistic regression", partial(by_class, fit=fit_logistic), needs_variable=True),
    SubspaceSearch("probing", "amnesic", "amnesic projection", by_amnesia, needs_variable=True),
    SubspaceSearch("observing", "unembedding", "directions of the unembedding", by_unembedding),
    SubspaceSearch("observing", "variance", "principal axes", by_variance),
)
