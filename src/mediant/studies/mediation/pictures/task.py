"""Pairs of requests: the same instruction and noise, another reference.

`other` pairs have the same reference and noise and another instruction: a mediator of what is taken from the reference, exchanged
between them, changes nothing. `texts` are two requests that have nothing to do with each other nor with the task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random

from mediant.core.errors import TaskError, unknown
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.data import Data
from mediant.tasks import request_files
from mediant.tasks.requests import Request, RequestPair, with_reference_of

BUCKETS = ("colour", "style", "identity")
# Swatches that differ in one thing with two values, for probes: pairs have one of either.
WARM = ("red", "orange", "yellow", "pink", "brown")
VARIABLES = {"colour": "warmth"}


@dataclass(frozen=True, eq=False)
class PicturePair:
    """Two requests for pictures of one size, made from one noise."""

    id: str
    clean: Request
    counterfactual: Request
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def template(self) -> str:
        """Pairs of one instruction are not independent."""
        return self.clean.instruction


def load(config: Config) -> Data[PicturePair]:
    """Draw requests, or read them from a file in the published format.

    Raises:
        UnknownName: no such property.
        TaskError: too few pairs, or none could be made.
    """
    chosen = config.task or "colour"
    needed = config.n_discovery + config.n_validation + config.n
    missing: dict[str, str] = {}
    if chosen.endswith(".jsonl") or "/" in chosen:
        mixed = [_pair(each) for each in request_files.paired(request_files.read(chosen))]
        Random(config.seed).shuffle(mixed)
        if len(mixed) < needed:
            raise TaskError(
                f"{chosen} gives {len(mixed)} pairs of one instruction; this study wants n_discovery + n_validation + n = "
                f"{needed}: choose smaller ones"
            )
        heldout = list[PicturePair]()
        missing["heldout"] = "a file of requests has no combinations held out; drawn ones do"
        texts = [_unrelated(one.clean, two.counterfactual) for one, two in _turned(mixed)]
    elif chosen in BUCKETS:
        from mediant.tasks.pictures import requests

        mixed = _drawn(chosen, needed, config.seed, "main")
        heldout = _drawn(chosen, config.n, config.seed, "heldout")
        elsewhere = requests.generate("style" if chosen != "style" else "colour", 2 * config.n_texts, seed=config.seed)
        texts = [_unrelated(one, two) for one, two in zip(elsewhere[::2], elsewhere[1::2], strict=True)]
    else:
        raise unknown("task", chosen, BUCKETS, note="or a .jsonl file of requests")
    variable = VARIABLES.get(chosen, "")
    if not variable:
        missing["variable"] = f"no variable with two values is known of {chosen!r}; colour has one"
    first, second = config.n_discovery, config.n_discovery + config.n_validation
    judged = mixed[second:needed]
    other = [_other(one, two) for one, two in _turned(judged) if one.template != two.template]
    if not other:
        missing["other"] = "all requests have one instruction"
    return Data(
        name=chosen, description=f"{chosen} taken from a reference", metric="movement towards the other picture",
        discovery=tuple(mixed[:first]), validation=tuple(mixed[first:second]), judged=tuple(judged), heldout=tuple(heldout),
        other=tuple(other), texts=tuple(texts[: config.n_texts]), spans=("text", "picture", "reference"), variable=variable,
        values=("cool", "warm") if variable else (), missing=missing,
    )  # fmt: skip


def _drawn(bucket: str, n: int, seed: int, split: str) -> list[PicturePair]:
    """So many drawn pairs; of colours, one warm and one cool."""
    from mediant.tasks.pictures import requests

    many = n
    while True:
        many *= 2
        pairs = [_pair(each) for each in requests.generate_pairs(bucket, many, seed=seed, split=split)]  # type: ignore[arg-type]
        crossing = [pair for pair in pairs if _warmth(pair.clean) != _warmth(pair.counterfactual)]
        found = crossing if bucket == "colour" else pairs
        if len(found) >= n:
            return found[:n]


def _warmth(request: Request) -> str:
    return "warm" if request.factors.get("colour") in WARM else "cool"


def _pair(pair: RequestPair) -> PicturePair:
    variables = {"warmth": _warmth(pair.base)} if pair.base.bucket == "colour" else {}
    return PicturePair(pair.base.name, pair.base, with_reference_of(pair), variables)


def _turned(pairs: Sequence[PicturePair]) -> list[tuple[PicturePair, PicturePair]]:
    """Each pair beside the next one, round the circle."""
    return list(zip(pairs, [*pairs[1:], *pairs[:1]], strict=True))


def _other(one: PicturePair, two: PicturePair) -> PicturePair:
    return PicturePair(f"{one.id}<{two.id}", one.clean, replace(one.clean, instruction=two.clean.instruction, target=None))


def _unrelated(one: Request, two: Request) -> PicturePair:
    return PicturePair(f"{one.name}<{two.name}", one, replace(two, seed=one.seed))
