"""Closed-form scores of edges that cross positions: one head, one query token, one key token (Haklay et al. 2025).

What a head mixes at token t changes by

    value edge     a[t, j] (v*_j - v_j)
    key edge       (a'[t, j] - a[t, j]) (v_j - o[t, j])        with the one logit s[t, j] computed from key j of the other run
    query edge     the same, with that one logit computed from query t of the other run

where a' is the weight after the softmax is taken anew and o[t, j] is what the head would mix at t without key j. The
score is that change times the metric's gradient: no copy of keys or values per position, five tables of T x T per head.
The paper writes the middle line as x / (1 + x) (v_j - z_t) with x = a (exp(s* - s) - 1), which overflows for attention sinks
and large logits; written as above every factor is bounded, and weights near 1 are never subtracted from 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Table = Float[Tensor, "batch head query key"]


def crossing_scores(
    logits: Table,
    other_query_logits: Table,
    other_key_logits: Table,
    value: Float[Tensor, "batch head key d_head"],
    other_value: Float[Tensor, "batch head key d_head"],
    gradient: Float[Tensor, "batch head query d_head"],
) -> Float[Tensor, "3 batch head query key"]:
    """Scores of query, key and value edges, in float64; pairs a query may not see are exactly 0."""
    s, seen = logits.double(), logits.isfinite()
    pull = gradient.double() @ value.double().mT
    weight = s.softmax(-1)
    top = s.argmax(-1, keepdim=True)
    without_top = s.scatter(-1, top, float("-inf"))
    rest, rest_pull = _without_each(s, weight), _pull_without_each(weight, pull)
    # Only the largest weight of a row can be near 1, where subtracting it would lose every digit.
    rest.scatter_(-1, top, without_top.logsumexp(-1, keepdim=True))
    others = torch.nan_to_num(without_top.softmax(-1))
    rest_pull.scatter_(-1, top, (others * pull).sum(-1, keepdim=True))
    along = pull - rest_pull
    by_query = _sigmoid_change(s - rest, other_query_logits.double() - rest) * along
    by_key = _sigmoid_change(s - rest, other_key_logits.double() - rest) * along
    by_value = weight * (gradient.double() @ (other_value - value).double().mT)
    return torch.stack([by_query, by_key, by_value]).masked_fill(~seen, 0.0)


def _without_each(s: Tensor, weight: Tensor) -> Tensor:
    """Log of the sum of exponentials over all keys but one, for each key; right for weights up to one half."""
    return s.logsumexp(-1, keepdim=True) + torch.log1p(-weight.clamp(max=0.75))


def _pull_without_each(weight: Tensor, pull: Tensor) -> Tensor:
    total = (weight * pull).sum(-1, keepdim=True)
    return (total - weight * pull) / (1 - weight.clamp(max=0.75))


def _sigmoid_change(before: Tensor, after: Tensor) -> Tensor:
    """sigmoid(after) - sigmoid(before) without subtracting close numbers; 0 where both are infinite or undefined."""
    low, high = torch.minimum(before, after), torch.maximum(before, after)
    size = torch.sigmoid(high) * torch.sigmoid(-low) * -torch.expm1(low - high)
    return torch.nan_to_num(torch.where(after >= before, size, -size), nan=0.0)


def by_spans(
    scores: Float[Tensor, "*kind batch head query key"], spans: Float[Tensor, "batch pos span"]
) -> Float[Tensor, "*kind batch head span span"]:
    """Sums over the token pairs of every pair of spans."""
    return torch.einsum("bts,...bhtk,bkr->...bhsr", spans, scores, spans)
