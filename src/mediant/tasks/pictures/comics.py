"""Comic strips of N panels with a caption for each: what a vision-language model is asked to describe, panel by panel.

    strip = sample(seed=0)
    strip.pixels                      # (64, 384, 3) uint8, six panels of 64 pixels
    strip.captions[3]                 # "Frog runs with a blue kite in the forest."
    strip.panel(3)                    # its box in pixels; strip.part(3, "object") that of the kite

No two panels of a strip share a character or an object, so each caption fits one panel alone. Panels are pasted side by side
with a white bar over every inner border, so borders lie at multiples of the panel's size and fall between image tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from mediant.core.errors import OutOfRange
from mediant.tasks.pictures.painter import Box, Painter, Pixels
from mediant.tasks.pictures.puppet import block, stroke
from mediant.tasks.pictures.render import Picture, render
from mediant.tasks.pictures.scene import CHARACTERS, OBJECTS, Scene, Split, draw_scene

PANELS, SIZE, GAP = 6, 64, 2
# Letters of straight lines, corner to corner of a unit square, so that no font is needed.
LETTERS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "A": (((0, 1), (0.5, 0), (1, 1)), ((0.2, 0.6), (0.8, 0.6))),
    "E": (((1, 0), (0, 0), (0, 1), (1, 1)), ((0, 0.5), (0.8, 0.5))),
    "F": (((1, 0), (0, 0), (0, 1)), ((0, 0.5), (0.8, 0.5))),
    "H": (((0, 0), (0, 1)), ((1, 0), (1, 1)), ((0, 0.5), (1, 0.5))),
    "K": (((0, 0), (0, 1)), ((1, 0), (0, 0.55), (1, 1))),
    "L": (((0, 0), (0, 1), (1, 1)),),
    "M": (((0, 1), (0, 0), (0.5, 0.6), (1, 0), (1, 1)),),
    "N": (((0, 1), (0, 0), (1, 1), (1, 0)),),
    "T": (((0, 0), (1, 0)), ((0.5, 0), (0.5, 1))),
    "V": (((0, 0), (0.5, 1), (1, 0)),),
    "X": (((0, 0), (1, 1)), ((1, 0), (0, 1))),
    "Z": (((0, 0), (1, 0), (0, 1), (1, 1)),),
}


@dataclass(frozen=True, eq=False)
class Strip:
    """A comic strip.

    Attributes:
        letters: one per panel, drawn in its corner; empty for none.
        panel_widths: in pixels, as the strip's borders are placed by them.
    """

    id: str
    panels: tuple[Picture, ...]
    pixels: Pixels
    letters: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """One sentence per panel."""
        return tuple(panel.scene.caption for panel in self.panels)

    @property
    def panel_widths(self) -> tuple[int, ...]:
        """Widths in pixels, left to right."""
        return tuple(panel.pixels.shape[1] for panel in self.panels)

    def panel(self, k: int) -> Box:
        """Box of panel `k`, from 0, in pixels.

        Raises:
            OutOfRange: no such panel.
        """
        if not 0 <= k < len(self.panels):
            raise OutOfRange(f"panels count from 0 to {len(self.panels) - 1}, got {k}")
        left = sum(self.panel_widths[:k])
        return float(left), 0.0, float(left + self.panel_widths[k]), float(self.pixels.shape[0])

    def part(self, k: int, name: str) -> Box:
        """Box of the character or the object of panel `k`, in pixels of the strip."""
        x, y, *_ = self.panel(k)
        left, top, right, bottom = self.panels[k].boxes[name]
        return left + x, top + y, right + x, bottom + y


def compose(name: str, scenes: Sequence[Scene], *, size: int = SIZE, gap: int = GAP, letters: str = "") -> Strip:
    """Draw scenes side by side.

    Raises:
        OutOfRange: no scenes, or another number of letters.
    """
    if not scenes or (letters and len(letters) != len(scenes)):
        raise OutOfRange(f"a strip needs one or more scenes, and a letter for each or none; got {len(scenes)} and {len(letters)}")
    panels = tuple(render(scene, size) for scene in scenes)
    pixels = np.concatenate([panel.pixels for panel in panels], axis=1)
    for border in range(size, size * len(panels), size):
        pixels[:, border - gap // 2 : border + (gap + 1) // 2] = 255
    for k, letter in enumerate(letters):
        corner, at = _lettered(letter, size), k * size + max(2, gap)
        pixels[2 : 2 + len(corner), at : at + len(corner)] = corner
    return Strip(name, panels, pixels, letters)


def generate(
    n: int,
    *,
    seed: int = 0,
    split: Split = "main",
    panels: int = PANELS,
    size: int = SIZE,
    style: str = "flat",
    lettered: bool = False,
) -> list[Strip]:
    """`n` strips from one seed.

    Raises:
        OutOfRange: more panels than there are characters or objects.
    """
    if not 1 <= panels <= min(len(CHARACTERS), len(OBJECTS)):
        raise OutOfRange(f"strips have 1 to {min(len(CHARACTERS), len(OBJECTS))} panels, got {panels}")
    random, strips = Random(f"{split}-{seed}"), []
    for number in range(n):
        letters = "".join(random.sample(sorted(LETTERS), panels)) if lettered else ""
        scenes = _unlike(random, panels, split, style)
        strips.append(compose(f"{split}-{seed}-{number:05d}", scenes, size=size, letters=letters))
    return strips


def sample(seed: int = 0, *, split: Split = "main") -> Strip:
    """One strip."""
    return generate(1, seed=seed, split=split)[0]


def _unlike(random: Random, n: int, split: Split, style: str) -> list[Scene]:
    """Scenes with characters and objects of their own."""
    found: list[Scene] = []
    while len(found) < n:
        scene = draw_scene(random, split, style=style)
        if all(scene.character != other.character and scene.object != other.object for other in found):
            found.append(scene)
    return found


def _lettered(letter: str, size: int) -> Pixels:
    """A white tag with a letter, a quarter of a panel wide."""
    painter = Painter(max(10, size // 4), "flat")
    painter.shape(block(0, 0, 1, 1), "white")
    for points in LETTERS[letter]:
        painter.line(stroke(*((0.2 + 0.6 * x, 0.15 + 0.7 * y) for x, y in points)), "black", 0.13)
    return painter.pixels()
