"""Prompts with named spans: which ranges are possible, and which pieces of text can be found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediant.core import Pair, Prompt, Task
from mediant.core.errors import SpanError
from mediant.core.pair import find_once

TEXT = "When Mary and John left, John"


@given(st.text(max_size=12), st.integers(-3, 15), st.integers(-3, 15))
def test_a_span_is_accepted_exactly_when_it_cuts_out_at_least_one_character_of_the_text(text, start, stop):
    possible = start >= 0 and stop <= len(text) and len(text[start:stop]) == stop - start > 0
    if possible:
        assert Prompt(text, {"x": (start, stop)}).spans["x"] == (start, stop)
    else:
        with pytest.raises(SpanError, match=rf"span 'x' \({start}, {stop}\) lies outside the {len(text)} characters"):
            Prompt(text, {"x": (start, stop)})


@pytest.mark.parametrize("name", ["all", "prompt", "last", "generated", "", "a:b", ":"])
def test_a_reserved_span_name_is_refused(name):
    with pytest.raises(SpanError, match="is reserved; choose another"):
        Prompt(TEXT, {name: (0, 4)})


def test_every_span_is_checked_and_not_just_the_first():
    with pytest.raises(SpanError, match="span 'b'"):
        Prompt(TEXT, {"a": (0, 4), "b": (4, 4)})


def test_locating_adds_spans_by_their_text_and_keeps_the_others():
    prompt = Prompt(TEXT, {"S2": (25, 29)}).locate(IO="Mary", verb="left")
    assert {name: prompt.text[slice(*where)] for name, where in prompt.spans.items()} == {
        "S2": "John",
        "IO": "Mary",
        "verb": "left",
    }
    assert prompt.spans["IO"] == (5, 9)
    assert Prompt(TEXT).locate() == Prompt(TEXT)


def test_locating_leaves_the_first_prompt_as_it_was():
    prompt = Prompt(TEXT, {"S2": (25, 29)})
    prompt.locate(IO="Mary")
    assert dict(prompt.spans) == {"S2": (25, 29)}


@given(st.text("ab", max_size=8), st.text("ab", min_size=1, max_size=3), st.text("ab", max_size=8))
def test_a_piece_that_is_found_is_really_there(before, piece, after):
    text = before + piece + after
    try:
        start, stop = find_once(text, piece, "x")
    except SpanError:
        assert len([i for i in range(len(text)) if text.startswith(piece, i)]) > 1
        return
    assert text[start:stop] == piece


@pytest.mark.parametrize(("piece", "count"), [("John", 2), ("Tom", 0), ("", 0), ("john", 0)])
def test_a_piece_that_does_not_occur_exactly_once_is_refused_with_its_count(piece, count):
    with pytest.raises(SpanError, match=rf"span 'S': '{piece}' occurs {count} times in .*; give \[start, stop\] instead"):
        find_once(TEXT, piece, "S")


def test_a_piece_that_occurs_twice_with_an_overlap_is_refused():
    with pytest.raises(SpanError):
        find_once("banana", "ana", "x")


def test_a_prompt_cannot_be_changed_afterwards():
    with pytest.raises(AttributeError):
        Prompt(TEXT).text = "other"


def test_a_pair_and_a_task_have_the_defaults_that_generators_rely_on():
    pair = Pair("p", Prompt("a"), Prompt("b"), " x", " y")
    assert (pair.template, dict(pair.variables)) == ("", {})
    task = Task("t", "what", (pair,))
    assert (task.span_names, task.metric) == ((), "logit_diff")
