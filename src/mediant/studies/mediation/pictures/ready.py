"""A batch of pairs of requests, made ready for exchanges."""

from collections.abc import Sequence

import numpy as np

from mediant.measures.intervals import Array
from mediant.search.picture_patching import Made, PicturePatcher
from mediant.studies.mediation.pictures.task import PicturePair
from mediant.subject.generator import ImageGenerator
from mediant.tasks.encode_requests import encoded


class Pictures:
    """See `Ready`: both pictures of every pair are made, and the source's values are kept as they are asked for."""

    def __init__(self, subject: ImageGenerator, pairs: Sequence[PicturePair], steps: int) -> None:
        self.pairs = tuple(pairs)
        base, source = (encoded(subject, [getattr(pair, side) for pair in pairs]) for side in ("clean", "counterfactual"))
        self.patcher = PicturePatcher(subject, base, source, steps=steps)

    def change(self, outcome: Made) -> Array:
        """Minus how far pictures have moved towards the others, in mean squared latents."""
        return self.patcher.measured(outcome) - self.patcher.before

    def disturbance(self, outcome: Made) -> Array:
        """How far pictures have moved in any direction, as a share of the squared distance to the others."""
        patcher = self.patcher
        moved = (outcome.latents - patcher.own).square().mean((1, 2, 3))
        away = (patcher.other - patcher.own).square().mean((1, 2, 3)).clamp(min=1e-8)
        return np.asarray((moved / away).double().cpu().numpy())

    def preferred(self) -> Array:
        """Per pair, whether the picture is nearer to what was asked for than to what the counterfactual asks for.

        Where the requests do not say what is to be drawn, nothing is known, and nothing is held against them.
        """
        made = self.patcher.subject.pixels(self.patcher.own).astype(np.float64)
        found = []
        for picture, pair in zip(made, self.pairs, strict=True):
            one, two = pair.clean.target, pair.counterfactual.target
            if one is None or two is None or one.shape != picture.shape:
                found.append(1.0)
            else:
                found.append(float(np.square(picture - one).mean() < np.square(picture - two).mean()))
        return np.asarray(found)
