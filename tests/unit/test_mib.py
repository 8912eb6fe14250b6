"""The MIB circuit format: sign, names, and messages that say what is wrong."""

import json

import numpy as np
import pytest

from mediant.core.circuit import Circuit
from mediant.core.edge import CircuitEdge
from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import MediantError, RunError
from mediant.core.graph import CircuitGraph
from mediant.core.mib import read_mib, write_mib
from mediant.interventions.ports import graph_of
from mediant.search.attribution import eap
from mediant.tasks.toys import plant

GRAPH = CircuitGraph(2, 2, parallel=True)


def random_scores() -> EdgeScores:
    within = np.random.default_rng(0).normal(size=(2, GRAPH.n_targets, GRAPH.n_sources)) * GRAPH.exists
    return EdgeScores(GRAPH, ("a", "b"), within)


def test_what_is_written_reads_back_and_spans_are_summed(tmp_path):
    scores, circuit = random_scores(), Circuit.empty(GRAPH, crossing=False)
    circuit.within[0] = (np.random.default_rng(1).random(GRAPH.exists.shape) < 0.4) & GRAPH.exists
    write_mib(tmp_path / "c.json", scores, circuit=circuit, d_model=8)
    again, kept = read_mib(tmp_path / "c.json")
    assert again.graph == GRAPH
    assert np.allclose(again.within[0], scores.within.sum(0))
    assert np.array_equal(kept.within, circuit.within)
    content = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert content["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": True, "d_model": 8}
    assert len(content["edges"]) == GRAPH.n_edges
    assert set(content["nodes"]) == {"input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"}
    assert {"input->a0.h1<q>", "a0.h1->a1.h0<v>", "m1->logits"} <= set(content["edges"])


def test_a_helpful_edge_is_negative_here_and_positive_there(tmp_path):
    toy = plant("single")
    scores, graph = eap(toy.subject, toy.pairs), graph_of(toy.subject)
    place = graph.index(CircuitEdge.parse("head_result.0.0->final_resid"))
    assert scores.within[0][place] < 0
    write_mib(tmp_path / "c.json", scores, d_model=10)
    assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))["edges"]["a0.h0->logits"]["score"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input->logits": {"score": "x", "in_graph": True}}, "'input->logits': expected a finite score, got 'x'"),
        ({"input->logits": {"score": float("nan"), "in_graph": True}}, "finite score"),
        ({"input->logits": {"score": 1.0}}, "'in_graph': true or false"),
        ({"input->logit": {"score": 1.0, "in_graph": True}}, "did you mean 'logits'"),
        ({"m1->a0.h0<q>": {"score": 1.0, "in_graph": True}}, "computed after"),
        ({"a0.h0->a7.h0<q>": {"score": 1.0, "in_graph": True}}, "2 layers and 2 heads"),
    ],
)
def test_a_wrong_edge_is_named_with_what_is_wrong(tmp_path, change: dict, message: str):
    write_mib(tmp_path / "c.json", random_scores(), d_model=8)
    content = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    content["edges"] |= change
    (tmp_path / "c.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError, match=message):
        read_mib(tmp_path / "c.json")


def test_broken_files_and_circuits_by_position_are_refused(tmp_path):
    with pytest.raises(RunError, match="is no MIB circuit"):
        read_mib(tmp_path / "missing.json")
    (tmp_path / "c.json").write_text('{"edges": {}}', encoding="utf-8")
    with pytest.raises(RunError, match="it lacks 'cfg'"):
        read_mib(tmp_path / "c.json")
    write_mib(tmp_path / "c.json", random_scores(), d_model=8)
    content = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    del content["edges"]["m1->logits"]
    (tmp_path / "c.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RunError, match=f"holds {GRAPH.n_edges - 1} edges, a model with 2 layers and 2 heads has {GRAPH.n_edges}"):
        read_mib(tmp_path / "c.json")
    with pytest.raises(MediantError, match="no positions"):
        write_mib(tmp_path / "c.json", random_scores(), circuit=Circuit.empty(GRAPH, ("a", "b")), d_model=8)
