"""Requests from the published task files: JSON lines beside folders of reference images.

    requests = read("tasks/solid_color.jsonl")
    requests[0].bucket, requests[0].instruction, requests[0].references[0].shape

A line has `task_id`, `instruction`, `height`, `width`, `noise_seed`, `edit_type` (`add`, `remove` or `customize`) and one
reference: `real_ref_name` in `real_ref_dir`, or else `source_image_path`; paths are relative to the file. What a `customize` task
takes of its reference is told by `metadata.bucket`, or by the file's name. A named reference is cut around its middle to
multiples of 16 pixels, one given by path is scaled to the size of the picture asked for, as in the paper's code.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mediant.core.errors import OutOfRange, TaskError, unknown
from mediant.subject.vision import as_pixels
from mediant.tasks.requests import Pixels, Request, RequestPair

MULTIPLE = 16
# Words in names of published files and buckets -> the property that is taken.
_TAKEN = {"color": "colour", "colour": "colour", "style": "style", "manual": "style", "human": "identity", "identity": "identity"}
_FIELDS = ("task_id", "instruction", "height", "width", "noise_seed")


def read(file: str | Path, *, size: int | None = None) -> list[Request]:
    """All requests of a file, in its order.

    Args:
        size: side, in pixels, of the pictures to be asked for and of references given by path, instead of what the file says.

    Raises:
        TaskError: a line that is no task, with its number; a reference that is not given as an image.
        OutOfRange: a height or width that is no multiple of 16.
        ImageError: a reference that cannot be read.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} cannot be read: {error}; expected JSON lines, one task each") from error
    found = [_request(line, f"{path} line {i}", path, size) for i, line in enumerate(lines, start=1) if line.strip()]
    if not found:
        raise TaskError(f"{path} holds no tasks")
    names = [one.name for one in found]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise TaskError(f"{path}: task_id {twice!r} stands twice")
    return found


def _request(line: str, where: str, file: Path, size: int | None) -> Request:
    try:
        task = json.loads(line)
    except ValueError as error:
        raise TaskError(f"{where} is not JSON: {error}") from error
    missing = [name for name in _FIELDS if not isinstance(task, dict) or task.get(name) in (None, "")]
    if missing:
        raise TaskError(f"{where} lacks {missing[0]!r}; a task has {', '.join(_FIELDS)} and a reference")
    height, width = (size, size) if size else (int(task["height"]), int(task["width"]))
    if min(height, width) < MULTIPLE or height % MULTIPLE or width % MULTIPLE:
        raise OutOfRange(f"{where}: height and width are multiples of {MULTIPLE}, got {height} x {width}")
    reference = _reference(task, where, file, height, width)
    bucket = _bucket(task, where, file)
    colour = {"rgb": ",".join(str(round(value)) for value in reference.mean((0, 1)))} if bucket == "colour" else {}
    known = {str(key): str(value) for key, value in (task.get("metadata") or {}).items()}
    return Request(
        str(task["task_id"]), bucket, str(task["instruction"]), (reference,), height, width, colour | known, None,
        int(task["noise_seed"]),
    )  # fmt: skip


def _bucket(task: Mapping[str, Any], where: str, file: Path) -> str:
    kind = str(task.get("edit_type", "customize"))
    if kind in ("add", "remove"):
        return kind
    if kind != "customize":
        raise unknown("edit_type", kind, ["add", "remove", "customize"], note=f"({where})")
    named = f"{(task.get('metadata') or {}).get('bucket', '')} {file.stem}".lower()
    for word, taken in _TAKEN.items():
        if word in named:
            return taken
    raise TaskError(
        f"{where}: what is taken of the reference is told neither by metadata.bucket nor by the file's name; expected one of "
        f"{', '.join(_TAKEN)}"
    )


def _reference(task: Mapping[str, Any], where: str, file: Path, height: int, width: int) -> Pixels:
    if task.get("real_ref_name"):
        return cropped(as_pixels(_within(file, Path(task.get("real_ref_dir") or ".") / task["real_ref_name"], where)))
    if task.get("source_image_path"):
        from PIL import Image

        pixels = as_pixels(_within(file, Path(task["source_image_path"]), where))
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    if task.get("ref_seed") is not None:
        raise TaskError(
            f"{where}: its reference is to be drawn by the model from a caption; draw it once, save it, and give it as "
            "source_image_path"
        )
    raise TaskError(f"{where} has no reference: real_ref_name, source_image_path or ref_seed")


def _within(file: Path, path: Path, where: str) -> Path:
    """A path of the file's own folder, so that a task file from elsewhere reads nothing else."""
    found = (file.parent / path).resolve()
    if not found.is_relative_to(file.parent.resolve()):
        raise TaskError(f"{where}: {path} lies outside {file.parent}")
    if not found.is_file():
        raise TaskError(f"{where}: there is no image {found}")
    return found


def cropped(pixels: Pixels) -> Pixels:
    """The middle of an image, cut to multiples of 16 pixels.

    Raises:
        TaskError: an image under 16 pixels a side.
    """
    high, wide = (side // MULTIPLE * MULTIPLE for side in pixels.shape[:2])
    if not high or not wide:
        raise TaskError(f"a reference has at least {MULTIPLE} pixels a side, got {pixels.shape[1]} x {pixels.shape[0]}")
    top, left = (pixels.shape[0] - high) // 2, (pixels.shape[1] - wide) // 2
    return pixels[top : top + high, left : left + wide]


def paired(found: Sequence[Request]) -> list[RequestPair]:
    """Each request with the next one of the same instruction and sizes and another reference."""
    alike: dict[object, list[Request]] = {}
    for each in found:
        alike.setdefault((each.instruction, each.height, each.width, each.references[0].shape), []).append(each)
    return [
        RequestPair(source, base)
        for group in alike.values()
        for source, base in pairwise(group)
        if not np.array_equal(source.references[0], base.references[0])
    ]
