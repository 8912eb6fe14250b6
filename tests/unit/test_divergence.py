"""Divergence: KL in closed form, and how far an edit moves unrelated text."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from builders import WORDS, subject
from mediant.interventions import run, scale, zero
from mediant.measures.divergence import disturbance, kl, record_texts, selectivity

TEXTS = ["Tom went to the store", "the key is near", "When Mary and John went to the park , Anna gave a drink"]
EDIT = scale("mlp_out.1", "all", -2.0)
logits = arrays(np.float32, (3, 7), elements=st.floats(-20, 20, width=32))


def by_hand(reference: np.ndarray, edited: np.ndarray) -> np.ndarray:
    p, q = (np.exp(x.astype(np.float64) - x.max(-1, keepdims=True)) for x in (reference, edited))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    return (p * np.log(p / q)).sum(-1)


@given(logits, logits)
def test_kl_is_what_its_definition_gives_and_never_negative(reference, edited):
    found = kl(torch.from_numpy(reference), torch.from_numpy(edited)).numpy()
    assert found.shape == (3,)
    assert (found >= 0).all()
    assert np.allclose(found, by_hand(reference, edited), atol=2e-5, rtol=2e-5)


def test_kl_of_two_outcomes_is_in_nats_with_the_reference_first():
    reference, edited = torch.tensor([0.0, 0.0]), torch.tensor([np.log(3.0), 0.0]).float()
    assert kl(reference, edited).item() == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25), abs=1e-6)
    assert kl(edited, reference).item() == pytest.approx(0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5), abs=1e-6)


@given(logits, st.floats(-5, 5))
def test_equal_distributions_have_none(reference, shift):
    one = torch.from_numpy(reference)
    assert kl(one, one).tolist() == [0.0, 0.0, 0.0]
    assert kl(one, one + shift).abs().max() < 1e-5


def test_rounding_makes_no_divergence_negative():
    draw = np.random.default_rng(0)
    reference = draw.normal(size=(2000, 40)).astype(np.float32)
    edited = reference + draw.normal(scale=1e-6, size=reference.shape).astype(np.float32)
    assert kl(torch.from_numpy(reference), torch.from_numpy(edited)).min() >= 0


def test_half_precision_is_compared_in_single():
    one, two = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert kl(one, two).dtype == torch.float32
    assert torch.equal(kl(one, two), kl(one.float(), two.float()))


def test_without_an_edit_nothing_moves():
    assert selectivity(subject(), TEXTS, []).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_selectivity_is_the_mean_over_each_texts_own_tokens(family):
    lm = subject(family)
    found = selectivity(lm, TEXTS, [EDIT])
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([[WORDS.index(w) for w in text.split()]])
        batch = lm.encode(text)
        with torch.no_grad():
            before = lm.model(ids).logits[0].numpy()
            after = run(lm, batch, [EDIT], keep=batch.n_cols).logits[0].numpy()
        expected = by_hand(before, after)
        assert len(expected) == len(text.split())
        assert expected.mean() > 0.05
        assert found[i].item() == pytest.approx(expected.mean(), rel=1e-4)


def test_texts_of_other_lengths_in_the_batch_change_nothing():
    lm = subject()
    together = selectivity(lm, TEXTS, [EDIT])
    alone = torch.cat([selectivity(lm, [text], [EDIT]) for text in TEXTS])
    assert torch.allclose(together, alone, rtol=1e-4)


def test_texts_recorded_once_serve_every_edit():
    lm = subject()
    with torch.no_grad():
        untouched = record_texts(lm, TEXTS)
        for edit in (EDIT, scale("head_z.2.1", "last", 3.0)):
            assert torch.equal(disturbance(untouched, [edit]), selectivity(lm, TEXTS, [edit]))


def test_an_edit_of_the_last_token_moves_only_the_last_token():
    lm = subject()
    found = selectivity(lm, TEXTS[:1], [zero("resid_mid.2", "last")])
    batch = lm.encode(TEXTS[0])
    with torch.no_grad():
        before, after = run(lm, batch).last, run(lm, batch, [zero("resid_mid.2", "last")]).last
    assert found.item() == pytest.approx(by_hand(before.numpy(), after.numpy()).item() / batch.n_cols, rel=1e-4)
