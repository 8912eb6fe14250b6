"""The activation-patching study: fair controls, tasks that are done, measures that are what they say."""

import contextlib
import json
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import builders
from mediant.core.errors import TaskNotDone
from mediant.core.pair import Pair, Prompt
from mediant.core.ranking import Ranking, Scored
from mediant.core.result import Measure
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import run
from mediant.measures.behaviour import refuse_unless_done
from mediant.studies.activation_patching import method
from mediant.studies.activation_patching.config import Config
from mediant.studies.activation_patching.measures import CONTROLS, DEFINITIONS, ENOUGH, Measuring, verdict
from mediant.subject import Subject

# Head sets and their controls.


def ranked(subject: Subject, order: Sequence[tuple[int, int]]) -> Ranking:
    """A ranking whose first heads are these (layer, head), in this order."""
    first = [Site("head_z", layer, head) for layer, head in order]
    rest = [site for site in subject.heads() if site not in first]
    return Ranking("head", [Scored(str(site), float(99 - i)) for i, site in enumerate([*first, *rest])])


TOP = [(0, 1), (0, 3), (2, 2)]


def sets_of(top: Sequence[tuple[int, int]] = TOP, draws: int = 40, seed: int = 0) -> method.HeadSets:
    subject = builders.subject()
    return method.head_sets(subject, ranked(subject, top), k=len(top), draws=draws, seed=seed)


def test_the_top_heads_are_the_first_of_the_ranking_and_every_head_is_every_head():
    sets = sets_of()
    assert [(site.layer, site.head) for site in sets.top] == TOP
    assert sorted(sets.every) == [Site("head_z", layer, head) for layer in range(3) for head in range(4)]


def test_controls_have_as_many_heads_and_none_of_the_top_ones():
    sets = sets_of()
    assert (len(sets.random), len(sets.layer_matched)) == (40, 40)
    for chosen in (*sets.random, *sets.layer_matched):
        assert len(set(chosen)) == len(chosen) == 3
        assert set(chosen).isdisjoint(sets.top)
        assert set(chosen) <= set(sets.every)


def test_layer_matched_controls_have_as_many_heads_in_each_layer():
    for chosen in sets_of().layer_matched:
        assert Counter(site.layer for site in chosen) == {0: 2, 2: 1}


def test_random_controls_reach_every_other_head_about_equally():
    drawn = Counter(site for chosen in sets_of(draws=900).random for site in chosen)
    assert len(drawn) == 9
    # Each of 9 heads is drawn with probability 1/3: mean 300, standard deviation 14.
    assert 240 < min(drawn.values()) < max(drawn.values()) < 360


def test_random_controls_are_not_tied_to_the_layers_of_the_top_heads():
    assert len({tuple(sorted(Counter(site.layer for site in chosen).items())) for chosen in sets_of().random}) > 3


def test_controls_are_drawn_from_the_seed():
    assert sets_of(seed=1) == sets_of(seed=1)
    assert sets_of(seed=1).random != sets_of(seed=2).random
    assert sets_of(seed=1).layer_matched != sets_of(seed=2).layer_matched


def test_fewer_draws_keep_the_sets_and_their_order():
    sets = sets_of(draws=5)
    few = sets.fewer(2)
    assert (few.top, few.every) == (sets.top, sets.every)
    assert (few.random, few.layer_matched) == (sets.random[:2], sets.layer_matched[:2])


def test_there_are_as_many_control_draws_as_the_definitions_say():
    with contextlib.suppress(ValidationError):  # refusing such settings would do as well
        config = Config(random_draws=2, control_draws=3)
        assert len(sets_of(draws=config.random_draws).fewer(config.control_draws).layer_matched) == config.control_draws


def test_where_a_layer_has_too_few_others_all_of_them_are_taken():
    for chosen in sets_of([(1, 0), (1, 1), (1, 2), (2, 0)]).layer_matched:
        assert Counter(site.layer for site in chosen) == {1: 1, 2: 1}
        assert Site("head_z", 1, 3) in chosen


# Whether the task is done.


def refuse(preferred: Sequence[float], total: Sequence[float]) -> None:
    refuse_unless_done(np.asarray(preferred), np.asarray(total), task="verbs", subject="tiny")


def answers(right: int, n: int) -> list[float]:
    return [1.0] * right + [0.0] * (n - right)


@pytest.mark.parametrize(("right", "n"), [(17, 25), (12, 25), (0, 25), (58, 100), (50, 100), (8, 10), (1, 2), (3, 4)])
def test_a_task_done_about_as_often_as_chance_is_refused(right: int, n: int):
    with pytest.raises(TaskNotDone, match=f"tiny prefers the answer in {right / n:.0%} of {n} pairs of 'verbs', no better"):
        refuse(answers(right, n), [-1.0] * n)


@pytest.mark.parametrize(("right", "n"), [(18, 25), (25, 25), (59, 100), (9, 10), (2, 2), (4, 4)])
def test_a_task_done_more_often_than_chance_is_taken(right: int, n: int):
    refuse(answers(right, n), [-1.0] * n)


def test_counterfactuals_that_change_nothing_on_average_are_refused():
    with pytest.raises(TaskNotDone, match=r"hardly change tiny's answer on 'verbs': mean total effect \+0.000, spread 1.000"):
        refuse(answers(10, 10), [1.0, -1.0] * 5)
    with pytest.raises(TaskNotDone, match="hardly change"):
        refuse(answers(10, 10), [1.0, -0.7] * 5)
    refuse(answers(10, 10), [1.0, -0.6] * 5)


def test_counterfactuals_that_change_nothing_at_all_are_refused():
    with pytest.raises(TaskNotDone, match="hardly change"):
        refuse(answers(10, 10), [0.0] * 10)


# What is measured.


def measured(**effects: float) -> dict[str, Measure]:
    values = {"top_heads_effect": -5.0, "layer_matched_heads_effect": -1.0} | effects
    return {name: Measure(value=v, n=9, ci95=(v, v), definition="d", control=None, reason=None) for name, v in values.items()}


def test_the_verdict_says_when_the_control_is_passed():
    assert verdict(measured()) == (
        "Control: the top heads' joint effect is -5.00, that of layer-matched other heads -1.00, 5.0 times smaller."
    )
    assert "25.0 times smaller" in verdict(measured(layer_matched_heads_effect=0.2))


def test_the_verdict_says_when_the_control_fails_and_what_that_means():
    assert ENOUGH == 5.0
    text = verdict(measured(layer_matched_heads_effect=-1.01))
    assert text.startswith(
        "Control failed: the top heads' joint effect is -5.00, that of layer-matched other heads -1.01, only 5.0"
    )
    assert "other heads of the same layers carry a good part of it" in text
    assert verdict(measured(top_heads_effect=0.0)).startswith("Control failed")


def test_a_control_without_heads_is_not_a_passed_control():
    sets = sets_of([(1, 0), (1, 1), (1, 2), (1, 3)])
    ready = method.patcher(builders.subject(), builders.pairs(), "logit_diff")
    found = method.confirm(ready, sets)
    text = verdict(measured(top_heads_effect=-5.0, layer_matched_heads_effect=float(np.mean(found["layer_matched"]))))
    assert not text.startswith("Control: ")


N = 12


def all_measures(heldout: bool = True) -> dict[str, Measure]:
    """From per-pair numbers of which every mean and share is known."""
    pair = Pair("p", Prompt("a"), Prompt("b"), " x", " y", "t")
    data = SimpleNamespace(
        confirm=(pair,) * N, heldout=(pair,) * 4, metric="logit_diff", heldout_reason="" if heldout else "there is no other"
    )
    rising = np.arange(N, dtype=float)
    confirmed = {
        "preferred": np.array([1.0] * 9 + [0.0] * 3), "greedy": np.array([1.0] * 6 + [0.0] * 6),
        "total": np.full(N, -4.0) - rising,
        "effects": {
            "top": -np.array([rising + 1]), "random": np.array([np.full(N, -0.5), np.full(N, -1.5)]),
            "layer_matched": np.array([np.full(N, 0.25), np.full(N, -1.25)]), "all": np.full((1, N), -9.0),
            "strongest": np.full((1, N), -0.75), "each": np.full((2, N), -0.75),
        },
        "restored": {
            "total": np.full((1, N), 8.0), "top": np.full((1, N), 6.0), "layer_matched": np.array([[1.0] * N, [3.0] * N])
        },
    }  # fmt: skip
    other = {
        "preferred": np.array([1.0, 1.0, 1.0, 0.0]), "total": np.full(4, -10.0),
        "effects": {"top": np.full((1, 4), -7.0), "layer_matched": np.array([[-1.0] * 4, [-2.0] * 4])},
    }  # fmt: skip
    moved = np.array([[0.25, 0.75], [0.0, 0.5], [0.5, 1.0]])
    config = Config(top_k=3, random_draws=2, control_draws=2)
    return Measuring(config, data).all(confirmed, other if heldout else {}, moved)  # type: ignore[arg-type]


def test_every_measure_is_the_mean_or_share_it_is_defined_as():
    found = all_measures()
    assert {name: m.value for name, m in found.items()} == pytest.approx({
        "accuracy": 0.75, "argmax_accuracy": 0.5, "total_effect": -9.5, "top_heads_effect": -6.5, "random_heads_effect": -1.0,
        "layer_matched_heads_effect": -0.5, "all_heads_effect": -9.0, "strongest_head_effect": -0.75,
        "top_heads_share": 6.5 / 9.5, "top_heads_share_layer_matched": 0.5 / 9.5,
        "sufficiency_top10": 0.75, "sufficiency_layer_matched": 0.25, "generality_heldout_template": 0.7,
        "generality_layer_matched": 0.15, "accuracy_heldout_template": 0.75, "selectivity_kl": 0.5,
        "selectivity_kl_layer_matched": 0.5,
    })  # fmt: skip
    assert {name: m.n for name, m in found.items() if m.n != N} == {
        "generality_heldout_template": 4, "generality_layer_matched": 4, "accuracy_heldout_template": 4, "selectivity_kl": 2,
        "selectivity_kl_layer_matched": 2,
    }  # fmt: skip
    for m in found.values():
        assert m.ci95 is not None
        assert m.ci95[0] <= m.value <= m.ci95[1]


def test_every_definition_names_the_settings_it_depends_on_and_no_blank_is_left():
    found = all_measures()
    assert set(found) == set(DEFINITIONS)
    assert [name for name, m in found.items() if "{" in m.definition or "}" in m.definition] == []
    assert "the top 3 heads together" in found["top_heads_effect"].definition
    assert "logit_diff" in found["total_effect"].definition
    assert "mean of 2 draws" in found["random_heads_effect"].definition
    assert {name: m.control for name, m in found.items() if m.control} == CONTROLS


def test_without_held_out_pairs_there_is_no_value_but_a_reason():
    found = all_measures(heldout=False)
    missing = found["generality_heldout_template"]
    assert (missing.value, missing.n, missing.reason) == (None, 0, "there is no other")
    assert {"generality_layer_matched", "accuracy_heldout_template"}.isdisjoint(found)


# The steps of the method.


def test_attention_of_a_head_is_what_the_model_itself_reports():
    lm = builders.subject("llama", attention="eager")
    ready = method.patcher(lm, builders.pairs(), "logit_diff")
    heads = [Site("head_z", 1, 3), Site("head_z", 0, 2)]
    found = method.attention_of(ready, heads)
    for row, pair in enumerate(builders.pairs()):
        with torch.no_grad():
            ids = torch.tensor([lm.tokenize(pair.clean).ids])
            every = lm.model(ids, output_attentions=True).attentions
        for site in heads:
            assert found[str(site)][row] == pytest.approx(every[site.layer][0, site.head, -1].tolist(), abs=1e-6)


def test_text_is_disturbed_by_no_head_not_at_all_and_by_all_heads_most():
    lm = builders.subject()
    texts = ["When Mary and John went to the store", "the key near the park is", "Tom said John gave a ball"]
    kls = np.array(method.disturbed(lm, texts, [[], [Site("head_z", 0, 1)], lm.heads()]))
    assert kls.shape == (3, 3)
    assert kls[0] == pytest.approx(np.zeros(3), abs=1e-9)
    assert (kls[1] > 0).all()
    assert kls[2].mean() > kls[1].mean()


def test_a_baseline_is_what_two_plain_forwards_give():
    lm, pairs = builders.subject(), builders.pairs()
    found = method.baseline(method.patcher(lm, pairs, "logit_diff"))
    for i, pair in enumerate(pairs):
        right, wrong = (lm.tokenizer.convert_tokens_to_ids(text.strip()) for text in (pair.answer, pair.counterfactual_answer))
        clean, other = (run(lm, lm.encode(prompt)).last[0].detach() for prompt in (pair.clean, pair.counterfactual))
        before = float(clean[right] - clean[wrong])
        assert found["before"][i] == pytest.approx(before, abs=1e-5)
        assert found["total"][i] == pytest.approx(float(other[right] - other[wrong]) - before, abs=1e-5)
        assert found["preferred"][i] == float(before > 0)
        assert found["greedy"][i] == float(int(clean.argmax()) == right)


def test_every_layer_gives_an_effect_for_every_head_column_and_pair():
    lm, pairs = builders.subject(), builders.pairs()
    ready = method.patcher(lm, pairs, "logit_diff")
    assert np.array(method.head_effects(ready, 1)).shape == (4, 4)
    columns = len(lm.tokenize(pairs[0].clean).ids)
    found = np.array([method.effect_map(ready, Span.index(i)) for i in range(columns)])
    assert found.shape == (columns, 3, 3, 4)
    assert found[9, 1, 2] == pytest.approx(ready.joint([Site("attn_out", 2)], Span.index(9)), abs=1e-5)
    # The last layer's residual stream at the last token is all there is; before it, nothing is read any more.
    assert found[-1, 0, 2] == pytest.approx(ready.total, abs=1e-5)
    assert np.abs(found[:-1, 0, 2]).max() == 0


def test_per_pair_tables_of_batches_are_joined_along_the_pairs():
    assert method.per_pair([[[1, 2], [3, 4]], [[5], [6]]]).tolist() == [[1, 2, 5], [3, 4, 6]]


def test_records_survive_json_unchanged():
    """Records are stored as JSON, and a resumed run computes with what was stored."""
    ready = method.patcher(builders.subject(), builders.pairs(), "logit_diff")
    record = method.baseline(ready) | {"effects": method.confirm(ready, sets_of(draws=2))}
    assert json.loads(json.dumps(record)) == record
