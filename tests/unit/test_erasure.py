"""Sparse probes by the conditions that only the solution meets, and amnesic projection where the directions are known."""

import numpy as np
import pytest

import builders
from mediant.core import Prompt, Site
from mediant.core.errors import OutOfRange, TaskError
from mediant.interventions.execute import run
from mediant.search.erasure import amnesic
from mediant.search.linear_rules import balance, fit_logistic, fit_sparse

FILLERS = ["the", "a", "and", "to", "store", "park", "gave", "drink", "ball", "said"]
ENTRY = Site("resid_pre", 0)


def gaussians(n: int, d: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.random(n) < 0.4
    x = rng.standard_normal((n, d)) * np.linspace(0.5, 3, d) + 2
    x[:, 1] += 2 * y
    x[:, 4] -= 3 * y
    return x, y


@pytest.mark.parametrize("l1", [0.5, 5.0, 30.0])
def test_sparse_weights_meet_the_conditions_of_a_minimum(l1: float):
    x, y = gaussians(200, 12, 0)
    rule = fit_sparse(x, y, l1=l1)
    weights = rule.vector * x.std(0)
    z = (x - x.mean(0)) / x.std(0)
    slope = balance(y) * (1 / (1 + np.exp(-(x @ rule.vector - rule.threshold))) - y)
    pull, kept = z.T @ slope, np.abs(weights) > 0
    assert slope.sum() == pytest.approx(0, abs=1e-4)
    assert pull[kept] == pytest.approx(-l1 * np.sign(weights[kept]), abs=1e-4)
    assert np.abs(pull[~kept]).max(initial=0) <= l1 + 1e-6
    assert 0 < kept.sum() < 12 or l1 == 0.5


def test_a_larger_price_keeps_fewer_weights_the_telling_ones_last_and_none_at_all_is_the_plain_fit():
    x, y = gaussians(300, 12, 1)
    kept = [np.flatnonzero(fit_sparse(x, y, l1=l1).vector).tolist() for l1 in (1.0, 20.0, 60.0, 1e4)]
    assert len(kept[0]) > len(kept[1]) >= 2
    assert kept[2] == [1, 4]
    assert kept[3] == []
    one, two = fit_sparse(x, y, l1=0.0), fit_logistic(x, y, l2=0.0)
    assert one.vector == pytest.approx(two.vector, rel=1e-3, abs=1e-4)
    assert one.threshold == pytest.approx(two.threshold, rel=1e-3, abs=1e-3)


def named(words: list[str], n: int, seed: int) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    drawn = {tuple(rng.choice(FILLERS, 3)) for _ in range(4 * n)}
    return [
        builders.prompt(f"{a} {b} {words[i % len(words)]} {c}", name=words[i % len(words)])
        for i, (a, b, c) in enumerate(sorted(drawn)[:n])
    ]


def test_after_erasure_nothing_tells_the_classes_apart_and_the_edit_takes_out_just_that():
    lm = builders.subject()
    one, two = named(["Mary", "Anna"], 160, 0), named(["John", "Tom"], 160, 1)
    gone = amnesic(lm, one, two, ENTRY, "name")
    assert gone.accuracies[0].value == 1.0
    assert gone.accuracies[-1].ci95[0] <= 0.5
    assert gone.rank == len(gone.accuracies) - 1 >= 1
    assert gone.test.value < 0.7
    assert gone.basis.T @ gone.basis == pytest.approx(np.eye(gone.rank), abs=1e-9)
    batch, place = lm.encode([one[0], two[0]]), (ENTRY, "name")
    plain = run(lm, batch, capture=[place]).captured[place].values.detach().double().numpy()
    after = run(lm, batch, [gone.edit("name")], capture=[place]).captured[place].values.detach().double().numpy()
    wanted = plain - (plain - gone.mean) @ gone.basis @ gone.basis.T
    assert after == pytest.approx(wanted, abs=1e-4)
    random = run(lm, batch, [gone.random(0, "name")], capture=[place]).captured[place].values.detach().double().numpy()
    assert np.linalg.matrix_rank(random - plain, tol=1e-4) <= gone.rank
    assert not np.allclose(random, after, atol=1e-3)
    assert not np.allclose(
        random, run(lm, batch, [gone.random(1, "name")], capture=[place]).captured[place].values.detach(), atol=1e-3
    )


def test_what_is_equal_in_both_classes_needs_no_erasure_and_limits_are_kept():
    lm = builders.subject()
    mixed = named(["Mary", "John"], 80, 2)
    # The same words in both classes: a probe finds nothing on items it has not seen.
    gone = amnesic(lm, mixed[0::4] + mixed[1::4], mixed[2::4] + mixed[3::4], ENTRY, "name")
    assert gone.rank == 0
    assert gone.edit("name").features.n_features == 0
    one, two = named(["Mary", "Anna"], 40, 0), named(["John", "Tom"], 40, 1)
    assert amnesic(lm, one, two, ENTRY, "name", most=1).rank == 1
    with pytest.raises(OutOfRange, match="most = 0"):
        amnesic(lm, one, two, ENTRY, "name", most=0)
    with pytest.raises(TaskError, match="validation items"):
        amnesic(lm, one, two, ENTRY, "name", split=(0.5, 0.0, 0.5))
