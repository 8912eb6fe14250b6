import json

import numpy as np
import pytest
from PIL import Image

from mediant.core.errors import ImageError, OutOfRange, TaskError
from mediant.tasks import regions, strips
from mediant.tasks.pictures import scatter


def picture(height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, dtype=np.uint8), (height, width, 3)).copy()


def test_panels_have_one_height_whole_cells_and_white_bars_between():
    strip = strips.build("s", [picture(100, 70, (200, 0, 0)), picture(50, 120, (0, 200, 0)), picture(10, 10, (0, 0, 200))])
    widths = [right - left for left, _, right, _ in strip.boxes]
    assert strip.pixels.shape == (256, sum(widths), 3)
    assert all(width % 32 == 0 for width in widths)
    assert widths[0] == pytest.approx(70 * 256 / 100, abs=16)
    assert widths[1] == pytest.approx(120 * 256 / 50, abs=16)
    for _, _, right, _ in strip.boxes[:-1]:
        assert (strip.pixels[:, int(right) - 3 : int(right) + 3] == 255).all()
        assert not (strip.pixels[:, int(right) - 4] == 255).all()
    for (left, _, right, _), colour in zip(strip.boxes, ((200, 0, 0), (0, 200, 0), (0, 0, 200)), strict=True):
        assert tuple(strip.pixels[100, int(left + right) // 2]) == colour


def test_a_panel_of_the_right_size_is_taken_as_it_is():
    one = np.random.default_rng(0).integers(0, 255, (256, 64, 3), dtype=np.uint8)
    assert (strips.build("s", [one]).pixels == one).all()


def published(root, n: int, *, captions: bool = False) -> None:
    for i in range(n):
        place = root / f"comic{i}"
        place.mkdir(parents=True)
        for k in range(1, 7):
            Image.fromarray(picture(40, 30, (10 * i, 20 * k, 0))).save(place / f"p{k}.png")
        if captions:
            (place / "captions.json").write_text(json.dumps([f"Panel {k} of {i}." for k in range(6)]))


def test_published_strips_are_read_and_incomplete_ones_passed_over(tmp_path):
    published(tmp_path, 3, captions=True)
    (tmp_path / "comic1" / "p4.png").unlink()
    found = strips.read(tmp_path, n=2)
    assert [strip.id for strip in found] == ["comic0", "comic2"]
    assert found[1].captions[5] == "Panel 5 of 2."
    assert found[0].n == 6
    with pytest.raises(TaskError, match="gives 2 strips of 6 panels, 3 are needed"):
        strips.read(tmp_path, n=3)


def test_wrong_captions_are_refused(tmp_path):
    published(tmp_path, 1, captions=True)
    (tmp_path / "comic0" / "captions.json").write_text("[oops")
    with pytest.raises(TaskError, match="not a list of sentences"):
        strips.read(tmp_path, n=1)
    (tmp_path / "comic0" / "captions.json").write_text('["only one"]')
    with pytest.raises(TaskError, match="a caption for each or none; got 6 and 1"):
        strips.read(tmp_path, n=1)


def test_comics_pages_give_runs_of_panels_from_inside_the_book(tmp_path):
    book = tmp_path / "0"
    book.mkdir()
    for page in range(12):
        for panel in range(7):
            Image.fromarray(picture(40, 30, (page * 20, panel * 30, 0))).save(book / f"{page}_{panel}.jpg")
    found = strips.read(tmp_path, n=3)
    assert len({strip.id for strip in found}) == 3
    # The first and last five of twelve pages are left out.
    assert {strip.id.split("-")[1] for strip in found} <= {"5", "6"}
    assert [strip.id for strip in strips.read(tmp_path, n=3)] == [strip.id for strip in found]
    with pytest.raises(TaskError, match="are needed"):
        strips.read(tmp_path, n=5)


def test_folders_that_hold_no_strips_are_refused(tmp_path):
    with pytest.raises(TaskError, match="is no folder of strips"):
        strips.read(tmp_path / "none", n=1)
    with pytest.raises(TaskError, match="gives 0 strips"):
        strips.read(tmp_path, n=1)
    (tmp_path / "comic1").mkdir()
    for k in range(1, 7):
        (tmp_path / "comic1" / f"p{k}.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"p1\.png is not an image"):
        strips.read(tmp_path, n=1)


def test_drawn_strips_know_their_facts():
    one, two = strips.drawn(1, seed=3)[0], strips.drawn(1, seed=3, split="heldout")[0]
    assert one.captions != two.captions
    for caption, facts in zip(one.captions, one.facts, strict=True):
        assert all(fact in caption.lower() for fact in facts)
    with pytest.raises(OutOfRange, match="splits main and heldout"):
        strips.drawn(1, seed=3, split="test")


def coco(root, *, bbox=(2.0, 3.0, 20.0, 10.0)) -> None:
    root.mkdir(exist_ok=True)
    Image.fromarray(picture(80, 200, (90, 90, 90))).save(root / "a.png")
    data = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "unseen.png"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": list(bbox)},
            {"image_id": 1, "category_id": 8, "bbox": [50, 0, 100, 70], "area": 5000},
            {"image_id": 1, "category_id": 9, "bbox": [0, 0, 100, 70]},
            {"image_id": 1, "category_id": 9, "bbox": [0, 0, 90, 70]},
            {"image_id": 1, "category_id": 7, "bbox": [0, 0, 90, 70], "iscrowd": 1},
        ],
        "categories": [{"id": 7, "name": "Traffic light"}, {"id": 8, "name": "dog"}, {"id": 9, "name": "cat"}],
    }
    (root / "annotations.json").write_text(json.dumps(data))


def test_coco_pictures_leave_out_what_a_name_cannot_tell_apart(tmp_path):
    coco(tmp_path)
    (found,) = regions.read(tmp_path, n=1)
    assert found.names == ("Traffic light", "dog")
    assert found.facts == (("traffic", "light"), ("dog",))
    assert found.boxes[0] == (2.0, 3.0, 22.0, 13.0)
    assert found.sizes == ("small", "medium")
    with pytest.raises(TaskError, match="has 1 pictures"):
        regions.read(tmp_path, n=2)


def test_annotations_in_another_form_are_refused(tmp_path):
    with pytest.raises(TaskError, match="not in COCO's form"):
        regions.read(tmp_path, n=1)
    (tmp_path / "annotations.json").write_text('{"images": [{"id": 1}], "annotations": [], "categories": []}')
    with pytest.raises(TaskError, match="an entry of images lacks 'file_name'"):
        regions.read(tmp_path, n=1)


def test_drawn_pictures_hold_things_where_their_boxes_are():
    for one in scatter.generate(6, seed=1, split="heldout"):
        assert list(one.sizes) == sorted(one.sizes, key=regions.SIZES.index)
        assert "large" in one.sizes
        for left, top, right, bottom in one.boxes:
            assert 0 <= left < right <= one.pixels.shape[1]
            assert 0 <= top < bottom <= one.pixels.shape[0]
        for i, a in enumerate(one.boxes):
            for b in one.boxes[:i]:
                assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
