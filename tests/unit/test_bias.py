"""Biases on attention: what they are called, and which are none."""

import math
from dataclasses import FrozenInstanceError

import pytest

from builders import subject
from mediant.core import AttentionEdge
from mediant.core.errors import EditError, OutOfRange
from mediant.interventions.bias import bias, check_biases, cut

EDGE = AttentionEdge(1, 2, "last", "S2")


def test_a_cut_is_called_so_and_a_bias_by_its_size():
    assert cut(EDGE).label == f"cut {EDGE}"
    assert bias(EDGE, 2.5).label == f"bias +2.5 {EDGE}"
    assert bias(EDGE, -0.5).label == f"bias -0.5 {EDGE}"


def test_a_cut_is_a_bias_of_minus_infinity_at_the_same_steps():
    assert cut(EDGE, steps=(1, 3)) == bias(EDGE, -math.inf, steps=(1, 3))


def test_equal_biases_are_one_in_a_set_and_none_can_be_changed():
    assert len({bias(EDGE, 2.0), bias(EDGE, 2.0), bias(EDGE, 3.0)}) == 2
    with pytest.raises(FrozenInstanceError):
        cut(EDGE).beta = 1.0


@pytest.mark.parametrize("beta", [math.nan, math.inf])
def test_a_bias_that_is_no_number_is_refused(beta):
    with pytest.raises(EditError, match="must be a number"):
        check_biases(subject(), [cut(EDGE), bias(EDGE, beta)])


def test_a_head_that_the_model_does_not_have_is_refused():
    with pytest.raises(OutOfRange):
        check_biases(subject(), [bias(AttentionEdge(1, 99, "last", "S2"), 1.0)])
