"""The recipe of comic-vlm: it feeds what the product feeds, never teaches what is held out, and can be interrupted."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from mediant.subject import load, wrap
from mediant.subject.vision import VisionSubject
from mediant.tasks.pictures.scene import Scene
from mediant.zoo.comic_vlm import lessons, recipe


@pytest.fixture(scope="module")
def bank() -> lessons.Bank:
    return lessons.Bank.drawn(80, seed=3, plain=0.3, n_scattered=4)


@pytest.fixture(scope="module")
def teaching(bank: lessons.Bank) -> recipe.Teaching:
    words = recipe.tokenizer()
    made = recipe.Teaching(recipe.model(recipe.config(words)), words)
    made.__dict__["bank"] = bank
    return made


def test_lessons_are_tokenised_and_cut_into_patches_as_the_product_does(teaching: recipe.Teaching, bank: lessons.Bank):
    vlm = wrap(teaching.model, teaching.vocabulary, recipe.image_processor())
    assert isinstance(vlm, VisionSubject)
    for kind, panels in (("panel", 6), ("unsettled", 1), ("here", 6)):
        drawn = [lessons.draw(Random(i), kind, bank, panels) for i in range(3)]
        ours, labels = teaching.batch(drawn)
        theirs = vlm.look([one.pixels for one in drawn], [one.question for one in drawn], answers=[one.answer for one in drawn])
        assert torch.equal(ours["pixel_values"], theirs.inputs["pixel_values"])
        assert torch.equal(ours["image_grid_thw"], theirs.inputs["image_grid_thw"])
        for row in range(3):
            mine = ours["input_ids"][row][ours["attention_mask"][row].bool()].tolist()
            assert mine == [*theirs.tokens_of(row), vlm.tokenizer.eos_token_id]
            answer = labels[row][labels[row] >= 0].tolist()
            assert answer == mine[-len(answer) :]
            assert vlm.text_of(answer) == drawn[row].answer


def test_every_word_of_the_drawn_world_is_one_token():
    words = recipe.tokenizer()
    assert len(words("Fox jumps with an orange umbrella on the moon.")["input_ids"]) == 10
    assert words.decode(words("Ça va? 狐")["input_ids"]).strip() == "Ça va? 狐"


@pytest.mark.parametrize("kind", lessons.KINDS)
def test_answers_are_right(kind: str, bank: lessons.Bank):
    captions = set(bank.captions)
    for seed in range(20):
        lesson = lessons.draw(Random(seed), kind, bank, 6)
        if kind in lessons.THINGS:
            assert lesson.answer.endswith(".")
            assert lesson.pixels.shape == (192, 256, 3)
        elif "order" in kind:
            parts = [lesson.answer.split(f"{i}. ", 1)[1].split(f" {i + 1}. ")[0] for i in range(1, 7)]
            assert set(parts) <= captions
            assert len(set(parts)) == 6
        elif kind == "where":
            assert lesson.answer == "Nowhere." or any(caption.endswith(lesson.answer[1:]) for caption in captions)
        else:
            assert lesson.answer in captions
        if kind == "who":
            assert lesson.answer.split()[0].lower() in lesson.question


def test_the_panel_that_is_asked_for_is_the_one_that_is_described(bank: lessons.Bank):
    size = bank.pixels.shape[1]
    for seed in range(20):
        for kind in ("panel", "reversed"):
            lesson = lessons.draw(Random(seed), kind, bank, 6)
            k = next(k for k, word in enumerate(lessons.ORDINALS) if word in lesson.question)
            k = 5 - k if kind == "reversed" else k
            # The bars between panels are all that was changed.
            cut = lesson.pixels[:, k * size + 4 : (k + 1) * size - 4]
            at = [i for i in range(len(bank.scenes)) if np.array_equal(bank.pixels[i][:, 4:-4], cut)]
            assert lesson.answer in {bank.captions[i] for i in at}


def test_nothing_held_out_is_taught(bank: lessons.Bank):
    assert not any(scene.held_out for scene in bank.scenes)
    for caption in bank.captions:
        if caption.count(" ") > 5:
            assert not Scene.read(caption).held_out


def test_training_in_slices_ends_in_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    stages = tuple(replace(stage, loop=replace(stage.loop, steps=3, warmup=1, save_every=1)) for stage in recipe.STAGES)
    for name, value in {"STAGES": stages, "BANK": 40, "SCATTERED": 3, "BATCH": 2}.items():
        monkeypatch.setattr(recipe, name, value)
    told: list[tuple[str, int]] = []

    def tell(stage: str, step: int, steps: int, loss: float) -> None:
        told.append((stage, step))

    assert recipe.teach(tmp_path / "once", seconds=600, tell=tell)
    assert told == [(stage.name, step) for stage in stages for step in (1, 2, 3)]
    calls = 1
    while not recipe.teach(tmp_path / "slices", seconds=0, tell=tell):
        calls += 1
    assert calls == 2 * len(stages) + 1
    one, two = (load(str(tmp_path / name / "model")) for name in ("once", "slices"))
    assert one.fingerprint == two.fingerprint
    assert isinstance(one, VisionSubject)
