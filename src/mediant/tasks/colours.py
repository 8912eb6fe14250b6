"""Multiple choice by copying a colour: which letter stands before the colour of the thing asked about?

>>> pair = generate(1, templates=["plain"]).pairs[0]
>>> pair.clean.text.splitlines()[-1], pair.answer in (" A", " B")
('Answer:', True)

To answer, a model must find the colour of the object asked about, find that colour among the choices,
and name the letter of the choice. The counterfactual swaps the two choices, so that only the last step
gives another letter. The span "object" is the mention, in the statement, of the thing asked about;
"asked" is its mention in the question.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from random import Random

from mediant.core.pair import Pair, Prompt, Task
from mediant.tasks.choosing import SingleToken, Split, digits, draw, numbered, pick, require_whole, shuffled, whole
from mediant.tasks.frame import Frame, select_frames, shared_spans

FRAMES: dict[str, tuple[Frame, ...]] = {
    "main": (
        Frame(
            "plain",
            "The {first} is {colour1}. The {second} is {colour2}. What colour is the {asked}?\n"
            "A. {choice_A}\nB. {choice_B}\nAnswer:",
        ),
        Frame(
            "room",
            "The room holds two things: a {colour1} {first} and a {colour2} {second}. Which colour does the {asked} have?\n"
            "A. {choice_A}\nB. {choice_B}\nAnswer:",
        ),
        Frame(
            "painted",
            "Last week we painted the {first} {colour1} and the {second} {colour2}. What is the colour of the {asked}?\n"
            "A. {choice_A}\nB. {choice_B}\nAnswer:",
        ),
        Frame(
            "choose",
            "A {colour1} {first} stands next to a {colour2} {second}. Choose the colour of the {asked}.\n"
            "A. {choice_A}\nB. {choice_B}\nAnswer:",
        ),
    ),
    "heldout": (
        Frame(
            "left",
            "On the left is the {first}, which is {colour1}; on the right is the {second}, which is {colour2}. "
            "The colour of the {asked} is\nA) {choice_A}\nB) {choice_B}\nCorrect option:",
        ),
        Frame(
            "shelf",
            "My {first} is all {colour1}, but my {second} is all {colour2}. So, which colour is my {asked}?\n"
            "A) {choice_A}\nB) {choice_B}\nCorrect option:",
        ),
    ),
}
# Both lists begin with consonant sounds: some frames say "a".
OBJECTS: dict[str, str] = {
    "main": "ball box hat cup car book chair bag shirt lamp door pen plate boat phone coat ring table bike vase",
    "heldout": "truck key kite wall bed clock roof bus tent scarf",
}
COLOURS: dict[str, str] = {"main": "red blue green yellow black white brown", "heldout": "pink gray purple silver gold"}
SPANS = ("object", "asked", "choice_A", "choice_B", "end")
_LETTERS = "AB"


def generate(
    n: int,
    *,
    seed: int = 0,
    single_token: SingleToken | None = None,
    split: Split = "main",
    templates: Sequence[str] | None = None,
) -> Task:
    """`n` pairs, spread evenly over the frames, the place of the object asked about and the right letter.

    Args:
        single_token: drops objects and colours that are not one token after a space.
        split: "heldout" shares no frame, object or colour with "main".
        templates: only these frames.

    Raises:
        UnknownName: no such split or template.
        TaskError: too few single-token words, or fewer than `n` distinct questions.
    """
    frames = select_frames(pick("split", split, FRAMES), templates)
    require_whole((" A", " B"), single_token, mend="this task needs a tokenizer that keeps a letter and its space together")
    objects = list(permutations(whole(OBJECTS[split].split(), single_token, what="objects", at_least=2), 2))
    colours = list(permutations(whole(COLOURS[split].split(), single_token, what="colours", at_least=2), 2))
    rng = Random(seed)
    cells = [(frame, asked, letter) for frame in shuffled(frames, rng) for asked in (0, 1) for letter in (0, 1)]

    def pair(i: int, cell: int, index: int) -> Pair:
        frame, asked, letter = cells[cell]
        things, paints = digits(index, (len(objects), len(colours)))
        return _pair(numbered("colours", split, i), frame, _Question(objects[things], colours[paints], asked, letter))

    drawn = draw([len(objects) * len(colours)] * len(cells), n, rng)
    pairs = tuple(pair(i, cell, index) for i, (cell, index) in enumerate(drawn))
    return Task("colours", f"multiple-choice copying of a colour ({split})", pairs, shared_spans(pairs, SPANS))


@dataclass(frozen=True)
class _Question:
    """Two objects with their colours, which of them is asked about, and which letter is right (0 is A)."""

    objects: tuple[str, str]
    colours: tuple[str, str]
    asked: int
    letter: int

    @property
    def variables(self) -> dict[str, str]:
        return {
            "object": self.objects[self.asked],
            "colour": self.colours[self.asked],
            "other_object": self.objects[1 - self.asked],
            "other_colour": self.colours[1 - self.asked],
            "asked_position": ("first", "second")[self.asked],
            "letter": _LETTERS[self.letter],
        }

    def ask(self, frame: Frame, letter: int) -> Prompt:
        right, wrong = self.colours[self.asked], self.colours[1 - self.asked]
        choices = (right, wrong) if letter == 0 else (wrong, right)
        fillers = {
            "first": self.objects[0], "second": self.objects[1], "colour1": self.colours[0], "colour2": self.colours[1],
            "asked": self.objects[self.asked], "choice_A": choices[0], "choice_B": choices[1],
        }  # fmt: skip
        mention = ("first", "second")[self.asked]
        return frame.fill(fillers, {mention: "object", "asked": "asked", "choice_A": "choice_A", "choice_B": "choice_B"})


def _pair(pair_id: str, frame: Frame, question: _Question) -> Pair:
    return Pair(
        pair_id,
        clean=question.ask(frame, question.letter),
        counterfactual=question.ask(frame, 1 - question.letter),
        answer=f" {_LETTERS[question.letter]}",
        counterfactual_answer=f" {_LETTERS[1 - question.letter]}",
        template=frame.name,
        variables=question.variables,
    )
