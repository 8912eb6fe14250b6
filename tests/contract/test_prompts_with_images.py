"""Prompts with an image: in every family what `look` makes, with the question's spans, alone and in pairs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import builders
from eyes import BUILDERS, noise, vision_subject
from mediant.core.errors import SubjectError, TaskError
from mediant.core.pair import Pair, Prompt
from mediant.core.site import Site
from mediant.interventions.execute import run
from mediant.search.erasure import amnesic
from mediant.search.interchange import answered
from mediant.search.patching import Patcher
from mediant.subject import load
from mediant.subject.untrained import untrained
from mediant.tasks import panels
from mediant.tasks.encode import encode
from mediant.tasks.interchange import Interchange, encode_interchanges

pytestmark = pytest.mark.usefixtures("no_gradients")
families = pytest.mark.parametrize("family", list(BUILDERS))
QUESTION = "what is here ?"


def prompt(seed: int = 0, question: str = QUESTION) -> Prompt:
    return Prompt(question, image=noise(120, 288, seed)).locate(word="here" if "here" in question else "is")


@families
def test_a_prompt_with_an_image_is_what_look_makes(family: str):
    vlm = vision_subject(family)
    prompts = [prompt(0), prompt(1)]
    batch, looked = vlm.encode(prompts), vlm.look([each.image for each in prompts], [each.text for each in prompts])
    assert torch.equal(batch.ids, looked.ids)
    assert batch.inputs.keys() == looked.inputs.keys()
    for name, values in looked.inputs.items():
        torch.testing.assert_close(batch.inputs[name], values)
    assert [spans["image"] for spans in batch.spans] == [spans["image"] for spans in looked.spans]
    for row in range(2):
        said = vlm.decode([int(batch.ids[row, column]) for column in batch.spans[row]["word"]])
        assert said.strip() == "here"
    torch.testing.assert_close(run(vlm, batch).last, run(vlm, looked).last)
    assert all(np.array_equal(each, one.image) for each, one in zip(batch.pixels, prompts, strict=True))


@families
def test_pairs_whose_images_differ_differ_from_the_image_on(family: str):
    vlm = vision_subject(family)
    pair = Pair("p", prompt(0), prompt(1), "fox", "frog")
    batch = encode(vlm, [pair])
    assert batch.first_difference.tolist() == [min(batch.base.spans[0]["image"])]
    assert batch.other_images == (0,)
    same = encode(vlm, [replace(pair, counterfactual=prompt(0, "here is what ?"))])
    assert same.other_images == ()
    assert same.first_difference[0] > max(same.base.spans[0]["image"])
    with pytest.raises(TaskError, match="same tokens, so nothing can be patched"):
        encode(vlm, [replace(pair, counterfactual=prompt(0))])


# Gemma 3's window is shorter than its prompt here, and replays of that are refused.
@pytest.mark.parametrize("family", [name for name in BUILDERS if name != "gemma3"])
def test_the_last_streams_of_another_images_run_hand_on_its_answer(family: str):
    vlm = vision_subject(family)
    patcher = Patcher(vlm, encode(vlm, [Pair("p", prompt(0), prompt(1), "fox", "frog")]))
    everything = patcher.joint([Site("resid_post", vlm.shape.n_layers - 1)], "last")
    assert everything == pytest.approx(patcher.total, abs=1e-4)
    assert abs(float(patcher.total[0])) > 0


def test_answers_of_several_tokens_are_scored_after_the_prompt_with_its_image():
    vlm = vision_subject("qwen3-vl")
    batch = encode(vlm, [Pair("p", prompt(0), prompt(1), "fox jumps", "frog")])
    assert batch.rows_per_pair == 2
    looked = vlm.look([prompt(0).image] * 2, [QUESTION] * 2, answers=["fox", ""])
    assert torch.equal(batch.base.ids, looked.ids)
    assert batch.base.pixels[0] is batch.base.pixels[1] or np.array_equal(*batch.base.pixels)


def test_images_for_some_or_for_a_subject_without_eyes_are_refused():
    vlm = vision_subject("qwen3-vl")
    with pytest.raises(TaskError, match="1 of 2 have one"):
        vlm.encode([prompt(0), Prompt(QUESTION)])
    with pytest.raises(SubjectError, match="looks at no images"):
        builders.subject().encode([prompt(0)])


@families
def test_the_same_architecture_with_random_weights_sees_as_well(family: str):
    vlm = vision_subject(family)
    nobody = untrained(vlm, seed=3)
    batch = nobody.encode([prompt(0)])
    assert torch.equal(batch.ids, vlm.encode([prompt(0)]).ids)
    assert not torch.allclose(run(nobody, batch).last, run(vlm, batch).last)
    assert nobody.name == f"{vlm.name}, random weights"


def test_interchanges_of_prompts_with_images_are_answered_on_a_line_of_their_own():
    vlm = load("comic-vlm", device="cpu")
    pairs = panels.generate(3, single_token=vlm.single_token).pairs
    items = [
        Interchange(p.id, p.clean, p.counterfactual, p.answer, p.counterfactual_answer, p.counterfactual_answer) for p in pairs
    ]
    batch = encode_interchanges(vlm, items)
    assert [vlm.decode([one]).strip() for one in batch.expected.tolist()] == [pair.counterfactual_answer for pair in pairs]
    # As a continuation of plain text the word is told from its beginning by a space, which is another token.
    assert [vlm.continuation_ids(p.clean.text, p.answer) for p in pairs] != [[one] for one in batch.own.tolist()]
    assert len(answered(vlm, items)) == 3


def test_one_question_about_several_images_is_several_prompts_to_a_probe_and_about_one_image_is_not():
    vlm = vision_subject("qwen3-vl")
    shown = [prompt(seed, QUESTION) for seed in range(12)]
    asked = ["what is there ?", QUESTION]
    sides = [[replace(each, text=question, spans={}) for each in shown] for question in asked]
    found = amnesic(vlm, *sides, Site("resid_post", 0), "last", most=1)
    assert found.rank <= 1
    with pytest.raises(TaskError, match="is given twice"):
        amnesic(vlm, [*sides[0], sides[0][0]], sides[1], Site("resid_post", 0), "last", most=1)
