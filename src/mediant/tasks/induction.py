"""Induction (Olsson et al. 2022): a word comes again, and what followed it comes again.

The counterfactual exchanges the word after the first mention with a later one, so the answer becomes that one.

>>> pair = generate(1, seed=1).pairs[0]
>>> cue, following = pair.variables["cue"], pair.variables["following"]
>>> f"{cue} {following} " in pair.clean.text and pair.clean.text.endswith(f" {cue}")
True
>>> pair.answer == f" {following}" and f"{cue} {pair.variables['other']} " in pair.counterfactual.text
True
"""

from collections.abc import Sequence
from random import Random

from mediant.core.pair import Pair, Task
from mediant.tasks.choosing import SingleToken, Split, digits, draw, numbered, pick, shuffled, whole
from mediant.tasks.frame import Frame, select_frames, shared_spans

FRAMES: dict[str, tuple[Frame, ...]] = {
    "main": (
        Frame("early", "Words: {a} {cue} {following} {b} {other} {c} Again: {before} {again}"),
        Frame("middle", "Words: {b} {c} {a} {cue} {following} {other} Again: {before} {again}"),
        Frame("late", "Words: {b} {a} {cue} {following} {c} {other} {d} Again: {before} {again}"),
    ),
    "heldout": (Frame("list", "List: {a} {cue} {following} {b} {other} {c} {d} Once more: {before} {again}"),),
}
WORDS: dict[str, str] = {
    "main": "apple river chair moon table garden stone paper bridge window music horse forest candle winter market island mirror "
    "bottle doctor engine kitchen shadow village",
    "heldout": "silver ocean pencil summer planet castle summit flower valley hammer",
}
SPANS = ("cue", "following", "other", "end")


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
        split: "heldout" shares no frame and no word with "main".

    Raises:
        UnknownName: no such split or template.
        TaskError: too few words are single tokens, or fewer than `n` distinct lists.
    """
    frames = select_frames(pick("split", split, FRAMES), templates)
    words = whole(WORDS[split].split(), single_token, what="words", at_least=8)
    rng = Random(seed)
    cells = shuffled(frames, rng)
    sizes = (len(words), len(words) - 1, len(words) - 2)
    drawn = draw([sizes[0] * sizes[1] * sizes[2]] * len(cells), n, rng)

    def pair(i: int, cell: int, index: int) -> Pair:
        left = list(words)
        chosen = [left.pop(place) for place in digits(index, sizes)]
        return _pair(numbered("induction", split, i), cells[cell], chosen, rng.sample(left, 4))

    pairs = tuple(pair(i, cell, index) for i, (cell, index) in enumerate(drawn))
    return Task("induction", f"what followed a word before ({split})", pairs, shared_spans(pairs, SPANS), "logit_diff")


def _pair(pair_id: str, frame: Frame, chosen: Sequence[str], rest: Sequence[str]) -> Pair:
    cue, following, other = chosen
    fill = {"cue": cue, "again": cue, "before": rest[0], **dict(zip("abcd", rest, strict=True))}
    spans = {"cue": "cue", "following": "following", "other": "other", "again": "end"}
    return Pair(
        pair_id,
        clean=frame.fill({**fill, "following": following, "other": other}, spans),
        counterfactual=frame.fill({**fill, "following": other, "other": following}, spans),
        answer=f" {following}",
        counterfactual_answer=f" {other}",
        template=frame.name,
        variables={"cue": cue, "following": following, "other": other},
    )
