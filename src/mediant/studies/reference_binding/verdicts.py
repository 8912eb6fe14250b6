"""Is a property of the reference in the picture? For drawn requests by arithmetic and a judge of pictures, for others by asking.

    verdicts = DrawnVerdicts(PictureJudge.load(folder))
    verdicts.shown("style", requests, pixels)          # one answer per picture: is it in the style of its own reference?
    verdicts.drawn(requests, pixels)                   # for requests without a reference: is everything there that was asked for?

`DrawnVerdicts` stand in for the paper's multimodal judge; what they get wrong is counted beforehand and taken out of every rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mediant.measures.picture_judge import Errors, PictureJudge, shows_colour
from mediant.measures.picture_questions import PictureQuestions
from mediant.tasks.requests import Pixels, Request

PROPERTIES = ("colour", "style", "identity")
SIZE = 64


class Verdicts(Protocol):
    """A judge's answers."""

    def shown(self, name: str, requests: Sequence[Request], pixels: Pixels) -> list[bool]:
        """Whether each picture has the property of its request's reference."""

    def drawn(self, requests: Sequence[Request], pixels: Pixels) -> list[dict[str, bool]]:
        """Factor by factor, whether each picture has what the instruction names."""

    def errors(self, name: str) -> Errors | None:
        """What is known of the verdicts on a property."""


@dataclass(frozen=True, eq=False)
class DrawnVerdicts:
    """On requests of the drawn world, whose factors are known; larger pictures are looked at in the judge's size."""

    judge: PictureJudge

    def shown(self, name: str, requests: Sequence[Request], pixels: Pixels) -> list[bool]:
        """See `Verdicts`."""
        if name == "colour":
            return coloured(requests, pixels)
        pixels = at_size(pixels)
        if name == "style":
            wanted = [request.factors["style"] for request in requests]
            return [a == b for a, b in zip(self.judge.best("style", pixels), wanted, strict=True)]
        references = at_size(np.stack([request.references[0] for request in requests]))
        return [bool(cosine >= self.judge.likeness) for cosine in self.judge.alike(pixels, references)]

    def drawn(self, requests: Sequence[Request], pixels: Pixels) -> list[dict[str, bool]]:
        """See `Verdicts`."""
        pixels = at_size(pixels)
        asked = [[name for name in ("kind", "place", "style", "colour") if name in each.factors] for each in requests]
        told = {name: self.judge.best(name, pixels) for name in ("kind", "place", "style", "colour")}
        return [{name: told[name][i] == request.factors[name] for name in asked[i]} for i, request in enumerate(requests)]

    def errors(self, name: str) -> Errors:
        """See `Verdicts`."""
        return (self.judge.errors or {})[name]


@dataclass(frozen=True)
class ColourVerdicts:
    """On any request that takes a known colour, by arithmetic."""

    def shown(self, name: str, requests: Sequence[Request], pixels: Pixels) -> list[bool]:  # noqa: ARG002
        """See `Verdicts`."""
        return coloured(requests, pixels)

    def drawn(self, requests: Sequence[Request], pixels: Pixels) -> list[dict[str, bool]]:  # noqa: ARG002
        """Nothing is known of what such instructions name."""
        return [{} for _ in requests]

    def errors(self, name: str) -> Errors | None:  # noqa: ARG002
        """Nothing is known of them."""
        return None


@dataclass(frozen=True, eq=False)
class AskedVerdicts(ColourVerdicts):
    """On any request, by a multimodal model's word; where it has none to give, the property counts as not shown."""

    questions: PictureQuestions

    def shown(self, name: str, requests: Sequence[Request], pixels: Pixels) -> list[bool]:
        """See `Verdicts`."""
        return [
            self.questions.ask("shows", name, [request.references[0], picture]).passed is True
            for request, picture in zip(requests, pixels, strict=True)
        ]


def coloured(requests: Sequence[Request], pixels: Pixels) -> list[bool]:
    """Whether each picture shows the colour of its request's reference."""
    colours = [[int(part) for part in request.factors["rgb"].split(",")] for request in requests]
    return [shows_colour(picture, rgb) for picture, rgb in zip(at_size(pixels), colours, strict=True)]


def at_size(pixels: Pixels) -> Pixels:
    """Pictures (n, height, width, 3) in the size that judges of drawn pictures know."""
    if pixels.shape[1:3] == (SIZE, SIZE):
        return pixels
    from PIL import Image

    return np.stack([np.asarray(Image.fromarray(each).resize((SIZE, SIZE), Image.Resampling.LANCZOS)) for each in pixels])
