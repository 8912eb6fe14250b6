"""Scores of heads by where they look, against the library's own weights and against sums by hand."""

import numpy as np
import pytest
import torch

from eyes import noise, vision_subject
from mediant.core import Site
from mediant.core.errors import TaskError
from mediant.search.gaze import GazeScores, attention_on, elbow, find
from mediant.tasks import strips

pytestmark = pytest.mark.usefixtures("no_gradients")


def test_masses_and_spread_are_those_of_the_full_attention():
    vlm = vision_subject()
    images = [noise(48, 96), noise(24, 60, 1)]
    regions = [{"one": (0, 0, 40, 48), "two": (40, 0, 96, 48)}, {"one": (0, 0, 30, 24), "two": (30, 0, 60, 24)}]
    batch = vlm.look(images, ["what is here ?", "what happens in the third panel ?"], regions=regions)
    mass, spread = attention_on(vlm, batch, ["two", "one"])
    vlm.model.set_attn_implementation({"text_config": "eager"})
    attentions = vlm.model(**vlm.feed(batch), output_attentions=True, use_cache=False).attentions
    vlm.model.set_attn_implementation({"text_config": "sdpa"})
    for layer, full in enumerate(attentions):
        for row in range(2):
            for j, name in enumerate(["two", "one"]):
                expected = full[row, :, -1, list(batch.spans[row][name])].sum(-1).numpy()
                assert np.allclose(mass[row, layer, :, j], expected, atol=1e-6)
            image = full[row, :, -1, list(batch.spans[row]["image"])].double()
            share = image / image.sum(-1, keepdim=True)
            assert np.allclose(spread[row, layer], -(share * share.log()).sum(-1).numpy(), atol=1e-4)


def test_heads_are_found_on_strips_question_by_question():
    vlm = vision_subject()
    one, two = (strips.build(f"strip {i}", [noise(64, 64, 2 * i), noise(64, 64, 2 * i + 1)], height=64) for i in (0, 1))
    found = find(vlm, [one, two], "what happens in the {k} panel ?")
    assert found.mass.shape == (2, 2, vlm.shape.n_layers, vlm.shape.n_heads, 2)
    regions = {"a": two.boxes[0], "b": two.boxes[1]}
    batch = vlm.look([two.pixels] * 2, [f"what happens in the {k} panel ?" for k in ("first", "second")], regions=[regions] * 2)
    mass, spread = attention_on(vlm, batch, ["a", "b"])
    assert np.allclose(found.mass[1], mass, atol=1e-6)
    assert np.allclose(found.spread[1], spread, atol=1e-6)
    for wrong in ([], [one, strips.build("three", [noise(64, 64)] * 3)]):
        with pytest.raises(TaskError, match="same number of panels"):
            find(vlm, wrong)


def planted(mass: dict[tuple[int, int], list[list[float]]], spread: dict[tuple[int, int], float] | None = None) -> GazeScores:
    """Two layers of two heads on one picture with two regions; heads that are not named look nowhere."""
    table, entropy = np.zeros((1, 2, 2, 2, 2)), np.ones((1, 2, 2, 2))
    for (layer, head), rows in mass.items():
        table[0, :, layer, head] = rows
    for (layer, head), value in (spread or {}).items():
        entropy[0, :, layer, head] = value
    return GazeScores(table, entropy)


def test_mass_and_selectivity_rank_differently():
    # One head puts much on the image and mostly right, the other hardly anything but only where asked.
    scores = planted({(0, 0): [[0.6, 0.3], [0.3, 0.6]], (1, 1): [[0.02, 0.0], [0.0, 0.02]], (1, 0): [[0.5, 0.5], [0.5, 0.5]]})
    by_mass, by_selectivity = scores.ranking("mass"), scores.ranking("selectivity")
    assert [s.mediator for s in by_mass.top(2)] == ["head_z.0.0", "head_z.1.0"]
    assert [s.mediator for s in by_selectivity.top(2)] == ["head_z.1.1", "head_z.0.0"]
    assert by_mass.top(1)[0].score == pytest.approx(0.6)
    assert by_selectivity.top(2)[1].score == pytest.approx(2 / 3)


def test_routing_asks_which_region_gets_most():
    scores = planted({(0, 0): [[0.6, 0.3], [0.7, 0.2]], (0, 1): [[0.1, 0.0], [0.0, 0.1]]})
    assert scores.routing()[0, :, 0, 0].tolist() == [1.0, 0.0]
    assert scores.routing()[0, :, 0, 1].tolist() == [1.0, 1.0]
    assert scores.diagonal()[0, 0, 0] == pytest.approx((0.6 + 0.2) / 2)


def test_image_heads_look_much_and_localisation_heads_look_closely():
    mass = {(0, 0): [[0.45, 0.45]] * 2, (0, 1): [[0.4, 0.4]] * 2, (1, 0): [[0.05, 0.05]] * 2}
    scores = planted(mass, {(0, 0): 2.0, (0, 1): 0.5, (1, 0): 0.1, (1, 1): 0.0})
    assert scores.image_heads().sites(2) == [Site("head_z", 0, 0), Site("head_z", 0, 1)]
    found = scores.localisation_heads().sites(4)
    # The head that is concentrated but hardly looks comes behind those that look.
    assert found.index(Site("head_z", 0, 1)) < found.index(Site("head_z", 0, 0))
    assert found.index(Site("head_z", 1, 1)) > 0


def test_the_elbow_lies_where_the_curve_bends():
    assert elbow(np.array([1.0, 0.9, 0.1, 0.05, 0.0])) == 2
    assert elbow(np.array([0.05, 1.0, 0.1, 0.9, 0.0])) == 2


def test_a_query_per_region_is_needed():
    with pytest.raises(TaskError, match="a query per region"):
        GazeScores(np.zeros((1, 2, 1, 1, 3)), np.zeros((1, 2, 1, 1)))


def test_memory_is_asked_for_one_row_per_head(monkeypatch: pytest.MonkeyPatch):
    """No tensor of attention has more than one query row per prompt."""
    from mediant.interventions import attention_call

    seen = []
    plain = attention_call.attention_logits

    def watched(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
        found = plain(*args, **kwargs)
        seen.append(found.shape)
        return found

    monkeypatch.setattr(attention_call, "attention_logits", watched)
    vlm = vision_subject()
    batch = vlm.look([noise(48, 96)], ["what is here ?"], regions=[{"one": (0, 0, 40, 48)}])
    attention_on(vlm, batch, ["one"])
    assert {shape[2] for shape in seen} == {1}
