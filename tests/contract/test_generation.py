"""Edits under generation: with a key/value cache, without one, and written out by hand they are the same."""

from dataclasses import replace

import pytest
import torch
from test_families import ALL, SEPARABLE, clean_and_other, close
from torch import Tensor

from builders import BUILDERS, subject
from mediant.core import Site, Span
from mediant.interventions import Edit, Where, add, edit, noise, project_out, run, scale, set_to, swap, zero
from mediant.subject import Batch, Subject
from mediant.subject.batch import bare_batch

separable = pytest.mark.parametrize("family", SEPARABLE)
families = pytest.mark.parametrize("family", list(BUILDERS))
NEW = 5
V, W = torch.linspace(-1, 1, 32), torch.linspace(2, -1, 8)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def source(lm: Subject) -> object:
    _, other = clean_and_other(lm)
    return run(lm, other, capture=[("resid_pre.1", "S2")]).captured[Site("resid_pre", 1), Span("S2")]


SCENARIOS = {
    "on spans of the prompt": lambda lm: [
        add("resid_post.0", "S2", V, 4.0), zero("head_z.1.2", "IO"), scale("k.2.1", "last", 4.0)
    ],
    "swapped in from another run": lambda lm: [swap("resid_pre.1", "S2", source(lm))],
    "on generated tokens": lambda lm: [add("resid_post.1", "generated", V, 6.0), add("v.0.0", "generated", W)],
    "on all tokens": lambda lm: [
        scale("mlp_out.1", "all", -1.0), project_out("resid_mid.2", "all", V), set_to("q.1.0", "all", W)
    ],
    "on the prompt but not after": lambda lm: [
        scale("attn_out.1", "prompt", 3.0), zero("mlp_post.0", "prompt", Where(index=(1, 5, 7)))
    ],
    "at some steps": lambda lm: [
        add("resid_pre.2", "generated", V, 9.0, Where(steps=(0, 2))), scale("embed", "all", 3.0, Where(steps=(3,)))
    ],
    "in some rows": lambda lm: [
        add("head_result.1.3", "all", V, 4.0, Where(rows=(1,))), add("mlp_in.2", "generated", V, 3.0, Where(rows=(0, 2)))
    ],
    "at the end": lambda lm: [
        add("final_resid", "all", V, 2.0), add("resid_post.2", "generated", V.flip(0), 2.0, Where(steps=(1, 2)))
    ],
}  # fmt: skip
scenarios = pytest.mark.parametrize("scenario", list(SCENARIOS))


def generated(lm: Subject, batch: Batch, edits: list[Edit], *, cached: bool = True) -> tuple[Tensor, Tensor, list]:
    """New tokens (row, step), the logits each was read from (row, step, vocab), and the firings."""
    seen: list[Tensor] = []
    handle = lm.model.register_forward_hook(lambda *all: seen.append(all[-1].logits[:, -1]))
    with edit(lm, *edits) as active:
        tokens = lm.generate(batch, max_new_tokens=NEW, use_cache=cached, stop_at_eos=False)
    handle.remove()
    return tokens, torch.stack(seen, 1), active.firings()


def spelled_out(batch: Batch, one: Edit, n_cols: int) -> Edit:
    """The same edit with the columns of prompt and continuation listed one by one."""
    reach = one.span.name in ("all", "generated")
    steps = range(NEW) if one.steps is None else one.steps
    later = [batch.n_cols + s for s in steps if reach and batch.n_cols + s < n_cols]
    rows = range(batch.n_rows) if one.rows is None else one.rows
    places = [(r, c) for r in rows for c in (batch.columns(r, one.span) if one.steps is None else []) + later]
    where = torch.tensor(places).reshape(-1, 2)
    return replace(one, places=(where[:, 0], where[:, 1]), rows=None, steps=None)


@separable
@scenarios
def test_edits_while_generating_are_the_same_with_and_without_a_cache_and_by_hand(family, scenario):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    edits = SCENARIOS[scenario](lm)
    tokens, logits, firings = generated(lm, batch, edits)
    slow_tokens, slow_logits, _ = generated(lm, batch, edits, cached=False)
    assert slow_tokens.tolist() == tokens.tolist()
    assert close(slow_logits, logits, 1e-4)

    whole = torch.cat([batch.ids, tokens[:, :-1]], 1)
    full = bare_batch(whole, torch.cat([batch.mask, torch.ones_like(tokens[:, :-1], dtype=torch.bool)], 1))
    written = [spelled_out(batch, e, full.n_cols) for e in edits]
    by_hand = run(lm, full, written, keep=NEW)
    assert close(by_hand.logits, logits, 1e-4)
    assert by_hand.logits.argmax(-1).tolist() == tokens.tolist()
    assert [len(e.places[0]) for e in written] == [f.tokens for f in firings]
    assert not close(generated(lm, batch, [])[1], logits, 1e-4)


@families
def test_edits_that_never_come_into_play_leave_generation_bit_identical(family):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    tokens, logits, _ = generated(lm, batch, [])
    nothing = [scale("resid_post.1", ALL, 2.0, Where(steps=())), add("mlp_out.0", "generated", V, 2.0, Where(rows=()))]
    again, same, _ = generated(lm, batch, nothing)
    assert torch.equal(tokens, again)
    assert torch.equal(logits, same)
    assert torch.equal(tokens, lm.generate(batch, max_new_tokens=NEW, stop_at_eos=False))


def test_steps_count_the_tokens_that_were_generated_from_zero():
    lm = subject()
    batch, _ = clean_and_other(lm)
    _, before, _ = generated(lm, batch, [])
    for step in range(NEW - 1):
        _, logits, firings = generated(lm, batch, [add("resid_post.2", "generated", V, 9.0, Where(steps=(step, 40)))])
        first = [torch.equal(before[:, i], logits[:, i]) for i in range(NEW)].index(False)
        assert first == step + 1  # token `step` is read by the forward that predicts the one after it
        assert [(f.forwards, f.tokens, f.unreached_steps) for f in firings] == [(1, 3, (40,))]


@pytest.mark.parametrize("place", ["resid_mid.1", "head_z.1.1"])
@pytest.mark.parametrize("span", ["prompt", "generated", "all"])
def test_noise_is_the_same_with_and_without_a_cache(place, span):
    lm = subject()
    batch, _ = clean_and_other(lm)
    _, logits, _ = generated(lm, batch, [noise(place, span, 1.5, seed=4)])
    _, slow, _ = generated(lm, batch, [noise(place, span, 1.5, seed=4)], cached=False)
    assert close(slow, logits, 1e-4)
    assert not close(slow, generated(lm, batch, [noise(place, span, 1.5, seed=5)])[1], 1e-2)


def test_noise_is_drawn_anew_for_every_generated_token():
    lm = subject()
    batch = lm.encode(["Tom gave a drink to"])
    change = noise("mlp_out.1", "generated", 1.0, seed=2)
    place = (Site("mlp_out", 1), Span("generated"))
    with edit(lm, set_to("mlp_out.1", "generated", torch.zeros(32)), change, capture=[place]) as active:
        lm.generate(batch, max_new_tokens=NEW, stop_at_eos=False)
    drawn = active.captured()[place].values
    assert drawn.shape == (NEW - 1, 32)
    assert not any(torch.equal(drawn[i], drawn[j]) for i in range(NEW - 1) for j in range(i))


@pytest.mark.parametrize("cached", [True, False])
def test_a_token_captured_while_generating_is_there_once(cached):
    lm = subject()
    batch, _ = clean_and_other(lm)
    place = (Site("resid_mid", 1), ALL)
    with edit(lm, capture=[place]) as active:
        tokens = lm.generate(batch, max_new_tokens=NEW, use_cache=cached, stop_at_eos=False)
    found = active.captured()[place]
    whole = torch.cat([batch.ids, tokens[:, :-1]], 1)
    full = bare_batch(whole, torch.cat([batch.mask, torch.ones_like(tokens[:, :-1], dtype=torch.bool)], 1))
    expected = run(lm, full, capture=[place]).captured[place]
    assert expected.rows.tolist() == found.rows.tolist()
    assert expected.cols.tolist() == found.cols.tolist()
    assert close(expected.values, found.values, 1e-4)
