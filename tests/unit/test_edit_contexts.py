"""Contexts of edits: what they report, what they refuse, and that they leave nothing behind."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from builders import prompts, rotation, vector
from mediant.core import Site, Span
from mediant.core.errors import EditError, EditNeverFired, MediantError, OutOfRange, SpanError, UnknownName
from mediant.interventions import (
    Activation,
    Edit,
    Where,
    add,
    edit,
    mean,
    project_out,
    record,
    replay,
    run,
    scale,
    set_to,
    swap,
    zero,
)
from mediant.subject import Batch, Subject

pytestmark = pytest.mark.usefixtures("no_gradients")
PROMPTS = prompts()
ALL, S2 = Span("all"), Span("S2")


@pytest.fixture
def batch(lm) -> Batch:
    return lm.encode(PROMPTS)


def values(lm: Subject, batch: Batch, site: str, *edits: Edit, span: Span = ALL) -> Activation:
    return run(lm, batch, edits, capture=[(site, span)]).captured[Site.parse(site), span]


def hooks(lm: Subject) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())


# --- reports and empty targets -------------------------------------------------------------------------------

NOWHERE = [Where(rows=()), Where(steps=()), Where(index=()), Where(rows=(), index=(1,), features=rotation(32, 3))]


@pytest.mark.parametrize("where", NOWHERE)
def test_an_edit_of_nothing_is_a_clean_no_op(lm, batch, where):
    expected, before = run(lm, batch).logits, hooks(lm)
    made = [add("resid_pre.1", "S2", vector(32), 3.0, where), zero("resid_mid.1", "generated", where)]
    with edit(lm, *made):
        assert torch.equal(expected, run(lm, batch).logits)
    assert hooks(lm) == before
    assert torch.equal(expected, run(lm, batch, made).logits)
    assert torch.equal(expected, replay(record(lm, batch), made).logits)


def test_a_report_counts_forwards_tokens_and_relative_change(lm, batch):
    everything = [
        add("mlp_out.0", "S2", vector(32), 2.0),
        scale("resid_mid.1", "all", 1.5),
        zero("v.1.0", "IO", Where(rows=(2, 0))),
    ]
    h = values(lm, batch, "mlp_out.0", span=S2).values
    with edit(lm, *everything) as active:
        run(lm, batch)
        run(lm, batch)
    found = active.firings()
    assert [(f.label, f.forwards, f.tokens) for f in found] == [
        ("add mlp_out.0 at S2", 2, 6),
        ("scale resid_mid.1 at all", 2, 52),
        ("set v.1.0 at IO", 2, 4),
    ]
    expected = [float((2 * vector(32)).norm() * 3**0.5 / h.norm()), 0.5, 1.0]
    assert expected == pytest.approx([f.change for f in found], rel=1e-4)


def test_there_is_one_report_per_edit_also_for_an_edit_of_nothing(lm, batch):
    out = run(lm, batch, [zero("resid_pre.1", "S2", Where(rows=())), zero("mlp_out.1", "S2")])
    assert [(f.label, f.forwards, f.tokens) for f in out.firings] == [
        ("set resid_pre.1 at S2", 0, 0),
        ("set mlp_out.1 at S2", 1, 3),
    ]


def test_an_edit_that_never_fires_is_an_error_that_names_it(lm, batch):
    fires, never = zero("mlp_out.1", "S2"), zero("resid_pre.1", "generated")
    with pytest.raises(EditNeverFired, match=r"^1 edit\(s\) never fired in 1 forward.*resid_pre\.1 at generated"):
        run(lm, batch, [fires, never])
    with pytest.raises(EditNeverFired, match="steps count"), edit(lm, zero("mlp_out.1", "all", Where(steps=(7,)))):
        lm.generate(batch, max_new_tokens=3, stop_at_eos=False)
    with pytest.raises(EditNeverFired), edit(lm, zero("mlp_out.1", "last", Where(steps=(0,)))):
        lm.generate(batch, max_new_tokens=3, stop_at_eos=False)
    with edit(lm, never) as active:
        pass
    assert [(f.forwards, f.tokens) for f in active.firings()] == [(0, 0)]


def test_steps_that_were_not_reached_are_listed(lm, batch):
    made = add("resid_post.1", "generated", vector(32), 1.0, Where(steps=(1, 9, 4, 0)))
    with edit(lm, made) as active:
        lm.generate(batch, max_new_tokens=3, stop_at_eos=False)
    assert [f.unreached_steps for f in active.firings()] == [(4, 9)]


# --- errors --------------------------------------------------------------------------------------------------

WRONG: list[tuple[Callable[[Subject, Batch], object], type[MediantError], str]] = [
    (lambda lm, b: zero("resid_pst.1", "S2"), UnknownName, r"'resid_pst'; did you mean 'resid_post'"),
    (lambda lm, b: zero("resid_post", "S2"), OutOfRange, "needs layer"),
    (lambda lm, b: zero("resid_post.3", "S2"), OutOfRange, r"layers 0 to 2"),
    (lambda lm, b: zero("head_z.1.4", "S2"), OutOfRange, r"query heads 0 to 3"),
    (lambda lm, b: zero("k.1.2", "S2"), OutOfRange, r"key/value heads 0 to 1"),
    (lambda lm, b: zero("mlp_out.1.0", "S2"), OutOfRange, r"takes no head 0"),
    (lambda lm, b: zero("mlp_out.1", "S3"), UnknownName, r"unknown span 'S3'; did you mean 'S2'"),
    (lambda lm, b: zero("mlp_out.1", Span.index(9)), SpanError, r"9:10 selects none of the 8 tokens of prompt 1"),
    (lambda lm, b: zero("mlp_out.1", Span.index(-5)), SpanError, r"none of the 4 tokens of prompt 2"),
    (lambda lm, b: add("mlp_out.1", "S2", torch.ones(31)), EditError, r"\(32,\), got \(31,\)"),
    (lambda lm, b: add("head_z.1.0", "S2", torch.ones(32)), EditError, r"\(8,\), got \(32,\)"),
    (lambda lm, b: set_to("head_z.1.0", "S2", torch.ones(4, 8)), EditError, r"\(8,\), got \(4, 8\)"),
    (lambda lm, b: project_out("mlp_post.1", "S2", torch.ones(32)), EditError, r"\(48,\), got \(32,\)"),
    (lambda lm, b: project_out("mlp_out.1", "S2", torch.zeros(32)), EditError, "zero vector"),
    (lambda lm, b: mean("head_z.1.0", "S2", values(lm, b, "head_z.1")), EditError, r"\(8,\), got \(4, 8\)"),
    (lambda lm, b: swap("mlp_out.1", "S2", values(lm, b, "mlp_out.1")), EditError, "holds 26 tokens where the base has 3"),
    (lambda lm, b: swap("mlp_out.1", "all", values(lm, b, "mlp_post.1")), EditError, r"\(32,\), got \(48,\)"),
    (lambda lm, b: swap("head_z.1.0", "all", values(lm, b, "head_z.1")), EditError, r"\(8,\), got \(4, 8\)"),
    (lambda lm, b: zero("mlp_out.1", "S2", Where(index=(3, 32))), OutOfRange, r"\[32\] do not exist.*0 to 31"),
    (lambda lm, b: zero("mlp_out.1", "S2", Where(index=(-1,))), OutOfRange, r"\[-1\] do not exist"),
    (lambda lm, b: zero("mlp_out.1", "S2", Where(features=rotation(32, 3), index=(3,))), OutOfRange, "features 0 to 2"),
    (lambda lm, b: add("mlp_out.1", "S2", torch.ones(32), where=Where(features=rotation(32, 3))), EditError, r"got \(32,\)"),
]
UNMENDED = [
    (lambda lm, b: zero("mlp_out.1", "S2", Where(rows=(3,))), OutOfRange, "row"),
    (lambda lm, b: zero("mlp_out.1", "S2", Where(rows=(-1,))), OutOfRange, "row"),
    (lambda lm, b: zero("head_z.1.0", "S2", Where(features=rotation(32, 3))), EditError, "32"),
]
RAW = ["a raw IndexError", "a negative row is taken from the end", "a raw RuntimeError of torch"]
CASES = WRONG + [pytest.param(*c) for c, r in zip(UNMENDED, RAW, strict=True)]


@pytest.mark.parametrize(("make", "error", "says"), CASES)
def test_what_does_not_fit_is_refused_by_name_and_leaves_nothing_behind(lm, batch, make, error, says):
    expected, before = run(lm, batch).logits, hooks(lm)
    with pytest.raises(error, match=says):
        run(lm, batch, [make(lm, batch)])
    assert hooks(lm) == before
    assert lm.window.batch is None
    assert torch.equal(expected, run(lm, batch).logits)


def test_values_of_tokens_that_were_not_captured_are_refused(lm, batch):
    found = values(lm, batch, "mlp_out.1", span=S2)
    assert torch.equal(found.values[[1]], found.select(found.rows[[1]], found.cols[[1]]).values)
    assert torch.equal(found.values.mean(0), found.mean())
    for rows, cols in (([0], [0]), ([2], [13]), ([1, 9], [int(found.cols[1]), 3])):
        with pytest.raises(EditError, match="not captured"):
            found.select(torch.tensor(rows), torch.tensor(cols))


# --- nothing left behind -------------------------------------------------------------------------------------


def run_and_fail(lm: Subject, batch: Batch) -> None:
    run(lm, batch)
    raise ZeroDivisionError


def test_an_exception_inside_a_context_leaves_nothing_and_is_not_hidden(lm, batch):
    expected, before = run(lm, batch).logits, hooks(lm)
    outer, inner = (
        edit(lm, zero("resid_mid.1", "generated")),
        edit(lm, zero("head_result.2.1", "S2"), capture=[(Site("embed"), ALL)]),
    )
    with pytest.raises(ZeroDivisionError), outer, inner:
        run_and_fail(lm, batch)
    handle = lm.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), edit(lm, add("mlp_out.2", "S2", vector(32))):
        lm.generate(batch, max_new_tokens=2)
    with pytest.raises(ZeroDivisionError):
        record(lm, batch)
    handle.remove()
    assert hooks(lm) == before
    assert (lm.window.batch, lm.window.offset, lm.window.width) == (None, 0, 0)
    assert torch.equal(expected, run(lm, batch).logits)


MANY_CONTEXTS = """
import gc, tracemalloc
import torch
from builders import ioi_pair, subject
from mediant.core import Site, Span
from mediant.interventions import add, edit, run, scale, zero

lm = subject()
batch = lm.encode([ioi_pair().clean])
vector = torch.ones(32)
made = [add("resid_mid.1", "S2", vector, 2.0), zero("head_result.1.2", "all"), scale("resid_post.2", "last", 2.0)]
hooks = lambda: [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
weights = lambda: [(p.data_ptr(), p._version, float(p.detach().double().sum())) for p in lm.model.parameters()]

def open_and_close(times):
    for i in range(times):
        with edit(lm, *made, capture=[(Site("mlp_out", 1), Span("all"))]):
            if i % 100 == 0:
                run(lm, batch)
    gc.collect()
    return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

with torch.no_grad():
    before, logits = (hooks(), weights()), run(lm, batch).logits
    tracemalloc.start()
    objects, size = open_and_close(1_000)
    more, grown = open_and_close(9_000)
    print(more - objects, grown - size, (hooks(), weights()) == before, torch.equal(logits, run(lm, batch).logits))
"""


def test_ten_thousand_contexts_leave_no_hook_no_memory_and_the_weights_as_they_were():
    # In a process of its own, because checking shapes costs milliseconds for every hook that is made.
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", MANY_CONTEXTS],
        env={**os.environ, "PYTHONPATH": tests},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    objects, size, clean, same = done.stdout.split()
    assert (clean, same) == ("True", "True")
    assert int(objects) < 200
    assert int(size) < 50_000


# --- forwards called by somebody else ------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_forward_called_on_the_model_itself_is_edited_by_its_own_mask(lm, side):
    batch = lm.encode(PROMPTS, side=side)
    expected = run(lm, batch, [zero("resid_pre.1", "last")], keep=batch.n_cols).logits
    with edit(lm, zero("resid_pre.1", "last")):
        got = lm.model(input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids).logits
    assert torch.equal(expected, got)
    assert lm.window.batch is None


def test_each_forward_called_on_the_model_itself_is_resolved_on_its_own_tokens(lm):
    change = zero("resid_pre.1", "last")
    expected = [run(lm, lm.encode(text), [change]).last for text in ("Tom gave a", "Tom gave a drink to", "Mary and")]
    with edit(lm, change):
        got = [
            lm.model(input_ids=lm.encode(text).ids).logits[:, -1] for text in ("Tom gave a", "Tom gave a drink to", "Mary and")
        ]
    assert [torch.allclose(a, b, atol=1e-5) for a, b in zip(expected, got, strict=True)] == [True] * 3
