"""What changes say to the unembedding: parts add up to the whole, and on a linear toy to what the model says."""

import numpy as np
import pytest
import torch

import builders
from mediant.core.errors import SubjectError, TaskError
from mediant.core.pair import Pair
from mediant.core.site import Site
from mediant.interventions.execute import run
from mediant.measures.metrics import Outcome, logit_diff
from mediant.search.patching import Patcher
from mediant.search.readout import read_changes, unembedding_differences
from mediant.tasks.encode import encode
from mediant.tasks.toys import plant


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_heads_and_mlps_add_up_to_the_last_stream_and_neurons_to_their_mlp(name: str):
    lm, pairs = builders.subject(name), builders.pairs()
    layers, heads = range(lm.shape.n_layers), lm.heads()
    last = read_changes(lm, pairs, [Site("resid_post", lm.shape.n_layers - 1)])[0].sum(0)
    by_head = sum(one.sum(0) for one in read_changes(lm, pairs, heads))
    by_mlp = [one.sum(0) for one in read_changes(lm, pairs, [Site("mlp_out", la) for la in layers])]
    by_attention = sum(one.sum(0) for one in read_changes(lm, pairs, [Site("attn_out", la) for la in layers]))
    # The last token is the same in both prompts, so the embedding has no share.
    assert by_head + sum(by_mlp) == pytest.approx(last, abs=1e-4)
    assert by_attention == pytest.approx(by_head, abs=1e-4)
    for layer in layers:
        neurons = read_changes(lm, pairs, [Site("mlp_post", layer)])[0]
        assert neurons.shape == (lm.shape.d_mlp, len(pairs))
        assert neurons.sum(0) == pytest.approx(by_mlp[layer], abs=1e-4)


def test_without_a_norm_it_is_the_change_of_the_answer():
    toy = plant("linear")
    total = Patcher(toy.subject, encode(toy.subject, toy.pairs)).total
    assert read_changes(toy.subject, toy.pairs, [Site("resid_post", 1)])[0].sum(0) == pytest.approx(total)
    mine = read_changes(toy.subject, toy.pairs, [Site("head_z", 0, 1)])[0].sum(0)
    assert mine == pytest.approx(Patcher(toy.subject, encode(toy.subject, toy.pairs)).joint([Site("head_z", 0, 1)]), abs=1e-6)


def test_features_of_a_whole_rotation_add_up_to_the_coordinates():
    lm, pairs, site = builders.subject(), builders.pairs(), Site("resid_post", 1)
    plain = read_changes(lm, pairs, [site])[0]
    turned = read_changes(lm, pairs, [site], features=builders.rotation(lm.shape.d_model, lm.shape.d_model))[0]
    assert turned.sum(0) == pytest.approx(plain.sum(0), abs=1e-4)
    assert not np.allclose(turned, plain, atol=1e-3)
    some = read_changes(lm, pairs, [site], batch_size=1)[0]
    assert some == pytest.approx(plain, abs=1e-4)


def test_the_difference_of_unembeddings_reads_the_logit_difference_off_the_final_stream():
    lm, pairs = builders.subject(), builders.pairs()
    batch = encode(lm, pairs)
    with torch.no_grad():
        out = run(lm, batch.base, capture=[("final_resid", "last")])
    (final,) = (found.values for found in out.captured.values())
    read = (unembedding_differences(lm, pairs) * final).sum(-1)
    torch.testing.assert_close(read, logit_diff(Outcome(batch, out.logits)), atol=1e-4, rtol=1e-4)


def test_what_the_lens_cannot_read_is_refused():
    lm, pairs = builders.subject(), builders.pairs()
    with pytest.raises(SubjectError, match="writes nothing to the stream"):
        read_changes(lm, pairs, [Site("q", 0, 1)])
    with pytest.raises(SubjectError, match="norms what a sublayer writes"):
        read_changes(builders.subject("gemma2"), pairs, [Site("head_z", 0, 1)])
    with pytest.raises(SubjectError, match="norms what a sublayer writes"):
        read_changes(builders.subject("gemma2"), pairs, [Site("mlp_post", 0)])
    assert read_changes(builders.subject("olmo2"), pairs, [Site("resid_post", 0)])[0].shape[1] == len(pairs)
    long = [Pair(p.id, p.clean, p.counterfactual, p.answer + " gave", p.counterfactual_answer + " gave") for p in pairs]
    with pytest.raises(TaskError, match="single tokens"):
        read_changes(lm, long, [Site("resid_post", 0)])
