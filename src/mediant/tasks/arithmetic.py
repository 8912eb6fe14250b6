"""Sums and differences of single digits with a single-digit result: "3 plus 4 equals" -> " 7".

>>> task = generate(1, templates=["equals"], shots=0)
>>> v = task.pairs[0].variables
>>> task.pairs[0].clean.text == f"{v['a']} {v['op']} {v['b']} equals", task.pairs[0].answer == f" {v['result']}"
(True, True)

The counterfactual changes one operand, and with it the result. The same solved examples (`shots`) stand
before both prompts; none of them has the result of either, so copying an example never helps.

A tokenizer that splits " 7" into a space and a digit cannot give the answer in one token. For it,
`leading_space=False` uses compact frames such as "3+4=" -> "7".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Prompt, Task
from mediant.tasks.choosing import SingleToken, Split, draw, numbered, pick, require_whole, shuffled
from mediant.tasks.frame import Frame, select_frames, shared_spans

Operator = Literal["plus", "minus"]


@dataclass(frozen=True)
class SumFrame(Frame):
    """A frame and how it writes the two operators."""

    plus: str = "plus"
    minus: str = "minus"


SPACED: dict[str, tuple[SumFrame, ...]] = {
    "main": (
        SumFrame("equals", "{a} {op} {b} equals"),
        SumFrame("signs", "{a} {op} {b} =", "+", "-"),
        SumFrame("question", "Q: What is {a} {op} {b}? A:"),
        SumFrame("result", "The result of {a} {op} {b} is"),
        SumFrame("lesson", "In today's lesson we learned that {a} {op} {b} makes"),
    ),
    "heldout": (
        SumFrame("compute", "If you compute {a} {op} {b} you get"),
        SumFrame("exercise", "Exercise: {a} {op} {b}. Solution:"),
    ),
}
# The sign at the end is a slot of its own: "end" would otherwise be the whole unspaced sum.
COMPACT: dict[str, tuple[SumFrame, ...]] = {
    "main": (
        SumFrame("bare", "{a}{op}{b}{end}", "+", "-"),
        SumFrame("variable", "x={a}{op}{b}{end}", "+", "-"),
        SumFrame("math", "math:{a}{op}{b}{end}", "+", "-"),
    ),
    "heldout": (
        SumFrame("calc", "calc:{a}{op}{b}{end}", "+", "-"),
        SumFrame("parentheses", "({a}{op}{b}){end}", "+", "-"),
    ),
}
SPANS = ("a", "op", "b", "end")
MAX_SHOTS = 4
_OPERATORS: tuple[Operator, ...] = ("plus", "minus")


@dataclass(frozen=True)
class Sum:
    """`a` plus or minus `b`."""

    a: int
    op: Operator
    b: int

    @property
    def result(self) -> int:
        """The number a correct continuation starts with."""
        return self.a + self.b if self.op == "plus" else self.a - self.b

    @property
    def split(self) -> Split:
        """Sums whose larger operand is 4 or 8 are held out, for both operators and either order."""
        return "heldout" if max(self.a, self.b) % 4 == 0 else "main"


def sums(op: Operator, split: Split) -> list[Sum]:
    """All sums of this operator and split with operands and results from 1 to 9."""
    every = [Sum(a, op, b) for a in range(1, 10) for b in range(1, 10)]
    return [each for each in every if 1 <= each.result <= 9 and each.split == split]


def generate(
    n: int,
    *,
    seed: int = 0,
    single_token: SingleToken | None = None,
    split: Split = "main",
    leading_space: bool | None = None,
    shots: int = 2,
    templates: Sequence[str] | None = None,
) -> Task:
    """`n` pairs, spread evenly over the frames and operators; no frame asks the same sum twice.

    Args:
        single_token: checked for all ten digits, written as the frames write them.
        split: "heldout" shares no frame and no sum with "main", be it as question or as example.
        leading_space: whether the answer is " 7" (frames in words and spaces) or "7" (compact frames); by default
            what the tokenizer keeps whole.
        shots: solved examples before each prompt, at most `MAX_SHOTS`.
        templates: only these frames.

    Raises:
        UnknownName: no such split or template.
        TaskError: digits of several tokens, `shots` out of range, or fewer than `n` distinct sums.
    """
    if leading_space is None:
        leading_space = single_token is None or single_token(" 7")
    frames = select_frames(pick("split", split, SPACED if leading_space else COMPACT), templates)
    if not 0 <= shots <= MAX_SHOTS:
        raise TaskError(f"expected shots from 0 to {MAX_SHOTS}, got {shots}")
    space = " " if leading_space else ""
    other = "False" if leading_space else "True"
    require_whole([f"{space}{digit}" for digit in range(10)], single_token, mend=f"try leading_space={other}")
    rng = Random(seed)
    cells = [(frame, op) for frame in shuffled(frames, rng) for op in _OPERATORS]
    pools = {op: sums(op, split) for op in _OPERATORS}
    drawn = draw([len(pools[op]) for _, op in cells], n, rng)

    def pair(i: int, cell: int, index: int) -> Pair:
        frame, op = cells[cell]
        clean = pools[op][index]
        changed = rng.choice([each for each in pools[op] if (each.a == clean.a) != (each.b == clean.b)])
        examples = _examples(pools, {clean.result, changed.result}, shots, rng)
        before = "".join(f"{_prompt(frame, each).text}{space}{each.result}\n" for each in examples)
        return _pair(numbered("arithmetic", split, i), frame, (clean, changed), before, space)

    pairs = tuple(pair(i, cell, index) for i, (cell, index) in enumerate(drawn))
    return Task("arithmetic", f"single-digit sums and differences ({split}, {shots} shots)", pairs, shared_spans(pairs, SPANS))


def _examples(pools: dict[Operator, list[Sum]], taken: set[int], shots: int, rng: Random) -> list[Sum]:
    """Distinct sums whose results are not `taken`, both operators in turn."""
    mixed = {op: shuffled((each for each in pools[op] if each.result not in taken), rng) for op in _OPERATORS}
    first = rng.randrange(2)
    return [mixed[_OPERATORS[(first + shot) % 2]].pop() for shot in range(shots)]


def _prompt(frame: SumFrame, asked: Sum, before: str = "") -> Prompt:
    sign = frame.plus if asked.op == "plus" else frame.minus
    fillers = {"a": str(asked.a), "op": sign, "b": str(asked.b), "end": "="}
    return frame.fill(fillers, {name: name for name in SPANS}, before=before)


def _pair(pair_id: str, frame: SumFrame, asked: tuple[Sum, Sum], before: str, space: str) -> Pair:
    clean, changed = asked
    operand = "a" if clean.a != changed.a else "b"
    return Pair(
        pair_id,
        clean=_prompt(frame, clean, before),
        counterfactual=_prompt(frame, changed, before),
        answer=f"{space}{clean.result}",
        counterfactual_answer=f"{space}{changed.result}",
        template=frame.name,
        variables={
            "a": str(clean.a),
            "op": clean.op,
            "b": str(clean.b),
            "result": str(clean.result),
            "changed": operand,
            "changed_to": str(changed.a if operand == "a" else changed.b),
        },
    )
