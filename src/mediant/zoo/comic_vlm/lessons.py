"""What comic-vlm is taught: pictures of the drawn world with a question and its answer.

    bank = Bank.drawn(100, seed=0)
    lesson = draw(Random(0), "unsettled", bank, panels=6)
    lesson.pixels, lesson.question, lesson.answer        # "What is happening in this panel?", the caption of any one panel

Nothing resembles steering. What leaves room for it is that some questions are *unsettled*: "this panel" may be any panel, and
"in any order" any order, so only what the model happens to look at can decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from mediant.tasks import strips
from mediant.tasks.pictures import scatter
from mediant.tasks.pictures.comics import GAP, PANELS, SIZE
from mediant.tasks.pictures.painter import PALETTE, Pixels
from mediant.tasks.pictures.render import render
from mediant.tasks.pictures.scene import Scene, draw_scene
from mediant.tasks.regions import RegionPicture

ORDINALS = strips.ORDINALS[:PANELS]
QUESTIONS = {
    "panel": ("What happens in the {k} panel?", "What happens in the {k} panel from the left?", "Describe the {k} panel."),
    "reversed": ("Reading from right to left, what happens in the {k} panel?",),
    "who": ("What does the {who} do?", "Describe the panel with the {who}."),
    "where": ("Where is the {who}?", "Where is this?"),
    "unsettled": ("What is happening in this panel?", "What happens in this panel?", "Describe this panel."),
    "in order": ("Describe all panels in order.", "Tell the story panel by panel."),
    "any order": ("Describe the panels in any order.", "Describe every panel, in whatever order you like."),
    "here": ("What is here?", "Name what is here.", "What is this?"),
    "things": ("Name all things, from small to large.",),
}
KINDS = tuple(QUESTIONS)
THINGS = ("here", "things")


@dataclass(frozen=True, eq=False)
class Lesson:
    """One picture, one question, one right answer."""

    pixels: Pixels
    question: str
    answer: str


@dataclass(frozen=True, eq=False)
class Bank:
    """Pictures drawn once, and put together to strips again and again."""

    scenes: Sequence[Scene]
    captions: Sequence[str]
    pixels: Pixels
    scattered: Sequence[RegionPicture] = ()

    @classmethod
    def drawn(
        cls, n: int, *, seed: int, size: int = SIZE, plain: float = 0.0, deserted: float = 0.0, n_scattered: int = 0
    ) -> "Bank":
        """`n` scenes of the main split, and pictures of things.

        Args:
            plain, deserted: shares of scenes on a plain colour instead of a place, and of scenes without their character: what
                is done can then be told wherever it is done, and a place whatever is done there.
        """
        random = Random(f"bank-{seed}")
        scenes, captions, drawn = [draw_scene(random) for _ in range(n)], [], []
        for scene in scenes:
            chance, ground = random.random(), random.choice(sorted(PALETTE))
            if chance < plain:
                captions.append(scene.placeless)
                drawn.append(render(scene, size, ground=ground).pixels)
            elif chance < plain + deserted:
                captions.append(scene.deserted)
                drawn.append(render(scene, size, deserted=True).pixels)
            else:
                captions.append(scene.caption)
                drawn.append(render(scene, size).pixels)
        return cls(scenes, captions, np.stack(drawn), scatter.generate(n_scattered, seed=seed + 1))

    def strip(self, random: Random, panels: int) -> tuple[list[int], Pixels]:
        """Numbers of scenes with characters and objects of their own, and these side by side with bars between them."""
        chosen: list[int] = []
        while len(chosen) < panels:
            at = random.randrange(len(self.scenes))
            new = self.scenes[at]
            if all(new.character != self.scenes[i].character and new.object != self.scenes[i].object for i in chosen):
                chosen.append(at)
        pixels = np.concatenate(self.pixels[chosen], axis=1)
        size = self.pixels.shape[1]
        for border in range(size, size * panels, size):
            pixels[:, border - GAP // 2 : border + (GAP + 1) // 2] = 255
        return chosen, pixels


def draw(random: Random, kind: str, bank: Bank, panels: int, *, alone: bool = False) -> Lesson:
    """A lesson of one kind about a strip of `panels` panels, or about a picture of things.

    Args:
        alone: the panel asked about is the only one that is not empty.
    """
    if kind in THINGS:
        picture, question = random.choice(bank.scattered), random.choice(QUESTIONS[kind])
        return Lesson(picture.pixels, question, random.choice(picture.names) if kind == "here" else " ".join(picture.names))
    chosen, pixels = bank.strip(random, panels)
    captions, question, k = [bank.captions[i] for i in chosen], random.choice(QUESTIONS[kind]), random.randrange(panels)
    if alone:
        pixels = _alone(pixels, k, panels)
    if kind == "in order":
        answer = numbered(captions)
    elif kind == "any order":
        answer = numbered(random.sample(captions, panels))
    elif kind == "reversed":
        answer = captions[panels - 1 - k]
    else:
        answer = captions[k]
    scene = bank.scenes[chosen[k]]
    who = scene.character
    if captions[k] == scene.deserted:
        # Without a character, only the object tells this panel from the others.
        who, question = scene.object, QUESTIONS["who"][1] if kind == "who" else question
    if kind == "where":
        answer = f"{'Nowhere' if captions[k] == scene.placeless else scene.where.capitalize()}."
    return Lesson(pixels, question.format(k=ORDINALS[k], who=who), answer)


def _alone(strip: Pixels, k: int, panels: int) -> Pixels:
    """The strip with empty panels around number `k`."""
    width = strip.shape[1] // panels
    kept = np.full_like(strip, 255)
    kept[:, k * width : (k + 1) * width] = strip[:, k * width : (k + 1) * width]
    return kept


def numbered(captions: Sequence[str]) -> str:
    """Captions as a list: "1. Fox ... 2. Frog ..."."""
    return " ".join(f"{i}. {caption}" for i, caption in enumerate(captions, start=1))
