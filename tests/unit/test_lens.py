"""The lens must end in the model's own logits; direct contributions must add up to its logit difference."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import builders
from mediant.core import Pair, Prompt, Site
from mediant.core.errors import OutOfRange, SpanError, SubjectError, TaskError, UnknownName
from mediant.interventions import edit, run, zero
from mediant.search import lens as lens_module
from mediant.search.lens import direct_logit_attribution, freeze, logit_lens
from mediant.subject import Subject, wrap
from mediant.tasks.encode import encode
from mediant.tasks.toys import plant

FAMILIES = list(builders.BUILDERS)
TEXTS = ["When Mary and John went to the store", "a key", "Tom gave Anna a ball ."]


@functools.cache
def awkward(kind: str) -> Subject:
    """A GPT-2 whose norms and biases are far from their initial ones and zeros, and a Llama with every bias."""
    torch.manual_seed(3)
    if kind == "gpt2":
        model = builders.BUILDERS["gpt2"]()
    else:
        model = LlamaForCausalLM(LlamaConfig(**builders.SIZES, attention_bias=True, mlp_bias=True))
        model.lm_head.bias = nn.Parameter(torch.zeros(len(builders.WORDS)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name or ".ln_" in name:
                parameter.add_(torch.randn_like(parameter))
    return wrap(model, builders.tokenizer(), name=f"awkward-{kind}")


SUBJECTS = {name: functools.partial(builders.subject, name) for name in FAMILIES} | {
    f"awkward-{kind}": functools.partial(awkward, kind) for kind in ("gpt2", "llama")
}


@pytest.fixture(params=SUBJECTS)
def lm(request) -> Subject:
    return SUBJECTS[request.param]()


def own_logits(lm: Subject, texts: list[str]) -> list[torch.Tensor]:
    """Logits of every token of each text, by the bare model, one text at a time."""
    with torch.no_grad():
        return [lm.model(torch.tensor([lm.tokenizer(text)["input_ids"]])).logits[0] for text in texts]


def test_the_last_depth_is_the_models_own_logits(lm):
    found = logit_lens(lm, lm.encode(TEXTS))
    torch.testing.assert_close(found.logits("resid_post.2"), torch.stack([own[-1] for own in own_logits(lm, TEXTS)]))


def test_the_lens_reads_every_token_of_a_span_in_order(lm):
    found = logit_lens(lm, lm.encode(TEXTS), "all")
    torch.testing.assert_close(found.logits("resid_post.2"), torch.cat(own_logits(lm, TEXTS)))
    assert found.rows.tolist() == [0] * 8 + [1] * 2 + [2] * 6
    assert found.cols.tolist() == [*range(8), 6, 7, *range(2, 8)]


def test_the_first_depth_is_the_normed_and_unembedded_embedding():
    lm = builders.subject("llama")
    found = logit_lens(lm, lm.encode("Mary gave"))
    row = lm.model.model.embed_tokens.weight[builders.WORDS.index("gave")]
    expected = lm.model.lm_head.weight @ (row * row.square().mean().add(1e-6).rsqrt() * lm.model.model.norm.weight)
    torch.testing.assert_close(found.logits("embed")[0], expected.detach())


def test_a_middle_depth_is_what_the_model_says_when_later_layers_write_nothing():
    lm = builders.subject("gpt2")
    batch = lm.encode(TEXTS)
    with edit(lm, *(zero(f"{kind}.{layer}", "all") for kind in ("attn_out", "mlp_out") for layer in (1, 2))):
        cut = lm.model(batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids).logits[:, -1]
    torch.testing.assert_close(logit_lens(lm, batch).logits("resid_post.0"), cut.detach())


def test_depths_are_labelled_from_the_embedding_on():
    lm = builders.subject()
    found = logit_lens(lm, lm.encode("the key"))
    assert found.labels == ("embed", "resid_post.0", "resid_post.1", "resid_post.2")
    with pytest.raises(UnknownName, match=r"did you mean 'resid_post\.2'"):
        found.logits("resid_pst.2")


@pytest.mark.parametrize("chunk", [1, 3, 256])
def test_ranks_probabilities_and_top_tokens_follow_from_all_logits(monkeypatch, chunk):
    monkeypatch.setattr(lens_module, "CHUNK", chunk)
    lm = builders.subject("qwen3")
    found = logit_lens(lm, lm.encode(TEXTS), "prompt")
    table = found.all_logits().numpy().astype(np.float64)
    assert table.shape == (4, 16, len(builders.WORDS))
    wanted = [i % len(builders.WORDS) for i in range(7, 7 + 16)]
    logprob = table - np.log(np.exp(table).sum(-1, keepdims=True))
    picked = np.take_along_axis(logprob, np.array(wanted)[None, :, None], -1)[..., 0]
    np.testing.assert_allclose(found.logprob_of(wanted).numpy(), picked, atol=1e-5)
    order = np.argsort(-table, axis=-1)
    ranks = [[order[d, i].tolist().index(wanted[i]) for i in range(16)] for d in range(4)]
    assert found.rank_of(wanted).tolist() == ranks
    ids, values = found.top(3)
    assert ids.tolist() == order[..., :3].tolist()
    np.testing.assert_allclose(values.numpy(), -np.sort(-logprob, axis=-1)[..., :3], atol=1e-5)


def test_one_token_serves_for_all_positions_and_may_be_a_word():
    lm = builders.subject()
    found = logit_lens(lm, lm.encode(TEXTS))
    mary = builders.WORDS.index("Mary")
    assert found.rank_of(["Mary"]).tolist() == found.rank_of([mary] * 3).tolist()
    assert found.words(1)[-1] == [[lm.decode([i])] for i in found.logits("resid_post.2").argmax(-1).tolist()]


def test_rank_0_is_the_pick():
    lm = builders.subject()
    found = logit_lens(lm, lm.encode(TEXTS))
    assert found.rank_of(found.top(1)[0][-1, :, 0].tolist())[-1].tolist() == [0, 0, 0]


def test_the_lens_holds_no_logits_until_asked():
    lm = builders.subject()
    found = logit_lens(lm, lm.encode(TEXTS), "all")
    held = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    assert sum(t.numel() for t in held) == 4 * 16 * 32 + 2 * 16
    assert not found.hidden.requires_grad
    assert not found.logits("embed").requires_grad


def test_tokens_the_lens_cannot_look_up_are_refused():
    lm = builders.subject()
    found = logit_lens(lm, lm.encode(TEXTS))
    with pytest.raises(TaskError, match="3 positions read"):
        found.rank_of([1, 2])
    with pytest.raises(TaskError, match="is 2 tokens"):
        found.logprob_of(["Mary gave"])
    with pytest.raises(OutOfRange, match="ids 0 to"):
        found.logprob_of([10**6])
    with pytest.raises(OutOfRange, match="counts from 1"):
        found.top(0)


def test_a_span_without_prompt_tokens_is_refused():
    lm = builders.subject()
    with pytest.raises(SpanError, match="not generated text"):
        logit_lens(lm, lm.encode("the key"), "generated")
    with pytest.raises(UnknownName, match="span"):
        logit_lens(lm, lm.encode("the key"), "subject")


def logit_gap(lm: Subject, pairs: list[Pair]) -> np.ndarray:
    """Logit difference by the bare model, one prompt at a time."""
    words = builders.WORDS
    own = own_logits(lm, [pair.clean.text for pair in pairs])
    picks = [(words.index(p.answer.strip()), words.index(p.counterfactual_answer.strip())) for p in pairs]
    return np.array([float(o[-1, a] - o[-1, b]) for o, (a, b) in zip(own, picks, strict=True)])


def test_contributions_sum_to_the_logit_difference(lm):
    pairs = [*builders.pairs(), *mixed_pairs()]
    if lm.family.attn_post_norm:
        # Norms behind the sublayers, or a norm of another form: refused rather than split wrongly.
        with pytest.raises(SubjectError, match=r"not linearisable|is not a plain sum"):
            direct_logit_attribution(lm, encode(lm, pairs))
        return
    found = direct_logit_attribution(lm, encode(lm, pairs))
    expected = logit_gap(lm, pairs)
    assert found.values.shape == (len(found.labels), 6)
    np.testing.assert_allclose(found.total, expected, atol=1e-4)
    np.testing.assert_allclose(found.values.sum(0), expected, atol=1e-4)


def mixed_pairs() -> list[Pair]:
    """Pairs of other lengths, so that prompts are padded."""
    texts = [("the key near two", "the keys near two", "is", "are"), ("Mary said", "John said", "the", "a")]
    return [Pair(f"m{i}", Prompt(a), Prompt(b), f" {x}", f" {y}", "m") for i, (a, b, x, y) in enumerate(texts)]


def test_each_contribution_is_the_components_output_through_the_frozen_norm(lm):
    """Brute force: write the norm's Jacobian with a frozen denominator out, and apply it to captured outputs."""
    if lm.family.attn_post_norm:
        pytest.skip("direct logit attribution refuses this family, see test_contributions_sum_to_the_logit_difference")
    batch = encode(lm, builders.pairs())
    found = direct_logit_attribution(lm, batch)
    places = [("final_resid", "last"), ("resid_pre.0", "last")]
    places += [(f"{kind}.{layer}", "last") for kind in ("mlp_out", "head_result") for layer in range(3)]
    with torch.no_grad():
        out = run(lm, batch.base, capture=places)
    captured = {str(site): a.values.double().numpy() for (site, _), a in out.captured.items()}
    norm, unembed = lm.family.final_norm_of(lm.model), lm.family.unembed_of(lm.model).weight.detach().double().numpy()
    readout = unembed[[i for (i,) in batch.answers]] - unembed[[i for (i,) in batch.counterfactual_answers]]
    final, centred = captured["final_resid"], isinstance(norm, nn.LayerNorm)
    epsilon = norm.eps if centred else norm.variance_epsilon
    deviation = final - final.mean(-1, keepdims=True) if centred else final
    denominator = np.sqrt((deviation**2).mean(-1, keepdims=True) + epsilon)

    def contribution(written: np.ndarray) -> np.ndarray:
        inner = written - written.mean(-1, keepdims=True) if centred else written
        return (readout * norm.weight.detach().double().numpy() * inner / denominator).sum(-1)

    np.testing.assert_allclose(found.of("embed"), contribution(captured["resid_pre.0"]), atol=1e-4)
    for layer in range(3):
        np.testing.assert_allclose(found.of(f"mlp_out.{layer}"), contribution(captured[f"mlp_out.{layer}"]), atol=1e-4)
        for head in range(4):
            expected = contribution(captured[f"head_result.{layer}"][:, head])
            np.testing.assert_allclose(found.of(f"head_result.{layer}.{head}"), expected, atol=1e-4)


def test_biases_are_listed_only_where_the_model_has_them():
    def kinds(lm: Subject) -> set[str]:
        return {label.split(".")[0] for label in direct_logit_attribution(lm, encode(lm, builders.pairs())).labels}

    plain = {"embed", "head_result", "mlp_out"}
    assert kinds(builders.subject("qwen2")) == plain
    assert kinds(awkward("gpt2")) == plain | {"attn_bias", "final_norm_bias"}
    assert kinds(awkward("llama")) == plain | {"attn_bias", "unembed_bias"}


def test_in_a_toy_without_norms_a_direct_contribution_is_the_planted_weight():
    toy = plant("single")
    batch = encode(toy.subject, toy.pairs)
    found = direct_logit_attribution(toy.subject, batch)
    out = run(toy.subject, batch.base).last
    gap = (
        out[range(len(out)), [i for (i,) in batch.answers]] - out[range(len(out)), [i for (i,) in batch.counterfactual_answers]]
    ).detach()
    np.testing.assert_allclose(found.values.sum(0), gap, atol=1e-5)
    # yes - no = 2 OUT - 1: the one head that moves bit a writes OUT = a, the constant gives -1, nothing else writes.
    (mediator,) = toy.mediators
    name = f"head_result.{mediator.layer}.{mediator.head}"
    sign = np.array([1.0 if pair.answer.strip() == "yes" else -1.0 for pair in toy.pairs])
    np.testing.assert_allclose(found.of(name), np.where(sign > 0, 2.0, 0.0), atol=1e-5)
    np.testing.assert_allclose(found.of("embed"), -sign, atol=1e-5)
    rest = [label for label in found.labels if label not in (name, "embed")]
    assert np.abs(np.stack([found.of(label) for label in rest])).max() < 1e-5


def test_a_direct_contribution_is_not_an_effect():
    lm = builders.subject()
    batch = encode(lm, builders.pairs())
    found = direct_logit_attribution(lm, batch)
    with torch.no_grad():
        out = run(lm, batch.base, [zero("mlp_out.0", "last")]).logits
    answers, others = (torch.tensor(ids)[:, 0] for ids in (batch.answers, batch.counterfactual_answers))
    last = out[:, -1]
    effect = found.total - (last.gather(-1, answers[:, None]) - last.gather(-1, others[:, None]))[:, 0].numpy()
    assert np.abs(effect - found.of("mlp_out.0")).max() > 0.1


def test_the_ranking_orders_components_by_their_mean_size():
    lm = builders.subject()
    found = direct_logit_attribution(lm, encode(lm, builders.pairs()))
    ranking = found.ranking()
    means = {label: values.mean() for label, values in zip(found.labels, found.values, strict=True)}
    assert [s.mediator for s in ranking] == sorted(means, key=lambda label: -abs(means[label]))
    assert ranking.entries[0].ci95[0] <= ranking.entries[0].score <= ranking.entries[0].ci95[1]
    assert "not an effect" in ranking.method
    with pytest.raises(UnknownName, match="component"):
        found.of("mlp_out.9")


def test_one_pair_is_ranked_without_an_interval():
    lm = builders.subject()
    ranking = direct_logit_attribution(lm, encode(lm, builders.pairs()[:1])).ranking()
    assert {(s.ci95, s.n) for s in ranking} == {(None, 1)}


def test_answers_of_several_tokens_are_refused():
    lm = builders.subject()
    pair = Pair("long", Prompt("Mary said"), Prompt("John said"), " the key", " a ball")
    with pytest.raises(TaskError, match="several"):
        direct_logit_attribution(lm, encode(lm, [pair]))


class Gained(nn.Module):
    """An RMS norm whose weight is an offset from 1, as some families have it; the plain formula does not fit."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.full((d,), 0.5)), 1e-6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * (1 + self.weight)


@pytest.mark.parametrize("norm", [Gained(32), nn.Tanh(), nn.Softmax(-1)], ids=["offset weight", "tanh", "softmax"])
def test_a_final_norm_of_another_form_is_refused(norm):
    with pytest.raises(SubjectError, match="not linearisable"):
        freeze(norm, torch.randn(3, 32, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    "norm",
    [nn.Identity(), nn.LayerNorm(32, eps=0.1), nn.LayerNorm(32, elementwise_affine=False), nn.RMSNorm(32, eps=0.1)],
    ids=["identity", "layer", "layer without weights", "rms"],
)
def test_a_frozen_norm_is_affine_and_pulls_back_exactly(norm):
    torch.manual_seed(0)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, readout = torch.randn(3, 32), torch.randn(3, 32)
    frozen = freeze(norm, x)
    torch.testing.assert_close(frozen.apply(x), norm(x).detach())
    bias = 0 if frozen.bias is None else (readout * frozen.bias).sum(-1)
    direct = (readout * frozen.apply(x)).sum(-1)
    torch.testing.assert_close((frozen.pull_back(readout) * x).sum(-1) + bias, direct)
    # Affine: with the scale held, the map of a sum of two parts is the sum of the maps, less one bias.
    both = frozen.apply(x) + frozen.apply(2 * x) - frozen.apply(torch.zeros_like(x))
    torch.testing.assert_close(frozen.apply(3 * x), both)


def test_a_model_that_scales_its_logits_is_refused():
    torch.manual_seed(0)
    model = builders.BUILDERS["llama"]()
    model.lm_head.register_forward_hook(lambda module, args, out: 30 * torch.tanh(out / 3))
    lm = wrap(model, builders.tokenizer(), name="capped")
    with pytest.raises(SubjectError, match="changed after the unembedding"):
        direct_logit_attribution(lm, encode(lm, builders.pairs()))


def test_half_precision_adds_up_to_its_own_rounding():
    lm = builders.subject("llama", dtype=torch.bfloat16)
    found = direct_logit_attribution(lm, encode(lm, builders.pairs()))
    written = np.abs(found.values).sum(0)
    assert (np.abs(found.values.sum(0) - found.total) < 0.02 * written).all()


def test_sites_are_named_so_that_the_heads_can_be_patched():
    lm = builders.subject()
    found = direct_logit_attribution(lm, encode(lm, builders.pairs()))
    sites = [Site.parse(label) for label in found.labels]
    assert [lm.validate(site) for site in sites] == sites
