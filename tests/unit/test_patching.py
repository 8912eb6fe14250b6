"""Patching in folded, replayed batches gives what full forwards of one prompt at a time give."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import WORDS, pairs, subject
from mediant.core import Pair, Prompt, Site, Span
from mediant.core.errors import EditError, MediantError, OutOfRange, TaskError, UnknownName
from mediant.interventions import Activation, run
from mediant.interventions.edits import swap_at
from mediant.measures.intervals import estimate
from mediant.search import Patcher, neuron_effects, patch
from mediant.subject import Subject
from mediant.tasks.encode import encode

Array = np.ndarray
EVERY = Span("all")
POST = [Site("resid_post", layer) for layer in range(3)]
SITES = [
    Site.parse(name)
    for name in [
        "resid_pre.1",
        "resid_mid.1",
        "attn_in.1",
        "attn_out.1",
        "mlp_in.1",
        "mlp_post.1",
        "mlp_out.1",
        "q.1",
        "k.1",
        "v.1",
        "head_z.1",
        "resid_post.2",
        "final_resid",
        "head_z.0.3",
        "head_z.2.0",
        "head_result.1.2",
        "head_result.2",
        "q.1.3",
        "k.0.1",
        "v.1.0",
        "mlp_out.0",
        "resid_pre.0",
        "resid_post.0",
    ]
]


def shifted(pair: Pair, words: str = "near the park , ") -> Pair:
    """The same pair behind some more words."""

    def moved(prompt: Prompt) -> Prompt:
        return Prompt(words + prompt.text, {n: (a + len(words), b + len(words)) for n, (a, b) in prompt.spans.items()})

    return replace(pair, id=f"{pair.id}-shifted", clean=moved(pair.clean), counterfactual=moved(pair.counterfactual))


def asking(pair: Pair, answer: str, other: str) -> Pair:
    return replace(pair, answer=answer, counterfactual_answer=other)


SINGLE = [pairs()[0], shifted(pairs()[1]), pairs()[2]]
SEVERAL = [asking(pairs()[0], " Mary and", " Tom"), shifted(pairs()[1]), asking(pairs()[2], " a key", " the park and")]


def columns(pair: Pair, span: Span) -> list[int]:
    """Places of a span among a prompt's words."""
    words = pair.clean.text.split()
    if span.name in pair.clean.spans:
        start, stop = pair.clean.spans[span.name]
        return list(range(len(pair.clean.text[:start].split()), len(pair.clean.text[:stop].split())))
    if span.name == "last":
        return [len(words) - 1]
    return list(range(len(words)))[span.start : span.stop]


@cache
@torch.no_grad()
def value(lm: Subject, text: str, site: Site) -> torch.Tensor:
    """What a site holds at every word of one prompt."""
    return run(lm, lm.encode(text), capture=[(site, EVERY)]).captured[site, EVERY].values


@torch.no_grad()
def answer_scores(lm: Subject, text: str, answers: Sequence[str], new: dict[Site, torch.Tensor], at: list[int]) -> list[float]:
    """Log-probability of answers after one prompt alone, in full forwards with new values at some columns."""
    edits = [
        swap_at(s, EVERY, Activation(v[at], torch.zeros(len(at), dtype=torch.long), torch.tensor(at))) for s, v in new.items()
    ]
    starts = {answer: " ".join([text, *answer.split()[:-1]]) for answer in answers}
    most = max(len(answer.split()) for answer in answers)
    logp = {start: run(lm, lm.encode(start), edits, keep=most).logits[0].double().log_softmax(-1) for start in {*starts.values()}}
    return [
        sum(float(row[WORDS.index(word)]) for row, word in zip(logp[starts[a]][-len(a.split()) :], a.split(), strict=True))
        for a in answers
    ]


@cache
def untouched(lm: Subject, text: str, answer: str, other: str) -> float:
    """log p(answer) - log p(counterfactual answer) after one prompt alone."""
    ours, theirs = answer_scores(lm, text, [answer, other], {}, [])
    return ours - theirs


def by_full_runs(
    lm: Subject, pair: Pair, sites: Sequence[Site], at: list[int], direction: str = "noising", neuron: int | None = None
) -> float:
    """Change of log p(answer) - log p(counterfactual answer) when sites take their values from the other prompt."""
    texts = [pair.clean.text, pair.counterfactual.text]
    base, source = texts if direction == "noising" else texts[::-1]
    new = {site: value(lm, source, site) for site in sites}
    if neuron is not None:
        others = torch.arange(lm.shape.d_mlp) != neuron
        new = {site: torch.where(others, value(lm, base, site), found) for site, found in new.items()}
    ours, theirs = answer_scores(lm, base, [pair.answer, pair.counterfactual_answer], new, at)
    return ours - theirs - untouched(lm, base, pair.answer, pair.counterfactual_answer)


@cache
def ready(family: str = "llama", several: bool = False, direction: str = "noising") -> Patcher:
    lm = subject(family)
    return Patcher(
        lm, encode(lm, SEVERAL if several else SINGLE, direction=direction), by="logprob_diff" if several else "logit_diff"
    )


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("several", [False, True], ids=["single", "several"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_grid_equals_full_runs_of_one_site_span_and_prompt_at_a_time(family, several, direction):
    lm, items = subject(family), SEVERAL if several else SINGLE
    spans = [Span("S2"), Span.slice(-4)] if direction == "noising" else [EVERY]
    sites = SITES if direction == "noising" else SITES[::3]
    found = ready(family, several, direction).grid(sites, spans)
    assert found.shape == (len(sites), len(spans), 3)
    expected = np.array(
        [[[by_full_runs(lm, pair, [site], columns(pair, span), direction) for pair in items] for span in spans] for site in sites]
    )
    assert np.abs(found - expected).max() < 2e-5
    assert (np.abs(expected).max(axis=(1, 2)) > 1e-3).all()


@pytest.mark.parametrize("several", [False, True], ids=["single", "several"])
def test_sites_together_equal_full_runs_with_all_of_them_swapped(several):
    lm, items = subject(), SEVERAL if several else SINGLE
    sites = [Site("head_z", 0, 1), Site("head_z", 0, 2), Site("mlp_out", 1), Site("head_z", 2)]
    for span in (Span("S2"), EVERY):
        expected = [by_full_runs(lm, pair, sites, columns(pair, span)) for pair in items]
        assert np.allclose(ready("llama", several).joint(sites, span), expected, atol=2e-5)
    assert not np.allclose(expected, ready("llama", several).grid(sites, [EVERY])[:, 0].sum(0), atol=0.01)


def test_no_sites_together_change_nothing():
    assert ready().joint([]).tolist() == [0.0, 0.0, 0.0]
    assert ready("llama", True).joint([], "S2").tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("several", [False, True], ids=["single", "several"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_before_and_source_are_the_two_untouched_runs(several, direction):
    lm, items = subject(), SEVERAL if several else SINGLE
    patcher = ready("llama", several, direction)
    for found, noised in ((patcher.before, "noising"), (patcher.source, "denoising")):
        texts = [pair.clean.text if noised == direction else pair.counterfactual.text for pair in items]
        expected = [untouched(lm, text, pair.answer, pair.counterfactual_answer) for text, pair in zip(texts, items, strict=True)]
        assert np.allclose(found, expected, atol=1e-5)
    assert np.array_equal(patcher.total, patcher.source - patcher.before)
    assert torch.equal(patcher.outcome.kept, patcher.base.logits)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_swapping_everything_gives_the_other_run_in_both_directions(family):
    there, back = ready(family), ready(family, False, "denoising")
    assert np.abs(there.total).max() > 0.1
    for site in (Site("resid_post", 2), Site("final_resid"), Site("resid_pre", 0)):
        assert np.allclose(there.joint([site]), there.total, atol=1e-5)
        assert np.allclose(back.joint([site]), -there.total, atol=1e-5)
    assert np.allclose([there.before, there.source], [back.source, back.before], atol=1e-5)


def test_with_longer_answers_the_whole_prompt_from_the_first_layer_on_gives_the_other_run():
    for direction in ("noising", "denoising"):
        patcher = ready("llama", True, direction)
        assert np.allclose(patcher.joint([Site("resid_pre", 0)]), patcher.total, atol=1e-5)
        # The answer's own tokens are no part of the prompt and keep their values.
        assert np.abs(patcher.joint([Site("resid_post", 2)]) - patcher.total).max() > 0.01


def test_pairs_that_differ_later_than_others_keep_their_own_first_difference():
    late = Pair(
        "late", Prompt("Tom and Anna said John gave a key to"), Prompt("Tom and Anna said John gave a key ,"), " Anna", " Tom"
    )
    early = Pair(
        "early", Prompt("Tom and Anna said John gave a key to"), Prompt("Mary and Anna said John gave a key to"), " Anna", " Tom"
    )
    lm = subject()
    found = Patcher(lm, encode(lm, [late, early])).grid(POST, [Span.index(0), Span.index(-1)])
    assert np.array_equal(found[:, 0, 0], np.zeros(3))
    for i, site in enumerate(POST):
        for j, at in enumerate([0, 8]):
            assert np.allclose(found[i, j], [by_full_runs(lm, p, [site], [at]) for p in (late, early)], atol=2e-5)


@pytest.mark.parametrize("several", [False, True], ids=["single", "several"])
def test_a_pair_among_others_of_other_lengths_has_the_effect_it_has_alone(several):
    lm, items = subject("gpt2"), SEVERAL if several else SINGLE
    spans = [Span("S2"), Span("last")]
    together = ready("gpt2", several).grid(SITES, spans)
    for i, pair in enumerate(items):
        alone = Patcher(lm, encode(lm, [pair]), by="logprob_diff").grid(SITES, spans)
        assert np.allclose(together[:, :, i], alone[:, :, 0], atol=1e-5)


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(5)))
def test_the_order_of_pairs_does_not_matter(order):
    lm, items = subject(dtype=torch.float64), [*pairs(), shifted(pairs()[1])]
    plain, other = (Patcher(lm, encode(lm, chosen)) for chosen in (items, [items[i] for i in order]))
    expected, found = plain.grid(POST, [Span("S2"), EVERY]), other.grid(POST, [Span("S2"), EVERY])
    assert np.abs(expected[:, :, order] - found).max() < 1e-6
    assert np.abs(plain.total[order] - other.total).max() < 1e-6


def test_the_order_of_sites_and_spans_does_not_matter():
    spans = [Span("last"), Span("S2")]
    found, again = ready().grid(SITES, spans), ready().grid(SITES[::-1], spans[::-1])
    assert np.allclose(found, again[::-1, ::-1], atol=1e-5)


def test_each_neuron_equals_full_runs_with_that_neuron_swapped():
    lm, neurons = subject(), [0, 7, 47, 7]
    found = neuron_effects(ready(), 1, "S2", neurons)
    expected = [[by_full_runs(lm, p, [Site("mlp_post", 1)], columns(p, Span("S2")), neuron=n) for p in SINGLE] for n in neurons]
    assert np.allclose(found, expected, atol=2e-5)
    assert np.abs(found).max() > 1e-3
    assert neuron_effects(ready(), 1, "S2", []).shape == (0, 3)


@pytest.mark.parametrize("wrong", [-1, 48])
def test_a_neuron_that_does_not_exist_is_refused(wrong):
    with pytest.raises(OutOfRange, match=rf"neurons \[{wrong}\] do not exist: layer 1 has neurons 0 to 47"):
        neuron_effects(ready(), 1, "S2", [3, wrong])
    with pytest.raises(OutOfRange, match="layer 3"):
        neuron_effects(ready(), 3, "S2", [0])


def test_a_patch_tells_its_values_and_prints_them_with_interval_number_and_tokens():
    lm = subject()
    effect = patch(lm, pairs(), at=Site("head_z", 1, 2), span="S2")
    expected = [by_full_runs(lm, pair, [Site("head_z", 1, 2)], [9]) for pair in pairs()]
    assert np.allclose(effect.values, expected, atol=2e-5)
    assert effect.label == "noising head_z.1.2 at S2"
    assert (effect.ids, effect.clusters) == (("pair-0", "pair-1", "pair-2", "pair-3"), ())
    assert [(f.label, f.tokens) for f in effect.firings] == [("swap head_z.1.2 at S2", 4)]
    low, high = estimate(effect.values).ci95
    share = effect.values.mean() / effect.total.mean()
    assert str(effect) == (
        f"noising head_z.1.2 at S2: {effect.values.mean():+.3f} (95 % [{low:+.3f}, {high:+.3f}], n = 4; "
        f"{share:.0%} of the total effect {effect.total.mean():+.3f}; 4 tokens written)"
    )


def test_a_patch_of_one_pair_has_no_interval_and_says_so():
    effect = patch(subject(), pairs()[0], at=[Site("resid_post", 2)], direction="denoising")
    assert np.allclose(effect.values, effect.total, atol=1e-5)
    assert "(one pair, no interval, n = 1; 100% of the total effect" in str(effect)
    assert "5 tokens written" in str(effect)
    assert str(effect).startswith("denoising resid_post.2 at all: ")
    with pytest.raises(OutOfRange, match="at least two pairs"):
        effect.estimate()


def test_a_patch_of_several_sites_is_of_all_together_and_counts_their_tokens():
    lm, sites = subject(), [Site("head_z", 0, 1), Site("head_z", 2), Site("mlp_out", 1), Site("resid_mid", 1)]
    effect = patch(lm, pairs(), at=sites, span="last")
    assert np.allclose(effect.values, Patcher(lm, encode(lm, pairs())).joint(sites, "last"), atol=1e-6)
    assert effect.label == "noising head_z.0.1, head_z.2, mlp_out.1, ... at last"
    assert effect.label.replace(", ...", "") == patch(lm, pairs(), at=sites[:3], span="last").label
    assert "16 tokens written" in str(effect)


def test_pairs_of_several_templates_are_resampled_by_template():
    items = [replace(pair, template=f"t{i % 2}") for i, pair in enumerate(pairs())]
    effect = patch(subject(), items, at=Site("mlp_out", 1))
    assert effect.clusters == ("t0", "t1", "t0", "t1")
    assert effect.estimate() == estimate(effect.values, clusters=["t0", "t1", "t0", "t1"])
    assert effect.estimate(seed=3) == estimate(effect.values, clusters=["t0", "t1", "t0", "t1"], seed=3)


REFUSALS = {
    "a span": ({"span": "S3"}, UnknownName, r"unknown span 'S3'; did you mean 'S2'\?"),
    "an index": ({"span": Span.index(40)}, MediantError, "span 40:41 selects none of the 14 tokens"),
    "a layer": (
        {"at": Site("resid_post", 3)},
        OutOfRange,
        "layer 3 of 'resid_post.3' does not exist: this model has layers 0 to 2",
    ),
    "a head": (
        {"at": Site("head_z", 1, 4)},
        OutOfRange,
        "head 4 of 'head_z.1.4' does not exist: this model has query heads 0 to 3",
    ),
    "a key head": ({"at": [Site("k", 1, 2)]}, OutOfRange, "this model has key/value heads 0 to 1"),
    "a metric": ({"by": "logit_dif"}, UnknownName, "unknown metric 'logit_dif'; did you mean 'logit_diff'"),
    "no pairs": ({"pairs": []}, TaskError, "no pairs to encode"),
    "the embedding": ({"at": Site("embed")}, EditError, r"edit 'resid_pre\.0' instead of 'embed'"),
    "a metric of one token": ({"pairs": SEVERAL}, TaskError, "use the metric logprob_diff"),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_what_does_not_exist_here_is_refused_with_what_does(what):
    change, kind, message = REFUSALS[what]
    options = {"pairs": pairs(), "at": Site("resid_post", 1), "span": "S2", **change}
    with pytest.raises(kind, match=message):
        patch(subject(), options.pop("pairs"), **options)
    if "at" in change:
        with pytest.raises(kind, match=message):
            ready().grid([Site("resid_post", 0), *np.atleast_1d(change["at"]).tolist()], [EVERY])
