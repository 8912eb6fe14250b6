"""Questions about panels: minimal pairs on one strip, both panels in turn, and pictures that have nothing to do with it."""

import numpy as np
import pytest

from mediant.core.errors import TaskError
from mediant.tasks import panels
from mediant.tasks.pictures import comics


def test_the_two_prompts_differ_in_the_panel_alone_and_answers_are_what_stands_there():
    task = panels.generate(6, seed=1)
    strips = comics.generate(6, seed=1)
    for pair, strip in zip(task.pairs, strips, strict=True):
        assert np.array_equal(pair.clean.image, strip.pixels)
        assert pair.clean.image is pair.counterfactual.image
        asked, other = pair.variables["asked"], {"second": "fifth", "fifth": "second"}[pair.variables["asked"]]
        assert pair.counterfactual.text == pair.clean.text.replace(asked, other)
        assert pair.answer == strip.captions[panels.PANELS[asked]].split()[0]
        assert pair.counterfactual_answer == strip.captions[panels.PANELS[other]].split()[0]
        assert pair.clean.text[slice(*pair.clean.spans["panel"])] == asked
    assert [pair.variables["asked"] for pair in task.pairs] == ["second", "fifth"] * 3


def test_seeds_and_splits_are_other_strips_and_more_are_the_same_and_some():
    few, more = panels.generate(2, seed=3).pairs, panels.generate(4, seed=3).pairs
    assert [pair.answer for pair in few] == [pair.answer for pair in more[:2]]
    assert not np.array_equal(few[0].clean.image, panels.generate(1, seed=4).pairs[0].clean.image)
    assert not np.array_equal(few[0].clean.image, panels.generate(1, seed=3, split="heldout").pairs[0].clean.image)


def test_characters_of_several_tokens_are_left_out():
    known = {pair.answer for pair in panels.generate(20).pairs}
    kept = panels.generate(4, single_token=lambda text: text != "Frog").pairs
    assert "Frog" in known
    assert "Frog" not in {pair.answer for pair in kept} | {pair.counterfactual_answer for pair in kept}
    with pytest.raises(TaskError, match="only 0 of 5 strips"):
        panels.generate(4, single_token=lambda text: False)


def test_unrelated_pictures_share_a_question_and_name_the_spans_asked_for():
    found = panels.unrelated(3, seed=2, spans=("panel", "last"))
    assert len({pair.id for pair in found}) == 3
    for pair in found:
        assert pair.clean.text == pair.counterfactual.text
        assert not np.array_equal(pair.clean.image, pair.counterfactual.image)
        assert set(pair.clean.spans) == {"panel"}
