"""Docstring completion (Heimersheim and Janiak 2023): which argument does the next line document?

A function's arguments are documented in the order of its definition; two lines stand there, and the third begins. The
counterfactual exchanges the third and fourth argument in the definition, so the answer becomes the other one.

>>> pair = generate(1, seed=3).pairs[0]
>>> third, fourth = pair.variables["third"], pair.variables["fourth"]
>>> f"{third}, {fourth})" in pair.clean.text and f"{fourth}, {third})" in pair.counterfactual.text
True
>>> pair.clean.text.endswith(":param") and pair.answer == " " + third
True
"""

from collections.abc import Sequence
from random import Random

from mediant.core.pair import Pair, Task
from mediant.tasks.choosing import SingleToken, Split, digits, draw, numbered, pick, shuffled, whole
from mediant.tasks.frame import Frame, select_frames, shared_spans

DEFINITION = '{a}(self, {first}, {second}, {third}, {fourth}):\n    """{b}\n\n'
LINES = "    :param {again}: {c}\n    :param {twice}: {d}\n    :param"
FRAMES: dict[str, tuple[Frame, ...]] = {
    "main": (
        Frame("def", f"def {DEFINITION}{LINES}"),
        Frame("async", f"async def {DEFINITION}{LINES}"),
        Frame("static", f"class Store:\n\n  def {DEFINITION}{LINES}"),
    ),
    "heldout": (Frame("typed", f"@cache\ndef {DEFINITION}{LINES}"),),
}
ARGUMENTS: dict[str, str] = {
    "main": "files name size page data index value count path user key list mode text line title order group image table "
    "start end type date time field source target label width",
    "heldout": "node block model color level score query token region limit format filter prefix handle",
}
NAMES = ["load", "update", "find", "build", "check", "move", "read", "send", "copy", "merge"]
NOTES = ["the first part", "what to look for", "where it begins", "a short note", "set by the caller", "as given before"]
SPANS = {"first": "A_def", "second": "B_def", "third": "C_def", "fourth": "D_def", "again": "A_doc", "twice": "B_doc"}


def generate(
    n: int,
    *,
    seed: int = 0,
    single_token: SingleToken | None = None,
    split: Split = "main",
    templates: Sequence[str] | None = None,
) -> Task:
    """`n` pairs, spread evenly over the frames.

    Args:
        split: "heldout" shares no frame and no argument with "main".

    Raises:
        UnknownName: no such split or template.
        TaskError: too few argument names are single tokens, or fewer than `n` distinct functions.
    """
    frames = select_frames(pick("split", split, FRAMES), templates)
    words = whole(ARGUMENTS[split].split(), single_token, what="argument names", at_least=6)
    rng = Random(seed)
    cells = shuffled(frames, rng)
    sizes = (len(words), len(words) - 1, len(words) - 2, len(words) - 3, len(NAMES))
    drawn = draw([sizes[0] * sizes[1] * sizes[2] * sizes[3] * sizes[4]] * len(cells), n, rng)

    def pair(i: int, cell: int, index: int) -> Pair:
        *places, name = digits(index, sizes)
        left = list(words)
        arguments = [left.pop(place) for place in places]
        return _pair(numbered("docstring", split, i), cells[cell], arguments, NAMES[name], rng.sample(NOTES, 3))

    pairs = tuple(pair(i, cell, index) for i, (cell, index) in enumerate(drawn))
    return Task(
        "docstring", f"next argument in a docstring ({split})", pairs, shared_spans(pairs, [*SPANS.values(), "end"]), "logit_diff"
    )


def _pair(pair_id: str, frame: Frame, arguments: Sequence[str], name: str, notes: Sequence[str]) -> Pair:
    first, second, third, fourth = arguments
    fill = {"a": name, "b": notes[0], "c": notes[1], "d": notes[2], "first": first, "second": second} | {
        "again": first, "twice": second,
    }  # fmt: skip
    return Pair(
        pair_id,
        clean=frame.fill({**fill, "third": third, "fourth": fourth}, SPANS),
        counterfactual=frame.fill({**fill, "third": fourth, "fourth": third}, SPANS),
        answer=f" {third}",
        counterfactual_answer=f" {fourth}",
        template=frame.name,
        variables={"first": first, "second": second, "third": third, "fourth": fourth},
    )
