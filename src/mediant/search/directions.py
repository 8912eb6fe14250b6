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
from mediant.search.linear_rules import Fit, Mask, balance, between_means, fit_logistic, fit_mean_difference, fit_sparse
from mediant.subject import Subject

Prompts = Sequence[Prompt | str]
Places = npt.NDArray[np.int64]
SPLIT = (0.5, 0.25, 0.25)
CONTROL_DRAWS = 20


METHODS: dict[str, tuple[str, Fit]] = {
    "mean_difference": ("mean difference", fit_mean_difference),
    "linear_probe": ("logistic regression, l2 = 1", fit_logistic),
    "sparse_probe": ("logistic regression, l1 = 1", fit_sparse),
}


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
            part.append(per_prompt(found.get((site, place)), batch.n_rows, place))
    back = np.argsort(order)
    return {site: np.concatenate(part)[back] for site, part in parts.items()}


def per_prompt(found: Activation | None, n_rows: int, span: Span) -> Array:
    """Each row's values, averaged over its tokens.

    Raises:
        SpanError: a row without any.
    """
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
        shuffled_control: test accuracy when labels are shuffled among the items that fit, and among those that test:
            nothing is left to be found, so it lies at 0.5, and its interval shows how far so few items scatter.
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
    items = labelled(subject, positives, negatives, span, name, split, groups, seed)
    x = items.activations([site])[site]
    return _found(items, x, site, "mean difference", fit_mean_difference)


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
    items = labelled(subject, positives, negatives, span, name, split, groups, seed)
    x = items.activations([site])[site]
    return _found(items, x, site, f"logistic regression, l2 = {l2:g}", partial(fit_logistic, l2=l2))


def sweep_layers(
    subject: Subject,
    positives: Prompts,
    negatives: Prompts,
    sites: Sequence[Site] | None = None,
    span: Span | str = "last",
    *,
    method: str = "mean_difference",
    name: str = "",
    split: tuple[float, float, float] = SPLIT,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> Sweep:
    """Fit a direction at every site, choose the best on validation items, and report it on test items.

    Args:
        sites: default: the residual stream after every layer. Of equally good sites the first is chosen.

    Raises:
        UnknownName: a method other than these.
        TaskError: as for `mean_difference`.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    places = [Site("resid_post", layer) for layer in range(subject.shape.n_layers)] if sites is None else list(sites)
    items = labelled(subject, positives, negatives, span, name, split, groups, seed)
    if not places or not len(items.validation):
        raise TaskError(
            f"a layer is chosen on validation items: expected sites and a second share above 0, got {len(places)} and {split}"
        )
    found, (label, fit) = items.activations(places), METHODS[method]
    tested = [
        items.accuracy(fit(x[items.fit], items.y[items.fit])(x), items.validation) for x in (found[site] for site in places)
    ]
    best = places[max(range(len(places)), key=lambda i: tested[i].value)]
    return Sweep(tuple(places), tuple(tested), _found(items, found[best], best, label, fit))


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled prompts, where to read them, and which of them fit, choose and test."""

    subject: Subject
    span: Span
    name: str
    prompts: list[Prompt | str]
    y: Mask
    clusters: list[str]
    fit: Places
    validation: Places
    test: Places
    seed: int

    @property
    def known(self) -> Places:
        """Items that may serve to fit once nothing is left to choose."""
        return np.concatenate([self.fit, self.validation])

    def activations(self, sites: Sequence[Site]) -> dict[Site, Array]:
        """Of all items, by site."""
        return activations_of(self.subject, self.prompts, sites, self.span)

    def accuracy(self, called: Mask, at: Places) -> Estimate:
        """Share of items called right, both classes weighing the same."""
        y = self.y[at]
        share, right = balance(y), called[at] == y
        return estimate_ratio(right * share, share, clusters=[self.clusters[i] for i in at], seed=self.seed)

    def control(self, draw: Callable[[np.random.Generator], tuple[Mask, Mask]]) -> Estimate:
        """Test accuracy over draws; a draw gives what was called and what was true of the test items."""
        rng = np.random.default_rng(self.seed + 1)
        drawn = [draw(rng) for _ in range(CONTROL_DRAWS)]
        table = np.stack([(called == true) * balance(true) for called, true in drawn])
        found = mean_over_draws(table, clusters=[self.clusters[i] for i in self.test], seed=self.seed)
        # Resampled groups need not hold both classes in equal number, so that weighted shares can pass 1.
        return Estimate(found.value, (found.ci95[0], min(found.ci95[1], 1.0)), found.n)


def labelled(
    subject: Subject,
    positives: Prompts,
    negatives: Prompts,
    span: Span | str,
    name: str,
    split: tuple[float, float, float],
    groups: Sequence[str] | None,
    seed: int,
) -> Labelled:
    """Prompts of two classes, dealt out to fit, to choose and to test.

    Raises:
        TaskError: a prompt given twice, shares that do not add up, or a part without one of the classes.
    """
    prompts, y = [*positives, *negatives], np.arange(len(positives) + len(negatives)) < len(positives)
    _refuse_twice(prompts, Span.of(span))
    if min(split) < 0 or not np.isclose(sum(split), 1.0):
        raise TaskError(f"split must be three shares (fit, validation, test) that sum to 1, got {split}")
    if groups is not None and len(groups) != len(prompts):
        raise TaskError(f"expected one group per prompt, positives first: {len(prompts)} prompts but {len(groups)} groups")
    fit, validation, test = _split([str(i) for i in range(len(y))] if groups is None else groups, y, split, seed)
    for what, part in (("fit", fit), ("validation", validation), ("test", test)):
        counts = int(y[part].sum()), int((~y[part]).sum())
        if not min(counts) and (what != "validation" or len(part)):
            raise TaskError(
                f"too few items: the {what} part got {counts[0]} positives and {counts[1]} negatives, expected some of each"
            )
    # Without groups, items are resampled within their class, which keeps both represented.
    clusters = [str(label) for label in y] if groups is None else list(groups)
    return Labelled(subject, Span.of(span), name, prompts, y, clusters, fit, validation, test, seed)


def _refuse_twice(prompts: Prompts, span: Span) -> None:
    seen = set()
    for prompt in prompts:
        text, spans, image = (prompt, {}, None) if isinstance(prompt, str) else (prompt.text, prompt.spans, prompt.image)
        if (key := (text, spans.get(span.name), id(image))) in seen:
            raise TaskError(f"prompt {text!r} is given twice; copies on both sides of a split would make it meaningless")
        seen.add(key)


def _split(groups: Sequence[str], y: Mask, split: tuple[float, float, float], seed: int) -> tuple[Places, Places, Places]:
    """Items of each part. Whole groups are dealt out, separately for groups with positives, with negatives and with both."""
    rng, labels = np.random.default_rng(seed), np.asarray(groups)
    strata: dict[tuple[bool, bool], list[str]] = {}
    for group in dict.fromkeys(labels.tolist()):
        inside = y[labels == group]
        strata.setdefault((bool(inside.any()), bool(inside.all())), []).append(group)
    part = np.zeros(len(y), dtype=np.int64)
    for stratum in strata.values():
        drawn = [stratum[i] for i in rng.permutation(len(stratum))]
        first, second = (round(share * len(drawn)) for share in (split[0], split[0] + split[1]))
        part[np.isin(labels, drawn[first:second])] = 1
        part[np.isin(labels, drawn[second:])] = 2
    fit, validation, test = (np.flatnonzero(part == i) for i in range(3))
    return fit, validation, test


def _found(items: Labelled, x: Array, site: Site, method: str, fit: Fit) -> Found:
    known, test, y = items.known, items.test, items.y
    rule = fit(x[known], y[known])
    length = float(np.linalg.norm(rule.vector))
    if not length:
        raise TaskError(
            f"positives and negatives do not differ at {site}, span {items.span}: choose a later layer or a span where they can"
        )

    def random_direction(rng: np.random.Generator) -> tuple[Mask, Mask]:
        return between_means(rng.standard_normal((x.shape[1],)), x[known], y[known])(x[test]), y[test]

    def shuffled_labels(rng: np.random.Generator) -> tuple[Mask, Mask]:
        return fit(x[known], rng.permutation(y[known]))(x[test]), rng.permutation(y[test])

    accuracy = items.accuracy(rule(x), test)
    random, shuffled = items.control(random_direction), items.control(shuffled_labels)
    meta = {
        "method": method, "subject": items.subject.name, "fingerprint": items.subject.fingerprint, "span": str(items.span),
        "n_fit": str(len(known)), "n_test": str(len(test)), "accuracy": _shown(accuracy), "random_control": _shown(random),
        "shuffled_control": _shown(shuffled), "threshold": repr(rule.threshold / length), "seed": str(items.seed),
    }  # fmt: skip
    unit = (rule.vector / length).astype(np.float32)
    return Found(Direction(unit, site, rule.dose, items.name, meta), rule.threshold / length, accuracy, random, shuffled)
