"""The studies that ship, found by their folders; nothing but their torch-free configs is imported here.

>>> [card.name for card in studies().values()]
['activation-patching', 'gaze-heads', 'mediation', 'positional-circuits', 'reference-binding']
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

from pydantic import ValidationError

from mediant.core.errors import MediantError, UnknownName, nearest, unknown
from mediant.studies.config import StudyConfig

DEFAULT_PRESET = "bundled"


@dataclass(frozen=True)
class StudyCard:
    """A study by name: where it lives, what it asks, and its presets."""

    name: str
    module: str
    title: str
    config: type[StudyConfig]

    @property
    def presets(self) -> dict[str, dict[str, Any]]:
        """Preset name -> the fields it sets."""
        folder = files(self.module) / "presets"
        found = {f.name.removesuffix(".toml"): f for f in folder.iterdir() if f.name.endswith(".toml")}
        return {name: tomllib.loads(found[name].read_text(encoding="utf-8")) for name in sorted(found)}

    def configure(self, preset: str, changed: Mapping[str, Any]) -> StudyConfig:
        """The config of a preset with some fields changed.

        Raises:
            UnknownName: no such preset or field.
            MediantError: a value of the wrong kind, with the field's description.
        """
        presets = self.presets
        if preset not in presets:
            raise unknown("preset", preset, presets)
        try:
            return self.config.model_validate(presets[preset] | dict(changed))
        except ValidationError as error:
            raise self._explain(error) from error

    def _explain(self, error: ValidationError) -> MediantError:
        parts = []
        for problem in error.errors():
            name = str(problem["loc"][0]) if problem["loc"] else ""
            if not name:
                return MediantError(f"{self.name}: {problem['msg']}")
            if problem["type"] == "extra_forbidden":
                close = nearest(name, self.config.model_fields)
                hint = (
                    f"did you mean {' or '.join(map(repr, close))}?"
                    if close
                    else f"options: {', '.join(self.config.model_fields)}"
                )
                return UnknownName(f"unknown option {name!r} of {self.name}; {hint}")
            parts.append(f"{name}: {problem['msg']}, got {problem['input']!r} ({self.config.model_fields[name].description})")
        return MediantError("; ".join(parts))


@cache
def studies() -> dict[str, StudyCard]:
    """Every study by name."""
    cards = []
    for folder in sorted(files("mediant.studies").iterdir(), key=lambda f: f.name):
        if folder.is_dir() and (folder / "config.py").is_file():
            config = import_module(f"mediant.studies.{folder.name}.config")
            cards.append(StudyCard(config.NAME, f"mediant.studies.{folder.name}", config.TITLE, config.Config))
    return {card.name: card for card in cards}


def study(name: str) -> StudyCard:
    """A study by name.

    Raises:
        UnknownName: no such study.
    """
    if name not in studies():
        raise unknown("study", name, studies())
    return studies()[name]
