"""Pictures with named things at known boxes, and a user's folder of them in COCO's layout.

pictures = read("photos/", n=40)            # photos/annotations.json and the images it names
pictures[0].boxes, pictures[0].names, pictures[0].sizes
"""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from mediant.core.errors import TaskError
from mediant.subject.regions import Box

Pixels = npt.NDArray[np.uint8]
ANNOTATIONS = "annotations.json"
SIZES = ("small", "medium", "large")


@dataclass(frozen=True, eq=False)
class RegionPicture:
    """A picture of things.

    Attributes:
        boxes: left, top, right, bottom in pixels.
        names: what each thing is called.
        facts: per thing, the words that must all be said for it to count as named.
        sizes: COCO's class of each: "small" under 32 x 32 pixels of area, "medium" under 96 x 96, else "large".
    """

    id: str
    pixels: Pixels
    boxes: tuple[Box, ...]
    names: tuple[str, ...]
    facts: tuple[tuple[str, ...], ...]
    sizes: tuple[str, ...]


def size_class(area: float) -> str:
    """COCO's class of an area in pixels."""
    return "small" if area < 32**2 else "medium" if area < 96**2 else "large"


def read(folder: str | Path, *, n: int, seed: int = 0) -> list[RegionPicture]:
    """`n` pictures from a folder with `annotations.json` in COCO's form: images, annotations with bbox, categories.

    Things named twice in one picture are left out, since a name would not tell them apart.

    Raises:
        TaskError: no annotations, a file that is not in this form, or too few pictures.
    """
    from mediant.subject.vision import as_pixels

    root = Path(folder)
    data = _annotations(root)
    by_image: dict[Any, list[dict[str, Any]]] = {}
    for one in data["annotations"]:
        if not one.get("iscrowd"):
            by_image.setdefault(one["image_id"], []).append(one)
    kinds = {one["id"]: str(one["name"]) for one in data["categories"]}
    order = [image for image in data["images"] if image["id"] in by_image]
    Random(seed).shuffle(order)
    found: list[RegionPicture] = []
    for image in order:
        things = by_image[image["id"]]
        called = [kinds[one["category_id"]] for one in things]
        kept = [(one, name) for one, name in zip(things, called, strict=True) if called.count(name) == 1]
        if kept and len(found) < n:
            boxes = tuple((x, y, x + w, y + h) for x, y, w, h in (map(float, one["bbox"]) for one, _ in kept))
            areas = [float(one.get("area") or one["bbox"][2] * one["bbox"][3]) for one, _ in kept]
            names = tuple(name for _, name in kept)
            facts = tuple(tuple(name.lower().split()) for name in names)
            pixels = as_pixels(root / image["file_name"])
            found.append(RegionPicture(str(image["id"]), pixels, boxes, names, facts, tuple(map(size_class, areas))))
    if len(found) < n:
        raise TaskError(f"{root} has {len(found)} pictures with things of one kind each, {n} are needed; lower n_regions")
    return found


def _annotations(root: Path) -> dict[str, Any]:
    path = root / ANNOTATIONS
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for part, fields in (
            ("images", ("id", "file_name")),
            ("annotations", ("image_id", "category_id", "bbox")),
            ("categories", ("id", "name")),
        ):
            for one in data[part]:
                missing = [field for field in fields if field not in one]
                if missing:
                    raise TaskError(f"{path}: an entry of {part} lacks {missing[0]!r}; each needs {', '.join(fields)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TaskError(f"{path} is not in COCO's form (images, annotations, categories): {error}") from error
    return data
