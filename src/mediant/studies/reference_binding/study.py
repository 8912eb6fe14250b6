"""Wire data, method, verdicts and measures: one call from a config to a result."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mediant.core.errors import SubjectError
from mediant.core.ranking import Ranking
from mediant.core.result import SCHEMA, Result
from mediant.core.site import Site
from mediant.measures.picture_judge import PictureJudge
from mediant.measures.picture_questions import Kind, PictureQuestions
from mediant.runs.engine import LocalEngine
from mediant.runs.folder import Json, RunFolder
from mediant.search.edge_knockout import KnockoutEffects
from mediant.studies.provenance import provenance
from mediant.studies.reference_binding import measures, method, task
from mediant.studies.reference_binding.bench import Bench
from mediant.studies.reference_binding.config import NAME, Config
from mediant.studies.reference_binding.method import FLOWS, WAYS, Flow, Reading
from mediant.studies.reference_binding.verdicts import PROPERTIES, Verdicts
from mediant.subject import catalogue
from mediant.subject.batch import Batch
from mediant.subject.endpoint import OpenAIEndpoint
from mediant.subject.generator import ImageGenerator, Latents, Pixels
from mediant.subject.loading import load
from mediant.tasks.requests import Request

LIMITS = [
    "That a property passes through the text shows a route, not that the model decides anything there.",
    "Cutting attention also takes away what only helps to read the reference; a lost property may have been lost on the way in.",
    "The judge stands in for people and for the paper's multimodal model; it knows this drawn world and nothing else.",
    "A small model that was trained for minutes divides its labour as it happens to; it says nothing about a large one.",
]
DROP_EARLY: list[Flow] = [("reference", "picture")]
DROP_LATE: list[Flow] = [("reference", "picture"), ("picture", "reference"), ("reference", "text"), ("text", "reference")]


@dataclass(frozen=True, eq=False)
class Data:
    """Everything that work needs beside the subject."""

    requests: task.Data
    verdicts: Verdicts
    planted: ImageGenerator | None
    questions: PictureQuestions | None = None


@dataclass(frozen=True, eq=False)
class Chosen:
    """What validation requests chose for one subject.

    Attributes:
        reading: property -> what the lens reads; `readings` has the share shown for every way and block.
        layer: property -> the block after which text is taken from another run; `patchings` has the share for every block.
        heads: property -> flow's end -> heads found to carry the reference there; `effects` has the ranking.
    """

    reading: Mapping[str, Reading]
    layer: Mapping[str, int]
    heads: Mapping[str, Mapping[str, Sequence[Site]]]
    readings: Mapping[str, Sequence[Json]]
    patchings: Mapping[str, Sequence[Json]]
    effects: Mapping[str, Mapping[str, Ranking]]


@dataclass(frozen=True, eq=False)
class Findings:
    """What one subject did, and what the page shows of it.

    Attributes:
        rows: property -> condition -> one verdict per request; of conditions in pairs, one per pair.
        pictures: property -> condition -> the first pictures.
        curves: property -> kind of schedule -> share of requests that still show the property, block by block.
    """

    subject: ImageGenerator
    chosen: Chosen
    rows: Mapping[str, Mapping[str, Sequence[bool]]]
    answers: Mapping[str, Mapping[str, Sequence[bool | None]]]
    pictures: Mapping[str, Mapping[str, Sequence[Pixels]]]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    drawn: Sequence[Mapping[str, bool]]
    drawn_pictures: Sequence[Pixels]


@dataclass(frozen=True, eq=False)
class AllFindings:
    """Both subjects, the natural one first."""

    config: Config
    data: Data
    subjects: Mapping[str, Findings]


def prepare(config: Config, subject: ImageGenerator) -> Data:
    """Everything that can be refused before work begins.

    Raises:
        SubjectError: the judge or the planted subject is not there, or the latter makes no pictures.
        SpanError: an instruction that cannot be found among the text encoder's tokens.
    """
    data = task.load(config)
    planted = load(config.planted, device=config.device, dtype=config.dtype) if config.planted else None
    if planted is not None and not isinstance(planted, ImageGenerator):
        raise SubjectError(f"{config.planted} writes; the planted subject has to make pictures")
    for name in PROPERTIES:
        method.encoded(subject, data.test[name][:1])
    asked = config.endpoint and OpenAIEndpoint(config.endpoint, config.endpoint_model, config.endpoint_key, 300.0)
    questions = PictureQuestions(asked) if asked else None
    return Data(data, Verdicts(PictureJudge.load(judge_folder(config.judge))), planted, questions)


def judge_folder(name: str) -> Path:
    """Folder of a judge, by its catalogue name or path.

    Raises:
        SubjectError: it has no weights here.
    """
    if name not in catalogue.models():
        return Path(name)
    card = catalogue.card(name)
    found = catalogue.shipped(card)
    if found is None:
        raise SubjectError(f"{name} is not with the package; make it with: {card.how_to_get}, and give --judge FOLDER/model")
    return found


def run(
    config: Config, subject: ImageGenerator, data: Data, folder: RunFolder, engine: LocalEngine
) -> tuple[Result, AllFindings]:
    """The whole study; every finished work item is in `folder`, so a killed run goes on where it stopped."""
    who = {"": subject} | ({"_planted": data.planted} if data.planted else {})
    found = {
        tail: _Run(
            Bench(config, each, data.verdicts, folder, engine, tail.strip("_") or "natural", data.questions), data.requests
        ).run()
        for tail, each in who.items()
    }
    every = AllFindings(config, data, found)
    for tail, one in found.items():
        for name, flows in one.chosen.effects.items():
            for query, ranking in flows.items():
                ranking.save(folder.path / f"heads_{name}_to_{query}{tail}.json")
    result = Result(
        schema_=SCHEMA, study=NAME, preset=folder.manifest.preset, limits=LIMITS,
        measures={k: v for tail, one in found.items() for k, v in measures.of_subject(config, data.verdicts, one, tail).items()},
        provenance=provenance(folder.manifest, subject)
        | {
            "data": data.requests.name,
            "chosen": {
                tail or "natural": {
                    name: {
                        "lens": one.chosen.reading[name].label, "patching": one.chosen.layer[name],
                        "heads": {q: [str(s) for s in sites] for q, sites in one.chosen.heads[name].items()},
                    }
                    for name in PROPERTIES
                }
                for tail, one in found.items()
            },
        },
    )  # fmt: skip
    return result, every


@dataclass(frozen=True, eq=False)
class _Run:
    """All interventions on one subject."""

    bench: Bench
    requests: task.Data

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.bench.config

    @property
    def subject(self) -> ImageGenerator:
        """The subject at work."""
        return self.bench.subject

    def run(self) -> Findings:
        """Choose on validation requests, then intervene on the others."""
        chosen = self._choose()
        for name in PROPERTIES:
            self._knockouts(name)
            self._heads(name, chosen.heads[name])
            self._lenses(name, chosen.reading[name])
            self._patchings(name, chosen.layer[name])
        curves = {name: self._curves(name) for name in PROPERTIES}
        drawn, pictures = self.bench.drawn(self.requests.text)
        bench = self.bench
        return Findings(self.subject, chosen, bench.rows, bench.answers, bench.pictures, curves, drawn, pictures)

    def _choose(self) -> Chosen:
        n_layers, n_heads = self.subject.shape.n_layers, self.subject.shape.n_heads
        readings = {name: self._readings(name) for name in PROPERTIES}
        patchings = {name: self._patchings_by_block(name) for name in PROPERTIES}
        effects = {name: {query: self._effects(name, query) for query in ("text", "picture")} for name in PROPERTIES}
        k = max(1, round(self.config.head_share * n_layers * n_heads))
        best = {name: max(rows, key=lambda one: one["shown"]) for name, rows in readings.items()}
        return Chosen(
            {name: Reading(one["way"], one["layer"]) for name, one in best.items()},
            {name: int(max(rows, key=lambda one: one["moved"])["layer"]) for name, rows in patchings.items()},
            {name: {query: [one.site for one in r.entries[:k]] for query, r in flows.items()} for name, flows in effects.items()},
            readings, patchings, effects,
        )  # fmt: skip

    def _readings(self, name: str) -> list[Json]:
        """Every way and block of the lens, with the share of validation requests whose property it shows."""
        n_layers, requests = self.subject.shape.n_layers, self.requests.validation[name]
        # The last block's text goes nowhere, so putting it back there can show nothing.
        ways = [Reading(way, layer) for way in WAYS for layer in range(n_layers - (way == "diagonal"))]
        return [
            {
                "way": one.way, "layer": one.layer,
                "shown": self.bench.share(f"lens {one.way} {one.layer}", name, requests, partial(self._lens, one, "text")),
            }
            for one in ways
        ]  # fmt: skip

    def _patchings_by_block(self, name: str) -> list[Json]:
        """Every block that text could be taken from, with the share of validation pairs in which the source's property moved."""
        pairs = self.requests.validation_pairs[name]
        bases, source = [pair.base for pair in pairs], {pair.base.name: pair.source for pair in pairs}
        return [
            {
                "layer": layer,
                "moved": self.bench.share(f"patch {layer}", name, bases, partial(self._patched, layer, "text", source), source),
            }
            for layer in range(self.subject.shape.n_layers - 1)
        ]  # fmt: skip

    def _effects(self, name: str, query: str) -> Ranking:
        """Heads by how much their view of the reference keeps a picture its own, over validation pairs."""
        pairs = {pair.base.name: pair for pair in self.requests.validation_pairs[name]}

        def compute(chunk: Sequence[Request]) -> Json:
            base = method.encoded(self.subject, chunk)
            other = method.encoded(self.subject, [method.with_reference_of(pairs[each.name]) for each in chunk])
            return {"effects": method.head_effects(self.subject, base, other, query, steps=self.config.steps).effects.tolist()}

        records = self.bench.mapped(
            f"{name}/effects of heads to {query}", [pair.base for pair in pairs.values()], compute, at_once=8
        )
        effects = np.concatenate([np.asarray(record["effects"]) for record in records])
        return KnockoutEffects(effects, query, "reference").ranking()

    def _knockouts(self, name: str) -> None:
        requests, padding = self.requests.test[name], self.config.padding
        flows: dict[str, list[Flow]] = {
            "baseline": [], "ref_to_text": [("reference", "text")], "ref_to_image": [("reference", "picture")],
            "ref_to_text_padding": [("reference", padding)], "ref_to_text_content": [("reference", "instruction")],
            "nothing of it": [("reference", "text"), ("reference", "picture")],
            **{f"{key} to {query}": [(key, query)] for key, query in FLOWS if key != "reference"},
        }  # fmt: skip
        for condition, cuts in flows.items():
            self.bench.judge(name, condition, requests, partial(self._cut, cuts, None))
            if condition.startswith("ref_to"):
                kind: Kind = "cut to picture" if condition == "ref_to_image" else "cut to text"
                self.bench.ask(kind, name, condition, requests, partial(self._cut, cuts, None), self._with_own)
        for draw in range(self.config.draws):
            for query in ("text", "picture"):
                self.bench.judge(name, f"random keys to {query} {draw}", requests, partial(self._cut_random, draw, query))

    def _heads(self, name: str, heads: Mapping[str, Sequence[Site]]) -> None:
        requests = self.requests.test[name]
        for query, sites in heads.items():
            flow = [("reference", query)]
            self.bench.judge(name, f"heads to {query}", requests, partial(self._cut, flow, sites))
            for draw in range(self.config.draws):
                matched = matched_heads(self.subject, sites, [self.config.seed, draw])
                self.bench.judge(name, f"random heads to {query} {draw}", requests, partial(self._cut, flow, matched))

    def _lenses(self, name: str, reading: Reading) -> None:
        requests = self.requests.test[name]
        self.bench.judge(name, "unconditional", requests, lambda _, chunk: self.bench.sample(self._empty(chunk)))
        self.bench.judge(name, "text alone", requests, lambda _, chunk: self.bench.sample(self._empty(chunk, instructed=True)))
        for slots in ("text", self.config.padding, "instruction"):
            lens = partial(self._lens, reading, slots)
            self.bench.judge(name, f"lens {slots}", requests, lens)
            self.bench.ask("lens", name, f"lens {slots}", requests, lens, self._with_empty)

    def _patchings(self, name: str, layer: int) -> None:
        pairs = self.requests.pairs[name]
        bases, source = [pair.base for pair in pairs], {pair.base.name: pair.source for pair in pairs}
        self.bench.judge(name, "base shows its own", bases, lambda batch, _: self.bench.sample(batch))
        self.bench.judge(name, "base shows source's", bases, lambda batch, _: self.bench.sample(batch), source)
        self.bench.judge(name, "source shows its own", [pair.source for pair in pairs], lambda batch, _: self.bench.sample(batch))
        for slots in ("text", self.config.padding, "instruction"):
            patched = partial(self._patched, layer, slots, source)
            self.bench.judge(name, f"patched {slots}", bases, patched, source)
            self.bench.ask("swap", name, f"patched {slots}", bases, patched, partial(self._with_both, source))
        # Text of a third run: what it moves, it moves by being another's.
        half = len(bases) // 2
        stranger = {each.name: bases[(i + half) % len(bases)] for i, each in enumerate(bases)}
        self.bench.judge(name, "patched stranger", bases, partial(self._patched, layer, "text", stranger), source)

    def _curves(self, name: str) -> dict[str, list[float]]:
        """Share of validation requests that still show the property, for knockouts that begin, end or stand at each block."""
        requests, n = self.requests.validation[name], self.subject.shape.n_layers
        spans = {
            "from block": [range(at, n) for at in range(n)], "up to block": [range(at + 1) for at in range(n)],
            "around block": [range(at, min(n, at + self.config.window)) for at in range(n)],
        }  # fmt: skip
        found = {
            f"{kind}: reference to {query}": [
                self.bench.share(f"{kind} {at} to {query}", name, requests, partial(self._cut_in, layers, [("reference", query)]))
                for at, layers in enumerate(where)
            ]
            for kind, where in spans.items()
            for query in ("text", "picture")
        }
        dropped = [self.bench.share(f"dropped at {at}", name, requests, partial(self._drop, at)) for at in range(n + 1)]
        return found | {"dropped at block": dropped}

    def _cut(self, flows: Sequence[Flow], heads: Sequence[Site] | None, batch: Batch, _: Sequence[Request]) -> Latents:
        return method.knockout(self.subject, batch, flows, steps=self.config.steps, heads=heads)

    def _cut_in(self, layers: Sequence[int], flows: Sequence[Flow], batch: Batch, _: Sequence[Request]) -> Latents:
        return method.knockout(self.subject, batch, flows, steps=self.config.steps, layers=layers)

    def _cut_random(self, draw: int, query: str, batch: Batch, _: Sequence[Request]) -> Latents:
        keyed = method.random_keys(batch, self.config.seed + draw)
        return method.knockout(self.subject, keyed, [("random keys", query)], steps=self.config.steps)

    def _drop(self, at: int, batch: Batch, _: Sequence[Request]) -> Latents:
        return method.split_knockout(self.subject, batch, DROP_EARLY, DROP_LATE, at, steps=self.config.steps)

    def _lens(self, reading: Reading, slots: str, batch: Batch, chunk: Sequence[Request]) -> Latents:
        return method.lens(
            self.subject, batch, self._empty(chunk), reading, slots=slots, steps=self.config.steps,
            lens_steps=self.config.lens_steps,
        )  # fmt: skip

    def _patched(self, layer: int, slots: str, source: Mapping[str, Request], batch: Batch, chunk: Sequence[Request]) -> Latents:
        given = method.encoded(self.subject, [source[each.name] for each in chunk])
        return method.patched(self.subject, given, batch, layer=layer, slots=slots, steps=self.config.steps)

    def _with_own(self, batch: Batch, chunk: Sequence[Request]) -> list[list[Pixels]]:
        """Reference and untouched picture of each request."""
        made = self.subject.pixels(self.bench.sample(batch))
        return [[each.references[0], made[i]] for i, each in enumerate(chunk)]

    def _with_empty(self, _: Batch, chunk: Sequence[Request]) -> list[list[Pixels]]:
        """Reference of each request, and the picture with nothing put in."""
        made = self.subject.pixels(self.bench.sample(self._empty(chunk)))
        return [[each.references[0], made[i]] for i, each in enumerate(chunk)]

    def _with_both(self, source: Mapping[str, Request], batch: Batch, chunk: Sequence[Request]) -> list[list[Pixels]]:
        """Both references of each pair, and the untouched picture."""
        made = self.subject.pixels(self.bench.sample(batch))
        return [[source[each.name].references[0], each.references[0], made[i]] for i, each in enumerate(chunk)]

    def _empty(self, chunk: Sequence[Request], *, instructed: bool = False) -> Batch:
        """Runs without a reference, with other noise than the run that the lens reads."""
        return method.without(self.subject, chunk, instructed=instructed, other_noise=1)


def matched_heads(subject: ImageGenerator, sites: Sequence[Site], seed: Sequence[int]) -> list[Site]:
    """As many random heads of the same blocks, none of them among `sites` where there are others."""
    rng = np.random.default_rng(list(seed))
    found = []
    for layer in sorted({site.layer for site in sites if site.layer is not None}):
        taken = [site.head for site in sites if site.layer == layer]
        free = [head for head in range(subject.shape.n_heads) if head not in taken]
        pool = free if len(free) >= len(taken) else list(range(subject.shape.n_heads))
        found += [Site("head_z", layer, int(head)) for head in rng.permutation(pool)[: len(taken)]]
    return found
