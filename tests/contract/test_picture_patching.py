"""Patching of pictures: nothing changes nothing, everything is the other picture, and estimates are slopes of the metric."""

import numpy as np
import pytest
import torch

import generators
from mediant.core.errors import TaskError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edit, edits
from mediant.interventions.edits import Activation
from mediant.search.picture_patching import PicturePatcher
from mediant.search.site_masks import mask_places
from mediant.subject.generator import ImageGenerator

TEXT, PICTURE, REFERENCE = Span("text"), Span("picture"), Span("reference")


def asked(flux: ImageGenerator, shown: int, *, size: int = 64):
    references = [[generators.picture(shown + i, size, size)] for i in range(2)]
    return flux.encode(["the dog of this image", "a cat"], references=references, seeds=[3, 4], height=16, width=32)


@pytest.fixture(params=["klein", "guided"])
def patcher(request: pytest.FixtureRequest) -> PicturePatcher:
    flux = generators.klein(distilled=request.param == "klein")
    return PicturePatcher(flux, asked(flux, 0), asked(flux, 5), steps=2)


def test_the_metric_falls_from_the_bases_picture_to_the_sources(patcher: PicturePatcher):
    far = (patcher.other - patcher.own).square().mean((1, 2, 3)).double().numpy()
    assert patcher.before == pytest.approx([0.0, 0.0])
    assert patcher.total == pytest.approx(-far)
    half = patcher.metric((patcher.own + patcher.other) / 2)
    assert half.double().numpy() == pytest.approx(-far / 2, rel=1e-4)


def test_no_site_changes_nothing_and_the_last_blocks_picture_everything(patcher: PicturePatcher):
    assert patcher.joint([]) == pytest.approx([0.0, 0.0])
    last = Site("resid_post", patcher.subject.shape.n_layers - 1)
    assert patcher.joint([last], "picture") == pytest.approx(patcher.total, rel=1e-3)
    # No text is read after the last block.
    assert patcher.joint([last], "text") == pytest.approx([0.0, 0.0], abs=1e-6)
    if patcher.subject.pipeline.config.is_distilled:
        # Guidance without words enters the first block as one row for all, which has no row to write to.
        assert patcher.joint([Site("resid_pre", 0)], "reference") == pytest.approx(patcher.total, rel=1e-3)


def test_a_swap_is_every_steps_own_value(patcher: PicturePatcher):
    site = Site("head_z", 3, 1)
    swaps = patcher.swaps(site, PICTURE)
    passes = {(one.steps, one.guidance) for one in swaps}
    assert len(passes) == len(swaps) == (2 if patcher.subject.pipeline.config.is_distilled else 4)
    with torch.no_grad(), edit(patcher.subject, capture=[(site, PICTURE)]) as seen:
        patcher.subject.sample(patcher.source_batch, steps=2)
    for one in swaps:
        wanted = seen.captured()[site, PICTURE].at_step(one.steps[0], guidance=one.guidance)
        assert torch.equal(one.value, wanted.values)
    grid = patcher.grid([site], [PICTURE, TEXT])
    assert grid.shape == (1, 2, 2)
    assert grid[0, 0] == pytest.approx(patcher.joint([site], PICTURE))


def test_gradients_are_slopes_of_the_metric(patcher: PicturePatcher):
    places = [(Site("head_z", 1, 2), PICTURE), (Site("resid_post", 0), REFERENCE)]
    for (site, span), slope in zip(places, patcher.gradients(places), strict=True):
        way = torch.randn(slope.values.shape, generator=torch.Generator().manual_seed(0))
        ends = []
        for sign in (1, -1):
            calls = [0] if slope.calls is None else sorted(set(slope.calls.tolist()))
            shifts = []
            for call in calls:
                then = slope.calls == call if slope.calls is not None else torch.ones_like(slope.rows, dtype=torch.bool)
                moved = Activation(sign * 1e-3 * way[then], slope.rows[then], slope.cols[then])
                shifts.append(edits.shift(site, span, moved, edits.Where(steps=(call // 2,), guidance=call % 2)))
            ends.append(patcher.measured(patcher.outcome_of(shifts)))
        measured = (ends[0] - ends[1]) / 2e-3
        predicted = [float((slope.values * way)[slope.rows == row].sum()) for row in range(2)]
        assert np.asarray(predicted) == pytest.approx(measured, rel=0.05, abs=1e-2)


def test_a_mask_over_places_opens_the_one_that_hands_on_the_picture():
    flux = generators.klein()
    patcher = PicturePatcher(flux, asked(flux, 0), asked(flux, 5), steps=1)
    last = flux.shape.n_layers - 1
    places = [(Site("resid_post", last), TEXT), (Site("resid_post", last), PICTURE)]
    found = mask_places([patcher], places, unit="site", price=0.05, epochs=30, lr=0.2)
    assert found.chosen == [f"resid_post.{last} at picture"]
    own = patcher.wrong(patcher.outcome_of([]))
    assert float(own) == pytest.approx(1.0, abs=1e-4)


def test_batches_of_other_sizes_are_refused():
    flux = generators.klein()
    with pytest.raises(TaskError, match="of one size"):
        PicturePatcher(flux, asked(flux, 0), asked(flux, 5, size=96), steps=1)
