"""Published task files: references as the paper's code takes them, and every broken line told by its number."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mediant.core.errors import ImageError, OutOfRange, TaskError, UnknownName
from mediant.tasks.request_files import cropped, read

TASK: dict[str, Any] = {
    "task_id": "t1", "edit_type": "customize", "instruction": "a hat in this colour", "height": 64, "width": 96, "noise_seed": 5,
    "source_image_path": "refs/a.png", "metadata": {"object": "hat"},
}  # fmt: skip


def written(folder: Path, *tasks: Any, name: str = "solid_color.jsonl") -> Path:
    (folder / "refs").mkdir(exist_ok=True)
    shown = np.zeros((50, 70, 3), np.uint8)
    shown[:] = (200, 30, 40)
    shown[:, :3] = 0
    Image.fromarray(shown).save(folder / "refs" / "a.png")
    lines = [one if isinstance(one, str) else json.dumps(one) for one in tasks]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / name


def test_a_reference_by_path_is_scaled_and_one_by_name_is_cut(tmp_path: Path):
    by_name = {**TASK, "task_id": "t2", "real_ref_name": "a.png", "real_ref_dir": "refs", "source_image_path": "gone.png"}
    one, two = read(written(tmp_path, TASK, "", by_name))
    assert (one.name, one.bucket, one.seed, one.instruction) == ("t1", "colour", 5, "a hat in this colour")
    assert one.references[0].shape == (64, 96, 3)
    assert two.references[0].shape == (48, 64, 3)
    assert one.factors["object"] == "hat"
    red, green, blue = (int(part) for part in two.factors["rgb"].split(","))
    assert (red, green, blue) == (200, 30, 40)


@pytest.mark.parametrize(("size", "kept"), [((50, 70), (48, 64)), ((32, 16), (32, 16)), ((33, 47), (32, 32))])
def test_cropping_keeps_the_middle(size: tuple[int, int], kept: tuple[int, int]):
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(*size, 3).astype(np.uint8)
    found = cropped(pixels)
    assert found.shape[:2] == kept
    top, left = (size[0] - kept[0]) // 2, (size[1] - kept[1]) // 2
    assert np.array_equal(found, pixels[top : top + kept[0], left : left + kept[1]])


@pytest.mark.parametrize(
    ("name", "metadata", "bucket"),
    [("style.jsonl", {}, "style"), ("manual.jsonl", {}, "style"), ("dreambench_humans.jsonl", {}, "identity"),
     ("mine.jsonl", {"bucket": "solid_color"}, "colour")],
)  # fmt: skip
def test_what_is_taken_is_told_by_the_file_or_the_bucket(tmp_path: Path, name: str, metadata: dict, bucket: str):
    assert read(written(tmp_path, {**TASK, "metadata": metadata}, name=name))[0].bucket == bucket
    assert read(written(tmp_path, {**TASK, "edit_type": "add"}, name=name))[0].bucket == "add"


@pytest.mark.parametrize(
    ("change", "error", "complaint"),
    [
        ({"instruction": ""}, TaskError, "line 2 lacks 'instruction'"),
        ({"noise_seed": None}, TaskError, "line 2 lacks 'noise_seed'"),
        ({"height": 60}, OutOfRange, "line 2: height and width are multiples of 16, got 60 x 96"),
        ({"source_image_path": "refs/b.png"}, TaskError, "line 2: there is no image .*b.png"),
        ({"source_image_path": "../secret.png"}, TaskError, "line 2: ../secret.png lies outside"),
        ({"source_image_path": "solid_color.jsonl"}, ImageError, "not an image"),
        ({"source_image_path": None}, TaskError, "line 2 has no reference"),
        ({"source_image_path": None, "ref_seed": 3}, TaskError, "drawn by the model from a caption"),
        ({"edit_type": "ad"}, UnknownName, "did you mean 'add'"),
        ({"task_id": "t0"}, TaskError, "task_id 't0' stands twice"),
    ],
)
def test_a_broken_task_is_told_by_its_line(tmp_path: Path, change: dict, error: type, complaint: str):
    with pytest.raises(error, match=complaint):
        read(written(tmp_path, {**TASK, "task_id": "t0"}, {**TASK, **change}))


def test_a_file_that_is_none_is_told(tmp_path: Path):
    with pytest.raises(TaskError, match="line 1 is not JSON"):
        read(written(tmp_path, "{"))
    with pytest.raises(TaskError, match="line 1 lacks 'task_id'"):
        read(written(tmp_path, "[1]"))
    with pytest.raises(TaskError, match="holds no tasks"):
        read(written(tmp_path, ""))
    with pytest.raises(TaskError, match="cannot be read"):
        read(tmp_path / "gone.jsonl")
    with pytest.raises(TaskError, match=r"told neither by metadata\.bucket"):
        read(written(tmp_path, TASK, name="mine.jsonl"))
