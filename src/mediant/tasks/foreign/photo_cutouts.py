"""Photographed things of three sizes pasted on photographs: COCO's size classes with boxes that are known exactly.

    write([stamps, backgrounds], folder)         # folder/000.jpg ..., annotations.json in COCO's form

Tux Paint's stamps have a sentence each; those that are one plain thing ("A chimpanzee.") are kept, drawings are not.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from random import Random

import numpy as np

from mediant.core.errors import TaskError
from mediant.tasks.foreign.packages import Members
from mediant.tasks.pictures.painter import Pixels
from mediant.tasks.pictures.scatter import corners, paste
from mediant.tasks.regions import ANNOTATIONS

N, HEIGHT, WIDTH = 200, 480, 640
# Square roots of the areas of boxes, in pixels: COCO's small is below 32, its large from 96.
SIDES = {"small": range(22, 31, 2), "medium": range(48, 81, 4), "large": range(140, 201, 4)}
# Thinner things (a bassoon) would hardly cover an image token.
_LONGEST = 2.5
KINDS = ("animals", "food", "household", "clothes", "vehicles", "hobbies", "plants", "sports")
_STAMPS = PurePosixPath("./usr/share/tuxpaint/stamps")
_NATURE = PurePosixPath("./usr/share/backgrounds/mate/nature")
_ONE_THING = re.compile(r"(?:An?|The) ([a-z]+(?:[ -][a-z]+)?)\.")
# Photographs in whose foreground no thing stands.
GROUNDS = ("Aqua", "Blinds", "Dune", "GreenMeadow", "RainDrops", "Storm", "Wood")


def write(contents: Sequence[Members], folder: Path) -> None:
    """Paste all pictures into a folder, the same ones every time.

    Raises:
        TaskError: a package holds something else.
    """
    from PIL import Image

    things, grounds = _things(contents[0]), _grounds(contents[1])
    random, names = Random("photo-cutouts"), sorted(things)
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for i in range(N):
        picture = _cropped(random, grounds)
        images.append({"id": i, "file_name": f"{i:03}.jpg", "width": WIDTH, "height": HEIGHT})
        chosen = random.sample(names, len(SIDES))
        cutouts = [_scaled(things[name], random.choice(list(SIDES[size]))) for name, size in zip(chosen, SIDES, strict=True)]
        places = corners(random, [cutout.shape[:2] for cutout in cutouts], HEIGHT, WIDTH)
        for name, cutout, (left, top) in zip(chosen, cutouts, places, strict=True):
            x, y, right, bottom = paste(picture, cutout, left, top)
            box = [x, y, right - x, bottom - y]
            one = {"id": len(annotations), "image_id": i, "category_id": names.index(name), "bbox": box, "area": box[2] * box[3]}
            annotations.append(one | {"iscrowd": 0})
        Image.fromarray(picture).save(folder / f"{i:03}.jpg", quality=92)
    kinds = [{"id": i, "name": name} for i, name in enumerate(names)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": kinds})
    (folder / ANNOTATIONS).write_text(text, encoding="utf-8")


def _things(contents: Members) -> dict[str, Pixels]:
    """Cut-outs (height, width, 4) with transparency by name, cut to what they show."""
    from PIL import Image

    pictures: dict[PurePosixPath, bytes] = {}
    sentences: dict[PurePosixPath, str] = {}
    for path, content in contents:
        if not path.is_relative_to(_STAMPS) or path.relative_to(_STAMPS).parts[0] not in KINDS or "cartoon" in path.parts:
            continue
        if path.suffix == ".png":
            pictures[path.with_suffix("")] = content
        elif path.suffix == ".txt":
            sentences[path.with_suffix("")] = content.decode("utf-8", errors="replace").splitlines()[0].strip()
    found: dict[str, Pixels] = {}
    for path in sorted(pictures):
        named = _ONE_THING.fullmatch(sentences.get(path, ""))
        if named and named[1] not in found:
            with Image.open(io.BytesIO(pictures[path])) as image:
                cut = image.convert("RGBA").crop(image.convert("RGBA").getchannel("A").getbbox())
            if max(cut.size) <= _LONGEST * min(cut.size):
                found[named[1]] = np.asarray(cut)
    if len(found) < 2 * len(SIDES):
        raise TaskError(f"the first package has {len(found)} photographed things with a name, which is too few")
    return found


def _grounds(contents: Members) -> list[Pixels]:
    from PIL import Image

    found = {}
    for path, content in contents:
        if path.parent == _NATURE and path.stem in GROUNDS:
            with Image.open(io.BytesIO(content)) as image:
                found[path.stem] = np.asarray(image.convert("RGB"))
    missing = sorted(set(GROUNDS) - set(found))
    if missing:
        raise TaskError(f"the second package has no photograph {', '.join(missing)}")
    return [found[name] for name in GROUNDS]


def _cropped(random: Random, grounds: Sequence[Pixels]) -> Pixels:
    """Half of a photograph, somewhere in it, in the pictures' size."""
    from PIL import Image

    ground = random.choice(grounds)
    high = ground.shape[0] // 2
    wide = min(ground.shape[1], high * WIDTH // HEIGHT)
    top, left = random.randrange(ground.shape[0] - high + 1), random.randrange(ground.shape[1] - wide + 1)
    part = Image.fromarray(ground[top : top + high, left : left + wide])
    return np.array(part.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS))


def _scaled(cutout: Pixels, side: int) -> Pixels:
    """The cut-out with a box of `side` x `side` pixels of area, colours weighted by how much they cover."""
    from PIL import Image

    height, width = cutout.shape[:2]
    scale = side / (height * width) ** 0.5
    size = round(width * scale), round(height * scale)
    cover = cutout[..., 3:].astype(np.float32) / 255
    weighted = np.concatenate([np.round(cutout[..., :3] * cover).astype(np.uint8), cutout[..., 3:]], axis=-1)
    return np.asarray(Image.fromarray(weighted, "RGBa").resize(size, Image.Resampling.LANCZOS))
