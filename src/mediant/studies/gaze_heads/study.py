"""Wire data, method, controls and measures: one call from a config to a result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from mediant.core.errors import SubjectError
from mediant.core.ranking import Ranking
from mediant.core.result import SCHEMA, Measure, Result
from mediant.measures.judges import same_text
from mediant.measures.panel_judge import PanelJudge
from mediant.runs.engine import LocalEngine, WorkItem
from mediant.runs.folder import Json, RunFolder
from mediant.search.gaze import GazeScores
from mediant.studies.gaze_heads import carriers, method, task
from mediant.studies.gaze_heads.config import NAME, Config
from mediant.studies.gaze_heads.measures import CONTROL, Measuring, Steered, looks, shares
from mediant.studies.gaze_heads.method import HeadSets, SiteSet
from mediant.studies.provenance import provenance
from mediant.subject import Subject, load
from mediant.subject.endpoint import OpenAIEndpoint
from mediant.subject.vision import VisionSubject
from mediant.tasks.regions import RegionPicture
from mediant.tasks.strips import PanelStrip

HEADS_FILE = "heads.json"
Draws = Mapping[str, Sequence[SiteSet]]
LIMITS = [
    "That turning these heads turns the description shows that they suffice to steer it, not that the model needs them to see.",
    "A head's score is attention at one token of one kind of question; heads that look while speaking only are not ranked by it.",
    "Strips are laid out left to right on one line; nothing is said about pages of several rows.",
    "Turned heads attend to the target far more than they do by themselves; with a bias of thousands they see nothing else.",
]


@dataclass(frozen=True, eq=False)
class Chosen:
    """What validation strips chose: among `choices`, of K and beta; `sweep` has all K at that beta, beside random heads."""

    k: int
    beta: float
    choices: list[Json]
    sweep: list[Json]


@dataclass(frozen=True, eq=False)
class Beside:
    """What a second model does on the same strips: its own heads, chosen as the first one's were."""

    subject: VisionSubject
    ranking: Ranking
    found: GazeScores
    confirmed: GazeScores
    sets: HeadSets
    chosen: Chosen
    captions: list[Json]
    answers: Steered


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything the page shows beyond the measures."""

    config: Config
    data: task.Data
    ranking: Ranking
    found: GazeScores
    confirmed: GazeScores
    sets: HeadSets
    chosen: Chosen
    settled: dict[str, list[list[Json]]]
    answers: Steered
    narration: Steered
    verdicts: dict[str, list[list[Json]]]
    narrations: dict[str, list[list[Json]]]
    regions: Steered | None
    carriers: list[Json]
    path: Json
    reading: Json
    beside: Beside | None


def prepare(config: Config, subject: Subject) -> task.Data:
    """Everything that can be refused before work begins.

    Raises:
        SubjectError: the model, or its twin, has no eyes.
        TaskError: too few strips, or a question the model's prompt cannot hold.
        RegionError: panels smaller than an image token.
    """
    data = task.load(config, subject)
    assert isinstance(subject, VisionSubject)  # noqa: S101 - refused above otherwise
    first = data.discovery[0]
    twin = None if config.twin is None else load(config.twin, device=config.device, dtype=config.dtype)
    if twin is not None and not isinstance(twin, VisionSubject):
        raise SubjectError(f"{config.twin} looks at no images; the twin has to be a vision-language model too")
    for each in (subject, *([twin] if twin else [])):
        each.look([first.pixels], [task.asked(config, 0)], regions=[method.panels_of(first)])
    return replace(data, twin=twin)


def run(
    config: Config, subject: VisionSubject, data: task.Data, folder: RunFolder, engine: LocalEngine
) -> tuple[Result, Findings]:
    """The whole study; every finished work item is in `folder`, so a killed run goes on where it stopped."""
    with torch.no_grad():
        found = _Run(config, subject, data, folder, engine).run()
    found.ranking.save(folder.path / HEADS_FILE)
    result = Result(
        schema_=SCHEMA,
        study=NAME,
        preset=folder.manifest.preset,
        measures=_measures(found),
        limits=[
            *LIMITS,
            *([] if all(strip.captions for strip in data.test) else [_OWN_CAPTIONS]),
            *([subject.family.coupled] if subject.family.coupled else []),
        ],
        provenance=provenance(folder.manifest, subject)
        | {"data": data.name, "k": found.chosen.k, "beta": found.chosen.beta, "heads": [str(s) for s in found.sets.top]},
    )
    return result, found


_OWN_CAPTIONS = "Where strips came without captions, the subject's own words about each panel alone stand for them."


def _measures(found: Findings) -> dict[str, Measure]:
    config = found.config
    measuring = Measuring(config, found.data.exact)
    measures = measuring.settled(found.settled, task.asked(config, 1))
    measures |= looks(found.confirmed, found.found, found.sets, found.ranking, config.seed)
    measures |= shares(found.sets, len(found.ranking))
    measures["k_share_of_heads_as_published"] = _peak(found)
    measures |= measuring.redirect("vqa_redirect", found.answers, config.question_this)
    measures["vqa_unaffected_share"] = measuring.per_strip(
        found.answers.answers["gaze"][0],
        lambda r: float(found.answers.before(r)["described"] == r["target"]),
        "share of targets that the model describes anyway, left out of the corrected accuracy",
    )
    measures |= measuring.redirect("narration_redirect", found.narration, config.question_describe)
    if found.verdicts:
        measures |= measuring.judged("vqa_redirect", found.answers, found.verdicts, config.endpoint_model)
    measures |= measuring.dynamic(found.narrations)
    if found.carriers:
        measures |= measuring.carriers(found.carriers)
    if found.beside is not None:
        measures |= _measures_beside(found, found.beside, measuring)
    if found.regions is not None:
        measures |= measuring.regions(found.regions.answers, found.regions.baseline)
    return measures


_SEEING = (
    "caption_accuracy",
    "caption_accuracy_as_published",
    "diagonal_score_top10",
    "routing_accuracy_best",
    "k_share_of_heads",
)
_REDIRECT = ("vqa_redirect_accuracy", "vqa_redirect_attributes", "vqa_redirect_accuracy_as_published")


def _measures_beside(found: Findings, twin: Beside, measuring: Measuring) -> dict[str, Measure]:
    """The twin's own numbers, as the first model's are made."""
    config = found.config
    measures = measuring.settled({"untouched": [twin.captions]}, task.asked(config, 1))
    measures |= looks(twin.confirmed, twin.found, twin.sets, twin.ranking, config.seed)
    measures |= shares(twin.sets, len(twin.ranking))
    measures |= measuring.redirect("vqa_redirect", twin.answers, config.question_this)
    stems = (*_SEEING, *_REDIRECT)
    every = [name for name in measures for stem in stems if name in (stem, f"{stem}{CONTROL}")]
    kept = {f"{name}_twin": measures[name] for name in every}
    return {
        name: one.model_copy(update={"control": f"{one.control}_twin" if one.control else None}) for name, one in kept.items()
    }


def _peak(found: Findings) -> Measure:
    best = max(found.chosen.sweep, key=lambda one: one["as_published"])
    return Measure(
        value=best["k"] / len(found.ranking), n=len(found.ranking), ci95=None, reason="a count, not an estimate",
        definition="share of all heads at which accuracy as published is highest on validation strips, at any K",
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Run:
    config: Config
    subject: VisionSubject
    data: task.Data
    folder: RunFolder
    engine: LocalEngine

    def run(self) -> Findings:
        """Rank, choose, steer, narrate."""
        config = self.config
        discovery, test = list(self.data.discovery), self._captioned(self.data.test, "test")
        validation = self._captioned(self.data.validation, "validation")
        found = self._gaze(discovery, "discovery")
        ranking = found.ranking(config.score)
        confirmed = self._gaze(test, "test")
        chosen = self._choose(found, validation)
        sets = method.head_sets(found, config.score, chosen.k, draws=config.draws, seed=config.seed)
        settled = {"untouched": [self._captions(test, (), chosen.beta, "untouched")]} | {
            name: [self._captions(test, heads, chosen.beta, f"{name}-{i}") for i, heads in enumerate(draws[:1])]
            for name, draws in sets.named().items()
        }
        who, beta = sets.named(), chosen.beta
        answers = self._steered("vqa", test, config.question_this, config.answer_tokens, who, beta)
        narration = self._steered("narration", test, config.question_describe, config.narration_tokens, who, beta)
        verdicts = self._judged(test, answers)
        narrations = self._narrations(test[: config.n_dynamic], sets, chosen.beta)
        regions = self._regions(sets, chosen.beta)
        carried = self._carriers(test[: config.n_carriers], sets)
        control = sets.layer_matched[0] or sets.bottom
        path = self._once(
            "trajectory",
            lambda: method.trajectory(
                self.subject, test[0], "Describe all panels in order.", config.panels * config.segment_tokens, [sets.top, control]
            ),
        )
        reading = self._once("reading", lambda: method.reversed_reading(self.subject, test[: max(2, len(test) // 2)], config))
        data = replace(self.data, validation=tuple(validation), test=tuple(test))
        twin = self.data.twin
        beside = replace(self, subject=twin, engine=self._engine("twin/")).short(validation, test) if twin else None
        return Findings(
            config, data, ranking, found, confirmed, sets, chosen, settled, answers, narration, verdicts, narrations, regions,
            carried, path, reading, beside,
        )  # fmt: skip

    def short(self, validation: list[PanelStrip], test: list[PanelStrip]) -> Beside:
        """Rank, choose and redirect alone."""
        config = self.config
        found = self._gaze(list(self.data.discovery), "discovery")
        chosen = self._choose(found, validation, sweep=False)
        sets = method.head_sets(found, config.score, chosen.k, draws=config.draws, seed=config.seed)
        only = {name: draws for name, draws in sets.named().items() if name in ("gaze", CONTROL.strip("_"))}
        return Beside(
            self.subject, found.ranking(config.score), found, self._gaze(test, "test"), sets, chosen,
            self._captions(test, (), chosen.beta, "untouched"),
            self._steered("vqa", test, config.question_this, config.answer_tokens, only, chosen.beta),
        )  # fmt: skip

    def _engine(self, part: str) -> LocalEngine:
        return LocalEngine(show_progress=self.engine.show_progress, part=part)

    def _captioned(self, strips: Sequence[PanelStrip], name: str) -> list[PanelStrip]:
        """Strips with captions, the subject's own where there are none."""
        if all(strip.captions for strip in strips):
            return list(strips)

        def describe() -> Json:
            made = task.with_captions(self.subject, strips, self.config.question_this, self.config.answer_tokens)
            return {"captions": [strip.captions for strip in made]}

        said = self._once(f"captions/{name}", describe)["captions"]
        return [replace(strip, captions=tuple(texts)) for strip, texts in zip(strips, said, strict=True)]

    def _named(self, pictures: Sequence[RegionPicture]) -> list[RegionPicture]:
        """Pictures whose things have names, the subject's own where these are to count."""
        if self.config.captions == "given" or not pictures:
            return list(pictures)

        def call() -> Json:
            made = task.with_names(self.subject, pictures, self.config.question_here, self.config.answer_tokens)
            return {"names": [[one.names, one.facts] for one in made]}

        said = self._once("captions/regions", call)["names"]
        return [
            replace(picture, names=tuple(names), facts=tuple(map(tuple, facts)))
            for picture, (names, facts) in zip(pictures, said, strict=True)
        ]

    def _gaze(self, strips: Sequence[PanelStrip], name: str) -> GazeScores:
        items = [WorkItem(f"gaze/{name}/{strip.id}", _later(method.gaze, self.subject, strip, self.config)) for strip in strips]
        records = self.engine.map(self.folder, items, title=f"where heads look: {name}")
        mass, spread = (np.asarray([record[part] for record in records], dtype=np.float64) for part in ("mass", "spread"))
        return GazeScores(mass, spread)

    def _choose(self, found: GazeScores, strips: list[PanelStrip], *, sweep: bool = True) -> Chosen:
        """The K and beta with the highest accuracy on validation strips, then all K at that beta, beside random heads."""
        config, total = self.config, self.subject.shape.n_layers * self.subject.shape.n_heads
        ks = sorted({min(k, total) or total for k in config.ks})
        limit = max(1, int(config.largest_share * total))
        if not any(k <= limit for k in ks):
            ks = [limit, *ks]
        baseline = self._open(strips, config.question_this, config.answer_tokens, "validation")
        tried = [(k, beta) for k in ks if k <= limit for beta in sorted(config.betas)]
        point = partial(self._sweep_point, found, strips, baseline)
        items = [WorkItem(f"choice/{k}/{beta:g}", _later(point, k, beta)) for k, beta in tried]
        choices = self.engine.map(self.folder, items, title="choosing K and beta")
        # Of equals the one that says more facts, then the fewer heads, then the gentler bias.
        best = max(choices, key=lambda one: (one["accuracy"], one["attributes"], -one["k"]))
        items = [WorkItem(f"sweep/{k}", _later(self._beside_random, point, k, best["beta"])) for k in (ks if sweep else ())]
        points = self.engine.map(self.folder, items, title="how many heads it takes")
        return Chosen(best["k"], best["beta"], choices, points)

    def _sweep_point(
        self, scores: GazeScores, strips: list[PanelStrip], baseline: list[Json], k: int, beta: float, *, random: bool = False
    ) -> Json:
        """Accuracy when the K best heads, or random heads of the same layers, are turned."""
        config, measuring = self.config, Measuring(self.config, self.data.exact)
        sets = method.head_sets(scores, config.score, k, draws=1, seed=config.seed)
        heads = sets.layer_matched[0] if random else sets.top
        found = method.redirected(self.subject, strips, config.question_this, config.answer_tokens, config, heads, beta)
        steered = Steered({"gaze": [found]}, baseline)
        kept = [found[i] for i in steered.eligible()]
        hits = [
            r["described"] == r["target"] and not r["junk"] and not same_text(r["text"], steered.before(r)["text"]) for r in found
        ]
        return {
            "k": k, "beta": beta, "as_published": float(np.mean(hits)),
            "accuracy": float(np.mean([measuring.right(r) for r in kept])) if kept else 0.0,
            "attributes": float(np.mean([np.mean(r["facts"]) for r in kept])) if kept and self.data.exact else 0.0,
        }  # fmt: skip

    @staticmethod
    def _beside_random(point: Callable[..., Json], k: int, beta: float) -> Json:
        beside = point(k, beta, random=True)
        return point(k, beta) | {f"{name}_random": beside[name] for name in ("accuracy", "attributes", "as_published")}

    def _captions(self, strips: list[PanelStrip], heads: SiteSet, beta: float, name: str) -> list[Json]:
        return self._answers(f"settled/{name}", lambda: method.captions(self.subject, strips, self.config, heads, beta))

    def _open(self, strips: list[PanelStrip], question: str, tokens: int, name: str) -> list[Json]:
        return self._answers(f"open/{name}", lambda: method.unsteered(self.subject, strips, question, tokens, self.config))

    def _answers(self, name: str, compute: Callable[[], list[Json]]) -> list[Json]:
        found: list[Json] = self._once(name, lambda: {"answers": compute()})["answers"]
        return found

    def _steered(self, name: str, strips: list[PanelStrip], question: str, tokens: int, who: Draws, beta: float) -> Steered:
        def turned(heads: SiteSet) -> Json:
            return {"answers": method.redirected(self.subject, strips, question, tokens, self.config, heads, beta)}

        baseline = self._open(strips, question, tokens, name)
        found = self._by_condition(f"{name}: turning heads", who, turned, name)
        return Steered({key: [one["answers"] for one in draws] for key, draws in found.items()}, baseline)

    def _judged(self, strips: list[PanelStrip], steered: Steered) -> dict[str, list[list[Json]]]:
        """What a model that sees makes of every steered answer; nothing where no endpoint is given."""
        if self.config.endpoint is None:
            return {}
        judge = PanelJudge(OpenAIEndpoint(self.config.endpoint, self.config.endpoint_model, self.config.endpoint_key, 300.0))
        keys = [(name, i) for name, draws in steered.answers.items() for i in range(len(draws))]
        items = [
            WorkItem(f"judge/{name}/{i}", _later(method.verdicts, judge, strips, steered.answers[name][i])) for name, i in keys
        ]
        records = self.engine.map(self.folder, items, title="asking the judge")
        return {name: [r["verdicts"] for (k, _), r in zip(keys, records, strict=True) if k == name] for name in steered.answers}

    def _narrations(self, strips: list[PanelStrip], sets: HeadSets, beta: float) -> dict[str, list[list[Json]]]:
        if not strips:
            return {}

        def told(heads: SiteSet) -> Json:
            return {"narrations": method.narrated(self.subject, strips, self.config, heads, beta)}

        found = self._by_condition("narrating by schedule", sets.named(), told, "dynamic")
        return {key: [one["narrations"] for one in draws] for key, draws in found.items()}

    def _regions(self, sets: HeadSets, beta: float) -> Steered | None:
        pictures = self._named(self.data.regions)
        if not pictures:
            return None
        baseline = self._answers("open/regions", lambda: method.looked_at(self.subject, pictures, self.config, (), beta))

        def looked(heads: SiteSet) -> Json:
            return {"answers": method.looked_at(self.subject, pictures, self.config, heads, beta)}

        found = self._by_condition("looking at regions", sets.named(), looked, "regions")
        return Steered({key: [one["answers"] for one in draws] for key, draws in found.items()}, baseline)

    def _carriers(self, strips: Sequence[PanelStrip], sets: HeadSets) -> list[Json]:
        who = sets.named() | carriers.layer_sets(sets.every, sets.top)
        items = [
            WorkItem(f"carriers/{strip.id}", _later(carriers.carried, self.subject, strip, self.config, who)) for strip in strips
        ]
        return self.engine.map(self.folder, items, title="what carries the panel")

    def _by_condition(self, title: str, who: Draws, compute: Callable[[SiteSet], Json], name: str) -> dict[str, list[Json]]:
        """One work item per head set and draw."""
        keys = [(key, i) for key, draws in who.items() for i in range(len(draws))]
        items = [WorkItem(f"{name}/{key}/{i}", _later(compute, who[key][i])) for key, i in keys]
        records = self.engine.map(self.folder, items, title=title)
        return {key: [r for (k, _), r in zip(keys, records, strict=True) if k == key] for key in who}

    def _once(self, name: str, compute: Callable[[], Json]) -> Json:
        return LocalEngine(show_progress=False, part=self.engine.part).map(self.folder, [WorkItem(name, compute)], title="")[0]


def _later(function: Callable[..., Json], *args: object) -> Callable[[], Json]:
    return lambda: function(*args)
