"""Greater-Than (Hanna et al. 2023, arXiv 2305.00586): "The war lasted from the year 1741 to the year 17" -> 42 to 99.

A model that has understood the interval prefers every later year to every earlier one. The counterfactual puts the
start at 01, so that nothing is too early.

>>> pair = generate(1, seed=2).pairs[0]
>>> pair.clean.text.endswith(" to the year " + pair.variables["century"])
True
>>> min(pair.answers) > pair.variables["start"][0] > max(pair.counterfactual_answers)
True

Where a tokenizer has a token for every number of two digits, the answers are the numbers after and up to the start. Where
it writes one token per digit, they are the tens digits above and below the start's; the digit itself, which the next one
decides, belongs to neither.
"""

from collections.abc import Sequence
from random import Random
from typing import Literal

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Task
from mediant.tasks.choosing import SingleToken, Split, digits, draw, numbered, pick, shuffled
from mediant.tasks.frame import Frame, select_frames, shared_spans

Digits = Literal["one", "two"]
FRAMES: dict[str, tuple[Frame, ...]] = {
    "main": (
        Frame("lasted", "The {noun} lasted from the year {century}{start} to the year {again}"),
        Frame("went", "The {noun} went on from the year {century}{start} to the year {again}"),
        Frame("began", "The {noun} began in the year {century}{start} and ended in the year {again}"),
        Frame("known", "As is well known, the {noun} lasted from {century}{start} to {again}"),
    ),
    "heldout": (
        Frame("ran", "The {noun} ran from the year {century}{start} until the year {again}"),
        Frame("started", "The {noun} started in {century}{start} and was over in {again}"),
    ),
}
NOUNS: dict[str, str] = {
    "main": "war siege famine project strike rebellion reign drought dispute campaign expedition voyage plague exhibition "
    "tournament occupation alliance construction negotiation conflict",
    "heldout": "treaty mission crusade blockade experiment revolt boycott festival",
}
CENTURIES = ("11", "12", "13", "14", "15", "16", "17", "18")
_MODES: dict[str, Digits] = {"one": "one", "two": "two"}
# With one token per digit a tens digit needs others on both sides.
STARTS: dict[str, tuple[str, ...]] = {
    "one": tuple(f"{y}" for y in range(20, 90) if y % 10),
    "two": tuple(f"{y:02d}" for y in range(2, 99)),
}
SPANS = ("noun", "century", "start", "end")


def generate(
    n: int,
    *,
    seed: int = 0,
    single_token: SingleToken | None = None,
    split: Split = "main",
    mode: str | None = None,
    templates: Sequence[str] | None = None,
) -> Task:
    """`n` pairs, spread evenly over the frames.

    Args:
        single_token: decides between one-digit and two-digit answers; without it they are one-digit.
        split: "heldout" shares no frame and no noun with "main".
        mode: one-digit or two-digit answers, whatever the tokenizer.
        templates: only these frames.

    Raises:
        UnknownName: no such split, mode or template.
        TaskError: answers that are not single tokens, or fewer than `n` distinct sentences.
    """
    chosen = pick("mode", mode or _mode(single_token), _MODES)
    frames = select_frames(pick("split", split, FRAMES), templates)
    nouns, starts = NOUNS[split].split(), STARTS[chosen]
    rng = Random(seed)
    cells = shuffled(frames, rng)
    sizes = (len(nouns), len(CENTURIES), len(starts))
    drawn = draw([sizes[0] * sizes[1] * sizes[2]] * len(cells), n, rng)

    def pair(i: int, cell: int, index: int) -> Pair:
        noun, century, start = digits(index, sizes)
        return _pair(numbered("greater-than", split, i), cells[cell], nouns[noun], CENTURIES[century], starts[start], chosen)

    pairs = tuple(pair(i, cell, index) for i, (cell, index) in enumerate(drawn))
    about = f"greater-than over years, {chosen}-digit answers ({split})"
    return Task("greater-than", about, pairs, shared_spans(pairs, SPANS), "set_prob_diff")


def _mode(single_token: SingleToken | None) -> Digits:
    if single_token is None:
        return "one"
    if all(single_token(f"{y:02d}") for y in range(100)):
        return "two"
    if all(single_token(str(d)) for d in range(10)):
        return "one"
    raise TaskError("this tokenizer has neither a token for every number of two digits nor one for every digit")


def _pair(pair_id: str, frame: Frame, noun: str, century: str, start: str, mode: Digits) -> Pair:
    spans = {"noun": "noun", "century": "century", "start": "start", "again": "end"}
    fill = {"noun": noun, "century": century, "again": century}
    if mode == "two":
        later = tuple(f"{y:02d}" for y in range(int(start) + 1, 100))
        earlier = tuple(f"{y:02d}" for y in range(int(start) + 1))
    else:
        later = tuple(str(d) for d in range(int(start[0]) + 1, 10))
        earlier = tuple(str(d) for d in range(int(start[0])))
    return Pair(
        pair_id,
        clean=frame.fill({**fill, "start": start}, spans),
        counterfactual=frame.fill({**fill, "start": "01"}, spans),
        answer=later[0],
        counterfactual_answer=earlier[-1],
        template=frame.name,
        variables={"noun": noun, "century": century, "start": start},
        answers=later,
        counterfactual_answers=earlier,
    )
