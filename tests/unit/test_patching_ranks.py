"""Rankings of sites by patching them one at a time."""

from dataclasses import replace

import numpy as np
import pytest
from test_patching import POST, shifted

from builders import ioi_pair, pairs, subject
from mediant.core import Site, Span
from mediant.core.errors import OutOfRange, TaskError
from mediant.measures.intervals import estimate
from mediant.search import Patcher, rank, ranking_of
from mediant.tasks.encode import encode


def test_a_ranking_orders_sites_by_their_mean_effect_with_interval_and_number():
    sites = [Site("head_z", 0, h) for h in range(3)]
    table = np.array([[1.0, 2.0, 3.0], [-5.0, -4.0, -3.0], [0.0, 0.5, -0.5]])
    ranking = ranking_of(sites, table, pairs()[:3], method="by hand", seed=4)
    assert [(s.mediator, s.score, s.n) for s in ranking] == [
        ("head_z.0.1", -4.0, 3),
        ("head_z.0.0", 2.0, 3),
        ("head_z.0.2", 0.0, 3),
    ]
    assert (ranking.unit, ranking.metric, ranking.method, ranking.rule) == ("head", "logit_diff", "by hand", "absolute")
    assert ranking.entries[1].ci95 == estimate(table[0], seed=4, draws=500).ci95


@pytest.mark.parametrize(
    ("sites", "unit"),
    [(POST[:2], "resid_post"), ([POST[0], Site("mlp_out", 0)], "site"), ([Site("head_z", 0), Site("head_z", 1)], "head")],
)
def test_a_ranking_is_of_the_kind_its_sites_share(sites, unit):
    assert ranking_of(sites, np.eye(2), pairs()[:2], method="m").unit == unit


def test_a_ranking_names_its_metric_and_resamples_templates():
    items = [replace(ioi_pair(), id=str(i), template=f"t{i // 2}") for i in range(12)]
    table = np.repeat(np.arange(6.0), 2)[None] + np.random.default_rng(0).normal(size=(1, 12))
    ranking = ranking_of([POST[0]], table, items, method="m", by=np.mean)
    assert ranking.metric == "mean"
    assert ranking_of([POST[0]], table, items, method="m", by="prob_diff").metric == "prob_diff"
    assert ranking.entries[0].ci95 == estimate(table[0], clusters=[p.template for p in items], draws=500).ci95
    assert ranking.entries[0].ci95 != estimate(table[0], draws=500).ci95


def test_a_ranking_needs_a_row_of_effects_per_site():
    with pytest.raises(ValueError, match="shorter"):
        ranking_of(POST, np.eye(2), pairs()[:2], method="m")


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_ranking_does_not_depend_on_how_pairs_are_batched(batch_size):
    lm, items, heads = subject(), [*pairs(), shifted(pairs()[0])], subject().heads()
    found = rank(lm, items, heads, span="S2", batch_size=batch_size, seed=2)
    table = Patcher(lm, encode(lm, items)).grid(heads, [Span("S2")])[:, 0]
    expected = ranking_of(heads, table, items, method="activation patching, noising", seed=2)
    assert [s.mediator for s in found] == [s.mediator for s in expected]
    assert np.allclose([s.score for s in found], [s.score for s in expected], atol=1e-5)
    assert np.allclose([s.ci95 for s in found], [s.ci95 for s in expected], atol=1e-5)
    assert ({s.n for s in found}, found.method) == ({5}, "activation patching, noising")


def test_ranking_takes_direction_metric_and_span():
    lm = subject()
    found = rank(lm, pairs(), POST, span="last", by="prob_diff", direction="denoising")
    table = Patcher(lm, encode(lm, pairs(), direction="denoising"), by="prob_diff").grid(POST, [Span("last")])[:, 0]
    assert {s.mediator: round(s.score, 5) for s in found} == {
        str(site): round(v.mean(), 5) for site, v in zip(POST, table, strict=True)
    }
    assert (found.metric, found.method) == ("prob_diff", "activation patching, denoising")


def test_ranking_needs_sites():
    with pytest.raises(OutOfRange, match="nothing to rank: no sites were given"):
        rank(subject(), pairs(), [])


def test_ranking_needs_pairs():
    with pytest.raises(TaskError):
        rank(subject(), [], POST)
