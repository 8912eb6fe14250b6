"""Strips of panels as images with a box and, where it is known, a caption for each panel.

    strips = read("comics/")                    # comics/comic7/p1.png ... p6.png, captions.json beside them or not
    strip = build("mine", [panel_1, panel_2, panel_3])
    strip.pixels, strip.boxes[2]

Panels are scaled to one height and to widths that are multiples of `cell`, so that their borders fall between image tokens, and
pasted side by side with a white bar over every inner border (the layout of Gandikota & Bau's released code).
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from mediant.core.errors import OutOfRange, TaskError
from mediant.subject.regions import Box

Pixels = npt.NDArray[np.uint8]
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
HEIGHT, CELL, GAP = 256, 32, 6
# COMICS: this many first and last pages of a longer book are covers, advertisements and letters.
_MARGIN, _LONG, _TRIES = 5, 10, 200


@dataclass(frozen=True, eq=False)
class PanelStrip:
    """One image of several panels.

    Attributes:
        boxes: of the panels, in pixels, in reading order.
        captions: one per panel, or none at all where they are not known.
        facts: per panel, the words that make up its caption's content; empty where captions are free text.
    """

    id: str
    pixels: Pixels
    boxes: tuple[Box, ...]
    captions: tuple[str, ...] = ()
    facts: tuple[tuple[str, ...], ...] = ()

    @property
    def n(self) -> int:
        """Number of panels."""
        return len(self.boxes)


def build(
    name: str, panels: Sequence[Pixels], captions: Sequence[str] = (), *, height: int = HEIGHT, cell: int = CELL, gap: int = GAP
) -> PanelStrip:
    """Panels of any size side by side.

    Raises:
        TaskError: no panels, or another number of captions.
    """
    if not panels or (captions and len(captions) != len(panels)):
        raise TaskError(f"strip {name!r} needs panels, and a caption for each or none; got {len(panels)} and {len(captions)}")
    high = max(cell, round(height / cell) * cell)
    scaled = [_scaled(panel, high, cell) for panel in panels]
    pixels = np.ascontiguousarray(np.concatenate(scaled, axis=1))
    edges = [0, *np.cumsum([panel.shape[1] for panel in scaled]).tolist()]
    for border in edges[1:-1]:
        pixels[:, border - gap // 2 : border + (gap + 1) // 2] = 255
    boxes = tuple((float(a), 0.0, float(b), float(high)) for a, b in pairwise(edges))
    return PanelStrip(name, pixels, boxes, tuple(captions))


def _scaled(panel: Pixels, high: int, cell: int) -> Pixels:
    from PIL import Image

    wide = max(cell, round(panel.shape[1] * high / panel.shape[0] / cell) * cell)
    if panel.shape[:2] == (high, wide):
        return panel
    return np.asarray(Image.fromarray(panel).resize((wide, high), Image.Resampling.LANCZOS))


def read(folder: str | Path, *, n: int, seed: int = 42, panels: int = 6, height: int = HEIGHT) -> list[PanelStrip]:
    """`n` strips from a folder in one of two layouts, told apart by what is in it.

    `comic<ID>/p1.png` ...: one folder per strip, with `captions.json` (a list of sentences) in it or not; a folder without all
    panels is passed over. `<comic>/<page>_<panel>.jpg`: the COMICS corpus (Iyyer et al. 2017), from which runs of panels on one
    page are drawn at random. Panels are scaled to `height` pixels.

    Raises:
        TaskError: neither layout, or too few strips.
    """
    root = Path(folder)
    if not root.is_dir():
        raise TaskError(
            f"{root} is no folder of strips; expected folders comic<ID>/ with p1.png to p{panels}.png, or COMICS pages"
        )
    strips = [strip for place in sorted(root.glob("comic*")) if (strip := _one_folder(place, panels, height)) is not None]
    found = strips[:n] if strips else list(_comics(root, n, seed, panels, height))
    if len(found) < n:
        raise TaskError(f"{root} gives {len(found)} strips of {panels} panels, {n} are needed; ask for fewer with the n options")
    return found


def _one_folder(place: Path, panels: int, height: int) -> PanelStrip | None:
    from mediant.subject.vision import as_pixels

    paths = [next((p for e in ENDINGS if (p := place / f"p{k}{e}").is_file()), None) for k in range(1, panels + 1)]
    if any(path is None for path in paths):
        return None
    captions: list[str] = []
    if (place / "captions.json").is_file():
        try:
            captions = [str(text) for text in json.loads((place / "captions.json").read_text(encoding="utf-8"))]
        except (ValueError, OSError, TypeError) as error:
            raise TaskError(f"{place / 'captions.json'} is not a list of sentences: {error}") from error
    return build(place.name, [as_pixels(path) for path in paths if path is not None], captions, height=height)


def _comics(root: Path, n: int, seed: int, panels: int, height: int) -> Iterator[PanelStrip]:
    """Runs of panels of one page, drawn at random, interior pages first."""
    from mediant.subject.vision import as_pixels

    books = {place: pages for place in sorted(root.iterdir()) if place.is_dir() and (pages := _pages(place, panels))}
    random, taken = Random(seed), set[str]()
    for _ in range(_TRIES * n):
        if not books or len(taken) == n:
            return
        book = random.choice(sorted(books))
        page, paths = random.choice(books[book])
        start = random.randrange(len(paths) - panels + 1)
        name = f"{book.name}-{page}-{start}"
        if name not in taken:
            taken.add(name)
            yield build(name, [as_pixels(path) for path in paths[start : start + panels]], height=height)


def _pages(book: Path, panels: int) -> list[tuple[int, list[Path]]]:
    """Pages with enough panels; those inside the book where it has any."""
    found: dict[int, list[tuple[int, Path]]] = {}
    for path in book.iterdir():
        page, _, panel = path.stem.partition("_")
        if path.suffix.lower() in ENDINGS and page.isdecimal() and panel.isdecimal():
            found.setdefault(int(page), []).append((int(panel), path))
    numbers = sorted(found)
    inside = numbers[_MARGIN:-_MARGIN] if len(numbers) > _LONG else numbers
    enough = {page: [path for _, path in sorted(found[page])] for page in numbers if len(found[page]) >= panels}
    chosen = [page for page in inside if page in enough] or list(enough)
    return [(page, enough[page]) for page in chosen]


def drawn(
    n: int, *, seed: int = 0, split: str = "main", panels: int = 6, size: int = 64, style: str = "flat"
) -> list[PanelStrip]:
    """Strips of the drawn world, with their facts.

    Raises:
        OutOfRange: more panels than there are characters.
    """
    from mediant.tasks.pictures import comics

    if split not in ("main", "heldout"):
        raise OutOfRange(f"the drawn world has the splits main and heldout, got {split!r}")
    made = comics.generate(n, seed=seed, split="heldout" if split == "heldout" else "main", panels=panels, size=size, style=style)
    return [
        PanelStrip(
            strip.id,
            strip.pixels,
            tuple(strip.panel(k) for k in range(panels)),
            strip.captions,
            tuple((s.character, s.action, s.colour, s.object, s.place) for s in (panel.scene for panel in strip.panels)),
        )
        for strip in made
    ]
