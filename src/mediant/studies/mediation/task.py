"""The study's data: pairs to search on, to choose a size on and to judge on, and pairs that ask what else was handed on.

`asked` pairs differ in one variable (who is the giver, singular or plural). `other` pairs differ in everything but it: same
sentence frame, same value of the variable, other words and so another answer. A mediator of the variable alone, exchanged between
them, changes nothing. `texts` are unrelated sentences, two and two of one length.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from random import Random

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Prompt
from mediant.core.span import RESERVED
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.data import Data
from mediant.subject import Subject
from mediant.subject.vision import VisionSubject
from mediant.tasks import catalogue, pairs, panels, plain_text

# The variable with two values in which a task's clean and counterfactual prompts differ.
VARIABLES = {"ioi": "order", "agreement": "subject_number", "pronouns": "pronoun", "panels": "asked"}


def load(config: Config, subject: Subject) -> Data[Pair]:
    """Sample or read the pairs.

    Raises:
        UnknownName, TaskError: no such task, a file that cannot be used, or too few pairs.
    """
    chosen = config.task or ("panels" if isinstance(subject, VisionSubject) else "ioi")
    own_file = chosen.endswith((".jsonl", ".json")) or "/" in chosen
    needed = config.n_discovery + config.n_validation + config.n
    if own_file:
        task = pairs.read(chosen)
        mixed, heldout = list(task.pairs), tuple[Pair, ...]()
        Random(config.seed).shuffle(mixed)
        if len(mixed) < needed:
            raise TaskError(
                f"{chosen} holds {len(mixed)} pairs; this study wants n_discovery + n_validation + n = {needed}: choose "
                "smaller ones"
            )
    else:
        generate = catalogue.generator(chosen)
        task = generate(needed + config.n, seed=config.seed, single_token=subject.single_token)
        mixed = list(task.pairs)
        Random(config.seed).shuffle(mixed)
        heldout = generate(config.n, seed=config.seed, single_token=subject.single_token, split="heldout").pairs
    variable = config.variable or ("" if own_file else VARIABLES.get(chosen, ""))
    values = _values(mixed, variable)
    first, second = config.n_discovery, config.n_discovery + config.n_validation
    other = _other(subject, mixed[second:], variable, config.n, config.seed) if values else []
    missing = _missing(chosen, heldout, other, variable, values)
    discovery = _alike(mixed[:first])
    spans = _spans(subject, discovery)
    return Data(
        task.name, task.description, task.metric, discovery, _alike(mixed[first:second]), _alike(mixed[second:needed]),
        _alike(heldout), _alike(other), _texts(subject, config, spans), spans, variable if values else "", values, missing,
    )  # fmt: skip


def _missing(task: str, heldout: Sequence[Pair], other: Sequence[Pair], variable: str, values: Sequence[str]) -> dict[str, str]:
    found = {}
    if not heldout:
        found["heldout"] = "a file of pairs has no wording held out; generated tasks do"
    if not values:
        found["variable"] = (
            f"variable {variable!r} does not have two values in these pairs"
            if variable
            else f"no variable with two values is known of {task!r}; name one with --variable"
        )
        found["other"] = found["variable"]
    elif not other:
        found["other"] = "no two prompts of one frame and length agree in the variable and differ in the answer"
    return found


def _values(items: Sequence[Pair], variable: str) -> tuple[str, ...]:
    found = sorted({str(pair.variables[variable]) for pair in items if variable in pair.variables})
    return tuple(found) if len(found) == 2 and all(variable in pair.variables for pair in items) else ()


def _other(subject: Subject, items: Sequence[Pair], variable: str, n: int, seed: int) -> list[Pair]:
    """Pairs of clean prompts that agree in the variable and in every token's place, and differ in the answer."""
    groups: dict[object, list[Pair]] = defaultdict(list)
    for pair in items:
        tokens = subject.tokenize(pair.clean)
        key = pair.template, pair.variables[variable], len(tokens.ids), tuple(sorted(tokens.spans.items()))
        groups[key].append(pair)
    found, random = list[Pair](), Random(seed)
    for same in groups.values():
        # Round the circle, so that each prompt is a base once and a source once.
        order = random.sample(same, len(same))
        for one, two in pairwise([*order, order[0]]):
            if not {one.answer, one.counterfactual_answer} & {two.answer, two.counterfactual_answer}:
                found.append(
                    Pair(f"{one.id}<{two.id}", one.clean, two.clean, one.answer, two.answer, one.template, one.variables)
                )
    return random.sample(found, min(n, len(found)))


def _spans(subject: Subject, items: Sequence[Pair]) -> tuple[str, ...]:
    """Spans that every prompt names, in the first one's order, and `last`, which a span of the last token repeats."""
    tokens = [subject.tokenize(pair.clean) for pair in items]
    shared = [name for name in items[0].clean.spans if all(name in each.spans for each in tokens)]
    shared.sort(key=lambda name: tokens[0].spans[name])
    ends = {name for name in shared if all(each.spans[name] == (len(each.ids) - 1,) for each in tokens)}
    return (*(name for name in shared if name not in ends), "last")


def _texts(subject: Subject, config: Config, spans: Sequence[str]) -> tuple[Pair, ...]:
    """Unrelated sentences in pairs of one length, with the task's spans at words drawn at random."""
    if isinstance(subject, VisionSubject):
        return tuple(panels.unrelated(config.n_texts, seed=config.seed, spans=spans))
    by_length: dict[int, list[str]] = defaultdict(list)
    every = plain_text.sentences(min(plain_text.count(), 4 * config.n_texts), seed=config.seed)
    for text in every:
        by_length[len(subject.tokenize(text).ids)].append(text)
    random, found = Random(config.seed), list[Pair]()
    for same in by_length.values():
        for one, two in zip(same[::2], same[1::2], strict=False):
            words = [(at, at + len(word)) for at, word in _words(one)]
            drawn = {name: random.choice(words) for name in spans if name not in RESERVED}
            found.append(Pair(f"text-{len(found):04d}", Prompt(one, drawn), Prompt(two), " the", " a"))
    if len(found) < config.n_texts:
        raise TaskError(f"plain sentences give {len(found)} pairs of one length, n_texts = {config.n_texts} are asked for")
    return tuple(random.sample(found, config.n_texts))


def _words(text: str) -> list[tuple[int, str]]:
    places, at = [], 0
    for word in text.split(" "):
        places.append((at, word))
        at += len(word) + 1
    return places


def _alike(items: Sequence[Pair]) -> tuple[Pair, ...]:
    """Pairs of one wording next to each other: batches then have little padding and fork late."""
    return tuple(sorted(items, key=lambda pair: (pair.template, len(pair.clean.text.split()), pair.id)))
