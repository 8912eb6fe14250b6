"""A low-rank adapter learns answers; the model it is learnt on stays as it was."""

from pathlib import Path

import pytest
import torch

import builders
from low_rank import hooks, logits, logits_with
from mediant.core.errors import OutOfRange, RunError, TaskError
from mediant.interventions.lora import Adapter, applied
from mediant.subject import Subject
from mediant.training import LoopConfig, answer_loss, train_adapter
from mediant.training.checkpoint import read

PAIRS = [
    ("Mary went to the", " park"),
    ("John went to the", " store"),
    ("Tom gave a", " ball"),
    ("near the keys Anna said", " one two"),
]
CONFIG = LoopConfig(steps=60, lr=0.03, warmup=5, schedule="cosine", save_every=20, grad_clip=1.0)
SHORT = LoopConfig(steps=5, lr=0.01, save_every=2)


@pytest.fixture
def lm() -> Subject:
    return builders.subject()


def loss(subject: Subject, *adapters: tuple[Adapter, float]) -> float:
    with torch.no_grad(), applied(subject, adapters):
        return float(answer_loss(subject, PAIRS))


def answers(subject: Subject) -> list[str]:
    said = []
    for prompt, answer in PAIRS:
        batch = subject.encode(prompt)
        said.append(subject.decode(subject.generate(batch, max_new_tokens=len(answer.split()), stop_at_eos=False)[0].tolist()))
    return said


def test_four_associations_are_learnt_saved_loaded_and_scaled_to_0_and_back(lm: Subject, tmp_path: Path) -> None:
    before, adapter = logits(lm), Adapter.create(lm, ("q_proj", "v_proj", "down_proj"), rank=4, name="facts")
    untaught = loss(lm)
    assert untaught > 2
    log = train_adapter(lm, adapter, PAIRS, CONFIG, tmp_path / "run")
    assert log.done
    assert log.entries[0].loss == pytest.approx(untaught, rel=1e-5)
    taught = loss(lm, (adapter, 1.0))
    assert taught < 0.05
    adapter.save(tmp_path / "adapter")
    facts = Adapter.load(tmp_path / "adapter")
    assert loss(lm, (facts, 1.0)) == pytest.approx(taught, rel=1e-5)
    with applied(lm, [(facts, 1.0)]):
        assert [answer.strip() for _, answer in PAIRS] == answers(lm)
    assert torch.equal(before, logits_with(lm, (facts, 0.0)))
    assert loss(lm, (facts, 1.0)) < loss(lm, (facts, 0.5)) < untaught
    assert loss(lm, (facts, 1.0)) == pytest.approx(taught, rel=1e-5)
    assert torch.equal(before, logits(lm))


def test_the_loss_is_the_mean_over_answer_tokens_each_read_after_its_own_prompt(lm: Subject) -> None:
    losses = []
    for prompt, answer in PAIRS:
        ids = lm.tokenizer(prompt + answer)["input_ids"]
        with torch.no_grad():
            log_probabilities = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        n_answer = len(answer.split())
        losses += [-float(log_probabilities[i - 1, ids[i]]) for i in range(len(ids) - n_answer, len(ids))]
    assert len(losses) == 5
    assert loss(lm) == pytest.approx(sum(losses) / 5, rel=1e-5)


def test_a_tokenizer_that_closes_every_text_does_not_put_its_mark_before_the_answer(
    lm: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loss(lm)
    plain = lm.tokenizer

    class Closing:
        eos_token_id, pad_token_id, is_fast = plain.eos_token_id, plain.pad_token_id, True

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            return {"input_ids": [*plain(text)["input_ids"], plain.eos_token_id]}

    monkeypatch.setattr(lm, "tokenizer", Closing())
    assert loss(lm) == pytest.approx(expected, rel=1e-6)


def test_training_leaves_the_model_as_it_was(lm: Subject, tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in lm.model.state_dict().items()}
    fixed = lm.model.get_input_embeddings().weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in lm.model.parameters()]
    try:
        frozen: list[bool] = []
        note = lambda _, __: frozen.append(not any(parameter.requires_grad for parameter in lm.model.parameters()))  # noqa: E731
        train_adapter(lm, Adapter.create(lm), PAIRS, SHORT, tmp_path, progress=note)
        assert frozen == [True] * 5
        assert flags == [parameter.requires_grad for parameter in lm.model.parameters()]
    finally:
        fixed.requires_grad_()
    assert all(torch.equal(state[name], value) for name, value in lm.model.state_dict().items())
    assert list({parameter.grad for parameter in lm.model.parameters()}) == [None]
    assert hooks(lm) == 0


def test_training_that_fails_leaves_no_hook_and_no_frozen_weight(lm: Subject, tmp_path: Path) -> None:
    train_adapter(lm, Adapter.create(lm), PAIRS, SHORT, tmp_path)
    with pytest.raises(RunError, match="trained with another config: steps"):
        train_adapter(lm, Adapter.create(lm), PAIRS, CONFIG, tmp_path)
    assert hooks(lm) == 0
    assert all(parameter.requires_grad for parameter in lm.model.parameters())


def test_a_call_for_every_step_comes_to_the_same_bits(lm: Subject, tmp_path: Path) -> None:
    whole = Adapter.create(lm)
    train_adapter(lm, whole, PAIRS, SHORT, tmp_path / "whole", batch_size=2)
    steps = []
    for _ in range(5):
        sliced = Adapter.create(lm)
        steps.append(train_adapter(lm, sliced, PAIRS, SHORT, tmp_path / "sliced", batch_size=2, stop_after=0).step)
    assert steps == [1, 2, 3, 4, 5]
    assert any(m.b.any() for m in whole.matrices.values())
    assert all(torch.equal(parameter, sliced.parameters()[name]) for name, parameter in whole.parameters().items())


def test_a_step_draws_that_many_different_pairs(lm: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []
    collate = type(lm).collate

    def noting(self: Subject, items, **options):
        drawn.append([item.text for item in items])
        return collate(self, items, **options)

    monkeypatch.setattr(type(lm), "collate", noting)
    config = LoopConfig(steps=12, lr=1e-6)
    train_adapter(lm, Adapter.create(lm), PAIRS, config, tmp_path / "3", batch_size=3)
    assert [len(set(texts)) for texts in drawn] == [3] * 12
    assert {prompt for prompt, _ in PAIRS} == {text for texts in drawn for text in texts}
    assert len({tuple(texts) for texts in drawn}) > 4
    drawn.clear()
    train_adapter(lm, Adapter.create(lm), PAIRS, config, tmp_path / "8")
    assert [sorted(prompt for prompt, _ in PAIRS)] * 12 == [sorted(texts) for texts in drawn]


def test_only_the_named_modules_learn_and_others_in_force_stay(lm: Subject, tmp_path: Path) -> None:
    adapter, other = Adapter.create(lm, layers=[1]), Adapter.create(lm, name="other", seed=9)
    before = {name: parameter.clone() for name, parameter in other.parameters().items()}
    with applied(lm, [(other, 1.0)]):
        train_adapter(lm, adapter, PAIRS, SHORT, tmp_path)
    assert all(torch.equal(parameter, before[name]) for name, parameter in other.parameters().items())
    saved = {name.removeprefix("parameter.") for name in read(tmp_path).tensors if name.startswith("parameter.")}
    assert set(adapter.parameters()) == saved


def test_nothing_to_learn_is_refused(lm: Subject, tmp_path: Path) -> None:
    adapter = Adapter.create(lm)
    with pytest.raises(TaskError, match=r"at least one \(prompt, answer\) pair"):
        train_adapter(lm, adapter, [], SHORT, tmp_path)
    with pytest.raises(TaskError, match="answer '' is not a run of tokens"):
        train_adapter(lm, adapter, [("Mary went", "")], SHORT, tmp_path)
    with pytest.raises(OutOfRange, match="batch_size=0"):
        train_adapter(lm, adapter, PAIRS, SHORT, tmp_path, batch_size=0)
