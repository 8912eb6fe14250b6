"""SmolVLM: tiles row by row, each announced by its place, then a view of the whole image.

The image is stretched to multiples of a tile. Image tokens of different tiles are not neighbours in the prompt.
"""

from dataclasses import replace

from mediant.subject.families.llama import LLAMA
from mediant.subject.families.sight import Piece, ProcessedImage, Sight, special
from mediant.subject.regions import grid


def _pieces(image: ProcessedImage) -> list[Piece]:
    rows, columns = (int(image.outputs[name][image.index][0]) for name in ("rows", "cols"))
    vision = image.config.vision_config
    side = vision.image_size // vision.patch_size // image.config.scale_factor
    fake = special(image.tokenizer, "fake_image_token", "<fake_token_around_image>")
    pieces: list[Piece] = []
    for row in range(rows):
        tall, broad = image.height / rows, image.width / columns
        for column in range(columns):
            box = (column * broad, row * tall, (column + 1) * broad, (row + 1) * tall)
            pieces += [f"{fake}<row_{row + 1}_col_{column + 1}>", *grid(box, side, side, view=row * columns + column)]
        pieces.append("\n")
    whole = grid((0.0, 0.0, float(image.width), float(image.height)), side, side, view=rows * columns)
    opening = "\n" if rows else ""
    return [*pieces, f"{opening}{fake}{special(image.tokenizer, 'global_image_token', '<global-img>')}", *whole, fake]


SMOLVLM = replace(
    LLAMA,
    name="smolvlm",
    model_types=("smolvlm",),
    base="model.text_model",
    entry="model",
    sight=Sight(
        ("<image>",), _pieces, inputs=("pixel_values", "pixel_attention_mask"), nested=True, options={"return_row_col_info": True}
    ),
)
