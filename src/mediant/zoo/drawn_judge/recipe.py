"""drawn-judge from nothing: what is in a picture, in which style, and is it the same individual?

    mediant models train drawn-judge --out FOLDER       # half an hour on one thread; may be stopped at any time

It learns on pictures of all combinations, since it is a measuring instrument and not under test. Most of them have been
through drawn-flux's autoencoder, whose small faults it must not mistake for anything; references it sees as they are. Its errors
are counted on pictures that were drawn afterwards.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mediant.measures.picture_judge import Errors, PictureJudge, Pixels, as_images, shows_colour
from mediant.tasks.pictures import requests
from mediant.tasks.pictures.scene import CHARACTERS, COLOURS, PLACES, STYLES
from mediant.tasks.pictures.still import Individual, Placed, Still, draw
from mediant.tasks.requests import Request
from mediant.training.loop import LoopConfig, chance_on, train
from mediant.training.sharding import drawn_in_shards

WORDS = {"kind": requests.KINDS, "place": ("nowhere", *PLACES), "style": STYLES, "colour": (*COLOURS, "brown")}
TEMPERATURE, NOISE, SHIFT = 0.1, 0.08, 4
CHECKED = 400
Through = Callable[[Pixels], Pixels]
_LOOP = LoopConfig(steps=5_000, lr=2e-3, weight_decay=0.01, warmup=100, schedule="cosine", log_every=10, grad_clip=1.0)


@dataclass(frozen=True)
class Pace:
    """How much is learnt: what a machine can bear.

    Attributes:
        pictures, individuals: learnt from.
        batch, pairs: those of a step.
        workers: processes that draw them.
    """

    pictures: int
    individuals: int
    batch: int
    pairs: int
    loop: LoopConfig = _LOOP
    workers: int = 1


ON_A_THREAD = Pace(10_000, 4_000, 48, 32)
ON_A_GPU = Pace(16_000, 6_000, 128, 96, replace(_LOOP, steps=4_000, save_every=1_000), workers=8)


@dataclass(frozen=True, eq=False)
class Labelled:
    """Pictures and their answers; -1 where a question has none."""

    pixels: Pixels
    kinds: Float[Tensor, "n kind"]
    place: Int[Tensor, " n"]
    style: Int[Tensor, " n"]
    colour: Int[Tensor, " n"]

    @classmethod
    def of(cls, drawn: Sequence[Request]) -> "Labelled":
        """Answers of requests, as they were drawn."""
        kinds = torch.zeros(len(drawn), len(WORDS["kind"]))
        for row, request in enumerate(drawn):
            there = [request.factors["kind"]] if request.bucket != "remove" else []
            for name in there + ([request.factors["shown"]] if request.bucket in ("add", "remove") else []):
                kinds[row, WORDS["kind"].index(name)] = 1
        places = [WORDS["place"].index(each.factors.get("place", "nowhere")) for each in drawn]
        styles = [WORDS["style"].index(each.factors.get("style", "flat")) for each in drawn]
        colours = [WORDS["colour"].index(each.factors["colour"]) if _one_colour(each) else -1 for each in drawn]
        pixels = np.stack([each.target for each in drawn if each.target is not None])
        return cls(pixels, kinds, torch.tensor(places), torch.tensor(styles), torch.tensor(colours))


def _one_colour(request: Request) -> bool:
    return request.bucket in ("text", "colour") and "colour" in request.factors


def individuals(n: int, seed: int, *, workers: int = 1) -> tuple[Pixels, Pixels]:
    """Two pictures of each of `n` individuals, on different grounds; every other one is of the kind of the one before."""
    found = [each for some in drawn_in_shards(partial(_individuals, seed), n, workers=workers) for each in some]
    return np.stack([one for one, _ in found]), np.stack([two for _, two in found])


def _individuals(seed: int, shard: int, n: int) -> list[tuple[Pixels, Pixels]]:
    random, kind = Random(f"individuals/{seed}/{shard}"), ""
    found = []
    for i in range(n):
        kind = kind if i % 2 else random.choice(CHARACTERS)
        who = Individual.drawn(random, kind)
        found.append((_somewhere(random, who), _somewhere(random, who)))
    return found


def _somewhere(random: Random, who: Individual) -> Pixels:
    where = random.choice([None, *PLACES])
    placed = Placed(who, random.uniform(0.44, 0.56), random.uniform(0.5, 0.58), random.uniform(0.56, 0.66))
    return draw(Still((placed,), where), requests.SIZE)


def drawn_requests(n: int, seed: int, *, workers: int = 1) -> list[Request]:
    """Requests of every bucket and both splits in turn."""
    return [each for some in drawn_in_shards(partial(_requests, seed), n, workers=workers) for each in some]


def _requests(seed: int, shard: int, n: int) -> list[Request]:
    random = Random(f"judge/{seed}/{shard}")
    buckets = ("text", "style", "colour", "text", "style", "add", "remove", "identity")
    return [
        requests.draw_request(random, buckets[i % len(buckets)], "", "heldout" if random.random() < 0.3 else "main")
        for i in range(n)
    ]


@dataclass(eq=False)
class Looking:
    """The eye's lesson."""

    judge: PictureJudge
    through: Through
    pace: Pace
    device: torch.device

    @cached_property
    def labelled(self) -> Labelled:
        """Drawn once; three of four have been through the autoencoder."""
        found = Labelled.of(drawn_requests(self.pace.pictures, 0, workers=self.pace.workers))
        clean = found.pixels[::4]
        pixels = self.through(found.pixels)
        pixels[::4] = clean
        return replace(found, pixels=pixels)

    @cached_property
    def pairs(self) -> tuple[Pixels, Pixels]:
        """Individuals drawn once, twice each; the second time they have been through the autoencoder."""
        one, two = individuals(self.pace.individuals, 0, workers=self.pace.workers)
        return one, self.through(two)

    def loss(self, _: int, generator: torch.Generator) -> Tensor:
        """Cross entropies of all questions, and of telling each individual's other picture from those of the others."""
        data, eye, pace = self.labelled, self.judge.eye, self.pace
        rows = torch.randint(len(data.pixels), (pace.batch,), generator=generator)
        told = eye(self._seen(data.pixels[rows.numpy()], generator))
        kinds = data.kinds[rows].to(self.device)
        loss: Tensor = nn.functional.binary_cross_entropy_with_logits(told["kind"], kinds) * 5
        for question, answers in (("place", data.place), ("style", data.style), ("colour", data.colour)):
            loss = loss + nn.functional.cross_entropy(told[question], answers[rows].to(self.device), ignore_index=-1)
        # Neighbours are of one kind, so a batch takes them together.
        first = torch.randint(pace.individuals // 2, (pace.pairs // 2,), generator=generator) * 2
        who = torch.stack([first, first + 1], 1).flatten().numpy()
        one, two = (eye(self._seen(side[who], generator))["identity"] for side in self.pairs)
        return loss + nn.functional.cross_entropy(one @ two.mT / TEMPERATURE, torch.arange(pace.pairs, device=self.device))

    def _seen(self, pixels: Pixels, generator: torch.Generator) -> Tensor:
        return _blurred(as_images(pixels).to(self.device), chance_on(self.device, generator))


def _blurred(images: Tensor, generator: torch.Generator) -> Tensor:
    """Some pixels aside, with some noise, and for some of them a blur."""
    device, n = images.device, len(images)
    right, down = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator, device=device).tolist()
    images = images.roll((down, right), (2, 3))
    soft = nn.functional.avg_pool2d(images, 3, 1, 1)
    blur, loud = torch.rand(2, n, 1, 1, 1, generator=generator, device=device)
    share = (blur - 0.5).clamp(min=0) * 2
    noise = torch.randn(images.shape, generator=generator, device=device) * NOISE * loud
    blurred: Tensor = (1 - share) * images + share * soft + noise
    return blurred


def with_errors(judge: PictureJudge, through: Through, seed: int = 1, *, workers: int = 1) -> PictureJudge:
    """The judge with its threshold for individuals, and its errors on pictures it has never seen, all through the autoencoder.

    Individuals are compared with a picture that has not been, as references have not.
    """
    one, two = individuals(2 * CHECKED, seed, workers=workers)
    two = through(two)
    same, other = judge.alike(one, two), judge.alike(one, np.roll(two.reshape(-1, 2, *two.shape[1:]), 1, 1).reshape(two.shape))
    half = len(same) // 2
    cuts = np.unique(np.concatenate([same[:half], other[:half]]))
    likeness = float(cuts[np.argmax([(same[:half] >= cut).mean() - (other[:half] >= cut).mean() for cut in cuts])])
    judge = replace(judge, likeness=likeness)
    errors = {"identity": _counted(same[half:] >= likeness, other[half:] >= likeness)}
    drawn = drawn_requests(8 * CHECKED, seed, workers=workers)
    for question, bucket in (("style", "style"), ("place", "text"), ("kind", "text"), ("colour", "text")):
        asked = [each for each in drawn if each.bucket == bucket and question in each.factors]
        told = judge.best(question, through(np.stack([each.target for each in asked if each.target is not None])))
        truth = [each.factors[question] for each in asked]
        # What another picture would have had to be: wrong where the judge says so of this one.
        others = truth[1:] + truth[:1]
        present = np.array([a == b for a, b in zip(told, truth, strict=True)])
        absent = np.array([a == b for a, b, c in zip(told, others, truth, strict=True) if b != c])
        errors[question if question != "colour" else "named colour"] = _counted(present, absent)
    return replace(judge, errors=errors | {"colour": colour_errors(drawn, through)})


def colour_errors(drawn: Sequence[Request], through: Through) -> Errors:
    """How often a swatch's colour is seen in what was drawn in it, and in what was drawn in another's."""
    asked = [each for each in drawn if each.bucket == "colour"]
    seen = through(np.stack([each.target for each in asked if each.target is not None]))
    colours = [tuple(int(part) for part in each.factors["rgb"].split(",")) for each in asked]
    present = np.array([shows_colour(seen[i], rgb) for i, rgb in enumerate(colours)])
    names = [each.factors["colour"] for each in asked]
    absent = np.array([shows_colour(seen[i], colours[i - 1]) for i in range(len(asked)) if names[i] != names[i - 1]])
    return _counted(present, absent)


def _counted(present: np.ndarray, absent: np.ndarray) -> Errors:
    return Errors(int(present.sum()), len(present), int(absent.sum()), len(absent))


def teach(
    folder: Path, *, seconds: float, tell: Callable[[str, int, int, float], None], device: str = "cpu",
    through: Through | None = None,
) -> bool:  # fmt: skip
    """Train in the folder, going on where an earlier call stopped; whether it is done, and then the judge is in `model/`.

    Args:
        device: a GPU learns from more pictures, for longer (`Pace`).
        through: what pictures pass on their way, by default drawn-flux's autoencoder.
    """
    begun, pace = time.monotonic(), ON_A_THREAD if device == "cpu" else ON_A_GPU
    judge = PictureJudge.untrained(WORDS)
    judge.eye.to(device)
    passing = through or autoencoded(device=device)
    looking = Looking(judge, passing, pace, torch.device(device))
    log = train(
        dict(judge.eye.named_parameters()), looking.loss, folder / "looking", pace.loop,
        stop_after=max(0.0, seconds - (time.monotonic() - begun)),
        progress=lambda step, value: tell("looking", step, pace.loop.steps, value),
    )  # fmt: skip
    if not log.done:
        return False
    judge.eye.cpu().eval()
    with_errors(judge, passing, workers=pace.workers).save(folder / "model")
    return True


def autoencoded(folder: Path | None = None, *, device: str = "cpu") -> Through:
    """Pictures through the autoencoder of drawn-flux, or of a pipeline's folder."""
    from diffusers import AutoencoderKLFlux2

    from mediant.subject import catalogue

    found = folder or catalogue.shipped(catalogue.card("drawn-flux"))
    vae = AutoencoderKLFlux2.from_pretrained(found, subfolder="vae", use_safetensors=True).eval()
    return through(vae.to(device))


def through(vae: Any) -> Through:
    """Pictures through an autoencoder, 64 at a time."""

    def passed(pixels: Pixels) -> Pixels:
        parts = []
        with torch.no_grad():
            for i in range(0, len(pixels), 64):
                latents = vae.encode(as_images(pixels[i : i + 64]).to(vae.device)).latent_dist.mode()
                made = vae.decode(latents).sample.clamp(-1, 1).add(1).mul(127.5).round().byte()
                parts.append(made.permute(0, 2, 3, 1).cpu().numpy())
        return np.concatenate(parts)

    return passed
