"""Cancellation and over-estimation, against sums over tokens made by cutting the prompt into one span per token."""

import numpy as np
import pytest

import builders
from mediant.core.errors import TaskError
from mediant.interventions.ports import graph_of
from mediant.search.attribution import eap
from mediant.search.position_effects import RULES, _by_rule, _compared, position_effects


def test_each_rule_is_what_its_name_says_over_single_tokens():
    lm, pairs = builders.subject(), builders.pairs()
    graph = graph_of(lm)
    found = _by_rule(lm, pairs, "logit_diff", 3, graph)
    by_token = [eap(lm, [pair], spans=[f"{i}:{i + 1}" for i in range(14)], crossing=False).within for pair in pairs]
    expected = {
        RULES[0]: sum(np.abs(t).sum(0) for t in by_token),
        RULES[1]: sum(np.abs(t.sum(0)) for t in by_token),
        RULES[2]: sum(np.abs(t).max(0) for t in by_token),
    }
    for rule in RULES:
        assert np.allclose(found[rule], expected[rule][graph.exists], atol=1e-4)
    assert (found[RULES[0]] >= found[RULES[1]] - 1e-4).all()
    assert (found[RULES[0]] >= found[RULES[2]] - 1e-4).all()


def test_lists_are_compared_by_what_they_share():
    one, two = np.array([5.0, 4, 3, 2, 1]), np.array([5.0, 1, 2, 3, 4])
    assert _compared(one, one, 3) == (0.0, pytest.approx(1.0))
    difference, correlation = _compared(one, two, 2)
    assert difference == 0.5
    assert correlation == pytest.approx(np.corrcoef([2, 1, 0], [2, 0, 1])[0, 1])


def test_the_report_has_both_effects_at_every_share_and_needs_enough_pairs():
    pairs = [
        *builders.pairs(),
        *(builders.ioi_pair(a, b, 10 + i) for i, (a, b) in enumerate([("Mary", "Tom"), ("John", "Anna")])),
    ]
    found = position_effects(builders.subject(), pairs, shares=(0.05, 0.2))
    assert [(e.effect, e.share) for e in found] == [
        ("cancellation", 0.05), ("cancellation", 0.2), ("over-estimation", 0.05), ("over-estimation", 0.2),
    ]  # fmt: skip
    assert all(0 <= e.difference <= 1 and 0 <= e.control <= 1 for e in found)
    with pytest.raises(TaskError, match="too few"):
        position_effects(builders.subject(), pairs[:5])
