"""Intervals: how often they cover, how wide they are, what clusters do, and what cannot be estimated."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediant.core.errors import MediantError, TaskError
from mediant.measures.intervals import DRAWS, MIN_CLUSTERS, coin_flip_p, estimate, estimate_ratio, mean_over_draws, resamples


def width(ci95: tuple[float, float]) -> float:
    return ci95[1] - ci95[0]


def normal_sample(n: int, seed: int, *, mean: float = 0.0) -> np.ndarray:
    """Values with exactly this mean and standard deviation 1 (as the bootstrap counts it: over n)."""
    x = np.random.default_rng(seed).normal(size=n)
    return mean + (x - x.mean()) / x.std()


def test_intervals_of_a_normal_mean_cover_it_as_often_as_they_say():
    rng = np.random.default_rng(1)
    covered = []
    for seed in range(300):
        low, high = estimate(rng.normal(loc=3.0, scale=2.0, size=60), seed=seed, draws=150).ci95
        covered.append(low <= 3.0 <= high)
    assert 0.91 <= np.mean(covered) <= 0.975


@pytest.mark.parametrize("n", [25, 400])
def test_an_interval_is_as_wide_as_the_normal_law_says(n):
    found = estimate(normal_sample(n, 0, mean=5.0))
    assert abs(width(found.ci95) / (2 * 1.96 / np.sqrt(n)) - 1) < 0.07
    assert abs(sum(found.ci95) / 2 - 5.0) < 0.2 / np.sqrt(n)


def test_one_resample_in_forty_lies_below_the_interval_and_one_above():
    x = normal_sample(40, 12)
    drawn = np.array([x[i].mean() for i in resamples(40, None, draws=2000, seed=6)])
    low, high = estimate(x, seed=6).ci95
    assert ((drawn < low).sum(), (drawn > high).sum()) == (50, 50)
    low, high = mean_over_draws(x[None], seed=6).ci95
    assert ((drawn < low).sum(), (drawn > high).sum()) == (50, 50)


def test_the_estimate_is_the_mean_and_its_number_of_items():
    found = estimate([1.0, 2.0, 6.0])
    assert (found.value, found.n) == (3.0, 3)
    assert found.ci95[0] >= 1.0
    assert found.ci95[1] <= 6.0
    assert all(type(x) is float for x in (found.value, *found.ci95))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.integers(0, 9), st.floats(-3, 3), st.floats(0.5, 3))
def test_shifting_and_stretching_values_shifts_and_stretches_the_interval(values, seed, shift, factor):
    x = np.array(values)
    plain, moved = estimate(x, seed=seed, draws=50), estimate(shift + factor * x, seed=seed, draws=50)
    assert np.allclose([moved.value, *moved.ci95], [shift + factor * v for v in (plain.value, *plain.ci95)], atol=1e-9)


def test_the_seed_alone_decides_the_interval():
    x = normal_sample(30, 2)
    assert estimate(x, seed=3) == estimate(x.tolist(), seed=3)
    assert estimate(x, seed=3) == estimate(x, seed=3, draws=DRAWS)
    assert estimate(x, seed=3).ci95 != estimate(x, seed=4).ci95
    assert estimate(x, seed=3).value == estimate(x, seed=4).value
    assert DRAWS == 2000


@pytest.mark.parametrize("clusters", [None, ["a", "b"] * 4, list("aabbccdd"), list("abcdefgh"), list("aaabbcde")])
def test_a_resample_draws_from_the_items_and_is_seeded(clusters):
    found = resamples(8, clusters, draws=40, seed=5)
    assert len(found) == 40
    assert all(set(i.tolist()) <= set(range(8)) for i in found)
    assert all(np.array_equal(a, b) for a, b in zip(found, resamples(8, clusters, draws=40, seed=5), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(found, resamples(8, clusters, draws=40, seed=6), strict=True))
    assert len({tuple(i.tolist()) for i in found}) > 30


def test_items_are_drawn_with_replacement_and_each_as_often_as_the_others():
    drawn = np.stack(resamples(6, None, draws=3000, seed=0))
    assert drawn.shape == (3000, 6)
    counts = np.bincount(drawn.ravel(), minlength=6) / 3000
    assert np.abs(counts - 1).max() < 0.06
    distinct = np.mean([len(set(row.tolist())) for row in drawn])
    assert abs(distinct - 6 * (1 - (5 / 6) ** 6)) < 0.05


def test_with_few_clusters_items_are_drawn_within_each():
    labels = np.array(list("aaaaabbbbbbccccc"))
    for drawn in resamples(16, labels.tolist(), draws=50, seed=0):
        assert sorted(labels[drawn].tolist()) == sorted(labels.tolist())
    values = np.array([1.0] * 5 + [2.0] * 6 + [9.0] * 5)
    assert estimate(values, clusters=labels.tolist()).ci95 == (values.mean(), values.mean())


def test_with_enough_clusters_whole_clusters_are_drawn():
    labels = np.array(list("aabbccddee"))
    for drawn in resamples(10, labels.tolist(), draws=50, seed=0):
        counts = {name: (labels[drawn] == name).sum() for name in "abcde"}
        assert set(counts.values()) <= {0, 2, 4, 6, 8, 10}
    left_out = np.mean([len(set(labels[d].tolist())) for d in resamples(10, labels.tolist(), draws=2000, seed=0)])
    assert abs(left_out - 5 * (1 - (4 / 5) ** 5)) < 0.06


@pytest.mark.parametrize(("n_clusters", "wide"), [(4, False), (5, True), (6, True)])
def test_five_clusters_are_enough_and_four_are_few(n_clusters, wide):
    assert MIN_CLUSTERS == 5
    labels = [name for name in "abcdef"[:n_clusters] for _ in range(5)]
    values = [float(ord(name)) for name in labels]
    assert (width(estimate(values, clusters=labels).ci95) > 0.5) is wide


def test_items_within_a_drawn_cluster_are_drawn_too():
    labels = [name for name in "abcdefgh" for _ in range(4)]
    values = [-1.0, -1, 1, 1] * 8
    found = estimate(values, clusters=labels)
    assert abs(width(found.ci95) / (2 * 1.96 / np.sqrt(32)) - 1) < 0.1


def test_intervals_over_clusters_that_differ_are_as_wide_as_their_means_say():
    rng = np.random.default_rng(0)
    labels = [f"t{i}" for i in range(25) for _ in range(8)]
    means = normal_sample(25, 4)
    values = np.repeat(means, 8) + 0.01 * rng.normal(size=200)
    clustered, plain = estimate(values, clusters=labels), estimate(values)
    assert abs(width(clustered.ci95) / (2 * 1.96 / np.sqrt(25)) - 1) < 0.08
    assert abs(width(clustered.ci95) / width(plain.ci95) - np.sqrt(8)) < 0.3


def test_labels_that_say_nothing_change_nothing():
    x = normal_sample(20, 1)
    assert estimate(x, clusters=["one"] * 20) == estimate(x)
    assert width(estimate(x, clusters=[str(i) for i in range(20)]).ci95) == pytest.approx(width(estimate(x).ci95), rel=0.1)


def test_every_item_needs_a_label():
    with pytest.raises(TaskError, match="3 items but 2 cluster labels"):
        estimate([1.0, 2.0, 3.0], clusters=["a", "b"])


NO_VALUES = [[], [np.nan, 1.0], [1.0, np.inf], [[1.0, 2.0]], 3.0]


@pytest.mark.parametrize("values", NO_VALUES, ids=["none", "nan", "inf", "table", "number"])
def test_values_that_are_not_finite_items_are_refused(values):
    with pytest.raises(TaskError, match="an estimate needs finite per-item values, got shape"):
        estimate(values)


def test_a_ratio_is_of_means_and_not_the_mean_of_ratios():
    found = estimate_ratio([1.0, 9.0], [1.0, 3.0])
    assert (found.value, found.n) == (2.5, 2)
    assert found.ci95 == (1.0, 3.0)


def test_numerator_and_denominator_are_drawn_together():
    bottom = np.random.default_rng(0).uniform(1, 5, size=40)
    found = estimate_ratio(3 * bottom, bottom)
    assert np.allclose([found.value, *found.ci95], 3.0, atol=1e-12)
    by_cluster = estimate_ratio(3 * bottom, bottom, clusters=[str(i % 8) for i in range(40)])
    assert np.allclose(by_cluster.ci95, 3.0, atol=1e-12)


def test_a_ratios_interval_is_as_wide_as_the_delta_method_says():
    rng = np.random.default_rng(3)
    bottom = rng.normal(10, 1, size=400)
    top = 2 * bottom + rng.normal(0, 1, size=400)
    found = estimate_ratio(top, bottom)
    residual = (top - found.value * bottom) / bottom.mean()
    assert abs(width(found.ci95) / (2 * 1.96 * residual.std() / np.sqrt(400)) - 1) < 0.07


def test_a_ratio_over_ones_is_the_mean():
    x = normal_sample(15, 5)
    assert estimate_ratio(x, np.ones(15), seed=2) == estimate(x, seed=2) == estimate_ratio(x, None, seed=2)


def test_a_ratio_with_a_part_that_is_not_finite_is_refused():
    for top, bottom in (([1.0, 2.0], [np.nan, 1.0]), ([np.inf, 2.0], [1.0, 1.0]), ([1.0, 2.0], [1.0, np.inf])):
        with pytest.raises(TaskError):
            estimate_ratio(top, bottom)


@pytest.mark.parametrize("bottom", [[1.0], [1.0, 2.0, 3.0], [1.0, -1.0], [0.0, 0.0]])
def test_a_ratio_that_has_no_value_is_refused(bottom):
    with pytest.raises(MediantError):
        estimate_ratio([1.0, 2.0], bottom)


@pytest.mark.parametrize(("top", "bottom"), [([0.0, 0, 0, 1], [0.0, 0, 0, 1]), ([1.0, 2, 1, 1], [1.0, -1, 1, 1])])
def test_a_ratio_whose_resamples_may_have_no_value_has_a_finite_interval_or_is_refused(top, bottom):
    try:
        found = estimate_ratio(top, bottom)
    except MediantError:
        return
    assert np.isfinite(found.ci95).all()


def test_a_table_of_one_draw_is_estimated_like_its_items():
    x = normal_sample(30, 6)
    found = mean_over_draws(x[None], seed=7)
    assert found == estimate(x, seed=7)
    labels = [str(i % 6) for i in range(30)]
    assert mean_over_draws(x[None], clusters=labels, seed=7) == estimate(x, clusters=labels, seed=7)


def test_draws_are_drawn_again_as_well_as_items():
    draws = normal_sample(25, 8)
    found = mean_over_draws(np.repeat(draws[:, None], 10, axis=1))
    assert (found.n, found.value) == (10, pytest.approx(0.0, abs=1e-12))
    assert abs(width(found.ci95) / (2 * 1.96 / np.sqrt(25)) - 1) < 0.08
    items = mean_over_draws(np.repeat(normal_sample(30, 9)[None], 4, axis=0))
    assert abs(width(items.ci95) / (2 * 1.96 / np.sqrt(30)) - 1) < 0.08


def test_the_variance_of_draws_and_that_of_items_add():
    # The same numbers twice: were draws and items drawn alike, the interval would be the square root of two too wide.
    table = normal_sample(25, 10)[:, None] + normal_sample(25, 10)[None]
    assert abs(width(mean_over_draws(table).ci95) / (2 * 1.96 * np.sqrt(2 / 25)) - 1) < 0.08


def test_a_table_is_estimated_by_its_seed_alone():
    table = np.random.default_rng(0).normal(size=(5, 12))
    assert mean_over_draws(table, seed=1) == mean_over_draws(table.tolist(), seed=1)
    assert mean_over_draws(table, seed=1).ci95 != mean_over_draws(table, seed=2).ci95


@pytest.mark.parametrize("table", [[1.0, 2.0], [[]], [[np.nan, 1.0]], [[[1.0]]]])
def test_what_is_no_finite_table_is_refused(table):
    with pytest.raises(TaskError, match=r"expected a finite \(draw, item\) table, got shape"):
        mean_over_draws(table)


def test_a_coin_does_as_well_as_often_as_counting_every_sequence_says():
    for n in range(1, 9):
        heads = [bin(sequence).count("1") for sequence in range(2**n)]
        for k in range(n + 1):
            assert coin_flip_p(k, n) == sum(h >= k for h in heads) / 2**n


def test_few_templates_with_a_single_item_each_do_not_give_intervals_of_no_width():
    values = np.array([-9.0, -5.0, -4.0])
    alone = estimate(values, clusters=["a", "b", "c"])
    assert alone.ci95 == estimate(values).ci95
    assert width(alone.ci95) > 2
    mixed = estimate(np.array([*values, *range(20)], dtype=float), clusters=["a", "b", "c", *["d"] * 20])
    assert mixed.ci95 == estimate(np.array([*values, *range(20)], dtype=float)).ci95


def test_a_mean_over_draws_by_a_denominator_is_the_ratio_of_means_and_varies_with_both():
    table, below = np.array([[1.0, 2.0, 3.0, 6.0], [3.0, 2.0, 1.0, 2.0]]), np.array([2.0, 2.0, 2.0, 4.0])
    found = mean_over_draws(table, below)
    assert found.value == pytest.approx(2.5 / 2.5)
    assert found.n == 4
    # Where every draw is the same multiple of what is below, there is nothing to vary.
    assert mean_over_draws(np.stack([below, below]) * 0.3, below).ci95 == pytest.approx((0.3, 0.3))
    assert mean_over_draws(table, np.full(4, 2.0)).ci95 == pytest.approx(np.array(mean_over_draws(table / 2.0).ci95))
    with pytest.raises(TaskError, match="mean is not zero"):
        mean_over_draws(table, np.array([1.0, -1.0, 1.0, -1.0]))
