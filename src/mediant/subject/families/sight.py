"""How a family turns an image into tokens: what stands in the prompt for it, and which part of it each token sees.

Every family with eyes gives one function from a processed image to `pieces`: text, and a `Cell` for every image token, in the
order of the prompt. That one list makes both the prompt and the region map, so the two cannot disagree; whether they agree
with the model's own vision tower is what the contract tests measure.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mediant.subject.regions import Cell

Piece = str | Cell


@dataclass(frozen=True, eq=False)
class ProcessedImage:
    """One image as the library's image processor left it.

    Attributes:
        height, width: of the original, in pixels.
        config, processor: the model's and the image processor's settings.
        outputs: what the processor gave for the whole batch; this image is number `index`.
        tokenizer: the checkpoint's, whose special tokens stand around images.
    """

    height: int
    width: int
    config: Any
    processor: Any
    outputs: Mapping[str, Any]
    index: int
    tokenizer: Any


@dataclass(frozen=True)
class Film:
    """How a family sees frames of a video.

    Attributes:
        placeholder: what chat templates leave where an image goes, with its marks; all of it is replaced.
        pieces: from the first frame as processed, the frames that share tokens as (first, stop), and frames per second: text and
            a cell for every token.
        token_id: name in the model's configuration of the token that features are put in place of.
        inputs: the model's inputs from all frames' patches, their grids (time, height, width), and frames per second.
        mark: value of `Sight.marks` at these tokens.
    """

    placeholder: str
    pieces: Callable[[ProcessedImage, Sequence[tuple[int, int]], float], Sequence[Piece]]
    inputs: Callable[[Any, Tensor, Tensor, float], Mapping[str, Tensor]]
    token_id: str = "video_token_id"  # noqa: S105 - a name in a configuration
    mark: int = 2


@dataclass(frozen=True)
class Sight:
    """One family's eyes.

    Attributes:
        placeholders: what chat templates of this family leave where an image goes; the first one is used without a template.
        pieces: text and image tokens that take its place.
        inputs: the processor's outputs that the model is given.
        marks: name of the model input that is 1 at image tokens, 0 elsewhere; empty for none.
        nested: whether the processor wants a list of images per prompt.
        options: what the processor is told at every call.
        film: how it sees videos; None for families that see stills alone.
    """

    placeholders: tuple[str, ...]
    pieces: Callable[[ProcessedImage], Sequence[Piece]]
    inputs: tuple[str, ...] = ("pixel_values",)
    marks: str = ""
    nested: bool = False
    options: Mapping[str, Any] | None = None
    film: Film | None = None


def special(tokenizer: Any, name: str, fallback: str) -> str:
    """A special token's text: the tokenizer's own attribute, or the one the family's checkpoints use."""
    return str(getattr(tokenizer, name, None) or fallback)
