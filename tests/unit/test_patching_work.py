"""What patching costs: nothing where runs are equal, one capture, and replays that are folded and start late."""

import numpy as np
import pytest
from test_patching import EVERY, POST, ready

from builders import pairs, subject
from mediant.core import Site, Span
from mediant.search import Patcher, patching
from mediant.tasks.encode import encode


def test_what_stands_before_the_first_difference_has_exactly_no_effect_and_costs_nothing():
    lm = subject()
    patcher = Patcher(lm, encode(lm, pairs()))
    patcher.capture(POST)
    before = lm.work.token_layers
    assert np.array_equal(patcher.grid(POST, [Span("IO"), Span.index(0), Span.slice(0, 9)]), np.zeros((3, 3, 4)))
    assert lm.work.token_layers == before
    assert np.abs(patcher.grid(POST[:1], [Span.index(9)])).min() > 1e-4


@pytest.mark.parametrize("tokens", [1, 40, 100, 10**6])
def test_however_many_copies_are_folded_into_one_forward_the_effects_are_the_same(monkeypatch, tokens):
    heads, spans = subject().heads(), [Span("S2"), Span("last")]
    expected = ready().grid(heads, spans)
    monkeypatch.setattr(patching, "FOLD_TOKENS", tokens)
    assert np.allclose(ready().grid(heads, spans), expected, atol=1e-5)


def counted(monkeypatch, name: str) -> list[dict]:
    """The keyword arguments of every call of a function that patching uses."""
    calls, original = [], getattr(patching, name)

    def wrapper(*args: object, **kwargs: object) -> object:
        calls.append(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(patching, name, wrapper)
    return calls


def test_heads_of_all_layers_join_one_replay_and_no_forward_exceeds_the_limit(monkeypatch):
    calls = counted(monkeypatch, "replay")
    lm = subject()
    patcher = Patcher(lm, encode(lm, pairs()))
    patcher.grid(lm.heads(), [Span("last")])
    assert [call["starts"] for call in calls] == [[0] * 4 + [1] * 4 + [2] * 4]
    calls.clear()
    monkeypatch.setattr(patching, "FOLD_TOKENS", 3 * 4 * 5)  # three copies of four rows from column 9 to 14
    patcher.grid([Site("head_z", 1, h) for h in range(4)], [EVERY])
    assert [call["times"] for call in calls] == [3, 1]


def test_sites_join_at_the_layer_they_first_change_whatever_their_order(monkeypatch):
    lm = subject()
    patcher, calls = Patcher(lm, encode(lm, pairs())), counted(monkeypatch, "replay")
    names = [
        "final_resid",
        "head_z.1.0",
        "head_z.0.0",
        "resid_post.0",
        "head_z.0.1",
        "mlp_out.1",
        "resid_post.2",
        "mlp_out.2",
        "resid_post.1",
    ]
    before = lm.work.token_layers
    patcher.capture([Site.parse(name) for name in names])
    captured = lm.work.token_layers
    patcher.grid([Site.parse(name) for name in names], [Span("last")])
    # Two sites change layer 0, three layer 1 (what leaves layer 0 is one of them), two layer 2, two only what follows.
    assert [call["starts"] for call in calls] == [[0, 0, 1, 1, 1, 2, 2, 3, 3]]
    assert lm.work.token_layers - captured == 4 * 1 * (2 * 3 + 3 * 2 + 2 * 1)
    assert captured - before == 4 * 5 * 3


def test_variants_at_several_spans_fold_from_the_earliest_column_on(monkeypatch):
    patcher, site = ready(), Site("mlp_out", 1)
    calls = counted(monkeypatch, "replay")
    n, width = patcher.pairs.base.n_rows, patcher.pairs.base.n_cols - int(patcher.pairs.first_difference.min())
    monkeypatch.setattr(patching, "FOLD_TOKENS", 2 * n * width)
    variants = [patcher.variant(site, span) for span in ("last", "IO", EVERY, "S2")]
    found = patcher.each(variants)
    assert [call["times"] for call in calls] == [2, 1]
    assert np.allclose(found, [patcher.joint([site], span) for span in ("last", "IO", EVERY, "S2")], atol=1e-5)
    assert found[1].tolist() == [0.0, 0.0, 0.0]


def test_a_source_is_captured_once_for_all_sites_and_heads(monkeypatch):
    lm = subject()
    patcher = Patcher(lm, encode(lm, pairs()))
    calls = counted(monkeypatch, "branch")
    patcher.grid([*lm.heads(), Site("mlp_out", 1)], [Span("S2"), Span("last")])
    assert [len(call["capture"]) for call in calls] == [4]
    patcher.grid([*lm.heads()[:5], Site("head_z", 1)], [Span("S2")])
    patcher.joint([Site("mlp_out", 1)])
    assert len(calls) == 1
    patcher.capture([Site("mlp_out", 1), Site("mlp_out", 2)])
    assert [[site for site, _ in call["capture"]] for call in calls[1:]] == [[Site("mlp_out", 2)]]
    patcher.joint([Site("mlp_out", 1), Site("mlp_out", 2), Site("head_z", 0, 1)])
    assert len(calls) == 2


def test_sites_named_beforehand_are_captured_with_the_first_source_run(monkeypatch):
    lm, calls = subject(), counted(monkeypatch, "branch")
    patcher = Patcher(lm, encode(lm, pairs()), capture=[*POST, Site("head_z", 1)])
    found = patcher.grid([*POST, Site("head_z", 1, 3)], [Span("S2")])
    assert len(calls) == 1
    monkeypatch.undo()
    assert np.allclose(found, Patcher(lm, encode(lm, pairs())).grid([*POST, Site("head_z", 1, 3)], [Span("S2")]), atol=1e-6)


def test_progress_is_told_for_every_site_and_span():
    ticks: list[int] = []
    ready().grid([*POST, Site("head_z", 1, 0), Site("head_z", 1, 1)], [Span("IO"), Span("S2")], tick=ticks.append)
    assert sum(ticks) == 10
    assert all(t > 0 for t in ticks)
