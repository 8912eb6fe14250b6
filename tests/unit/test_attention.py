"""Attention rows against the library's own weights, biased and cut edges against a softmax by hand."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from builders import BUILDERS, prompt, prompts, subject, tokenizer
from mediant.core import AttentionEdge, Site, Span
from mediant.core.errors import EditError, EditNeverFired, MediantError
from mediant.interventions import run
from mediant.interventions.attention import Rows, attending, bias, cut
from mediant.subject import Batch, wrap

pytestmark = pytest.mark.usefixtures("no_gradients")
PROMPTS = prompts("Anna")
every = pytest.mark.parametrize(("family", "attention"), [(f, a) for f in BUILDERS for a in ("sdpa", "eager")])
implementations = pytest.mark.parametrize("attention", ["sdpa", "eager"])


@pytest.fixture
def batch(lm) -> Batch:
    return lm.encode(PROMPTS)


def librarys_weights(family: str, batch: Batch) -> tuple[Tensor, ...]:
    """Per layer (row, head, query, key), from transformers itself."""
    model = subject(family, attention="eager").model
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "position_ids": batch.position_ids}
    return model(**inputs, output_attentions=True, use_cache=False).attentions


def by_hand(weights: Tensor, changes: Tensor) -> Tensor:
    """Softmax of logits to which `changes` were added, from the weights they gave before: (key) each."""
    scaled = weights.double() * changes.double().exp()
    return (scaled / scaled.sum()).float()


# --- observing -----------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_observed_rows_are_the_librarys_attention_weights(family, attention, padding):
    lm = subject(family, attention=attention)
    batch = lm.encode(PROMPTS[0]) if padding == "none" else lm.encode(PROMPTS, side=padding)
    asked = [Rows(0, "all"), Rows(2, "S2", (3, 1)), Rows(1, Span.index(-2), (0,)), Rows(2, "last")]
    with attending(lm, rows=asked) as seen:
        run(lm, batch)
    truth = librarys_weights(family, batch)
    for observed in seen.rows:
        request = observed.request
        rows, cols = batch.locate(Span.of(request.query))
        heads = list(range(4)) if request.heads is None else list(request.heads)
        expected = truth[request.layer][rows, :, cols][:, heads]
        assert rows.tolist() == torch.cat(observed.rows).tolist()
        assert cols.tolist() == torch.cat(observed.cols).tolist()
        assert torch.allclose(expected, observed.weights, atol=1e-6)


def test_rows_of_generated_tokens_are_those_of_the_whole_text(lm, batch):
    asked = [Rows(1, "generated"), Rows(2, "all", (2,)), Rows(0, "last")]
    with attending(lm, rows=asked) as seen:
        tokens = lm.generate(batch, max_new_tokens=4, stop_at_eos=False)
    width = batch.n_cols + 3
    mask = torch.cat([batch.mask, torch.ones(3, 3, dtype=torch.bool)], 1)
    whole = Batch(torch.cat([batch.ids, tokens[:, :3]], 1), mask, ({},) * 3, batch.start, (width,) * 3)
    truth = librarys_weights("llama", whole)
    for observed, count in zip(seen.rows, (9, 26 + 9, 3), strict=True):
        rows, cols = torch.cat(observed.rows), torch.cat(observed.cols)
        heads = list(range(4)) if observed.request.heads is None else list(observed.request.heads)
        expected = truth[observed.request.layer][rows, :, cols][:, heads]
        assert count == len(rows) == len({(r, c) for r, c in zip(rows.tolist(), cols.tolist(), strict=True)})
        assert torch.allclose(expected[..., : observed.weights.shape[-1]], observed.weights, atol=1e-6)


def test_only_the_rows_asked_for_are_stored(lm, batch):
    with attending(lm, rows=[Rows(1, "S2", (2,)), Rows(0, "last")]) as seen:
        run(lm, batch)
        run(lm, batch)
    assert [[tuple(p.shape) for p in o.parts] for o in seen.rows] == [[(3, 1, 14)] * 2, [(3, 4, 14)] * 2]
    with attending(lm, rows=[Rows(1, "S2")]) as seen, pytest.raises(EditError, match="no attention row"):
        _ = seen.rows[0].weights


class LargestTensor(TorchDispatchMode):
    """Notes the most elements any operation gave out."""

    most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.most = max(
            [self.most, *(t.numel() for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor))]
        )
        return out


def test_memory_grows_with_the_rows_asked_for_and_not_with_length_squared():
    length = 2048
    torch.manual_seed(0)
    config = type(subject().model.config)(**subject().model.config.to_dict() | {"max_position_embeddings": length})
    lm = wrap(LlamaForCausalLM(config), tokenizer())
    batch = lm.encode("Mary and " + "Mary gave John a ball and " * 341)
    assert batch.n_cols == length
    changes = [
        bias(AttentionEdge(1, 2, "last", Span.slice(3, 6)), 3.0),
        cut(AttentionEdge(2, None, Span.index(700), Span.index(5))),
    ]
    with LargestTensor() as plain:
        run(lm, batch)
    with LargestTensor() as watched, attending(lm, changes, rows=[Rows(0, "last"), Rows(1, Span.slice(-3), (0, 1))]) as seen:
        run(lm, batch)
    assert [(1, 4, length), (3, 2, length)] == [tuple(o.weights.shape) for o in seen.rows]
    assert watched.most <= max(plain.most, 4 * 4 * length) < length * length / 30


# --- biasing and cutting -------------------------------------------------------------------------------------


@every
def test_a_biased_row_is_the_softmax_of_the_biased_logits_and_the_output_follows(family, attention):
    lm = subject(family, attention=attention)
    batch = lm.encode(PROMPTS)
    truth = librarys_weights(family, batch)[1]
    changes = [
        bias(AttentionEdge(1, 2, "last", "S2"), 3.0),
        bias(AttentionEdge(1, None, "last", "IO"), -1.5),
        bias(AttentionEdge(1, 0, "last", "all"), 2.0),
    ]
    z, v = Site("head_z", 1), Site("v", 1)
    with attending(lm, changes, rows=[Rows(1, "last")]) as seen:
        out = run(lm, batch, capture=[(z, Span("last")), (v, Span("all"))])
    plain = run(lm, batch, capture=[(z, Span("all"))])
    values = out.captured[v, Span("all")]
    for row in range(3):
        for head in range(4):
            added = torch.zeros(batch.n_cols)
            added[batch.columns(row, Span("S2"))] += 3.0 if head == 2 else 0.0
            added[batch.columns(row, Span("IO"))] += -1.5
            expected = by_hand(truth[row, head, batch.n_cols - 1], added)
            assert torch.allclose(expected, seen.rows[0].weights[row, head], atol=1e-5)
            mine = values.rows == row
            carried = expected[values.cols[mine]] @ values.values[mine, head // lm.shape.group]
            assert torch.allclose(carried, out.captured[z, Span("last")].values[row, head], atol=1e-5)
    assert not torch.allclose(plain.last, out.last, atol=1e-3)
    assert [(f.forwards, f.tokens) for f in seen.firings()] == [(1, 3)] * 3


@implementations
def test_queries_and_heads_that_were_not_named_stay_as_they_were(attention):
    lm = subject(attention=attention)
    batch = lm.encode(PROMPTS)
    z = (Site("head_z", 1), Span("all"))
    before = run(lm, batch, capture=[z]).captured[z]
    with attending(lm, [bias(AttentionEdge(1, 2, "S2", "IO"), 8.0), cut(AttentionEdge(1, 0, "last", "S2"))]):
        after = run(lm, batch, capture=[z]).captured[z]
    changed = set(_changed(before, after, 1e-5))
    allowed = {(r, c, 2) for r in range(3) for c in batch.columns(r, Span("S2"))} | {(r, batch.n_cols - 1, 0) for r in range(3)}
    assert changed <= allowed
    assert {h for *_, h in changed} == {0, 2}
    # The two heads' rows are computed again for both spans, so there they may differ in their last bit; nowhere else.
    anew = {(r, c, h) for r in range(3) for c in [*batch.columns(r, Span("S2")), batch.n_cols - 1] for h in (0, 2)}
    assert set(_changed(before, after, 0.0)) <= anew


def _changed(before, after, by: float) -> list[tuple[int, int, int]]:
    differs = (before.values - after.values).abs().amax(-1) > by
    return [(int(before.rows[n]), int(before.cols[n]), int(h)) for n, h in torch.nonzero(differs)]


@every
def test_a_cut_edge_has_weight_exactly_zero_and_the_rest_is_renormalised(family, attention):
    lm = subject(family, attention=attention)
    batch = lm.encode(PROMPTS)
    truth = librarys_weights(family, batch)[2]
    with attending(lm, [cut(AttentionEdge(2, 1, "last", Span.slice(0, 2)))], rows=[Rows(2, "last", (1,))]) as seen:
        run(lm, batch)
    for row in range(3):
        keep = torch.ones(batch.n_cols)
        keep[batch.columns(row, Span.slice(0, 2))] = 0
        got, expected = seen.rows[0].weights[row, 0], truth[row, 1, -1] * keep
        assert torch.equal(torch.zeros(2), got[batch.columns(row, Span.slice(0, 2))])
        assert torch.allclose(expected / expected.sum(), got, atol=1e-6)


@implementations
def test_a_large_bias_takes_all_mass_and_cutting_the_others_does_the_same(attention):
    lm = subject(attention=attention)
    batch = lm.encode([PROMPTS[0]])
    at = Span.index(9)
    z, v = (Site("head_z", 1, 3), Span("last")), (Site("v", 1, 1), at)
    others = [cut(AttentionEdge(1, 3, "last", Span.slice(0, 9))), cut(AttentionEdge(1, 3, "last", Span.slice(10)))]
    for changes in ([bias(AttentionEdge(1, 3, "last", at), 1e4)], [bias(AttentionEdge(1, 3, "last", at), 1e30)], others):
        with attending(lm, changes, rows=[Rows(1, "last", (3,))]) as seen:
            found = run(lm, batch, capture=[z, v]).captured
        assert torch.equal(torch.eye(14)[9], seen.rows[0].weights[0, 0])
        assert torch.allclose(found[v].values, found[z].values, atol=1e-6)


def test_a_bias_never_opens_a_key_that_the_mask_hides(lm):
    batch = lm.encode(PROMPTS, side="right")
    changes = [
        bias(AttentionEdge(1, None, "S2", "all"), 50.0),
        bias(AttentionEdge(1, 0, Span.index(1), "last"), 50.0),
        bias(AttentionEdge(1, 0, "last", "last"), 1.0),
    ]
    with attending(lm, changes[:1], rows=[Rows(1, "S2")]) as seen:
        run(lm, batch)
    for row, weights in enumerate(seen.rows[0].weights):
        column = batch.columns(row, Span("S2"))[0]
        assert float(weights[:, column + 1 :].abs().max()) == 0.0
        assert torch.allclose(librarys_weights("llama", batch)[1][row, :, column], weights, atol=1e-5)
    with pytest.raises(EditNeverFired, match=r"1 attention edit.*query=Span\('1:2'\)"), attending(lm, changes[1:]):
        run(lm, batch)  # that key comes after the query


@pytest.mark.parametrize(("dtype", "attention"), [
    (torch.float32, "eager"), (torch.bfloat16, "eager"), (torch.bfloat16, "sdpa"), (torch.float16, "sdpa"),
    (torch.float16, "eager"),
])  # fmt: skip
def test_a_later_key_stays_closed_in_every_precision(dtype, attention):
    lm = subject(dtype=dtype, attention=attention)
    batch = lm.encode(PROMPTS)
    hopeless = bias(AttentionEdge(1, 0, Span.index(1), "last"), 1e5)
    with pytest.raises(EditNeverFired), attending(lm, [hopeless], rows=[Rows(1, Span.index(1), (0,))]) as seen:
        run(lm, batch)
    assert int(seen.rows[0].weights[0, 0, 2:].count_nonzero()) == 0


@implementations
@pytest.mark.parametrize("query", ["first", "S2", "last"])
def test_a_query_needs_one_key(attention, query):
    lm = subject(attention=attention)
    texts = ["When Mary and John went to the store", "Tom went to the store"]
    batch = lm.encode([prompt(texts[0], S2="went", part="Mary"), prompt(texts[1], S2="the", part=texts[1])])
    key = "part" if query == "last" else "all"  # the second prompt, after padding, loses all of its keys
    with (
        pytest.raises(EditError, match="no key to attend to"),
        attending(lm, [cut(AttentionEdge(1, 2, Span.index(0) if query == "first" else query, key))]),
    ):
        run(lm, batch)


@pytest.mark.parametrize("beta", [float("inf"), float("nan")])
def test_a_bias_that_is_no_number_is_refused(lm, batch, beta):
    with pytest.raises(MediantError), attending(lm, [bias(AttentionEdge(1, 2, "last", "S2"), beta)]):
        run(lm, batch)
