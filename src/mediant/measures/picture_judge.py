"""What is in a picture of the drawn world? A small network that was trained on nothing else, and colours by arithmetic.

    judge = PictureJudge.load(folder)
    judge.best("style", pixels)                # ["neon", "flat"]
    judge.alike(pixels, others)                # cosine of two individuals' embeddings
    shows_colour(pixels[0], (214, 48, 49))     # is anything in it this red?

Every verdict has an error that was measured on pictures drawn for the purpose (`Errors`); `corrected` takes it out of a rate and
widens the interval by what is not known of it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mediant.core.errors import SubjectError, TaskError
from mediant.measures.intervals import Estimate, wilson

Pixels = npt.NDArray[np.uint8]
WEIGHTS, SETTINGS = "judge.safetensors", "judge.json"
WIDTHS = (24, 48, 96, 128)
# Colours closer than this in Lab pass for the same; a just noticeable difference is about 2.
NEAR = 18.0
# Share of a picture that a colour takes up where it counts as shown; the smallest things cover about twice as much.
PRESENT = 0.04


@dataclass(frozen=True)
class Errors:
    """How often a verdict is right, counted on pictures with known answers.

    Attributes:
        hits: of `n_present` pictures that have the property, how many were said to.
        false_alarms: of `n_absent` that do not have it, how many were said to.
    """

    hits: int
    n_present: int
    false_alarms: int
    n_absent: int

    @property
    def sensitivity(self) -> float:
        """Share of present properties that are seen."""
        return self.hits / self.n_present

    @property
    def specificity(self) -> float:
        """Share of absent properties that are not seen."""
        return 1 - self.false_alarms / self.n_absent


def corrected(successes: int, n: int, errors: Errors, *, chosen: bool = False) -> Estimate:
    """A rate with the judge's error taken out (Rogan & Gladen 1978), and an interval that has both sources of error.

    Args:
        chosen: whether the judge itself chose the items, as showing the property before anything was done. It says the same again
            of what stayed the same, so a property that is still there may be seen as surely as once more, or as seldom as in any
            picture: the rate takes the former, the interval has room for both.

    Raises:
        TaskError: no items, or a judge no better than a coin.
    """
    power = errors.sensitivity + errors.specificity - 1
    if n < 1 or power <= 0:
        raise TaskError(f"a rate needs items and a judge better than chance, got n = {n} and {errors}")
    if chosen:
        sure = _corrected(successes, n, replace(errors, hits=errors.n_present))
        low, high = zip(sure.ci95, _corrected(successes, n, errors).ci95, strict=True)
        return Estimate(sure.value, (min(low), max(high)), n)
    return _corrected(successes, n, errors)


def _corrected(successes: int, n: int, errors: Errors) -> Estimate:
    power = errors.sensitivity + errors.specificity - 1
    seen = successes / n
    rate = (seen + errors.specificity - 1) / power
    low, high = wilson(successes, n)
    hit, miss = _half(errors.hits, errors.n_present), _half(errors.false_alarms, errors.n_absent)
    # The judge's part of the spread, to first order; the items' own part is Wilson's, scaled by the judge's power.
    spread = ((rate * hit) ** 2 + ((1 - rate) * miss) ** 2) ** 0.5 / power
    bottom, top = (
        rate - (((seen - low) / power) ** 2 + spread**2) ** 0.5,
        rate + (((high - seen) / power) ** 2 + spread**2) ** 0.5,
    )
    # More was seen, or less, than the judge's errors allow: they do not hold for these items, whose own spread is left.
    bottom, top = (min(bottom, low) if rate > 1 else bottom), (max(top, high) if rate < 0 else top)
    within = min(1.0, max(0.0, rate))
    return Estimate(within, (max(0.0, min(within, bottom)), min(1.0, max(within, top))), n)


def _half(successes: int, n: int) -> float:
    low, high = wilson(successes, n)
    return (high - low) / 2


class Eye(nn.Module):
    """Convolutions down to 4 x 4, pooled, and a linear head for each question."""

    def __init__(self, answers: Mapping[str, int], embedding: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(8, width), nn.SiLU()]
        self.body = nn.Sequential(*layers)
        pooled = 2 * WIDTHS[-1]
        self.heads = nn.ModuleDict({name: nn.Linear(pooled, n) for name, n in answers.items()})
        self.identity = nn.Sequential(nn.Linear(pooled, 128), nn.SiLU(), nn.Linear(128, embedding))

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """Scores per question, and the individual's embedding of length 1."""
        seen = self.body(images)
        pooled = torch.cat([seen.mean((2, 3)), seen.amax((2, 3))], 1)
        answers = {name: head(pooled) for name, head in self.heads.items()}
        return answers | {"identity": nn.functional.normalize(self.identity(pooled), dim=-1)}


@dataclass(frozen=True, eq=False)
class PictureJudge:
    """An eye, the words of its answers, and what is known of its errors.

    Attributes:
        words: question -> its possible answers; "kind" has one score per kind, each for itself.
        likeness: cosine above which two pictures show the same individual.
        errors: property -> how often the verdict on it is right.
    """

    eye: Eye
    words: Mapping[str, Sequence[str]]
    likeness: float = 0.5
    errors: Mapping[str, Errors] | None = None
    embedding: int = 32

    @classmethod
    def untrained(cls, words: Mapping[str, Sequence[str]], *, seed: int = 0) -> "PictureJudge":
        """A judge that knows nothing yet."""
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return cls(Eye({name: len(answers) for name, answers in words.items()}, cls.embedding), words)

    @classmethod
    def load(cls, folder: Path) -> "PictureJudge":
        """A judge from its folder.

        Raises:
            SubjectError: the folder holds no judge.
        """
        try:
            settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
            weights = load_file(folder / WEIGHTS)
        except (OSError, ValueError) as error:
            raise SubjectError(f"{folder} holds no judge of pictures ({WEIGHTS} and {SETTINGS}): {error}") from error
        eye = Eye({name: len(answers) for name, answers in settings["words"].items()}, settings["embedding"])
        eye.load_state_dict({name: value.float() for name, value in weights.items()})
        errors = {name: Errors(**counts) for name, counts in settings["errors"].items()}
        return cls(eye.eval(), settings["words"], settings["likeness"], errors, settings["embedding"])

    def save(self, folder: Path) -> None:
        """Write the judge into a folder, weights as float16."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().half().contiguous() for name, value in self.eye.state_dict().items()}, folder / WEIGHTS)
        errors = {name: asdict(each) for name, each in (self.errors or {}).items()}
        settings = {"words": {k: list(v) for k, v in self.words.items()}, "likeness": self.likeness, "embedding": self.embedding}
        (folder / SETTINGS).write_text(json.dumps(settings | {"errors": errors}, indent=1) + "\n", encoding="utf-8")

    def answers(self, pixels: Pixels) -> dict[str, Tensor]:
        """Scores of every question for pictures (n, height, width, 3), and embeddings."""
        with torch.no_grad():
            found: dict[str, Tensor] = self.eye(as_images(pixels))
        return found

    def best(self, question: str, pixels: Pixels) -> list[str]:
        """The likeliest answer for each picture."""
        return [self.words[question][i] for i in self.answers(pixels)[question].argmax(-1).tolist()]

    def alike(self, pixels: Pixels, others: Pixels) -> npt.NDArray[np.float64]:
        """Cosine of the individuals' embeddings, picture by picture."""
        one, two = (self.answers(each)["identity"] for each in (pixels, others))
        found: npt.NDArray[np.float64] = (one * two).sum(-1).double().numpy()
        return found


def as_images(pixels: Pixels) -> Float[Tensor, "n 3 h w"]:
    """Pictures (n, height, width, 3) as the eye takes them, from -1 to 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def colour_share(pixels: Pixels, rgb: Sequence[int], *, near: float = NEAR) -> float:
    """Share of a picture (height, width, 3) within `near` of a colour in Lab (CIE 1976)."""
    apart = np.linalg.norm(lab(pixels) - lab(np.asarray(rgb, np.uint8)), axis=-1)
    return float((apart < near).mean())


def shows_colour(pixels: Pixels, rgb: Sequence[int]) -> bool:
    """Whether a picture (height, width, 3) shows a colour somewhere."""
    return colour_share(pixels, rgb) >= PRESENT


def lab(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """sRGB from 0 to 255 as CIE Lab under D65."""
    linear = rgb.astype(np.float64) / 255
    linear = np.where(linear <= 0.04045, linear / 12.92, ((linear + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    cube = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = cube[..., 0], cube[..., 1], cube[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
