"""Intervals: percentile bootstrap over items, over whole clusters where items share one.

>>> import numpy as np
>>> e = estimate(np.array([1.0, 1.0, 1.0, 1.0]))
>>> e.value, e.ci95, e.n
(1.0, (1.0, 1.0), 4)

Items made from one template are not independent. Where there are at least `MIN_CLUSTERS` templates, whole
templates are resampled, then items within them; with fewer, resampling templates would say more about the
handful chosen than about the measure, so items are resampled within each template; where one of these has under
`MIN_PER_CLUSTER` items, which could hardly vary by themselves, items are resampled as if they had no template.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import comb
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from mediant.core.errors import TaskError

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], float]
MIN_CLUSTERS = 5
MIN_PER_CLUSTER = 5
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval and the number of items; of a single item the interval means nothing."""

    value: float
    ci95: tuple[float, float]
    n: int


def resamples(n: int, clusters: Sequence[str] | None, *, draws: int, seed: int) -> list[npt.NDArray[np.int32]]:
    """Index arrays of bootstrap resamples of `n` items."""
    if clusters is not None and len(clusters) != n:
        raise TaskError(f"{n} items but {len(clusters)} cluster labels")
    return _resamples(n, tuple(clusters) if clusters is not None else None, draws, seed)


# Measures of one study share their items, so the same resamples serve them all.
@lru_cache(maxsize=2)
def _resamples(n: int, clusters: tuple[str, ...] | None, draws: int, seed: int) -> list[npt.NDArray[np.int32]]:
    rng = np.random.default_rng(seed)
    labels = np.asarray(clusters if clusters is not None else [""] * n)
    _, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    if len(first) < MIN_CLUSTERS and sizes.min() < MIN_PER_CLUSTER:
        labels = np.asarray([""] * n)
        _, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    members = np.argsort(labels, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    result = []
    for _ in range(draws):
        chosen = np.arange(len(first)) if len(first) < MIN_CLUSTERS else rng.integers(len(first), size=len(first))
        size = np.repeat(sizes[chosen], sizes[chosen])
        within = np.floor(rng.random(len(size)) * size).astype(np.int64)
        result.append(members[np.repeat(starts[chosen], sizes[chosen]) + within].astype(np.int32))
    return result


def coin_flip_p(successes: int, n: int) -> float:
    """Chance that a fair coin gives at least this many successes in `n` throws (one-sided exact binomial test)."""
    return float(sum(comb(n, k) for k in range(successes, n + 1)) / 2**n)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), good for shares near 0 and 1 and for few items too."""
    z, share = NormalDist().inv_cdf(0.975), successes / n
    middle, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


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
    if top.shape != bottom.shape or not bottom.size or bottom.mean() == 0:
        raise TaskError(
            f"a ratio needs as many items below as above and a mean below that is not zero, got {len(top)} over {len(bottom)}"
        )
    sums = [(top[i].sum(), bottom[i].sum()) for i in resamples(len(top), clusters, draws=draws, seed=seed)]
    # A resample without anything below has no ratio to contribute.
    drawn = [above / below for above, below in sums if below != 0]
    return Estimate(float(top.mean() / bottom.mean()), _interval(drawn), len(top))


def mean_over_draws(
    values: npt.ArrayLike,
    denominator: npt.ArrayLike | None = None,
    *,
    clusters: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimate:
    """Mean of a (draw, item) table, resampling draws and items: for controls drawn at random several times.

    Args:
        denominator: per item; the mean is then divided by its mean over the same items.
    """
    table = np.asarray(values, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.isfinite(table).all():
        raise TaskError(f"expected a finite (draw, item) table, got shape {table.shape}")
    bottom = np.ones(table.shape[1]) if denominator is None else np.asarray(denominator, dtype=np.float64)
    if bottom.shape != table.shape[1:] or not np.isfinite(bottom).all() or bottom.mean() == 0:
        raise TaskError(f"expected {table.shape[1]} finite numbers below, whose mean is not zero, got shape {bottom.shape}")
    rng = np.random.default_rng(seed + 1)
    items = resamples(table.shape[1], clusters, draws=draws, seed=seed)
    chosen = (rng.integers(table.shape[0], size=table.shape[0]) for _ in items)
    pairs = [(table[rows][:, i].mean(), bottom[i].mean()) for rows, i in zip(chosen, items, strict=True)]
    # A resample without anything below has no ratio to contribute.
    drawn = [above / below for above, below in pairs if below != 0]
    return Estimate(float(table.mean() / bottom.mean()), _interval(drawn), table.shape[1])


def _interval(drawn: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
