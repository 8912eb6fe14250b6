"""Which method finds which planted circuit: the table of docs/how-to/positional-circuits.md, number by number."""

import numpy as np
import pytest

from mediant.interventions.ports import graph_of
from mediant.measures.faithfulness import auroc
from mediant.search.attribution import eap
from mediant.search.exact import edge_patching, edges_in_company
from mediant.tasks.toys import TOYS, Toy, plant

METHODS = {
    "eap": lambda toy: eap(toy.subject, toy.pairs),
    "clean-corrupted": lambda toy: eap(toy.subject, toy.pairs, method="clean-corrupted"),
    "ig-inputs": lambda toy: eap(toy.subject, toy.pairs, method="ig-inputs", steps=20),
    "ig-activations": lambda toy: eap(toy.subject, toy.pairs, method="ig-activations", steps=20),
    "exact, noising": lambda toy: edge_patching(toy.subject, toy.pairs),
    "exact, random circuits": lambda toy: edges_in_company(toy.subject, toy.pairs),
    "exact, denoising": lambda toy: edge_patching(toy.subject, toy.pairs, direction="denoising"),
}


def found_by(method: str, toy: Toy) -> float:
    graph = graph_of(toy.subject)
    known = np.zeros(graph.exists.shape, dtype=bool)
    for edge in toy.edges:
        known[graph.index(edge)] = True
    return auroc(np.abs(METHODS[method](toy).within[0])[graph.exists], known[graph.exists])


@pytest.mark.parametrize("name", sorted(TOYS))
def test_every_planted_circuit_is_found_by_some_method(name: str):
    toy = plant(name)
    assert found_by("exact, random circuits", toy) == 1.0
    if name != "backup":
        assert found_by("ig-activations", toy) == 1.0


def test_a_back_up_behind_a_saturated_softmax_is_seen_in_random_circuits_only():
    """In the whole model its output never differs from the counterfactual's, so no single edge and no gradient shows it."""
    toy = plant("backup")
    assert max(found_by(method, toy) for method in METHODS if method != "exact, random circuits") < 0.95


def test_no_method_but_exact_patching_needs_more_than_first_order_on_linear_networks():
    for name in ("single", "linear", "cancelling"):
        assert {method: found_by(method, plant(name)) for method in METHODS} == dict.fromkeys(METHODS, 1.0)


def test_what_stands_in_for_another_is_missed_by_noising_and_by_the_gradient_at_the_clean_run():
    toy = plant("or")
    assert found_by("exact, noising", toy) < 0.8
    assert found_by("eap", toy) < 0.8
    assert found_by("exact, denoising", toy) == found_by("ig-inputs", toy) == 1.0


def test_what_only_works_together_is_missed_by_denoising():
    toy = plant("and")
    assert found_by("exact, denoising", toy) < 0.8
    assert found_by("exact, noising", toy) == 1.0


SPANS = ("a", "b", "last")


@pytest.mark.parametrize("name", [name for name in sorted(TOYS) if name != "backup"])
def test_planted_edges_are_found_at_their_positions(name: str):
    toy = plant(name)
    graph, scores = graph_of(toy.subject), eap(toy.subject, toy.pairs, method="ig-inputs", steps=20, spans=SPANS)
    known = np.zeros((3, *graph.exists.shape), dtype=bool)
    for edge, place in zip(toy.edges, toy.places, strict=True):
        known[(SPANS.index(place), *graph.index(edge))] = True
    assert auroc(np.abs(scores.within)[:, graph.exists], known[:, graph.exists]) == 1.0


@pytest.mark.parametrize("name", sorted(TOYS))
def test_attention_edges_are_found_between_the_positions_where_bits_cross(name: str):
    toy = plant(name)
    crossing = np.abs(eap(toy.subject, toy.pairs, spans=SPANS).crossing)
    values = [(e.target, place) for e, place in zip(toy.edges, toy.places, strict=True) if e.target.kind == "v"]
    known = np.zeros(crossing.shape, dtype=bool)
    for port, place in values:
        known[2, port.layer, port.head, SPANS.index("last"), SPANS.index(place)] = True
    if name == "backup":  # the second head moves nothing while the first does, but its query is what keeps it from looking
        known[2, 1, 1] = False
        known[0, 1, 1, SPANS.index("last"), SPANS.index("a")] = True
    strongest = np.argsort(-crossing.ravel(), kind="stable")[: known.sum()]
    if name == "or":  # one of two that stand in for each other: no gradient at the clean run
        assert crossing.max() == 0
    else:
        assert known.ravel()[strongest].all()
        assert auroc(crossing, known) == 1.0
