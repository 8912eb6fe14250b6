"""Make pictures under a condition, judge them, keep what came out: one subject's side of the study.

    bench = Bench(Conditions(Twins(flux), config), verdicts, folder, engine, "natural")
    bench.judge("colour", "no text", requests, partial(bench.conditions.cut, [("reference", "text")], None))

Work is done some requests at a time; what is finished lies in the run's folder, pictures as PNG.
"""

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mediant.measures.picture_questions import Kind, PictureQuestions
from mediant.runs.engine import LocalEngine, WorkItem
from mediant.runs.folder import Json, RunFolder
from mediant.studies.reference_binding.conditions import Conditions
from mediant.studies.reference_binding.config import Config
from mediant.studies.reference_binding.verdicts import Verdicts
from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator, Latents, Pixels
from mediant.tasks.requests import Request, RequestPair

Make = Callable[[Batch, Sequence[Request]], Latents]
Before = Callable[[Batch, Sequence[Request]], list[list[Pixels]]]
# For each request by name, the one whose reference is looked for in its picture.
JudgedAs = Mapping[str, Request] | None


@dataclass(eq=False)
class Bench:
    """A subject at work.

    Attributes:
        who: name of the subject in keys and titles.
        questions: a multimodal judge to be asked as well, where there is one.
        rows, pictures: property -> condition -> verdicts, and the first pictures.
        answers: property -> condition -> what the multimodal judge said, None where it gave no usable answer.
    """

    conditions: Conditions
    verdicts: Verdicts
    folder: RunFolder
    engine: LocalEngine
    who: str
    questions: PictureQuestions | None = None
    rows: dict[str, dict[str, list[bool]]] = field(default_factory=dict)
    pictures: dict[str, dict[str, list[Pixels]]] = field(default_factory=dict)
    answers: dict[str, dict[str, list[bool | None]]] = field(default_factory=dict)

    @property
    def config(self) -> Config:
        """The run's settings."""
        return self.conditions.config

    @property
    def subject(self) -> ImageGenerator:
        """The subject at work in this thread."""
        return self.conditions.subject

    def judge(
        self, name: str, condition: str, requests: Sequence[Request], make: Make, judged_as: JudgedAs = None
    ) -> None:  # fmt: skip
        """One verdict per request under a condition."""
        told = {condition: judged_as}
        records = self._pictured(f"{name}/{condition}", name, requests, make, told, keep=self.config.n_shown)
        self.rows.setdefault(name, {})[condition] = _told(records, condition)
        pictures = [each for record in records for each in _unpacked(record["pictures"])]
        self.pictures.setdefault(name, {})[condition] = pictures[: self.config.n_shown]

    def ask(self, kind: Kind, name: str, condition: str, requests: Sequence[Request], make: Make, before: Before) -> None:
        """Put a condition's pictures to the multimodal judge, after those that `before` gives for each request."""
        questions = self.questions
        if questions is None:
            return

        def compute(chunk: Sequence[Request]) -> Json:
            batch = self.conditions.encoded(chunk)
            made, first = self.subject.pixels(make(batch, chunk)), before(batch, chunk)
            said = [questions.ask(kind, name, [*first[i], made[i]]) for i in range(len(chunk))]
            return {"passed": [one.passed for one in said], "reasons": [one.reason for one in said]}

        records = self.mapped(f"{name}/{condition}/asked", requests, compute)
        self.answers.setdefault(name, {})[condition] = [one for record in records for one in record["passed"]]

    def share(self, key: str, name: str, requests: Sequence[Request], make: Make, judged_as: JudgedAs = None) -> float:
        """Share of requests whose pictures show the property."""
        return float(np.mean(self.shown(key, name, requests, make, judged_as)))

    def shown(self, key: str, name: str, requests: Sequence[Request], make: Make, judged_as: JudgedAs = None) -> list[bool]:
        """One verdict per request, of which no picture is kept."""
        return self.several(key, name, requests, make, {key: judged_as})[key]

    def several(
        self, key: str, name: str, requests: Sequence[Request], make: Make, judged_as: Mapping[str, JudgedAs]
    ) -> dict[str, list[bool]]:
        """Several verdicts on the same pictures, each under its name."""
        records = self._pictured(f"{name}/{key}", name, requests, make, judged_as, keep=0)
        return {told: _told(records, told) for told in judged_as}

    def drawn(self, requests: Sequence[Request]) -> tuple[list[Json], list[Pixels]]:
        """What is right in pictures without a reference, and the first pictures."""

        def compute(chunk: Sequence[Request]) -> Json:
            pixels = self.subject.pixels(self.conditions.sample(self.conditions.encoded(chunk)))
            return {"verdicts": self.verdicts.drawn(chunk, pixels), "pictures": _packed(pixels[: 2 * self.config.n_shown])}

        records = self.mapped("text", requests, compute)
        pictures = [each for record in records for each in _unpacked(record["pictures"])]
        return [one for record in records for one in record["verdicts"]], pictures[: 2 * self.config.n_shown]

    def mapped(
        self, key: str, requests: Sequence[Request], compute: Callable[[Sequence[Request]], Json], *, at_once: int = 0
    ) -> list[Json]:
        """Records of all requests, some at a time."""
        items = [
            WorkItem(f"{self.who}/{key}/{i}", _later(compute, chunk))
            for i, chunk in enumerate(_chunks(requests, at_once or self.config.batch))
        ]
        twins = self.conditions.twins
        with twins.side_by_side():
            return self.engine.map(self.folder, items, title=f"{self.who}: {key}"[:48], workers=twins.n)

    def _pictured(
        self, key: str, name: str, requests: Sequence[Request], make: Make, judged_as: Mapping[str, JudgedAs], keep: int
    ) -> list[Json]:
        def compute(chunk: Sequence[Request]) -> Json:
            pixels = self.subject.pixels(make(self.conditions.encoded(chunk), chunk))
            shown = {
                told: self.verdicts.shown(name, [given[each.name] for each in chunk] if given else chunk, pixels)
                for told, given in judged_as.items()
            }
            return {"shown": shown, "pictures": _packed(pixels[:keep])}

        return self.mapped(key, requests, compute)


def based(pairs: Sequence[RequestPair]) -> tuple[list[Request], dict[str, Request]]:
    """Bases of pairs, and by their names the sources."""
    return [pair.base for pair in pairs], {pair.base.name: pair.source for pair in pairs}


def untouched(bench: Bench, name: str, key: str, pairs: Sequence[RequestPair]) -> list[bool]:
    """Whether a swap can be told in each pair: each run shows its own reference's property, and the base not the source's."""
    bases, source = based(pairs)
    told = bench.several(f"{key}, bases", name, bases, bench.conditions.sample, {"own": None, "source's": source})
    sources = bench.shown(f"{key}, sources", name, list(source.values()), bench.conditions.sample)
    return [a and b and not c for a, b, c in zip(told["own"], sources, told["source's"], strict=True)]


def _told(records: Sequence[Json], condition: str) -> list[bool]:
    return [one for record in records for one in record["shown"][condition]]


def _later(compute: Callable[[Sequence[Request]], Json], chunk: Sequence[Request]) -> Callable[[], Json]:
    return lambda: compute(chunk)


def _chunks(requests: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    for i in range(0, len(requests), size):
        yield requests[i : i + size]


def _packed(pixels: Pixels) -> list[str]:
    """Pictures as they are kept among the items: PNG in base64."""
    from PIL import Image

    found = []
    for picture in pixels:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "PNG")
        found.append(base64.b64encode(file.getvalue()).decode())
    return found


def _unpacked(packed: Sequence[str]) -> list[Pixels]:
    from PIL import Image

    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in packed]
