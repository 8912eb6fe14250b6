"""What a training run keeps on disk: its state as one file, and a log of its losses.

>>> import tempfile, torch
>>> with tempfile.TemporaryDirectory() as name:
...     folder = Path(name)
...     append(folder, LoggedStep(step=0, loss=2.5, lr=0.1, grad_norm=1.0))
...     write(folder, Checkpoint(1, {"lr": 0.1}, {"parameter.w": torch.ones(3)}))
...     append(folder, LoggedStep(step=1, loss=2.0, lr=0.1, grad_norm=1.0))    # then the process is killed
...     rewind(folder, read(folder).step, expected=[0])
...     [entry.loss for entry in logged(folder)]
[2.5]

The state is replaced as a whole, after the log it belongs to has reached the disk. So at every moment there
is one valid checkpoint, and the log holds all steps before it and perhaps some after, the last of them
perhaps unfinished; those are cut off when the run goes on.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mediant.core.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "checkpoint.safetensors"
LOSSES = "losses.jsonl"
_FORMAT = "mediant/checkpoint/1"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A run's state before it takes `step`; `config` is plain data."""

    step: int
    config: Mapping[str, object]
    tensors: Mapping[str, "Tensor"]


@dataclass(frozen=True)
class LoggedStep:
    """Loss before a step's update, step size, and the gradient's norm before clipping."""

    step: int
    loss: float
    lr: float
    grad_norm: float


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint.

    Raises:
        RunError: the folder cannot be written.
    """
    from safetensors.torch import save

    meta = {"format": _FORMAT, "step": str(checkpoint.step), "config": json.dumps(checkpoint.config)}
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in checkpoint.tensors.items()}
    content, partial = save(tensors, meta), folder / f"{CHECKPOINT}.partial"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOSSES).open("ab") as log:
            os.fsync(log.fileno())
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(folder / CHECKPOINT)


def read(folder: Path) -> Checkpoint | None:
    """The folder's checkpoint; None where no run has begun.

    Raises:
        RunError: the file is damaged or something else, or a log is there without it.
    """
    from safetensors import SafetensorError, safe_open

    path, log = folder / CHECKPOINT, folder / LOSSES
    if not path.exists():
        if log.exists() and log.stat().st_size:
            raise RunError(f"{folder} has {LOSSES} but no {CHECKPOINT}; delete the folder to train anew")
        return None
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            if meta.get("format") == _FORMAT:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Checkpoint(int(meta["step"]), json.loads(meta["config"]), tensors)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path} cannot be read ({error}); delete {folder} to train anew") from error
    raise RunError(f"{path} is not a checkpoint of the form {_FORMAT}; choose another folder")


def append(folder: Path, entry: LoggedStep) -> None:
    """Add one line to the log of losses.

    Raises:
        RunError: it cannot be written.
    """
    with _writing(folder), (folder / LOSSES).open("ab", buffering=0) as file:
        file.write((json.dumps(asdict(entry)) + "\n").encode())


def logged(folder: Path) -> tuple[LoggedStep, ...]:
    """The log of losses, up to the first line that a killed run left unfinished."""
    return tuple(entry for entry, _ in _lines(folder))


def rewind(folder: Path, step: int, expected: Sequence[int]) -> None:
    """Cut off the log where `step` begins.

    Raises:
        RunError: the steps before it are not the `expected` ones, or the log cannot be written.
    """
    kept = [(entry.step, end) for entry, end in _lines(folder) if entry.step < step]
    if [s for s, _ in kept] != list(expected):
        raise RunError(
            f"{folder / LOSSES} lacks or repeats steps before the checkpoint's step {step}; delete {folder} to train anew"
        )
    if (folder / LOSSES).exists():
        with _writing(folder):
            os.truncate(folder / LOSSES, kept[-1][1] if kept else 0)


def _lines(folder: Path) -> Iterator[tuple[LoggedStep, int]]:
    """Whole entries, and the byte each ends at."""
    path, end = folder / LOSSES, 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
        if not line.endswith(b"\n"):
            return
        try:
            entry = LoggedStep(**json.loads(line))
        except (ValueError, TypeError):
            return
        end += len(line)
        yield entry, end


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {folder}: {error.strerror}; choose another folder, or make room") from error
