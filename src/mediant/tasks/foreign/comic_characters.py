"""Strips of four drawn people out of comicgen: who, what with, in what mood, before a wall of what colour.

    write([members], folder)                     # folder/comic000/p1.png ... p6.png, captions.json

A panel is a mood laid over a pose, as comicgen's own page does it. The people come back from panel to panel, as in a story, so
what they do, how they feel and the wall tell panels apart.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from mediant.core.errors import TaskError
from mediant.tasks.foreign.packages import Members
from mediant.tasks.pictures.painter import PALETTE, Pixels
from mediant.tasks.pictures.scene import COLOURS

if TYPE_CHECKING:
    import skia

N, PANELS, SIDE = 200, 6, 256
PEOPLE = {
    "dee": "A woman with curly hair",
    "priya": "A woman with long hair",
    "dey": "A bearded man",
    "ringo": "A man with a goatee",
}
POSES = {
    "handsfolded": "folds the arms", "holdingbook": "holds a book", "holdingcoffee": "holds a cup",
    "holdinglaptop": "holds a laptop", "holdingmobile": "holds a phone", "holdingumbrella": "holds an umbrella",
    "pointingright": "points to the right", "pointingup": "points up", "readingpaper": "reads a newspaper", "shrug": "shrugs",
    "thinking": "thinks",
}  # fmt: skip
MOODS = {"angry": "angry", "laugh": "laughing", "shout": "shouting", "sad": "sad", "smile": "smiling", "surprised": "surprised"}
_CANVAS = (500, 600)
# The part of comicgen's canvas from above the umbrella to the knees.
_LEFT, _TOP, _WIDTH = 25, 0, 450


def write(contents: Sequence[Members], folder: Path) -> None:
    """Draw all strips into a folder, the same ones every time.

    Raises:
        TaskError: the package lacks a drawing.
    """
    from PIL import Image

    drawings = _drawings(contents[0])
    random = Random("comic-characters")
    for i in range(N):
        place = folder / f"comic{i:03}"
        place.mkdir()
        captions = []
        poses, walls = random.sample(sorted(POSES), PANELS), random.sample(COLOURS, PANELS)
        for k, (pose, wall) in enumerate(zip(poses, walls, strict=True), start=1):
            who, mood = random.choice(sorted(PEOPLE)), random.choice(sorted(MOODS))
            Image.fromarray(_panel(drawings, who, pose, mood, wall)).save(place / f"p{k}.png")
            article = "an" if wall[0] in "aeiou" else "a"
            captions.append(f"{PEOPLE[who]} {POSES[pose]}, {MOODS[mood]}, before {article} {wall} wall.")
        (place / "captions.json").write_text(json.dumps(captions, indent=1), encoding="utf-8")


def _drawings(contents: Members) -> dict[str, bytes]:
    """Drawings by `who/emotion/name` and `who/pose/name`, standing and seen from the front."""
    parts = [f"{who}/{kind}/{name}" for who in PEOPLE for kind, names in (("pose", POSES), ("emotion", MOODS)) for name in names]
    wanted = {
        PurePosixPath("package/svg", *part.replace("/", "/straight/", 1).split("/")).with_suffix(".svg"): part for part in parts
    }
    found = {wanted[path]: content for path, content in contents if path in wanted}
    missing = sorted(set(parts) - set(found))
    if missing:
        raise TaskError(f"the package has no drawing {missing[0]} ({len(missing)} of {len(parts)} are missing)")
    return found


def _panel(drawings: Mapping[str, bytes], who: str, pose: str, mood: str, wall: str) -> Pixels:
    import skia

    surface = skia.Surface(SIDE, SIDE)
    with surface as canvas:
        canvas.clear(skia.Color(*PALETTE[wall]))
        scale = SIDE / _WIDTH
        canvas.scale(scale, scale)
        canvas.translate(-_LEFT, -_TOP)
        for part in (f"{who}/emotion/{mood}", f"{who}/pose/{pose}"):
            _lay(canvas, drawings[part], part)
    return np.ascontiguousarray(surface.toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3])


def _lay(canvas: "skia.Canvas", drawing: bytes, name: str) -> None:
    import skia

    picture = skia.SVGDOM.MakeFromStream(skia.MemoryStream(drawing))
    if picture is None:
        raise TaskError(f"the drawing {name} is not readable")
    picture.setContainerSize(skia.Size(*_CANVAS))
    picture.render(canvas)
