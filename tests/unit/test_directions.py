"""Planted directions must be found, nothing must be found where nothing is, and steering must be exact."""

import ast
import contextlib
import itertools
import runpy
import sys

import numpy as np
import pytest
import torch

import builders
from mediant.core import Direction, Prompt, Site
from mediant.core.errors import EditError, OutOfRange, RunError, SpanError, TaskError, UnknownName
from mediant.interventions import edit, project_out, run, steer
from mediant.search import directions
from mediant.search.directions import activations_of, linear_probe, mean_difference, sweep_layers
from mediant.search.export import export_steering
from mediant.search.linear_rules import between_means, fit_logistic, fit_mean_difference

ENTRY = Site("resid_pre", 0)
FILLERS = ["the", "a", "and", "to", "store", "park", "gave", "drink", "ball", "said"]


def named(words: list[str], n: int, *, seed: int) -> list[Prompt]:
    """Prompts `filler filler WORD filler`, all different, with the span `name` on the word."""
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(np.array(list(itertools.product(FILLERS, FILLERS, FILLERS))))[:n]
    return [
        builders.prompt(f"{a} {b} {words[i % len(words)]} {c}", name=words[i % len(words)]) for i, (a, b, c) in enumerate(drawn)
    ]


def embedding(lm, word: str) -> np.ndarray:
    return lm.model.model.embed_tokens.weight[builders.WORDS.index(word)].detach().double().numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


# Closed forms, on arrays.


def gaussians(n: int, gap: np.ndarray, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two isotropic unit Gaussians whose means differ by `gap`, away from the origin."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2 == 0
    return rng.standard_normal((n, len(gap))) + 3.0 + np.outer(y, gap), y


def normal_cdf(z: float) -> float:
    from math import erf, sqrt

    return (1 + erf(z / sqrt(2))) / 2


@pytest.mark.parametrize("fit", [fit_mean_difference, fit_logistic])
def test_between_isotropic_gaussians_the_rule_is_the_optimal_one(fit):
    gap = np.array([1.2, 0.0, -0.9, 0.0, 0.0, 0.4])
    rule = fit(*gaussians(40_000, gap))
    assert cosine(rule.vector, gap) > 0.999
    x, y = gaussians(40_000, gap, seed=1)
    assert (rule(x) == y).mean() == pytest.approx(normal_cdf(np.linalg.norm(gap) / 2), abs=0.006)
    assert rule.dose == pytest.approx(np.linalg.norm(gap), abs=0.03)


def test_the_mean_difference_cuts_half_way():
    x = np.array([[0.0, 1.0], [2.0, 1.0], [10.0, 1.0], [12.0, 1.0]])
    rule = fit_mean_difference(x, np.array([False, False, True, True]))
    assert rule.vector.tolist() == [10.0, 0.0]
    assert rule.threshold == 10.0 * 6.0
    assert rule.dose == 10.0


def newton(x: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
    """Class-balanced penalised logistic regression by Newton steps: weights, then intercept."""
    features = np.column_stack([x, np.ones(len(x))])
    share = np.where(y, len(y) / 2 / y.sum(), len(y) / 2 / (~y).sum())
    ridge = np.diag([l2] * x.shape[1] + [0.0])
    beta = np.zeros(features.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-features @ beta))
        gradient = features.T @ (share * (p - y)) + ridge @ beta
        beta = beta - np.linalg.solve(features.T @ (features * (share * p * (1 - p))[:, None]) + ridge, gradient)
    return beta


@pytest.mark.parametrize("l2", [0.1, 1.0, 30.0])
def test_the_probe_is_the_solution_that_newton_steps_find(l2):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((90, 4)) * [1.0, 5.0, 0.2, 1.0] + [0.0, 7.0, 0.0, -2.0]
    y = (x @ [1.0, 0.1, 2.0, 0.0] + rng.standard_normal(90)) > 1.2
    assert y.mean() < 0.45
    rule = fit_logistic(x, y, l2=l2)
    beta = newton((x - x.mean(0)) / x.std(0), y, l2)
    np.testing.assert_allclose(rule.vector, beta[:-1] / x.std(0), rtol=1e-5, atol=1e-7)
    assert rule.threshold == pytest.approx(rule.vector @ x.mean(0) - beta[-1], abs=1e-5)


def test_the_probe_does_not_depend_on_the_units_of_a_feature():
    x, y = gaussians(200, np.array([1.0, -1.0, 0.0]))
    scales = np.array([1e-3, 1.0, 1e4])
    np.testing.assert_allclose(fit_logistic(x * scales, y).vector * scales, fit_logistic(x, y).vector, rtol=1e-5, atol=1e-7)


def test_a_probe_of_separable_items_is_finite_and_right():
    x, y = np.array([[-1.0], [-2.0], [1.0], [2.0]]), np.array([False, False, True, True])
    rule = fit_logistic(x, y)
    assert np.isfinite(rule.vector).all()
    assert rule(x).tolist() == y.tolist()


@pytest.mark.parametrize("fit", [fit_mean_difference, fit_logistic])
def test_rounding_differences_are_no_direction(fit):
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2 == 0
    x = np.tile(rng.standard_normal(8), (40, 1)) + 1e-7 * y[:, None]
    rule = fit(x, y)
    assert not rule.vector.any()
    assert rule.dose == 0.0


@pytest.mark.parametrize("sign", [1.0, -2.0])
def test_a_given_direction_is_turned_and_cut_at_the_class_means(sign):
    x, y = np.array([[0.0, 9.0], [2.0, 0.0], [10.0, 4.0], [12.0, 1.0]]), np.array([False, False, True, True])
    rule = between_means(sign * np.array([1.0, 0.0]), x, y)
    assert rule.vector.tolist() == [abs(sign), 0.0]
    assert rule.threshold == abs(sign) * 6.0
    assert rule.dose == 10.0
    assert rule(x).tolist() == y.tolist()


# Activations.


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_activations_come_in_the_order_of_the_prompts(batch_size):
    lm = builders.subject("gpt2")
    texts = ["Mary gave the ball to Tom", "the key", "John said to Anna", "a ball", "When Tom went"]
    found = activations_of(lm, texts, [Site("resid_post", 1), Site("head_z", 2, 3)], batch_size=batch_size)
    for i, text in enumerate(texts):
        alone = run(lm, lm.encode(text), capture=[("resid_post.1", "last"), ("head_z.2.3", "last")]).captured
        for (site, _), activation in alone.items():
            np.testing.assert_allclose(found[site][i], activation.values[0].detach().numpy(), atol=1e-5)


def test_a_span_of_several_tokens_is_averaged():
    lm = builders.subject()
    found = activations_of(lm, ["the key", "Mary gave a"], [ENTRY], "all")[ENTRY]
    expected = [np.mean([embedding(lm, w) for w in text.split()], axis=0) for text in ("the key", "Mary gave a")]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_site_or_span_without_one_vector_per_prompt_is_refused():
    lm = builders.subject()
    with pytest.raises(OutOfRange, match=r"head_z\.1\.0"):
        activations_of(lm, ["the key"], [Site("head_z", 1)])
    with pytest.raises(SpanError, match="no token"):
        activations_of(lm, ["the key"], [ENTRY], "generated")


# Planted directions.


@pytest.mark.parametrize("find", [mean_difference, linear_probe])
def test_the_difference_of_two_words_is_found_perfectly_at_the_embedding(find):
    lm = builders.subject()
    found = find(lm, named(["Mary"], 24, seed=0), named(["John"], 24, seed=1), ENTRY, "name", name="Mary")
    assert found.accuracy.value == 1.0
    assert found.accuracy.ci95 == (1.0, 1.0)
    assert found.accuracy.n == 12
    # Only two different vectors exist here, so the half-way plane is known, and so is the standard dose for means.
    mary, john = embedding(lm, "Mary"), embedding(lm, "John")
    middle = found.direction.vector @ (mary + john) / 2
    assert found.threshold == pytest.approx(middle, abs=1e-4)
    assert found.direction.norm == pytest.approx(abs(found.direction.vector @ (mary - john)), rel=1e-5)
    if find is mean_difference:
        assert found.direction.norm == pytest.approx(np.linalg.norm(mary - john), rel=1e-5)
        np.testing.assert_allclose(found.direction.vector * found.direction.norm, mary - john, atol=1e-5)


@pytest.mark.parametrize("find", [mean_difference, linear_probe])
def test_a_direction_points_from_the_negatives_to_the_positives(find):
    lm = builders.subject()
    positives, negatives = named(["Mary", "Anna"], 24, seed=0), named(["John", "Tom"], 24, seed=1)
    there, back = find(lm, positives, negatives, ENTRY, "name"), find(lm, negatives, positives, ENTRY, "name")
    assert cosine(there.direction.vector, back.direction.vector) < -0.9
    projected = activations_of(lm, [*positives, *negatives], [ENTRY], "name")[ENTRY] @ there.direction.vector
    assert projected[:24].mean() > there.threshold > projected[24:].mean()


@pytest.mark.parametrize("find", [mean_difference, linear_probe])
def test_where_labels_are_random_accuracy_is_chance(find):
    lm = builders.subject()
    texts = named(["Mary", "John", "Tom", "Anna"], 160, seed=0)
    labels = np.random.default_rng(5).permutation(160) < 80
    positives = [t for t, positive in zip(texts, labels, strict=True) if positive]
    negatives = [t for t, positive in zip(texts, labels, strict=True) if not positive]
    found = find(lm, positives, negatives, Site("resid_post", 1), split=(0.5, 0.0, 0.5))
    low, high = found.accuracy.ci95
    assert low < 0.5 < high
    assert high - low < 0.35
    assert found.shuffled_control.ci95[0] < 0.5 < found.shuffled_control.ci95[1]


def test_shuffled_labels_give_chance_even_where_the_real_ones_are_perfect():
    lm = builders.subject()
    found = mean_difference(lm, named(["Mary"], 40, seed=0), named(["John"], 40, seed=1), ENTRY, "name")
    assert found.accuracy.value == 1.0
    low, high = found.shuffled_control.ci95
    assert low < 0.5 < high
    # The two words are two points, so true test labels would be called all right or all wrong, draw by draw.
    assert high - low < 0.25


def test_the_shuffled_control_fits_labels_that_say_nothing(monkeypatch):
    given = []

    def noted(x, y):
        given.append(y.tolist())
        return fit_mean_difference(x, y)

    monkeypatch.setattr(directions, "fit_mean_difference", noted)
    mean_difference(builders.subject(), named(["Mary"], 40, seed=0), named(["John"], 40, seed=1), ENTRY, "name")
    true, *shuffled = given
    assert len(shuffled) == directions.CONTROL_DRAWS
    assert {sum(labels) for labels in given} == {30}
    agreement = np.mean([np.mean(np.array(labels) == np.array(true)) for labels in shuffled])
    assert agreement == pytest.approx(0.5, abs=0.06)


def test_random_directions_do_worse_than_the_one_that_was_found():
    """One planted coordinate among 32: a random direction sees about 1 / sqrt(32) of the gap between the classes."""
    lm = builders.subject()
    found = mean_difference(lm, named(["Mary"], 60, seed=0), named(["John"], 60, seed=1), Site("resid_post", 2), "last")
    assert found.random_control.ci95[1] < found.accuracy.value
    assert found.random_control.ci95[0] > 0.4


def test_accuracy_is_of_items_that_were_not_fitted():
    """With more dimensions than items any labels can be fitted; only held-out items show that nothing is there."""
    lm = builders.subject()
    texts = named(["Mary", "John", "Tom", "Anna"], 60, seed=3)
    x = activations_of(lm, texts, [Site("resid_post", 1)])[Site("resid_post", 1)]
    y = np.arange(60) % 2 == 0
    fitted = fit_logistic(x[:24], y[:24], l2=1e-3)
    assert (fitted(x[:24]) == y[:24]).mean() == 1.0
    found = linear_probe(lm, texts[::2], texts[1::2], Site("resid_post", 1), l2=1e-3, split=(0.4, 0.0, 0.6))
    assert found.accuracy.value < 0.8
    assert found.accuracy.n == 36


def test_accuracy_weighs_both_classes_the_same():
    """With 30 positives and 6 negatives held out, the plain share would hide what happens to the negatives."""
    lm, site = builders.subject(), Site("resid_post", 0)
    positives, negatives, split = named(["Mary"], 60, seed=0), named(["John"], 12, seed=1), (0.5, 0.0, 0.5)
    found = mean_difference(lm, positives, negatives, site, "last", split=split)
    test = directions.labelled(lm, positives, negatives, "last", "", split, None, 0).test
    called = activations_of(lm, [*positives, *negatives], [site])[site] @ found.direction.vector > found.threshold
    shares = called[test[test < 60]].mean(), (~called[test[test >= 60]]).mean()
    assert len(test) == found.accuracy.n == 36
    assert shares[0] != shares[1]
    assert found.accuracy.value == pytest.approx(np.mean(shares))
    assert found.shuffled_control.value == pytest.approx(0.5, abs=0.15)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_split():
    lm = builders.subject()
    args = (lm, named(["Mary", "Anna"], 16, seed=0), named(["John", "Tom"], 16, seed=1), Site("resid_post", 2))
    first, again, other = (linear_probe(*args, seed=seed) for seed in (0, 0, 1))
    assert first.direction.vector.tobytes() == again.direction.vector.tobytes()
    assert (first.accuracy, first.random_control, first.shuffled_control) == (
        again.accuracy,
        again.random_control,
        again.shuffled_control,
    )
    assert first.direction.vector.tobytes() != other.direction.vector.tobytes()


def test_how_it_was_found_travels_with_the_direction(tmp_path):
    lm = builders.subject()
    found = linear_probe(lm, named(["Mary"], 16, seed=0), named(["John"], 16, seed=1), ENTRY, "name", name="Mary", l2=2.0)
    found.direction.save(tmp_path / "d.safetensors")
    meta = Direction.load(tmp_path / "d.safetensors").meta
    assert meta["method"] == "logistic regression, l2 = 2"
    assert (meta["subject"], meta["span"], meta["n_fit"], meta["n_test"], meta["seed"]) == ("tiny-llama", "name", "24", "8", "0")
    assert meta["accuracy"] == "1.000 [1.000, 1.000]"
    assert float(meta["threshold"]) == found.threshold
    assert "held-out accuracy 1.000" in str(found)
    assert "shuffled labels 0." in str(found)


# Splits.


def test_groups_stay_on_one_side_of_the_split():
    """Every group has its own word, and only the word tells: held-out groups then cannot be recognised."""
    lm = builders.subject()
    words = ["Mary", "John", "Tom", "Anna", "key", "near", "one", "two"]
    prompts = {word: named([word], 10, seed=i) for i, word in enumerate(words)}
    positives = [p for word in words[::2] for p in prompts[word]]
    negatives = [p for word in words[1::2] for p in prompts[word]]
    groups = [word for half in (words[::2], words[1::2]) for word in half for _ in range(10)]
    loose = mean_difference(lm, positives, negatives, ENTRY, "name")
    grouped = mean_difference(lm, positives, negatives, ENTRY, "name", groups=groups)
    assert loose.accuracy.value == 1.0
    assert grouped.accuracy.n == 20
    assert grouped.direction.meta["n_fit"] == "60"
    for seed in range(5):
        items = directions.labelled(lm, positives, negatives, "name", "", directions.SPLIT, groups, seed)
        parts = [{groups[i] for i in part} for part in (items.fit, items.validation, items.test)]
        assert [len(part) for part in parts] == [4, 2, 2]
        assert len(set.union(*parts)) == 8


def test_pairs_that_share_a_group_are_tested_together():
    lm = builders.subject()
    positives, negatives = named(["Mary"], 20, seed=0), named(["John"], 20, seed=0)
    found = mean_difference(lm, positives, negatives, ENTRY, "name", groups=[str(i % 20) for i in range(40)])
    assert (found.accuracy.value, found.accuracy.n) == (1.0, 10)
    assert found.accuracy.ci95 == (1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"positives": named(["Mary"], 1, seed=0)}, "too few items"),
        ({"negatives": []}, "too few items"),
        ({"split": (0.5, 0.5, 0.5)}, "sum to 1"),
        ({"split": (1.5, -0.5, 0.0)}, "sum to 1"),
        ({"split": (1.0, 0.0, 0.0)}, "test part got 0 positives"),
        ({"groups": ["a"]}, "16 prompts but 1 groups"),
        ({"negatives": named(["Mary"], 8, seed=0)}, "given twice"),
    ],
)
def test_items_that_cannot_be_split_are_refused(change, said):
    arguments = {"positives": named(["Mary"], 8, seed=0), "negatives": named(["John"], 8, seed=1)} | change
    with pytest.raises(TaskError, match=said):
        mean_difference(builders.subject(), site=ENTRY, span="name", **arguments)


def test_classes_that_cannot_differ_at_a_site_are_refused():
    lm = builders.subject()
    positives, negatives = ([f"{a} {b} {word} to" for a in FILLERS for b in FILLERS[:2]] for word in ("Mary", "John"))
    with pytest.raises(TaskError, match=r"do not differ at resid_pre\.0, span last"):
        mean_difference(lm, positives, negatives, ENTRY)
    assert mean_difference(lm, positives, negatives, Site("resid_post", 2)).accuracy.value > 0.5


# Choosing a layer.


@pytest.mark.parametrize("method", ["mean_difference", "linear_probe"])
def test_a_layer_is_chosen_on_validation_items_and_reported_on_others(method):
    lm = builders.subject()
    positives, negatives = ([f"{a} {b} {word} to" for a in FILLERS for b in FILLERS[:4]] for word in ("Mary", "John"))
    sites = [ENTRY, *(Site("resid_post", layer) for layer in range(3))]
    sweep = sweep_layers(lm, positives, negatives, sites, method=method)
    # The last token is the same word in all prompts, so before attention there is nothing to tell them apart.
    assert sweep.validation[0].value == 0.5
    assert max(e.value for e in sweep.validation[1:]) > 0.8
    values = [estimate.value for estimate in sweep.validation]
    chosen = sweep.best.direction.site
    assert chosen == sites[values.index(max(values))]
    assert [e.n for e in sweep.validation] == [20] * 4
    assert sweep.best.accuracy.n == 20
    find = {"mean_difference": mean_difference, "linear_probe": linear_probe}[method]
    alone = find(lm, positives, negatives, chosen)
    np.testing.assert_allclose(alone.direction.vector, sweep.best.direction.vector, atol=1e-5)
    assert alone.accuracy == sweep.best.accuracy
    assert str(chosen) in str(sweep)


def test_test_items_have_no_say_in_the_choice(monkeypatch):
    """Whatever the test items hold, the sweep's validation accuracies and its choice stay the same."""
    lm = builders.subject()
    positives, negatives = named(["Mary", "Anna"], 40, seed=0), named(["John", "Tom"], 40, seed=1)
    honest = sweep_layers(lm, positives, negatives)
    test_items = directions.labelled(lm, positives, negatives, "last", "", directions.SPLIT, None, 0).test
    true = directions.activations_of

    def spoiled(*args, **kwargs):
        found = true(*args, **kwargs)
        for x in found.values():
            x[test_items] = -x[test_items] + 100.0
        return found

    monkeypatch.setattr(directions, "activations_of", spoiled)
    after = sweep_layers(lm, positives, negatives)
    assert [e.value for e in after.validation] == [e.value for e in honest.validation]
    assert after.best.direction.vector.tobytes() == honest.best.direction.vector.tobytes()
    assert after.best.accuracy.value != honest.best.accuracy.value


def test_a_sweep_needs_items_to_choose_on_and_a_known_method():
    lm = builders.subject()
    positives, negatives = named(["Mary"], 12, seed=0), named(["John"], 12, seed=1)
    with pytest.raises(TaskError, match="validation items"):
        sweep_layers(lm, positives, negatives, split=(0.5, 0.0, 0.5))
    with pytest.raises(TaskError, match="validation items"):
        sweep_layers(lm, positives, negatives, [])
    with pytest.raises(UnknownName, match="did you mean 'linear_probe'"):
        sweep_layers(lm, positives, negatives, method="linear_prob")


def test_a_sweep_reads_the_stream_after_every_layer_unless_told_otherwise():
    lm = builders.subject()
    sweep = sweep_layers(lm, named(["Mary"], 12, seed=0), named(["John"], 12, seed=1), span="name")
    assert [str(site) for site in sweep.sites] == ["resid_post.0", "resid_post.1", "resid_post.2"]


# Steering.


def direction_at(lm, site: Site, *, seed: int = 0) -> Direction:
    width = {
        "head_z": lm.shape.d_head,
        "q": lm.shape.d_head,
        "k": lm.shape.d_head,
        "v": lm.shape.d_head,
        "mlp_post": lm.shape.d_mlp,
    }
    vector = np.random.default_rng(seed).standard_normal(width.get(site.kind, lm.shape.d_model))
    return Direction.from_vector(3 * vector, site, name="random")


@pytest.mark.parametrize("family", list(builders.BUILDERS))
def test_a_dose_and_its_opposite_return_the_untouched_model(family):
    lm = builders.subject(family)
    batch, direction = lm.encode(["Mary gave a ball to", "the key"]), direction_at(lm, Site("resid_post", 1))
    before, steered = run(lm, batch).logits, run(lm, batch, [steer(direction, doses=2)]).logits
    back = run(lm, batch, [steer(direction, doses=2), steer(direction, doses=-2)]).logits
    assert (steered - before).abs().max() > 0.1
    torch.testing.assert_close(back, before, atol=1e-4, rtol=1e-4)


def test_a_found_direction_turns_one_word_into_the_other():
    """At the embedding, one dose takes John to Mary exactly, and removing it leaves the half they share."""
    lm = builders.subject()
    found = mean_difference(lm, named(["Mary"], 24, seed=0), named(["John"], 24, seed=1), ENTRY, "name").direction
    john, mary = ([builders.prompt(f"{name} said the", name=name)] for name in ("John", "Mary"))
    turned = run(lm, lm.encode(john), [steer(found, "name", doses=1)]).logits
    torch.testing.assert_close(turned, run(lm, lm.encode(mary)).logits, atol=1e-4, rtol=1e-4)
    without = [run(lm, lm.encode(p), [project_out(ENTRY, "name", found)]).logits for p in (john, mary)]
    torch.testing.assert_close(without[0], without[1], atol=1e-4, rtol=1e-4)


# Export.


@contextlib.contextmanager
def attached(folder, model, times: float = 1.0):
    """The exported script's own hook, on the bare model."""
    hook = runpy.run_path(str(folder / "apply.py"))["attach"](model, times)
    try:
        yield
    finally:
        hook.remove()


def bare(lm, batch) -> torch.Tensor:
    with torch.no_grad():
        return lm.model(batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids).logits[batch.mask]


EXPORTED = [
    "embed",
    "resid_pre.0",
    "resid_post.0",
    "resid_post.2",
    "final_resid",
    "attn_in.1",
    "attn_out.1",
    "mlp_in.1",
    "mlp_post.1",
]
EXPORTED += ["mlp_out.2", "head_z.1.2", "head_z.1.0", "q.1.3", "k.1.1", "v.0.1", "v.1.0"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("site", EXPORTED)
def test_the_exported_script_steers_the_bare_model_bit_for_bit_alike(family, site, tmp_path):
    lm = builders.subject(family)
    batch, direction = lm.encode(["When Mary and John went to", "the key"]), direction_at(lm, Site.parse(site))
    before = bare(lm, batch)
    with edit(lm, steer(direction, doses=1.7)):
        expected = bare(lm, batch)
    folder = export_steering(lm, direction, tmp_path / "steer", doses=1.7)
    with attached(folder, lm.model):
        assert torch.equal(bare(lm, batch), expected)
    assert not torch.equal(expected, before)
    assert torch.equal(bare(lm, batch), before)


def test_the_exported_hook_leaves_the_callers_tensor_alone(tmp_path):
    lm = builders.subject()
    hidden = torch.ones(1, 2, 32)
    for site, module in (("final_resid", lm.model.model.norm), ("attn_out.1", lm.model.model.layers[1].self_attn)):
        with attached(export_steering(lm, direction_at(lm, Site.parse(site)), tmp_path / site), lm.model):
            (hook,) = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            if site == "final_resid":
                (moved,), _ = hook(module, (hidden,), {})
            else:
                moved, rest = hook(module, (), (hidden, "weights"))
                assert rest == "weights"
        assert not torch.equal(moved, hidden)
        assert torch.equal(hidden, torch.ones(1, 2, 32))


@pytest.mark.parametrize("site", ["resid_mid.1", "head_result.1.2"])
def test_derived_sites_are_exported_to_rounding(site, tmp_path):
    lm = builders.subject()
    batch, direction = lm.encode("When Mary and John went to"), direction_at(lm, Site.parse(site))
    with edit(lm, steer(direction)):
        expected = bare(lm, batch)
    with attached(export_steering(lm, direction, tmp_path), lm.model):
        torch.testing.assert_close(bare(lm, batch), expected, atol=1e-4, rtol=1e-4)


def test_half_precision_is_steered_alike(tmp_path):
    lm = builders.subject("llama", dtype=torch.bfloat16)
    batch, direction = lm.encode("When Mary and John went to"), direction_at(lm, Site("resid_post", 0))
    with edit(lm, steer(direction, doses=0.3)):
        expected = bare(lm, batch)
    with attached(export_steering(lm, direction, tmp_path, doses=0.3), lm.model):
        assert torch.equal(bare(lm, batch), expected)


def test_exported_steering_reaches_generated_tokens_through_the_cache(tmp_path):
    lm = builders.subject("gpt2")
    batch, direction = lm.encode("When Mary and John went to"), direction_at(lm, Site("resid_post", 1))
    with edit(lm, steer(direction, doses=3)):
        expected = lm.generate(batch, max_new_tokens=8, stop_at_eos=False)
    with attached(export_steering(lm, direction, tmp_path), lm.model, 3.0):
        assert torch.equal(lm.generate(batch, max_new_tokens=8, stop_at_eos=False), expected)
    assert not torch.equal(lm.generate(batch, max_new_tokens=8, stop_at_eos=False), expected)


def test_the_script_needs_nothing_of_this_package(tmp_path):
    lm = builders.subject()
    text = (export_steering(lm, direction_at(lm, ENTRY), tmp_path) / "apply.py").read_text()
    imported = {n.module if isinstance(n, ast.ImportFrom) else a.name for n in ast.walk(ast.parse(text))
                if isinstance(n, ast.Import | ast.ImportFrom) for a in n.names}  # fmt: skip
    assert imported == {"json", "sys", "pathlib", "safetensors", "transformers"}


def test_the_script_runs_from_the_command_line(tmp_path, monkeypatch, capsys):
    lm = builders.subject()
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    folder = export_steering(lm, direction_at(lm, Site("resid_post", 2)), tmp_path / "steer", doses=20)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["apply.py", str(tmp_path / "model"), "Mary gave the", "2"])
    runpy.run_path(str(folder / "apply.py"), run_name="__main__")
    plain, steered = capsys.readouterr().out.splitlines()
    assert plain.startswith("[0] Mary gave the")
    assert steered.startswith("[2] Mary gave the")
    assert plain[3:] != steered[3:]


def test_the_exported_file_is_still_a_direction(tmp_path):
    lm = builders.subject("gpt2")
    direction = direction_at(lm, Site("resid_post", 2))
    folder = export_steering(lm, direction, tmp_path / "a" / "b", doses=2)
    again = Direction.load(folder / "direction.safetensors")
    assert (again.site, again.norm, again.name) == (direction.site, direction.norm, "random")
    np.testing.assert_array_equal(again.vector, direction.vector)
    assert (again.meta["module"], again.meta["side"], again.meta["model"]) == ("transformer.ln_f", "input", "tiny-gpt2")
    readme = (folder / "README.txt").read_text()
    assert "input of module transformer.ln_f  (site resid_post.2)" in readme
    assert "2 dose(s)" in readme
    assert sorted(p.name for p in folder.iterdir()) == ["README.txt", "apply.py", "direction.safetensors"]


def test_the_readme_says_how_the_direction_was_found(tmp_path):
    lm = builders.subject()
    found = mean_difference(lm, named(["Mary"], 16, seed=0), named(["John"], 16, seed=1), ENTRY, "name", name="Mary")
    readme = (export_steering(lm, found.direction, tmp_path) / "README.txt").read_text()
    assert "method     mean difference" in readme
    assert "accuracy   1.000 [1.000, 1.000]" in readme


def test_a_direction_that_does_not_fit_is_not_exported(tmp_path):
    lm = builders.subject()
    with pytest.raises(EditError, match=r"32 wide, but the direction has shape \(8,\)"):
        export_steering(lm, Direction.from_vector(np.ones(8), ENTRY), tmp_path)
    with pytest.raises(EditError, match=r"head_z\.1\.0"):
        export_steering(lm, Direction.from_vector(np.ones(32), Site("head_z", 1)), tmp_path)
    with pytest.raises(OutOfRange, match="layers 0 to 2"):
        export_steering(lm, Direction.from_vector(np.ones(32), Site("resid_post", 9)), tmp_path)
    (tmp_path / "taken").write_text("")
    with pytest.raises(RunError, match="cannot write"):
        export_steering(lm, direction_at(lm, ENTRY), tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
