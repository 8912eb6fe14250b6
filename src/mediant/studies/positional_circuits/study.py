"""Wire data, method, controls and measures: one call from a config to a result."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from mediant.core.circuit import Circuit
from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import TaskNotDone
from mediant.core.result import SCHEMA, Measure, Result
from mediant.interventions.ports import graph_of
from mediant.measures.intervals import coin_flip_p
from mediant.measures.metrics import metric
from mediant.runs.engine import LocalEngine, WorkItem
from mediant.runs.folder import Json, RunFolder
from mediant.search.attribution import Accumulator, accumulate
from mediant.search.position_effects import PositionEffect, position_effects
from mediant.studies.positional_circuits import method, spans
from mediant.studies.positional_circuits import task as data_of
from mediant.studies.positional_circuits.config import NAME, Config
from mediant.studies.positional_circuits.measures import Measuring, verdict
from mediant.studies.positional_circuits.spans import Spans
from mediant.studies.provenance import provenance
from mediant.subject import Subject
from mediant.subject.twins import Twins
from mediant.tasks.encode import encode

LIMITS = [
    "Edges are chosen by a first-order estimate against one counterfactual per prompt; another one asks another question.",
    "A faithful circuit is not the only one: parts that stand in for each other are missed, see the stability.",
    "Circuits grow best edge first; no search over sets of edges was made.",
    "Spans stand in one order here; nothing is said about prompts worded in another order.",
    "Concrete edges of open crossing edges are counted for circuits without positions, as they are open at every pair of tokens.",
]


@dataclass(frozen=True, eq=False)
class TaskFindings:
    """What one task gave, beyond its measures."""

    data: data_of.Data
    spans: Spans
    measures: dict[str, Measure]
    curves: dict[str, method.Curve]
    records: list[Json]
    effects: list[Json]
    scores: EdgeScores
    drawn: list[Circuit]
    verdict: str


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything the page shows beyond the measures."""

    tasks: list[TaskFindings]


def prepare(config: Config, subject: Subject) -> list[data_of.Items]:
    """Everything that can be refused before work begins.

    Raises:
        UnknownName: no such task or metric.
        TaskError, SpanError: a pair that cannot be used, or spans that make no schema, named.
    """
    found = data_of.load(config, subject)
    for data in found:
        metric(data.metric)
        for pairs in (data.discovery, data.evaluation):
            encode(subject, pairs)
        if config.spans == "named":
            spans.find(config, subject, data)
    return found


def run(
    config: Config, subject: Subject, data: list[data_of.Items], folder: RunFolder, engine: LocalEngine
) -> tuple[Result, Findings]:
    """The whole study; every finished work item is in `folder`, so a killed run goes on where it stopped.

    Raises:
        TaskNotDone: the subject prefers the answers no more often than chance.
    """
    found = [_task_run(config, subject, one, folder, engine).run() for one in data]
    measures = dict(found[0].measures)
    for other in found[1:]:
        measures |= {f"{other.data.name}/{name}": m for name, m in other.measures.items()}
    result = Result(
        schema_=SCHEMA,
        study=NAME,
        preset=folder.manifest.preset,
        measures=measures,
        limits=[
            *LIMITS,
            *([subject.family.coupled] if subject.family.coupled else []),
            *(f"{f.data.name}: {f.spans.note}" for f in found if f.spans.by != "named" or f.spans.written is not None),
            *(f.verdict for f in found),
        ],
        provenance=provenance(folder.manifest, subject)
        | {"tasks": [f.data.name for f in found], "spans": {f.data.name: list(f.data.table.names) for f in found}},
    )
    return result, Findings(found)


def _task_run(config: Config, subject: Subject, items: data_of.Items, folder: RunFolder, engine: LocalEngine) -> "_TaskRun":
    """One task under its schema, which is looked for once and kept in the folder."""
    item = WorkItem(f"{items.name}/spans", lambda: spans.find(config, subject, items).to_json())
    found = Spans.from_json(LocalEngine(show_progress=False).map(folder, [item], title="")[0])
    data = data_of.Data.of(spans.divided(items, found), found.table, config.seed)
    return _TaskRun(config, subject, data, found, folder, engine, Twins(subject))


@dataclass(frozen=True, eq=False)
class _TaskRun:
    config: Config
    subject: Subject
    data: data_of.Data
    spans: Spans
    folder: RunFolder
    engine: LocalEngine
    twins: Twins[Subject]

    def run(self) -> TaskFindings:
        """Score, grow, run, compare."""
        self._refuse_if_not_done()
        scores, shuffled = self.attribute()
        effects = self._once("positions", lambda: {"effects": [asdict(e) for e in self._effects()]})["effects"]
        orders = method.orders(scores, shuffled, self.data, self.config)
        curves = method.curves(orders, self.data, self.config)
        records = self.evaluate(scores, curves)
        so_far = Measuring(self.config, self.data, records, curves)
        n, parts = so_far.asked_at_threshold(), self.take_out(curves, so_far.first_at_threshold())
        stable = self._once(
            "stability", lambda: {"jaccard": [] if n is None else method.stability(scores, n, self.data, self.config)}
        )
        measures = Measuring(self.config, self.data, records, curves, stable["jaccard"], parts).all()
        grown = orders["positional"]
        drawn = [grown.circuit(k) for k in (25, 50, 100, 200, 400) if k <= len(grown)]
        said = verdict(self.data.name, measures)
        if self.spans.valid is not None:
            measures["schema_valid"] = self.spans.valid
        return TaskFindings(self.data, self.spans, measures, curves, records, effects, scores, drawn, said)

    def attribute(self) -> tuple[EdgeScores, EdgeScores]:
        """Scores of all edges by true and by shuffled spans; kept in the run folder, because the rest rests on them."""
        paths = [self.folder.path / f"scores-{self.data.name}-{name}.safetensors" for name in ("true", "shuffled")]
        if not all(path.exists() for path in paths):
            size, graph, tables = self.config.batch_size, graph_of(self.subject), [self.data.table, self.data.shuffled]
            batches = [self.data.discovery[i : i + size] for i in range(0, len(self.data.discovery), size)]
            true, shuffled = (
                Accumulator(graph, table.names, crossing=True, bootstrap=bootstrap, seed=self.config.seed)
                for table, bootstrap in zip(tables, (self.config.bootstrap, 0), strict=True)
            )
            for batch in self.engine.watched(batches, f"{self.data.name}: scoring edges"):
                accumulate(
                    true, self.subject, batch, metric=self.data.metric, method=self.config.method, steps=self.config.steps,
                    ablation=method.ablation_of(self.config, self.data), order=self.data.table.order,
                    beside=[(shuffled, self.data.shuffled.order)],
                )  # fmt: skip
            for total, path in zip((true, shuffled), paths, strict=True):
                half = path.with_name(f".{path.name}.half")
                total.scores(f"{self.config.method}, {self.config.ablation} ablation", self.data.metric).save(
                    half, with_draws=True
                )
                half.replace(path)
        # Read back even when just written, so that an undisturbed and a resumed run compute with the same numbers.
        return EdgeScores.load(paths[0]), EdgeScores.load(paths[1])

    def evaluate(self, scores: EdgeScores, curves: dict[str, method.Curve]) -> list[Json]:
        """Run every circuit on every batch of evaluation pairs."""
        size, pairs = self.config.batch_size, self.data.evaluation
        flat = scores.summed()
        items = []
        for i in range(0, len(pairs), size):

            def compute(i: int = i) -> Json:
                drawn = method.at_proportions(method.random_order(flat, self.config.seed + i))
                return method.evaluate(
                    self.twins.here(), pairs[i : i + size], self.data, curves, drawn, self.config, self.engine.pause
                )

            items.append(WorkItem(f"{self.data.name}/run/{i:05d}", compute))
        return self._side_by_side(items, "running circuits")

    def take_out(self, curves: dict[str, method.Curve], place: int | None) -> list[Json]:
        """Run the first circuit that reaches the threshold without some of its nodes."""
        if place is None:
            return []
        circuit, size, items = curves["positional"].circuits[place], self.config.batch_size, []
        pairs = [self.data.evaluation[i] for i in method.spread(len(self.data.evaluation), self.config.n_parts)]
        for i in range(0, len(pairs), size):

            def compute(i: int = i) -> Json:
                return method.take_out(self.twins.here(), pairs[i : i + size], self.data, circuit, self.config)

            items.append(WorkItem(f"{self.data.name}/without/{i:05d}", compute))
        return self._side_by_side(items, "taking nodes out")

    def _side_by_side(self, items: list[WorkItem], title: str) -> list[Json]:
        with self.twins.side_by_side():
            return self.engine.map(self.folder, items, title=f"{self.data.name}: {title}", workers=self.twins.n)

    def _effects(self) -> Sequence[PositionEffect]:
        return position_effects(self.subject, self.data.discovery[: self.config.n_positions], by=self.data.metric)

    def _once(self, name: str, compute: object) -> Json:
        item = WorkItem(f"{self.data.name}/{name}", compute)  # type: ignore[arg-type]
        return LocalEngine(show_progress=False).map(self.folder, [item], title="")[0]

    def _refuse_if_not_done(self) -> None:
        done = self._once("accuracy", self._accuracy)
        right, n = int(np.sum(done["preferred"])), len(done["preferred"])
        if coin_flip_p(right, n) > 0.05 and right < n:
            raise TaskNotDone(
                f"{self.subject.name} prefers the answer in {right} of {n} pairs of {self.data.name!r}, no better than chance, "
                "so there is no circuit to find. Check the answers' leading spaces and the prompts' wording, or take a stronger "
                "model."
            )

    def _accuracy(self) -> Json:
        import torch

        from mediant.interventions.execute import run as forward
        from mediant.measures.metrics import Outcome

        preferred: list[float] = []
        for i in range(0, len(self.data.discovery), self.config.batch_size):
            batch = encode(self.subject, self.data.discovery[i : i + self.config.batch_size])
            with torch.no_grad():
                outcome = Outcome(batch, forward(self.subject, batch.base, keep=batch.keep).logits)
            preferred += outcome.preferred.double().tolist()
        return {"preferred": preferred}
