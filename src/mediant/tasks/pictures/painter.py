"""Drawing in a style: the same shapes as flat colour, ink, neon tubes, chalk, ... on a canvas of the unit square.

    painter = Painter(64, "neon")
    painter.shape(path, "red")               # a closed path in unit coordinates
    painter.line(path, "black", 0.02)
    painter.pixels()                         # (64, 64, 3) uint8

Skia draws; a style says what filling a shape and drawing a line mean, and what happens to the finished picture.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import skia

from mediant.core.errors import OutOfRange, unknown
from mediant.tasks.pictures.scene import STYLES

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]
RGB = tuple[int, int, int]
# The name of a colour of the palette, or any other by its red, green and blue from 0 to 255.
Colour = str | RGB
PALETTE: dict[str, RGB] = {
    "red": (214, 48, 49), "orange": (240, 134, 40), "yellow": (247, 209, 60), "green": (62, 158, 79), "blue": (54, 110, 204),
    "purple": (140, 80, 178), "pink": (240, 142, 178), "white": (250, 250, 248), "black": (34, 34, 40), "grey": (142, 148, 158),
    "brown": (140, 96, 62), "cream": (250, 232, 200), "sky": (168, 214, 242), "sand": (238, 214, 158), "leaf": (98, 150, 82),
    "grass": (150, 200, 106), "night": (40, 44, 86), "stone": (168, 160, 156), "sea": (78, 150, 196), "dusk": (244, 196, 166),
    "dust": (198, 196, 192),
}  # fmt: skip
OVERSAMPLING = 4
DARK = {"neon": (16, 14, 30), "chalk": (40, 58, 52)}


class Painter:
    """A square canvas in unit coordinates, y pointing down.

    Args:
        bare: leave out the ground, for cut-outs.

    Raises:
        UnknownName: no such style.
        OutOfRange: a size under 8 pixels.
    """

    def __init__(self, size: int, style: str = "flat", *, bare: bool = False) -> None:
        if style not in STYLES:
            raise unknown("style", style, STYLES)
        if size < 8:
            raise OutOfRange(f"a picture needs at least 8 pixels a side, got {size}")
        self.size, self.style = size, style
        # Pixel art is drawn coarsely and without smoothing, everything else finely and then reduced.
        self.fine = max(16, size // 4) if style == "pixel" else size * OVERSAMPLING
        self.surface = skia.Surface(self.fine, self.fine)
        self.canvas = self.surface.getCanvas()
        self.canvas.scale(self.fine, self.fine)
        self.canvas.clear(skia.ColorTRANSPARENT if bare else skia.Color(*DARK.get(style, PALETTE["white"])))

    def backdrop(self, path: Any, colour: Colour) -> None:
        """A part of the scenery: quieter than a shape in the styles that draw by line."""
        if self.style in DARK:
            self.canvas.drawPath(path, self._stroke(_mixed(rgb_of(colour), DARK[self.style], 0.55), 0.008))
        elif self.style == "outline":
            self.canvas.drawPath(path, self._fill(PALETTE["white"]))
            self.canvas.drawPath(path, self._stroke((176, 176, 176), 0.008))
        elif self.style == "hatched":
            self.canvas.drawPath(path, self._fill(_mixed(rgb_of(colour), PALETTE["white"], 0.3)))
        else:
            self.canvas.drawPath(path, self._fill(rgb_of(colour)))

    def shape(self, path: Any, colour: Colour) -> None:
        """A closed shape."""
        draw = getattr(self, f"_{self.style}", self._flat)
        draw(path, rgb_of(colour))

    def line(self, path: Any, colour: Colour, width: float) -> None:
        """A line of some width in unit coordinates."""
        rgb = rgb_of(colour)
        if self.style == "neon":
            self._glow(path, _bright(rgb), width / 2)
        else:
            rgb = PALETTE["white"] if self.style == "chalk" and colour == "black" else rgb
            self.canvas.drawPath(path, self._stroke(rgb, width))

    def pixels(self) -> Pixels:
        """The finished picture, (size, size, 3)."""
        found: Pixels = self.surface.makeImageSnapshot().toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3]
        if self.style == "pixel":
            at = np.arange(self.size) * self.fine // self.size
            coarse: Pixels = np.ascontiguousarray(found[at][:, at])
            return coarse
        if self.style == "watercolour":
            found = _paper(found)
        blocks: npt.NDArray[np.float32] = found.reshape(self.size, OVERSAMPLING, self.size, OVERSAMPLING, 3).astype(np.float32)
        smooth: Pixels = np.round(blocks.mean((1, 3))).astype(np.uint8)
        return smooth

    def cutout(self) -> Pixels:
        """The picture without a ground, (size, size, 4): colours multiplied by coverage, and coverage from 0 to 255."""
        image = self.surface.makeImageSnapshot()
        found: Pixels = image.toarray(colorType=skia.kRGBA_8888_ColorType, alphaType=skia.kPremul_AlphaType)
        if self.style == "pixel":
            at = np.arange(self.size) * self.fine // self.size
            coarse: Pixels = np.ascontiguousarray(found[at][:, at])
            return coarse
        blocks = found.reshape(self.size, OVERSAMPLING, self.size, OVERSAMPLING, 4).astype(np.float32)
        smooth: Pixels = np.round(blocks.mean((1, 3))).astype(np.uint8)
        return smooth

    def _fill(self, rgb: tuple[int, ...]) -> Any:
        return skia.Paint(AntiAlias=self.style != "pixel", Color=skia.Color(*rgb))

    def _stroke(self, rgb: tuple[int, ...], width: float) -> Any:
        return skia.Paint(
            AntiAlias=self.style != "pixel", Color=skia.Color(*rgb), Style=skia.Paint.kStroke_Style, StrokeWidth=width,
            StrokeCap=skia.Paint.kRound_Cap, StrokeJoin=skia.Paint.kRound_Join,
        )  # fmt: skip

    def _flat(self, path: Any, rgb: tuple[int, int, int]) -> None:
        self.canvas.drawPath(path, self._fill(rgb))

    def _ink(self, path: Any, rgb: tuple[int, int, int]) -> None:
        self._flat(path, rgb)
        self.canvas.drawPath(path, self._stroke(PALETTE["black"], _edge(path, 0.018)))

    def _outline(self, path: Any, rgb: tuple[int, int, int]) -> None:
        self._flat(path, PALETTE["white"])
        self.canvas.drawPath(path, self._stroke(_mixed(rgb, PALETTE["black"], 0.65), _edge(path, 0.014)))

    def _hatched(self, path: Any, rgb: tuple[int, int, int]) -> None:
        self._flat(path, PALETTE["white"])
        self.canvas.save()
        self.canvas.clipPath(path, doAntiAlias=True)
        for i in range(-40, 80):
            self.canvas.drawLine(i / 40, 0, i / 40 - 0.5, 1, self._stroke(rgb, 0.011))
        self.canvas.restore()
        self.canvas.drawPath(path, self._stroke(rgb, _edge(path, 0.012)))

    def _watercolour(self, path: Any, rgb: tuple[int, int, int]) -> None:
        for spread, strength in ((0.02, 90), (0.008, 120), (0.002, 110)):
            wash = self._fill(rgb)
            wash.setAlpha(strength)
            wash.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, spread))
            self.canvas.drawPath(path, wash)

    def _neon(self, path: Any, rgb: tuple[int, int, int]) -> None:
        self.canvas.drawPath(path, self._fill(DARK["neon"]))
        self._glow(path, _bright(rgb), _edge(path, 0.012))

    def _glow(self, path: Any, rgb: tuple[int, ...], width: float) -> None:
        halo = self._stroke(rgb, width * 2.5)
        halo.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, width * 1.2))
        self.canvas.drawPath(path, halo)
        self.canvas.drawPath(path, self._stroke(rgb, width))

    def _chalk(self, path: Any, rgb: tuple[int, int, int]) -> None:
        self.canvas.drawPath(path, self._fill(_mixed(rgb, DARK["chalk"], 0.35)))
        dusty = self._stroke(_bright(rgb), _edge(path, 0.014))
        dusty.setPathEffect(skia.DiscretePathEffect.Make(0.02, 0.004))
        self.canvas.drawPath(path, dusty)


def _edge(path: Any, width: float) -> float:
    """Small shapes get thinner edges, or there would be nothing left of them."""
    bounds = path.computeTightBounds()
    return float(min(width, 0.12 * min(bounds.width(), bounds.height())))


def rgb_of(colour: Colour) -> RGB:
    """Red, green and blue of a colour."""
    return PALETTE[colour] if isinstance(colour, str) else colour


def _mixed(rgb: tuple[int, ...], other: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(share * a + (1 - share) * b) for a, b in zip(rgb, other, strict=True))


def _bright(rgb: tuple[int, ...]) -> tuple[int, ...]:
    # Dark colours would vanish on a dark ground.
    return tuple(max(90, min(255, round(1.15 * value + 20))) for value in rgb)


def _paper(pixels: Pixels) -> Pixels:
    """The grain of paper, the same on every picture."""
    grain = np.random.default_rng(0).normal(0, 7, pixels.shape[:2]).repeat(4, 0).repeat(4, 1)[: len(pixels), : len(pixels)]
    return np.clip(pixels.astype(np.float32) + grain[..., None], 0, 255).astype(np.uint8)
