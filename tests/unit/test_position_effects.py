"""Cancellation and over-estimation, against sums over tokens made by cutting the prompt into one span per token."""

import numpy as np
import pytest

import builders
from mediant.core.errors import TaskError
from mediant.interventions.ports import graph_of
from mediant.search.attribution import eap
from mediant.search.position_effects import PARTS, RULES, _by_rule, _compared, position_effects

FOUR = builders.pairs()
TWO = [builders.ioi_pair(a, b, 10 + i) for i, (a, b) in enumerate([("Mary", "Tom"), ("John", "Anna")])]


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


def test_a_share_below_one_edge_compares_the_first_edges_alone():
    lm, pairs = builders.subject(), FOUR + TWO
    parts = [_by_rule(lm, pairs[i::PARTS], "logit_diff", 8, graph_of(lm)) for i in range(PARTS)]
    first = [int(np.argmax(part[RULES[0]])) for part in parts]
    differ = [first[i] != first[j] for i in range(PARTS) for j in range(i)]
    sums = {rule: sum(part[rule] for part in parts) for rule in RULES}
    for found, rule in zip(position_effects(lm, pairs, shares=(1e-9,)), RULES[1:], strict=True):
        assert found.control == pytest.approx(np.mean(differ))
        assert found.difference == float(np.argmax(sums[RULES[0]]) != np.argmax(sums[rule]))
        assert np.isnan(found.correlation)


def test_the_report_has_both_effects_at_every_share_and_needs_enough_pairs():
    found = position_effects(builders.subject(), FOUR + TWO, shares=(0.05, 0.2))
    assert [(e.effect, e.share) for e in found] == [
        ("cancellation", 0.05), ("cancellation", 0.2), ("over-estimation", 0.05), ("over-estimation", 0.2),
    ]  # fmt: skip
    assert all(0 <= e.difference <= 1 and 0 <= e.control <= 1 for e in found)
    with pytest.raises(TaskError, match="too few"):
        position_effects(builders.subject(), (FOUR + TWO)[:5])
