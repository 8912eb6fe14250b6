"""Ovis 2: a view of the whole image, then its tiles, with tokens of their own between them.

Visual tokens are mixtures of a table of visual words. The tokens between tiles (start, grid, column, row, end) are looked up in
the same table but stand for no place.
"""

from dataclasses import replace

from mediant.subject.families.llama import LLAMA
from mediant.subject.families.sight import Piece, ProcessedImage, Sight
from mediant.subject.regions import grid


def _pieces(image: ProcessedImage) -> list[Piece]:
    rows, columns = (int(n) for n in image.outputs["grids"][image.index])
    vision = image.config.vision_config
    # A side that the stride does not divide is padded up to it.
    side = -(-(vision.image_size // vision.patch_size) // vision.hidden_stride)
    cells: list[Piece] = ["<IMG_START>", *grid((0.0, 0.0, float(image.width), float(image.height)), side, side), "<IMG_GRID>"]
    tall, broad = image.height / rows, image.width / columns
    for place in range(rows * columns if rows * columns > 1 else 0):
        row, column = divmod(place, columns)
        box = (column * broad, row * tall, (column + 1) * broad, (row + 1) * tall)
        cells += grid(box, side, side, view=place + 1)
        if column < columns - 1:
            cells.append("<IMG_COL>")
        elif row < rows - 1:
            cells.append("<IMG_ROW>")
    return [*cells, "<IMG_END>"]


OVIS2 = replace(
    LLAMA,
    name="ovis2",
    model_types=("ovis2",),
    base="model.language_model",
    entry="model",
    sight=Sight(("<image>",), _pieces),
)
