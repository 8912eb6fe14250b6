"""Frames of a video as patches, two of which in time make one: without the packages that reading video files needs.

    footage = Footage.of(frames, processed, moments=2)      # `processed` prepares images, one after the other
    footage.patches, footage.grid, footage.groups           # ((0, 2), (2, 4), ...)

An image processor of these families repeats a still in time to fill a patch. A patch of a video takes each of its moments from
another frame instead.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mediant.core.errors import ImageError

Pixels = npt.NDArray[np.uint8]
CHANNELS = 3


@dataclass(frozen=True, eq=False)
class Footage:
    """One video, prepared.

    Attributes:
        groups: frames that share patches, each as the first and the one after the last.
        outputs: what the image processor gave for the frames one by one.
        grid: patches in time, height and width.
    """

    frames: tuple[Pixels, ...]
    groups: tuple[tuple[int, int], ...]
    outputs: Mapping[str, Any]
    patches: Float[Tensor, "patch channel_time_height_width"]
    grid: Int[Tensor, "3"]

    @classmethod
    def of(
        cls, frames: Sequence[Pixels], processed: Callable[[Sequence[Pixels]], Mapping[str, Any]], *, moments: int
    ) -> "Footage":
        """Prepare frames.

        Args:
            moments: frames per patch.

        Raises:
            ImageError: no frames, or frames of several sizes.
        """
        sizes = sorted({frame.shape[:2] for frame in frames})
        if len(sizes) != 1:
            raise ImageError(f"a video needs frames of one size, got {len(frames)} frames of sizes {sizes}")
        outputs = processed(frames)
        grids, flat = torch.as_tensor(outputs["image_grid_thw"]), torch.as_tensor(outputs["pixel_values"])
        stills = flat.reshape(len(frames), -1, CHANNELS, moments, flat.shape[-1] // (CHANNELS * moments))
        groups = tuple((first, min(first + moments, len(frames))) for first in range(0, len(frames), moments))
        taken = [[min(first + m, len(frames) - 1) for m in range(moments)] for first, _ in groups]
        shots = torch.stack([torch.stack([stills[i, :, :, m] for m, i in enumerate(which)], dim=2) for which in taken])
        grid = torch.tensor([len(groups), int(grids[0, 1]), int(grids[0, 2])])
        return cls(tuple(frames), groups, outputs, shots.reshape(-1, flat.shape[-1]), grid)
