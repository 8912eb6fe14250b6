"""Interchanges of the tasks: expected answers are those that reading the two prompts gives."""

import pytest

from mediant.core.errors import TaskError, UnknownName
from mediant.tasks.agreement import generate as agreement
from mediant.tasks.interchange import abstraction_of, between, interchanges
from mediant.tasks.ioi import generate as ioi


@pytest.mark.parametrize(("task", "variable"), [("ioi", "position"), ("ioi", "answer"), ("agreement", "number")])
def test_half_of_the_items_change_the_answer_and_the_sources_own_answer_is_always_another(task: str, variable: str):
    items = interchanges(task, variable, 40, seed=2)
    assert len({item.id for item in items}) == len({item.base.text for item in items}) == 40
    if variable == "answer":
        # With the answer itself exchanged, the source's answer is expected, which always is another one.
        assert all(item.changes and item.expected == item.sources for item in items)
        return
    assert sum(item.changes for item in items) == 20
    assert all(item.sources != item.own for item in items)
    assert any(item.expected not in (item.own, item.sources) for item in items)


def test_the_place_of_the_receiver_comes_from_the_source_and_the_names_from_the_base():
    for item in interchanges("ioi", "position", 30, seed=3):

        def names(prompt) -> list[str]:
            return [text for name in ("IO", "S1") for text in [prompt.text[slice(*prompt.spans[name])]]]

        receiver, giver = names(item.base)
        assert item.own == f" {receiver}"
        first = item.base.spans["IO"] < item.base.spans["S1"]
        same = first == (item.source.spans["IO"] < item.source.spans["S1"])
        assert item.expected == f" {receiver if same else giver}"


def test_the_number_comes_from_the_source_and_the_verb_from_the_base():
    pairs = {pair.clean.text: pair for pair in agreement(120, seed=5).pairs}
    for item in interchanges("agreement", "number", 60, seed=5):
        base, source = pairs[item.base.text], pairs[item.source.text]
        same = base.variables["subject_number"] == source.variables["subject_number"]
        assert item.expected == (base.answer if same else base.counterfactual_answer)


def test_what_cannot_be_exchanged_is_said():
    with pytest.raises(UnknownName, match="variable of ioi 'place'"):
        interchanges("ioi", "place", 4)
    with pytest.raises(UnknownName, match="task with a causal model 'docstring'"):
        abstraction_of("docstring")
    with pytest.raises(TaskError, match="2 prompts give 1 interchanges of position, 4 are asked for"):
        between(abstraction_of("ioi"), "position", ioi(2, seed=0).pairs, 4)
