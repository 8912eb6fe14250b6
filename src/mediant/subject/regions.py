"""Which image tokens see which part of an image.

>>> cells = grid((0, 0, 96, 64), rows=2, columns=3)
>>> image = RegionMap(96, 64, tuple(cells), columns=(5, 6, 7, 8, 9, 10))
>>> image.within((0, 0, 32, 64)), image.within((40, 40, 50, 50), nearest=True)
((5, 8), (9,))

A token belongs to a box when the middle of the part it sees lies inside. Families that cut an image into tiles and add a view
of the whole show every place several times: a box then has tokens in each view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mediant.core.errors import RegionError

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Cell:
    """What one image token sees: a box in pixels of the original image, or None for a token without a place of its own.

    Attributes:
        frames: in a video, the first frame it sees and the one after the last.
    """

    box: Box | None
    view: int = 0
    frames: tuple[int, int] | None = None


@dataclass(frozen=True)
class Clip:
    """A box for some time: the frames of a video from `first` up to and without `stop`."""

    box: Box
    first: int
    stop: int


def grid(box: Box, rows: int, columns: int, *, view: int = 0) -> list[Cell]:
    """A view of `box` cut into equal cells, row by row."""
    left, top, right, bottom = box
    wide, high = (right - left) / columns, (bottom - top) / rows
    return [
        Cell((left + c * wide, top + r * high, left + (c + 1) * wide, top + (r + 1) * high), view)
        for r in range(rows)
        for c in range(columns)
    ]


def clipped(cell: Cell, width: float, height: float) -> Cell:
    """The cell's part inside the image; without a box where it saw only padding."""
    assert cell.box is not None  # noqa: S101 - cells of a grid
    left, top, right, bottom = cell.box
    inside = max(0.0, left), max(0.0, top), min(width, right), min(height, bottom)
    return Cell(inside if inside[0] < inside[2] and inside[1] < inside[3] else None, cell.view)


@dataclass(frozen=True)
class RegionMap:
    """The image tokens of one image in one prompt.

    Attributes:
        width, height: of the original image, in pixels.
        columns: the tokens' columns in the prompt, as many as `cells`; counted from the prompt's first token or, in a batch,
            from the padded row's first column.
    """

    width: int
    height: int
    cells: tuple[Cell, ...]
    columns: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.cells) != len(self.columns):
            raise RegionError(f"{len(self.cells)} cells but {len(self.columns)} image tokens")

    def within(self, region: Box | Clip, *, nearest: bool = False) -> tuple[int, ...]:
        """Columns of the tokens whose middle lies in a closed box, over all views; for a clip, those that see one of its frames.

        Args:
            nearest: where there are none, take the token nearest to the box's middle in each view.

        Raises:
            RegionError: the box is turned inside out, outside the image, or holds no token's middle; no token sees these frames.
        """
        if isinstance(region, Clip):
            return self._during(region).within(region.box, nearest=nearest)
        left, top, right, bottom = self._checked(region)
        middles = self._middles()
        found = tuple(c for c, _, (x, y) in middles if left <= x <= right and top <= y <= bottom)
        if found:
            return found
        x0, y0 = (left + right) / 2, (top + bottom) / 2
        best = {v: min((abs(x - x0) + abs(y - y0), c) for c, w, (x, y) in middles if w == v)[1] for _, v, _ in middles}
        if nearest and best:
            return tuple(sorted(best.values()))
        raise RegionError(
            f"the box {_shown(region)} holds no image token's middle; tokens of this {self.width} x {self.height} image see "
            f"about {self._cell_size()} pixels: choose a larger box, or take the nearest token"
        )

    def covering(self, mask: Sequence[Sequence[bool]]) -> tuple[int, ...]:
        """Columns of the tokens whose middle lies on a mask's True pixels; the mask has the image's height and width.

        Raises:
            RegionError: another size, or no token's middle is covered.
        """
        if len(mask) != self.height or any(len(row) != self.width for row in mask):
            raise RegionError(f"a mask needs the image's {self.height} rows of {self.width} pixels")
        found = tuple(c for c, _, (x, y) in self._middles() if mask[min(int(y), self.height - 1)][min(int(x), self.width - 1)])
        if not found:
            raise RegionError("the mask covers no image token's middle; mark a larger region")
        return found

    def others(self, chosen: Sequence[int]) -> tuple[int, ...]:
        """The image tokens that are not chosen, those without a place included."""
        taken = set(chosen)
        return tuple(column for column in self.columns if column not in taken)

    def shifted(self, by: int) -> "RegionMap":
        """The same tokens in a row that begins with `by` columns of padding."""
        return RegionMap(self.width, self.height, self.cells, tuple(column + by for column in self.columns))

    def _during(self, clip: Clip) -> "RegionMap":
        """The tokens that see a frame of the clip."""
        kept = [
            (cell, column)
            for cell, column in zip(self.cells, self.columns, strict=True)
            if cell.frames is not None and cell.frames[0] < clip.stop and clip.first < cell.frames[1]
        ]
        if not kept or clip.first >= clip.stop:
            last = max((cell.frames[1] for cell in self.cells if cell.frames is not None), default=0)
            raise RegionError(
                f"no image token sees frames {clip.first} to {clip.stop - 1}; this video has frames 0 to {last - 1}"
            )
        return RegionMap(self.width, self.height, *map(tuple, zip(*kept, strict=True)))

    def _middles(self) -> list[tuple[int, int, tuple[float, float]]]:
        return [
            (column, cell.view, ((cell.box[0] + cell.box[2]) / 2, (cell.box[1] + cell.box[3]) / 2))
            for column, cell in zip(self.columns, self.cells, strict=True)
            if cell.box is not None
        ]

    def _checked(self, box: Box) -> Box:
        left, top, right, bottom = box
        if not (left < right and top < bottom):
            raise RegionError(f"a box is left, top, right, bottom with left < right and top < bottom, got {_shown(box)}")
        if right <= 0 or bottom <= 0 or left >= self.width or top >= self.height:
            raise RegionError(f"the box {_shown(box)} lies outside the image of {self.width} x {self.height} pixels")
        return box

    def _cell_size(self) -> str:
        sizes = [(c.box[2] - c.box[0], c.box[3] - c.box[1]) for c in self.cells if c.box is not None]
        return f"{min(w for w, _ in sizes):.0f} x {min(h for _, h in sizes):.0f}" if sizes else "no"


def _shown(box: Box) -> str:
    return f"({', '.join(f'{side:g}' for side in box)})"
