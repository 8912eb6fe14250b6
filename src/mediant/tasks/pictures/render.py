"""From a scene to pixels, with a box around everything that was drawn.

picture = render(Scene("fox", "jumps", "ball", "red", "beach"), 64)
picture.pixels                    # (64, 64, 3) uint8
picture.boxes["object"]           # left, top, right, bottom in pixels
"""

from collections.abc import Iterable
from dataclasses import dataclass

import skia

from mediant.tasks.pictures.painter import Box, Painter, Pixels
from mediant.tasks.pictures.puppet import Part, Pose, block, puppet
from mediant.tasks.pictures.scene import Scene
from mediant.tasks.pictures.things import place, thing

# Where the character's middle and the object's middle are, and how tall and wide they are, in units of the panel.
CHARACTER, CHARACTER_SIZE = (0.36, 0.55), 0.66
OBJECT, OBJECT_SIZE = (0.77, 0.62), 0.36


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn scene.

    Attributes:
        boxes: "character", where there is one, and "object", in pixels.
    """

    scene: Scene
    pixels: Pixels
    boxes: dict[str, Box]


def render(scene: Scene, size: int = 64, *, ground: str | None = None, deserted: bool = False) -> Picture:
    """Draw one scene on a square of `size` pixels.

    Args:
        ground: a colour to put behind everything instead of the place.
        deserted: leave the character out.

    Raises:
        OutOfRange: a size under 8 pixels.
    """
    painter = Painter(size, scene.style)
    for part in place(scene.place) if ground is None else [Part(block(0, 0, 1, 1), ground)]:
        painter.line(part.path, part.colour, part.width) if part.width else painter.backdrop(part.path, part.colour)
    parts, pose = puppet(scene.character, scene.action)
    boxes = {} if deserted else {"character": _put(painter, parts, _stance(pose))}
    boxes |= {
        "object": _put(painter, thing(scene.object, scene.colour), _at(OBJECT, OBJECT_SIZE)),
    }
    return Picture(scene, painter.pixels(), {name: _pixels(box, size) for name, box in boxes.items()})


def _at(middle: tuple[float, float], size: float) -> skia.Matrix:
    return skia.Matrix().setScale(size, size).postTranslate(*middle)


def _stance(pose: Pose) -> skia.Matrix:
    """Turned by the pose's tilt, lifted off the ground by its lift."""
    x, y = CHARACTER
    turned = skia.Matrix().setRotate(pose.tilt).postScale(CHARACTER_SIZE, CHARACTER_SIZE)
    return turned.postTranslate(x, y - pose.lift * CHARACTER_SIZE + (0.12 if pose.asleep else 0.0))


def _put(painter: Painter, parts: Iterable[Part], matrix: skia.Matrix) -> Box:
    """Draw parts through a matrix; the box of what they cover, in units of the panel."""
    left, top, right, bottom = 1.0, 1.0, 0.0, 0.0
    for part in parts:
        path, half = skia.Path(part.path), part.width * CHARACTER_SIZE / 2
        path.transform(matrix)
        if part.width:
            painter.line(path, part.colour, part.width * matrix.mapRadius(1.0))
        else:
            painter.shape(path, part.colour)
        bounds = path.computeTightBounds()
        left, top = min(left, bounds.left() - half), min(top, bounds.top() - half)
        right, bottom = max(right, bounds.right() + half), max(bottom, bounds.bottom() + half)
    return left, top, right, bottom


def _pixels(box: Box, size: int) -> Box:
    left, top, right, bottom = (min(1.0, max(0.0, side)) * size for side in box)
    return left, top, right, bottom
