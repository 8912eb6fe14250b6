"""What a picture shows, as plain words: every factor is known, so a judge can ask whether it is there.

>>> scene = Scene("fox", "jumps", "ball", "red", "beach")
>>> scene.caption
'Fox jumps with a red ball at the beach.'
>>> Scene.read(scene.caption) == scene
True

Scenes are split by combination: some pairs of character and object, and some pairs of action and place, are *held out*. They are
never drawn together for training, though each of their parts is.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from random import Random
from typing import Literal

from mediant.core.errors import TaskError, unknown

Split = Literal["main", "heldout"]
CHARACTERS = ("fox", "robot", "frog", "bear", "cat", "rabbit", "owl", "pig", "penguin", "lion", "mouse", "ghost")
ACTIONS = ("waves", "jumps", "sleeps", "runs", "sits", "dances")
OBJECTS = ("ball", "balloon", "book", "umbrella", "cake", "flower", "kite", "box", "guitar", "star")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PLACES = ("beach", "forest", "city", "desert", "mountain", "moon", "meadow", "harbour")
STYLES = ("flat", "ink", "outline", "pixel", "hatched", "watercolour", "neon", "chalk")
FACTORS = {
    "character": CHARACTERS, "action": ACTIONS, "object": OBJECTS, "colour": COLOURS, "place": PLACES, "style": STYLES,
}  # fmt: skip
# One pair of character and object in so many, and one of action and place, is held out.
HELD_OUT_ONE_IN = 7
AT = {"forest": "in the", "city": "in the", "desert": "in the", "moon": "on the", "mountain": "on the", "meadow": "on the"}


@dataclass(frozen=True)
class Scene:
    """One character doing one thing with one object somewhere.

    Raises:
        UnknownName: a word that is no value of its factor.
    """

    character: str
    action: str
    object: str
    colour: str
    place: str
    style: str = "flat"

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value not in FACTORS[each.name]:
                raise unknown(each.name, value, FACTORS[each.name])

    @property
    def caption(self) -> str:
        """One sentence with every factor but the style; it begins with what differs most between scenes."""
        return f"{self.placeless[:-1]} {self.where}."

    @property
    def where(self) -> str:
        """The place with its preposition."""
        return f"{AT.get(self.place, 'at the')} {self.place}"

    @property
    def deserted(self) -> str:
        """The caption of the scene without its character."""
        return f"{self.colour.capitalize()} {self.object} {self.where}."

    @property
    def placeless(self) -> str:
        """The caption without the place."""
        a = "an" if self.colour[0] in "aeiou" else "a"
        return f"{self.character.capitalize()} {self.action} with {a} {self.colour} {self.object}."

    @classmethod
    def read(cls, caption: str, style: str = "flat") -> "Scene":
        """The scene of a caption.

        Raises:
            TaskError: a text that is no caption.
            UnknownName: a word that is no value of its factor.
        """
        found = re.fullmatch(r"(\w+) (\w+) with an? (\w+) (\w+) (?:at|in|on) the (\w+)\.", caption.strip())
        if found is None:
            raise TaskError(
                f"expected a caption such as {Scene('fox', 'jumps', 'ball', 'red', 'beach').caption!r}, got {caption!r}"
            )
        character, action, colour, thing, place = found.groups()
        return cls(character.lower(), action, thing, colour, place, style)

    @property
    def held_out(self) -> bool:
        """Whether one of its combinations is kept from training."""
        things = CHARACTERS.index(self.character) + 3 * OBJECTS.index(self.object)
        doings = ACTIONS.index(self.action) + 2 * PLACES.index(self.place)
        return things % HELD_OUT_ONE_IN == 0 or doings % HELD_OUT_ONE_IN == 0


def every(split: Split | None = None, *, style: str = "flat") -> Iterator[Scene]:
    """All scenes of a style, or those of one split, in a fixed order."""
    for values in product(CHARACTERS, ACTIONS, OBJECTS, COLOURS, PLACES):
        scene = Scene(*values, style)
        if split is None or scene.held_out == (split == "heldout"):
            yield scene


def draw_scene(random: Random, split: Split = "main", *, style: str = "flat") -> Scene:
    """A random scene of a split."""
    while True:
        who, does, what, colour, where = (random.choice(options) for options in (CHARACTERS, ACTIONS, OBJECTS, COLOURS, PLACES))
        scene = Scene(who, does, what, colour, where, style)
        if scene.held_out == (split == "heldout"):
            return scene
