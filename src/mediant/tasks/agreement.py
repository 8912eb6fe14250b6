"""Subject-verb agreement across a distractor: "The keys near the cabinet" -> " are", not " is".

The verb agrees with the first noun although another noun, often of the other number, stands in between.
The counterfactual changes the number of the subject and nothing else.

>>> pair = generate(1, templates=["near"], distractor="opposite").pairs[0]
>>> pair.clean.text == f"The {pair.variables['subject']} near the {pair.variables['distractor']}"
True
>>> pair.variables["subject_number"] != pair.variables["distractor_number"]
True

Where the distractor ends the sentence, the spans "distractor" and "end" coincide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Task
from mediant.tasks.choosing import SingleToken, Split, digits, draw, numbered, pick, shuffled, whole
from mediant.tasks.frame import Frame, select_frames, shared_spans

Distractor = Literal["same", "opposite"]
NUMBERS = ("singular", "plural")


@dataclass(frozen=True)
class VerbFrame(Frame):
    """A frame and the verb that continues it, for a singular and for a plural subject."""

    verbs: tuple[str, str] = ("is", "are")


FRAMES: dict[str, tuple[VerbFrame, ...]] = {
    "main": (
        VerbFrame("near", "The {subject} near the {distractor}"),
        VerbFrame("behind", "The {subject} behind the {distractor}", ("was", "were")),
        VerbFrame("beside", "It is true that the {subject} beside the {distractor}", ("has", "have")),
        VerbFrame("yesterday", "Yesterday the {subject} in front of the {distractor}", ("was", "were")),
        VerbFrame("think", "We think that the {subject} next to the {distractor}"),
        VerbFrame("picture", "In this picture, the {subject} across from the {distractor}"),
        VerbFrame("clearly", "The {subject} close to the {distractor} clearly", ("was", "were")),
        VerbFrame("never", "The {subject} opposite the {distractor} never", ("was", "were")),
    ),
    "heldout": (
        VerbFrame("far", "The {subject} far from the {distractor}"),
        VerbFrame("morning", "This morning the {subject} around the {distractor}", ("was", "were")),
        VerbFrame("told", "Somebody told me that the {subject} by the {distractor}", ("has", "have")),
        VerbFrame("still", "The {subject} to the left of the {distractor} still"),
    ),
}
SUBJECTS: dict[str, str] = {
    "main": "key/keys book/books car/cars dog/dogs cat/cats boy/boys girl/girls picture/pictures letter/letters chair/chairs "
    "student/students friend/friends bird/birds horse/horses phone/phones bottle/bottles bag/bags toy/toys flower/flowers "
    "bike/bikes",
    "heldout": "guard/guards guest/guests lamp/lamps cup/cups boat/boats cow/cows sign/signs plate/plates player/players "
    "driver/drivers",
}
DISTRACTORS: dict[str, str] = {
    "main": "cabinet/cabinets house/houses tree/trees door/doors table/tables window/windows bridge/bridges river/rivers "
    "shop/shops road/roads wall/walls school/schools tower/towers bench/benches fence/fences gate/gates lake/lakes "
    "statue/statues church/churches truck/trucks",
    "heldout": "desk/desks tent/tents hill/hills museum/museums building/buildings train/trains field/fields garden/gardens "
    "hotel/hotels rock/rocks",
}
SPANS = ("subject", "distractor", "end")


def generate(
    n: int,
    *,
    seed: int = 0,
    single_token: SingleToken | None = None,
    split: Split = "main",
    distractor: Distractor | None = None,
    templates: Sequence[str] | None = None,
) -> Task:
    """`n` pairs, spread evenly over the frames and over both nouns' numbers.

    Args:
        single_token: drops nouns whose singular or plural, and frames whose verb forms, are not one token after a space.
        split: "heldout" shares no frame and no noun with "main".
        distractor: only distractors with the clean subject's number, or only with the opposite one.
        templates: only these frames.

    Raises:
        UnknownName: no such split, distractor or template.
        TaskError: too few single-token words, or fewer than `n` distinct sentences.
    """
    frames = _answerable(select_frames(pick("split", split, FRAMES), templates), single_token)
    subjects = whole(_nouns(SUBJECTS[split]), single_token, what="subjects", at_least=1)
    distractors = whole(_nouns(DISTRACTORS[split]), single_token, what="distractors", at_least=1)
    rng = Random(seed)
    numbers = _numbers(distractor)
    cells = [(frame, number, other) for frame in shuffled(frames, rng) for number, other in numbers]
    drawn = draw([len(subjects) * len(distractors)] * len(cells), n, rng)

    def pair(i: int, cell: int, index: int) -> Pair:
        subject, near = digits(index, (len(subjects), len(distractors)))
        frame, number, other = cells[cell]
        return _pair(numbered("agreement", split, i), frame, subjects[subject], number, distractors[near][other], other)

    pairs = tuple(pair(i, cell, index) for i, (cell, index) in enumerate(drawn))
    return Task("agreement", f"subject-verb agreement across a distractor ({split})", pairs, shared_spans(pairs, SPANS))


def _nouns(words: str) -> list[tuple[str, str]]:
    return [(singular, plural) for singular, plural in (word.split("/") for word in words.split())]


def _numbers(distractor: str | None) -> list[tuple[int, int]]:
    every = [(subject, other) for subject in (0, 1) for other in (0, 1)]
    if distractor is None:
        return every
    same = pick("distractor", distractor, {"same": True, "opposite": False})
    return [(subject, other) for subject, other in every if (subject == other) is same]


def _answerable(frames: list[VerbFrame], single_token: SingleToken | None) -> list[VerbFrame]:
    kept = [frame for frame in frames if single_token is None or all(single_token(f" {verb}") for verb in frame.verbs)]
    if not kept:
        verbs = sorted({verb for frame in frames for verb in frame.verbs})
        raise TaskError(
            f"0 of {len(frames)} templates have verbs ({', '.join(verbs)}) that are single tokens for this tokenizer, "
            "need at least 1; choose a subject with an English tokenizer"
        )
    return kept


def _pair(pair_id: str, frame: VerbFrame, forms: tuple[str, str], number: int, distractor: str, other: int) -> Pair:
    spans = {"subject": "subject", "distractor": "distractor"}
    return Pair(
        pair_id,
        clean=frame.fill({"subject": forms[number], "distractor": distractor}, spans),
        counterfactual=frame.fill({"subject": forms[1 - number], "distractor": distractor}, spans),
        answer=f" {frame.verbs[number]}",
        counterfactual_answer=f" {frame.verbs[1 - number]}",
        template=frame.name,
        variables={
            "subject": forms[number],
            "subject_number": NUMBERS[number],
            "distractor": distractor,
            "distractor_number": NUMBERS[other],
        },
    )
