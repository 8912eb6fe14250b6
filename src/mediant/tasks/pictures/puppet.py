"""Characters as puppets: a head that tells who it is, and a body whose limbs and tilt tell what it does.

    parts = puppet("fox", "jumps")
    for part in parts:
        painter.shape(part.path, part.colour)

Everything is drawn around the origin, one unit tall, y pointing down; the scene puts it in its place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin
from typing import Any

import skia

from mediant.tasks.pictures.painter import Colour


@dataclass(frozen=True)
class Part:
    """One shape, or with a width one line."""

    path: Any
    colour: Colour
    width: float = 0.0


@dataclass(frozen=True)
class Pose:
    """Angles from straight down, counter-clockwise, in degrees: left arm, right arm, left leg, right leg; and the body's own."""

    limbs: tuple[float, float, float, float]
    tilt: float = 0.0
    lift: float = 0.0
    asleep: bool = False


POSES = {
    "waves": Pose((-25, 150, -12, 12)),
    "jumps": Pose((-120, 120, -45, 45), lift=0.2),
    "sleeps": Pose((-10, 10, -5, 5), tilt=-90, asleep=True),
    "runs": Pose((-70, 60, -55, 50), tilt=14),
    "sits": Pose((-35, 35, -82, 82), lift=-0.13),
    "dances": Pose((-150, 75, -30, 8), tilt=-14),
}
BODIES = {
    "fox": "orange", "robot": "grey", "frog": "green", "bear": "brown", "cat": "black", "rabbit": "white", "owl": "purple",
    "pig": "pink", "penguin": "black", "lion": "yellow", "mouse": "stone", "ghost": "white",
}  # fmt: skip
HEAD = (0.0, -0.3, 0.21)
SHOULDER, HIP, LIMB = -0.06, 0.22, 0.24


def circle(x: float, y: float, r: float, ry: float | None = None) -> Any:
    """An ellipse as a path."""
    return skia.Path().addOval(skia.Rect.MakeLTRB(x - r, y - (ry or r), x + r, y + (ry or r)))


def polygon(*points: tuple[float, float]) -> Any:
    """A closed polygon as a path."""
    return skia.Path().addPoly([skia.Point(x, y) for x, y in points], True)


def stroke(*points: tuple[float, float]) -> Any:
    """An open line as a path."""
    return skia.Path().addPoly([skia.Point(x, y) for x, y in points], False)


def block(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Any:
    """A rectangle as a path, its corners rounded."""
    return skia.Path().addRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), corner, corner)


def puppet(character: str, action: str, *, coat: Colour | None = None, belly: Colour | None = None) -> tuple[list[Part], Pose]:
    """The parts of a character from back to front, standing upright, and the pose that moves them as a whole.

    Args:
        coat, belly: colours of this one, where they are not those of its kind.
    """
    pose, colour = POSES[action], coat or BODIES[character]
    parts = BEHIND.get(character, _nothing)(colour)
    parts += [Part(_limb(side, angle, SHOULDER if i < 2 else HIP), colour, 0.09) for i, (side, angle) in enumerate(_limbs(pose))]
    parts += [Part(circle(0, 0.1, 0.17, 0.22), colour), Part(circle(0, 0.13, 0.1, 0.14), belly or _belly(character))]
    parts += HEADS[character](colour)
    return [*parts, *_eyes(character, asleep=pose.asleep)], pose


def hand(pose: Pose) -> tuple[float, float]:
    """Where the right hand is."""
    return _end(1, pose.limbs[1], SHOULDER)


def _limbs(pose: Pose) -> list[tuple[int, float]]:
    return list(zip((-1, 1, -1, 1), pose.limbs, strict=True))


def _end(side: int, angle: float, height: float) -> tuple[float, float]:
    return 0.12 * side + LIMB * sin(angle * pi / 180), height + LIMB * cos(angle * pi / 180)


def _limb(side: int, angle: float, height: float) -> Any:
    return stroke((0.12 * side, height), _end(side, angle, height))


def _belly(character: str) -> str:
    return {"penguin": "white", "cat": "grey", "robot": "stone", "ghost": "white", "rabbit": "pink"}.get(character, "cream")


def _eyes(character: str, *, asleep: bool) -> list[Part]:
    x, y, _ = HEAD
    if asleep:
        return [
            Part(stroke((x + s * 0.12, y), (x + s * 0.05, y)), "white" if character == "cat" else "black", 0.02) for s in (-1, 1)
        ]
    size = 0.075 if character in ("owl", "frog") else 0.05
    at = y - 0.17 if character == "frog" else y - 0.02
    white = [Part(circle(x + s * 0.085, at, size), "white") for s in (-1, 1)]
    return white + [Part(circle(x + s * 0.085, at, size * 0.5), "black") for s in (-1, 1)]


def _nothing(colour: Colour) -> list[Part]:  # noqa: ARG001
    return []


def _face(colour: Colour) -> Part:
    return Part(circle(*HEAD), colour)


def _ears(colour: Colour, shape: Callable[[int], Any]) -> list[Part]:
    return [Part(shape(side), colour) for side in (-1, 1)]


def _pointed(side: int) -> Any:
    return polygon((side * 0.06, -0.47), (side * 0.2, -0.38), (side * 0.2, -0.62))


def _fox(colour: Colour) -> list[Part]:
    snout = polygon((-0.12, -0.25), (0.12, -0.25), (0, -0.08))
    return [*_ears(colour, _pointed), _face(colour), Part(snout, "white"), Part(circle(0, -0.1, 0.03), "black")]


def _cat(colour: Colour) -> list[Part]:
    whiskers = [Part(stroke((s * 0.08, -0.2), (s * 0.26, -0.2 + d)), "grey", 0.012) for s in (-1, 1) for d in (-0.04, 0.04)]
    return [*_ears(colour, _pointed), _face(colour), *whiskers, Part(polygon((-0.03, -0.22), (0.03, -0.22), (0, -0.18)), "pink")]


def _robot(colour: Colour) -> list[Part]:
    antenna = [Part(stroke((0, -0.5), (0, -0.62)), "black", 0.025), Part(circle(0, -0.64, 0.04), "red")]
    return [*antenna, Part(block(-0.21, -0.5, 0.21, -0.12, 0.03), colour), Part(block(-0.12, -0.22, 0.12, -0.17), "black")]


def _frog(colour: Colour) -> list[Part]:
    bulges = _ears(colour, lambda side: circle(side * 0.085, -0.47, 0.1))
    return [
        *bulges,
        Part(circle(0, -0.29, 0.25, 0.18), colour),
        Part(stroke((-0.14, -0.22), (0, -0.18), (0.14, -0.22)), "black", 0.02),
    ]


def _bear(colour: Colour) -> list[Part]:
    snout = [Part(circle(0, -0.23, 0.09, 0.07), "cream"), Part(circle(0, -0.26, 0.03), "black")]
    return [*_ears(colour, lambda side: circle(side * 0.17, -0.47, 0.08)), _face(colour), *snout]


def _rabbit(colour: Colour) -> list[Part]:
    inner = _ears("pink", lambda side: circle(side * 0.09, -0.6, 0.03, 0.12))
    return [
        *_ears(colour, lambda side: circle(side * 0.09, -0.6, 0.06, 0.18)),
        *inner,
        _face(colour),
        Part(circle(0, -0.23, 0.03), "pink"),
    ]


def _owl(colour: Colour) -> list[Part]:
    return [*_ears(colour, _pointed), _face(colour), Part(polygon((-0.05, -0.24), (0.05, -0.24), (0, -0.14)), "orange")]


def _pig(colour: Colour) -> list[Part]:
    nostrils = [Part(circle(s * 0.03, -0.22, 0.016), "black") for s in (-1, 1)]
    ears = _ears(colour, lambda side: polygon((side * 0.05, -0.48), (side * 0.2, -0.44), (side * 0.2, -0.3)))
    return [_face(colour), *ears, Part(circle(0, -0.22, 0.08, 0.06), "red"), *nostrils]


def _penguin(colour: Colour) -> list[Part]:
    return [
        _face(colour),
        Part(circle(0, -0.25, 0.14), "white"),
        Part(polygon((-0.06, -0.24), (0.06, -0.24), (0, -0.14)), "orange"),
    ]


def _lion(colour: Colour) -> list[Part]:
    snout = [Part(circle(0, -0.22, 0.08, 0.06), "cream"), Part(circle(0, -0.25, 0.025), "black")]
    return [Part(circle(0, -0.3, 0.29), "brown"), _face(colour), *snout]


def _mouse(colour: Colour) -> list[Part]:
    inner = _ears("pink", lambda side: circle(side * 0.2, -0.46, 0.08))
    return [
        *_ears(colour, lambda side: circle(side * 0.2, -0.46, 0.14)),
        *inner,
        _face(colour),
        Part(circle(0, -0.2, 0.03), "pink"),
    ]


def _ghost(colour: Colour) -> list[Part]:
    sheet = polygon(
        (-0.22, -0.3),
        (0.22, -0.3),
        (0.25, 0.34),
        (0.15, 0.26),
        (0.08, 0.36),
        (0, 0.26),
        (-0.08, 0.36),
        (-0.15, 0.26),
        (-0.25, 0.34),
    )
    return [Part(sheet, colour), Part(circle(0, -0.3, 0.22), colour), Part(circle(0, -0.18, 0.04), "black")]


def _tail(colour: Colour) -> list[Part]:
    return [Part(circle(-0.25, 0.16, 0.14, 0.07), colour)]


BEHIND = {"fox": _tail, "cat": _tail, "lion": _tail}
HEADS: dict[str, Callable[[Colour], list[Part]]] = {
    "fox": _fox, "robot": _robot, "frog": _frog, "bear": _bear, "cat": _cat, "rabbit": _rabbit, "owl": _owl, "pig": _pig,
    "penguin": _penguin, "lion": _lion, "mouse": _mouse, "ghost": _ghost,
}  # fmt: skip
