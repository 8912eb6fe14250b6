"""Replaying from a recording, or branching off it, gives what the whole forward gives, in every family."""

from dataclasses import replace as changed_to

import pytest
import torch
from test_families import ALL, SEPARABLE, clean_and_other, close, sites

from builders import BUILDERS, pairs, subject
from mediant.core import AttentionEdge, Site, Span
from mediant.core.errors import EditError
from mediant.interventions import Where, add, branch, edit, noise, project_out, record, replay, run, scale, swap, zero
from mediant.interventions.attention import attending, bias
from mediant.interventions.replay import suffix_keep
from mediant.subject import Batch, Subject

both = [(f, a) for f in BUILDERS for a in ("sdpa", "eager")]
every = pytest.mark.parametrize(("family", "attention"), both)
separable = pytest.mark.parametrize(("family", "attention"), [(f, a) for f, a in both if f in SEPARABLE])
END = [(Site("final_resid"), Span("last")), (Site("head_z", 2), Span.index(-2)), (Site("mlp_out", 1), Span.index(-1))]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def replayable(lm: Subject, layer: int) -> list[Site]:
    return [site for site in sites(lm, layer) if site.kind != "embed"]


def other_values(lm: Subject, source: Batch, layer: int, spans: list[Span]) -> dict:
    return run(lm, source, capture=[(site, span) for site in replayable(lm, layer) for span in spans]).captured


def same(expected, got) -> bool:
    """Logits, captures and firings of two outputs agree to rounding."""
    alike = all(close(expected.captured[p].values, got.captured[p].values, 2e-5) for p in expected.captured)
    counts = [(f.forwards, f.tokens) for f in expected.firings] == [(f.forwards, f.tokens) for f in got.firings]
    return alike and counts and close(expected.logits, got.logits)


@pytest.mark.parametrize(("attention", "layer"), [("sdpa", 0), ("eager", 1), ("sdpa", 2)])
@pytest.mark.parametrize("family", list(BUILDERS))
def test_a_replayed_swap_at_any_site_equals_the_full_run(family, attention, layer):
    lm = subject(family, attention=attention)
    base, source = clean_and_other(lm)
    spans = [Span("end"), Span.slice(2, 4)] if attention == "sdpa" else [Span("end")]
    recording = record(lm, base, keep=2)
    assert torch.equal(run(lm, base, keep=2).logits, recording.logits)
    untouched = recording.logits
    for (site, span), values in other_values(lm, source, layer, spans).items():
        expected = run(lm, base, [swap(site, span, values)], capture=END, keep=2)
        got = replay(recording, [swap(site, span, values)], capture=END, keep=2)
        assert same(expected, got), f"{site} at {span}"
        if (layer, site.kind) not in (
            (2, "k"),
            (2, "v"),
        ):  # these reach the last column through their one query, which may not look
            assert not close(untouched, got.logits, 1e-4) or span != Span("end"), f"{site} did nothing"


@every
def test_copies_folded_into_one_batch_each_equal_their_own_full_run(family, attention):
    lm = subject(family, attention=attention)
    base, _ = clean_and_other(lm, "left" if attention == "sdpa" else "right")
    n, keep = base.n_rows, 10
    recording = record(lm, base, keep=keep)
    v = torch.linspace(-1, 2, 32)
    kinds = [
        lambda s, w: add(s, "S2", torch.linspace(-2, 1, _width(lm, s)), where=w),
        lambda s, w: scale(s, "IO", -2.0, w),
        lambda s, w: zero(s, ALL, w),
        lambda s, w: project_out(s, "end", torch.linspace(1, 3, _width(lm, s)), w),
    ]
    chosen = replayable(lm, 1 if attention == "sdpa" else 2)
    for start in range(0, len(chosen), 9):
        part = [(site, kinds[i % 4]) for i, site in enumerate(chosen[start : start + 9])]
        edits = [make(site, Where(rows=tuple(range(i * n, i * n + n)))) for i, (site, make) in enumerate(part)]
        got = replay(recording, edits, times=len(part), keep=keep).logits.split(n)
        for (site, make), logits in zip(part, got, strict=True):
            expected = run(lm, base, [make(site, Where())], keep=keep).logits
            for row in range(n):  # on padding to the right of a prompt there is nothing to compare
                real = base.mask[row, -keep:]
                assert close(expected[row][real], logits[row][real]), f"{site}, row {row}"
    folded = replay(recording, [add("resid_pre.1", "last", v, 2.0, Where(rows=(n + 1,)))], times=2, keep=keep).logits
    assert close(recording.logits[1][base.mask[1, -keep:]], folded[1][base.mask[1, -keep:]])
    assert not close(folded[1][base.mask[1, -keep:]], folded[n + 1][base.mask[1, -keep:]], 1e-3)


def test_noise_is_the_same_in_every_copy_and_in_a_full_run():
    lm = subject()
    base, _ = clean_and_other(lm)
    n = base.n_rows
    edits = [noise("resid_mid.1", "S2", 1.5, seed=3, where=Where(rows=tuple(range(i * n, i * n + n)))) for i in range(2)]
    first, second = replay(record(lm, base), edits, times=2).logits.split(n)
    assert close(run(lm, base, [noise("resid_mid.1", "S2", 1.5, seed=3)]).logits, first)
    assert close(first, second)


@separable
def test_an_edit_of_an_outer_context_keeps_each_tokens_own_value_in_a_replay_of_later_columns(family, attention):
    lm = subject(family, attention=attention)
    base, source = clean_and_other(lm)
    values = run(lm, source, capture=[("mlp_out.1", ALL)]).captured[Site("mlp_out", 1), ALL]
    push = add("resid_mid.1", "end", torch.linspace(-2, 3, 32))
    for change in (swap("mlp_out.1", ALL, values), noise("mlp_out.1", ALL, 1.0, seed=4)):
        with edit(lm, change):
            expected = run(lm, base, [push]).logits
            assert close(expected, replay(record(lm, base), [push]).logits)
        assert not close(expected, run(lm, base, [push]).logits, 1e-3)


def test_a_mask_of_later_columns_is_causal_over_real_keys_and_never_empty():
    base, _ = clean_and_other(subject())
    for column in (0, 5, base.n_cols - 1):
        keep = suffix_keep(base.mask, column)
        expected = [
            [[(k <= q and bool(base.mask[row, k])) or k == q for k in range(base.n_cols)] for q in range(column, base.n_cols)]
            for row in range(base.n_rows)
        ]
        assert expected == keep.tolist()


def _width(lm: Subject, site: Site) -> int:
    if site.kind in ("q", "k", "v", "head_z"):
        return lm.shape.d_head
    return lm.shape.d_mlp if site.kind == "mlp_post" else lm.shape.d_model


@separable
def test_replays_of_unpadded_and_biased_recordings_equal_the_full_run(family, attention):
    lm = subject(family, attention=attention)
    batch = lm.encode([p.clean for p in pairs()])
    then = [add("resid_mid.2", "S2", torch.ones(32), 2.0)]
    early = [*END, (Site("resid_mid", 1), Span.index(1)), (Site("resid_pre", 0), Span("IO"))]
    assert same(run(lm, batch, then, capture=early), replay(record(lm, batch), then, capture=early))
    with attending(lm, [bias(AttentionEdge(2, None, "last", "IO"), 5.0)]):
        expected = run(lm, batch, then)
        assert same(expected, replay(record(lm, batch), then))
    assert not close(run(lm, batch, then).logits, expected.logits, 1e-3)
    assert close(run(lm, batch, keep=4).logits, replay(record(lm, batch), [], keep=4).logits)


@every
def test_branching_off_equals_the_other_batchs_full_forward(family, attention):
    lm = subject(family, attention=attention)
    base, other = clean_and_other(lm, "left" if attention == "sdpa" else "right")
    recording = record(lm, base)
    places = [(site, ALL) for site in sites(lm, 1)]
    for column, keep in ((0, 1), (3, 1), (9, 3), (base.n_cols - 1, 1), (base.n_cols - 1, 4)):
        ids = base.ids.clone()
        ids[:, column:] = other.ids[:, column:]
        source = changed_to(base, ids=ids)
        expected = run(lm, source, capture=places, keep=keep)
        got = branch(recording, source, column, capture=places, keep=keep)
        real = source.mask[:, -keep:]
        assert close(expected.logits[real], got.logits[real])
        for place, values in expected.captured.items():
            later = values.cols >= min(column, base.n_cols - keep)
            assert values.rows[later].tolist() == got.captured[place].rows.tolist()
            assert values.cols[later].tolist() == got.captured[place].cols.tolist()
            assert close(values.values[later], got.captured[place].values, 2e-5), f"{place} from column {column}"


def test_a_replay_cannot_begin_before_the_first_layer():
    lm = subject()
    recording = record(lm, lm.encode("Tom gave a drink"))
    for edits, capture in (([zero("embed", "last")], []), ([], [("embed", "last")])):
        with pytest.raises(EditError, match=r"resid_pre\.0"):
            replay(recording, edits, capture=capture)
