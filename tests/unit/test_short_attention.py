"""Attention written out against the fused kernel: values, gradients, masks, and nothing left behind."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from mediant.training import short_attention
from mediant.training.short_attention import written_out


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_values_and_gradients_are_those_of_the_fused_kernel(masked: bool, scale: float | None) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(3, 2, size, 8, dtype=torch.float64, requires_grad=True) for size in (5, 7, 7)]
    mask = (torch.rand(3, 1, 5, 7) < 0.7) | torch.eye(5, 7, dtype=torch.bool) if masked else None
    weights = torch.randn(3, 2, 5, 8, dtype=torch.float64)

    fused = scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale)
    wanted = torch.autograd.grad((fused * weights).sum(), parts)
    with written_out():
        got = scaled_dot_product_attention(*parts, attn_mask=mask, scale=scale)
    found = torch.autograd.grad((got * weights).sum(), parts)

    torch.testing.assert_close(got, fused)
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two)


def test_only_inside_and_only_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    true = short_attention._attention
    monkeypatch.setattr(short_attention, "_attention", lambda *a, **k: calls.append(1) or true(*a, **k))
    query = torch.randn(1, 2, 4, 8)
    with written_out():
        scaled_dot_product_attention(query, query, query)
        causal = scaled_dot_product_attention(query, query, query, is_causal=True)
    scaled_dot_product_attention(query, query, query)
    assert calls == [1]
    torch.testing.assert_close(causal, scaled_dot_product_attention(query, query, query, is_causal=True))
