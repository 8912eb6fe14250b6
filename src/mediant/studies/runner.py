"""Carry out one run: config, subject, folder, study, result, page.

outcome = carry_out(Order(study("activation-patching"), preset="smoke", changed={"n": 8}))
outcome.result.measures["accuracy"], outcome.folder
"""

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from mediant.core.errors import RunError, SubjectError
from mediant.core.result import Result
from mediant.runs.engine import LocalEngine
from mediant.runs.folder import Manifest, RunFolder
from mediant.studies.catalogue import DEFAULT_PRESET, StudyCard
from mediant.studies.config import StudyConfig


@dataclass(frozen=True)
class Order:
    """What a user asked for."""

    study: StudyCard
    preset: str = DEFAULT_PRESET
    changed: Mapping[str, Any] = field(default_factory=dict)
    out: Path | None = None
    resume: bool = False
    show_progress: bool = True

    @property
    def config(self) -> StudyConfig:
        """The full settings: preset, then changes."""
        return self.study.configure(self.preset, self.changed)

    @property
    def folder(self) -> Path:
        """Where the run goes: `out`, or a folder named after study, preset and model."""
        if self.out is not None:
            return self.out
        model = Path(self.config.model.rstrip("/")).name or "model"
        stem = f"{self.preset}-{model}-seed{self.config.seed}"
        base = Path("runs") / self.study.name
        if self.resume:
            return base / stem
        number = 1
        while (path := base / (stem if number == 1 else f"{stem}-{number}")).exists():
            number += 1
        return path


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    result: Result
    folder: Path


def carry_out(order: Order) -> Outcome:
    """Run a study and write `result.json` and `index.html`.

    Raises:
        MediantError: anything the user can mend; finished items are kept for `--resume`.
    """
    from mediant.report import render
    from mediant.studies.provenance import versions
    from mediant.subject import load
    from mediant.subject.generator import ImageGenerator

    config, path = order.config, order.folder
    if order.resume and not (path / "manifest.json").exists():
        print(f"note: {path} holds no run to go on with; a new one starts there", file=sys.stderr)
    if not order.resume and (path / "manifest.json").exists():
        raise RunError(f"{path} already holds a run; add --resume to go on with it, or choose another --out")
    subject = load(config.model, device=config.device, dtype=config.dtype)
    if config.makes_pictures is not None and isinstance(subject, ImageGenerator) != config.makes_pictures:
        wanted = ("writes", "makes pictures") if not config.makes_pictures else ("makes pictures", "writes")
        raise SubjectError(f"{order.study.name} is about a model that {wanted[0]}; {config.model} {wanted[1]}")
    manifest = Manifest(
        study=order.study.name, preset=order.preset, config=config.model_dump(mode="json"),
        changed=to_jsonable_python(dict(order.changed)),
        model_fingerprint=subject.fingerprint, versions=versions(),
    )  # fmt: skip
    study = import_module(f"{order.study.module}.study")
    figures = import_module(f"{order.study.module}.figures")
    data = study.prepare(config, subject)
    with closing(RunFolder.open(path, manifest, resume=order.resume)) as folder:
        result, found = study.run(config, subject, data, folder, LocalEngine(show_progress=order.show_progress))
        folder.write("index.html", render(figures.page(result, found, subject)))
        folder.write("result.json", result.to_json())
    return Outcome(result, path)
