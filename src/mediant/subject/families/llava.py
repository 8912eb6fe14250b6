"""LLaVA 1.5 and LLaVA-NeXT: CLIP patches, cropped in the middle or cut into tiles.

LLaVA 1.5 scales the shorter side and cuts the middle out (or pads to a square first), so regions near the ends of a long image
may have no token. LLaVA-NeXT shows the whole image squashed to a square, then tiles of it at one of a few resolutions, joined
to one map without the padding, with a newline token at the end of every row; newlines see no place.
"""

from dataclasses import replace
from typing import Any

from mediant.subject.families.llama import LLAMA
from mediant.subject.families.sight import Piece, ProcessedImage, Sight
from mediant.subject.regions import Box, Cell, clipped, grid


def _patches(image: ProcessedImage) -> tuple[int, bool]:
    """Side of a view in patches, and whether a class token without a place comes first."""
    vision: Any = image.config.vision_config
    return int(vision.image_size) // int(vision.patch_size), image.config.vision_feature_select_strategy == "full"


def _view(image: ProcessedImage) -> Box:
    """The part of the original that LLaVA 1.5's square shows, padding included."""
    made, high, wide = image.processor, image.height, image.width
    left = top = 0.0
    if getattr(made, "do_pad", False):
        side = max(high, wide)
        left, top = -((side - wide) // 2), -((side - high) // 2)
        high = wide = side
    if not made.do_center_crop:
        return left, top, left + wide, top + high
    # The shorter side is scaled to a length, rounded as the library does, and the middle is cut out.
    short = int(made.size["shortest_edge"])
    new_high, new_wide = (short, int(short * wide / high)) if high <= wide else (int(short * high / wide), short)
    cut_high, cut_wide = int(made.crop_size["height"]), int(made.crop_size["width"])
    x, y = (new_wide - cut_wide) // 2, (new_high - cut_high) // 2
    across, down = wide / new_wide, high / new_high
    return left + x * across, top + y * down, left + (x + cut_wide) * across, top + (y + cut_high) * down


def _llava(image: ProcessedImage) -> list[Piece]:
    side, with_class = _patches(image)
    cells = [clipped(cell, image.width, image.height) for cell in grid(_view(image), side, side)]
    return [*([Cell(None)] if with_class else []), *cells]


def _llava_next(image: ProcessedImage) -> list[Piece]:
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side, with_class = _patches(image)
    whole = (0.0, 0.0, float(image.width), float(image.height))
    tile = int(image.config.vision_config.image_size)
    rows, columns = get_anyres_image_grid_shape((image.height, image.width), image.config.image_grid_pinpoints, tile)
    base: list[Piece] = [*([Cell(None)] if with_class else []), *grid(whole, side, side)]
    # The image is scaled to fit the canvas of tiles and centred on it; rows or columns of pure padding are dropped.
    canvas_wide, canvas_high = columns * tile, rows * tile
    scale = min(canvas_wide / image.width, canvas_high / image.height)
    shown_wide, shown_high = min(-(-image.width * scale // 1), canvas_wide), min(-(-image.height * scale // 1), canvas_high)
    x, y = (canvas_wide - shown_wide) // 2, (canvas_high - shown_high) // 2
    patch_wide, patch_high = canvas_wide / (columns * side), canvas_high / (rows * side)
    drop_columns, drop_rows = _dropped(image, columns * side, rows * side)
    across, down = image.width / shown_wide, image.height / shown_high
    cells: list[Piece] = []
    for row in range(drop_rows, rows * side - drop_rows):
        for column in range(drop_columns, columns * side - drop_columns):
            box = (
                (column * patch_wide - x) * across, (row * patch_high - y) * down,
                ((column + 1) * patch_wide - x) * across, ((row + 1) * patch_high - y) * down,
            )  # fmt: skip
            cells.append(clipped(Cell(box, 1), image.width, image.height))
        cells.append(Cell(None, 1))
    return [*base, *cells]


def _dropped(image: ProcessedImage, columns: int, rows: int) -> tuple[int, int]:
    """Columns and rows of padding dropped on either side, as LLaVA-NeXT counts them."""
    if image.width / image.height > columns / rows:
        return 0, (rows - int(round(image.height * columns / image.width, 7))) // 2
    return (columns - int(round(image.width * rows / image.height, 7))) // 2, 0


LLAVA = replace(
    LLAMA, name="llava", model_types=("llava",), base="model.language_model", entry="model", sight=Sight(("<image>",), _llava)
)
LLAVA_NEXT = replace(
    LLAVA,
    name="llava-next",
    model_types=("llava_next",),
    sight=Sight(("<image>",), _llava_next, inputs=("pixel_values", "image_sizes")),
)
