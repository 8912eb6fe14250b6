"""What drawn-flux and its twins learn, and how much of it a machine can bear.

Plan(ways={"colour": "padding"}), pace_on("cuda").drawing.steps
"""

from dataclasses import dataclass, field, replace

from mediant.training.loop import LoopConfig
from mediant.zoo.drawn_flux.parts import Geometry
from mediant.zoo.drawn_flux.routes import Route

_LOOP = LoopConfig(steps=9_000, lr=1.5e-3, weight_decay=0.01, warmup=100, schedule="cosine", log_every=10, grad_clip=1.0)


@dataclass(frozen=True)
class Pace:
    """How much is learnt: what a machine can bear.

    Attributes:
        pictures, picture_batch: that the autoencoder learns from, and those of a step.
        requests, batch: that the transformer learns from, and those of a step.
        workers: processes that draw them.
    """

    pictures: int
    picture_batch: int
    seeing: LoopConfig
    requests: int
    batch: int
    drawing: LoopConfig
    reading: LoopConfig = field(default_factory=lambda: replace(_LOOP, steps=1_000))
    settling: LoopConfig = field(default_factory=lambda: replace(_LOOP, steps=1_600, lr=8e-4))
    workers: int = 1


ON_A_THREAD = Pace(8_000, 8, _LOOP, 30_000, 48, replace(_LOOP, steps=8_000, warmup=300))
ON_A_GPU = Pace(
    20_000, 96, replace(_LOOP, steps=7_000, save_every=1_000),
    80_000, 192, replace(_LOOP, steps=4_200, warmup=300, save_every=500), workers=16,
)  # fmt: skip


def pace_on(device: str) -> Pace:
    """The pace of a device."""
    return ON_A_THREAD if device == "cpu" else ON_A_GPU


@dataclass(frozen=True)
class Plan:
    """What is learnt, and how.

    Attributes:
        ways: bucket -> the way its property is made to take, see `routes.py`; none for a natural subject.
        blind: in what share of the edits the picture does not see the reference.
        frozen_text: whether the text encoder first learns to read, as a language model of instructions, and then stays as it is.
        enlarge: how much longer the reference's side is than the picture's.
        share: of the pace's steps of drawing, how many are taken.
    """

    geometry: Geometry = field(default_factory=Geometry)
    ways: dict[str, Route] = field(default_factory=dict)
    frozen_text: bool = False
    blind: float = 0.0
    enlarge: int = 1
    share: float = 1.0
