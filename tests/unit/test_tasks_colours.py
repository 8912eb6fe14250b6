"""Multiple-choice colours, solved again by reading the prompt."""

import re
from collections import Counter

import pytest

from mediant.core.errors import TaskError
from mediant.core.pair import Prompt
from mediant.tasks import colours

SPLITS = ("main", "heldout")
THINGS = {word for words in colours.OBJECTS.values() for word in words.split()}
PAINTS = {word for words in colours.COLOURS.values() for word in words.split()}


def solve(prompt: Prompt) -> str:
    """The right letter: in every frame the first colour belongs to the first object, the second to the second."""
    stem, *choices = prompt.text.split("\n")
    words = re.findall(r"\w+", stem)
    things, paints = [word for word in words if word in THINGS], [word for word in words if word in PAINTS]
    assert len(things) == 3
    assert len(paints) == 2
    colour = dict(zip(things[:2], paints, strict=True))[things[2]]
    letters = dict(re.findall(r"^([AB])[.)] (\w+)$", line)[0] for line in choices[:2])
    assert len(set(letters.values())) == 2
    return next(letter for letter, value in letters.items() if value == colour)


def word(prompt: Prompt, span: str) -> str:
    return prompt.text[slice(*prompt.spans[span])]


@pytest.mark.parametrize("split", SPLITS)
def test_the_letters_are_right_on_both_sides(split: str) -> None:
    for pair in colours.generate(48, split=split).pairs:
        assert pair.answer == f" {solve(pair.clean)}"
        assert pair.counterfactual_answer == f" {solve(pair.counterfactual)}"
        assert {pair.answer, pair.counterfactual_answer} == {" A", " B"}


@pytest.mark.parametrize("split", SPLITS)
def test_the_counterfactual_swaps_the_choices_and_nothing_else(split: str) -> None:
    for pair in colours.generate(24, split=split).pairs:
        old, new = pair.clean.text.split("\n"), pair.counterfactual.text.split("\n")
        assert (old[0], old[3:]) == (new[0], new[3:])
        assert [line[:2] for line in old[1:3]] == [line[:2] for line in new[1:3]]
        assert [line[3:] for line in old[1:3]] == [line[3:] for line in new[1:3]][::-1]


@pytest.mark.parametrize("split", SPLITS)
def test_spans_tell_the_two_mentions_apart(split: str) -> None:
    for pair in colours.generate(24, split=split).pairs:
        for prompt in (pair.clean, pair.counterfactual):
            assert word(prompt, "object") == word(prompt, "asked") == pair.variables["object"]
            assert prompt.spans["object"][1] < prompt.spans["asked"][0] < prompt.spans["choice_A"][0]
            lines = prompt.text.split("\n")
            assert [word(prompt, "choice_A"), word(prompt, "choice_B")] == [lines[1][3:], lines[2][3:]]


def test_the_last_line_differs_between_splits() -> None:
    ends = {split: {pair.clean.text.split("\n")[-1] for pair in colours.generate(12, split=split).pairs} for split in SPLITS}
    assert ends == {"main": {"Answer:"}, "heldout": {"Correct option:"}}


def test_variables_tell_what_was_asked() -> None:
    for pair in colours.generate(24).pairs:
        stem = re.findall(r"\w+", pair.clean.text.split("\n")[0])
        things = [each for each in stem if each in THINGS][:2]
        paints = [each for each in stem if each in PAINTS]
        place = 0 if pair.variables["asked_position"] == "first" else 1
        assert (pair.variables["object"], pair.variables["colour"]) == (things[place], paints[place])
        assert (pair.variables["other_object"], pair.variables["other_colour"]) == (things[1 - place], paints[1 - place])
        assert pair.answer == f" {pair.variables['letter']}"


def test_letters_positions_and_frames_are_balanced_together() -> None:
    pairs = colours.generate(64).pairs
    cells = Counter((pair.template, pair.variables["asked_position"], pair.variables["letter"]) for pair in pairs)
    assert len(cells) == 16
    assert set(cells.values()) == {4}


@pytest.mark.parametrize("words", [colours.OBJECTS, colours.COLOURS], ids=["objects", "colours"])
def test_words_of_the_splits_are_disjoint(words: dict[str, str]) -> None:
    assert set(words["main"].split()).isdisjoint(words["heldout"].split())
    assert THINGS.isdisjoint(PAINTS)


def test_only_words_the_tokenizer_keeps_whole_are_used() -> None:
    kept = {" A", " B", " ball", " box", " hat", " red", " blue"}
    for pair in colours.generate(30, single_token=lambda text: text in kept).pairs:
        used = {pair.variables[key] for key in ("object", "colour", "other_object", "other_colour")}
        assert {f" {each}" for each in used} <= kept


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({" A", " B", " ball", " red", " blue"}, "only 1 of 20 objects"),
        ({" A", " B", " ball", " hat", " red"}, "only 1 of 7 colours"),
        ({" A", " ball", " hat", " red", " blue"}, "splits ' B'; this task needs"),
    ],
)
def test_too_few_whole_words_are_counted(kept: set[str], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        colours.generate(1, single_token=lambda text: text in kept)
