"""Saliency: against gradients by the embeddings taken straight from the library, and the spans made of it."""

import numpy as np
import pytest
import torch

from builders import ioi_pair, pairs, prompt, subject
from mediant.core import Pair
from mediant.core.errors import OutOfRange, SpanError
from mediant.search.saliency import saliency, salient, segment

GAVE = "Tom went to the store and gave"
SHORTER = Pair("s", prompt(f"{GAVE} Mary"), prompt(f"{GAVE} John"), " drink", " ball")


def by_hand(lm, pair: Pair) -> np.ndarray:
    ids = torch.tensor([lm.tokenize(pair.clean).ids])
    embedded = lm.model.get_input_embeddings()(ids).detach().requires_grad_(True)
    logits = lm.model(inputs_embeds=embedded).logits[0, -1]
    right, wrong = (lm.continuation_ids(pair.clean.text, text)[0] for text in (pair.answer, pair.counterfactual_answer))
    (gradient,) = torch.autograd.grad(logits[right] - logits[wrong], embedded)
    return (embedded * gradient)[0].norm(dim=-1).detach().numpy()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_saliency_is_the_length_of_embedding_times_gradient(family: str):
    lm = subject(family)
    items = [*pairs(), SHORTER]
    found = saliency(lm, items, batch_size=3)
    for pair in items:
        assert np.allclose(found[pair.id], by_hand(lm, pair), atol=1e-5)


def test_marks_are_what_is_above_an_equal_share_after_the_softmax():
    lm = subject()
    values, marks = saliency(lm, pairs()), salient(lm, pairs())
    for name, row in values.items():
        share = np.exp(row) / np.exp(row).sum()
        assert marks[name] == tuple((share > 1 / len(row)).tolist())
        assert 0 < sum(marks[name]) < len(row)


def test_tokens_that_often_matter_stand_alone_and_runs_of_others_together():
    lm = subject()
    marks = np.array(list(salient(lm, pairs()).values())).mean(0) > 0.5
    marks[[0, -1]] = True
    row = segment(lm, pairs()).of(pairs()[0])
    for a in range(len(row) - 1):
        assert (row[a] == row[a + 1]) is bool(not marks[a] and not marks[a + 1])
    assert sorted(set(row)) == list(range(max(row) + 1))
    assert len(segment(lm, pairs(), share=1.0).names) == 3


def test_prompts_of_unequal_length_and_shares_out_of_range_are_refused():
    with pytest.raises(SpanError, match="one length; these have 8, 14"):
        segment(subject(), [ioi_pair(), SHORTER])
    with pytest.raises(OutOfRange, match="between 0 and 1"):
        segment(subject(), pairs(), share=2.0)
