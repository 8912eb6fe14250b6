"""Sites, spans and edges: what they are called, and what is refused."""

from dataclasses import FrozenInstanceError
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediant.core import AttentionEdge, CircuitEdge, Site, Span
from mediant.core.errors import MediantError, OutOfRange, SpanError, UnknownName
from mediant.core.site import HEAD_KINDS, KEY_VALUE_KINDS, LAYERLESS_KINDS, SITE_KINDS

KINDS = [
    "embed", "resid_pre", "resid_mid", "resid_post", "attn_in", "q", "k", "v", "head_z", "head_result", "attn_out", "mlp_in",
    "mlp_post", "mlp_out", "final_resid",
]  # fmt: skip
numbers = st.integers(0, 10**9 - 1)


@st.composite
def sites(draw) -> Site:
    kind = draw(st.sampled_from(KINDS))
    layer = None if kind in ("embed", "final_resid") else draw(numbers)
    head = draw(st.none() | numbers) if kind in ("q", "k", "v", "head_z", "head_result") else None
    return Site(kind, layer, head)


def test_the_kinds_are_those_of_the_field():
    assert list(SITE_KINDS) == KINDS
    assert {"q", "k", "v", "head_z", "head_result"} == HEAD_KINDS
    assert {"k", "v"} == KEY_VALUE_KINDS
    assert {"embed", "final_resid"} == LAYERLESS_KINDS


@given(sites())
def test_a_site_is_read_back_from_what_it_is_written_as(site):
    assert Site.parse(str(site)) == site
    assert hash(Site.parse(str(site))) == hash(site)
    assert repr(site) == f"Site('{site}')"


@pytest.mark.parametrize(
    ("site", "text"),
    [
        (Site("embed"), "embed"), (Site("resid_post", 12), "resid_post.12"), (Site("head_z", 9, 6), "head_z.9.6"),
        (Site("head_z", 0, 0), "head_z.0.0"), (Site("k", 3), "k.3"),
    ],
)  # fmt: skip
def test_a_site_is_written_with_dots(site, text):
    assert str(site) == text


@given(
    st.text(max_size=30) | st.builds(lambda k, rest: k + rest, st.sampled_from(KINDS), st.text("0123456789.-_ ²٣e", max_size=8))
)
def test_reading_a_site_raises_only_messages_for_the_user(text):
    try:
        site = Site.parse(text)
    except MediantError:
        return
    assert Site.parse(str(site)) == site


def test_an_unknown_kind_is_named_with_its_neighbours():
    with pytest.raises(UnknownName, match="unknown site 'resid_pst'; did you mean 'resid_post'"):
        Site("resid_pst", 1)


@pytest.mark.parametrize(
    ("kind", "layer", "head", "message"),
    [
        ("embed", 0, None, "'embed' belongs to no layer, got layer=0"),
        ("final_resid", 3, None, "'final_resid' belongs to no layer, got layer=3"),
        ("resid_post", None, None, "'resid_post' needs layer >= 0, got None"),
        ("resid_post", -1, None, "'resid_post' needs layer >= 0, got -1"),
        ("resid_post", 1, 0, "'resid_post' takes no head 0"),
        ("mlp_post", 1, 2, "'mlp_post' takes no head 2"),
        ("head_z", 1, -1, "'head_z' takes no head -1"),
        ("embed", None, 1, "'embed' takes no head 1"),
    ],
)
def test_a_layer_or_head_that_cannot_be_is_refused(kind, layer, head, message):
    with pytest.raises(OutOfRange, match=message):
        Site(kind, layer, head)


@pytest.mark.parametrize(
    "text", ["head_z.1.2.3", "resid_post.x", "resid_post.-1", "resid_post.", "resid_post.1.", "head_z.1.²", "q. 1"]
)
def test_a_site_in_another_form_is_refused_with_the_form_that_is_expected(text):
    with pytest.raises(OutOfRange, match=r"expected KIND, KIND\.LAYER or KIND\.LAYER\.HEAD"):
        Site.parse(text)


def test_sites_sort_by_kind_then_layer_then_head():
    names = ["mlp_out.0", "head_z.1.0", "head_z.0.10", "head_z.0.2"]
    assert [str(site) for site in sorted(Site.parse(name) for name in names)] == names[::-1]


def test_all_heads_of_a_layer_sort_before_single_ones_and_no_layer_before_the_first():
    names = ["head_z.1", "head_z.0.0", "head_z.0", "final_resid", "embed"]
    assert [str(site) for site in sorted(Site.parse(name) for name in names)] == names[::-1]


def test_a_layer_of_thousands_of_digits_is_refused_like_any_other():
    for digits in (10, 5000):
        with pytest.raises(OutOfRange, match="expected KIND"):
            Site.parse("resid_post." + "1" * digits)


def test_a_span_of_a_span_is_itself_and_of_a_name_has_that_name():
    span = Span("S2")
    assert Span.of(span) is span
    assert Span.of("S2") == span
    assert (span.start, span.stop) == (None, None)


@given(st.lists(st.integers(), min_size=1, max_size=8), st.data())
def test_an_index_span_cuts_out_the_one_token_at_the_index(tokens, data):
    i = data.draw(st.integers(-len(tokens), len(tokens) - 1))
    span = Span.index(i)
    assert tokens[span.start : span.stop] == [tokens[i]]


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (Span("IO"), "IO"), (Span.index(3), "3:4"), (Span.index(-1), "-1:"), (Span.index(-2), "-2:-1"), (Span.index(0), "0:1"),
        (Span.slice(2, 5), "2:5"), (Span.slice(2), "2:"), (Span.slice(-3, 0), "-3:0"),
    ],
)  # fmt: skip
def test_a_span_is_written_by_name_or_as_a_slice(span, text):
    assert str(span) == text
    assert repr(span) == f"Span('{text}')"


@pytest.mark.parametrize("fields", [("",), ("S2", 1), ("S2", 1, 2), ("", None, 3)])
def test_a_span_is_a_name_or_a_range_and_not_both_or_neither(fields):
    with pytest.raises(SpanError, match="a span is a name or a range of tokens, got name"):
        Span(*fields)


def test_a_named_span_has_no_stop():
    with pytest.raises(SpanError):
        Span("S2", None, 3)


indices = st.integers(-(10**9) + 1, 10**9 - 1)


@given(st.builds(Span.slice, indices, st.none() | indices) | st.builds(Span.index, indices.filter(lambda i: i < 10**9 - 1)))
def test_a_range_is_read_back_from_what_it_is_written_as(span):
    assert Span.of(str(span)) == span


@pytest.mark.parametrize("text", ["S2", "all", "2", ":", ":3", "2:5:1", "a:b", "2 :5", "1:2\n", "--1:2"])
def test_what_is_not_a_written_range_is_a_name(text):
    assert Span.of(text) == Span(text)


def test_the_empty_text_is_no_span():
    with pytest.raises(SpanError):
        Span.of("")


def test_an_attention_edge_takes_spans_by_name_and_every_head_as_none():
    edge = AttentionEdge(9, None, "last", Span.index(2))
    assert (edge.layer, edge.head, edge.query, edge.key) == (9, None, Span("last"), Span.index(2))
    assert edge == AttentionEdge(layer=9, head=None, query=Span("last"), key=Span.slice(2, 3))
    assert len({edge, AttentionEdge(9, 0, "last", Span.index(2))}) == 2


@pytest.mark.parametrize(("layer", "head"), [(-1, 0), (0, -1), (-1, None)])
def test_an_attention_edge_counts_layers_and_heads_from_zero(layer, head):
    with pytest.raises(OutOfRange, match=f"count from 0, got layer {layer}, head {head}"):
        AttentionEdge(layer, head, "last", "IO")
    assert AttentionEdge(0, 0, "last", "IO").layer == 0


@given(sites(), sites())
def test_a_circuit_edge_is_read_back_from_what_it_is_written_as(source, target):
    edge = CircuitEdge(source, target)
    assert str(edge) == f"{source}->{target}"
    assert CircuitEdge.parse(str(edge)) == edge
    assert repr(edge) == f"CircuitEdge('{source}->{target}')"


def test_a_circuit_edge_needs_an_arrow_and_two_sites():
    with pytest.raises(OutOfRange, match=r"expected SOURCE->TARGET, got 'head_z\.1\.1'"):
        CircuitEdge.parse("head_z.1.1")
    with pytest.raises(UnknownName, match="did you mean 'head_z'"):
        CircuitEdge.parse("embed->head_y.1.1")
    with pytest.raises(UnknownName):
        CircuitEdge.parse("->head_z.1.1")
    with pytest.raises(MediantError):
        CircuitEdge.parse("embed->mlp_in.1->mlp_in.2")


@pytest.mark.parametrize(
    "parts",
    [
        [Span("IO"), Span("S1"), Span("S2"), Span("last")],
        [Span.slice(-3, 2), Span.slice(1, 3), Span.slice(1, 4), Span.slice(2, 3)],
        [CircuitEdge.parse(e) for e in ("head_result.0.1->q.1.0", "head_result.0.1->q.1.2", "head_result.0.2->q.1.0")],
    ],
)
def test_named_spans_ranges_and_edges_sort_part_by_part(parts):
    assert all(sorted(order) == parts for order in permutations(parts))


def test_edges_and_spans_that_are_equal_are_one_in_a_set_and_none_can_be_changed():
    text = "head_result.0.1->q.1.0"
    assert len({CircuitEdge.parse(text), CircuitEdge.parse(text), CircuitEdge.parse("head_result.0.1->q.1.1")}) == 2
    assert len({Span("IO"), Span.of("IO"), Span.slice(2, 5), Span.of("2:5")}) == 2
    with pytest.raises(FrozenInstanceError):
        CircuitEdge.parse(text).source = Site("embed")
    with pytest.raises(FrozenInstanceError):
        Span("IO").name = "S2"
