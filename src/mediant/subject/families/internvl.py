"""InternVL: up to twelve square tiles in the aspect ratio nearest to the image's, then a thumbnail of the whole.

The image is stretched to the tiles' canvas; each tile's patches are merged two by two. One tile alone has no thumbnail.
"""

from dataclasses import replace

from mediant.subject.families.llama import LLAMA
from mediant.subject.families.sight import Piece, ProcessedImage, Sight, special
from mediant.subject.regions import grid


def _pieces(image: ProcessedImage) -> list[Piece]:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    made, vision = image.processor, image.config.vision_config
    n = int(image.outputs["num_patches"][image.index])
    pixels, patch = (n if isinstance(n, int) else n[0] for n in (vision.image_size, vision.patch_size))
    side = round(pixels // patch * image.config.downsample_ratio)
    whole = (0.0, 0.0, float(image.width), float(image.height))
    tile = int(made.size["height"]), int(made.size["width"])
    columns, rows = (1, 1)
    if n > 1:
        columns, rows = get_optimal_tiled_canvas((image.height, image.width), tile, made.min_patches, made.max_patches)
    cells: list[Piece] = []
    for place in range(rows * columns):
        row, column = divmod(place, columns)
        tall, broad = image.height / rows, image.width / columns
        cells += grid((column * broad, row * tall, (column + 1) * broad, (row + 1) * tall), side, side, view=place)
    if n > 1:
        cells += grid(whole, side, side, view=n - 1)
    start, end = special(image.tokenizer, "start_image_token", "<img>"), special(image.tokenizer, "end_image_token", "</img>")
    return [start, *cells, end]


INTERNVL = replace(
    LLAMA,
    name="internvl",
    model_types=("internvl",),
    base="model.language_model",
    entry="model",
    sight=Sight(("<IMG_CONTEXT>",), _pieces),
)
