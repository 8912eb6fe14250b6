"""A description that runs while its target moves: what the demo stands on."""

import threading

import numpy as np
import pytest

from eyes import noise, vision_subject
from mediant.core import Site
from mediant.core.errors import RegionError, RunError
from mediant.studies.gaze_heads.speech import Speech, shrunk

HEADS = (Site("head_z", 1, 0), Site("head_z", 1, 3))


@pytest.fixture
def speech() -> Speech:
    found = Speech(vision_subject(), HEADS)
    found.show(noise(48, 96))
    return found


def told(speech: Speech, tokens: int = 6) -> list:
    return list(speech.describe("what is here ?", tokens))


def test_untouched_it_says_what_the_model_says(speech: Speech):
    moments = told(speech)
    said = "".join(text for text, _ in moments[-1].words).strip()
    assert said == speech.subject.answer(noise(48, 96), "what is here ?", max_new_tokens=6)
    assert {turn for _, turn in moments[-1].words} == {-1}
    assert [len(moment.words) for moment in moments] == list(range(1, len(moments) + 1))


def test_a_box_marked_before_stands_from_the_first_token_on(speech: Speech):
    assert speech.turn_to((0, 0, 48, 48)) == 36
    (left,) = [i for i, moment in enumerate(told(speech)) if i == 0]
    for moment in told(speech):
        lit = moment.attention.reshape(6, 12)
        assert lit[:, :6].sum() > 1 - 1e-5, left
        assert lit[:, 6:].sum() < 1e-6


def test_the_target_moves_while_it_speaks_and_can_be_let_go(speech: Speech):
    where = []
    for i, moment in enumerate(speech.describe("what is here ?", 12)):
        lit = moment.attention.reshape(6, 12)
        where.append((round(float(lit[:, :6].sum()), 3), round(float(lit[:, 6:].sum()), 3)))
        if i == 1:
            speech.turn_to((48, 0, 96, 48))
        if i == 5:
            speech.turn_to(None)
    # The model runs ahead of whoever listens by a few tokens, so only the order of the phases is certain.
    looks = ["right" if right > 0.999 else "left" if left > 0.999 else "free" for left, right in where]
    phases = [look for i, look in enumerate(looks) if i == 0 or look != looks[i - 1]]
    assert phases in (["free", "right", "free"], ["free", "right"], ["free"])


def test_moving_it_from_another_thread_shows_in_the_words(speech: Speech):
    speech.turn_to((0, 0, 48, 48))
    turns: set[int] = set()
    for i, moment in enumerate(speech.describe("what is here ?", 40)):
        turns |= {turn for _, turn in moment.words}
        if i == 0:
            other = threading.Thread(target=speech.turn_to, args=((48, 0, 96, 48),))
            other.start()
            other.join()
    assert turns <= {0, 1}
    assert 0 in turns


def test_it_ends_when_told_to(speech: Speech):
    seen = 0
    for _ in speech.describe("what is here ?", 500):
        seen += 1
        if seen == 2:
            speech.stop()
    assert seen < 500


def test_one_description_at_a_time_and_the_next_may_follow_a_broken_one(speech: Speech):
    first = speech.describe("what is here ?", 30)
    next(first)
    other = Speech(speech.subject, HEADS)
    other.show(noise(48, 96))
    with pytest.raises(RunError, match="another description is running"):
        next(other.describe("what is here ?", 3))
    first.close()
    assert told(other)
    assert not speech.subject.attending


def test_what_cannot_be_done_is_said(speech: Speech):
    with pytest.raises(RegionError, match="holds no image token"):
        speech.turn_to((0, 0, 1, 1))
    with pytest.raises(RunError, match="no picture yet"):
        Speech(vision_subject(), HEADS).turn_to((0, 0, 9, 9))
    with pytest.raises(RunError, match="no picture yet"):
        next(Speech(vision_subject(), HEADS).describe("what ?", 3))


def test_huge_pictures_are_scaled_down():
    assert shrunk(np.zeros((50, 2560, 3), dtype=np.uint8)).shape == (25, 1280, 3)
    small = noise(10, 10)
    assert shrunk(small) is small
