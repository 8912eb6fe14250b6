"""What every architecture family must keep: untouched means untouched, and every site is what its name says."""

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

from builders import BUILDERS, implementation, ioi_pair, prompt, subject, tokenizer
from mediant.core import Site, Span
from mediant.core.errors import SubjectError
from mediant.core.site import HEAD_KINDS, LAYERLESS_KINDS, SITE_KINDS
from mediant.interventions import Activation, Where, add, edit, run, scale, set_to, swap, zero
from mediant.interventions.attention import Rows, attending
from mediant.subject import Batch, Subject, wrap
from mediant.subject.families import FAMILIES

families = pytest.mark.parametrize("family", list(BUILDERS))
# Families in which heads and sublayers each add a part of their own to the stream, one after the other.
SEPARABLE = [f for f in BUILDERS if not subject(f).family.cannot and not subject(f).shape.parallel]
separable = pytest.mark.parametrize("family", SEPARABLE)
implementations = pytest.mark.parametrize("attention", ["sdpa", "eager"])
SHORT = prompt("Tom went to the store and gave Mary", S2="and", IO="store", end="Mary")
MIDDLE = prompt("Anna and the ball are near the park , said John", S2="park", IO="Anna", end="John")
ALL = Span("all")


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def sites(lm: Subject, layer: int = 1, n_layers: int = 3) -> list[Site]:
    """Every kind the family can address at one layer, per-head kinds whole and for one head, and the layerless ones."""
    kinds = [k for k in SITE_KINDS if k not in LAYERLESS_KINDS]
    whole = [Site(k, layer) for k in kinds] + [Site("resid_post", n_layers - 1)]
    every = whole + [Site(k, layer, 1) for k in sorted(HEAD_KINDS)] + [Site(k) for k in sorted(LAYERLESS_KINDS)]
    missing = {*lm.family.cannot, *(["resid_mid"] if lm.shape.parallel else [])}
    assert missing <= {"head_result", "resid_mid"}
    return [site for site in every if site.kind not in missing]


def clean_and_other(lm: Subject, side: str = "left") -> tuple[Batch, Batch]:
    """Three prompts of unequal length, and three others with the same lengths and spans."""
    pair = ioi_pair()
    shorter = prompt("Mary said are the ball are near two", S2="near", IO="Mary", end="two")
    other = prompt("keys the one gave drink When is , two three to", S2="two", IO="keys", end="to")
    return lm.encode([pair.clean, SHORT, MIDDLE], side=side), lm.encode([pair.counterfactual, shorter, other], side=side)


def grab(lm: Subject, batch: Batch, where: list[Site], span: Span = ALL, edits: tuple = ()) -> dict[Site, Tensor]:
    """Values of sites at a span."""
    out = run(lm, batch, edits, capture=[(s, span) for s in where])
    return {s: out.captured[s, span].values for s in where}


def captured(lm: Subject, batch: Batch, site: Site, span: Span = ALL) -> Activation:
    return run(lm, batch, capture=[(site, span)]).captured[site, span]


def close(expected: Tensor, got: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the largest difference is within `tolerance` of the largest value (at least 1)."""
    if expected.shape != got.shape or not expected.numel():
        return expected.shape == got.shape
    return float((expected - got).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


@functools.cache
def library_model(family: str, attention: str = "sdpa", dtype: torch.dtype = torch.float32) -> nn.Module:
    """The same tiny model built again and never shown to this package."""
    torch.manual_seed(0)
    model = BUILDERS[family]().to(dtype).eval()
    model.set_attn_implementation(implementation(family, attention))
    return model


def forward(model: nn.Module, batch: Batch) -> Tensor:
    return model(input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids, use_cache=False).logits


# --- untouched means untouched -------------------------------------------------------------------------------


@families
@implementations
@pytest.mark.parametrize("side", ["left", "right"])
def test_without_edits_every_logit_is_the_librarys_bit_for_bit(family, attention, side):
    lm = subject(family, attention=attention)
    batch, _ = clean_and_other(lm, side)
    expected = forward(library_model(family, attention), batch)
    assert torch.equal(expected, run(lm, batch, keep=batch.n_cols).logits)
    seen = run(lm, batch, capture=[(s, ALL) for s in sites(lm)], keep=batch.n_cols)
    assert torch.equal(expected, seen.logits)
    with edit(lm), edit(lm, zero("resid_pre.0", ALL, Where(rows=()))):
        assert torch.equal(expected, forward(lm.model, batch))
    with attending(lm), lm.reading(batch), attending(lm, rows=[Rows(1, "all"), Rows(2, "end", heads=(3,))]):
        assert torch.equal(expected, forward(lm.model, batch))
    assert torch.equal(expected, forward(lm.model, batch))


@families
def test_without_edits_bfloat16_and_generation_are_the_librarys_too(family):
    lm, exact = subject(family, dtype=torch.bfloat16), subject(family)
    batch, _ = clean_and_other(lm)
    rounded = run(lm, batch, keep=batch.n_cols).logits
    assert torch.equal(forward(library_model(family, dtype=torch.bfloat16), batch), rounded)
    assert close(run(exact, batch).last, rounded[:, -1].float(), 0.15)
    plain = library_model(family).generate(batch.ids, attention_mask=batch.mask.long(), max_new_tokens=6, do_sample=False)
    with edit(exact), attending(exact):
        assert torch.equal(plain[:, batch.n_cols :], exact.generate(batch, max_new_tokens=6))


# --- padding -------------------------------------------------------------------------------------------------


@families
@implementations
def test_padding_on_either_side_changes_no_row(family, attention):
    lm = subject(family, attention=attention)
    prompts = [ioi_pair().clean, SHORT, MIDDLE]
    vector = torch.linspace(-1, 1, 32)
    edits = [
        add("resid_post.0", "S2", vector, 3.0),
        scale("head_z.1.2", "IO", -2.0),
        zero("v.1.0", "end"),
        add("mlp_out.2", "last", vector),
    ]
    for chosen in ([], edits):
        alone = [_reading(lm, lm.encode(p), chosen) for p in prompts]
        for side in ("left", "right"):
            logits, values = _reading(lm, lm.encode(prompts, side=side), chosen)
            for row, (expected_logits, expected_values) in enumerate(alone):
                assert close(expected_logits[0], logits[row])
                for site, span in expected_values:
                    assert close(expected_values[site, span][0], values[site, span][row]), f"{site} at {span}, row {row}, {side}"


def _reading(lm: Subject, batch: Batch, edits: list) -> tuple[list[Tensor], dict]:
    """Per row: logits after its last token, and every site at spans of the prompt."""
    places = [(s, Span.of(n)) for s in sites(lm) for n in ("S2", "last")]
    out = run(lm, batch, edits, capture=places, keep=batch.n_cols)
    values = {place: [out.captured[place].values[out.captured[place].rows == r] for r in range(batch.n_rows)] for place in places}
    return [out.logits[r, batch.stop[r] - 1] for r in range(batch.n_rows)], values


# --- query heads and key/value heads -------------------------------------------------------------------------


@families
@pytest.mark.parametrize("head", [0, 1, 2, 3])
def test_zeroing_a_heads_z_equals_zeroing_its_columns_of_the_output_projection(family, head):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    model = copy.deepcopy(library_model(family))
    at = slice(8 * head, 8 * head + 8)
    weight = lm.family.out_proj_of(model, 1).weight
    weight[at if family == "gpt2" else (slice(None), at)] = 0
    expected, got = forward(model, batch)[:, -1], run(lm, batch, [zero(Site("head_z", 1, head), ALL)]).last
    assert close(expected, got)
    assert not close(run(lm, batch).last, got, 1e-3)


# OLMo 2 norms the queries of all heads, and the keys, together.
@pytest.mark.parametrize("family", [f for f in BUILDERS if f != "olmo2"])
@pytest.mark.parametrize("kind", ["k", "v", "q"])
def test_an_edit_of_a_projection_reaches_exactly_the_query_heads_that_read_it(family, kind):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    group = lm.shape.group if kind != "q" else 1
    z = Site("head_z", 1)
    before, weights = grab(lm, batch, [z])[z], _rows(lm, batch)
    for head in range(lm.shape.n_heads // group):
        change = zero(Site("v", 1, head), ALL) if kind == "v" else scale(Site(kind, 1, head), ALL, 3.0)
        if kind != "v" and family == "qwen3":  # its norm undoes a scale
            change = add(Site(kind, 1, head), ALL, torch.linspace(-2, 3, 8))
        after, now = grab(lm, batch, [z], edits=(change,))[z], _rows(lm, batch, change)
        for query_head in range(lm.shape.n_heads):
            mine = query_head // group == head
            assert torch.equal(before[:, query_head], after[:, query_head]) is not mine
            assert torch.equal(weights[:, query_head], now[:, query_head]) is not (mine and kind != "v")
            if mine and kind == "v":
                assert torch.equal(torch.zeros_like(after[:, query_head]), after[:, query_head])


def _rows(lm: Subject, batch: Batch, *edits) -> Tensor:
    with attending(lm, rows=[Rows(1, "all")]) as seen:
        run(lm, batch, edits)
    return seen.rows[0].weights


def test_heads_wider_than_their_share_of_the_model_are_addressed_by_their_own_width():
    torch.manual_seed(3)
    config = library_model("qwen3").config.to_dict() | {"head_dim": 12}
    model = type(library_model("qwen3"))(type(library_model("qwen3").config)(**config))
    lm = wrap(model, tokenizer())
    batch, _ = clean_and_other(lm)
    one, every, project = Site("head_result", 2, 3), Site("head_result", 2), model.model.layers[2].self_attn.o_proj
    found = grab(lm, batch, [Site("head_z", 2, 3), one, every, Site("attn_out", 2)])
    assert found[Site("head_z", 2, 3)].shape[-1] == 12
    assert close(found[Site("head_z", 2, 3)] @ project.weight[:, 36:].T, found[one])
    assert close(found[every].sum(1), found[Site("attn_out", 2)])


# --- every site is what its name says ------------------------------------------------------------------------


@families
@implementations
def test_writing_back_a_sites_own_values_changes_no_bit(family, attention):
    lm = subject(family, attention=attention)
    batch, _ = clean_and_other(lm, "left" if attention == "sdpa" else "right")
    spans = (ALL, Span("S2"), Span.slice(1, -2))
    out = run(lm, batch, capture=[(site, span) for site in sites(lm) for span in spans], keep=batch.n_cols)
    for (site, span), own in out.captured.items():
        got = run(lm, batch, [swap(site, span, own)], keep=batch.n_cols)
        assert torch.equal(out.logits, got.logits), f"{site} at {span}"
        assert [(1, len(own.rows), 0.0)] == [(f.forwards, f.tokens, f.change) for f in got.firings]


IMPLIED = {
    **{
        site: ["final_resid"]
        for site in ("embed", "resid_pre.1", "resid_mid.0", "resid_mid.2", "resid_post.1", "resid_post.2", "final_resid")
    },
    "attn_in.1": ["q.1", "k.1", "v.1", "head_z.1", "attn_out.1"],
    "q.1 k.1 v.1": ["head_z.1", "head_result.1", "attn_out.1"],
    "head_z.1": ["attn_out.1"],
    "head_result.1": ["attn_out.1"],
    "mlp_in.1": ["mlp_post.1", "mlp_out.1"],
    "mlp_post.1": ["mlp_out.1"],
    "resid_pre.1 attn_out.1": ["mlp_in.1", "mlp_out.1", "resid_post.1"],
    "resid_pre.1 mlp_out.1 attn_out.1": ["resid_post.1"],
}


@separable
def test_giving_a_whole_site_the_sources_values_gives_the_sources_later_computation(family):
    lm = subject(family)
    base, source = clean_and_other(lm)
    for written, implied in IMPLIED.items():
        given, follows = [Site.parse(s) for s in written.split()], [Site.parse(s) for s in implied]
        edits = tuple(swap(s, ALL, captured(lm, source, s)) for s in given)
        expected, got, unlike = grab(lm, source, follows), grab(lm, base, follows, edits=edits), grab(lm, base, follows)
        for site in follows:
            assert close(expected[site], got[site]), f"{written} should imply {site}"
            assert not close(unlike[site], got[site], 1e-3)
        if implied == ["final_resid"]:
            assert close(run(lm, source).last, run(lm, base, edits).last)


@families
def test_a_value_written_is_the_value_read(family):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    for site in sites(lm):
        third = captured(lm, batch, site).values[3]
        for change, expected in ((zero(site, ALL), torch.zeros(())), (set_to(site, ALL, third), third)):
            got = grab(lm, batch, [site], edits=(change,))[site]
            assert close(expected.expand_as(got), got), str(site)


@families
def test_of_two_values_written_to_one_place_the_later_holds(family):
    lm = subject(family)
    batch, source = clean_and_other(lm)
    for site in sites(lm):
        new = swap(site, ALL, captured(lm, source, site))
        expected = run(lm, batch, [new]).last
        for first in (scale(site, ALL, 3.0), zero(site, ALL)):
            assert close(expected, run(lm, batch, [first, new]).last), str(site)
        with edit(lm, first):
            assert close(expected, run(lm, batch, [new]).last), f"{site} in an inner context"


@separable
@pytest.mark.parametrize("kind", sorted(HEAD_KINDS))
def test_one_head_written_after_all_heads_and_all_after_one(family, kind):
    lm = subject(family)
    batch, source = clean_and_other(lm)
    one, every = Site(kind, 1, 1), Site(kind, 1)
    new, whole = captured(lm, source, one).values, captured(lm, source, every).values
    assert close(new, whole[:, 1])
    got = grab(lm, batch, [every], edits=(scale(every, ALL, 2.0), zero(every, ALL), swap(one, ALL, captured(lm, source, one))))[
        every
    ]
    assert close(new, got[:, 1])
    assert close(torch.zeros_like(got[:, 0]), got[:, 0])
    back = (scale(one, ALL, -3.0), swap(every, ALL, captured(lm, source, every)))
    assert close(whole, grab(lm, batch, [every], edits=back)[every])


RESIDUE = "what is written between attention and MLP is off by rounding, and the norms blow up the rounding of a zero"


@separable
@pytest.mark.parametrize("site", [
    "resid_pre.1", "resid_post.1", pytest.param("resid_mid.1")
])  # fmt: skip
def test_a_stream_set_to_zero_is_zero_to_the_last_bit(family, site):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    read = Site("mlp_in" if site == "resid_mid.1" else "attn_in", 2 if site == "resid_post.1" else 1)
    got = grab(lm, batch, [read], edits=(zero(site, ALL),))[read]
    assert torch.equal(torch.zeros_like(got), got)  # the norms' biases start at zero


@separable
@pytest.mark.parametrize(
    ("upstream", "derived"), [("resid_pre.1", "resid_mid.1"), ("resid_post.0", "resid_mid.1"), ("head_z.1.2", "head_result.1.2")]
)
def test_a_derived_site_sees_an_edit_upstream_of_it(family, upstream, derived):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    changed = scale(upstream, ALL, -1.5)
    got = run(lm, batch, [changed], capture=[(Site.parse(s), ALL) for s in (derived, "resid_pre.1", "attn_out.1", "head_z.1.2")])
    value = {str(site): a.values for (site, _), a in got.captured.items()}
    weight = lm.family.out_proj_of(lm.model, 1).weight if family != "gpt2" else lm.family.out_proj_of(lm.model, 1).weight.T
    made = value["resid_pre.1"] + value["attn_out.1"] if derived == "resid_mid.1" else value["head_z.1.2"] @ weight[:, 16:24].T
    assert close(made, value[derived])


NESTED = "an outer context notes the head values before an inner context edits them"
UPSTREAM = [
    ("resid_pre.1", "resid_mid.1"),
    ("head_z.1.2", "head_result.1.2"),
    ("v.1.0", "head_result.1"),
    ("attn_in.1", "head_z.1"),
]


@separable
@pytest.mark.parametrize("contexts", ["one", "inner upstream", "outer upstream"])
@pytest.mark.parametrize(("upstream", "written"), UPSTREAM)
def test_a_value_written_hides_every_edit_upstream_of_it(family, contexts, upstream, written):
    lm = subject(family)
    batch, source = clean_and_other(lm)
    site = Site.parse(written)
    first, then = scale(upstream, ALL, 2.0), swap(site, ALL, captured(lm, source, site))
    outer, inner = {"one": ([], [first, then]), "inner upstream": ([then], [first]), "outer upstream": ([first], [then])}[
        contexts
    ]
    read = Site("resid_mid" if written == "resid_mid.1" else "attn_out", 1)
    expected = grab(lm, batch, [read], edits=(then,))[read]
    with edit(lm, *outer):
        assert close(expected, grab(lm, batch, [read], edits=tuple(inner))[read])


@separable
def test_the_parts_of_a_layer_add_up(family):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    for layer in range(3):
        kinds = ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_result", "head_z"]
        value = {s.kind: v for s, v in grab(lm, batch, [Site(k, layer) for k in kinds]).items()}
        bias: Tensor | float = getattr(lm.family.out_proj_of(lm.model, layer), "bias", None)
        bias = 0.0 if bias is None else bias
        assert close(value["attn_out"], value["head_result"].sum(1) + bias)
        assert close(value["resid_mid"], value["resid_pre"] + value["attn_out"], 1e-6)
        assert close(value["resid_post"], value["resid_mid"] + value["mlp_out"], 1e-6)
        for head in range(4):
            one = grab(lm, batch, [Site("head_result", layer, head), Site("head_z", layer, head)])
            assert close(value["head_result"][:, head], one[Site("head_result", layer, head)])
            assert torch.equal(value["head_z"][:, head], one[Site("head_z", layer, head)])


@families
def test_the_last_layers_output_is_what_the_final_norm_reads_and_unembeds_to_the_logits(family):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    value = grab(lm, batch, [Site("resid_post", 2), Site("final_resid"), Site("embed"), Site("resid_pre", 0)], Span("last"))
    assert torch.equal(value[Site("resid_post", 2)], value[Site("final_resid")])
    assert torch.equal(value[Site("embed")], value[Site("resid_pre", 0)])
    assert close(run(lm, batch).last, lm.unembed(value[Site("final_resid")]))


@families
def test_what_sublayers_add_to_the_stream_is_what_the_stream_gains(family):
    lm = subject(family)
    batch, _ = clean_and_other(lm)
    for layer in range(3):
        kinds = ["resid_pre", "resid_post", "attn_out", "mlp_out"]
        value = {s.kind: v for s, v in grab(lm, batch, [Site(k, layer) for k in kinds]).items()}
        assert close(value["resid_post"], value["resid_pre"] + value["attn_out"] + value["mlp_out"])


def test_every_supported_family_is_in_this_suite():
    types = {subject(family).model.config.model_type for family in BUILDERS}
    # Those with eyes have a suite of their own.
    assert {f.name for f in FAMILIES if f.sight is None} - {"toy"} == {f.name for f in FAMILIES if types & set(f.model_types)}


def test_a_config_whose_heads_do_not_match_the_weights_is_refused():
    model = BUILDERS["neox"]()
    model.config.num_key_value_heads = 2
    with pytest.raises(SubjectError, match="projects to 96 numbers per token, but 4 query heads and 2 key"):
        wrap(model, tokenizer())
