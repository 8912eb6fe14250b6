"""Intervals: percentile bootstrap over items, over whole clusters where items share one.

>>> import numpy as np
>>> e = estimate(np.array([1.0, 1.0, 1.0, 1.0]))
>>> e.value, e.ci95, e.n
(1.0, (1.0, 1.0), 4)

Items made from one template are not independent. Where there are at least `MIN_CLUSTERS` templates, whole
templates are resampled, then items within them; with fewer, resampling templates would say more about the
handful chosen than about the measure, so items are resampled within each template.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mediant.core.errors import TaskError

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], float]
MIN_CLUSTERS = 5
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval and the number of items."""

    value: float
    ci95: tuple[float, float]
    n: int


def resamples(n: int, clusters: Sequence[str] | None, *, draws: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Index arrays of bootstrap resamples of `n` items."""
    rng = np.random.default_rng(seed)
    labels = np.asarray(clusters if clusters is not None else [""] * n)
    if len(labels) != n:
        raise TaskError(f"{n} items but {len(labels)} cluster labels")
    groups = [np.flatnonzero(labels == name) for name in dict.fromkeys(labels.tolist())]
    result = []
    for _ in range(draws):
        chosen = groups if len(groups) < MIN_CLUSTERS else [groups[i] for i in rng.integers(len(groups), size=len(groups))]
        result.append(np.concatenate([rng.choice(group, size=len(group)) for group in chosen]))
    return result


def estimate(values: npt.ArrayLike, *, clusters: Sequence[str] | None = None, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Mean of per-item values with its bootstrap interval.

    Raises:
        TaskError: no values, or some are not finite.
    """
    return estimate_ratio(values, None, clusters=clusters, seed=seed, draws=draws)


def estimate_ratio(
    numerator: npt.ArrayLike,
    denominator: npt.ArrayLike | None,
    *,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimate:
    """Ratio of two means over the same items (or the mean of one), with its bootstrap interval."""
    top = np.asarray(numerator, dtype=np.float64)
    bottom = np.ones_like(top) if denominator is None else np.asarray(denominator, dtype=np.float64)
    if top.ndim != 1 or not len(top) or not (np.isfinite(top).all() and np.isfinite(bottom).all()):
        raise TaskError(f"an estimate needs finite per-item values, got shape {top.shape}")
    drawn = [top[i].mean() / bottom[i].mean() for i in resamples(len(top), clusters, draws=draws, seed=seed)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(top.mean() / bottom.mean()), (float(low), float(high)), len(top))


def mean_over_draws(
    values: npt.ArrayLike, *, clusters: Sequence[str] | None = None, seed: int = 0, draws: int = DRAWS
) -> Estimate:
    """Mean of a (draw, item) table, resampling draws and items: for controls drawn at random several times."""
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise TaskError(f"expected a finite (draw, item) table, got shape {table.shape}")
    rng = np.random.default_rng(seed + 1)
    items = resamples(table.shape[1], clusters, draws=draws, seed=seed)
    drawn = [table[rng.integers(table.shape[0], size=table.shape[0])][:, i].mean() for i in items]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(float(table.mean()), (float(low), float(high)), table.shape[1])
