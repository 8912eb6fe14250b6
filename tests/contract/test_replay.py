"""Replaying from a recording, or branching off it, gives what the whole forward gives, in every family."""

import copy
from dataclasses import replace as changed_to

import pytest
import torch
from test_families import ALL, PARTS, clean_and_other, close, library_model, sites

from builders import BUILDERS, pairs, subject, tokenizer
from mediant.core import AttentionEdge, Site, Span
from mediant.core.errors import EditError
from mediant.interventions import Edit, Where, add, branch, noise, project_out, record, replay, run, scale, swap, zero
from mediant.interventions.attention import attending, bias
from mediant.subject import Batch, Subject, wrap

both = [(f, a) for f in BUILDERS for a in ("sdpa", "eager")]
every = pytest.mark.parametrize(("family", "attention"), both)
END = [(Site("final_resid"), Span("last")), (Site("head_z", 2), Span.index(-2)), (Site("mlp_out", 1), Span.index(-1))]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def replayable(layer: int) -> list[Site]:
    return [site for site in sites(layer) if site.kind != "embed"]


def other_values(lm: Subject, source: Batch, layer: int, spans: list[Span]) -> dict:
    return run(lm, source, capture=[(site, span) for site in replayable(layer) for span in spans]).captured


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
    spans = [Span("end"), Span.slice(2, 4)]
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
        lambda s, w: noise(s, "S2", 1.5, seed=3, where=w), lambda s, w: scale(s, "IO", -2.0, w), lambda s, w: zero(s, ALL, w),
        lambda s, w: project_out(s, "end", torch.linspace(1, 3, _width(lm, s)), w),
    ]  # fmt: skip
    chosen = replayable(1 if attention == "sdpa" else 2)
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


def _width(lm: Subject, site: Site) -> int:
    if site.kind in ("q", "k", "v", "head_z"):
        return lm.shape.d_head
    return lm.shape.d_mlp if site.kind == "mlp_post" else lm.shape.d_model


@every
def test_replays_of_unpadded_edited_and_biased_recordings_equal_the_full_run(family, attention):
    lm = subject(family, attention=attention)
    batch = lm.encode([p.clean for p in pairs()])
    first, then = [scale("mlp_out.0", "IO", 3.0), zero("v.1.0", "S2")], [add("resid_mid.2", "S2", torch.ones(32), 2.0)]
    assert same(run(lm, batch, then, capture=END), replay(record(lm, batch), then, capture=END))
    assert close(run(lm, batch, [*first, *then]).logits, replay(record(lm, batch, first), then).logits)
    assert not close(run(lm, batch, then).logits, replay(record(lm, batch, first), then).logits, 1e-3)
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
    places = [(site, ALL) for site in sites(1)]
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


@pytest.mark.parametrize("family", list(PARTS))
def test_layers_whose_forward_a_placement_has_wrapped_replay_all_the_same(family):
    from accelerate import dispatch_model

    model = copy.deepcopy(library_model(family))
    dispatch_model(model, dict.fromkeys(PARTS[family], "cpu"), force_hooks=True)
    lm, plain = wrap(model, tokenizer()), subject(family)
    base, _ = clean_and_other(lm)
    for site in replayable(1):
        change: list[Edit] = [scale(site, "S2", -1.5)]
        assert close(run(plain, base, change).logits, replay(record(lm, base), change).logits), str(site)


def test_a_replay_cannot_begin_before_the_first_layer():
    lm = subject()
    recording = record(lm, lm.encode("Tom gave a drink"))
    for edits, capture in (([zero("embed", "last")], []), ([], [("embed", "last")])):
        with pytest.raises(EditError, match=r"resid_pre\.0"):
            replay(recording, edits, capture=capture)
