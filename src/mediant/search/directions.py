"""Directions that tell two sets of prompts apart, with the accuracy and the controls that make them believable.

    found = mean_difference(lm, happy, sad, Site("resid_post", 12), name="happy")
    print(found)                                     # held-out accuracy beside its two controls
    with edit(lm, steer(found.direction, doses=1)):  # add it; `project_out` removes it
        ...

`mean_difference` is the difference of class means (Marks & Tegmark 2023), `linear_probe` the weights of a logistic
regression (Alain & Bengio 2016). Items are split once into fit, validation and test items: `sweep_layers` chooses a
layer on validation items, and every reported accuracy is of test items that neither the direction nor the choice of
layer has seen. A direction that can be read is not yet one that the model uses: add it or remove it, and measure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from mediant.core.direction import Direction
from mediant.core.errors import OutOfRange, SpanError, TaskError, unknown
from mediant.core.pair import Prompt
from mediant.core.site import HEAD_KINDS, Site
from mediant.core.span import Span
from mediant.interventions.edits import Activation
from mediant.interventions.execute import run
from mediant.measures.intervals import Array, Estimate, estimate_ratio, mean_over_draws
from mediant.subject import Subject

Prompts = Sequence[Prompt | str]
Mask = npt.NDArray[np.bool_]
Places = npt.NDArray[np.int64]
Method = Literal["mean_difference", "linear_probe"]
SPLIT = (0.5, 0.25, 0.25)
CONTROL_DRAWS = 20
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
    target, share = torch.from_numpy(y.astype(np.float64)), torch.from_numpy(_balance(y))
    beta = torch.zeros(features.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([beta], max_iter=1000, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(features @ beta, target, share, reduction="sum")
        loss = losses + l2 / 2 * beta[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss)

    with torch.enable_grad():
        optimiser.step(closure)
    solved = beta.detach().numpy()
    return solved[:-1], float(solved[-1])


def _balance(y: Mask) -> Array:
    """Item weights, 1 on average, that give both classes the same total."""
    return np.where(y, len(y) / (2 * y.sum()), len(y) / (2 * (~y).sum()))


def activations_of(
    subject: Subject, prompts: Prompts, sites: Sequence[Site], span: Span | str = "last", *, batch_size: int = 32
) -> dict[Site, Array]:
    """Each prompt's activation at some sites, averaged over the tokens of the span: shape (prompt, d) per site.

    Raises:
        SpanError: the span covers no token of a prompt.
        OutOfRange: a per-head site without its head.
    """
    whole = [site for site in sites if site.kind in HEAD_KINDS and site.head is None]
    if whole:
        raise OutOfRange(f"site {str(whole[0])!r} is all heads together; a direction lives in one, e.g. '{whole[0]}.0'")
    place, tokens = Span.of(span), [subject.tokenize(prompt) for prompt in prompts]
    # Prompts of like length share a batch, whichever class they are of: padding then cannot mark a class.
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].ids))
    parts: dict[Site, list[Array]] = {site: [] for site in sites}
    for start in range(0, len(order), batch_size):
        batch = subject.collate([tokens[i] for i in order[start : start + batch_size]])
        with torch.no_grad():
            found = run(subject, batch, capture=[(site, place) for site in parts]).captured
        for site, part in parts.items():
            part.append(_per_prompt(found.get((site, place)), batch.n_rows, place))
    back = np.argsort(order)
    return {site: np.concatenate(part)[back] for site, part in parts.items()}


def _per_prompt(found: Activation | None, n_rows: int, span: Span) -> Array:
    counts = torch.zeros(n_rows) if found is None else torch.bincount(found.rows.cpu(), minlength=n_rows)
    if found is None or not bool(counts.all()):
        raise SpanError(f"span {span} covers no token of a prompt; directions are read from prompts, not from generated text")
    sums = torch.zeros((n_rows, found.values.shape[-1]), dtype=torch.float64)
    sums.index_add_(0, found.rows.cpu(), found.values.double().cpu())
    return np.asarray((sums / counts[:, None]).numpy())


@dataclass(frozen=True, eq=False)
class Found:
    """A direction and how well it tells held-out items apart.

    Accuracies weigh both classes the same, so chance is 0.5 however many items each has.

    Attributes:
        direction: unit vector; one dose is the distance between the class means along it.
        threshold: an item is called positive where its projection on the unit vector exceeds this.
        accuracy: on test items.
        random_control: test accuracy of random directions, cut and oriented on the fit items like the real one.
        shuffled_control: test accuracy when the labels are shuffled before fitting and testing; above 0.5 means
            that the split leaks.
    """

    direction: Direction
    threshold: float
    accuracy: Estimate
    random_control: Estimate
    shuffled_control: Estimate

    def __str__(self) -> str:
        name = self.direction.name or "direction"
        return (
            f"{name} at {self.direction.site}: held-out accuracy {_shown(self.accuracy)}, n = {self.accuracy.n}; "
            f"random directions {_shown(self.random_control)}; shuffled labels {_shown(self.shuffled_control)}"
        )


def _shown(found: Estimate) -> str:
    return f"{found.value:.3f} [{found.ci95[0]:.3f}, {found.ci95[1]:.3f}]"


@dataclass(frozen=True, eq=False)
class Sweep:
    """Accuracy of every layer on validation items, and the best layer's direction, tested on other items.

    Attributes:
        validation: per site, from fit items alone; these accuracies chose the layer, so the best one flatters.
        best: refitted on fit and validation items together, reported on test items.
    """

    sites: tuple[Site, ...]
    validation: tuple[Estimate, ...]
    best: Found

    def __str__(self) -> str:
        rows = [f"  {site}: {_shown(one)}" for site, one in zip(self.sites, self.validation, strict=True)]
        return "\n".join(["accuracy on validation items", *rows, f"chosen, on test items: {self.best}"])


def mean_difference(
    subject: Subject,
    positives: Prompts,
    negatives: Prompts,
    site: Site,
    span: Span | str = "last",
    *,
    name: str = "",
    split: tuple[float, float, float] = SPLIT,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Found:
    """The direction from the mean of the negatives to that of the positives.

    Args:
        split: shares of fit, validation and test items. With the site given, validation items serve to fit; they
            are set apart so that the test items are those of a `sweep_layers` with the same seed.
        groups: one label per prompt, positives first. Items of a group (a template, a minimal pair) stay on one
            side of the split and are resampled together.

    Raises:
        TaskError: too few items, a prompt given twice, or classes that do not differ at this site.
    """
    items = _items(positives, negatives, span, split, groups, seed)
    return _found(subject, items, site, span, fit_mean_difference, "mean difference", name)


def linear_probe(
    subject: Subject,
    positives: Prompts,
    negatives: Prompts,
    site: Site,
    span: Span | str = "last",
    *,
    l2: float = 1.0,
    name: str = "",
    split: tuple[float, float, float] = SPLIT,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Found:
    """The direction of a logistic regression; arguments and errors as for `mean_difference`.

    Args:
        l2: strength of the penalty on the weights of standardised features (see `fit_logistic`).
    """
    items = _items(positives, negatives, span, split, groups, seed)
    return _found(subject, items, site, span, partial(fit_logistic, l2=l2), f"logistic regression, l2 = {l2:g}", name)


def sweep_layers(
    subject: Subject,
    positives: Prompts,
    negatives: Prompts,
    sites: Sequence[Site] | None = None,
    span: Span | str = "last",
    *,
    method: Method = "mean_difference",
    name: str = "",
    split: tuple[float, float, float] = SPLIT,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Sweep:
    """Fit a direction at every site, choose the best on validation items, and report it on test items.

    Args:
        sites: default: the residual stream after every layer. Of equally good sites the first is chosen.

    Raises:
        UnknownName: a method other than these two.
        TaskError: as for `mean_difference`.
    """
    fits: dict[str, Fit] = {"mean_difference": fit_mean_difference, "linear_probe": fit_logistic}
    if method not in fits:
        raise unknown("method", method, fits)
    places = [Site("resid_post", layer) for layer in range(subject.shape.n_layers)] if sites is None else list(sites)
    items = _items(positives, negatives, span, split, groups, seed)
    if not places or not len(items.validation):
        raise TaskError(f"a layer is chosen on validation items: give sites ({len(places)} given) and a split with a second share above 0")
    found = activations_of(subject, items.prompts, places, span)
    rules = [fits[method](found[site][items.fit], items.y[items.fit]) for site in places]
    tested = [items.accuracy(rule(found[site][items.validation]), items.validation) for site, rule in zip(places, rules, strict=True)]
    best = places[max(range(len(places)), key=lambda i: tested[i].value)]
    find = linear_probe if method == "linear_probe" else mean_difference
    chosen = find(subject, positives, negatives, best, span, name=name, split=split, groups=groups, seed=seed)
    return Sweep(tuple(places), tuple(tested), chosen)
