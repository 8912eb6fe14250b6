"""The study's data: pairs on which edges are scored, others on which circuits are run, and the spans of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Task
from mediant.studies.positional_circuits.config import Config
from mediant.subject import Subject
from mediant.tasks import catalogue, ioi, pairs
from mediant.tasks.schema import SpanTable

FEWEST = 18


@dataclass(frozen=True)
class Items:
    """One task's pairs.

    Attributes:
        discovery, evaluation: disjoint sets of pairs.
    """

    name: str
    description: str
    metric: str
    discovery: tuple[Pair, ...]
    evaluation: tuple[Pair, ...]


@dataclass(frozen=True)
class Data(Items):
    """One task's pairs and their spans.

    Attributes:
        table: the spans of all of them.
        shuffled: a control, the same cuts with the spans' names dealt out anew in every prompt.
    """

    table: SpanTable
    shuffled: SpanTable

    @classmethod
    def of(cls, items: Items, table: SpanTable, seed: int) -> "Data":
        """Pairs under a schema."""
        return cls(items.name, items.description, items.metric, items.discovery, items.evaluation, table, table.shuffled(seed))


def load(config: Config, subject: Subject) -> list[Items]:
    """The task, and the second one where there is one.

    Raises:
        UnknownName, TaskError: no such task, or a file that cannot be used.
    """
    if config.task.endswith((".jsonl", ".json")) or "/" in config.task:
        return [_split(config, _from_file(config))]
    names = [config.task, *([config.also] if config.also and config.also != config.task else [])]
    return [_split(config, _generated(config, name, subject)) for name in names]


def _generated(config: Config, name: str, subject: Subject) -> Task:
    n = config.n_discovery + config.n
    try:
        if name == "ioi":
            # One order of the names, as spans must stand in one order; three other people as the counterfactual.
            return ioi.generate(n, seed=config.seed, single_token=subject.single_token, counterfactual="abc", order="abba")
        return catalogue.generator(name)(n, seed=config.seed, single_token=subject.single_token)
    except TaskError as error:
        raise TaskError(f"task {name!r}: {error}. This study draws n_discovery + n = {n} pairs; choose a smaller n") from error


def _from_file(config: Config) -> Task:
    task = pairs.read(config.task)
    again = pairs.repeated(task.pairs)
    if again:
        raise TaskError(f"{config.task}: {'; '.join(again[:3])}; pairs that count twice narrow the intervals, keep one of each")
    if len(task.pairs) < FEWEST:
        raise TaskError(f"{config.task} holds {len(task.pairs)} pairs; at least {FEWEST} are needed")
    return task


def _split(config: Config, task: Task) -> Items:
    mixed = list(task.pairs)
    Random(config.seed).shuffle(mixed)
    n_discovery = min(config.n_discovery, max(len(mixed) - config.n, len(mixed) // 3))
    used = mixed[: n_discovery + config.n]
    metric = config.metric or task.metric
    return Items(task.name, task.description, metric, _alike(used[:n_discovery]), _alike(used[n_discovery:]))


def _alike(items: Sequence[Pair]) -> tuple[Pair, ...]:
    """Pairs of one wording next to each other, so that batches have little padding."""
    return tuple(sorted(items, key=lambda pair: (len(pair.clean.text.split()), pair.template, pair.id)))
