"""Frames: sentences with slots, and where the fillers come to lie."""

import pytest

from mediant.core.errors import TaskError, UnknownName
from mediant.tasks.frame import Frame, select_frames

GIFT = Frame("gift", "When {A} met {B}, {S} waved to")
PEOPLE = {"A": "Ann", "B": "Annabel", "S": "Ann", "unused": "x"}


def test_a_filler_that_occurs_inside_and_before_itself_is_still_located() -> None:
    prompt = GIFT.fill(PEOPLE, {"A": "one", "B": "two", "S": "three"})
    assert prompt.text == "When Ann met Annabel, Ann waved to"
    assert dict(prompt.spans) == {"one": (5, 8), "two": (13, 20), "three": (22, 25), "end": (32, 34)}


def test_text_put_before_moves_every_span() -> None:
    plain = GIFT.fill(PEOPLE, {"B": "two"})
    moved = GIFT.fill(PEOPLE, {"B": "two"}, before="So far.\n")
    assert moved.text == "So far.\n" + plain.text
    assert dict(moved.spans) == {name: (start + 8, stop + 8) for name, (start, stop) in plain.spans.items()}


def test_slots_without_a_label_become_no_span() -> None:
    assert set(GIFT.fill(PEOPLE, {}).spans) == {"end"}


def test_the_end_is_the_last_word_even_after_a_line_break() -> None:
    prompt = Frame("letters", "{x}\nAnswer:").fill({"x": "red"}, {})
    assert prompt.text[slice(*prompt.spans["end"])] == "Answer:"


def test_a_single_word_is_its_own_end() -> None:
    assert dict(Frame("word", "{x}").fill({"x": "red"}, {"x": "colour"}).spans) == {"colour": (0, 3), "end": (0, 3)}


def test_a_slot_may_claim_the_name_end() -> None:
    prompt = Frame("sum", "{a}+{b}{end}").fill({"a": "3", "b": "4", "end": "="}, {"a": "a", "end": "end"})
    assert prompt.text == "3+4="
    assert dict(prompt.spans) == {"a": (0, 1), "end": (3, 4)}


def test_slots_come_in_reading_order() -> None:
    assert GIFT.slots == ("A", "B", "S")
    assert Frame("none", "Nothing here").slots == ()


def test_frames_are_selected_in_their_own_order_and_once() -> None:
    frames = [Frame(name, name) for name in ("one", "two", "three")]
    assert select_frames(frames, None) == frames
    assert select_frames(frames, ["three", "one", "three"]) == [frames[0], frames[2]]


def test_an_unknown_template_names_the_nearest_one() -> None:
    with pytest.raises(UnknownName) as refused:
        select_frames([GIFT], ["gifts"])
    assert str(refused.value) == "unknown template 'gifts'; did you mean 'gift'?"


def test_an_empty_selection_is_refused_with_the_choices() -> None:
    with pytest.raises(TaskError, match="choose from: gift"):
        select_frames([GIFT], [])
