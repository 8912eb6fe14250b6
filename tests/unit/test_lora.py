"""Low-rank adapters are the weights they stand for, leave nothing behind, and come back from their files."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import builders
from low_rank import TARGETS, TEXTS, hooks, logits, logits_with, taught
from mediant.core.errors import EditError, EditNeverFired, OutOfRange, SubjectError, UnknownName
from mediant.interventions import edit, run, zero
from mediant.interventions.lora import Adapter, LowRank, applied
from mediant.subject import Subject, wrap


@pytest.fixture
def lm() -> Iterator[Subject]:
    subject = builders.subject("llama")
    yield subject
    assert hooks(subject) == 0


def with_weights(subject: Subject, *adapters: tuple[Adapter, float]) -> Subject:
    """A copy of the subject whose weights were changed by hand."""
    model = copy.deepcopy(subject.model)
    with torch.no_grad():
        for adapter, scale in adapters:
            for path, m in adapter.matrices.items():
                module = model.get_submodule(path)
                a, b = m.a.to(subject.dtype), m.b.to(subject.dtype)
                change = torch.einsum("or,ri->oi", b, a) * scale * adapter.alpha / a.shape[0]
                module.weight += change if isinstance(module, nn.Linear) else change.T
    return wrap(model, subject.tokenizer)


def test_a_fresh_adapter_changes_no_bit() -> None:
    for family, targets in TARGETS.items():
        subject = builders.subject(family)
        adapter = Adapter.create(subject, targets)
        assert torch.equal(logits(subject), logits_with(subject, (adapter, 1.0)))


def test_a_fresh_adapter_has_kaiming_a_and_zero_b() -> None:
    adapter = Adapter.create(builders.subject(), ("q_proj", "down_proj"), rank=5, alpha=3)
    assert (adapter.rank, adapter.alpha) == (5, 3)
    a = adapter.matrices["model.layers.1.mlp.down_proj"].a
    assert a.shape == (5, 48)
    assert adapter.matrices["model.layers.1.mlp.down_proj"].b.shape == (32, 5)
    # Uniform on +-1/sqrt(d_in): its standard deviation is the bound over sqrt(3).
    every = torch.cat([m.a.detach().flatten() * m.a.shape[1] ** 0.5 for m in adapter.matrices.values()])
    assert 0.97 < float(every.abs().max()) <= 1.0
    assert abs(float(every.std()) - 3**-0.5) < 0.03
    assert not any(m.b.any() for m in adapter.matrices.values())


def test_the_seed_alone_decides_a() -> None:
    def first(seed: int) -> Tensor:
        torch.manual_seed(seed + 100)
        return Adapter.create(builders.subject(), seed=seed).matrices["model.layers.0.self_attn.q_proj"].a

    assert torch.equal(first(3), first(3))
    assert not torch.equal(first(3), first(4))


def test_modules_of_one_adapter_start_from_different_a() -> None:
    matrices = Adapter.create(builders.subject()).matrices
    assert not torch.equal(matrices["model.layers.0.self_attn.q_proj"].a, matrices["model.layers.0.self_attn.v_proj"].a)


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("scale", [1.0, -0.5, 2.5])
def test_an_adapter_is_the_weights_it_stands_for(family: str, scale: float) -> None:
    subject = builders.subject(family, dtype=torch.float64)
    adapter = taught(subject, rank=3, alpha=5)
    expected = logits(with_weights(subject, (adapter, scale)))
    actual = logits_with(subject, (adapter, scale))
    assert (expected - logits(subject)).abs().max() > 0.1
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-9)


def test_adapters_together_are_the_sum_of_their_changes() -> None:
    lm = builders.subject(dtype=torch.float64)
    a, b = taught(lm, "a", targets=("q_proj", "v_proj")), taught(lm, "b", targets=("v_proj", "up_proj"), rank=2, seed=2)
    expected = logits(with_weights(lm, (a, 0.7), (b, -1.5)))
    for adapters in ([(a, 0.7), (b, -1.5)], [(b, -1.5), (a, 0.7)]):
        torch.testing.assert_close(logits_with(lm, *adapters), expected, atol=1e-9, rtol=1e-9)
    with applied(lm, [(a, 0.7)]), applied(lm, [(b, -1.5)]):
        torch.testing.assert_close(logits(lm), expected, atol=1e-9, rtol=1e-9)


def test_scales_add_up_in_the_module_they_change(lm: Subject) -> None:
    adapter, x = taught(lm), torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    path = "model.layers.2.self_attn.v_proj"
    base = lm.model.get_submodule(path)(x)
    for scale in (-1.0, 0.25, 3.0):
        with applied(lm, [(adapter, scale)]):
            change = lm.model.get_submodule(path)(x) - base
        torch.testing.assert_close(change, scale * x @ adapter.delta(path).T, atol=1e-5, rtol=1e-5)


def test_scale_0_is_the_untouched_model_bit_for_bit(lm: Subject) -> None:
    a, b = taught(lm, "a"), taught(lm, "b", seed=2)
    assert torch.equal(logits(lm), logits_with(lm, (a, 0.0)))
    assert torch.equal(logits_with(lm, (a, 1.0)), logits_with(lm, (a, 1.0), (b, 0)))
    with applied(lm, [(a, 0.0)]) as active:
        logits(lm)
    assert active.calls == {"a": 0}


def test_nothing_remains_after_the_context_nor_after_an_exception(lm: Subject) -> None:
    before, adapter = logits(lm), taught(lm)
    state = {name: value.clone() for name, value in lm.model.state_dict().items()}
    modules = [type(module) for module in lm.model.modules()]
    logits_with(lm, (adapter, 1.0))
    with pytest.raises(ZeroDivisionError), applied(lm, [(adapter, 1.0)]):
        _ = hooks(lm) / 0
    assert hooks(lm) == 0
    assert [type(module) for module in lm.model.modules()] == modules
    assert all(torch.equal(state[name], value) for name, value in lm.model.state_dict().items())
    assert torch.equal(before, logits(lm))


def test_calls_are_counted_by_adapter(lm: Subject) -> None:
    a, b = taught(lm, "a"), taught(lm, "b", targets=("q_proj",), layers=[1])
    with applied(lm, [(a, 1.0), (b, -1.0)]) as active:
        logits(lm)
        logits(lm)
    assert active.calls == {"a": 2 * 3 * 3, "b": 2}


def test_every_generated_token_is_under_the_adapter(lm: Subject) -> None:
    adapter, batch = taught(lm), lm.encode(TEXTS)
    expected = with_weights(lm, (adapter, 1.0)).generate(batch, max_new_tokens=6, stop_at_eos=False)
    with applied(lm, [(adapter, 1.0)]) as active:
        actual = lm.generate(batch, max_new_tokens=6, stop_at_eos=False)
    assert expected.tolist() == actual.tolist()
    assert active.calls == {"adapter": 6 * 9}


def test_an_adapter_whose_modules_are_never_called_is_an_error(lm: Subject) -> None:
    head, batch = taught(lm, "head", targets=("lm_head",)), lm.encode(TEXTS)
    with pytest.raises(EditNeverFired, match=r"\['head'\] never fired in 1 forward"), applied(lm, [(head, 1.0)]):
        lm.base(input_ids=batch.ids)
    with applied(lm, [(head, 0.0)]):
        lm.base(input_ids=batch.ids)
    with applied(lm, [(head, 1.0)]):
        pass


def test_an_exception_is_not_hidden_by_an_adapter_that_never_fired(lm: Subject) -> None:
    head, batch = taught(lm, targets=("lm_head",)), lm.encode(TEXTS)
    with pytest.raises(ZeroDivisionError), applied(lm, [(head, 1.0)]):
        _ = lm.base(input_ids=batch.ids).last_hidden_state.numel() / 0


def test_edits_overrule_adapters_whichever_came_first(lm: Subject) -> None:
    adapter, batch = taught(lm, targets=("q_proj",), layers=[1]), lm.encode(TEXTS)
    removed = run(lm, batch, [zero("q.1", "all")]).logits
    with torch.no_grad(), applied(lm, [(adapter, 1.0)]):
        inside = run(lm, batch, [zero("q.1", "all")]).logits
    with torch.no_grad(), edit(lm, zero("q.1", "all")), applied(lm, [(adapter, 1.0)]), lm.reading(batch):
        around = run(lm, batch).logits
    assert torch.equal(removed, inside)
    assert torch.equal(removed, around)


def test_an_adapter_sees_the_edited_input(lm: Subject) -> None:
    adapter, batch = taught(lm, targets=("o_proj",), layers=[2]), lm.encode(TEXTS)
    with torch.no_grad(), applied(lm, [(adapter, 1.0)]):
        actual = run(lm, batch, [zero("head_z.2", "all")]).logits
    # Nothing goes into the projection, so its weights cannot matter.
    torch.testing.assert_close(actual, run(lm, batch, [zero("head_z.2", "all")]).logits)


def test_gradients_are_those_of_the_weights(lm: Subject) -> None:
    adapter, batch = taught(lm), lm.encode(TEXTS)
    with applied(lm, [(adapter, 0.5)]):
        run(lm, batch).last.square().mean().backward(inputs=list(adapter.parameters().values()))
    actual = {name: parameter.grad for name, parameter in adapter.parameters().items()}
    weights = {
        f"{path}.weight": lm.model.get_submodule(path).weight.detach() + 0.5 * adapter.delta(path) for path in adapter.matrices
    }
    arguments = {"attention_mask": batch.mask.long(), "position_ids": batch.position_ids, "use_cache": False}
    out = torch.func.functional_call(lm.model, weights, (batch.ids,), arguments).logits[:, -1]
    expected = torch.autograd.grad(out.square().mean(), list(adapter.parameters().values()))
    assert all(gradient.abs().max() > 0 for gradient in expected)
    for name, gradient in zip(actual, expected, strict=True):
        torch.testing.assert_close(actual[name], gradient, atol=1e-5, rtol=1e-4)


def test_parameters_are_trainable_leaves_under_the_names_of_their_modules(lm: Subject) -> None:
    adapter = Adapter.create(lm, ("q_proj",), layers=[0, 2])
    q0, q2 = "model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.q_proj"
    assert list(adapter.parameters()) == [f"{q0}.lora_A", f"{q0}.lora_B", f"{q2}.lora_A", f"{q2}.lora_B"]
    assert all(p.is_leaf and p.requires_grad and p.dtype == torch.float32 for p in adapter.parameters().values())
    assert adapter.parameters()[f"{q2}.lora_B"] is adapter.matrices[q2].b


def test_a_half_precision_model_gets_half_precision_outputs_from_float32_factors() -> None:
    low = builders.subject(dtype=torch.bfloat16)
    adapter = taught(low)
    assert {p.dtype for p in adapter.parameters().values()} == {torch.float32}
    actual = logits_with(low, (adapter, 1.0))
    assert actual.dtype == torch.bfloat16
    expected = logits_with(wrap(copy.deepcopy(low.model).float(), low.tokenizer), (adapter, 1.0))
    unchanged = logits(low)
    assert 10 * (actual.float() - expected).abs().mean() < (unchanged.float() - expected).abs().mean()


def test_delta_is_alpha_over_rank_times_b_a(lm: Subject) -> None:
    a, b = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]]), torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 5.0], [1.0, 1.0]])
    adapter = Adapter("x", 2, 8, {"m": LowRank(a, b)})
    assert adapter.delta("m").tolist() == [[4, 8, 0], [8, 20, 12], [0, 20, 60], [4, 12, 12]]
    with pytest.raises(UnknownName, match="unknown module 'n'; valid names: m"):
        adapter.delta("n")


def test_targets_are_ends_of_paths_and_layers_limit_them(lm: Subject) -> None:
    assert list(Adapter.create(lm, ("layers.1.mlp.up_proj", "lm_head")).matrices) == ["model.layers.1.mlp.up_proj", "lm_head"]
    assert list(Adapter.create(lm, ("k_proj",), layers=[2]).matrices) == ["model.layers.2.self_attn.k_proj"]


def test_an_unknown_target_is_refused_with_the_nearest_names(lm: Subject) -> None:
    with pytest.raises(UnknownName, match=r"unknown module 'q_prj'; did you mean 'q_proj'"):
        Adapter.create(lm, ("v_proj", "q_prj"))
    with pytest.raises(UnknownName, match=r"did you mean 'model\.layers\.1\.mlp\.up_proj'"):
        Adapter.create(lm, ("model.layers.1.mlp.up_prj",))
    with pytest.raises(UnknownName, match="unknown module 'proj'"):
        Adapter.create(lm, ("proj",))
    with pytest.raises(UnknownName, match=r"unknown module 'input_layernorm'.*adapters change linear modules"):
        Adapter.create(lm, ("input_layernorm",))
    with pytest.raises(UnknownName, match=r"unknown module 'q_proj'; did you mean 'c_proj'"):
        Adapter.create(builders.subject("gpt2"))
    with pytest.raises(UnknownName, match="unknown module 'lm_head'"):
        Adapter.create(lm, ("lm_head",), layers=[0])


def test_impossible_ranks_layers_and_targets_are_refused(lm: Subject) -> None:
    with pytest.raises(OutOfRange, match="rank of at least 1, got 0"):
        Adapter.create(lm, rank=0)
    with pytest.raises(OutOfRange, match=r"layers \[3, -1\] do not exist: this model has layers 0 to 2"):
        Adapter.create(lm, layers=[0, 3, -1])
    for targets, layers in (((), None), (("q_proj",), [])):
        with pytest.raises((EditError, UnknownName)):
            Adapter.create(lm, targets, layers=layers)
    with pytest.raises(EditError, match=r"with rank 3 at m, got \(2, 4\) and \(5, 2\)"):
        Adapter("x", 3, 1.0, {"m": LowRank(torch.zeros(2, 4), torch.zeros(5, 2))})


def test_adapters_that_do_not_fit_or_share_a_name_are_refused_before_anything_is_hooked(lm: Subject) -> None:
    other = taught(builders.subject("gpt2"), "other")
    with (
        pytest.raises(UnknownName, match=r"unknown module 'transformer.h.0.*adapter 'other' was made for another model"),
        applied(lm, [(other, 1.0)]),
    ):
        pass
    path = "model.layers.0.self_attn.v_proj"
    wide = Adapter("wide", 1, 1.0, {path: LowRank(torch.zeros(1, 32), torch.zeros(32, 1))})
    with (
        pytest.raises(SubjectError, match=r"shape \(32, 32\) \(out, in\) at .*this subject's is \(16, 32\)"),
        applied(lm, [(wide, 1.0)]),
    ):
        pass
    with (
        pytest.raises(EditError, match=r"different names, got \['adapter', 'adapter'\]"),
        applied(lm, [(taught(lm), 1.0), (taught(lm), 1.0)]),
    ):
        pass
    with pytest.raises(EditError, match="finite scale, got nan"), applied(lm, [(taught(lm), float("nan"))]):
        pass
