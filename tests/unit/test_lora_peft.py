"""peft and this package read each other's folders and then say the same."""

import copy
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import builders
from low_rank import TEXTS, logits, logits_with, taught
from mediant.core.errors import SubjectError
from mediant.interventions.lora import Adapter
from mediant.subject import Subject

# peft asks transformers in a way that has been deprecated there.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

CASES = {
    "llama": ("q_proj", "v_proj"),
    "qwen2": ("k_proj", "down_proj"),
    "gpt2": ("c_attn", "c_fc"),
    "qwen3": ("o_proj", "lm_head"),
}


@pytest.fixture(scope="module")
def peft() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("peft")


def their_logits(model: nn.Module, subject: Subject) -> Tensor:
    batch = subject.encode(TEXTS)
    with torch.no_grad():
        out = model(input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids)
    return out.logits[batch.mask]


def trained_by_peft(peft: ModuleType, subject: Subject, **options: object) -> nn.Module:
    """A copy of the model with an adapter of peft's whose B is not zero."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", **options)
    model = peft.get_peft_model(copy.deepcopy(subject.model), config).eval()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("family", CASES)
def test_what_peft_saved_says_the_same_here(peft: ModuleType, family: str, tmp_path: Path) -> None:
    subject = builders.subject(family)
    options = {
        "r": 3,
        "lora_alpha": 7,
        "target_modules": list(CASES[family]),
        "fan_in_fan_out": family == "gpt2",
        "lora_dropout": 0.1,
    }
    model = trained_by_peft(peft, subject, **options)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    expected = their_logits(model, subject)
    assert (expected - logits(subject)).abs().max() > 0.1
    adapter = Adapter.load(tmp_path)
    assert (adapter.rank, adapter.alpha) == (3, 7.0)
    torch.testing.assert_close(logits_with(subject, (adapter, 1.0)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CASES)
def test_what_is_saved_here_says_the_same_in_peft(peft: ModuleType, family: str, tmp_path: Path) -> None:
    subject = builders.subject(family)
    # Layer 1 alone: peft must not find the module names in other layers.
    layers = None if family == "qwen3" else [1]
    adapter = taught(subject, "facts", targets=CASES[family], rank=3, alpha=7, layers=layers)
    adapter.save(tmp_path)
    model = peft.PeftModel.from_pretrained(copy.deepcopy(subject.model), tmp_path).eval()
    expected = logits_with(subject, (adapter, 1.0))
    assert (expected - logits(subject)).abs().max() > 0.1
    torch.testing.assert_close(their_logits(model, subject), expected, atol=1e-5, rtol=1e-5)
    merged = model.merge_and_unload()
    for path in adapter.matrices:
        weight = merged.get_submodule(path).weight - subject.model.get_submodule(path).weight
        delta = adapter.delta(path).detach()
        torch.testing.assert_close(weight.T if family == "gpt2" else weight, delta, atol=1e-5, rtol=1e-5)


def test_an_adapter_goes_to_peft_and_back_unchanged(peft: ModuleType, tmp_path: Path) -> None:
    subject = builders.subject()
    adapter = taught(subject, alpha=6)
    adapter.save(tmp_path / "ours")
    peft.PeftModel.from_pretrained(copy.deepcopy(subject.model), tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = Adapter.load(tmp_path / "theirs")
    assert (adapter.rank, adapter.alpha) == (back.rank, back.alpha)
    assert sorted(adapter.parameters()) == sorted(back.parameters())
    assert all(torch.equal(parameter, back.parameters()[name]) for name, parameter in adapter.parameters().items())


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dora", True),
        ("use_rslora", True),
        ("bias", "lora_only"),
        ("rank_pattern", {"q_proj": 2}),
        ("modules_to_save", ["lm_head"]),
    ],
)
def test_what_peft_can_do_beyond_a_low_rank_edit_is_refused(peft: ModuleType, tmp_path: Path, option: str, value: object) -> None:
    trained_by_peft(peft, builders.subject(), target_modules=["q_proj"], **{option: value}).save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match=f"option {option}="):
        Adapter.load(tmp_path)


def test_other_adapters_of_peft_are_refused(peft: ModuleType, tmp_path: Path) -> None:
    config = peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[])
    peft.get_peft_model(copy.deepcopy(builders.subject().model), config).save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match="adapter of type 'IA3'; only LORA"):
        Adapter.load(tmp_path)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
def test_whole_layers_that_peft_saved_along_are_refused_with_the_way_out(peft: ModuleType, tmp_path: Path) -> None:
    trained_by_peft(peft, builders.subject(), target_modules=["lm_head"]).save_pretrained(tmp_path)
    with pytest.raises(SubjectError, match=r"is no factor .*save_embedding_layers=False"):
        Adapter.load(tmp_path)
