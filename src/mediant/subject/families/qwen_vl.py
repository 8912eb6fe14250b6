"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: an image of any size becomes a grid of merged patches, row by row.

The image is stretched to multiples of a merged patch (28 or 32 pixels), never cut or padded. Positions have three dimensions
(time, height, width), so the model numbers its tokens itself. Qwen2.5-VL's vision tower reorders patches by windows and puts
them back; Qwen3-VL also adds features of inner vision layers to the first layers of the language model. In a video each token
sees two frames; Qwen3-VL is told the time of each pair in words.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mediant.subject.families.llama import LLAMA
from mediant.subject.families.sight import Film, Piece, ProcessedImage, Sight
from mediant.subject.regions import Cell, grid

_START, _END = "<|vision_start|>", "<|vision_end|>"


def _pieces(image: ProcessedImage) -> list[Piece]:
    _, high, wide = (int(n) for n in image.outputs["image_grid_thw"][image.index])
    merge = int(image.processor.merge_size)
    return [*grid((0, 0, image.width, image.height), high // merge, wide // merge)]


def _film(frame: ProcessedImage, groups: Sequence[tuple[int, int]], fps: float) -> list[Piece]:
    cells = [cell for cell in _pieces(frame) if isinstance(cell, Cell)]
    shots = [[replace(cell, frames=group) for cell in cells] for group in groups]
    if frame.config.model_type != "qwen3_vl":
        return [_START, *(cell for shot in shots for cell in shot), _END]
    timed: list[Piece] = []
    for (first, stop), shot in zip(groups, shots, strict=True):
        timed += [f"<{(first + stop - 1) / 2 / fps:.1f} seconds>", _START, *shot, _END]
    return timed


def _film_inputs(config: Any, patches: Tensor, grids: Tensor, fps: float) -> dict[str, Tensor]:
    inputs = {"pixel_values_videos": patches, "video_grid_thw": grids}
    if config.model_type == "qwen2_5_vl":
        # Its positions in time are counted in seconds.
        inputs["second_per_grid_ts"] = torch.full((len(grids),), config.vision_config.temporal_patch_size / fps)
    return inputs


QWEN_VL = replace(
    LLAMA,
    name="qwen-vl",
    model_types=("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    base="model.language_model",
    entry="model",
    own_positions=True,
    sight=Sight(
        ("<|image_pad|>",),
        _pieces,
        inputs=("pixel_values", "image_grid_thw"),
        marks="mm_token_type_ids",
        film=Film(f"{_START}<|image_pad|>{_END}", _film, _film_inputs),
    ),
)
