"""Interchanges: a base and a source prompt, and what a causal model answers when one variable is taken from the source.

    items = interchanges("ioi", "position", 200, seed=0, single_token=lm.single_token)
    batch = encode_interchanges(lm, items)
    batch.expected                              # token that the causal model says, per item

Half of the items change the answer; in the other half the variable has one value in both prompts and others differ, so the answer
has to stay. Only together do they say that a mediator holds this variable and no other: writing a whole layer gets the first half
right and the second half wrong. (Of the variable `answer` itself there is only the first half.)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import torch
from jaxtyping import Int
from torch import Tensor

from mediant.core.causal_model import CausalModel, Values
from mediant.core.errors import TaskError, unknown
from mediant.core.pair import Pair, Prompt
from mediant.subject import Batch, Subject
from mediant.tasks.catalogue import generator
from mediant.tasks.choosing import SingleToken, Split

ANSWER = "answer"


@dataclass(frozen=True, eq=False)
class Abstraction:
    """A task's causal model, whose last variable is `answer`, and how its inputs are read off a pair's clean prompt."""

    model: CausalModel
    inputs: Callable[[Pair], Values]

    @property
    def variables(self) -> list[str]:
        """What may be looked for: everything that is computed."""
        return [name for name, above in self.model.parents.items() if above]


def _ioi_inputs(pair: Pair) -> Values:
    first, second = ("IO", "S") if pair.variables["order"] == "abba" else ("S", "IO")
    giver = "second" if first == "IO" else "first"
    return {"first": pair.variables[first], "second": pair.variables[second], "giver": giver}


def _agreement_inputs(pair: Pair) -> Values:
    forms = (pair.answer, pair.counterfactual_answer)
    one, many = forms if pair.variables["subject_number"] == "singular" else forms[::-1]
    return {
        "subject": pair.variables["subject_number"],
        "distractor": pair.variables["distractor_number"],
        "one": one,
        "many": many,
    }


ABSTRACTIONS: Mapping[str, Abstraction] = {
    "ioi": Abstraction(
        CausalModel(
            {"first": (), "second": (), "giver": (), "position": ("giver",), ANSWER: ("position", "first", "second")},
            {
                "position": lambda giver: "second" if giver == "first" else "first",
                ANSWER: lambda position, first, second: f" {first if position == 'first' else second}",
            },
        ),
        _ioi_inputs,
    ),
    "agreement": Abstraction(
        CausalModel(
            {"subject": (), "distractor": (), "one": (), "many": (), "number": ("subject",), ANSWER: ("number", "one", "many")},
            {"number": lambda subject: subject, ANSWER: lambda number, one, many: one if number == "singular" else many},
        ),
        _agreement_inputs,
    ),
}


@dataclass(frozen=True)
class Interchange:
    """Two prompts and three answers: the base's own, the source's own, and the causal model's for the exchange."""

    id: str
    base: Prompt
    source: Prompt
    own: str
    sources: str
    expected: str

    @property
    def changes(self) -> bool:
        """Whether the exchange should change the answer."""
        return self.expected != self.own


def abstraction_of(task: str) -> Abstraction:
    """The causal model of a task.

    Raises:
        UnknownName: there is none.
    """
    if task not in ABSTRACTIONS:
        raise unknown("task with a causal model", task, ABSTRACTIONS)
    return ABSTRACTIONS[task]


def interchanges(
    task: str, variable: str, n: int, *, seed: int = 0, split: Split = "main", single_token: SingleToken | None = None
) -> list[Interchange]:
    """`n` items, half of which change the answer, from distinct base prompts.

    Raises:
        UnknownName: the task has no causal model, or that has no such variable.
        TaskError: too few prompts to choose from.
    """
    abstraction = abstraction_of(task)
    if variable not in abstraction.variables:
        raise unknown(f"variable of {task}", variable, abstraction.variables)
    pairs = generator(task)(2 * n, seed=seed, split=split, single_token=single_token).pairs
    return between(abstraction, variable, pairs, n, seed=seed)


def between(abstraction: Abstraction, variable: str, pairs: Sequence[Pair], n: int, *, seed: int = 0) -> list[Interchange]:
    """`n` items whose prompts are clean prompts of pairs, of any template: spans say which tokens correspond.

    Raises:
        TaskError: too few of them.
    """
    model, rng = abstraction.model, Random(seed)
    inputs = [abstraction.inputs(pair) for pair in pairs]
    found: list[Interchange] = []
    for i, base in enumerate(pairs):
        if len(found) == n:
            return found
        # No source with another answer leaves the answer as it was.
        wanted = variable == ANSWER or len(found) % 2 == 0
        for j in rng.sample(range(len(pairs)), len(pairs)):
            expected = model.interchange(inputs[i], inputs[j], [variable])[ANSWER]
            own, sources = (model.run(inputs[k])[ANSWER] for k in (i, j))
            # A source that answers as the base does would say nothing about what else was written.
            if (expected != own) == wanted and sources != own:
                found.append(Interchange(f"{base.id}<{pairs[j].id}", base.clean, pairs[j].clean, own, sources, expected))
                break
    if len(found) < n:
        raise TaskError(
            f"{len(pairs)} prompts give {len(found)} interchanges of {variable}, {n} are asked for; offer more prompts"
        )
    return found


@dataclass(frozen=True, eq=False)
class InterchangeBatch:
    """Items as tokens; rows are items.

    Attributes:
        own, sources, expected: the answers' tokens.
    """

    items: tuple[Interchange, ...]
    base: Batch
    source: Batch
    own: Int[Tensor, " item"]
    sources: Int[Tensor, " item"]
    expected: Int[Tensor, " item"]


def encode_interchanges(subject: Subject, items: Sequence[Interchange]) -> InterchangeBatch:
    """Tokenise items.

    Raises:
        TaskError: an answer of several tokens.
    """

    def told(name: str) -> Tensor:
        ids = [subject.continuation_ids(item.base, getattr(item, name)) for item in items]
        long = [getattr(item, name) for item, one in zip(items, ids, strict=True) if len(one) != 1]
        if long:
            raise TaskError(
                f"interchanges are judged by one token, but {', '.join(map(repr, sorted(set(long))[:5]))} take several"
            )
        return torch.tensor([one[0] for one in ids], device=subject.device)

    base, source = (subject.encode([getattr(item, which) for item in items]) for which in ("base", "source"))
    return InterchangeBatch(tuple(items), base, source, told("own"), told("sources"), told("expected"))
