"""Objects and places: shapes by name, in a unit around the origin for objects, in the unit square for places."""

from collections.abc import Callable

import skia

from mediant.tasks.pictures.painter import Colour
from mediant.tasks.pictures.puppet import Part, block, circle, polygon, stroke


def thing(name: str, colour: Colour) -> list[Part]:
    """The parts of an object, from -0.5 to 0.5, the colour asked for on its largest part."""
    return THINGS[name](colour)


def place(name: str) -> list[Part]:
    """The scenery of a place, from back to front; the ground begins at 0.72."""
    return PLACES[name]()


def _ball(colour: Colour) -> list[Part]:
    return [Part(circle(0, 0, 0.42), colour), Part(stroke((-0.4, 0.05), (0, -0.12), (0.4, 0.05)), "black", 0.05)]


def _balloon(colour: Colour) -> list[Part]:
    return [Part(stroke((0, 0.2), (0.04, 0.5)), "black", 0.04), Part(circle(0, -0.14, 0.32, 0.36), colour)]


def _book(colour: Colour) -> list[Part]:
    title = [Part(block(-0.16, -0.26, 0.24, -0.16), "cream"), Part(stroke((-0.26, -0.42), (-0.26, 0.3)), "black", 0.04)]
    return [Part(block(-0.36, -0.45, 0.36, 0.45, 0.03), colour), Part(block(-0.3, 0.32, 0.36, 0.4), "cream"), *title]


def _umbrella(colour: Colour) -> list[Part]:
    dome = skia.Path().addArc(skia.Rect.MakeLTRB(-0.5, -0.5, 0.5, 0.4), 180, 180)
    return [Part(stroke((0, -0.1), (0, 0.45), (0.1, 0.5)), "black", 0.06), Part(dome, colour)]


def _cake(colour: Colour) -> list[Part]:
    candle = [Part(block(-0.04, -0.42, 0.04, -0.15), "white"), Part(circle(0, -0.45, 0.06), "yellow")]
    return [*candle, Part(block(-0.42, -0.15, 0.42, 0.4, 0.05), colour), Part(block(-0.42, -0.15, 0.42, 0.02, 0.05), "cream")]


def _flower(colour: Colour) -> list[Part]:
    petals = [Part(circle(x, y - 0.18, 0.15), colour) for x, y in ((0, -0.17), (0.17, 0), (0, 0.17), (-0.17, 0))]
    return [Part(stroke((0, 0), (0, 0.5)), "leaf", 0.07), *petals, Part(circle(0, -0.18, 0.1), "cream")]


def _kite(colour: Colour) -> list[Part]:
    tail = stroke((0, 0.3), (0.12, 0.38), (-0.04, 0.44), (0.1, 0.5))
    return [Part(tail, "black", 0.035), Part(polygon((0, -0.5), (0.34, -0.1), (0, 0.3), (-0.34, -0.1)), colour)]


def _box(colour: Colour) -> list[Part]:
    ribbon = [Part(block(-0.06, -0.38, 0.06, 0.4), "cream"), Part(block(-0.42, -0.05, 0.42, 0.07), "cream")]
    return [Part(block(-0.42, -0.38, 0.42, 0.4), colour), *ribbon]


def _guitar(colour: Colour) -> list[Part]:
    neck = [Part(stroke((0.05, -0.05), (0.42, -0.45)), "brown", 0.08)]
    return [
        *neck,
        Part(circle(-0.18, 0.22, 0.25), colour),
        Part(circle(0, 0.02, 0.18), colour),
        Part(circle(-0.12, 0.15, 0.07), "black"),
    ]


def _star(colour: Colour) -> list[Part]:
    points = [
        (0, -0.5),
        (0.13, -0.16),
        (0.48, -0.15),
        (0.2, 0.07),
        (0.3, 0.42),
        (0, 0.22),
        (-0.3, 0.42),
        (-0.2, 0.07),
        (-0.48, -0.15),
        (-0.13, -0.16),
    ]
    return [Part(polygon(*points), colour)]


def _ground(colour: Colour) -> Part:
    return Part(block(0, 0.72, 1, 1), colour)


def _sky(colour: Colour) -> Part:
    return Part(block(0, 0, 1, 1), colour)


def _beach() -> list[Part]:
    return [_sky("sky"), Part(circle(0.85, 0.15, 0.09), "yellow"), Part(block(0, 0.55, 1, 0.75), "sea"), _ground("sand")]


def _forest() -> list[Part]:
    trees = [
        Part(polygon((x - 0.14, 0.74), (x, y), (x + 0.14, 0.74)), "leaf")
        for x, y in ((0.08, 0.2), (0.3, 0.3), (0.68, 0.25), (0.92, 0.15))
    ]
    return [_sky("cream"), *trees, _ground("grass")]


def _city() -> list[Part]:
    towers = [Part(block(x, y, x + 0.2, 0.74), "stone") for x, y in ((0.02, 0.3), (0.24, 0.12), (0.56, 0.22), (0.79, 0.08))]
    windows = [Part(block(x, y, x + 0.05, y + 0.06), "yellow") for x in (0.29, 0.62, 0.86) for y in (0.3, 0.45)]
    return [_sky("dusk"), *towers, *windows, _ground("grey")]


def _desert() -> list[Part]:
    cactus = [
        Part(stroke((0.14, 0.74), (0.14, 0.4)), "green", 0.06),
        Part(stroke((0.14, 0.58), (0.24, 0.58), (0.24, 0.48)), "green", 0.05),
    ]
    return [_sky("cream"), Part(circle(0.2, 0.16, 0.1), "orange"), _ground("orange"), *cactus]


def _mountain() -> list[Part]:
    peaks = [
        Part(polygon((-0.1, 0.74), (0.25, 0.1), (0.6, 0.74)), "stone"),
        Part(polygon((0.45, 0.74), (0.8, 0.2), (1.15, 0.74)), "grey"),
    ]
    return [_sky("sky"), *peaks, Part(polygon((0.16, 0.26), (0.25, 0.1), (0.34, 0.26)), "white"), _ground("leaf")]


def _moon() -> list[Part]:
    stars = [
        Part(circle(x, y, 0.012), "white")
        for x, y in ((0.1, 0.1), (0.3, 0.25), (0.6, 0.08), (0.9, 0.35), (0.45, 0.4), (0.08, 0.5))
    ]
    craters = [Part(circle(x, 0.85, 0.08, 0.03), "stone") for x in (0.2, 0.75)]
    return [_sky("night"), *stars, Part(circle(0.82, 0.16, 0.1), "sea"), _ground("dust"), *craters]


def _meadow() -> list[Part]:
    flowers = [
        Part(circle(x, y, 0.025), c)
        for x, y, c in ((0.1, 0.82, "red"), (0.3, 0.93, "yellow"), (0.8, 0.85, "purple"), (0.93, 0.95, "red"))
    ]
    return [_sky("sky"), Part(circle(0.25, 0.15, 0.1, 0.05), "white"), _ground("grass"), *flowers]


def _harbour() -> list[Part]:
    boat = [
        Part(polygon((0.05, 0.56), (0.35, 0.56), (0.3, 0.66), (0.1, 0.66)), "brown"),
        Part(polygon((0.2, 0.54), (0.2, 0.28), (0.34, 0.54)), "white"),
    ]
    return [_sky("dusk"), Part(block(0, 0.6, 1, 0.75), "sea"), *boat, _ground("brown")]


THINGS: dict[str, Callable[[Colour], list[Part]]] = {
    "ball": _ball, "balloon": _balloon, "book": _book, "umbrella": _umbrella, "cake": _cake, "flower": _flower, "kite": _kite,
    "box": _box, "guitar": _guitar, "star": _star,
}  # fmt: skip
PLACES: dict[str, Callable[[], list[Part]]] = {
    "beach": _beach, "forest": _forest, "city": _city, "desert": _desert, "mountain": _mountain, "moon": _moon,
    "meadow": _meadow, "harbour": _harbour,
}  # fmt: skip
