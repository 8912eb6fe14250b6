"""`load` turns a name, a folder, a GGUF file or a hub id into a `Subject`.

    load("smollm2-135m")            # a model of the catalogue, fetched once into the user's cache
    load("path/to/folder")          # config.json + safetensors + tokenizer
    load("model.gguf")              # one GGUF file
    load("Qwen/Qwen3-0.6B")         # a hub id, where a hub can be reached
    load("path/to/pipeline")        # model_index.json and a folder for every part: an image generator

Weights are safetensors or GGUF; pickles are refused. The model is loaded as its library class and
checked against its family before it is handed out.
"""

import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mediant.core.errors import SubjectError, unknown
from mediant.subject import catalogue, fetch, pipelines, weights
from mediant.subject.families import Shape, check, family_of
from mediant.subject.generator import ImageGenerator
from mediant.subject.subject import Subject
from mediant.subject.vision import VisionSubject

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | torch.dtype = "float32",
    device_map: str | dict[str, str] | None = None,
) -> Subject | ImageGenerator:
    """Load a decoder-only language model, one that looks at images, or one that makes them.

    Args:
        name: catalogue name, folder, GGUF file, or hub id.
        device: where the model goes, e.g. `cpu` or `cuda:0`; default: cuda when there is one.
        dtype: `float32` (default: small effects drown in bfloat16's rounding), `bfloat16` or `float16`.
        device_map: placement of a large model by accelerate, instead of `device`.

    Raises:
        UnknownName: neither a known model nor a path, or a dtype that does not exist.
        UnsafeWeights: the folder holds pickled weights only.
        SubjectError: the weights are broken, or the architecture has no family.
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        dtype = DTYPES[dtype]
    source, gguf_file, fingerprint = _resolve(str(name))
    if (Path(source) / pipelines.INDEX).is_file():
        if device_map is not None:
            raise SubjectError("an image generator is loaded on one device, not with device_map")
        return pipelines.load_pipeline(
            Path(source), name=str(name), dtype=dtype, device=resolved_device(device), fingerprint=fingerprint
        )
    model, tokenizer, images = _from_pretrained(source, gguf_file, dtype, device_map)
    if device_map is None:
        model.to(resolved_device(device))
    return wrap(model, tokenizer, images, name=str(name), fingerprint=fingerprint)


def wrap(
    model: nn.Module, tokenizer: "PreTrainedTokenizerBase", image_processor: Any = None, *, name: str = "", fingerprint: str = ""
) -> Subject:
    """A `Subject` from a model and tokenizer already in memory; a `VisionSubject` where its family has eyes.

    Raises:
        SubjectError: the model is not laid out as its family expects, or it has eyes and no image processor was given.
    """
    config: Any = model.config
    family = family_of(config.model_type)
    text: Any = config.get_text_config() if hasattr(config, "get_text_config") else config
    shape = replace(shape_of(text), parallel=bool(family.parallel) and bool(getattr(text, family.parallel)))
    check(family, model, shape)
    name = name or type(model).__name__
    what: dict[str, Any] = {"name": name, "model": model.eval(), "tokenizer": tokenizer, "family": family, "shape": shape}
    if family.sight is None:
        return Subject(**what, fingerprint=fingerprint)
    if image_processor is None:
        raise SubjectError(f"{name} looks at images, so it needs the image processor of its checkpoint")
    return VisionSubject(**what, fingerprint=fingerprint, image_processor=image_processor)


def shape_of(config: "PretrainedConfig") -> Shape:
    """Sizes from a library config."""
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    d_mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    return Shape(
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        d_model=config.hidden_size,
        d_head=d_head,
        d_mlp=d_mlp,
        n_vocab=config.vocab_size,
    )


def resolved_device(device: str | None) -> torch.device:
    """A device by its name; by default a GPU where there is one.

    Raises:
        SubjectError: there is none of that name here.
    """
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(chosen)
        torch.ones(1, device=found).item()
    except (RuntimeError, AssertionError) as error:
        raise SubjectError(f"device {chosen!r} is not usable here: {str(error).splitlines()[0]}; try --device cpu") from error
    return found


def _resolve(name: str) -> tuple[str, str | None, str]:
    """Where to load from: folder or hub id, GGUF file within it, fingerprint of local weights."""
    if name in catalogue.models():
        if catalogue.card(name).kind == "judge":
            raise SubjectError(f"{name} judges pictures and is no subject; studies that need it load it themselves")
        folder = fetch.fetch(name)
        return str(folder), None, _fingerprint(folder)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        weights.check_gguf(path)
        return str(path.parent), path.name, weights.fingerprint([path])
    if path.is_dir():
        return str(path), None, _fingerprint(path)
    if path.is_file():
        raise SubjectError(f"{path} is a file, expected a model folder or a .gguf file")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name, None, ""
    raise unknown(
        "model", name, catalogue.models(), note="A model is a catalogue name, a folder, a .gguf file or a hub id OWNER/NAME."
    )


def _fingerprint(folder: Path) -> str:
    """Of a folder whose weights were checked."""
    whole = (folder / pipelines.INDEX).is_file()
    return weights.fingerprint(weights.check_pipeline(folder) if whole else weights.check_folder(folder))


def _from_pretrained(
    source: str, gguf_file: str | None, dtype: torch.dtype, device_map: str | dict[str, str] | None
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", Any]:
    """Model, tokenizer and, for models with eyes, image processor."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    extra = {"gguf_file": gguf_file} if gguf_file else {"use_safetensors": True}
    try:
        config = AutoConfig.from_pretrained(source, **({"gguf_file": gguf_file} if gguf_file else {}))
        sees = family_of(config.model_type).sight is not None
        tokenizer = AutoTokenizer.from_pretrained(source, **({"gguf_file": gguf_file} if gguf_file else {}))
        if gguf_file:
            fetch.restore_digits(tokenizer, Path(source) / gguf_file)
        if sees and find_spec("PIL") is None:
            raise SubjectError("images are prepared with pillow, which is not installed: pip install 'mediant[vision]'")
        if sees and Path(source).is_dir() and not any((Path(source) / name).is_file() for name in _PROCESSORS):
            # The library would take its defaults, whose patches are another size.
            raise SubjectError(f"{source} has none of {' and '.join(_PROCESSORS)}, which say how its images are prepared")
        images = AutoImageProcessor.from_pretrained(source, backend="pil") if sees else None
        model, report = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_pretrained(
            source, dtype=dtype, device_map=device_map, output_loading_info=True, **extra
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise SubjectError(
            f"could not load {source!r}: {first[:300]} (expected a folder with config.json, safetensors and tokenizer files, "
            "a .gguf file, or a hub id with a hub in reach)"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise SubjectError(f"{source} lacks weights that {config.model_type} has: {missing}; they would be random numbers")
    return model, tokenizer, images
