"""What edits report, and the tokens they reach: against sums written out, however firings are measured together."""

import pytest
import torch

from builders import prompts, subject
from mediant.core import Site, Span
from mediant.interventions import Where, edit, edits, run
from mediant.interventions.firings import FiringCount
from mediant.interventions.taps import Tokens

GEN = torch.Generator().manual_seed(0)


def firings(shapes: list[tuple[int, ...]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(shape, generator=GEN), torch.randn(shape, generator=GEN)) for shape in shapes]


@pytest.mark.parametrize(
    "shapes",
    [
        [(2, 8)] * 3,
        [(2, 8)] * 150,
        [(2, 8), (3, 8), (2, 8), (2, 3, 8), (1, 9000), (2, 8)],
        [(1, 4096), (1, 4097), (1, 4096)],
    ],
    ids=["few", "many", "mixed", "at the limit"],
)
def test_the_change_is_the_mean_over_firings_of_what_was_added_by_what_was_there(shapes):
    count, pairs = FiringCount(), firings(shapes)
    for step, (old, change) in enumerate(pairs):
        count.add(old, old + change, frozenset({step % 3}))
    report = count.report(edits.zero("resid_post.0", "all", Where(steps=(0, 1, 2, 7))))
    assert report.forwards == len(shapes)
    assert report.tokens == sum(shape[0] for shape in shapes)
    assert report.change == pytest.approx(float(torch.stack([c.norm() / o.norm() for o, c in pairs]).mean()), rel=1e-5)
    assert report.unreached_steps == tuple(sorted({0, 1, 2, 7} - {s % 3 for s in range(len(shapes))}))


def test_reporting_midway_changes_nothing_and_what_is_written_later_is_not_counted():
    count, pairs = FiringCount(), firings([(2, 8)] * 5)
    asked = edits.zero("resid_post.0", "all")
    for old, change in pairs[:2]:
        count.add(old, old + change, frozenset())
    wanted = float(torch.stack([c.norm() / o.norm() for o, c in pairs]).mean())
    count.report(asked)
    for old, change in pairs[2:]:
        count.add(old, old + change, frozenset())
        old.zero_()
    assert count.report(asked).change == pytest.approx(wanted, rel=1e-5)


def test_half_precision_is_measured_in_full():
    count = FiringCount()
    count.add(torch.full((1, 2000), 200.0, dtype=torch.float16), torch.full((1, 2000), 300.0, dtype=torch.float16), frozenset())
    assert count.report(edits.zero("resid_post.0", "all")).change == pytest.approx(0.5)


def test_an_edit_that_never_fired_reports_nothing_and_a_report_holds_no_graph():
    asked = edits.zero("resid_post.0", "all")
    assert FiringCount().report(asked).change == 0.0
    count = FiringCount()
    count.add(torch.ones(1, 4), torch.ones(1, 4, requires_grad=True), frozenset())
    assert not any(each.requires_grad for each in count._waiting)


@pytest.mark.parametrize(
    ("rows", "cols", "whole"),
    [
        ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2], True),
        ([0, 0, 0, 1, 1], [0, 1, 2, 0, 1], False),
        ([1, 1, 1, 0, 0, 0], [0, 1, 2, 0, 1, 2], False),
        ([0, 1], [2, 2], False),
    ],
    ids=["all", "one missing", "in another order", "last"],
)
def test_tokens_are_picked_and_put_back_where_they_were(rows, cols, whole):
    raw = torch.randn(2, 3, 4, generator=GEN)
    kept, at = raw.clone(), Tokens(torch.tensor(rows), torch.tensor(cols), raw)
    assert at.whole == whole
    assert torch.equal(at.of(raw), raw[rows, cols])
    new = torch.randn(len(rows), 4, generator=GEN, dtype=torch.float64)
    wanted = raw.clone()
    wanted[rows, cols] = new.float()
    assert torch.equal(at.put(raw, new), wanted)
    assert at.put(raw, new).dtype == raw.dtype
    assert torch.equal(raw, kept)


def test_a_capture_of_all_tokens_keeps_its_values_when_the_model_writes_into_them():
    lm = subject("llama")
    batch = lm.encode(prompts()[:1])
    place = (Site.parse("resid_post.0"), Span("all"))
    clean = run(lm, batch, capture=[place]).captured[place].values
    handle = lm.layers[1].register_forward_hook(lambda _m, args, kwargs, _out: first(args, kwargs).zero_(), with_kwargs=True)
    try:
        with torch.no_grad(), edit(lm, capture=[place]) as active:
            lm.model(**lm.feed(batch))
    finally:
        handle.remove()
    assert torch.equal(active.captured()[place].values, clean)


def first(args, kwargs) -> torch.Tensor:
    return kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
