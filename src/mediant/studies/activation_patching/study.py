"""Wire data, method, controls and measures: one call from a config to a result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mediant.core.errors import OutOfRange
from mediant.core.pair import Pair
from mediant.core.ranking import Ranking, Rule
from mediant.core.result import SCHEMA, Result
from mediant.core.site import Site
from mediant.measures.behaviour import refuse_unless_done
from mediant.measures.metrics import metric
from mediant.runs.engine import LocalEngine, WorkItem
from mediant.runs.folder import Json, RunFolder
from mediant.search.patching import Patcher, ranking_of
from mediant.studies.activation_patching import method
from mediant.studies.activation_patching import task as data_of
from mediant.studies.activation_patching.config import NAME, Config
from mediant.studies.activation_patching.measures import Measuring, verdict
from mediant.studies.provenance import provenance
from mediant.subject import Subject
from mediant.tasks import plain_text
from mediant.tasks.encode import encode, token_columns

Measurer = Callable[[Patcher, method.HeadSets], dict[str, list[method.Numbers]]]
LIMITS = [
    "Effects are of replacing activations by those of one counterfactual prompt; another counterfactual asks another question.",
    "Heads are ranked one at a time, so parts that stand in for each other (back-ups) are missed; see `interplay`.",
    "A joint effect near the total effect shows that the heads are needed here, not that they are the whole mechanism.",
    "Nothing is said about how a head does its work, nor about prompts unlike these templates.",
]


@dataclass(frozen=True)
class Findings:
    """Everything the page shows beyond the measures."""

    data: data_of.Data
    ranking: Ranking
    top: tuple[Site, ...]
    shown: list[Json]
    heads: Json
    attention: Json
    rows: list[Json]


def prepare(config: Config, subject: Subject) -> data_of.Data:
    """Everything that can be refused before work begins.

    Raises:
        OutOfRange: more heads asked for than the subject has.
        UnknownName: no such task or metric.
        TaskError: a pair that cannot be used, named.
    """
    n = subject.shape.n_layers * subject.shape.n_heads
    if config.top_k >= n:
        raise OutOfRange(
            f"top_k = {config.top_k}, but {subject.name} has {n} heads, and controls need others beside the chosen; lower it"
        )
    data = data_of.load(config, subject)
    metric(data.metric)
    plain_text.sentences(config.n_texts, seed=config.seed)
    for pairs in (data.shown, data.discovery, data.confirm, data.heldout):
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
        self._pairs: dict[str, Sequence[Pair]] = {}
        self._patcher = lru_cache(maxsize=2)(self._make_patcher)

    def run(self) -> tuple[Result, Findings]:
        """Rank, map, confirm, measure."""
        ranking, discovery = self.rank()
        sets = method.head_sets(self.subject, ranking, k=self.config.top_k, draws=self.config.random_draws, seed=self.config.seed)
        shown = self.map_effects()
        attention = self._map(
            "attention", self._batches("attended", self.data.shown[:1]), lambda r: {"weights": method.attention_of(r, sets.top)}
        )[0]
        confirmed = self.noising("confirm", self.data.confirm, method.confirm, sets)
        few = sets.fewer(self.config.control_draws)
        confirmed["restored"] = self.denoising(self.data.confirm, few)
        heldout = self.noising("heldout", self.data.heldout, method.against_layers, few)
        disturbed = self.disturb(few)
        measures = Measuring(self.config, self.data).all(confirmed, heldout, disturbed)
        result = Result(
            schema_=SCHEMA,
            study=NAME,
            preset=self.folder.manifest.preset,
            measures=measures,
            limits=[*LIMITS, *_fewer(self.config, self.data), verdict(measures)],
            provenance=provenance(self.folder.manifest, self.subject)
            | {"top_heads": [str(s) for s in sets.top], "metric": self.data.metric},
        )
        rows = _item_rows(self.data, confirmed, heldout)
        return result, Findings(self.data, ranking, sets.top, shown, discovery, attention, rows)

    def rank(self) -> tuple[Ranking, Json]:
        """Check that the task is done, then patch every head on the discovery pairs."""
        batches = self._batches("discovery", self.data.discovery)
        base = self._map("discovery/base", batches, lambda r: method.baseline(r))
        preferred, total = (np.concatenate([r[name] for r in base]) for name in ("preferred", "total"))
        refuse_unless_done(preferred, total, task=self.data.name, subject=self.subject.name)
        layers = range(self.subject.shape.n_layers)
        records = [
            self._map(f"heads/{layer:02d}", [batch], lambda r, la=layer: {"effects": method.head_effects(r, la)})  # type: ignore[misc]
            for batch, layer in self._tracked([(b, la) for b in batches for la in layers], "ranking heads")
        ]
        n = len(batches)
        flat = [one[0]["effects"] for one in records]
        tables = [np.concatenate(flat[i * len(layers) : (i + 1) * len(layers)], axis=0) for i in range(n)]
        effects = np.concatenate(tables, axis=1)
        rule: Rule = "absolute" if self.config.rank_by == "absolute" else "most_negative"
        ranking = ranking_of(
            self.subject.heads(), effects, self.data.discovery, method="activation patching, noising", by=self.data.metric,
            seed=self.config.seed,
        )  # fmt: skip
        return Ranking(ranking.unit, ranking.entries, rule, ranking.metric, ranking.method), {"mean": effects.mean(1).tolist()}

    def map_effects(self) -> list[Json]:
        """Layer x position x component effects on the aligned pairs."""
        batches = self._batches("shown", self.data.shown)
        columns = [column.span for column in token_columns(self.subject, self.data.shown)]
        jobs = [(b, i) for b in batches for i in range(len(columns))]
        return [
            self._map(f"map/{i:02d}", [batch], lambda r, at=i: {"column": at, "effects": method.effect_map(r, columns[at])})[0]  # type: ignore[misc]
            for batch, i in self._tracked(jobs, "mapping layers x positions")
        ]

    def noising(self, stage: str, pairs: Sequence[Pair], measure: Measurer, sets: method.HeadSets) -> Json:
        """Counterfactual values into the clean run: joint effects of head sets; empty where there are no pairs."""
        records = [
            self._map(stage, [batch], lambda r: method.baseline(r) | {"effects": measure(r, sets)})[0]
            for batch in self._tracked(self._batches(stage, pairs), f"{stage} ({len(pairs)} pairs)")
        ]
        return _join(records)

    def denoising(self, pairs: Sequence[Pair], sets: method.HeadSets) -> Json:
        """Clean values into the counterfactual run: what the head sets restore."""
        records = []
        for name, batch in self._tracked(self._batches("restore", pairs), f"restore ({len(pairs)} pairs)"):

            def compute(part: Sequence[Pair] = batch) -> Json:
                ready = method.patcher(self.subject, part, self.data.metric, "denoising")
                return {"effects": method.against_layers(ready, sets)}

            records.append(self._once(WorkItem(f"restore/{name}", compute))["effects"])
        return {part: method.per_pair([r[part] for r in records]) for part in records[0]}

    def disturb(self, sets: method.HeadSets) -> np.ndarray:
        """KL on unrelated text under mean ablation of the top heads and of layer-matched sets."""
        texts = sorted(plain_text.sentences(self.config.n_texts, seed=self.config.seed), key=lambda text: (len(text), text))
        size = max(1, self.config.batch_size)
        tested = [sets.top, *sets.layer_matched]
        items = [
            WorkItem(f"texts/{i:04d}", lambda part=texts[i : i + size]: {"kl": method.disturbed(self.subject, part, tested)})  # type: ignore[misc]
            for i in range(0, len(texts), size)
        ]
        return method.per_pair([record["kl"] for record in self.engine.map(self.folder, items, title="unrelated text")])

    def _make_patcher(self, name: str) -> Patcher:
        return method.patcher(self.subject, self._pairs[name], self.data.metric)

    def _batches(self, stage: str, pairs: Sequence[Pair]) -> list[tuple[str, Sequence[Pair]]]:
        size = self.config.batch_size
        batches: list[tuple[str, Sequence[Pair]]] = [
            (f"{stage}-{i:04d}", tuple(pairs[i : i + size])) for i in range(0, len(pairs), size)
        ]
        self._pairs |= dict(batches)
        return batches

    def _map(self, stage: str, batches: Sequence[tuple[str, Sequence[Pair]]], compute: Callable[[Patcher], Json]) -> list[Json]:
        return [self._once(WorkItem(f"{stage}/{name}", lambda name=name: compute(self._patcher(name)))) for name, _ in batches]  # type: ignore[misc]

    def _once(self, item: WorkItem) -> Json:
        return LocalEngine(show_progress=False).map(self.folder, [item], title="")[0]

    def _tracked(self, jobs: Sequence[Any], title: str) -> Any:
        return self.engine.watched(jobs, title)


def _join(records: Sequence[Json]) -> Json:
    """Batches of one stage as whole tables; empty when the stage has no pairs."""
    if not records:
        return {}
    joined: Json = {name: np.concatenate([r[name] for r in records]) for name in ("before", "total", "preferred", "greedy")}
    joined["effects"] = {name: method.per_pair([r["effects"][name] for r in records]) for name in records[0]["effects"]}
    return joined


def _fewer(config: Config, data: data_of.Data) -> list[str]:
    """What to say where there were fewer pairs than asked for."""
    parts = [("ranking", config.n_discovery, data.discovery), ("confirmation", config.n, data.confirm)]
    short = [f"{len(found)} of the {asked} pairs asked for in {name}" for name, asked, found in parts if len(found) < asked]
    return [f"There were only {' and '.join(short)}; intervals are as wide as that makes them."] if short else []


def _item_rows(data: data_of.Data, confirmed: Json, heldout: Json) -> list[Json]:
    rows: list[Json] = []
    for split, pairs, found in (("confirm", data.confirm, confirmed), ("held out", data.heldout, heldout)):
        for i, pair in enumerate(pairs):
            rows.append(
                {
                    "id": pair.id,
                    "split": split,
                    "prompt": pair.clean.text,
                    "answer": pair.answer,
                    "before": float(found["before"][i]),
                    "total": float(found["total"][i]),
                    "preferred": bool(found["preferred"][i]),
                    "top": float(found["effects"]["top"][0][i]),
                    "layer_matched": float(found["effects"]["layer_matched"][:, i].mean()),
                }
            )
    return rows
