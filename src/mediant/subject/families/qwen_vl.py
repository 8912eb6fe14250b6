"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: an image of any size becomes a grid of merged patches, row by row.

The image is stretched to multiples of a merged patch (28 or 32 pixels), never cut or padded. Positions have three dimensions
(time, height, width), so the model numbers its tokens itself. Qwen2.5-VL's vision tower reorders patches by windows and puts
them back; Qwen3-VL also adds features of inner vision layers to the first layers of the language model.
"""

from dataclasses import replace

from mediant.subject.families.llama import LLAMA
from mediant.subject.families.sight import Piece, ProcessedImage, Sight
from mediant.subject.regions import grid


def _pieces(image: ProcessedImage) -> list[Piece]:
    _, high, wide = (int(n) for n in image.outputs["image_grid_thw"][image.index])
    merge = int(image.processor.merge_size)
    return [*grid((0, 0, image.width, image.height), high // merge, wide // merge)]


QWEN_VL = replace(
    LLAMA,
    name="qwen-vl",
    model_types=("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    base="model.language_model",
    entry="model",
    own_positions=True,
    sight=Sight(("<|image_pad|>",), _pieces, inputs=("pixel_values", "image_grid_thw"), marks="mm_token_type_ids"),
)
