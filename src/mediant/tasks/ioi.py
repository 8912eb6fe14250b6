"""Indirect object identification (Wang et al. 2022, arXiv 2211.00593): who receives the object?

Two people are named, one of them again as the giver (the subject S); the sentence goes on with the
other one (the indirect object IO). ABBA names the IO first, BABA the subject.

>>> task = generate(1, templates=["store"], order="abba")
>>> pair = task.pairs[0]
>>> pair.clean.text.startswith("When " + pair.variables["IO"] + " and " + pair.variables["S"] + " went to the ")
True
>>> pair.answer == " " + pair.variables["IO"]
True

Counterfactuals: `s2_io_flip` lets the IO be the giver, so the answer becomes the subject; `abc` names
three fresh people, which destroys the cue while keeping the sentence. Under `abc` no continuation is
right, so `counterfactual_answer` stays the clean subject and the metric logit(IO) - logit(S).
Spans keep the *clean* roles on both prompts: "IO" is the same place in both, whoever stands there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from random import Random
from typing import Literal, Protocol, runtime_checkable

from mediant.core.pair import Pair, Prompt, Task
from mediant.tasks.choosing import SingleToken, Split, digits, draw, numbered, pick, shuffled, whole
from mediant.tasks.frame import Frame, select_frames, shared_spans

Counterfactual = Literal["s2_io_flip", "abc"]
Order = Literal["abba", "baba"]

FRAMES: dict[str, tuple[Frame, ...]] = {
    "main": (
        Frame("store", "When {A} and {B} went to the {place}, {S} gave a {object} to"),
        Frame("met", "After {A} and {B} met at the {place}, {S} handed a {object} to"),
        Frame("waiting", "While {A} and {B} were waiting near the {place}, {S} passed a {object} to"),
        Frame("yesterday", "Yesterday {A} and {B} walked home from the {place}, and {S} lent a {object} to"),
        Frame("arrived", "As soon as {A} and {B} arrived at the {place}, {S} showed a {object} to"),
        Frame("sunday", "On Sunday {A} and {B} cleaned the {place} together, and at noon {S} brought a {object} to"),
        Frame("goodbye", "Before {A} and {B} said goodbye at the {place}, {S} returned a {object} to"),
        Frame("lost", "Because {A} and {B} got lost on the way to the {place}, {S} sent a {object} to"),
        Frame("visit", "During a long visit to the {place}, {A} and {B} became friends, and {S} offered a {object} to"),
        Frame("birthdays", "When {A} and {B} celebrated their birthdays, {S} gave a {object} to"),
        Frame("lunch", "At lunch in the {place}, {A} and {B} started to talk, and then {S} sold a {object} to"),
        Frame("neighbours", "Since {A} and {B} lived next to the {place}, {S} often lent a {object} to"),
    ),
    "heldout": (
        Frame("rain", "It was raining over the {place}, so {A} and {B} stayed inside, where {S} threw a {object} to"),
        Frame("summer", "Every summer {A} and {B} worked at the {place}, and one day {S} presented a {object} to"),
        Frame("opened", "Long after {A} and {B} had closed the {place}, {S} mailed a {object} to"),
        Frame("alone", "There was nobody except {A} and {B} in the {place} when {S} slid a {object} over to"),
        Frame("festival", "Once {A} and {B} had reached the {place}, {S} delivered a {object} to"),
        Frame("game", "The game was over, and {A} and {B} were tired, but {S} still tossed a {object} to"),
    ),
}  # fmt: skip
NAMES: dict[str, str] = {
    "main": "Mary Jennifer Elizabeth Susan Jessica Sarah Karen Lisa Nancy Margaret Emily Anna Emma Laura Amy Rachel Helen Julia "
    "Kate Alice John James Robert Michael David Thomas Daniel Matthew Paul Andrew George Kevin Brian Jason Ryan Eric Scott "
    "Peter Simon Tom",
    "heldout": "Jane Maria Rebecca Linda Diana Carol Claire Lucy Sophie Hannah Henry Adam Martin Jack Luke Sam Alex Steve Roger "
    "Joseph",
}
PLACES: dict[str, str] = {
    "main": "store park library school hospital restaurant garden beach market museum station office hotel",
    "heldout": "farm church gym theater airport zoo bakery harbor",
}
# All begin with a consonant sound: the frames say "a".
OBJECTS: dict[str, str] = {
    "main": "book ring ball key letter gift pen hat bag map ticket phone cup camera basket box coin",
    "heldout": "plate bottle lamp blanket poster jacket towel candle spoon drum",
}
SPANS = ("IO", "S1", "S2", "place", "object", "end")
# Which role stands in which name slot of a frame.
ROLES: dict[str, Mapping[str, str]] = {
    "abba": {"A": "IO", "B": "S1", "S": "S2"},
    "baba": {"A": "S1", "B": "IO", "S": "S2"},
}
# Smallest number of names: clean ones, and three more that appear in no clean prompt of the pair.
_NAMES_NEEDED = {"s2_io_flip": 2, "abc": 5}


@runtime_checkable
class KnowsTokens(Protocol):
    """Anything that can tell whether a text is one token, such as a loaded subject."""

    def single_token(self, text: str) -> bool:
        """Whether `text` is exactly one token."""
        ...


@dataclass(frozen=True)
class _Cell:
    """All sentences of one frame and order: every choice of two names, a place and an object."""

    frame: Frame
    order: str
    couples: Sequence[tuple[str, str]]
    places: Sequence[str]
    objects: Sequence[str]

    @property
    def sizes(self) -> tuple[int, int, int]:
        slots = self.frame.slots
        return len(self.couples), len(self.places) if "place" in slots else 1, len(self.objects) if "object" in slots else 1

    @property
    def capacity(self) -> int:
        couples, places, objects = self.sizes
        return couples * places * objects

    def variables(self, index: int) -> dict[str, str]:
        couple, place, thing = digits(index, self.sizes)
        io, subject = self.couples[couple]
        chosen = {"IO": io, "S": subject, "order": self.order, "place": self.places[place], "object": self.objects[thing]}
        return {name: value for name, value in chosen.items() if name in {"IO", "S", "order", *self.frame.slots}}


def generate(
    n: int,
    *,
    seed: int = 0,
    single_token: SingleToken | None = None,
    split: Split = "main",
    counterfactual: Counterfactual = "s2_io_flip",
    templates: Sequence[str] | None = None,
    order: Order | None = None,
) -> Task:
    """`n` pairs, spread evenly over the frames and over the two orders of the names.

    Args:
        single_token: drops names, places and objects that are not one token after a space.
        split: "heldout" shares no frame, name, place or object with "main".
        templates: only these frames.
        order: only this order of the two names.

    Raises:
        UnknownName: no such split, counterfactual, template or order.
        TaskError: too few single-token words, or fewer than `n` distinct sentences.
    """
    frames = select_frames(pick("split", split, FRAMES), templates)
    needed = pick("counterfactual", counterfactual, _NAMES_NEEDED)
    if order is not None:
        pick("order", order, ROLES)
    names = whole(NAMES[split].split(), single_token, what="names", at_least=needed)
    places = whole(PLACES[split].split(), single_token, what="places", at_least=1)
    objects = whole(OBJECTS[split].split(), single_token, what="objects", at_least=1)
    rng = Random(seed)
    couples = list(permutations(names, 2))
    orders = ROLES if order is None else (order,)
    cells = [_Cell(frame, each, couples, places, objects) for frame in shuffled(frames, rng) for each in orders]
    drawn = draw([cell.capacity for cell in cells], n, rng)
    pairs = tuple(
        _pair(numbered("ioi", split, i), cells[cell], cells[cell].variables(index), names, counterfactual, rng)
        for i, (cell, index) in enumerate(drawn)
    )
    return Task("ioi", f"indirect object identification ({split}, {counterfactual})", pairs, shared_spans(pairs, SPANS))


def sample(subject_like: KnowsTokens, seed: int = 0) -> Pair:
    """One pair of the "store" frame in ABBA order, made of words the subject keeps whole."""
    return generate(1, seed=seed, single_token=subject_like.single_token, templates=("store",), order="abba").pairs[0]


def classic() -> Pair:
    """The field's own example: Mary and John, the store, and a drink."""
    cell = _Cell(FRAMES["main"][0], "abba", [("Mary", "John")], ["store"], ["drink"])
    return _pair("ioi-classic", cell, cell.variables(0), [], "s2_io_flip", Random(0))


def _pair(pair_id: str, cell: _Cell, variables: dict[str, str], names: list[str], counterfactual: str, rng: Random) -> Pair:
    io, subject = variables["IO"], variables["S"]
    people = {"IO": io, "S1": subject, "S2": subject}
    return Pair(
        pair_id,
        clean=_prompt(cell, variables, people),
        counterfactual=_prompt(cell, variables, _replaced(people, names, counterfactual, rng)),
        answer=f" {io}",
        counterfactual_answer=f" {subject}",
        template=cell.frame.name,
        variables=variables,
    )


def _prompt(cell: _Cell, variables: dict[str, str], people: Mapping[str, str]) -> Prompt:
    roles = ROLES[cell.order]
    fillers = {**variables, **{slot: people[role] for slot, role in roles.items()}}
    return cell.frame.fill(fillers, {**roles, "place": "place", "object": "object"})


def _replaced(people: Mapping[str, str], names: list[str], counterfactual: str, rng: Random) -> dict[str, str]:
    if counterfactual == "s2_io_flip":
        return {**people, "S2": people["IO"]}
    fresh = rng.sample([name for name in names if name not in people.values()], 3)
    return dict(zip(people, fresh, strict=True))
