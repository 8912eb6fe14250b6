"""Learned mediators on a model whose answer is written in two planted planes: each search finds its plane and nothing else."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import builders
from mediant.core.errors import EditError, OutOfRange, TaskError
from mediant.core.pair import Prompt
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.features import PCA, Rotation
from mediant.interventions.mediator import Mediator
from mediant.search.feature_masks import TEMPERATURES, dbm
from mediant.search.interchange import Interchanges, answered
from mediant.search.learning import learn
from mediant.search.rotations import boundless_das, das
from mediant.subject import Subject, wrap
from mediant.tasks.interchange import Interchange, encode_interchanges

WIDTH, N, SYNONYMS = 32, 4, 100
SITE = Site("resid_post", 0)
ROTATED = builders.rotation(WIDTH, WIDTH).basis
ALIGNED = torch.eye(WIDTH)[:, torch.randperm(WIDTH, generator=torch.Generator().manual_seed(5))]
ANSWERS = [f"A{a}{b}" for a in range(N) for b in range(N)]
VOCABULARY = ["</s>", "<pad>", ".", *ANSWERS, *(f"w{a}{b}x{i}" for a in range(N) for b in range(N) for i in range(SYNONYMS))]


def planted(basis: torch.Tensor) -> Subject:
    """A word says a and b, each as a point on a circle in a plane of its own; beside them lies noise of the word's own.

    Layers do nothing, so the stream after any of them is the embedding, and the answer names a and b.
    """
    sizes = {**builders.SIZES, "vocab_size": len(VOCABULARY), "hidden_size": WIDTH, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for i, word in enumerate(VOCABULARY[3:], start=3):
            a, b = (torch.tensor([math.cos(math.pi * int(x) / 2), math.sin(math.pi * int(x) / 2)]) for x in word[1:3])
            told = basis[:, :2] @ a + basis[:, 2:4] @ b
            if word in ANSWERS:
                model.lm_head.weight[i] = 2 * told
            else:
                model.model.embed_tokens.weight[i] = told + 0.4 * basis[:, 4:] @ torch.randn(WIDTH - 4, generator=draw)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="</s>", pad_token="<pad>")
    return wrap(model, words, name="planted-planes")


def items(variable: str, n: int, seed: int) -> list[Interchange]:
    rng, found = np.random.default_rng(seed), list[Interchange]()
    while len(found) < n:
        (a, b), (c, d) = rng.integers(N, size=(2, 2)).tolist()
        x, y = (c, b) if variable == "a" else (a, d)
        own, sources, expected = (f" A{i}{j}" for i, j in ((a, b), (c, d), (x, y)))
        if own != sources:
            base, source = (Prompt(f". w{i}{j}x{rng.integers(SYNONYMS)}") for i, j in ((a, b), (c, d)))
            found.append(Interchange(str(len(found)), base, source, own, sources, expected))
    return found


def prepared(basis: torch.Tensor, variable: str, n: int = 256, seed: int = 0) -> Interchanges:
    return Interchanges(planted(basis), items(variable, n, seed), SITE, "last")


def angle(one: torch.Tensor, two: torch.Tensor) -> float:
    """Largest principal angle between two subspaces, in degrees."""
    return math.degrees(math.acos(min(1.0, float(torch.linalg.svdvals(one.mT @ two).min()))))


@pytest.mark.parametrize("variable", ["a", "b"])
def test_the_planted_plane_is_found_within_five_degrees(variable: str):
    ready = prepared(ROTATED, variable, n=2048)
    found = das(ready, k=2, epochs=5, lr=3e-2)
    basis = found.mediator.features.basis
    torch.testing.assert_close(basis.mT @ basis, torch.eye(2), atol=1e-5, rtol=0)
    plane = ROTATED[:, :2] if variable == "a" else ROTATED[:, 2:4]
    assert angle(plane, basis) < 5
    tests = prepared(ROTATED, variable, seed=9)
    assert tests.hits(found.mediator).mean() == 1.0
    # The other variable's plane, and the whole site, do something else.
    other = Rotation(ROTATED[:, 2:4] if variable == "a" else ROTATED[:, :2])
    assert tests.hits(Mediator(SITE, Span("last"), other)).mean() < 0.5
    assert tests.hits(Mediator(SITE, Span("last"))).mean() < 0.5


def test_an_exchange_is_the_formula_written_out():
    ready = prepared(ROTATED, "a", n=8)
    plane = ROTATED[:, :2]
    batch = encode_interchanges(ready.subject, ready.items)
    embedded = ready.subject.model.model.embed_tokens.weight
    base, source = (embedded[each.ids[:, -1]] for each in (batch.base, batch.source))
    written = base + (source - base) @ plane @ plane.mT
    normed = written * torch.rsqrt(written.square().mean(-1, keepdim=True) + ready.subject.model.config.rms_norm_eps)
    wanted = normed @ ready.subject.model.lm_head.weight.mT
    ((logits, told),) = ready.logits(Mediator(SITE, Span("last"), Rotation(plane)))
    torch.testing.assert_close(logits.detach(), wanted.detach(), atol=1e-4, rtol=1e-4)
    assert torch.equal(told.expected, batch.expected)


def test_a_closed_gate_changes_nothing_an_open_one_is_the_whole_and_half_of_it_is_halfway():
    ready = prepared(ROTATED, "a", n=8)
    rotation, ones = Rotation(ROTATED), torch.ones(WIDTH)

    def logits(gate: torch.Tensor | None, features: Rotation | None = rotation) -> torch.Tensor:
        return next(ready.logits(Mediator(SITE, Span("last"), features, gate)))[0].detach()

    batch = encode_interchanges(ready.subject, ready.items)
    plain = ready.subject.model(batch.base.ids).logits[:, -1]
    torch.testing.assert_close(logits(0 * ones), plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits(ones), logits(None, None), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(0.5 * ones), logits(0.5 * ones, None), atol=1e-4, rtol=1e-4)
    plane = torch.tensor([1.0, 1.0] + [0.0] * (WIDTH - 2))
    torch.testing.assert_close(logits(plane), logits(None, Rotation(ROTATED[:, :2])), atol=1e-4, rtol=1e-4)
    with pytest.raises(EditError, match="a gate for each of 32 features"):
        logits(torch.ones(3))


@pytest.mark.parametrize("price", [0.0, 0.5])
def test_a_loss_is_the_mean_surprise_at_the_causal_models_answer_plus_the_price(price: float):
    ready = prepared(ROTATED, "a", n=8)
    wish = torch.zeros(WIDTH, requires_grad=True)

    def half(_: float = 1.0) -> Mediator:
        return Mediator(SITE, Span("last"), Rotation(ROTATED), torch.sigmoid(wish))

    ((logits, batch),) = ready.logits(half())
    surprises = [-float(row.double().softmax(0)[token].log()) for row, token in zip(logits.detach(), batch.expected, strict=True)]
    costs = {"cost": lambda mediator: price * mediator.gate.sum()} if price else {}
    before = ready.subject.work.token_layers
    found = learn(ready, [wish], half, half, epochs=1, rates=[0.1], **costs)
    assert found.tokens == ready.subject.work.token_layers - before > 0
    assert found.course.losses == pytest.approx([np.mean(surprises) + price * WIDTH / 2], rel=1e-5)


def test_planted_neurons_are_found_exactly_and_the_temperature_falls():
    ready = prepared(ALIGNED, "a")
    found = dbm(ready, price=2e-2, epochs=20, lr=5e-2)
    gate = found.mediator.gate
    assert set(gate.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(gate.nonzero().flatten(), ALIGNED[:, :2].sum(1).nonzero().flatten())
    assert found.course.temperatures[0] == TEMPERATURES[0]
    assert found.course.temperatures[-1] == pytest.approx(TEMPERATURES[1])
    assert np.allclose(np.diff(found.course.temperatures), (TEMPERATURES[1] - TEMPERATURES[0]) / (found.course.steps - 1))
    assert prepared(ALIGNED, "a", seed=9).hits(found.mediator).mean() == 1.0


def test_axes_of_a_basis_are_found_where_no_neuron_is():
    ready = prepared(ROTATED, "b")
    found = dbm(ready, Rotation(ROTATED), price=2e-2, epochs=20, lr=5e-2)
    assert found.mediator.gate.nonzero().flatten().tolist() == [2, 3]
    # In the site's own coordinates the plane lies across all neurons, and none of them alone will do.
    crowd = dbm(ready, price=2e-2, epochs=20, lr=5e-2)
    assert prepared(ROTATED, "b", seed=9).hits(crowd.mediator).mean() < 0.9
    fitted = PCA.fit(ready.values(), 12)
    assert dbm(ready, fitted, epochs=1).mediator.gate.shape == (12,)


def test_boundless_search_finds_the_plane_and_how_wide_it_is():
    ready = prepared(ROTATED, "a")
    found = boundless_das(ready, epochs=30, lr=2e-2, boundary_lr=2e-2, price=2.0)
    size = int(found.mediator.size(WIDTH))
    assert 2 <= size <= 8
    held = found.mediator.features.basis[:, :size]
    assert angle(ROTATED[:, :2], held) < 12
    assert prepared(ROTATED, "a", seed=9).hits(found.mediator).mean() > 0.95


def test_learning_leaves_the_model_as_it_was_and_is_the_same_each_time():
    ready = prepared(ROTATED, "a", n=16)
    before = {name: p.clone() for name, p in ready.subject.model.named_parameters()}
    one, two = (das(ready, k=3, epochs=2, seed=4).mediator.features.basis for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, das(ready, k=3, epochs=2, seed=5).mediator.features.basis)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in ready.subject.model.named_parameters())


def test_items_that_the_model_gets_wrong_are_left_out():
    lm, good = planted(ROTATED), items("a", 12, 3)
    wrong = [replace(good[0], own=" A33" if good[0].own != " A33" else " A00"), replace(good[1], sources=good[1].own)]
    assert answered(lm, [wrong[0], *good, wrong[1]], batch_size=5) == good


def test_what_cannot_be_learnt_is_said():
    ready = prepared(ROTATED, "a", n=4)
    with pytest.raises(OutOfRange, match="1 to 32 dimensions, got k = 33"):
        das(ready, k=33)
    with pytest.raises(OutOfRange, match="at least 1 epoch"):
        das(ready, k=2, epochs=0)
    with pytest.raises(OutOfRange, match="price of -1"):
        dbm(ready, price=-1)
    with pytest.raises(TaskError, match="no interchanges"):
        Interchanges(ready.subject, [], SITE, "last")
    long = replace(ready.items[0], expected=" A00 A01")
    with pytest.raises(TaskError, match="' A00 A01' take several"):
        encode_interchanges(ready.subject, [long])
