"""One or two large things somewhere, or one individual: what an image generator is asked to draw.

    fox = Individual("fox", coat=(200, 90, 40), belly=(240, 220, 190), wears="hat", cloth=(60, 80, 200))
    still = Still((Placed(fox, 0.5, 0.55, 0.7),), place="beach", style="ink")
    draw(still, 64)                     # (64, 64, 3) uint8

Individuals are what no word names: two foxes differ in coat, belly, and what they wear in which colour.
"""

from collections.abc import Iterable
from colorsys import hsv_to_rgb
from dataclasses import dataclass
from random import Random

import skia

from mediant.core.errors import unknown
from mediant.tasks.pictures.painter import RGB, Colour, Painter, Pixels
from mediant.tasks.pictures.puppet import Part, block, circle, puppet, stroke
from mediant.tasks.pictures.scene import CHARACTERS
from mediant.tasks.pictures.things import place, thing

WEARS = ("nothing", "hat", "scarf", "glasses")


@dataclass(frozen=True)
class Thing:
    """An object in a colour."""

    kind: str
    colour: Colour


@dataclass(frozen=True)
class Individual:
    """One character among all of its kind; without colours, the one that the kind is usually drawn as.

    Raises:
        UnknownName: no such kind, or nothing that can be worn.
    """

    kind: str
    coat: Colour | None = None
    belly: Colour | None = None
    wears: str = "nothing"
    cloth: Colour = "red"

    def __post_init__(self) -> None:
        for value, known in ((self.kind, CHARACTERS), (self.wears, WEARS)):
            if value not in known:
                raise unknown("individual's feature", value, known)

    @classmethod
    def drawn(cls, random: Random, kind: str) -> "Individual":
        """Any individual of a kind, wearing something."""
        return cls(kind, vivid(random), vivid(random), random.choice(WEARS[1:]), vivid(random))


@dataclass(frozen=True)
class Placed:
    """Something with its middle and its size, in units of the picture."""

    what: Thing | Individual
    x: float
    y: float
    size: float


@dataclass(frozen=True)
class Still:
    """A picture to be: what is in it, the place behind it (None: plain ground), and the style."""

    placed: tuple[Placed, ...]
    place: str | None = None
    style: str = "flat"


def vivid(random: Random) -> RGB:
    """Any colour that is neither pale nor nearly black."""
    red, green, blue = hsv_to_rgb(random.random(), random.uniform(0.35, 0.95), random.uniform(0.45, 0.95))
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(still: Still, size: int = 64) -> Pixels:
    """The picture of `size` x `size` pixels, (size, size, 3).

    Raises:
        UnknownName: no such style, place or kind.
        OutOfRange: a size under 8 pixels.
    """
    painter = Painter(size, still.style)
    for part in place(still.place) if still.place else [Part(block(0, 0, 1, 1), "white")]:
        painter.line(part.path, part.colour, part.width) if part.width else painter.backdrop(part.path, part.colour)
    for placed in still.placed:
        _put(painter, _parts(placed.what), skia.Matrix().setScale(placed.size, placed.size).postTranslate(placed.x, placed.y))
    return painter.pixels()


def _parts(what: Thing | Individual) -> list[Part]:
    if isinstance(what, Thing):
        return thing(what.kind, what.colour)
    parts, _ = puppet(what.kind, "waves", coat=what.coat, belly=what.belly)
    return [*parts, *_WORN[what.wears](what.cloth)]


def _put(painter: Painter, parts: Iterable[Part], matrix: skia.Matrix) -> None:
    for part in parts:
        path = skia.Path(part.path)
        path.transform(matrix)
        if part.width:
            painter.line(path, part.colour, part.width * matrix.mapRadius(1.0))
        else:
            painter.shape(path, part.colour)


def _hat(cloth: Colour) -> list[Part]:
    return [Part(block(-0.15, -0.68, 0.15, -0.45), cloth), Part(block(-0.25, -0.48, 0.25, -0.42, 0.02), cloth)]


def _scarf(cloth: Colour) -> list[Part]:
    return [Part(block(-0.18, -0.12, 0.18, -0.03, 0.03), cloth), Part(block(0.04, -0.06, 0.14, 0.16, 0.02), cloth)]


def _glasses(cloth: Colour) -> list[Part]:
    frames = [Part(circle(side * 0.1, -0.32, 0.085), cloth, 0.035) for side in (-1, 1)]
    return [*frames, Part(stroke((-0.02, -0.32), (0.02, -0.32)), cloth, 0.035)]


_WORN = {"nothing": lambda _: [], "hat": _hat, "scarf": _scarf, "glasses": _glasses}
