"""The study's data: strips for ranking heads, for choosing K and beta, and for testing; pictures with regions.

Drawn strips are split by combination: heads are ranked and settings chosen on combinations that training used, and tested on
combinations it never saw. A user's folder is shuffled once and split. Where strips come without captions, the subject's own
description of each panel, alone, stands for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from mediant.core.errors import SubjectError, TaskError
from mediant.studies.gaze_heads.config import Config
from mediant.subject import Subject
from mediant.subject.vision import VisionSubject
from mediant.tasks import regions, strips
from mediant.tasks.regions import RegionPicture
from mediant.tasks.strips import PanelStrip

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


@dataclass(frozen=True, eq=False)
class Data:
    """Disjoint sets of strips.

    Attributes:
        regions: pictures of things at known boxes.
        exact: whether a right answer is known word by word, so that whole answers can be compared.
    """

    name: str
    discovery: tuple[PanelStrip, ...]
    validation: tuple[PanelStrip, ...]
    test: tuple[PanelStrip, ...]
    regions: tuple[RegionPicture, ...]
    exact: bool


def load(config: Config, subject: Subject) -> Data:
    """Draw or read the strips.

    Raises:
        SubjectError: the model has no eyes.
        TaskError: a folder without enough strips.
    """
    if not isinstance(subject, VisionSubject):
        raise SubjectError(f"{subject.name} looks at no images; this study needs a vision-language model, such as comic-vlm")
    pictures = tuple(_regions(config)) if config.n_regions else ()
    counts = config.n_discovery, config.n_validation, config.n
    if config.data == "drawn":
        main = strips.drawn(counts[0] + counts[1], seed=config.seed, panels=config.panels)
        # Another seed: strips of the main split must not be those that heads were ranked on.
        test_seed = config.seed if config.split == "heldout" else config.seed + 1
        test = strips.drawn(counts[2], seed=test_seed, split=config.split, panels=config.panels)
        return Data("drawn strips", tuple(main[: counts[0]]), tuple(main[counts[0] :]), tuple(test), pictures, True)
    found = strips.read(config.data, n=sum(counts), seed=config.seed, panels=config.panels)
    Random(config.seed).shuffle(found)
    if any(strip.captions for strip in found) and not all(strip.captions for strip in found):
        bare = [strip.id for strip in found if not strip.captions]
        raise TaskError(
            f"{config.data}: {len(bare)} strips have no captions ({', '.join(bare[:3])}) while others have; give all or none"
        )
    a, b, _ = counts
    return Data(config.data, tuple(found[:a]), tuple(found[a : a + b]), tuple(found[a + b :]), pictures, False)


def _regions(config: Config) -> list[RegionPicture]:
    if config.regions == "drawn":
        from mediant.tasks.pictures import scatter

        # Kinds of things that were never drawn together in training.
        return scatter.generate(config.n_regions, seed=config.seed, split="heldout")
    return regions.read(config.regions, n=config.n_regions, seed=config.seed)


def asked(config: Config, k: int) -> str:
    """The question about panel `k`, from 0."""
    return config.question_panel.format(k=ORDINALS[k])


def with_captions(subject: VisionSubject, found: Sequence[PanelStrip], tokens: int) -> list[PanelStrip]:
    """Strips described panel by panel by the subject itself, each panel cut out and shown alone."""
    described = []
    for strip in found:
        alone = [strip.pixels[int(top) : int(bottom), int(left) : int(right)] for left, top, right, bottom in strip.boxes]
        batch = subject.look(alone, ["Describe this picture in one sentence."] * strip.n)
        described.append(replace(strip, captions=tuple(subject.answers(batch, max_new_tokens=tokens))))
    return described
