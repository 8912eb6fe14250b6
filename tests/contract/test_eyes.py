"""What every family with eyes must keep: each image token sees the part of the image its cell names, alone and in a batch."""

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from eyes import BUILDERS, noise, vision_subject
from mediant.core import Site, Span
from mediant.core.errors import ImageError, RegionError, SubjectError, TaskError
from mediant.interventions import branch, edit, record, replay, run, zero
from mediant.subject import Batch, load, wrap
from mediant.subject.families import FAMILIES
from mediant.subject.regions import Cell
from mediant.subject.vision import VisionSubject

pytestmark = pytest.mark.usefixtures("no_gradients")
families = pytest.mark.parametrize("family", list(BUILDERS))
QUESTION = "what is here ?"
# Height and width: wide, tall, nearly square, smaller than a tile.
SIZES = [(120, 288), (270, 99), (150, 141), (64, 68)]


def embedded(vlm: VisionSubject, images: list[np.ndarray]) -> tuple[Tensor, Batch]:
    """What enters the first layer at the image tokens, (image, token, d_model)."""
    batch = vlm.look(images, [QUESTION] * len(images))
    found = run(vlm, batch, capture=[(Site("resid_pre", 0), Span("image"))]).captured
    return found["resid_pre.0", "image"].values.reshape(len(images), -1, vlm.shape.d_model), batch


@pytest.mark.parametrize("size", SIZES, ids=str)
@families
def test_a_change_within_a_cell_is_seen_by_its_token_most(family, size):
    vlm = vision_subject(family, local=True)
    height, width = size
    # Vision towers norm what they see: on an even ground the faintest trace of paint would count as much as all of it.
    blank = noise(height, width)
    before, batch = embedded(vlm, [blank])
    cells = batch.images[0].cells
    placed = [i for i, cell in enumerate(cells) if cell.box is not None]
    tried = sorted(random.Random(0).sample(placed, min(len(placed), 12)))
    # What a token makes of one colour is up to its random weights, so several are tried.
    colours = [(255, 0, 60), (0, 255, 0), (20, 20, 255), (255, 255, 255)]
    after, _ = embedded(vlm, [painted(blank, cells[i].box, colour) for colour in colours for i in tried])
    change = (after - before).norm(dim=-1).reshape(len(colours), len(tried), -1).sum(0)
    for row, i in enumerate(tried):
        same_view = [j for j in placed if cells[j].view == cells[i].view]
        best = max(same_view, key=lambda j: float(change[row, j]))
        # Where padding leaves only a sliver of a cell, its neighbour may see as much.
        if area(cells[i]) > 0.6 * max(area(cells[j]) for j in same_view):
            assert best == i, (cells[i], cells[best])
        else:
            assert float(change[row, i]) > 0


def area(cell: Cell) -> float:
    left, top, right, bottom = cell.box
    return (right - left) * (bottom - top)


def painted(blank: np.ndarray, box: tuple[float, ...], colour: tuple[int, int, int]) -> np.ndarray:
    left, top, right, bottom = (round(side) for side in box)
    image = blank.copy()
    image[top : max(bottom, top + 1), left : max(right, left + 1)] = colour
    return image


@families
def test_views_cover_the_image_and_no_more(family):
    vlm = vision_subject(family)
    image = noise(40, 96)
    cells = vlm.look([image], [QUESTION]).images[0].cells
    placed = [cell for cell in cells if cell.box is not None]
    assert all(0 <= c.box[0] < c.box[2] <= 96.001 and 0 <= c.box[1] < c.box[3] <= 40.001 for c in placed)
    views = {cell.view for cell in placed}
    cropped = family in ("llava", "llava-full")
    # One view of the whole, or tiles that make up the whole and the whole beside them.
    covered = sum(area(cell) for cell in placed) / (40 * 96)
    assert covered == pytest.approx(40 / 96 if cropped else 1 if len(views) == 1 else 2, rel=0.03)


@families
def test_a_batch_of_unequal_prompts_is_its_rows(family):
    vlm = vision_subject(family)
    images, questions = [noise(40, 96), noise(33, 20, 1)], [QUESTION, "what happens in the third panel ?"]
    both = run(vlm, vlm.look(images, questions)).last
    for row in range(2):
        alone = run(vlm, vlm.look(images[row : row + 1], questions[row : row + 1])).last[0]
        assert torch.allclose(both[row], alone, atol=2e-5), float((both[row] - alone).abs().max())


@families
def test_columns_are_image_tokens_and_spans_name_them(family):
    vlm = vision_subject(family)
    batch = vlm.look(
        [noise(40, 96), noise(33, 20, 1)], [QUESTION, QUESTION], regions=[{"left": (0, 0, 48, 40)}, {"left": (0, 0, 20, 20)}]
    )
    for row in range(2):
        seen = batch.images[row]
        assert (batch.ids[row, list(seen.columns)] == vlm.image_token_id).all()
        assert int((batch.ids[row] == vlm.image_token_id).sum()) == len(seen.columns)
        assert batch.columns(row, Span("image")) == list(seen.columns)
        assert batch.columns(row, Span("left")) == list(seen.within((0, 0, 48, 40) if row == 0 else (0, 0, 20, 20)))
        assert set(seen.others(seen.columns[:2])) == set(seen.columns[2:])


@families
def test_generation_says_what_forwards_say(family):
    vlm = vision_subject(family)
    batch = vlm.look([noise(40, 96), noise(33, 20, 1)], [QUESTION, "what happens in the third panel ?"])
    with_cache = vlm.generate(batch, max_new_tokens=4, stop_at_eos=False)
    assert with_cache.tolist() == vlm.generate(batch, max_new_tokens=4, stop_at_eos=False, use_cache=False).tolist()
    assert with_cache[:, 0].tolist() == run(vlm, batch).last.argmax(-1).tolist()


@families
def test_activations_can_be_captured_and_edited(family):
    vlm = vision_subject(family)
    batch = vlm.look([noise(40, 96)], [QUESTION])
    clean = run(vlm, batch, capture=[("resid_post.1", "image"), ("head_z.1.2", "last")])
    assert clean.captured["resid_post.1", "image"].values.shape == (len(batch.images[0].cells), 32)
    with edit(vlm, zero("head_z.1.2", "all")) as active:
        changed = run(vlm, batch)
    assert active.firings()[0].tokens == batch.n_cols
    assert not torch.equal(clean.logits, changed.logits)
    assert torch.equal(clean.logits, run(vlm, batch).logits)


@pytest.mark.parametrize("family", [name for name in BUILDERS if name != "gemma3"])
def test_a_replayed_edit_is_the_edit_of_a_full_forward(family):
    """Also where the model adds image features between layers, as Qwen3-VL does. Gemma's window is refused by replay."""
    vlm = vision_subject(family)
    batch = vlm.look([noise(40, 96), noise(33, 20, 1)], [QUESTION, "what happens in the third panel ?"])
    recording = record(vlm, batch)
    assert sum(added is not None for added in recording.between) == (2 if family == "qwen3-vl" else 0)
    for site in ("head_z.0.2", "resid_post.0", "head_z.1.1", "mlp_out.2"):
        change = zero(site, "image") if site != "mlp_out.2" else zero(site, "last")
        assert torch.allclose(replay(recording, change).last, run(vlm, batch, change).last, atol=1e-5), site
    twice = replay(recording, zero("head_z.0.2", "image"), times=2).last
    assert torch.allclose(twice[:2], twice[2:], atol=1e-6)


@pytest.mark.parametrize("family", [name for name in BUILDERS if name != "gemma3"])
def test_a_question_branched_off_another_is_its_full_forward(family):
    """The image gives later tokens positions that are not their columns."""
    vlm = vision_subject(family)
    image = noise(40, 96)
    base, source = (vlm.look([image], [f"what happens in the {k} panel ?"]) for k in ("first", "third"))
    column = int((base.ids != source.ids).nonzero()[0, 1])
    assert column > max(base.images[0].columns)
    places = [("resid_post.1", "all"), ("head_z.0.2", "last")]
    got = branch(record(vlm, base), source, column, capture=places)
    want = run(vlm, source, capture=places)
    assert torch.allclose(got.last, want.last, atol=1e-5)
    assert not torch.allclose(got.last, run(vlm, base).last, atol=1e-5)
    for place in places:
        assert int(got.captured[place].cols.min()) >= column
        same = want.captured[place].select(got.captured[place].rows, got.captured[place].cols)
        assert torch.allclose(got.captured[place].values, same.values, atol=1e-5)


@families
def test_a_folder_on_disk_is_the_same_subject(family, tmp_path):
    vlm = vision_subject(family)
    vlm.model.save_pretrained(tmp_path)
    vlm.tokenizer.save_pretrained(tmp_path)
    vlm.image_processor.save_pretrained(tmp_path)
    again = load(str(tmp_path))
    assert isinstance(again, VisionSubject)
    images = [noise(40, 96), noise(33, 20, 1)]
    one, two = (s.look(images, [QUESTION] * 2) for s in (vlm, again))
    assert torch.equal(one.ids, two.ids)
    assert one.images == two.images
    assert torch.allclose(run(vlm, one).last, run(again, two).last, atol=1e-5)


def test_scored_answers_follow_the_prompt():
    vlm = vision_subject()
    batch = vlm.look([noise(40, 96)], [QUESTION], answers=["fox jumps"])
    assert batch.n_cols - batch.stop[0] == 2
    assert batch.columns(0, Span("last")) == [batch.n_cols - 3]


def test_regions_without_tokens_are_refused_with_the_size_of_a_token():
    vlm = vision_subject()
    with pytest.raises(RegionError, match="about 8 x 8 pixels"):
        vlm.look([noise(40, 96)], [QUESTION], regions=[{"dot": (0, 0, 1, 1)}])
    with pytest.raises(RegionError, match="outside the image of 96 x 40"):
        vlm.look([noise(40, 96)], [QUESTION], regions=[{"far": (200, 0, 300, 30)}])
    seen = vlm.look([noise(40, 96)], [QUESTION]).images[0]
    assert len(seen.within((0, 0, 1, 1), nearest=True)) == 1


def test_images_that_are_none_are_refused(tmp_path):
    vlm = vision_subject()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    for image, message in [
        (broken, "not an image that can be read"),
        (tmp_path / "missing.png", "not an image that can be read"),
        (np.zeros((4, 4), dtype=np.uint8), "expected an array"),
        (np.zeros((1, 400, 3), dtype=np.uint8), "refuses images of 400 x 1"),
    ]:
        with pytest.raises(ImageError, match=message):
            vlm.look([image], [QUESTION])


def test_a_question_cannot_bring_image_tokens_of_its_own():
    with pytest.raises(TaskError, match="may not contain the image token"):
        vision_subject().look([noise(40, 96)], ["what is <|image_pad|> ?"])


def test_eyes_need_their_image_processor():
    vlm = vision_subject()
    with pytest.raises(SubjectError, match="needs the image processor"):
        wrap(vlm.model, vlm.tokenizer)


def test_every_family_with_eyes_is_in_this_suite():
    types = {vision_subject(family).model.config.model_type for family in BUILDERS}
    assert types == {t for family in FAMILIES if family.sight is not None for t in family.model_types}
