"""Gemma 2 and 3 (text): norms before and after each sublayer, capped logits, alternating sliding windows.

A head's share of the attention output passes a norm over all heads together, so it has no value of its own in the
residual stream: `head_result` is refused, and circuits take each head's share at the norm's scale in the run at hand.

Gemma 3 with eyes squashes the whole image to a square and pools it to a fixed number of tokens, which see one another both
ways; crops beside it (pan and scan) are left off.
"""

import math
from dataclasses import replace

from mediant.subject.families.llama import LLAMA
from mediant.subject.families.sight import Piece, ProcessedImage, Sight, special
from mediant.subject.regions import grid

GEMMA = replace(
    LLAMA,
    name="gemma",
    model_types=("gemma2", "gemma3_text"),
    mlp_norm="pre_feedforward_layernorm",
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    cannot={"head_result": "a norm over all heads together stands between them and the residual stream; use head_z"},
    coupled="Heads of a layer share the norm after attention: a head's share of its output is taken at that norm's scale in the "
    "run at hand, so shares add up but depend on one another.",
)


def _pieces(image: ProcessedImage) -> list[Piece]:
    side = math.isqrt(image.config.mm_tokens_per_image)
    begin, end = (
        special(image.tokenizer, "boi_token", "<start_of_image>"),
        special(image.tokenizer, "eoi_token", "<end_of_image>"),
    )
    return [f"\n\n{begin}", *grid((0.0, 0.0, float(image.width), float(image.height)), side, side), f"{end}\n\n"]


GEMMA3_VL = replace(
    GEMMA,
    name="gemma3-vl",
    model_types=("gemma3",),
    base="model.language_model",
    entry="model",
    sight=Sight(("<start_of_image>",), _pieces, marks="token_type_ids", options={"do_pan_and_scan": False}),
)
