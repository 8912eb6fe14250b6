"""Planted circuits: what every method must find, and what each cannot."""

import numpy as np
import pytest
import torch

from mediant.core import Site, Span
from mediant.core.errors import OutOfRange, UnknownName
from mediant.search import Patcher, decompose, direct_effect, interplay, path_patch, rank
from mediant.tasks.encode import encode
from mediant.tasks.toys import CONST, OUT, P0, TOYS, VA, VB, VOCABULARY, Toy, plant

ALL = Span("all")


def ready(toy: Toy, direction="noising") -> Patcher:
    return Patcher(toy.subject, encode(toy.subject, toy.pairs, direction=direction))


def head_effects(toy: Toy, direction="noising") -> dict[str, float]:
    patcher = ready(toy, direction)
    values = patcher.grid(toy.subject.heads(), [ALL])[:, 0, 0]
    return {str(site): float(v) for site, v in zip(toy.subject.heads(), values, strict=True)}


@pytest.mark.parametrize("name", [name for name in TOYS if name != "linear"])
def test_a_toy_says_yes_to_ones_and_no_to_zeros(name):
    patcher = ready(plant(name))
    assert patcher.before.tolist() == [1.0]
    assert patcher.source.tolist() == [-1.0]


TRUTH = {
    "single": lambda a, b: a,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
    "backup": lambda a, b: a,
    "cancelling": lambda a, b: a,
}


@pytest.mark.parametrize("name", TRUTH)
def test_a_toy_computes_its_truth_table(name):
    toy = plant(name)
    for a in (0, 1):
        for b in (0, 1):
            batch = toy.subject.encode(f"a{a} b{b} =")
            logits = toy.subject.model(batch.ids, batch.mask.long(), batch.position_ids).logits[0, -1]
            best = VOCABULARY[int(logits.argmax())]
            assert best == ("yes" if TRUTH[name](a, b) else "no"), (a, b)


def test_the_single_carrier_is_the_only_head_with_an_effect():
    assert head_effects(plant("single")) == {"head_z.0.0": -2.0, "head_z.0.1": 0.0, "head_z.0.2": 0.0}


@pytest.mark.parametrize(
    ("name", "direction"), [("single", "noising"), ("and", "noising"), ("or", "denoising"), ("cancelling", "noising")]
)
def test_planted_mediators_are_ranked_first(name, direction):
    toy = plant(name)
    ranking = rank(toy.subject, toy.pairs * 2, toy.subject.heads(), direction=direction)
    assert set(ranking.sites(len(toy.mediators))) == set(toy.mediators)


def test_an_and_gate_shows_under_noising_and_hides_under_denoising():
    toy = plant("and")
    assert {k for k, v in head_effects(toy).items() if v} == {"head_z.0.0", "head_z.0.1"}
    assert set(head_effects(toy, "denoising").values()) == {0.0}


def test_an_or_gate_hides_under_noising_and_shows_under_denoising():
    toy = plant("or")
    assert set(head_effects(toy).values()) == {0.0}
    assert {k for k, v in head_effects(toy, "denoising").items() if v} == {"head_z.0.0", "head_z.0.1"}


def test_a_backup_hides_the_primary_from_noising_but_not_from_denoising():
    toy = plant("backup")
    assert set(head_effects(toy).values()) == {0.0}
    assert head_effects(toy, "denoising")[str(toy.roles["primary"])] == 2.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [("linear", "additive"), ("and", "conjunctive"), ("or", "redundant"), ("backup", "backup"), ("cancelling", "cancelling")],
)
def test_interplay_names_each_circuit_for_what_it_is(name, kind):
    toy = plant(name)
    assert interplay(ready(toy), *toy.mediators[:2]).kind == kind


def test_interplay_reports_what_the_backup_makes_up_for():
    found = interplay(ready(plant("backup")), *plant("backup").mediators)
    assert (found.alone_a, found.alone_b, found.together, found.held, found.compensation) == (0.0, 0.0, -2.0, -2.0, -2.0)


def test_the_linear_toy_has_no_interaction():
    toy = plant("linear")
    for sites in ([toy.roles["a"]], [toy.roles["b"]], [toy.roles["a"], toy.roles["b"]], [toy.roles["late"]]):
        found = decompose(toy.subject, toy.pairs, at=sites)
        assert np.abs(found.interaction).max() < 1e-6
        assert np.allclose(found.indirect + found.direct, found.total, atol=1e-6)


def test_an_and_gate_interacts():
    found = decompose(plant("and").subject, plant("and").pairs, at=[Site("head_z", 0, 0)])
    assert (found.total[0], found.indirect[0], found.direct[0], found.interaction[0]) == (-2.0, -2.0, -2.0, 2.0)


def linear_by_hand(a: float, b: float, patched: dict[str, float]) -> float:
    """logit(yes) - logit(no) of the linear toy, written out."""
    value_a = patched.get("a", a)
    value_b = patched.get("b", b)
    out = 0.5 * value_b + 0.75 * value_a + 0.25
    late = patched.get("late", value_a)
    return 2 * (out - 2.0 * late - 0.5)


@pytest.mark.parametrize("role", ["a", "b", "late"])
def test_patching_by_hooks_equals_recomputing_the_network_by_hand(role):
    toy = plant("linear")
    clean, patched = linear_by_hand(1, 1, {}), linear_by_hand(1, 1, {role: 0.0})
    assert abs(ready(toy).joint([toy.roles[role]])[0] - (patched - clean)) < 1e-6


def test_swapping_everything_gives_the_sources_output():
    for name in TOYS:
        patcher = ready(plant(name))
        last = Site("resid_post", plant(name).subject.shape.n_layers - 1)
        assert np.allclose(patcher.joint([last]), patcher.total, atol=1e-6)


def test_direct_effects_follow_the_wiring():
    toy = plant("linear")
    patcher = ready(toy)
    assert direct_effect(patcher, toy.roles["a"]).tolist() == [0.0]
    assert direct_effect(patcher, toy.roles["b"]).tolist() == [-1.0]
    assert direct_effect(patcher, toy.roles["late"]).tolist() == [4.0]


def test_paths_split_the_effect_of_a_sender_over_its_receivers():
    toy = plant("linear")
    patcher = ready(toy)
    through_late = path_patch(patcher, toy.roles["a"], [Site("v", 1, 2)], through_mlps=False)
    through_mlp = path_patch(patcher, toy.roles["a"], [Site("mlp_in", 0)], through_mlps=False)
    assert through_late.tolist() == [4.0]
    assert through_mlp.tolist() == [-1.5]
    assert abs(through_late[0] + through_mlp[0] - patcher.joint([toy.roles["a"]])[0]) < 1e-6


def test_the_backup_reads_its_switch_through_the_query():
    toy = plant("backup")
    patcher = ready(toy)
    assert path_patch(patcher, toy.roles["primary"], [Site("q", 1, 1)]).tolist() == [2.0]
    assert path_patch(patcher, toy.roles["primary"], [Site("v", 1, 1)]).tolist() == [0.0]


def test_a_path_must_lead_forward():
    toy = plant("backup")
    with pytest.raises(OutOfRange, match="does not come after"):
        path_patch(ready(toy), toy.roles["backup"], [Site("v", 0, 1)])
    with pytest.raises(OutOfRange, match="is no port"):
        path_patch(ready(toy), toy.roles["primary"], [Site("attn_out", 1)])


def test_an_unknown_toy_is_named_with_its_neighbours():
    with pytest.raises(UnknownName, match="backup"):
        plant("bakup")


def test_the_wiring_is_what_the_docstring_says():
    attn = plant("single").subject.model.model.layers[0].attn
    assert torch.count_nonzero(attn.o.weight).item() == 2
    assert attn.o.weight[OUT, 0].item() == 1
    assert attn.v.weight[0, VA].item() == 1
    assert attn.v.weight[2, VB].item() == 1
    assert attn.k.weight[0, P0].item() == 1
    assert attn.q.weight[0, CONST].item() > 100


def test_paths_start_at_what_writes_to_the_stream():
    toy = plant("linear")
    patcher = ready(toy)
    for kind in ("q", "k", "v", "mlp_in", "mlp_post", "attn_in"):
        with pytest.raises(OutOfRange, match="does not write to the stream by itself"):
            direct_effect(patcher, Site(kind, 0))
        with pytest.raises(OutOfRange, match="does not write to the stream by itself"):
            path_patch(patcher, Site(kind, 0), [Site("final_resid")])
    with pytest.raises(OutOfRange, match="no receivers"):
        path_patch(patcher, toy.roles["a"], [])


def test_all_heads_together_reach_their_own_layers_mlp_and_no_earlier_port():
    toy = plant("linear")
    patcher, mlp = ready(toy), [Site("mlp_in", 0)]
    one = path_patch(patcher, toy.roles["a"], mlp)
    assert one.tolist() == path_patch(patcher, Site("attn_out", 0), mlp).tolist() == [-1.5]
    assert path_patch(patcher, Site("resid_mid", 0), mlp).tolist() == [-1.5]
    assert path_patch(patcher, Site("head_result", 0, 0), mlp).tolist() == [-1.5]
    with pytest.raises(OutOfRange, match="does not come after"):
        path_patch(patcher, Site("attn_out", 0), [Site("v", 0, 0)])
