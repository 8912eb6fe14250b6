"""Causal models: what is set stays set, what is exchanged comes from the source, and nonsense is refused."""

from itertools import product

import pytest

from mediant.core.causal_model import CausalModel
from mediant.core.errors import TaskError, UnknownName

# A diamond: the end hears of the start by two ways.
DIAMOND = CausalModel(
    {"end": ("left", "right"), "left": ("start",), "right": ("start", "other"), "start": (), "other": ()},
    {"left": lambda start: 2 * start, "right": lambda start, other: start + other, "end": lambda left, right: (left, right)},
)


def test_values_follow_from_inputs_in_any_order_of_writing():
    for start, other in product(range(3), repeat=2):
        found = DIAMOND.run({"other": other, "start": start})
        assert found == {
            "end": (2 * start, start + other),
            "left": 2 * start,
            "right": start + other,
            "start": start,
            "other": other,
        }
        assert list(found) == list(DIAMOND.parents)


def test_what_is_set_stays_and_only_its_descendants_change():
    found = DIAMOND.run({"start": 1, "other": 5}, {"left": 40})
    assert found == {"end": (40, 6), "left": 40, "right": 6, "start": 1, "other": 5}
    assert DIAMOND.run({"other": 5}, {"start": 3})["end"] == (6, 8)


@pytest.mark.parametrize("variable", ["left", "right", "start", "other", "end"])
def test_exchanging_a_variable_equals_setting_it_by_hand(variable: str):
    base, source = {"start": 1, "other": 5}, {"start": 4, "other": 7}
    by_hand = DIAMOND.run(base, {variable: DIAMOND.run(source)[variable]})
    assert DIAMOND.interchange(base, source, [variable]) == by_hand


def test_exchanging_everything_above_the_answer_is_the_sources_answer():
    base, source = {"start": 1, "other": 5}, {"start": 4, "other": 7}
    assert DIAMOND.interchange(base, source, ["left", "right"])["end"] == DIAMOND.run(source)["end"]
    assert DIAMOND.interchange(base, source, []) == DIAMOND.run(base)


WRONG = [
    ({"a": ("b",), "b": ("a",)}, {"a": str, "b": str}, TaskError, "no circles"),
    ({"a": ("b",), "b": ()}, {}, TaskError, "'a' has parents and no mechanism"),
    ({"a": ()}, {"a": str}, TaskError, "'a' has a mechanism and no parents"),
    ({"a": ("bee",), "bees": ()}, {"a": str}, UnknownName, "did you mean 'bees'"),
    ({"a": ()}, {"z": str}, UnknownName, "variable 'z'"),
]


@pytest.mark.parametrize(("parents", "mechanisms", "error", "message"), WRONG, ids=[each[3] for each in WRONG])
def test_models_that_make_no_sense_are_refused(parents, mechanisms, error, message):
    with pytest.raises(error, match=message):
        CausalModel(parents, mechanisms)


def test_missing_and_unknown_values_are_named():
    with pytest.raises(TaskError, match="needs 'other' as well"):
        DIAMOND.run({"start": 1})
    with pytest.raises(UnknownName, match="input 'left'"):
        DIAMOND.run({"start": 1, "other": 2, "left": 3})
    with pytest.raises(UnknownName, match="did you mean 'left'"):
        DIAMOND.run({"start": 1, "other": 2}, {"lefd": 3})
    with pytest.raises(UnknownName, match="did you mean 'right'"):
        DIAMOND.interchange({"start": 1, "other": 2}, {"start": 1, "other": 2}, ["rigth"])
