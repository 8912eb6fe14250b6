"""Emoji in four styles as references, with requests about them in the published format of reference binding.

    write([fluent, twemoji, openmoji], folder)      # folder/solid_color.jsonl, style.jsonl, identity.jsonl, and folder/3d/fox.png

The kinds of things are those of the drawn world, so its models can be asked as well; the pictures themselves come
from elsewhere.
"""

import io
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from mediant.core.errors import TaskError
from mediant.tasks.foreign.packages import Members
from mediant.tasks.pictures.painter import Pixels
from mediant.tasks.pictures.scene import AT, CHARACTERS, OBJECTS, PLACES

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

# Sides of an emoji, in pixels, and of the pictures asked for.
SIDE, ASKED = 256, 512
# Requests of each property.
N = 600
KINDS = {
    "ball": "26bd", "balloon": "1f388", "book": "1f4d5", "umbrella": "2614", "cake": "1f382", "flower": "1f338", "kite": "1fa81",
    "box": "1f4e6", "guitar": "1f3b8", "star": "2b50", "fox": "1f98a", "robot": "1f916", "frog": "1f438", "bear": "1f43b",
    "cat": "1f431", "rabbit": "1f430", "owl": "1f989", "pig": "1f437", "penguin": "1f427", "lion": "1f981", "mouse": "1f42d",
    "ghost": "1f47b",
}  # fmt: skip
COLOURED = {
    "red circle": "1f534", "orange circle": "1f7e0", "yellow circle": "1f7e1", "green circle": "1f7e2", "blue circle": "1f535",
    "purple circle": "1f7e3", "brown circle": "1f7e4", "red square": "1f7e5", "orange square": "1f7e7", "yellow square": "1f7e8",
    "green square": "1f7e9", "blue square": "1f7e6", "purple square": "1f7ea", "brown square": "1f7eb",
}  # fmt: skip
# Style -> which package has it, and how a code point is written there.
STYLES = {
    "3d": (0, "package/assets/{}.webp"), "flat": (1, "package/{}.svg"), "outlined": (2, "package/color/svg/{}.svg"),
    "line": (2, "package/black/svg/{}.svg"),
}  # fmt: skip
_COLOURLESS = "line"


def write(contents: Sequence[Members], folder: Path) -> None:
    """Write all pictures and requests into a folder, the same ones every time.

    Raises:
        TaskError: a package lacks an emoji.
    """
    from PIL import Image

    pictures = _pictures(contents)
    for (style, name), pixels in pictures.items():
        (folder / style).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / style / f"{name}.png")
    random = Random("emoji")
    for file, tasks in (("solid_color", _colours(pictures)), ("style", _styles()), ("identity", _identities())):
        random.shuffle(tasks)
        lines = [json.dumps(_task(f"{file}-{i}", file, one)) for i, one in enumerate(tasks[:N])]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _pictures(contents: Sequence[Members]) -> dict[tuple[str, str], Pixels]:
    """Every style's emoji by name."""
    found: dict[tuple[str, str], Pixels] = {}
    wanted: list[dict[str, tuple[str, str]]] = [{} for _ in contents]
    for style, (package, written) in STYLES.items():
        for name, code in (KINDS | ({} if style == _COLOURLESS else COLOURED)).items():
            wanted[package][written.format(code).lower()] = style, name
    for parts, members in zip(wanted, contents, strict=True):
        for path, content in members:
            if str(path).lower() in parts:
                found[parts[str(path).lower()]] = _on_white(content, path.suffix)
    missing = sorted({key for parts in wanted for key in parts.values()} - set(found))
    if missing:
        raise TaskError(f"the packages have no {missing[0][1]} in style {missing[0][0]} ({len(missing)} emoji are missing)")
    return found


def _on_white(content: bytes, suffix: str) -> Pixels:
    from PIL import Image

    image = _drawn(content) if suffix == ".svg" else Image.open(io.BytesIO(content)).convert("RGBA").resize((SIDE, SIDE))
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def _drawn(content: bytes) -> "PILImage":
    import skia
    from PIL import Image

    picture = skia.SVGDOM.MakeFromStream(skia.MemoryStream(content))
    if picture is None:
        raise TaskError("an emoji's drawing is not readable")
    surface = skia.Surface(SIDE, SIDE)
    with surface as canvas:
        canvas.clear(skia.ColorTRANSPARENT)
        picture.setContainerSize(skia.Size(SIDE, SIDE))
        picture.render(canvas)
    return Image.fromarray(surface.toarray(colorType=skia.kRGBA_8888_ColorType))


def _colours(pictures: Mapping[tuple[str, str], Pixels]) -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"{_a(kind)} in the colour of this image", "shown": name, "in": style,
            "rgb": ",".join(map(str, _middle(pictures[style, name]))),
        }
        for kind, name, style in product(OBJECTS, COLOURED, STYLES) if style != _COLOURLESS
    ]  # fmt: skip


def _styles() -> list[dict[str, Any]]:
    return [
        {"instruction": f"{_a(kind)} in the style of this image", "shown": name, "in": style, "style": style}
        for kind, name, style in product(KINDS, KINDS, STYLES) if kind != name
    ]  # fmt: skip


def _identities() -> list[dict[str, Any]]:
    return [
        {
            "instruction": f"the character of this image {AT.get(place, 'at the')} {place}",
            "shown": who,
            "in": style,
            "identity": who,
        }
        for place, who, style in product(PLACES, CHARACTERS, STYLES)
    ]


def _task(name: str, bucket: str, one: Mapping[str, Any]) -> dict[str, Any]:
    known = {key: value for key, value in one.items() if key not in ("instruction", "in")} | {"bucket": bucket}
    return {
        "task_id": name, "instruction": one["instruction"], "height": ASKED, "width": ASKED, "noise_seed": crc32(name.encode()),
        "edit_type": "customize", "source_image_path": f"{one['in']}/{one['shown']}.png", "metadata": known,
    }  # fmt: skip


def _middle(pixels: Pixels) -> tuple[int, int, int]:
    """Colour in the middle of a picture, where a coloured emoji has one."""
    part = pixels[3 * SIDE // 8 : 5 * SIDE // 8, 3 * SIDE // 8 : 5 * SIDE // 8].reshape(-1, 3)
    red, green, blue = np.median(part, axis=0).astype(int).tolist()
    return red, green, blue


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
