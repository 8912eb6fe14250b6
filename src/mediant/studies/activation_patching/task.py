"""The study's data: pairs for the map, for ranking, for confirmation, and from templates never seen before.

Generated tasks split by entity and frame; a user's file is shuffled once and split, and one of its templates
is held out where it names several.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Task
from mediant.studies.activation_patching.config import Config
from mediant.subject import Subject
from mediant.tasks import catalogue, ioi, pairs

FEWEST = 6


@dataclass(frozen=True)
class Data:
    """Disjoint sets of pairs.

    Attributes:
        heldout: pairs of templates that no other set uses; empty with `heldout_reason` where there are none.
    """

    name: str
    description: str
    metric: str
    shown: tuple[Pair, ...]
    discovery: tuple[Pair, ...]
    confirm: tuple[Pair, ...]
    heldout: tuple[Pair, ...]
    heldout_reason: str = ""


def load(config: Config, subject: Subject) -> Data:
    """Sample or read the pairs.

    Raises:
        UnknownName, TaskError: no such task, or a file that cannot be used.
    """
    if config.task.endswith((".jsonl", ".json")) or "/" in config.task:
        return _from_file(config, pairs.read(config.task), subject)
    return _generated(config, subject)


def _generated(config: Config, subject: Subject) -> Data:
    generate = catalogue.generator(config.task)
    try:
        main = generate(config.n_discovery + config.n, seed=config.seed, single_token=subject.single_token)
        heldout = generate(config.n, seed=config.seed, single_token=subject.single_token, split="heldout")
    except TaskError as error:
        raise TaskError(
            f"task {config.task!r}: {error}. This study draws n_discovery + n = {config.n_discovery + config.n} pairs, and n = "
            f"{config.n} of held-out wording; choose a smaller n"
        ) from error
    mixed = list(main.pairs)
    Random(config.seed).shuffle(mixed)
    discovery, confirm = mixed[: config.n_discovery], mixed[config.n_discovery :]
    if config.task == "ioi":
        more = ioi.generate(
            config.n_map, seed=config.seed + 1, single_token=subject.single_token, templates=["store"], order="abba"
        )
        shown = (ioi.classic(), *more.pairs)[: config.n_map]
    else:
        more = generate(config.n_map * 20, seed=config.seed + 1, single_token=subject.single_token)
        shown = aligned_group(subject, more.pairs)[: config.n_map]
    metric = config.metric or main.metric
    return Data(main.name, main.description, metric, shown, _alike(discovery), _alike(confirm), _alike(heldout.pairs))


def _alike(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    """Pairs of one wording next to each other: batches then have little padding and fork late."""
    return tuple(sorted(pairs, key=lambda pair: (pair.template, len(pair.clean.text.split()), pair.id)))


def _from_file(config: Config, task: Task, subject: Subject) -> Data:
    """Split a user's pairs: one template held out, a part for ranking, the rest for confirmation."""
    mixed = list(task.pairs)
    if len(mixed) < FEWEST:
        raise TaskError(
            f"{config.task} holds {len(mixed)} pairs; at least {FEWEST} are needed to rank on some and confirm on others"
        )
    again = pairs.repeated(mixed)
    if again:
        raise TaskError(
            f"{config.task}: {'; '.join(again[:3])}{f' (and {len(again) - 3} more)' if len(again) > 3 else ''}. Pairs that "
            "count twice leak from ranking into confirmation and narrow the intervals; keep one of each"
        )
    Random(config.seed).shuffle(mixed)
    templates = sorted({pair.template for pair in mixed})
    held, reason = set[str](), "the file names fewer than two templates, so none could be held out"
    if len(templates) > 1:
        held, reason = {Random(config.seed).choice(templates)}, ""
    heldout = [p for p in mixed if p.template in held][: config.n]
    rest = [p for p in mixed if p.template not in held]
    if len(rest) < 4:
        raise TaskError(
            f"{config.task}: only {len(rest)} pairs are left beside the held-out template {sorted(held)}; add pairs to the others"
        )
    n_discovery = min(config.n_discovery, len(rest) // 2)
    discovery, confirm = rest[:n_discovery], rest[n_discovery : n_discovery + config.n]
    shown = aligned_group(subject, rest)[: config.n_map]
    return Data(
        task.name,
        task.description,
        config.metric or task.metric,
        shown,
        _alike(discovery),
        _alike(confirm),
        _alike(heldout),
        reason,
    )


def aligned_group(subject: Subject, items: Sequence[Pair]) -> tuple[Pair, ...]:
    """The largest set of pairs whose prompts line up token by token: same template, length and span places."""
    groups: dict[tuple[object, ...], list[Pair]] = defaultdict(list)
    for pair in items:
        tokens = subject.tokenize(pair.clean)
        groups[pair.template, len(tokens.ids), tuple(sorted(tokens.spans.items()))].append(pair)
    largest = max(groups, key=lambda key: len(groups[key]))
    return tuple(groups[largest])
