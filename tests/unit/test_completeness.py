"""Completeness and minimality: what they are for the model itself, for a back-up left out, and for parts that do nothing."""

import numpy as np
import pytest

from builders import pairs, subject
from mediant.core.circuit import Circuit
from mediant.core.errors import TaskError
from mediant.core.site import Site
from mediant.interventions.ports import graph_of
from mediant.measures.completeness import completeness, incompleteness, minimality, needed, nodes, whole, without
from mediant.measures.faithfulness import CircuitBench
from mediant.tasks.toys import plant

pytestmark = pytest.mark.usefixtures("no_gradients")
SPANS = ["0:5", "5:9", "9:"]


def test_the_whole_model_is_complete_whatever_is_taken_out():
    bench = CircuitBench(subject(), pairs(), spans=SPANS)
    model = whole(Circuit.empty(graph_of(subject()), tuple(SPANS)))
    found = completeness(bench, model, draws=4, share=0.3)
    assert np.allclose(found.circuit, found.model)
    assert found.circuit.std(0).max() > 0.01  # different nodes each time
    assert incompleteness(found.circuit, found.model, bench.full, bench.empty) == pytest.approx(0)


def test_taking_out_every_node_leaves_the_empty_circuit():
    bench = CircuitBench(subject(), pairs(), spans=SPANS)
    model = whole(Circuit.empty(graph_of(subject()), tuple(SPANS)))
    assert len(nodes(model)) == 3 * graph_of(subject()).n_sources
    assert np.allclose(bench.run(without(model, nodes(model))).metric, bench.empty, atol=1e-5)
    assert np.allclose(completeness(bench, model, draws=1, share=1.0).model[0], bench.empty, atol=1e-5)
    assert nodes(without(model, [(1, 3)])) == [place for place in nodes(model) if place != (1, 3)]


def test_a_circuit_without_the_back_up_is_faithful_but_not_complete():
    toy = plant("backup")
    bench, graph = CircuitBench(toy.subject, toy.pairs), graph_of(toy.subject)
    everything = whole(Circuit.empty(graph, crossing=False))
    spare, first = (graph.sources.index(Site("head_result", *place)) for place in ((1, 1), (0, 0)))
    circuit = without(everything, [(0, spare)])
    assert np.allclose(bench.run(circuit).metric, bench.full, atol=1e-4)  # the back-up does nothing while the first works
    hurt = [bench.run(without(one, [(0, first)])).metric for one in (everything, circuit)]
    assert abs(hurt[0] - bench.full) < 0.2 * abs(hurt[1] - bench.full)
    found = [completeness(bench, one, draws=30, share=0.01, seed=1) for one in (everything, circuit)]
    measured = [incompleteness(f.circuit, f.model, bench.full, bench.empty) for f in found]
    assert measured[0] == pytest.approx(0, abs=1e-6)
    assert measured[1] > 0.05


def test_only_nodes_that_matter_count_as_needed():
    bench = CircuitBench(subject(), pairs(), spans=SPANS)
    circuit = whole(Circuit.empty(graph_of(subject()), tuple(SPANS)))
    less = minimality(bench, circuit, n_nodes=10**6)
    assert less.shape == (len(nodes(circuit)), 4)
    by_hand = [bench.run(without(circuit, [place])).metric for place in nodes(circuit)]
    assert np.allclose(sorted(less[:, 0]), sorted(row[0] for row in by_hand), atol=1e-6)
    change = abs(np.array(by_hand).mean(1) - bench.full.mean()) / abs(bench.full.mean() - bench.empty.mean())
    assert needed(less, bench.full, bench.full, bench.empty, least=0.2) == pytest.approx((change >= 0.2).mean())
    assert 0 < (change >= 0.2).mean() < 1


def test_an_empty_circuit_is_refused():
    bench = CircuitBench(subject(), pairs())
    with pytest.raises(TaskError, match="no edges"):
        completeness(bench, Circuit.empty(graph_of(subject()), crossing=False))
