"""Wire data, method, verdicts and measures: one call from a config to a result."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mediant.core.errors import SubjectError
from mediant.core.result import SCHEMA, Result
from mediant.measures.picture_judge import PictureJudge
from mediant.measures.picture_questions import PictureQuestions
from mediant.runs.engine import LocalEngine
from mediant.runs.folder import RunFolder
from mediant.studies.provenance import provenance
from mediant.studies.reference_binding import measures, task
from mediant.studies.reference_binding.bench import Bench
from mediant.studies.reference_binding.conditions import Conditions
from mediant.studies.reference_binding.config import NAME, Config
from mediant.studies.reference_binding.experiment import Experiment, Findings
from mediant.studies.reference_binding.verdicts import AskedVerdicts, ColourVerdicts, DrawnVerdicts, Verdicts
from mediant.subject import catalogue
from mediant.subject.endpoint import OpenAIEndpoint
from mediant.subject.generator import ImageGenerator
from mediant.subject.loading import load
from mediant.subject.twins import Twins
from mediant.tasks.encode_requests import encoded

LIMITS = [
    "That a property passes through the text shows a route, not that the model decides anything there.",
    "Cutting attention also takes away what only helps to read the reference; a lost property may have been lost on the way in.",
    "The judge stands in for people and for the paper's multimodal model; it knows this drawn world and nothing else.",
    "A small model that was trained for minutes divides its labour as it happens to; it says nothing about a large one.",
]


@dataclass(frozen=True, eq=False)
class Data:
    """Everything that work needs beside the subject."""

    requests: task.Data
    verdicts: Verdicts
    planted: ImageGenerator | None
    questions: PictureQuestions | None = None


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
    for name in config.properties:
        encoded(subject, data.test[name][:1])
    asked = config.endpoint and OpenAIEndpoint(config.endpoint, config.endpoint_model, config.endpoint_key, 300.0)
    questions = PictureQuestions(asked) if asked else None
    if config.tasks is None:
        return Data(data, DrawnVerdicts(PictureJudge.load(judge_folder(config.judge))), planted, questions)
    if questions is not None:
        return Data(data, AskedVerdicts(questions), planted, questions)
    if config.properties != ("colour",):
        raise SubjectError(
            f"of {config.tasks} only colour can be told by arithmetic; give a model that sees, with --endpoint, or ask for "
            "colour alone, with --set 'properties=[\"colour\"]'"
        )
    return Data(data, ColourVerdicts(), planted)


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
        tail: Experiment(
            Bench(Conditions(Twins(each), config), data.verdicts, folder, engine, tail.strip("_") or "natural", data.questions),
            data.requests, extended=not tail,
        ).run()
        for tail, each in who.items()
    }  # fmt: skip
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
                    for name in config.properties
                }
                for tail, one in found.items()
            },
        },
    )  # fmt: skip
    return result, every
