"""Attribution patching of nodes: an estimate of what patching every layer, head, neuron or feature would do, from few runs.

    effects = attribute(lm, pairs, [Site("head_z", l, h) for l in range(30) for h in range(9)], span="end")
    ranking = ranking_of(sites, effects, pairs, method="attribution patching")

To first order, giving a site its source value changes the metric by the change of the value times the metric's gradient there,
summed over tokens (attribution patching, Nanda 2023; Syed et al. 2023, arXiv 2310.10348; per neuron, "NAP" in MIB): two forwards
and one backward for all sites at once. With `steps` above 1 the gradient is the mean along the way from the base's embeddings to
the source's (integrated gradients; Hanna et al. 2024, 2403.17806), which sees through saturation.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import OutOfRange, TaskError
from mediant.core.pair import Pair
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edits
from mediant.interventions.edits import Activation, Edit
from mediant.interventions.execute import Captured, run
from mediant.interventions.features import Featurizer
from mediant.measures.metrics import Metric, Outcome, metric
from mediant.subject import Batch, Subject
from mediant.tasks.encode import Direction, PairBatch, encode

EMBED, EVERYWHERE = Site("embed"), Span("all")


def attribute(
    subject: Subject, pairs: Sequence[Pair], sites: Sequence[Site | str], span: Span | str = "all", *,
    by: str | Metric = "logit_diff", steps: int = 1, direction: Direction = "noising", batch_size: int = 8,
) -> Float[np.ndarray, "site pair"]:  # fmt: skip
    """Estimated effect of every site at a span, pair by pair.

    Args:
        steps: points at which gradients are taken; 1 is the base alone.

    Raises:
        TaskError: no pairs, or pairs that cannot be aligned.
        OutOfRange: no steps.
    """
    found = attribute_features(subject, pairs, sites, span, by=by, steps=steps, direction=direction, batch_size=batch_size)
    return np.stack([each.sum(0) for each in found])


def attribute_features(
    subject: Subject, pairs: Sequence[Pair], sites: Sequence[Site | str], span: Span | str = "all", *,
    features: Featurizer | None = None, by: str | Metric = "logit_diff", steps: int = 1, direction: Direction = "noising",
    batch_size: int = 8,
) -> "list[Float[np.ndarray, 'feature pair']]":  # fmt: skip
    """The same feature by feature: for each site, the part of its effect that each feature has.

    Args:
        features: the basis; None for the site's own coordinates, such as the hidden neurons of `mlp_post`.
    """
    if not pairs:
        raise TaskError("no pairs were given, so there is nothing to attribute")
    if steps < 1:
        raise OutOfRange(f"gradients are taken at 1 point or more, got steps = {steps}")
    places, where = [subject.validate(site) for site in sites], Span.of(span)
    parts: list[list[np.ndarray]] = [[] for _ in places]
    for i in range(0, len(pairs), batch_size):
        batch = encode(subject, pairs[i : i + batch_size], direction=direction)
        for part, found in zip(parts, _batch(subject, batch, places, where, features, metric(by), steps), strict=True):
            part.append(found)
    return [np.concatenate(part, axis=1) for part in parts]


def gradients(
    subject: Subject, pairs: Sequence[Pair], site: Site | str, span: Span | str, *, by: str | Metric = "logit_diff",
    steps: int = 1, batch_size: int = 8,
) -> Float[np.ndarray, "token d"]:  # fmt: skip
    """The metric's gradient at every token of a span: which way its values would have to move.

    Args:
        steps: as for `attribute`.
    """
    place, where = subject.validate(site), Span.of(span)
    found = []
    for i in range(0, len(pairs), batch_size):
        batch = encode(subject, pairs[i : i + batch_size])
        _, _, (slope,) = _mean_slopes(subject, batch, [place], where, metric(by), steps)
        found.append(slope.double().cpu().numpy())
    return np.concatenate(found)


def _batch(
    subject: Subject,
    batch: PairBatch,
    sites: Sequence[Site],
    span: Span,
    features: Featurizer | None,
    measure: Metric,
    steps: int,
) -> Iterator["Float[np.ndarray, 'feature pair']"]:
    base, source, slopes = _mean_slopes(subject, batch, sites, span, measure, steps)
    for site, gradient in zip(sites, slopes, strict=True):
        yield _products(base[site, span], source[site, span], gradient, features, batch)


def _mean_slopes(
    subject: Subject, batch: PairBatch, sites: Sequence[Site], span: Span, measure: Metric, steps: int
) -> tuple[Captured, Captured, list[Tensor]]:
    """Values of the base and of the source, and the gradients between them."""
    base, source = (_captured(subject, each, sites, span, batch.keep) for each in (batch.base, batch.source))
    means = [torch.zeros_like(base[site, span].values) for site in sites]
    for step in range(steps):
        # From the base towards the source, whose end is left out: at one step the base alone.
        inputs = _between(base, source, step / steps) if step else []
        slopes = _slopes(subject, batch, sites, span, base, inputs, measure)
        means = [total + slope / steps for total, slope in zip(means, slopes, strict=True)]
    return base, source, means


def _captured(subject: Subject, batch: Batch, sites: Sequence[Site], span: Span, keep: int) -> Captured:
    places = [*((site, span) for site in sites), (EMBED, EVERYWHERE)]
    with torch.no_grad():
        return run(subject, batch, capture=places, keep=keep).captured


def _between(base: Captured, source: Captured, share: float) -> list[Edit]:
    """The edit that puts embeddings this share of the way from the base's to the source's."""
    one, two = base[EMBED, EVERYWHERE], source[EMBED, EVERYWHERE]
    return [edits.swap(EMBED, EVERYWHERE, Activation(one.values + share * (two.values - one.values), one.rows, one.cols))]


def _slopes(
    subject: Subject, batch: PairBatch, sites: Sequence[Site], span: Span, base: Captured, inputs: list[Edit], measure: Metric
) -> tuple[Tensor, ...]:
    """Gradient of the metric, summed over pairs, by the values of every site; pairs do not touch each other's values."""
    changes = [torch.zeros_like(base[site, span].values).requires_grad_() for site in sites]
    shifts = [
        edits.shift(site, span, Activation(change, base[site, span].rows, base[site, span].cols))
        for site, change in zip(sites, changes, strict=True)
    ]
    with torch.enable_grad():
        out = run(subject, batch.base, [*inputs, *shifts], keep=batch.keep)
        total = measure(Outcome(batch, out.logits)).sum()
        return torch.autograd.grad(total, changes)


def _products(
    base: Activation, source: Activation, gradient: Tensor, features: Featurizer | None, batch: PairBatch
) -> Float[np.ndarray, "feature pair"]:
    """Change times gradient, summed over each pair's tokens."""
    if features is None:
        each = (source.values - base.values) * gradient
    else:
        # Along the decoder: how the metric changes with the feature.
        zero = torch.zeros(len(gradient), features.n_features).to(gradient).requires_grad_()
        with torch.enable_grad():
            (along,) = torch.autograd.grad((features.decode(zero) * gradient).sum(), zero)
        each = (features.encode(source.values) - features.encode(base.values)) * along
    each = each.flatten(1).double()
    pair = (base.rows // batch.rows_per_pair).to(each.device)
    found = torch.zeros(len(batch.pairs), each.shape[1], dtype=torch.float64, device=each.device).index_add_(0, pair, each)
    return np.asarray(found.mT.cpu().numpy())
