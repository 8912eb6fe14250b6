"""Attribution of pictures: an estimate of what patching every site and feature would do to a picture, from few runs.

    by_place = attribute_pictures(patcher, [(Site("head_z", 3, 1), Span("all"))], points=5)     # (feature, pair) per place

As for answers (`node_attribution`), to first order: change of the value times the metric's gradient there, summed over tokens and
steps. With more points than one the gradient is the mean along the way from the base's text and references to the source's.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import OutOfRange
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Activation
from mediant.interventions.features import Featurizer
from mediant.search.picture_patching import PicturePatcher


def mean_gradients(patcher: PicturePatcher, places: Sequence[tuple[Site, Span]], *, points: int = 1) -> list[Activation]:
    """The metric's gradient at every place, averaged over points between base and source, the base being the first.

    Raises:
        OutOfRange: no points.
    """
    if points < 1:
        raise OutOfRange(f"gradients are taken at 1 point or more, got points = {points}")
    found = patcher.gradients(places)
    sums = [each.values.clone() for each in found]
    for point in range(1, points):
        for total, slope in zip(sums, patcher.gradients(places, patcher.between(point / points)), strict=True):
            total += slope.values
    return [Activation(total / points, each.rows, each.cols, each.calls) for total, each in zip(sums, found, strict=True)]


def attribute_pictures(
    patcher: PicturePatcher, places: Sequence[tuple[Site, Span]], *, features: Featurizer | None = None, points: int = 1
) -> "list[Float[np.ndarray, 'feature pair']]":
    """Estimated effect of every feature of every place.

    Args:
        features: the basis; None for a site's own coordinates.
        points: see `mean_gradients`.
    """
    slopes = mean_gradients(patcher, places, points=points)
    base, source = patcher.values(places), patcher.values(places, patcher.source_batch)
    n = patcher.base.n_rows
    return [_products(one, two, slope, features, n) for one, two, slope in zip(base, source, slopes, strict=True)]


def _products(
    base: Activation, source: Activation, slope: Activation, features: Featurizer | None, n_rows: int
) -> Float[np.ndarray, "feature pair"]:
    if features is None:
        each: Tensor = (source.values - base.values) * slope.values
    else:
        # Along the decoder: how the metric changes with the feature.
        zero = torch.zeros(len(slope.values), features.n_features).to(slope.values).requires_grad_()
        with torch.enable_grad():
            (along,) = torch.autograd.grad((features.decode(zero) * slope.values).sum(), zero)
        each = (features.encode(source.values) - features.encode(base.values)) * along
    each = each.flatten(1).double()
    found = torch.zeros(n_rows, each.shape[1], dtype=torch.float64, device=each.device).index_add_(0, base.rows, each)
    return np.asarray(found.mT.cpu().numpy())
