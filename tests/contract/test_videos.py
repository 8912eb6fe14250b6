"""What every family that sees videos must keep: each token sees the box and the frames its cell names, alone and in a batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eyes import BUILDERS, noise, vision_subject
from mediant.core import Site, Span
from mediant.core.errors import ImageError, RegionError, SubjectError, TaskError
from mediant.interventions import branch, record, run
from mediant.interventions.look import Look
from mediant.interventions.looking import looking
from mediant.subject.footage import Footage
from mediant.subject.regions import Clip
from mediant.subject.vision import VisionSubject

pytestmark = pytest.mark.usefixtures("no_gradients")
FAMILIES = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl")
families = pytest.mark.parametrize("family", FAMILIES)
QUESTION = "what is here ?"
FRAMES = [noise(40, 48, seed) for seed in range(4)]


def seen(vlm: VisionSubject, frames: list[np.ndarray]) -> torch.Tensor:
    """What enters the first layer at the image tokens, (token, d_model)."""
    batch = vlm.watch([frames], [QUESTION])
    return run(vlm, batch, capture=[(Site("resid_pre", 0), "image")]).captured["resid_pre.0", "image"].values


@families
def test_a_change_in_a_box_of_a_frame_is_seen_by_its_token_most(family):
    vlm = vision_subject(family, local=True)
    cells = vlm.watch([FRAMES], [QUESTION]).images[0].cells
    assert {cell.frames for cell in cells} == {(0, 2), (2, 4)}
    before = seen(vlm, FRAMES)
    for i in range(0, len(cells), 3):
        left, top, right, bottom = (round(side) for side in cells[i].box)
        for frame in range(*cells[i].frames):
            change = torch.zeros(len(cells))
            for colour in ((255, 0, 60), (0, 255, 0), (20, 20, 255), (255, 255, 255)):
                painted = [image.copy() for image in FRAMES]
                painted[frame][top:bottom, left:right] = colour
                change += (seen(vlm, painted) - before).norm(dim=-1)
            assert int(change.argmax()) == i, (cells[i], cells[int(change.argmax())])


@families
def test_a_still_repeated_is_the_patches_of_that_still(family):
    vlm = vision_subject(family)
    moving = vlm.watch([[FRAMES[0]] * 2], [QUESTION])
    still = vlm.look([FRAMES[0]], [QUESTION])
    assert torch.equal(moving.inputs["pixel_values_videos"], still.inputs["pixel_values"])
    assert torch.equal(moving.inputs["video_grid_thw"], still.inputs["image_grid_thw"])
    odd, even = (vlm.watch([FRAMES[:2] + [FRAMES[2]] * n], [QUESTION]) for n in (1, 2))
    assert torch.equal(odd.inputs["pixel_values_videos"], even.inputs["pixel_values_videos"])
    assert [cell.frames for cell in odd.images[0].cells if cell.frames != (0, 2)] == [(2, 3)] * (len(odd.images[0].cells) // 2)


@families
def test_a_batch_of_unequal_videos_is_its_rows_and_is_spoken_of_as_forwards_say(family):
    vlm = vision_subject(family)
    videos, questions = [FRAMES, [noise(24, 32, 7), noise(24, 32, 8)]], [QUESTION, "what happens in the third panel ?"]
    batch = vlm.watch(videos, questions, fps=1.0)
    both = run(vlm, batch).last
    for row in range(2):
        alone = run(vlm, vlm.watch(videos[row : row + 1], questions[row : row + 1], fps=1.0)).last[0]
        assert torch.allclose(both[row], alone, atol=2e-5)
    said = vlm.generate(batch, max_new_tokens=4, stop_at_eos=False)
    assert said.tolist() == vlm.generate(batch, max_new_tokens=4, stop_at_eos=False, use_cache=False).tolist()
    assert said[:, 0].tolist() == both.argmax(-1).tolist()


@families
def test_clips_are_looked_at_and_other_questions_branched_off(family):
    vlm = vision_subject(family)
    regions = {"corner": Clip((0, 0, 24, 20), 0, 2), "always": (0, 0, 24, 20)}
    batch = vlm.watch([FRAMES], [QUESTION], regions=[regions])
    corner, always = (set(batch.columns(0, Span(name))) for name in ("corner", "always"))
    assert corner < always
    assert len(always) == 2 * len(corner)
    places = dict(zip(batch.images[0].columns, batch.images[0].cells, strict=True))
    assert {places[column].frames for column in corner} == {(0, 2)}
    heads = (Site("head_z", 1, 0), Site("head_z", 1, 3))
    with looking(vlm, Look(heads, "corner", mass=0.9)) as active:
        run(vlm, batch)
    assert active.mass("corner") == pytest.approx(0.9, abs=1e-3)
    other = vlm.watch([FRAMES], ["what is red ?"])
    assert torch.allclose(branch(record(vlm, batch), other, other.n_cols - 3).last, run(vlm, other).last, atol=1e-5)


def test_the_time_of_frames_is_told_as_each_family_is_used_to():
    for family, want in (("qwen2-vl", None), ("qwen2.5-vl", [0.5])):
        batch = vision_subject(family).watch([FRAMES], [QUESTION], fps=4.0)
        given = batch.inputs.get("second_per_grid_ts")
        assert (given if given is None else given.tolist()) == want
    slow, fast = (vision_subject("qwen2.5-vl").watch([FRAMES], [QUESTION], fps=fps) for fps in (1.0, 8.0))
    vlm = vision_subject("qwen2.5-vl")
    assert not torch.allclose(run(vlm, slow).last, run(vlm, fast).last, atol=1e-4)
    text = vision_subject("qwen3-vl").watch([FRAMES[:3]], [QUESTION], fps=2.0).texts[0]
    assert [part.split(" seconds>")[0] for part in text.split("<") if " seconds>" in part] == ["0.2", "1.0"]
    assert text.count("<|vision_start|>") == text.count("<|vision_end|>") == 2


def test_what_cannot_be_watched_is_refused():
    vlm = vision_subject("qwen3-vl")
    with pytest.raises(ImageError, match=r"frames of one size, got 2 frames of sizes \[\(24, 32\), \(40, 48\)\]"):
        vlm.watch([[FRAMES[0], noise(24, 32)]], [QUESTION])
    with pytest.raises(ImageError, match="got 0 frames"):
        vlm.watch([[]], [QUESTION])
    with pytest.raises(RegionError, match="no image token sees frames 4 to 5; this video has frames 0 to 3"):
        vlm.watch([FRAMES], [QUESTION], regions=[{"late": Clip((0, 0, 20, 20), 4, 6)}])
    with pytest.raises(RegionError, match="no image token sees"):
        vlm.watch([FRAMES], [QUESTION], regions=[{"never": Clip((0, 0, 20, 20), 2, 2)}])
    with pytest.raises(TaskError, match="frames per second above 0"):
        vlm.watch([FRAMES], [QUESTION], fps=0.0)
    with pytest.raises(TaskError, match="image token"):
        vlm.watch([FRAMES], ["what is <|video_pad|> ?"])
    still = vlm.look([FRAMES[0]], [QUESTION]).images[0]
    with pytest.raises(RegionError, match="no image token sees"):
        still.within(Clip((0, 0, 20, 20), 0, 1))
    for family in set(BUILDERS) - set(FAMILIES):
        with pytest.raises(SubjectError, match="not adapted for videos"):
            vision_subject(family).watch([FRAMES], [QUESTION])


def test_frames_are_paired_by_moments():
    """One patch of one number per channel and moment, so that what comes from where can be read off."""

    def processed(frames):
        values = torch.tensor([[[float(frame[0, 0, 0])] * 6] for frame in frames]).reshape(len(frames), 6)
        return {"image_grid_thw": [[1, 1, 1]] * len(frames), "pixel_values": values}

    frames = [np.full((2, 2, 3), i, np.uint8) for i in (1, 2, 3)]
    footage = Footage.of(frames, processed, moments=2)
    assert footage.patches.tolist() == [[1, 2] * 3, [3, 3] * 3]
    assert footage.grid.tolist() == [2, 1, 1]
    assert replace(footage).groups == ((0, 2), (2, 3))
