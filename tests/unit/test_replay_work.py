"""Replays do only the work a patch needs: counted token by token on the layers themselves."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from builders import WORDS, pairs, subject
from mediant.core import Pair, Prompt, Site, Span
from mediant.core.edge import AttentionEdge
from mediant.core.errors import EditError
from mediant.interventions import add, branch, edit, record, replay, run, scale, swap, zero
from mediant.interventions.attention import attending, bias
from mediant.interventions.edits import Edit
from mediant.search import Patcher, patching
from mediant.subject import Batch, Subject
from mediant.tasks.encode import encode

pytestmark = pytest.mark.usefixtures("no_gradients")
KINDS = ("resid_post", "attn_out", "mlp_out")
SWEEP = [Site(kind, layer) for kind in KINDS for layer in range(3)]


@dataclass
class Counted:
    """Tokens that went through each layer, and calls of the embedding (one per forward that starts at the bottom)."""

    tokens: list[int] = field(default_factory=lambda: [0, 0, 0])
    from_the_bottom: int = 0

    @property
    def total(self) -> int:
        return sum(self.tokens)


@contextmanager
def counting(lm: Subject) -> Iterator[Counted]:
    """Counts on the modules, and holds the subject's own account against it."""
    found, account = Counted(), lm.work.token_layers

    def through(layer: int):
        def hook(_, args, kwargs):
            hidden = args[0] if args else kwargs["hidden_states"]
            found.tokens[layer] += hidden.shape[0] * hidden.shape[1]

        return hook

    def bottom(*_):
        found.from_the_bottom += 1

    handles = [m.register_forward_pre_hook(through(i), with_kwargs=True) for i, m in enumerate(lm.layers)]
    handles.append(lm.base.get_submodule(lm.family.embed).register_forward_pre_hook(bottom))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    assert found.total == lm.work.token_layers - account


def differing_at(place: int, n: int = 16, shift: int = 0) -> Pair:
    """A pair of `n` words that differ in the word at `place` only."""
    words = WORDS[2:20]
    clean = [words[(i + shift) % len(words)] for i in range(n)]
    other = [*clean[:place], "keys", *clean[place + 1 :]]
    return Pair(f"{place}-{n}-{shift}", Prompt(" ".join(clean)), Prompt(" ".join(other)), " Mary", " John")


def start_of(site: Site) -> int:
    """The first layer that has to run again, written out."""
    return {"resid_post": 1, "attn_out": 0, "mlp_out": 0}[site.kind] + site.layer


# --- the sweep -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_sweep_over_layers_and_positions_does_exactly_the_layers_and_columns_it_must(family, attention, monkeypatch):
    monkeypatch.setattr(patching, "PASS_TOKENS", 0)  # where reading the weights again costs nothing
    lm = subject(family, attention=attention)
    encoded = encode(lm, [differing_at(2, shift=s) for s in (0, 5, 9)])
    rows, columns, fork = 3, 16, 2
    patcher = Patcher(lm, encoded)
    patcher.capture(SWEEP)
    with counting(lm) as work:
        effects = patcher.grid(SWEEP, [Span.index(i) for i in range(columns)])
    must = [rows * (3 - start_of(s)) * (columns - p) for s in SWEEP for p in range(fork, columns)]
    assert sum(must) == work.total
    assert work.from_the_bottom == 0
    expected = [
        sum(rows * (columns - p) for s in SWEEP for p in range(fork, columns) if start_of(s) <= layer) for layer in range(3)
    ]
    assert expected == work.tokens
    full = rows * columns * 3
    assert work.total / full < 0.5 * len(SWEEP) * columns
    assert work.total / full < 0.4 * len(must)
    assert np.array_equal(np.zeros((9, 2, 3)), effects[:, :2])
    read_later = [i for i, site in enumerate(SWEEP) if site.layer < 2]
    assert (np.abs(effects[read_later, fork]).max(1) > 1e-3).all()  # so the sweep was not skipped where it matters


def test_a_whole_study_of_a_sweep_costs_under_half_a_forward_per_patch(monkeypatch):
    monkeypatch.setattr(patching, "PASS_TOKENS", 0)
    lm = subject()
    encoded = encode(lm, pairs())
    with counting(lm) as work:
        patcher = Patcher(lm, encoded, capture=SWEEP)
        patcher.grid(SWEEP, [Span.index(i) for i in range(14)])
    assert work.from_the_bottom == 2  # the base, and the source from its first different token on
    assert work.total / (4 * 14 * 3) < 0.5 * 9 * 14
    base, source = 4 * 14 * 3, 4 * (14 - 9) * 3
    assert base + source + sum(4 * (3 - start_of(s)) * (14 - p) for s in SWEEP for p in range(9, 14)) == work.total


def test_neighbouring_columns_run_together_where_that_saves_more_passes_than_it_adds_tokens(monkeypatch):
    lm = subject()
    patcher = Patcher(lm, encode(lm, pairs()), capture=SWEEP)
    seen, effects = [], []
    for price in (0, 100):
        monkeypatch.setattr(patching, "PASS_TOKENS", price)
        with counting(lm) as work:
            effects.append(patcher.grid(SWEEP, [Span.index(i) for i in range(14)]))
        seen.append(work.total)
    assert np.allclose(*effects, atol=1e-5)
    # Five columns can differ, and three layers are passed at most.
    assert seen[0] < seen[1] <= seen[0] + 5 * 3 * 100


def test_folds_cost_least_of_all_ways_to_cut_the_columns(monkeypatch):
    monkeypatch.setattr(patching, "FOLD_TOKENS", 100)
    rows, n_cols, n_layers = 2, 10, 4
    many = {1: 1, 2: 3, 4: 1, 6: 2, 7: 1, 8: 5, 9: 1}
    cells = [patching._Cell(c, (3 * c + i) % n_layers, 100 * c + i) for c, size in many.items() for i in range(size)]

    def cost(folds: list[list[patching._Cell]]) -> int:
        found = 0
        for fold in folds:
            width = n_cols - min(cell.column for cell in fold)
            found += sum(rows * width * (n_layers - cell.start) for cell in fold)
            found += patching.PASS_TOKENS * (n_layers - min(cell.start for cell in fold))
        return found

    folds = patching._folds(cells, rows, n_cols, n_layers)
    assert sorted(cell.variant for fold in folds for cell in fold) == sorted(cell.variant for cell in cells)
    for fold in folds:
        assert [cell.start for cell in fold] == sorted(cell.start for cell in fold)
        assert len(fold) * rows * (n_cols - min(cell.column for cell in fold)) <= patching.FOLD_TOKENS
    places = sorted(many)
    every = []
    for n in range(len(places)):
        for ends in combinations(range(1, len(places)), n):
            cut = []
            for a, b in pairwise([0, *ends, len(places)]):
                some = sorted((c for c in cells if c.column in places[a:b]), key=lambda c: (c.start, c.column, c.variant))
                size = patching.FOLD_TOKENS // (rows * (n_cols - places[a]))
                cut += [some[i : i + size] for i in range(0, len(some), size)]
            every.append(cost(cut))
    assert cost(folds) <= min(every)
    assert 1 < len(folds) < len(cells)


def test_copies_that_join_on_the_way_up_are_as_if_each_ran_alone():
    lm = subject()
    base = encode(lm, pairs()).base
    recording, zeroed = record(lm, base), [zero(f"mlp_out.{layer}", "last") for layer in (0, 1, 2)]
    alone = [replay(recording, one).logits for one in zeroed]
    moved = [_copy(one, base, copy) for copy, one in enumerate(zeroed)]
    together = replay(recording, moved, times=3, starts=[0, 1, 2])
    for one, logits in zip(alone, together.logits.split(base.n_rows), strict=True):
        assert torch.allclose(one, logits, atol=1e-5)
    assert [firing.forwards for firing in together.firings] == [1, 1, 1]
    for starts in ([0, 2, 1], [0, 1]):
        with pytest.raises(EditError, match="3 rising start layers"):
            replay(recording, moved, times=3, starts=starts)
    with pytest.raises(EditError, match="captures only where copies start together"):
        replay(recording, moved, times=3, starts=[0, 1, 2], capture=[("resid_post.2", "last")])


def _copy(edit: Edit, base: Batch, copy: int) -> Edit:
    rows, cols = base.locate(edit.span)
    return replace(edit, places=(rows + copy * base.n_rows, cols))


@pytest.mark.parametrize("where", [Span.index(0), Span.slice(0, 9), Span("IO")])
def test_positions_before_the_first_difference_cost_no_forward_and_have_exactly_no_effect(where):
    lm = subject()
    patcher = Patcher(lm, encode(lm, pairs()), capture=SWEEP)
    with counting(lm) as work:
        assert np.array_equal(np.zeros((9, 1, 4)), patcher.grid(SWEEP, [where]))
        for site in SWEEP:
            assert np.array_equal(np.zeros(4), patcher.effect([patcher.swap(site, where)])[0])
        assert np.array_equal(np.zeros(4), patcher.joint(SWEEP, where))
    assert (work.total, work.from_the_bottom) == (0, 0)


def test_an_edit_in_the_final_stream_runs_no_layer_again():
    lm = subject()
    recording = record(lm, lm.encode([p.clean for p in pairs()]))
    with counting(lm) as work:
        for site in ("final_resid", "resid_post.2"):
            assert not torch.allclose(
                recording.logits, replay(recording, [add(site, "last", torch.linspace(-3, 3, 32))]).logits, atol=1e-2
            )
    assert work.total == 0


# --- every way to run keeps the account ----------------------------------------------------------------------


def test_every_way_to_run_counts_its_own_tokens():
    lm = subject()
    encoded = encode(lm, pairs())
    with counting(lm) as one:
        run(lm, encoded.base)
        run(lm, encoded.base, [zero("mlp_out.1", "S2")], capture=[("resid_pre.2", "all")])
    assert one.tokens == [2 * 56] * 3
    with counting(lm) as one:
        recording = record(lm, encoded.base)
    assert one.tokens == [56] * 3
    with counting(lm) as one:
        replay(recording, [zero("attn_out.1", "S2")], times=3, keep=2)
    assert one.tokens == [0, 3 * 4 * 5, 3 * 4 * 5]
    with counting(lm) as one:
        replay(recording, [zero("resid_post.1", "end")], keep=6)
    assert one.tokens == [0, 0, 4 * 6]
    with counting(lm) as one:
        replay(recording, [zero("resid_post.1", "end")], capture=[("mlp_out.1", "IO")])
    assert one.tokens == [0, 4 * 13, 4 * 13]
    with counting(lm) as one:
        branch(recording, encoded.source, 9)
    assert one.tokens == [4 * 5] * 3


def test_generation_counts_its_tokens_too():
    lm = subject()
    with counting(lm):
        lm.generate(lm.encode("Tom gave a drink to"), max_new_tokens=3, stop_at_eos=False)


@pytest.mark.parametrize("sites", [
    [Site("attn_out", 1), Site("head_result", 1, 2)],
    pytest.param([Site("head_z", 1, 2), Site("k", 0, 1)]),
])  # fmt: skip
def test_sites_named_at_the_start_cost_no_second_source_run(sites):
    lm = subject()
    patcher = Patcher(lm, encode(lm, pairs()), capture=sites)
    with counting(lm) as work:
        for site in sites:
            patcher.swap(site, "S2")
    assert work.from_the_bottom == 0


# --- and it is right -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_grid_equals_one_full_run_per_patch(family):
    lm = subject(family)
    items = [differing_at(2), differing_at(5, n=11, shift=3), differing_at(0, n=13, shift=7)]
    encoded = encode(lm, items)
    spans = [Span.index(i) for i in range(-11, 0)] + [Span("all"), Span.slice(3, 7)]
    sites = [*SWEEP, Site("head_z", 1, 2), Site("k", 1, 0), Site("resid_mid", 2)]
    effects = Patcher(lm, encoded).grid(sites, spans)
    plain = [run(lm, encoded.base).last, run(lm, encoded.source).last]
    mary, john = (lm.continuation_ids("the", word)[0] for word in (" Mary", " John"))
    total = (plain[1] - plain[0])[:, mary] - (plain[1] - plain[0])[:, john]
    for i, site in enumerate(sites):
        source = run(lm, encoded.source, capture=[(site, span) for span in spans]).captured
        for j, span in enumerate(spans):
            change = run(lm, encoded.base, [swap(site, span, source[site, span])]).last - plain[0]
            assert np.allclose((change[:, mary] - change[:, john]).numpy(), effects[i, j], atol=2e-5), f"{site} at {span}"
    assert np.allclose(total.numpy(), effects[SWEEP.index(Site("resid_post", 0)), spans.index(Span("all"))], atol=2e-5)


# --- contexts ------------------------------------------------------------------------------------------------


def test_a_replay_is_refused_where_the_model_was_changed_since_the_recording():
    lm = subject()
    batch = lm.encode([p.clean for p in pairs()])
    halved = scale("mlp_out.0", "all", 0.5)
    free = record(lm, batch)
    with edit(lm, halved):
        with pytest.raises(EditError, match="made under 0 context"):
            replay(free, [zero("mlp_out.2", "S2")])
        with pytest.raises(EditError, match="record inside the same contexts"):
            branch(free, batch, 9)
        under = record(lm, batch)
        found = replay(under, [zero("mlp_out.2", "S2")]).logits
        assert torch.allclose(found, run(lm, batch, [zero("mlp_out.2", "S2")]).logits, atol=1e-5)
    with pytest.raises(EditError, match="made under 1 context"):
        replay(under, [zero("mlp_out.2", "S2")])
    with attending(lm, [bias(AttentionEdge(1, 0, "last", "S2"), 3.0)]), pytest.raises(EditError, match="made under 0 context"):
        replay(free, [zero("mlp_out.2", "S2")])
    with edit(lm, capture=[(Site("mlp_out", 2), Span("all"))]):
        replay(free, [zero("mlp_out.2", "S2")])
    replay(free, [zero("mlp_out.2", "S2")])
