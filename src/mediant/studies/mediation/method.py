"""One search, one exchange, one control: what each work item of the study computes, as plain numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from mediant.core.errors import SubjectError, TaskError
from mediant.runs.folder import Json
from mediant.studies.mediation.config import Config
from mediant.studies.mediation.ground import Ground, halves, mean_of
from mediant.studies.mediation.mediators import Kind, Units, subspace
from mediant.studies.mediation.ready import Ready
from mediant.studies.mediation.searches import Search, best_first
from mediant.studies.mediation.subspaces import SubspaceSearch

Numbers = list[float]
AnySearch = Search | SubspaceSearch
AnyGround = Ground[Any, Any]


@dataclass(frozen=True, eq=False)
class Entry:
    """What one search found: units of a kind, most wanted first; or why it could not be run.

    Attributes:
        stability: overlap of what it finds on either half of the discovery pairs, at the size at which cells are compared.
        forwards, backwards: prompts run, whole forwards and backwards being 1.
    """

    kind: str
    search: AnySearch
    among: Kind | None
    order: list[int]
    stability: float
    forwards: float
    backwards: float
    reason: str = ""

    @property
    def name(self) -> str:
        """In names of measures."""
        return f"{self.kind}_{self.search.slug}"


def find(ground: AnyGround, search: AnySearch, kind: str) -> Json:
    """Run a search on all discovery pairs, and on either half of them."""
    if search.needs_variable and not ground.data.variable:
        return {"reason": ground.data.missing["variable"]}
    try:
        return _subspace(ground, search) if isinstance(search, SubspaceSearch) else _units(ground, search, kind)
    except (TaskError, SubjectError) as error:
        return {"reason": str(error)}


def _units(ground: AnyGround, search: Search, kind: str) -> Json:
    among, pairs = ground.kinds[kind], ground.data.discovery
    most = sizes(ground.config, among)[-1]
    before = ground.subject.work.token_layers, ground.subject.work.differentiated
    scores = search.scores(ground, pairs)
    cost = _cost(ground, before)
    if scores.ndim == 2:
        parts = [scores[:, ::2].mean(1), scores[:, 1::2].mean(1)]
    else:
        parts = [search.scores(ground, half) for half in halves(pairs)]
    k = at_share(ground.config, among)
    one, two = (set(best_first(part, among.available, k)) for part in parts)
    order = best_first(mean_of(scores), among.available, most)
    return {"order": order, "stability": len(one & two) / len(one | two), **cost}


def _subspace(ground: AnyGround, search: SubspaceSearch) -> Json:
    pairs = ground.data.discovery
    before = ground.subject.work.token_layers, ground.subject.work.differentiated
    basis = search.basis(ground, pairs)
    cost = _cost(ground, before)
    one, two = (search.basis(ground, half) for half in halves(pairs))
    shared = float((one.mT @ two).square().sum()) / max(one.shape[1], two.shape[1])
    return {"basis": basis.tolist(), "stability": shared, **cost}


def _cost(ground: AnyGround, before: tuple[int, int]) -> Json:
    """Prompts run since, one being a run of a discovery item's side."""
    work, one = ground.subject.work, ground.one
    return {"forwards": (work.token_layers - before[0]) / one, "backwards": (work.differentiated - before[1]) / one}


def entry_of(ground: AnyGround, search: AnySearch, kind: str, record: Json) -> Entry:
    """A finished search, read back from its record."""
    if "reason" in record:
        return Entry(kind, search, None, [], 0.0, 0.0, 0.0, record["reason"])
    numbers = record["stability"], record["forwards"], record["backwards"]
    if "basis" in record:
        basis = torch.tensor(record["basis"])
        among: Kind = subspace(ground.site, ground.span, basis)
        return Entry(kind, search, among, list(range(basis.shape[1])), *numbers)
    return Entry(kind, search, ground.kinds[kind], record["order"], *numbers)


def at_share(config: Config, kind: Kind, share: float | None = None) -> int:
    """How many units a share is."""
    return max(1, round((config.share if share is None else share) * kind.n_units))


def sizes(config: Config, kind: Kind) -> list[int]:
    """Sizes of a curve, rising, as far as there are units."""
    found = {min(at_share(config, kind, share), len(kind.available)) for share in (*config.shares, config.share)}
    return sorted(found)


def ladder(config: Config, entry: Entry) -> list[int]:
    """Sizes at which an entry is tried: those of its kind, as far as it found units."""
    assert entry.among is not None  # noqa: S101 - empty entries are not tried
    return sorted({min(size, len(entry.order)) for size in sizes(config, entry.among)})


def compared(config: Config, entry: Entry) -> int:
    """The size at which cells are compared."""
    assert entry.among is not None  # noqa: S101 - empty entries are not tried
    return min(at_share(config, entry.among), len(entry.order))


def random_units(config: Config, kind: Kind, draw: int) -> list[int]:
    """The control: as many units, drawn from all."""
    available = list(kind.available)
    return Random(f"{config.seed}-{kind.name}-{draw}").sample(available, min(at_share(config, kind), len(available)))


def random_subspace(ground: AnyGround, draw: int) -> Kind:
    """The control of subspaces: as many dimensions, turned at random."""
    random = torch.Generator().manual_seed(1_000_003 * ground.config.seed + draw)
    drawn = torch.randn(ground.width, ground.dimensions(), generator=random)
    return subspace(ground.site, ground.span, torch.linalg.qr(drawn)[0])


def changes(ready: Ready, tried: Sequence[tuple[Kind, Units]]) -> list[Numbers]:
    """Change of the metric per pair, for each set of units."""
    return [ready.change(kind.exchange(ready, units)).tolist() for kind, units in tried]


def disturbances(ready: Ready, tried: Sequence[tuple[Kind, Units]]) -> list[Numbers]:
    """How far unrelated pairs move, for each set of units."""
    return [ready.disturbance(kind.exchange(ready, units)).tolist() for kind, units in tried]
