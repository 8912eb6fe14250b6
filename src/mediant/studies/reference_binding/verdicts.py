"""Is a property of the reference in the picture? Colour by arithmetic, style and identity by the judge of pictures.

    verdicts = Verdicts(PictureJudge.load(folder))
    verdicts.shown("style", requests, pixels)          # one answer per picture: is it in the style of its own reference?
    verdicts.drawn(requests, pixels)                   # for requests without a reference: is everything there that was asked for?

These stand in for the paper's multimodal judge; what they get wrong is counted beforehand and taken out of every rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mediant.measures.picture_judge import Errors, PictureJudge, shows_colour
from mediant.tasks.requests import Pixels, Request

PROPERTIES = ("colour", "style", "identity")


@dataclass(frozen=True, eq=False)
class Verdicts:
    """Answers of one judge."""

    judge: PictureJudge

    def shown(self, name: str, requests: Sequence[Request], pixels: Pixels) -> list[bool]:
        """Whether each picture has the property of its request's reference."""
        if name == "colour":
            colours = [[int(part) for part in request.factors["rgb"].split(",")] for request in requests]
            return [shows_colour(picture, rgb) for picture, rgb in zip(pixels, colours, strict=True)]
        if name == "style":
            wanted = [request.factors["style"] for request in requests]
            return [a == b for a, b in zip(self.judge.best("style", pixels), wanted, strict=True)]
        references = np.stack([request.references[0] for request in requests])
        return [bool(cosine >= self.judge.likeness) for cosine in self.judge.alike(pixels, references)]

    def drawn(self, requests: Sequence[Request], pixels: Pixels) -> list[dict[str, bool]]:
        """Factor by factor, whether each picture has what the instruction names."""
        asked = [[name for name in ("kind", "place", "style", "colour") if name in each.factors] for each in requests]
        told = {name: self.judge.best(name, pixels) for name in ("kind", "place", "style", "colour")}
        return [{name: told[name][i] == request.factors[name] for name in asked[i]} for i, request in enumerate(requests)]

    def errors(self, name: str) -> Errors:
        """What is known of the verdicts on a property."""
        return (self.judge.errors or {})[name]
