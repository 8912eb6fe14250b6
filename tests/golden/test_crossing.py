"""Closed forms of crossing edges against attention computed anew for every single edge."""

import mpmath as exact
import pytest
import torch

from mediant.search.crossing import by_spans, crossing_scores

B, H, T, D = 2, 3, 6, 4
CAUSAL = torch.ones(T, T, dtype=torch.bool).tril()


def case(seed: int, *, sharpness: float = 1.0, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Queries, keys, values of two runs, and a gradient by the mixed values."""
    g = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(B, H, T, D, generator=g, dtype=torch.float64) for name in ("q", "k", "v", "q2", "k2", "v2", "grad")}
    for name in ("q", "q2"):
        made[name] *= sharpness
    return {name: x.to(dtype) for name, x in made.items()}


def masked(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT).masked_fill(~CAUSAL, float("-inf"))


def closed_form(c: dict[str, torch.Tensor]) -> torch.Tensor:
    return crossing_scores(masked(c["q"], c["k"]), masked(c["q2"], c["k"]), masked(c["q"], c["k2"]), c["v"], c["v2"], c["grad"])


def brute_force(c: dict[str, torch.Tensor]) -> torch.Tensor:
    """One edge at a time: put in the other run's query, key or value there, take the softmax again, and read the change."""
    c = {name: x.double() for name, x in c.items()}
    logits, scores = masked(c["q"], c["k"]), torch.zeros(3, B, H, T, T, dtype=torch.float64)
    mixed = logits.softmax(-1) @ c["v"]
    for t in range(T):
        for j in range(t + 1):
            for kind, replaced in enumerate((c["q2"][:, :, t] * c["k"][:, :, j], c["q"][:, :, t] * c["k2"][:, :, j])):
                changed = logits.clone()
                changed[:, :, t, j] = replaced.sum(-1)
                new = changed.softmax(-1) @ c["v"]
                scores[kind, :, :, t, j] = ((new - mixed)[:, :, t] * c["grad"][:, :, t]).sum(-1)
            values = c["v"].clone()
            values[:, :, j] = c["v2"][:, :, j]
            new = logits.softmax(-1) @ values
            scores[2, :, :, t, j] = ((new - mixed)[:, :, t] * c["grad"][:, :, t]).sum(-1)
    return scores


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sharpness", [0.0, 0.3, 1.0, 4.0])
def test_closed_forms_equal_brute_force(seed: int, sharpness: float):
    c = case(seed, sharpness=sharpness)
    assert torch.allclose(closed_form(c), brute_force(c), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("change", [-120.0, -40.0, 40.0, 120.0])
def test_logit_changes_of_120_at_a_sink_and_elsewhere_stay_right_in_float32(change: float):
    """Key 0 holds all but e^-60 of the attention; one logit at a time moves by 120."""
    g = torch.Generator().manual_seed(1)
    v, v2, grad = (torch.randn(1, 1, T, D, generator=g) for _ in range(3))
    logits = torch.randn(1, 1, T, T, generator=g)
    logits[..., 0] += 60.0
    logits = logits.masked_fill(~CAUSAL, float("-inf"))
    found = crossing_scores(logits, logits + change, logits + change, v, v2, grad)
    assert found.isfinite().all()
    s, p = logits[0, 0].tolist(), (grad.double() @ v.double().mT)[0, 0].tolist()
    exact.mp.dps = 120
    for t in range(T):

        def mean(values, row=t):
            weights = [exact.exp(exact.mpf(x)) for x in values[: row + 1]]
            return sum(w * exact.mpf(x) for w, x in zip(weights, p[row], strict=False)) / sum(weights)

        for j in range(t + 1):
            moved = [x + (change if i == j else 0.0) for i, x in enumerate(s[t])]
            # The logits are float32 numbers; what is added to them is rounded to float32 there too.
            moved[j] = float(torch.tensor(s[t][j]) + change)
            expected = float(mean(moved) - mean(s[t]))
            assert found[0, 0, 0, t, j].item() == pytest.approx(expected, rel=1e-9, abs=1e-30), (t, j)
            assert found[1, 0, 0, t, j].item() == found[0, 0, 0, t, j].item()


def test_pairs_that_see_nothing_of_each_other_are_exactly_zero():
    c = case(3)
    assert (closed_form(c)[..., ~CAUSAL] == 0).all()


def test_a_single_visible_key_cannot_change_by_its_logit():
    c = case(4)
    assert (closed_form(c)[:2, :, :, 0] == 0).all()
    assert closed_form(c)[2, :, :, 0, 0].abs().min() > 0


def test_span_sums_are_sums_over_token_pairs():
    c = closed_form(case(5))
    of = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 2, 2, 2]])
    spans = torch.nn.functional.one_hot(of, 3).double()
    found = by_spans(c, spans)
    for b in range(B):
        for s in range(3):
            for r in range(3):
                expected = c[:, b][:, :, of[b] == s][:, :, :, of[b] == r].sum((-1, -2))
                assert torch.allclose(found[:, b, :, s, r], expected)
