"""Linear rules on arrays: three ways to fit a direction that tells two classes of vectors apart.

>>> import numpy as np
>>> x, y = np.array([[0.0, 5.0], [0.0, 7.0], [2.0, 5.0], [2.0, 7.0]]), np.array([False, False, True, True])
>>> rule = fit_mean_difference(x, y)
>>> rule.vector.tolist(), rule.threshold, rule(x).tolist()
([2.0, 0.0], 2.0, [False, False, True, True])

All arrays are float64, one row per item. `mediant.search.directions` applies them to activations.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from mediant.measures.intervals import Array

Mask = npt.NDArray[np.bool_]
# Activations that are equal in truth differ by float32 rounding, which depends on how prompts were padded.
FAINT = 1e-5


@dataclass(frozen=True, eq=False)
class Rule:
    """A linear classifier: positive where the projection on `vector` exceeds `threshold`.

    Attributes:
        vector: shape (d,), of any length; zero where the items give no direction.
        dose: distance between the class means along `vector`, in units of the activations.
    """

    vector: Array
    threshold: float
    dose: float

    def __call__(self, x: Array) -> Mask:
        """Which rows of `x`, shape (n, d), are called positive."""
        return np.asarray(x @ self.vector > self.threshold)


Fit = Callable[[Array, Mask], Rule]


def fit_mean_difference(x: Array, y: Mask) -> Rule:
    """Difference of class means, cut half-way: the optimal rule where classes are equally wide in all directions."""
    high, low = x[y].mean(0), x[~y].mean(0)
    vector = high - low
    if np.linalg.norm(vector) <= FAINT * np.sqrt(np.square(x).sum(1).mean()):
        vector = np.zeros_like(vector)
    return Rule(vector, float(vector @ (high + low)) / 2, float(np.linalg.norm(vector)))


def fit_logistic(x: Array, y: Mask, *, l2: float = 1.0) -> Rule:
    """Logistic regression on standardised features, both classes weighing the same.

    Minimises the summed log loss plus `l2` / 2 times the squared weights, the intercept being free: a convex
    problem with one solution, found by L-BFGS in float64 from zero.
    """
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > FAINT * np.sqrt(np.square(x).mean(0)), std, np.inf)
    weights, bias = _logistic((x - mean) / std, y, l2)
    vector = weights / std
    length = float(np.linalg.norm(vector))
    gap = abs(float(vector @ (x[y].mean(0) - x[~y].mean(0)))) / length if length else 0.0
    return Rule(vector, float(vector @ mean - bias), gap)


def _logistic(x: Array, y: Mask, l2: float) -> tuple[Array, float]:
    features = torch.from_numpy(np.column_stack([x, np.ones(len(x))]))
    target, share = torch.from_numpy(y.astype(np.float64)), torch.from_numpy(balance(y))
    beta = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [beta], max_iter=1000, tolerance_grad=1e-7, tolerance_change=1e-12, history_size=50, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimiser.zero_grad()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(features @ beta, target, share, reduction="sum")
        loss = losses + l2 / 2 * beta[:-1].square().sum()
        loss.backward()
        return float(loss.detach())

    with torch.enable_grad():
        optimiser.step(closure)
    solved = beta.detach().numpy()
    return solved[:-1], float(solved[-1])


def fit_sparse(x: Array, y: Mask, *, l1: float = 1.0, most: int = 20_000) -> Rule:
    """Logistic regression whose weights mostly are 0: a penalty on their sizes, on standardised features.

    Minimises the summed log loss plus `l1` times the summed |weights|, the intercept being free, by accelerated proximal steps
    (Beck & Teboulle 2009) in float64 until no weight moves. MIB's probes are the same (liblinear, C = 1 / l1) without balance.
    """
    mean, std = x.mean(0), x.std(0)
    std = np.where(std > FAINT * np.sqrt(np.square(x).mean(0)), std, np.inf)
    weights, bias = _sparse_logistic((x - mean) / std, y, l1, most)
    vector = weights / std
    length = float(np.linalg.norm(vector))
    gap = abs(float(vector @ (x[y].mean(0) - x[~y].mean(0)))) / length if length else 0.0
    return Rule(vector, float(vector @ mean - bias), gap)


def _sparse_logistic(x: Array, y: Mask, l1: float, most: int) -> tuple[Array, float]:
    features, share = np.column_stack([x, np.ones(len(x))]), balance(y)
    # The log loss's curvature is at most a quarter of the features' weighted second moments.
    step = 4 / float(np.linalg.eigvalsh((features * share[:, None]).T @ features)[-1])
    beta = ahead = np.zeros(features.shape[1])
    pace = 1.0
    for _ in range(most):
        chance = 1 / (1 + np.exp(-np.clip(features @ ahead, -500, 500)))
        moved = ahead - step * (features.T @ (share * (chance - y)))
        moved[:-1] = np.sign(moved[:-1]) * np.maximum(np.abs(moved[:-1]) - step * l1, 0)
        # Momentum that has begun to lead uphill is dropped (O'Donoghue & Candes 2015).
        pace = 1.0 if (ahead - moved) @ (moved - beta) > 0 else pace
        faster = (1 + np.sqrt(1 + 4 * pace**2)) / 2
        ahead, last = moved + (pace - 1) / faster * (moved - beta), beta
        beta, pace = moved, float(faster)
        if np.abs(beta - last).max() < 1e-9:
            break
    return beta[:-1], float(beta[-1])


def balance(y: Mask) -> Array:
    """Item weights, 1 on average, that give both classes the same total."""
    return np.asarray(np.where(y, len(y) / (2 * y.sum()), len(y) / (2 * (~y).sum())))


def between_means(vector: Array, x: Array, y: Mask) -> Rule:
    """The best a given direction can do without fitting it: turned and cut at the class means."""
    high, low = float((x[y] @ vector).mean()), float((x[~y] @ vector).mean())
    sign = 1.0 if high >= low else -1.0
    return Rule(sign * vector, sign * (high + low) / 2, abs(high - low) / float(np.linalg.norm(vector)))
