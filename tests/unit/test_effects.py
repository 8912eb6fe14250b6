"""Effects: what a mediator carries, what passes beside it, and what the two do together."""

import numpy as np
import pytest
from test_patching import SEVERAL, SINGLE, by_full_runs, columns

from builders import pairs, subject
from mediant.core import Pair, Prompt, Site, Span
from mediant.core.errors import OutOfRange
from mediant.interventions.firings import Firing
from mediant.measures.effects import Decomposition, Effect, cluster_labels, normalised_patch_score
from mediant.measures.intervals import estimate
from mediant.search import Patcher, decompose, patch
from mediant.tasks.encode import encode
from mediant.tasks.toys import plant

VALUES, BEFORE, SOURCE = np.array([-1.0, -2.0, 0.0]), np.array([2.0, 2.0, 2.0]), np.array([0.0, -2.0, -2.0])


def effect(n: int = 3, clusters: tuple[str, ...] = ()) -> Effect:
    fired = [Firing("swap a", 1, 3, 0.5), Firing("swap b", 1, 4, 0.5)]
    return Effect("label", VALUES[:n], BEFORE[:n], SOURCE[:n], ("a", "b", "c")[:n], clusters, fired)


def test_the_total_is_source_minus_base():
    assert effect().total.tolist() == [-2.0, -4.0, -4.0]


def test_the_normalised_effect_is_a_ratio_of_means():
    assert effect().normalised == pytest.approx(1.0 / (10 / 3))


def test_an_estimate_is_over_items_or_clusters():
    assert effect().estimate(seed=2) == estimate(VALUES, seed=2)
    assert effect(3, ("x", "x", "y")).estimate() == estimate(VALUES, clusters=["x", "x", "y"])
    with pytest.raises(OutOfRange, match="at least two pairs"):
        effect(1).estimate()


def test_an_effect_prints_its_mean_interval_number_share_and_tokens():
    low, high = estimate(VALUES).ci95
    assert str(effect()) == (
        f"label: -1.000 (95 % [{low:+.3f}, {high:+.3f}], n = 3; 30% of the total effect -3.333; 7 tokens written)"
    )
    assert str(effect(1)) == "label: -1.000 (one pair, no interval, n = 1; 50% of the total effect -2.000; 7 tokens written)"


def test_an_effect_prints_even_where_the_prompts_do_not_differ_in_total():
    toy = plant("single")
    same = [Pair(str(i), Prompt("a1 b1 ="), Prompt("a1 b0 ="), " yes", " no") for i in range(2)]
    assert "nan" not in str(patch(toy.subject, same, at=Site("head_z", 0, 0)))


def test_the_interaction_is_what_is_left_of_the_total():
    found = Decomposition(np.array([-3.0, 1.0]), np.array([-1.0, 1.0]), np.array([-0.5, 0.5]))
    assert found.interaction.tolist() == [-1.5, -0.5]


SITES = [[Site("head_z", 1, 2)], [Site("mlp_out", 0)], [Site("v", 1)], [Site("head_z", 0), Site("mlp_out", 2)]]


@pytest.mark.parametrize("sites", SITES, ids=str)
@pytest.mark.parametrize(("seed", "span", "several"), [(0, "all", False), (1, "S2", False), (2, "all", True)])
def test_the_four_effects_equal_their_definitions_by_full_runs(sites, seed, span, several):
    lm, items = subject(seed=seed), SEVERAL if several else SINGLE
    by = "logprob_diff" if several else "logit_diff"
    found = decompose(lm, items, at=sites, span=span, by=by)
    patcher = Patcher(lm, encode(lm, items), by=by)
    m_base, m_source = patcher.before, patcher.source
    at = [columns(pair, Span(span)) for pair in items]
    m_there = m_base + [by_full_runs(lm, pair, sites, where) for pair, where in zip(items, at, strict=True)]
    m_back = m_source + [by_full_runs(lm, pair, sites, where, "denoising") for pair, where in zip(items, at, strict=True)]
    assert np.allclose(found.total, m_source - m_base, atol=2e-5)
    assert np.allclose(found.indirect, m_there - m_base, atol=2e-5)
    assert np.allclose(found.direct, m_back - m_base, atol=2e-5)
    assert np.allclose(found.interaction, m_source - m_there - m_back + m_base, atol=5e-5)
    assert np.allclose(found.total, found.indirect + found.direct + found.interaction, atol=1e-12)
    assert np.abs(found.interaction).max() > 1e-3


def test_a_mediator_of_everything_leaves_no_direct_effect_and_none_leaves_no_indirect_one():
    lm = subject()
    whole, nothing = decompose(lm, pairs(), at=[Site("resid_post", 2)]), decompose(lm, pairs(), at=[])
    assert np.allclose(whole.indirect, whole.total, atol=1e-5)
    assert np.allclose(whole.direct, 0, atol=1e-5)
    assert nothing.indirect.tolist() == [0.0] * 4
    assert np.allclose(nothing.direct, nothing.total, atol=1e-5)
    assert np.abs(whole.total).max() > 0.1


def test_the_patch_score_is_nought_for_the_corrupted_and_one_for_the_clean_run():
    clean, corrupted = np.array([2.0, -1.0]), np.array([0.0, 3.0])
    assert normalised_patch_score(corrupted, corrupted, clean).tolist() == [0.0, 0.0]
    assert normalised_patch_score(clean, corrupted, clean).tolist() == [1.0, 1.0]
    assert normalised_patch_score(np.array([0.5, 5.0]), corrupted, clean).tolist() == [0.25, -0.5]


def test_items_of_one_template_stand_alone():
    assert cluster_labels(["a", "a"]) is None
    assert cluster_labels([]) is None
    assert cluster_labels(("a", "b", "a")) == ["a", "b", "a"]
