"""Wire data, searches, exchanges, controls and measures: one call from a config to a result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mediant.core.result import SCHEMA, Result
from mediant.core.site import Site
from mediant.measures.intervals import Array
from mediant.runs.engine import LocalEngine, WorkItem
from mediant.runs.folder import Json, RunFolder
from mediant.studies.mediation import method
from mediant.studies.mediation.config import NAME, Config
from mediant.studies.mediation.data import Data
from mediant.studies.mediation.measures import Measuring, Tried, verdicts
from mediant.studies.mediation.mediators import Kind, Units
from mediant.studies.mediation.method import AnyGround, AnySearch, Entry
from mediant.studies.mediation.ready import Ready
from mediant.studies.mediation.world import World, world_of
from mediant.studies.provenance import provenance
from mediant.subject.generator import ImageGenerator
from mediant.subject.subject import Subject
from mediant.subject.twins import Twins

LIMITS = [
    "Exchanges write one counterfactual's values; another counterfactual asks about another variable.",
    "Cells of a row are compared at one size, the same share of the row's units; cells of different rows share neither size nor "
    "cost, and a share of all edges is not a share of all heads.",
    "Coordinates, axes, features and subspaces are those of one site; elsewhere they may hold more.",
    "Faithfulness is of handing on what the counterfactual leads to. It is not completeness: what is left may do the same.",
    "Learned searches have prices, rates and rounds; other settings find other units.",
]


@dataclass(frozen=True)
class Findings:
    """Everything the page shows beyond the measures."""

    world: World
    ground: AnyGround
    entries: Sequence[Entry]
    tried: Tried
    by_place: Json


AnySubject = Subject | ImageGenerator


def prepare(config: Config, subject: AnySubject) -> Data[Any]:
    """Everything that can be refused before work begins.

    Raises:
        UnknownName: no such task or metric.
        OutOfRange: a site this subject does not have.
        TaskError: a pair that cannot be used, named.
    """
    return world_of(subject).load(config, subject)


def run(config: Config, subject: AnySubject, data: Data[Any], folder: RunFolder, engine: LocalEngine) -> tuple[Result, Findings]:
    """The whole study; every finished work item is in `folder`, so a killed run goes on where it stopped.

    Raises:
        TaskNotDone: the subject prefers the answer no more often than chance.
    """
    return _Study(config, subject, data, folder, engine).run()


class _Study:
    def __init__(self, config: Config, subject: AnySubject, data: Data[Any], folder: RunFolder, engine: LocalEngine) -> None:
        self.config, self.subject, self.data, self.folder, self.engine = config, subject, data, folder, engine
        self.twins: Twins[Any] = Twins(subject)
        self.world = world_of(subject)

    def run(self) -> tuple[Result, Findings]:
        """Search, exchange, measure."""
        begun = self._once("begin", lambda: {"site": str(self.world.begin(self.config, self.subject, self.data))})
        ground = self.world.ground(self.config, self.subject, self.data, Site.parse(begun["site"]))
        with self.twins.side_by_side():
            entries = self._search(ground)
            tried = self._exchange(ground, [entry for entry in entries if not entry.reason])
        controls = self._once("das controls", lambda: self.world.controls(ground))
        controls = {name: values for name, values in controls.items() if name != "key"}
        by_place = self._once("interchange accuracy by place", lambda: self.world.by_place(ground))
        measures = Measuring(self.config, self.data, self.world.definitions).all(entries, tried, controls)
        empty = [f"{entry.kind}: {entry.search.name} was not run: {entry.reason}" for entry in entries if entry.reason]
        result = Result(
            schema_=SCHEMA, study=NAME, preset=self.folder.manifest.preset, measures=measures,
            limits=[*LIMITS, *self.world.limits, *_dictionary(ground), *empty, *verdicts(measures, entries)],
            provenance=provenance(self.folder.manifest, self.subject) | {"site": str(ground.site), "metric": self.data.metric},
        )  # fmt: skip
        return result, Findings(self.world, ground, entries, tried, by_place)

    def _search(self, ground: AnyGround) -> list[Entry]:
        jobs = [(kind, search) for kind in self.config.kinds for search in self.world.searches(kind, ground)]

        def item(kind: str, search: AnySearch) -> WorkItem:
            # Each thread has a subject of its own, so the ground it searches is its own too.
            return WorkItem(
                f"found/{kind}/{search.slug}", lambda: method.find(replace(ground, subject=self.twins.here()), search, kind)
            )

        records = self.engine.map(self.folder, [item(*job) for job in jobs], title="searching", workers=self.twins.n)
        return [method.entry_of(ground, search, kind, record) for (kind, search), record in zip(jobs, records, strict=True)]

    def _exchange(self, ground: AnyGround, entries: Sequence[Entry]) -> Tried:
        config, kinds = self.config, list(dict.fromkeys(entry.kind for entry in entries))
        found: dict[str, dict[str, Array]] = {}
        random: dict[str, dict[str, Array]] = {}
        ladders = {entry.name: method.ladder(config, entry) for entry in entries}
        rows = {kind: [entry for entry in entries if entry.kind == kind] for kind in kinds}
        for name, pairs in self.data.sets.items():
            found[name], random[name] = {}, {}
            for kind, mine in rows.items() if pairs else ():
                sets = [_cut(entry, method.compared(config, entry)) for entry in mine]
                controls = [self._control(ground, kind, draw) for draw in range(config.random_draws)]
                table = self._table(f"{name}/{kind}", pairs, [*sets, *controls], texts=name == "texts")
                found[name] |= {entry.name: values for entry, values in zip(mine, table, strict=False)}
                random[name][kind] = table[len(mine) :]
        curves: dict[str, Array] = {}
        for kind, mine in rows.items():
            sets = [_cut(entry, size) for entry in mine for size in ladders[entry.name]]
            table = self._table(f"curve/{kind}", self.data.validation, sets)
            ends = np.cumsum([len(ladders[entry.name]) for entry in mine])[:-1]
            curves |= {entry.name: part for entry, part in zip(mine, np.split(table, ends), strict=True)}
        named = {name: pairs for name, pairs in self.data.sets.items() if pairs and name != "texts"}
        total = {name: self._total(name, pairs) for name, pairs in (named | {"validation": self.data.validation}).items()}
        return Tried(found, random, total, curves, ladders)

    def _control(self, ground: AnyGround, kind: str, draw: int) -> tuple[Kind, Units]:
        if kind == "subspace":
            drawn = method.random_subspace(ground, draw)
            return drawn, drawn.available
        return ground.kinds[kind], method.random_units(self.config, ground.kinds[kind], draw)

    def _table(self, stage: str, pairs: Sequence[Any], sets: Sequence[tuple[Kind, Units]], *, texts: bool = False) -> Array:
        """What each set of units does on each pair: (set, pair)."""
        compute = method.disturbances if texts else method.changes

        def item(number: int, part: Sequence[Any]) -> WorkItem:
            return WorkItem(
                f"{stage}/{number:04d}",
                lambda: {"values": compute(self._ready(self.twins.here(), part, texts=texts), sets)},
            )

        items = [item(i, part) for i, part in enumerate(self._batches(pairs))]
        records = self.engine.map(self.folder, items, title=stage, workers=self.twins.n)
        return np.concatenate([np.asarray(record["values"], dtype=np.float64) for record in records], axis=1)

    def _total(self, name: str, pairs: Sequence[Any]) -> Array:
        def compute() -> Json:
            parts = [self._ready(self.subject, part).patcher.total.tolist() for part in self._batches(pairs)]
            return {"total": [value for part in parts for value in part]}

        return np.asarray(self._once(f"total/{name}", compute)["total"], dtype=np.float64)

    def _ready(self, subject: AnySubject, part: Sequence[Any], *, texts: bool = False) -> Ready:
        # Unrelated pairs have no counterfactual answer that the task's own metric could be about.
        return self.world.ready(self.config, subject, part, by="logprob_diff" if texts else self.data.metric)

    def _batches(self, pairs: Sequence[Any]) -> list[Sequence[Any]]:
        return [pairs[i : i + self.config.batch_size] for i in range(0, len(pairs), self.config.batch_size)]

    def _once(self, key: str, compute: Callable[[], Json]) -> Json:
        return LocalEngine(show_progress=False).map(self.folder, [WorkItem(key, compute)], title="")[0]


def _cut(entry: Entry, size: int) -> tuple[Kind, Units]:
    assert entry.among is not None  # noqa: S101 - empty entries are not exchanged
    return entry.among, entry.order[:size]


def _dictionary(ground: AnyGround) -> list[str]:
    """What to say of a dictionary learned on the spot."""
    if ground.learned is None:
        return []
    learned = ground.learned
    return [
        f"The dictionary was learned here from {learned.n} activations only: it explains {learned.explained:.0%} of the variance "
        f"of others, and {learned.dead:.0%} of its features are never active. Give a better one with --dictionary."
    ]
