"""Attention edits while generating and nested, and that their context leaves nothing behind."""

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from builders import BUILDERS, prompts, subject
from mediant.core import AttentionEdge, Span
from mediant.core.errors import EditError, EditNeverFired, MediantError, OutOfRange, SubjectError, UnknownName
from mediant.interventions import Where, add, edit, run
from mediant.interventions.attention import Bias, Rows, attending, bias, cut
from mediant.subject import Batch, Subject

pytestmark = pytest.mark.usefixtures("no_gradients")
PROMPTS = prompts("Anna")
every = pytest.mark.parametrize(("family", "attention"), [(f, a) for f in BUILDERS for a in ("sdpa", "eager")])
implementations = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture
def batch(lm) -> Batch:
    return lm.encode(PROMPTS)


def state(lm: Subject) -> tuple:
    """Everything outside the context that it touches."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules())
    names = (list(AttentionInterface._global_mapping), list(AttentionMaskInterface._global_mapping))
    window = (lm.window.batch, lm.window.offset, lm.window.width)
    return hooks, *names, lm.model.config._attn_implementation, lm.model.config._attn_implementation_internal, window


# --- generation ----------------------------------------------------------------------------------------------


def generated(
    lm: Subject, batch: Batch, changes: list[Bias], *, cached: bool = True, edits: tuple = ()
) -> tuple[Tensor, Tensor, list]:
    seen: list[Tensor] = []
    handle = lm.model.register_forward_hook(lambda *all: seen.append(all[-1].logits[:, -1]))
    try:
        with edit(lm, *edits), attending(lm, changes) as active:
            tokens = lm.generate(batch, max_new_tokens=5, use_cache=cached, stop_at_eos=False)
    finally:
        handle.remove()
    return tokens, torch.stack(seen, 1), active.firings()


CHANGES = {
    "from the last token": [bias(AttentionEdge(1, None, "last", "IO"), 6.0)],
    "from generated tokens": [
        bias(AttentionEdge(1, 2, "generated", "S2"), 6.0),
        cut(AttentionEdge(2, None, "generated", "last")),
    ],
    "from all tokens to the generated": [bias(AttentionEdge(1, None, "all", "generated"), 5.0)],
    "at some steps": [
        bias(AttentionEdge(1, None, "generated", "IO"), 8.0, steps=(1, 3)),
        cut(AttentionEdge(0, 1, "all", "S2"), steps=(0,)),
    ],
}


@every
@pytest.mark.parametrize("change", list(CHANGES))
def test_biases_while_generating_are_the_same_with_a_cache_without_one_and_as_masks_by_hand(family, attention, change):
    lm = subject(family, attention=attention)
    batch = lm.encode(PROMPTS)
    changes = CHANGES[change]
    tokens, logits, firings = generated(lm, batch, changes)
    slow_tokens, slow, _ = generated(lm, batch, changes, cached=False)
    assert slow_tokens.tolist() == tokens.tolist()
    assert torch.allclose(slow, logits, atol=1e-4)
    whole, queries = torch.cat([batch.ids, tokens[:, :-1]], 1), []
    expected = biased_by_hand(lm, batch, changes, whole, queries)
    assert torch.allclose(expected, logits, atol=1e-4)
    assert queries == [f.tokens for f in firings]
    assert not torch.allclose(generated(lm, batch, [])[1], logits, atol=1e-3)


def biased_by_hand(lm: Subject, batch: Batch, changes: list[Bias], whole: Tensor, queries: list[int]) -> Tensor:
    """Logits of the last five columns with every edge's bias put into the layers' masks, in the library's eager attention."""
    model, n = subject(lm.name.removeprefix("tiny-"), attention="eager").model, whole.shape[1]
    mask = torch.cat([batch.mask, torch.ones(len(whole), n - batch.n_cols, dtype=torch.bool)], 1)
    causal = torch.ones(n, n, dtype=torch.bool).tril() & mask[:, None] | torch.eye(n, dtype=torch.bool)
    plain = torch.zeros(len(whole), 4, n, n).masked_fill(~causal[:, None], torch.finfo(torch.float32).min)
    added = [torch.zeros(len(whole), 4, n, n) for _ in range(3)]
    for one in changes:
        total = 0
        for row in range(len(whole)):
            from_, to = (_columns(batch, row, s, n) for s in (one.edge.query, one.edge.key))
            from_ = [c for c in from_ if one.steps is None or c - batch.n_cols in one.steps]
            total += sum(any(k <= q for k in to) for q in from_)
            for q in from_:
                added[one.edge.layer][row, slice(None) if one.edge.head is None else one.edge.head, q, to] += max(one.beta, -1e30)
        queries.append(total)
    handles = [
        layer.register_forward_pre_hook(lambda m, args, kwargs, a=a: _with_mask(args, kwargs, plain + a), with_kwargs=True)
        for layer, a in zip(_attentions(model), added, strict=True)
    ]
    logits = model(
        whole, attention_mask=mask.long(), position_ids=(mask.long().cumsum(-1) - 1).clamp(min=0), logits_to_keep=5
    ).logits
    for handle in handles:
        handle.remove()
    return logits


def _attentions(model: nn.Module) -> list[nn.Module]:
    return [m for name, m in model.named_modules() if name.endswith((".attn", ".self_attn", ".attention"))]


def _with_mask(args: tuple, kwargs: dict, mask: Tensor) -> tuple[tuple, dict]:
    return args, kwargs | {"attention_mask": mask.clamp(min=torch.finfo(torch.float32).min)}


def _columns(batch: Batch, row: int, span: Span, n: int) -> list[int]:
    return batch.columns(row, span) + (list(range(batch.n_cols, n)) if span.name in ("all", "generated") else [])


def test_biases_work_together_with_edits_and_each_alone_differs(lm, batch):
    changes, push = CHANGES["from the last token"], add("resid_post.0", "all", torch.linspace(-1, 1, 32), 4.0, Where(rows=(0, 1)))
    both = generated(lm, batch, changes, edits=(push,))
    assert both[0].tolist() == generated(lm, batch, changes, edits=(push,), cached=False)[0].tolist()
    for other in (generated(lm, batch, changes), generated(lm, batch, [], edits=(push,))):
        assert not torch.allclose(both[1], other[1], atol=1e-2)
    assert torch.equal(both[1][2], generated(lm, batch, changes)[1][2])


# --- a clean exit --------------------------------------------------------------------------------------------


def run_and_fail(lm: Subject, batch: Batch) -> None:
    run(lm, batch)
    raise ZeroDivisionError


@implementations
def test_the_context_leaves_no_name_no_hook_and_the_same_implementation(attention):
    lm = subject(attention=attention)
    batch = lm.encode(PROMPTS)
    before, expected = state(lm), run(lm, batch).logits
    one, other = bias(AttentionEdge(1, 2, "last", "S2"), 3.0), bias(AttentionEdge(1, 2, "last", "IO"), 2.0)
    with attending(lm, [one], rows=[Rows(1, "last")]) as outer:
        within = state(lm)
        with attending(lm, [other], rows=[Rows(1, "last")]) as inner:
            nested = run(lm, batch).logits
            assert state(lm) != within
        assert within == state(lm)
        assert not torch.allclose(nested, run(lm, batch).logits, atol=1e-4)
    assert before == state(lm)
    with pytest.raises(ZeroDivisionError), attending(lm, [one]), attending(lm, [other]):
        run_and_fail(lm, batch)
    handle = lm.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), attending(lm, [one]):
        lm.generate(batch, max_new_tokens=2)
    handle.remove()
    assert before == state(lm)
    assert torch.equal(expected, run(lm, batch).logits)
    assert tuple([(f.forwards, f.tokens) for f in a.firings()] for a in (outer, inner)) == ([(2, 6)], [(1, 3)])


@implementations
def test_nested_biases_in_different_layers_equal_one_context_with_both(attention):
    lm = subject(attention=attention)
    batch = lm.encode(PROMPTS)
    one, other = bias(AttentionEdge(0, 2, "last", "S2"), 3.0), cut(AttentionEdge(2, None, "S2", "IO"))
    other = bias(AttentionEdge(2, None, "last", "IO"), 4.0)
    with attending(lm, [one, other]):
        expected = run(lm, batch).logits
    with attending(lm, [one]), attending(lm, [other]):
        assert torch.allclose(expected, run(lm, batch).logits, atol=1e-6)
    with attending(lm, [one]):
        assert not torch.allclose(expected, run(lm, batch).logits, atol=1e-3)


@implementations
def test_a_last_query_of_prompts_without_padding_needs_one_key(attention):
    lm = subject(attention=attention)
    before = state(lm)
    with pytest.raises(EditError, match="no key to attend to"), attending(lm, [cut(AttentionEdge(1, 2, "last", "all"))]):
        run(lm, lm.encode([PROMPTS[0]]))
    assert before == state(lm)


NESTED = "the inner context computes its row anew from plain logits, so the outer bias on that row is lost"


@implementations
def test_nested_biases_on_one_row_add_up_as_in_one_context(attention):
    lm = subject(attention=attention)
    batch = lm.encode(PROMPTS)
    one, other = bias(AttentionEdge(1, 2, "last", "S2"), 3.0), bias(AttentionEdge(1, 2, "last", "IO"), 4.0)
    with attending(lm, [one, other], rows=[Rows(1, "last")]) as together:
        expected = run(lm, batch).logits
    with attending(lm, [one]), attending(lm, [other], rows=[Rows(1, "last")]) as inner:
        got = run(lm, batch).logits
    assert torch.allclose(expected, got, atol=1e-5)
    assert torch.allclose(together.rows[0].weights, inner.rows[0].weights, atol=1e-5)


@pytest.mark.parametrize(("make", "error", "says"), [
    (lambda: AttentionEdge(3, 0, "last", "S2"), OutOfRange, "layers 0 to 2"),
    (lambda: AttentionEdge(1, 4, "last", "S2"), OutOfRange, "query heads 0 to 3"),
    (lambda: AttentionEdge(-1, 0, "last", "S2"), OutOfRange, "count from 0"),
    (lambda: AttentionEdge(1, 0, "lst", "S2"), UnknownName, "did you mean 'last'"),
    (lambda: AttentionEdge(1, 0, "last", "S3"), UnknownName, "did you mean 'S2'"),
])  # fmt: skip
def test_an_edge_that_does_not_exist_is_refused_and_leaves_nothing(lm, batch, make, error, says):
    before = state(lm)
    with pytest.raises(error, match=says), attending(lm, [bias(make(), 1.0)]):
        run(lm, batch)
    assert before == state(lm)


def test_rows_that_do_not_exist_and_edits_that_never_fire_are_refused(lm, batch):
    before = state(lm)
    for rows in (Rows(3), Rows(0, "last", (4,)), Rows(0, "S3")):
        with pytest.raises(MediantError), attending(lm, rows=[rows]):
            run(lm, batch)
    never = bias(AttentionEdge(1, 0, "generated", "S2"), 1.0)
    with (
        pytest.raises(EditNeverFired, match="1 attention edit"),
        attending(lm, [never, bias(AttentionEdge(1, 0, "last", "S2"), 1.0)]),
    ):
        run(lm, batch)
    with attending(lm, [never]):
        pass
    assert before == state(lm)


def test_an_implementation_that_takes_no_masks_is_refused(lm):
    before = lm.model.config._attn_implementation
    try:
        lm.model.config._attn_implementation = "flash_attention_2"
        with pytest.raises(SubjectError, match="takes no masks"), attending(lm):
            pass
    finally:
        lm.model.config._attn_implementation = before
