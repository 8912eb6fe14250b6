"""Pictures of a few things of different sizes at known boxes: regions to look at that are no panels.

    picture = sample(seed=0)
    picture.pixels                                # (192, 256, 3) uint8
    picture.boxes[0], picture.names[0]            # "Red ball.", the smallest first
    picture.sizes                                 # ("small", "medium", "large"), COCO's classes

Things are cut-outs pasted on scenery; cut-outs of any other origin can be pasted the same way.
"""

from collections.abc import Sequence
from functools import lru_cache
from random import Random

import numpy as np
import skia

from mediant.core.errors import TaskError
from mediant.tasks.pictures.painter import Box, Painter, Pixels
from mediant.tasks.pictures.scene import COLOURS, HELD_OUT_ONE_IN, OBJECTS, PLACES, Split
from mediant.tasks.pictures.things import place, thing
from mediant.tasks.regions import RegionPicture, size_class

HEIGHT, WIDTH = 192, 256
# Sides of the squares that things are drawn in; most fill about two thirds of theirs.
SIDES = {"small": range(28, 40, 4), "medium": range(48, 76, 4), "large": range(128, 144, 4)}
_TRIES = 2000


def paste(ground: Pixels, cutout: Pixels, left: int, top: int) -> Box:
    """Put a cut-out on a ground, in place; the box of what it covers."""
    height, width = cutout.shape[:2]
    under = ground[top : top + height, left : left + width].astype(np.float32)
    cover = cutout[..., 3:].astype(np.float32) / 255
    ground[top : top + height, left : left + width] = np.round(cutout[..., :3] + (1 - cover) * under).astype(np.uint8)
    rows, columns = np.nonzero(cutout[..., 3] > 127)
    return float(left + columns.min()), float(top + rows.min()), float(left + columns.max() + 1), float(top + rows.max() + 1)


@lru_cache(maxsize=2048)
def cutout(name: str, colour: str, side: int) -> Pixels:
    """An object without a ground, filling a square of `side` pixels."""
    painter = Painter(side, "flat", bare=True)
    matrix = skia.Matrix().setScale(0.94, 0.94).postTranslate(0.5, 0.5)
    for part in thing(name, colour):
        path = skia.Path(part.path)
        path.transform(matrix)
        if part.width:
            painter.line(path, part.colour, part.width * 0.94)
        else:
            painter.shape(path, part.colour)
    return painter.cutout()


@lru_cache(maxsize=32)
def scenery(name: str) -> Pixels:
    """A place without anybody in it, (192, 256, 3)."""
    painter = Painter(WIDTH, "flat")
    for part in place(name):
        painter.line(part.path, part.colour, part.width) if part.width else painter.backdrop(part.path, part.colour)
    return painter.pixels()[WIDTH - HEIGHT :]


def held_out(kinds: Sequence[str]) -> bool:
    """Whether these kinds of objects are kept from being drawn together for training; each of them alone is not."""
    return sum(OBJECTS.index(kind) for kind in kinds) % HELD_OUT_ONE_IN == 0


def draw(random: Random, name: str, split: Split = "main") -> RegionPicture:
    """One thing of each size, no two of one kind or colour, nowhere overlapping."""
    while True:
        kinds, colours = random.sample(OBJECTS, len(SIDES)), random.sample(COLOURS, len(SIDES))
        if held_out(kinds) == (split == "heldout"):
            break
    ground = scenery(random.choice(PLACES)).copy()
    sides = [random.choice(list(SIDES[size])) for size in SIDES]
    chosen, places = list(zip(colours, kinds, strict=True)), corners(random, [(side, side) for side in sides])
    boxes = [paste(ground, cutout(w, c, side), *at) for (c, w), side, at in zip(chosen, sides, places, strict=True)]
    return RegionPicture(
        name,
        ground,
        tuple(boxes),
        tuple(f"{c.capitalize()} {w}." for c, w in chosen),
        tuple(chosen),
        tuple(size_class((right - left) * (bottom - top)) for left, top, right, bottom in boxes),
    )


def corners(random: Random, sizes: Sequence[tuple[int, int]], height: int = HEIGHT, width: int = WIDTH) -> list[tuple[int, int]]:
    """Left and top of things of these heights and widths, none overlapping; the highest is placed first.

    Raises:
        TaskError: they do not fit.
    """
    for _ in range(_TRIES):
        found: dict[int, Box] = {}
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
            high, wide = sizes[i]
            left, top = random.randrange(width - wide + 1), random.randrange(height - high + 1)
            box = (left, top, left + wide, top + high)
            if all(_apart(box, other) for other in found.values()):
                found[i] = box
        if len(found) == len(sizes):
            return [(int(found[i][0]), int(found[i][1])) for i in range(len(sizes))]
    raise TaskError("these things do not fit beside each other")


def _apart(one: Box, two: Box) -> bool:
    return any(one[axis + 2] <= two[axis] or two[axis + 2] <= one[axis] for axis in range(2))


def generate(n: int, *, seed: int = 0, split: Split = "main") -> list[RegionPicture]:
    """`n` pictures from one seed."""
    random = Random(f"scatter-{split}-{seed}")
    return [draw(random, f"scatter-{split}-{seed}-{i:05d}", split) for i in range(n)]


def sample(seed: int = 0, *, split: Split = "main") -> RegionPicture:
    """One picture."""
    return generate(1, seed=seed, split=split)[0]
