"""What carries the panel that is asked for: the same numbers as whole forwards, and nothing where nothing can be compared."""

from dataclasses import replace

import numpy as np
import pytest

from mediant.core import Site, Span
from mediant.interventions import run, swap
from mediant.studies.gaze_heads import carriers, task
from mediant.studies.gaze_heads.config import Config
from mediant.subject import load
from mediant.subject.vision import VisionSubject
from mediant.tasks import strips

pytestmark = pytest.mark.usefixtures("no_gradients")
HEADS = (Site("head_z", 2, 3), Site("head_z", 4, 1))


@pytest.fixture(scope="module")
def vlm() -> VisionSubject:
    found = load("comic-vlm", device="cpu")
    assert isinstance(found, VisionSubject)
    return found


def test_shares_are_those_of_whole_forwards(vlm: VisionSubject):
    config, strip = Config(), strips.drawn(1, seed=3)[0]
    every = tuple(Site("head_z", layer, head) for layer in range(8) for head in range(8))
    found = carriers.carried(vlm, strip, config, {"two": [HEADS], "all": [every], "none": [()]})
    order = carriers.derangement(6, carriers.Random(f"{config.seed}-{strip.id}"))
    first = [vlm.tokenizer(caption)["input_ids"][0] for caption in strip.captions]
    total, two, resid = [], [], []
    for k, other in enumerate(order):
        base, source = (vlm.look([strip.pixels], [task.asked(config, i)]) for i in (k, other))

        def lean(logits, k=k, other=other) -> float:
            return float(logits[0, first[k]] - logits[0, first[other]])

        before, after = run(vlm, base), run(vlm, source, capture=[("resid_post.2", "last"), *((site, "all") for site in HEADS)])
        total.append(lean(after.last) - lean(before.last))
        edits = [swap(site, "all", after.captured[site, Span("all")]) for site in HEADS]
        two.append(lean(run(vlm, base, edits).last) - lean(before.last))
        stream = swap("resid_post.2", "last", after.captured["resid_post.2", "last"])
        resid.append(lean(run(vlm, base, stream).last) - lean(before.last))
    assert np.allclose(found["total"], total, atol=1e-3)
    assert np.allclose(found["sets"]["two"][0], two, atol=1e-3)
    assert np.allclose(np.asarray(found["resid"])[2, 2], resid, atol=1e-3)
    assert np.allclose(found["sets"]["all"][0], total, atol=1e-3)
    assert not np.any(found["sets"]["none"][0])
    shares = carriers.by_set([found], 0)
    assert shares["two"].value == pytest.approx(sum(two) / sum(total), abs=1e-4)
    assert carriers.streams([found])[2, 2] == pytest.approx(sum(resid) / sum(total), abs=1e-4)


def test_draws_are_averaged_before_they_are_shared_out():
    record = {"strip": "a", "total": [2.0, 2.0], "resid": [], "sets": {"x": [[1.0, 1.0], [0.0, 2.0]]}}
    assert carriers.by_set([record], 0)["x"].value == 0.5


def test_captions_that_begin_alike_cannot_be_compared(vlm: VisionSubject):
    strip = strips.drawn(1, seed=3)[0]
    alike = replace(strip, captions=("Fox waves.",) * 6)
    assert carriers.carried(vlm, alike, Config(), {"two": [HEADS]})["total"] == []
    assert carriers.by_set([carriers.carried(vlm, alike, Config(), {"two": [HEADS]})], 0) == {}
    half = replace(strip, captions=("Fox waves.",) * 5 + ("Owl waves.",))
    assert len(carriers.carried(vlm, half, Config(), {"two": [HEADS]})["total"]) == 2


def test_every_head_is_in_a_layer_s_set_but_for_the_chosen():
    every = tuple(Site("head_z", layer, head) for layer in range(3) for head in range(2))
    found = carriers.layer_sets(every, every[:3])
    assert found == {"layer 0": [()], "layer 1": [every[3:4]], "layer 2": [every[4:]]}
