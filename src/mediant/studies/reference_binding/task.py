"""The requests: drawn by this package, each with what is known of its answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mediant.studies.reference_binding.config import Config
from mediant.studies.reference_binding.verdicts import PROPERTIES
from mediant.tasks.requests import Request, RequestPair


@dataclass(frozen=True, eq=False)
class Data:
    """Requests by property; validation and test share none, and combinations were held out of training.

    Attributes:
        pairs: one instruction with two references each.
    """

    name: str
    test: Mapping[str, Sequence[Request]]
    validation: Mapping[str, Sequence[Request]]
    pairs: Mapping[str, Sequence[RequestPair]]
    validation_pairs: Mapping[str, Sequence[RequestPair]]
    text: Sequence[Request]


def load(config: Config) -> Data:
    """All requests of a run."""
    from mediant.tasks.pictures import requests

    at = config.seed
    return Data(
        "drawn, held-out combinations",
        {name: requests.generate(name, config.n, seed=at, split="heldout") for name in PROPERTIES},
        {name: requests.generate(name, config.n_validation, seed=at + 1, split="heldout") for name in PROPERTIES},
        {name: requests.generate_pairs(name, config.n, seed=at, split="heldout") for name in PROPERTIES},
        {name: requests.generate_pairs(name, config.n_validation, seed=at + 1, split="heldout") for name in PROPERTIES},
        requests.generate("text", config.n_text, seed=at, split="heldout"),
    )
