"""The study's data: strips for ranking heads, for choosing K and beta, and for testing; pictures with regions.

Drawn strips are split by combination: heads are ranked and settings chosen on combinations that training used, and tested on
combinations it never saw. A user's folder, or a fetched set of the foreign world, is shuffled once and split. Where strips come
without captions, or a subject is to be judged by its own words, its description of each panel, alone, stands for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from mediant.core.errors import SubjectError, TaskError
from mediant.measures import judges
from mediant.studies.gaze_heads.config import Config
from mediant.subject import Subject
from mediant.subject.regions import Box
from mediant.subject.vision import VisionSubject
from mediant.tasks import foreign, regions, strips
from mediant.tasks.regions import Pixels, RegionPicture
from mediant.tasks.strips import PanelStrip


@dataclass(frozen=True, eq=False)
class Data:
    """Disjoint sets of strips.

    Attributes:
        regions: pictures of things at known boxes.
        exact: whether a right answer is known word by word, so that whole answers can be compared.
        twin: a second model to be studied beside the first.
    """

    name: str
    discovery: tuple[PanelStrip, ...]
    validation: tuple[PanelStrip, ...]
    test: tuple[PanelStrip, ...]
    regions: tuple[RegionPicture, ...]
    exact: bool
    twin: VisionSubject | None = None


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
        return _split("drawn strips", [*main, *test], counts, pictures, config, exact=config.captions == "given")
    found = strips.read(_place(config.data), n=sum(counts), seed=config.seed, panels=config.panels, height=config.height)
    Random(config.seed).shuffle(found)
    if any(strip.captions for strip in found) and not all(strip.captions for strip in found):
        bare = [strip.id for strip in found if not strip.captions]
        raise TaskError(
            f"{config.data}: {len(bare)} strips have no captions ({', '.join(bare[:3])}) while others have; give all or none"
        )
    return _split(config.data, found, counts, pictures, config, exact=False)


def _split(
    name: str,
    found: Sequence[PanelStrip],
    counts: tuple[int, int, int],
    pictures: tuple[RegionPicture, ...],
    config: Config,
    *,
    exact: bool,
) -> Data:
    if config.captions == "own":
        found = [replace(strip, captions=(), facts=()) for strip in found]
    a, b, _ = counts
    return Data(name, tuple(found[:a]), tuple(found[a : a + b]), tuple(found[a + b :]), pictures, exact)


def _place(name: str) -> str | Path:
    """The folder of a fetched set, or the user's own."""
    return foreign.folder_of(name) if name in foreign.SETS else name


def _regions(config: Config) -> list[RegionPicture]:
    if config.regions == "drawn":
        from mediant.tasks.pictures import scatter

        # Kinds of things that were never drawn together in training.
        return scatter.generate(config.n_regions, seed=config.seed, split="heldout")
    return regions.read(_place(config.regions), n=config.n_regions, seed=config.seed)


def asked(config: Config, k: int) -> str:
    """The question about panel `k`, from 0."""
    return config.question_panel.format(k=strips.ORDINALS[k])


def with_captions(subject: VisionSubject, found: Sequence[PanelStrip], question: str, tokens: int) -> list[PanelStrip]:
    """Strips described panel by panel by the subject itself, each panel cut out and shown alone."""
    return [replace(strip, captions=_of_each(subject, strip.pixels, strip.boxes, question, tokens)) for strip in found]


def with_names(subject: VisionSubject, found: Sequence[RegionPicture], question: str, tokens: int) -> list[RegionPicture]:
    """Pictures whose things are called what the subject calls them, each cut out and shown alone."""
    called = []
    for picture in found:
        names = _of_each(subject, picture.pixels, picture.boxes, question, tokens)
        called.append(replace(picture, names=names, facts=tuple(tuple(judges.words(name)) for name in names)))
    return called


def _of_each(subject: VisionSubject, pixels: Pixels, boxes: Sequence[Box], question: str, tokens: int) -> tuple[str, ...]:
    """Answers about the parts of a picture, each without the rest."""
    alone = [pixels[int(top) : int(bottom), int(left) : int(right)] for left, top, right, bottom in boxes]
    batches = [subject.look([part], [question]) for part in alone]
    return tuple(subject.answers(batch, max_new_tokens=tokens)[0] for batch in batches)
