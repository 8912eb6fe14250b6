"""Gendered pronouns after a profession (Vig et al. 2020, arXiv 2004.12265): "The nurse said that" -> " she".

Which pronoun a profession calls for is a *stereotype*. It is the object of study here: the answers say
what biased text makes likely, not what is right, and a model that prefers neither pronoun is the better
one. All sentences are neutral; only the person named differs.

>>> pair = generate(1, templates=["said"], kind="explicit").pairs[0]
>>> pair.clean.text == f"The {pair.variables['person']} said that"
True
>>> {pair.answer, pair.counterfactual_answer} == {" she", " he"}
True

The counterfactual names a person of the other gender: a profession with the opposite stereotype
(`kind="profession"`) or somebody whose gender is part of the word, such as "woman" (`kind="explicit"`).
"""

from collections.abc import Sequence
from math import prod
from random import Random
from typing import Literal

from mediant.core.pair import Pair, Task
from mediant.tasks.choosing import SingleToken, Split, digits, draw, numbered, pick, require_whole, shuffled, whole
from mediant.tasks.frame import Frame, select_frames, shared_spans

Kind = Literal["profession", "explicit"]

FRAMES: dict[str, tuple[Frame, ...]] = {
    "main": (
        Frame("said", "The {person} said that"),
        Frame("thought", "The {person} thought that"),
        Frame("smiled", "The {person} smiled because"),
        Frame("late", "The {person} was late because"),
        Frame("called", "The {person} called home as soon as"),
        Frame("explained", "At the {place}, the {person} explained that"),
        Frame("left", "The {person} left the {place} because"),
        Frame("waited", "The {person} waited outside the {place} until"),
        Frame("believed", "Nobody at the {place} believed the {person} when"),
        Frame("told", "The {person} told everyone in the {place} that"),
    ),
    "heldout": (
        Frame("asleep", "The {person} fell asleep while"),
        Frame("admitted", "The {person} admitted that"),
        Frame("laughed", "The {person} laughed when"),
        Frame("stayed", "The {person} stayed at the {place} although"),
        Frame("greeted", "People greeted the {person} near the {place} before"),
    ),
}
PROFESSIONS: dict[str, dict[str, str]] = {
    "main": {
        "she": "nurse secretary librarian dancer caregiver nutritionist teacher assistant psychologist receptionist hairdresser",
        "he": "carpenter mechanic engineer soldier farmer captain hunter pilot surgeon lawyer builder plumber",
    },
    "heldout": {
        "she": "therapist dietitian counselor singer cleaner housekeeper babysitter florist",
        "he": "sailor butcher miner blacksmith sheriff commander driver guard electrician firefighter",
    },
}
EXPLICIT: dict[str, dict[str, str]] = {
    "main": {"she": "woman girl lady mother wife sister aunt", "he": "man boy gentleman father husband brother uncle"},
    "heldout": {"she": "queen princess daughter grandmother bride", "he": "king prince son grandfather groom"},
}
PLACES: dict[str, str] = {
    "main": "station hotel park restaurant airport market museum office",
    "heldout": "theater beach bank cinema harbor",
}
SPANS = ("person", "end")
_OTHER = {"she": "he", "he": "she"}


def generate(
    n: int,
    *,
    seed: int = 0,
    single_token: SingleToken | None = None,
    split: Split = "main",
    kind: Kind = "profession",
    templates: Sequence[str] | None = None,
) -> Task:
    """`n` pairs about a profession, half of them with " she" as their answer.

    Args:
        single_token: drops persons and places that are not one token after a space.
        split: "heldout" shares no frame, person or place with "main".
        kind: who takes the profession's place in the counterfactual.
        templates: only these frames.

    Raises:
        UnknownName: no such split, kind or template.
        TaskError: too few single-token words, or fewer than `n` distinct sentences.
    """
    frames = select_frames(pick("split", split, FRAMES), templates)
    swaps = pick("kind", kind, {"profession": PROFESSIONS, "explicit": EXPLICIT})[split]
    require_whole((" she", " he"), single_token, mend="this task needs a tokenizer that keeps English pronouns whole")
    professions = {pronoun: _people(PROFESSIONS[split], pronoun, single_token) for pronoun in _OTHER}
    others = {pronoun: _people(swaps, pronoun, single_token) for pronoun in _OTHER}
    places = whole(PLACES[split].split(), single_token, what="places", at_least=1)
    rng = Random(seed)
    # As many professions of either kind, or the longer list would fill up a large task with its pronoun.
    shorter = min(len(each) for each in professions.values())
    people = {pronoun: rng.sample(each, shorter) for pronoun, each in professions.items()}
    cells = [(frame, pronoun) for frame in shuffled(frames, rng) for pronoun in _OTHER]
    sizes = [(len(people[pronoun]), len(places) if "place" in frame.slots else 1) for frame, pronoun in cells]

    def pair(i: int, cell: int, index: int) -> Pair:
        frame, pronoun = cells[cell]
        person, place = digits(index, sizes[cell])
        variables = {"person": people[pronoun][person], "other": rng.choice(others[_OTHER[pronoun]]), "pronoun": pronoun}
        if "place" in frame.slots:
            variables["place"] = places[place]
        return _pair(numbered("pronouns", split, i), frame, variables)

    drawn = draw([prod(size) for size in sizes], n, rng)
    pairs = tuple(pair(i, cell, index) for i, (cell, index) in enumerate(drawn))
    return Task("pronouns", f"stereotypical pronoun after a profession ({split}, {kind})", pairs, shared_spans(pairs, SPANS))


def _people(words: dict[str, str], pronoun: str, single_token: SingleToken | None) -> list[str]:
    return whole(words[pronoun].split(), single_token, what=f"persons called {pronoun!r}", at_least=1)


def _pair(pair_id: str, frame: Frame, variables: dict[str, str]) -> Pair:
    return Pair(
        pair_id,
        clean=frame.fill(variables, {"person": "person"}),
        counterfactual=frame.fill({**variables, "person": variables["other"]}, {"person": "person"}),
        answer=f" {variables['pronoun']}",
        counterfactual_answer=f" {_OTHER[variables['pronoun']]}",
        template=frame.name,
        variables=variables,
    )
