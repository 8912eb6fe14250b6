"""Wire data, searches, exchanges, controls and measures: one call from a config to a result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mediant.core.pair import Pair
from mediant.core.result import SCHEMA, Result
from mediant.core.site import Site
from mediant.measures.behaviour import refuse_unless_done
from mediant.measures.intervals import Array
from mediant.measures.metrics import metric
from mediant.runs.engine import LocalEngine, WorkItem
from mediant.runs.folder import Json, RunFolder
from mediant.studies.mediation import method
from mediant.studies.mediation import task as data_of
from mediant.studies.mediation.config import NAME, Config
from mediant.studies.mediation.ground import Ground, half_carried, prepare_ground
from mediant.studies.mediation.measures import Measuring, Tried, verdicts
from mediant.studies.mediation.mediators import Kind, Ready, Units
from mediant.studies.mediation.method import AnySearch, Entry
from mediant.studies.mediation.searches import searches_of
from mediant.studies.mediation.subspaces import SUBSPACES
from mediant.studies.provenance import provenance
from mediant.subject import Subject
from mediant.subject.twins import Twins
from mediant.tasks.encode import encode

LIMITS = [
    "Exchanges write one counterfactual's values; another counterfactual asks about another variable.",
    "Cells of a row are compared at one size, the same share of the row's units; cells of different rows share neither size nor "
    "cost, and a share of all edges is not a share of all heads.",
    "Coordinates, axes, features and subspaces are those of one site; elsewhere they may hold more.",
    "Faithfulness is of handing on the counterfactual's answer. It is not completeness: what is left may do the same.",
    "Learned searches have prices, rates and rounds; other settings find other units.",
]


@dataclass(frozen=True)
class Findings:
    """Everything the page shows beyond the measures."""

    ground: Ground
    entries: Sequence[Entry]
    tried: Tried


def prepare(config: Config, subject: Subject) -> data_of.Data:
    """Everything that can be refused before work begins.

    Raises:
        UnknownName: no such task or metric.
        OutOfRange: a site this subject does not have.
        TaskError: a pair that cannot be used, named.
    """
    data = data_of.load(config, subject)
    metric(data.metric)
    if config.site is not None:
        subject.validate(config.site)
    for pairs in (data.discovery, data.validation, *data.sets.values()):
        if pairs:
            encode(subject, pairs)
    return data


def run(config: Config, subject: Subject, data: data_of.Data, folder: RunFolder, engine: LocalEngine) -> tuple[Result, Findings]:
    """The whole study; every finished work item is in `folder`, so a killed run goes on where it stopped.

    Raises:
        TaskNotDone: the subject prefers the answer no more often than chance.
    """
    return _Study(config, subject, data, folder, engine).run()


class _Study:
    def __init__(self, config: Config, subject: Subject, data: data_of.Data, folder: RunFolder, engine: LocalEngine) -> None:
        self.config, self.subject, self.data, self.folder, self.engine = config, subject, data, folder, engine
        self.twins = Twins(subject)

    def run(self) -> tuple[Result, Findings]:
        """Search, exchange, measure."""
        begun = self._once("begin", self._begin)
        ground = prepare_ground(self.config, self.subject, self.data, Site.parse(begun["site"]))
        with self.twins.side_by_side():
            entries = self._search(ground)
            tried = self._exchange(ground, [entry for entry in entries if not entry.reason])
        controls: Json = {}
        if "subspace" in self.config.kinds:
            controls = self._once("das controls", lambda: method.das_controls(ground, self.data.judged, self.data.heldout))
            controls = {name: values for name, values in controls.items() if name != "key"}
        measures = Measuring(self.config, self.data).all(entries, tried, controls)
        empty = [f"{entry.kind}: {entry.search.name} was not run: {entry.reason}" for entry in entries if entry.reason]
        result = Result(
            schema_=SCHEMA, study=NAME, preset=self.folder.manifest.preset, measures=measures,
            limits=[*LIMITS, *_dictionary(ground), *empty, *verdicts(measures, entries)],
            provenance=provenance(self.folder.manifest, self.subject) | {"site": str(ground.site), "metric": self.data.metric},
        )  # fmt: skip
        return result, Findings(ground, entries, tried)

    def _begin(self) -> Json:
        """Refuse where there is no behaviour; choose the site."""
        ready = [Ready(self.subject, part, self.data.metric) for part in self._batches(self.data.discovery)]
        preferred = np.concatenate([one.patcher.outcome.preferred.double().cpu().numpy() for one in ready])
        total = np.concatenate([one.patcher.total for one in ready])
        refuse_unless_done(preferred, total, task=self.data.name, subject=self.subject.name)
        site = self.config.site or str(half_carried(self.subject, self.data, self.config.batch_size))
        return {"site": site}

    def _search(self, ground: Ground) -> list[Entry]:
        jobs = [(kind, search) for kind in self.config.kinds for search in searches(kind, ground)]

        def item(kind: str, search: AnySearch) -> WorkItem:
            # Each thread has a subject of its own, so the ground it searches is its own too.
            return WorkItem(
                f"found/{kind}/{search.slug}", lambda: method.find(replace(ground, subject=self.twins.here()), search, kind)
            )

        records = self.engine.map(self.folder, [item(*job) for job in jobs], title="searching", workers=self.twins.n)
        return [method.entry_of(ground, search, kind, record) for (kind, search), record in zip(jobs, records, strict=True)]

    def _exchange(self, ground: Ground, entries: Sequence[Entry]) -> Tried:
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

    def _control(self, ground: Ground, kind: str, draw: int) -> tuple[Kind, Units]:
        if kind == "subspace":
            drawn = method.random_subspace(ground, draw)
            return drawn, drawn.available
        return ground.kinds[kind], method.random_units(self.config, ground.kinds[kind], draw)

    def _table(self, stage: str, pairs: Sequence[Pair], sets: Sequence[tuple[Kind, Units]], *, texts: bool = False) -> Array:
        """What each set of units does on each pair: (set, pair)."""
        compute = method.disturbances if texts else method.changes

        def item(number: int, part: Sequence[Pair]) -> WorkItem:
            return WorkItem(
                f"{stage}/{number:04d}",
                lambda: {"values": compute(Ready(self.twins.here(), part, "logprob_diff" if texts else self.data.metric), sets)},
            )

        items = [item(i, part) for i, part in enumerate(self._batches(pairs))]
        records = self.engine.map(self.folder, items, title=stage, workers=self.twins.n)
        return np.concatenate([np.asarray(record["values"], dtype=np.float64) for record in records], axis=1)

    def _total(self, name: str, pairs: Sequence[Pair]) -> Array:
        def compute() -> Json:
            parts = [Ready(self.subject, part, self.data.metric).patcher.total.tolist() for part in self._batches(pairs)]
            return {"total": [value for part in parts for value in part]}

        return np.asarray(self._once(f"total/{name}", compute)["total"], dtype=np.float64)

    def _batches(self, pairs: Sequence[Pair]) -> list[Sequence[Pair]]:
        return [pairs[i : i + self.config.batch_size] for i in range(0, len(pairs), self.config.batch_size)]

    def _once(self, key: str, compute: Callable[[], Json]) -> Json:
        return LocalEngine(show_progress=False).map(self.folder, [WorkItem(key, compute)], title="")[0]


def searches(kind: str, ground: Ground) -> list[AnySearch]:
    """Every search of a row."""
    return list(SUBSPACES) if kind == "subspace" else list(searches_of(kind, ground))


def _cut(entry: Entry, size: int) -> tuple[Kind, Units]:
    assert entry.among is not None  # noqa: S101 - empty entries are not exchanged
    return entry.among, entry.order[:size]


def _dictionary(ground: Ground) -> list[str]:
    """What to say of a dictionary learned on the spot."""
    if ground.learned is None:
        return []
    learned = ground.learned
    return [
        f"The dictionary was learned here from {learned.n} activations only: it explains {learned.explained:.0%} of the variance "
        f"of others, and {learned.dead:.0%} of its features are never active. Give a better one with --dictionary."
    ]
