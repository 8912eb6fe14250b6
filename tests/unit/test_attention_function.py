"""Attention logits written out, against the weights of torch's own attention."""

import pytest
import torch
from torch import Tensor

from mediant.interventions.attention_function import attention_logits

BATCH, HEADS, QUERIES, KEYS, WIDTH = 2, 3, 4, 6, 5


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


QUERY, KEY = drawn(BATCH, HEADS, QUERIES, WIDTH, seed=0), drawn(BATCH, HEADS, KEYS, WIDTH, seed=1)
# The last query sees the last key.
SEEN = torch.arange(KEYS) <= torch.arange(QUERIES)[:, None] + KEYS - QUERIES


def torchs_weights(seen: Tensor, scaling: float | None) -> Tensor:
    """Attention of values that name their key is the weight on each."""
    values = torch.eye(KEYS, dtype=torch.float64).expand(BATCH, HEADS, KEYS, KEYS)
    return torch.nn.functional.scaled_dot_product_attention(QUERY, KEY, values, attn_mask=seen, scale=scaling)


@pytest.mark.parametrize("scaling", [None, 0.3, 1.0])
def test_without_a_mask_a_query_sees_the_keys_before_it_and_scores_shrink_with_the_root_of_the_width(scaling):
    logits = attention_logits(QUERY, KEY, None, scaling=scaling)
    assert torch.allclose(logits.softmax(-1), torchs_weights(SEEN, scaling), atol=1e-12)
    assert torch.isneginf(logits[:, :, ~SEEN]).all()
    assert torch.isfinite(logits[:, :, SEEN]).all()


def test_one_query_without_a_mask_sees_every_key():
    logits = attention_logits(QUERY[:, :, -1:], KEY, None, scaling=None)
    assert torch.allclose(logits, attention_logits(QUERY, KEY, None, scaling=None)[:, :, -1:])
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_says_what_is_seen_and_may_be_wider_than_the_keys(additive):
    seen = torch.zeros(BATCH, 1, QUERIES, KEYS + 2, dtype=torch.bool)
    seen[0, 0, :, :KEYS] = SEEN
    seen[1, 0, :, :KEYS] = SEEN.flip(1)
    least = torch.finfo(torch.float64).min
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, least) if additive else seen
    logits = attention_logits(QUERY, KEY, mask, scaling=None)
    assert torch.allclose(logits.softmax(-1), torchs_weights(seen[..., :KEYS], None), atol=1e-12)
    assert torch.equal(torch.isneginf(logits), ~seen[..., :KEYS].expand(BATCH, HEADS, QUERIES, KEYS))


def test_what_a_mask_adds_is_added_where_it_closes_nothing():
    added = drawn(BATCH, 1, QUERIES, KEYS, seed=2)
    plain = attention_logits(QUERY, KEY, torch.zeros_like(added), scaling=None)
    assert torch.allclose(attention_logits(QUERY, KEY, added, scaling=None), plain + added)


@pytest.mark.parametrize("mask", [None, SEEN[None, None].expand(BATCH, 1, QUERIES, KEYS)])
def test_some_rows_are_what_they_are_among_all(mask):
    rows = torch.tensor([3, 1])
    some = attention_logits(QUERY[:, :, rows], KEY, mask, scaling=None, rows=rows, n_queries=QUERIES)
    assert torch.equal(some, attention_logits(QUERY, KEY, mask, scaling=None)[:, :, rows])


def test_a_cap_bends_scaled_scores_and_leaves_small_ones():
    open_to_all = torch.ones(BATCH, 1, QUERIES, KEYS, dtype=torch.bool)
    plain = attention_logits(QUERY, KEY, open_to_all, scaling=0.5)
    assert torch.allclose(attention_logits(QUERY, KEY, open_to_all, scaling=0.5, softcap=2.0), 2 * torch.tanh(plain / 2))
    assert torch.allclose(attention_logits(QUERY, KEY, open_to_all, scaling=0.5, softcap=1e4), plain, atol=1e-5)


def test_half_precision_is_scored_in_single():
    logits = attention_logits(QUERY.half(), KEY.half(), None, scaling=None)
    assert logits.dtype == torch.float32
    assert torch.allclose(logits[:, :, SEEN].double(), attention_logits(QUERY, KEY, None, scaling=None)[:, :, SEEN], atol=1e-2)
