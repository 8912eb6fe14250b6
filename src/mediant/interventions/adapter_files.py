"""Folders of low-rank adapters in the format of peft: `adapter_config.json` + `adapter_model.safetensors`.

>>> import tempfile, torch
>>> factors = {"model.layers.0.self_attn.q_proj": (torch.ones(2, 8), torch.zeros(8, 2))}
>>> with tempfile.TemporaryDirectory() as folder:
...     write(folder, Content("tone", rank=2, alpha=4.0, factors=factors))
...     read(folder).factors["model.layers.0.self_attn.q_proj"][0].shape
torch.Size([2, 8])

peft knows many variants under the one name LORA, and its settings have grown with every version. What is
read here is the plain edit `W + alpha / rank * B A`; a setting that is not known to leave that as it is
gets the folder refused, because ignoring it would give another model than the one that was trained.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mediant.core.errors import RunError, SubjectError, UnsafeWeights

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
# Dropout acts in training only, and which modules are changed is told by the tensors.
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "megatron_core", "peft_type",
    "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type",
}  # fmt: skip
# Other ways to initialise take the first B A away from the model's own weights.
_INITS_THAT_KEEP_THE_MODEL = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, eq=False)
class Content:
    """What a folder says.

    Attributes:
        factors: A (rank, in) and B (out, rank) by module path.
        fan_in_fan_out: whether the model stores these weights as (in, out).
    """

    name: str
    rank: int
    alpha: float | int
    factors: Mapping[str, tuple[Tensor, Tensor]]
    fan_in_fan_out: bool = False


def write(folder: Path | str, content: Content) -> None:
    """Write a folder that peft can load.

    Raises:
        RunError: the folder cannot be written.
    """
    from safetensors.torch import save

    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": None, "inference_mode": True, "r": content.rank,
        "lora_alpha": content.alpha, "lora_dropout": 0.0, "target_modules": list(content.factors), "bias": "none",
        "fan_in_fan_out": content.fan_in_fan_out, "init_lora_weights": True, "use_rslora": False, "use_dora": False,
    }  # fmt: skip
    tensors = {
        f"{_PREFIX}{path}.lora_{letter}.weight": factor.detach().to("cpu", copy=True).contiguous()
        for path, both in content.factors.items()
        for letter, factor in zip("AB", both, strict=True)
    }
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        _replace(place / WEIGHTS, save(tensors, {"format": "pt", "name": content.name}))
        _replace(place / CONFIG, (json.dumps(config, indent=1) + "\n").encode())
    except OSError as error:
        raise RunError(f"cannot write an adapter to {place}: {error.strerror}") from error


def _replace(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(content)
    partial.replace(path)


def read(folder: Path | str) -> Content:
    """Read a folder that `write` or peft wrote.

    Raises:
        UnsafeWeights: the weights are a pickle.
        SubjectError: no adapter there, a broken one, or one that is more than a plain low-rank edit.
    """
    place = Path(folder)
    config = _read_config(place)
    tensors, name = _read_weights(place)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise SubjectError(
            f"{place / CONFIG}: expected numbers r (at least 1) and lora_alpha, got r={rank!r}, lora_alpha={alpha!r}"
        )
    factors = _pair_up(tensors, place)
    for path, (a, b) in factors.items():
        if not a.shape[0] == b.shape[1] == rank:
            raise SubjectError(
                f"{place}: factors of shape {tuple(a.shape)} and {tuple(b.shape)} at {path} do not have the rank r={rank}"
            )
    return Content(name or place.resolve().name, rank, float(alpha), factors, bool(config.get("fan_in_fan_out")))


def _read_config(folder: Path) -> dict[str, object]:
    try:
        config: dict[str, object] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = config["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SubjectError(
            f"{folder} is not an adapter: expected a folder with {CONFIG} and {WEIGHTS} as peft writes them"
        ) from error
    if kind != "LORA":
        raise SubjectError(f"{folder} holds a peft adapter of type {kind!r}; only LORA is a low-rank weight edit")
    for option, value in config.items():
        if not _harmless(option, value):
            raise SubjectError(
                f"{folder}: option {option}={value!r} makes this adapter more than the plain low-rank edit W + alpha / r * B A, "
                "which is all that can be read; merge it into the model with peft, or train it without this option"
            )
    return config


def _harmless(option: str, value: object) -> bool:
    if option == "init_lora_weights":
        return value in _INITS_THAT_KEEP_THE_MODEL
    return not value or option in _WITHOUT_EFFECT or (option == "bias" and value == "none")


def _read_weights(folder: Path) -> tuple[dict[str, Tensor], str]:
    from safetensors import SafetensorError, safe_open

    path = folder / WEIGHTS
    if not path.is_file() and (folder / _PICKLE).exists():
        raise UnsafeWeights(
            f"{folder} holds its weights as a pickle ({_PICKLE}): opening one can run any code, so it is refused. Where you "
            f"trust it, load it with peft and call save_pretrained(FOLDER), which writes {WEIGHTS}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, (file.metadata() or {}).get("name", "")  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SubjectError(f"{path} is missing or not a whole safetensors file ({error}); copy or save it again") from error


def _pair_up(tensors: Mapping[str, Tensor], folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        path, _, letter = key.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
        if not key.startswith(_PREFIX) or letter not in ("A", "B") or not path or tensor.ndim != 2:
            raise SubjectError(
                f"{folder}: tensor {key!r} of shape {tuple(tensor.shape)} is no factor of a linear module's change; "
                "where peft has saved whole layers along, save again with save_embedding_layers=False"
            )
        found.setdefault(path, {})[letter] = tensor
    lonely = [path for path, factors in found.items() if len(factors) < 2]
    if lonely or not found:
        where = lonely[0] if lonely else "any module"
        raise SubjectError(f"{folder} has not both factors A and B of {where}; the file was cut or changed")
    return {path: (factors["A"], factors["B"]) for path, factors in found.items()}
