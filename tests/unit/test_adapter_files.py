"""Adapters come back from their files bit for bit; what is more than a low-rank edit is refused, and why is said."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import builders
from low_rank import logits_with, taught
from mediant.core.errors import RunError, SubjectError, UnsafeWeights
from mediant.interventions.adapter_files import CONFIG, WEIGHTS
from mediant.interventions.lora import Adapter
from mediant.subject import Subject


@pytest.fixture
def lm() -> Subject:
    return builders.subject()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_adapter_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    subject = builders.subject(family)
    adapter = taught(subject, "facts", rank=3, alpha=5.5)
    adapter.save(tmp_path / "new" / "folder")
    back = Adapter.load(tmp_path / "new" / "folder")
    assert ("facts", 3, 5.5, family == "gpt2") == (back.name, back.rank, back.alpha, back.fan_in_fan_out)
    assert sorted(adapter.parameters()) == sorted(back.parameters())
    assert all(torch.equal(p, back.parameters()[name]) for name, p in adapter.parameters().items())
    assert all(p.is_leaf and p.requires_grad for p in back.parameters().values())
    assert torch.equal(logits_with(subject, (adapter, 0.5)), logits_with(subject, (back, 0.5)))
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == [CONFIG, WEIGHTS]


def test_the_name_of_a_loaded_adapter_may_be_given_or_is_the_folders(tmp_path: Path, lm: Subject) -> None:
    taught(lm, "facts").save(tmp_path / "tone")
    assert Adapter.load(tmp_path / "tone", name="mine").name == "mine"
    save_file(load_file(tmp_path / "tone" / WEIGHTS), tmp_path / "tone" / WEIGHTS)
    assert Adapter.load(tmp_path / "tone").name == "tone"


def test_half_precision_factors_are_read_as_float32(tmp_path: Path, lm: Subject) -> None:
    taught(lm).save(tmp_path)
    save_file({key: value.bfloat16() for key, value in load_file(tmp_path / WEIGHTS).items()}, tmp_path / WEIGHTS)
    assert {p.dtype for p in Adapter.load(tmp_path).parameters().values()} == {torch.float32}


def change_config(folder: Path, **entries: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize(
    "option",
    [
        {"use_dora": True}, {"use_rslora": True}, {"bias": "all"}, {"lora_bias": True}, {"modules_to_save": ["lm_head"]},
        {"rank_pattern": {"q_proj": 2}}, {"alpha_pattern": {"q_proj": 2}}, {"init_lora_weights": "pissa_niter_4"},
        {"layer_replication": [[0, 2]]}, {"trainable_token_indices": [1]}, {"use_a_thing_of_next_year": True},
    ],
    ids=lambda option: next(iter(option)),
)  # fmt: skip
def test_options_that_mean_more_than_a_low_rank_edit_are_refused_by_name(
    tmp_path: Path, lm: Subject, option: dict[str, object]
) -> None:
    taught(lm).save(tmp_path)
    change_config(tmp_path, **option)
    with pytest.raises(SubjectError, match=rf"option {next(iter(option))}=.*merge it into the model with peft"):
        Adapter.load(tmp_path)


def test_options_that_change_nothing_are_accepted(tmp_path: Path, lm: Subject) -> None:
    adapter = taught(lm)
    adapter.save(tmp_path)
    change_config(
        tmp_path,
        lora_dropout=0.05,
        peft_version="9.9",
        init_lora_weights="gaussian",
        rank_pattern={},
        target_modules="all-linear",
    )
    assert torch.equal(logits_with(lm, (adapter, 1.0)), logits_with(lm, (Adapter.load(tmp_path), 1.0)))


def test_other_kinds_of_adapters_and_folders_that_hold_none_are_refused(tmp_path: Path, lm: Subject) -> None:
    taught(lm).save(tmp_path / "a")
    change_config(tmp_path / "a", peft_type="IA3")
    with pytest.raises(SubjectError, match="peft adapter of type 'IA3'; only LORA"):
        Adapter.load(tmp_path / "a")
    for text in (None, "{", "[]", "{}"):
        (tmp_path / "b").mkdir(exist_ok=True)
        if text is not None:
            (tmp_path / "b" / CONFIG).write_text(text)
        with pytest.raises(SubjectError, match=r"is not an adapter: expected a folder with adapter_config\.json"):
            Adapter.load(tmp_path / "b")


def test_pickled_weights_are_refused_unless_there_are_others(tmp_path: Path, lm: Subject) -> None:
    taught(lm).save(tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80")
    Adapter.load(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UnsafeWeights, match=r"adapter_model\.bin.*opening one can run any code.*save_pretrained"):
        Adapter.load(tmp_path)
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(SubjectError, match=r"adapter_model\.safetensors is missing or not a whole safetensors file"):
        Adapter.load(tmp_path)


def test_cut_and_foreign_weights_are_refused(tmp_path: Path, lm: Subject) -> None:
    taught(lm, targets=("q_proj",)).save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    (first, a), (second, b), *_ = sorted(tensors.items())
    assert first.endswith("q_proj.lora_A.weight")
    cases = [
        ({first: a}, "has not both factors A and B of model.layers.0.self_attn.q_proj"),
        ({}, "has not both factors A and B of any module"),
        ({**tensors, "base_model.model.lm_head.weight": b.clone()}, "tensor 'base_model.model.lm_head.weight' .* is no factor"),
        ({**tensors, "base_model.model.embed.lora_embedding_A": a.clone()}, "lora_embedding_A' .* is no factor"),
        ({**tensors, first: a[0]}, r"shape \(32,\) is no factor"),
        ({first: a[:2].clone(), second: b[:, :2].clone()}, r"shape \(2, 32\) and \(32, 2\) at .*q_proj do not have the rank r=4"),
        ({first: a[:2].clone(), second: b}, r"shape \(2, 32\) and \(32, 4\) at .*q_proj do not have the rank r=4"),
    ]
    for content, message in cases:
        save_file(content, tmp_path / WEIGHTS)
        with pytest.raises(SubjectError, match=message):
            Adapter.load(tmp_path)
    for entries in ({"r": 0}, {"r": "4"}, {"lora_alpha": None}):
        save_file(tensors, tmp_path / WEIGHTS)
        change_config(tmp_path, **{"r": 4, "lora_alpha": 8, **entries})
        with pytest.raises(SubjectError, match="expected numbers r"):
            Adapter.load(tmp_path)
    change_config(tmp_path, r=4, lora_alpha=8)
    (tmp_path / WEIGHTS).write_bytes(b"short")
    with pytest.raises(SubjectError, match="not a whole safetensors file"):
        Adapter.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, lm: Subject) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write an adapter to .*file"):
        taught(lm).save(tmp_path / "file")
