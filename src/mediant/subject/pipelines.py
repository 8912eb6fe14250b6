"""From a diffusers pipeline, in memory or in a folder, to an `ImageGenerator`.

The folder is one that `save_pretrained` wrote: `model_index.json` and a folder for every part, weights as safetensors. Settings
that belong to a model but have no place in it - steps, text slots, layers of the text encoder - may stand in `sampling.json`.
"""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mediant.core.errors import SubjectError, unknown
from mediant.subject.families.family import Shape
from mediant.subject.families.flux2 import FLUX2
from mediant.subject.families.two_streams import TwoStreamFamily
from mediant.subject.generator import ImageGenerator, Sampling

FAMILIES: tuple[TwoStreamFamily, ...] = (FLUX2,)
INDEX, SETTINGS = "model_index.json", "sampling.json"


def wrap_pipeline(pipeline: Any, *, name: str = "", fingerprint: str = "", sampling: Sampling | None = None) -> ImageGenerator:
    """An `ImageGenerator` around a pipeline in memory.

    Raises:
        SubjectError: a pipeline or transformer that no family covers, with the reason where there is one.
    """
    kind = type(pipeline).__name__
    family = family_of(kind)
    transformer = pipeline.transformer.eval()
    if type(transformer).__name__ not in family.transformers:
        raise SubjectError(f"{kind} holds a {type(transformer).__name__}, expected {' or '.join(family.transformers)}")
    pipeline.set_progress_bar_config(disable=True)
    made = ImageGenerator(
        name=name or kind, model=transformer, pipeline=pipeline, family=family, shape=shape_of(transformer.config),
        fingerprint=fingerprint, sampling=sampling or Sampling(),
    )  # fmt: skip
    for layer in range(made.shape.n_layers):
        _check(made, layer)
    return made


def load_pipeline(folder: Path, *, name: str, dtype: torch.dtype, device: torch.device, fingerprint: str = "") -> ImageGenerator:
    """The pipeline of a folder.

    Raises:
        SubjectError: broken weights or settings, or a pipeline that no family covers.
    """
    import diffusers
    from diffusers.utils import logging

    kind = str(_read(folder / INDEX).get("_class_name"))
    family_of(kind)
    logging.disable_progress_bar()
    try:
        pipeline = getattr(diffusers, kind).from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise SubjectError(f"could not load the {kind} in {folder}: {str(error).splitlines()[0][:300]}") from error
    return wrap_pipeline(pipeline.to(device), name=name, fingerprint=fingerprint, sampling=read_sampling(folder))


def read_sampling(folder: Path) -> Sampling:
    """The settings beside a model; the usual ones where it has none.

    Raises:
        SubjectError: a setting that does not exist or is of another type.
    """
    if not (folder / SETTINGS).is_file():
        return Sampling()
    found = _read(folder / SETTINGS)
    known = [each.name for each in fields(Sampling)]
    for key in found:
        if key not in known:
            raise unknown("setting", key, known, note=f"({folder / SETTINGS})")
    layers = found.pop("layers", None)
    return Sampling(**found, layers=None if layers is None else tuple(int(each) for each in layers))


def family_of(pipeline: str) -> TwoStreamFamily:
    """The family that covers a pipeline, by its class's name.

    Raises:
        SubjectError: it cannot be covered, with the reason.
        UnknownName: no family covers it.
    """
    for family in FAMILIES:
        if pipeline in family.pipelines:
            return family
        if pipeline in family.refuses:
            raise SubjectError(f"{pipeline} is not supported: {family.refuses[pipeline]}")
    supported = [name for family in FAMILIES for name in family.pipelines]
    raise unknown("pipeline", pipeline, supported, note=f"Supported pipelines: {', '.join(supported)}.")


def shape_of(config: Any) -> Shape:
    """Sizes from a transformer's config."""
    d_model = config.num_attention_heads * config.attention_head_dim
    return Shape(
        n_layers=config.num_layers + config.num_single_layers, n_heads=config.num_attention_heads,
        n_kv_heads=config.num_attention_heads, d_model=d_model, d_head=config.attention_head_dim,
        d_mlp=int(d_model * config.mlp_ratio), n_vocab=0, n_double=config.num_layers,
    )  # fmt: skip


def _check(made: ImageGenerator, layer: int) -> None:
    """Whether a block is laid out as its family says.

    Raises:
        SubjectError: a module is missing.
    """
    from mediant.core.site import Site

    for kind in ("resid_post", "head_z", "q"):
        for place in made.family.places(Site(kind, layer), made.shape):
            try:
                made.model.get_submodule(place.module)
            except AttributeError as error:
                raise SubjectError(
                    f"family {made.family.name} expects {place.module}, which {made.name} does not have"
                ) from error


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SubjectError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise SubjectError(f"{file} holds a {type(found).__name__}, expected an object")
    return found
