"""Information-flow routes by their formula, and automated circuit discovery on planted circuits."""

from pathlib import Path

import numpy as np
import pytest
import torch

import builders
from mediant.core.circuit import Circuit
from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import OutOfRange, TaskError
from mediant.interventions.execute import run
from mediant.interventions.ports import graph_of
from mediant.measures.faithfulness import CircuitBench
from mediant.search.acdc import acdc
from mediant.search.circuits import greedy, strongest
from mediant.search.flow_routes import flow_routes
from mediant.tasks.encode import encode
from mediant.tasks.toys import Toy, plant


def known(toy: Toy) -> np.ndarray:
    graph = graph_of(toy.subject)
    table = np.zeros(graph.exists.shape, dtype=bool)
    for edge in toy.edges:
        table[graph.index(edge)] = True
    return table


def test_shares_are_what_leaving_each_part_out_does_to_the_stream_and_add_up_to_one():
    lm, pairs = builders.subject(), builders.pairs()[:2]
    scores, graph = flow_routes(lm, pairs, batch_size=1), graph_of(lm)
    assert np.allclose(scores.within[0].sum(-1), -1.0, atol=1e-5)
    batch = encode(lm, pairs).base
    # What the second layer's MLP reads, written by everything before it.
    target, places = graph.first_target(1) + 3 * graph.n_heads, (graph.sources[: graph.first_source(1) + graph.n_heads])
    with torch.no_grad():
        captured = run(lm, batch, capture=[("resid_mid.1", "all"), *((site, "all") for site in places)]).captured
    stream = captured["resid_mid.1", "all"].values
    parts = [captured[site, "all"].values for site in places]
    torch.testing.assert_close(sum(parts), stream, atol=1e-4, rtol=1e-4)
    near = torch.stack([(stream.abs().sum(-1) - (stream - part).abs().sum(-1)).clamp(min=0) for part in parts])
    wanted = (near / near.sum(0)).mean(-1)
    assert scores.within[0, target, : len(places)] == pytest.approx(-wanted.numpy(), abs=1e-4)
    assert not scores.within[0, target, len(places) :].any()


def final_shares(name: str) -> dict[str, float]:
    toy = plant(name)
    last = -flow_routes(toy.subject, toy.pairs).within[0, -1]
    return {str(site): float(share) for site, share in zip(graph_of(toy.subject).sources, last, strict=True)}


def test_what_cancels_has_no_share_and_what_writes_to_no_avail_has_one(tmp_path: Path):
    cancelling, single = final_shares("cancelling"), final_shares("single")
    assert cancelling["head_result.0.0"] == cancelling["head_result.0.1"] == 0 < cancelling["head_result.0.2"]
    # The second head moves a bit to where nothing reads it: flow is not effect.
    assert single["head_result.0.1"] > single["head_result.0.0"] / 2
    toy = plant("single")
    scores = flow_routes(toy.subject, toy.pairs)
    with pytest.raises(TaskError, match="use greedy"):
        strongest(scores)
    scores.save(tmp_path / "s.safetensors")
    assert EdgeScores.load(tmp_path / "s.safetensors").per_port
    assert len(greedy(scores)) == len(greedy(scores, rule="most_negative"))


@pytest.mark.parametrize("name", ["single", "and", "backup", "linear"])
def test_discovery_keeps_edges_of_the_planted_circuit_and_the_answer(name: str):
    toy = plant(name)
    found = acdc(toy.subject, toy.pairs, threshold=1e-3)
    kept = found.circuit.within[0]
    assert not (kept & ~known(toy)).any()
    assert CircuitBench(toy.subject, toy.pairs).run(found.circuit).agrees.tolist() == [1.0]
    assert found.forwards <= graph_of(toy.subject).n_edges + 1
    if name in ("single", "and"):
        assert np.array_equal(kept, known(toy))
    if name == "backup":
        # Cut from the logits backwards, one of the two ways is left.
        assert 0 < kept.sum() < known(toy).sum()


def test_a_higher_threshold_keeps_less_and_a_search_within_a_circuit_keeps_to_it():
    toy = plant("linear")
    sizes, divergences, visited = [], [], []
    for threshold in (1e-6, 0.05, 10.0):
        found = acdc(toy.subject, toy.pairs, threshold=threshold, tell=lambda *told: visited.append(told))
        sizes.append(found.circuit.n_edges)
        divergences.append(found.divergence)
        assert visited[-1] == (graph_of(toy.subject).n_targets,) * 2
    assert sizes[0] > sizes[1] > sizes[2] == 0
    assert divergences[0] <= divergences[1] <= divergences[2]
    few = Circuit.empty(graph_of(toy.subject), crossing=False)
    few.within[0, -1, :3] = True
    found = acdc(toy.subject, toy.pairs, threshold=0.0, within=few)
    assert not (found.circuit.within & ~few.within).any()
    assert found.forwards == 4


def test_what_makes_no_sense_is_refused():
    lm = builders.subject()
    with pytest.raises(TaskError, match="no pairs"):
        acdc(lm, [], threshold=0.1)
    with pytest.raises(TaskError, match="no pairs"):
        flow_routes(lm, [])
    with pytest.raises(OutOfRange, match="0 nats or more, got -1"):
        acdc(lm, builders.pairs(), threshold=-1)
