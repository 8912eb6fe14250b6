"""Which method finds which planted circuit: the table of docs/how-to/positional-circuits.md, number by number."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from mediant.interventions.ports import graph_of
from mediant.measures.faithfulness import auroc
from mediant.search.attribution import eap
from mediant.tasks.toys import TOYS, plant

_FILE = Path(__file__).parents[2] / "benchmarks" / "planted_circuits.py"
_spec = importlib.util.spec_from_file_location("planted_circuits", _FILE)
assert _spec is not None
planted_circuits = importlib.util.module_from_spec(_spec)
sys.modules["planted_circuits"] = planted_circuits
_spec.loader.exec_module(planted_circuits)
found_by, METHODS = planted_circuits.found_by, planted_circuits.METHODS
# Each asks about single edges, beside all others or beside none, or follows gradients.
SINGLY = [name for name in METHODS if name.startswith(("`eap", "`edge_patching"))]


def test_the_table_of_the_page_is_what_the_searches_give():
    assert planted_circuits.written() == planted_circuits.table()


@pytest.mark.parametrize("name", sorted(TOYS))
def test_every_planted_circuit_is_found_by_some_method(name: str):
    toy = plant(name)
    assert found_by("`edges_in_company`", toy) == 1.0
    if name != "backup":
        assert found_by('`eap(method="ig-activations")`', toy) == 1.0


def test_a_back_up_behind_a_saturated_softmax_is_seen_in_random_circuits_only():
    """In the whole model its output never differs from the counterfactual's, so no single edge and no gradient shows it."""
    toy = plant("backup")
    assert max(found_by(method, toy) for method in SINGLY) < 0.95


def test_no_method_but_exact_patching_needs_more_than_first_order_on_linear_networks():
    for name in ("single", "linear", "cancelling"):
        assert {method: found_by(method, plant(name)) for method in SINGLY} == dict.fromkeys(SINGLY, 1.0)


def test_what_stands_in_for_another_is_missed_by_noising_and_by_the_gradient_at_the_clean_run():
    toy = plant("or")
    assert found_by("`edge_patching`, noising", toy) < 0.8
    assert found_by("`eap`", toy) < 0.8
    assert found_by("`edge_patching`, denoising", toy) == found_by('`eap(method="ig-inputs")`', toy) == 1.0


def test_what_only_works_together_is_missed_by_denoising():
    toy = plant("and")
    assert found_by("`edge_patching`, denoising", toy) < 0.8
    assert found_by("`edge_patching`, noising", toy) == 1.0


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
