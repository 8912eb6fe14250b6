"""The requests: drawn by this package, each with what is known of its answer, or from a folder in the published format."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from mediant.core.errors import TaskError
from mediant.studies.reference_binding.config import Config
from mediant.tasks import foreign, request_files
from mediant.tasks.request_files import paired
from mediant.tasks.requests import Request, RequestPair

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Data:
    """Requests by property; validation and test share none, and drawn combinations were held out of training.

    Attributes:
        pairs: one instruction with two references each; their bases are test requests.
    """

    name: str
    test: Mapping[str, Sequence[Request]]
    validation: Mapping[str, Sequence[Request]]
    pairs: Mapping[str, Sequence[RequestPair]]
    validation_pairs: Mapping[str, Sequence[RequestPair]]
    text: Sequence[Request]


def load(config: Config) -> Data:
    """All requests of a run.

    Raises:
        TaskError: the folder of task files is not there, or has too few tasks of a property.
    """
    return _drawn(config) if config.tasks is None else _published(config, _folder(config.tasks))


def _drawn(config: Config) -> Data:
    from mediant.tasks.pictures import requests

    size = config.size or requests.SIZE
    single = partial(requests.generate, split="heldout", size=size)
    pair = partial(requests.generate_pairs, split="heldout", size=size)
    first, second = config.seed, config.seed + 1
    pairs: dict[str, Sequence[RequestPair]] = {name: pair(name, config.n, seed=first) for name in config.properties}
    return Data(
        "drawn, held-out combinations",
        {name: [each.base for each in found] for name, found in pairs.items()},
        {name: single(name, config.n_validation, seed=second) for name in config.properties},
        pairs,
        {name: pair(name, config.n_validation, seed=second) for name in config.properties},
        single("text", config.n_text, seed=first),
    )


def _folder(name: str) -> Path:
    """A fetched set, or the user's own."""
    return foreign.folder_of(name) if name in foreign.SETS else Path(name)


def _published(config: Config, folder: Path) -> Data:
    """Tasks of a folder, the first share of each property's for tests; neighbours with one instruction are pairs."""
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise TaskError(f"{folder} has no task files (*.jsonl)")
    every = [request for file in files for request in request_files.read(file, size=config.size)]
    test, validation = dict[str, Sequence[Request]](), dict[str, Sequence[Request]]()
    for name in config.properties:
        found = [each for each in every if each.bucket == name]
        end = len(found) * config.n // (config.n + config.n_validation)
        test[name], validation[name] = found[:end], found[end:]
    return Data(
        f"tasks of {folder.name}",
        {name: _enough(each, config.n, f"tasks of {name} to test on") for name, each in test.items()},
        {name: _enough(each, config.n_validation, f"tasks of {name} to choose on") for name, each in validation.items()},
        {name: _enough(paired(each), config.n, f"pairs of {name} to test on") for name, each in test.items()},
        {name: _enough(paired(each), config.n_validation, f"pairs of {name} to choose on") for name, each in validation.items()},
        [],
    )  # fmt: skip


def _enough(found: Sequence[Item], n: int, what: str) -> Sequence[Item]:
    if len(found) < n:
        raise TaskError(
            f"there are {len(found)} {what}, {n} are asked for; --set a smaller n and n_validation, or give more tasks"
        )
    return found[:n]
