"""One training loop: it may be killed at any moment, and calling it again ends in the very same bits.

>>> import tempfile, torch
>>> w = torch.zeros(2, requires_grad=True)
>>> config = LoopConfig(steps=200, lr=0.1)
>>> with tempfile.TemporaryDirectory() as folder:
...     log = train({"w": w}, lambda step, generator: (w - 1).square().sum(), Path(folder), config)
>>> log.done, round(float(w.detach().sum()), 2)
(True, 2.0)

What a step draws comes from a generator that is seeded by the step, so nothing depends on how far an
earlier call came; everything else that a step depends on is in the checkpoint: parameters, moments, and
torch's own random state, for losses with dropout.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mediant.core.errors import OutOfRange, RunError, unknown
from mediant.training import checkpoint
from mediant.training.checkpoint import Checkpoint, LoggedStep

LossOf = Callable[[int, torch.Generator], Tensor]
Progress = Callable[[int, float], None]
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class LoopConfig:
    """How to train. Steps count from 0.

    Attributes:
        lr: AdamW's step size at its highest: `warmup` steps rise to it, then it stays (`constant`) or falls
            to 0 along half a cosine.
        save_every, log_every: in steps; the last step is always saved and logged.
        grad_clip: largest norm of the gradient over all parameters; None means no limit.
        horizon: the step at which a cosine would reach 0; default: the last one. A later one leaves the schedule early.

    Raises:
        OutOfRange, UnknownName: naming the field.
    """

    steps: int
    lr: float
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: Literal["constant", "cosine"] = "constant"
    save_every: int = 100
    log_every: int = 1
    seed: int = 0
    grad_clip: float | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise unknown("schedule", self.schedule, ["constant", "cosine"])
        fine = {
            "steps": self.steps >= 1, "lr": 0 < self.lr < math.inf, "weight_decay": 0 <= self.weight_decay < math.inf,
            "warmup": 0 <= self.warmup <= self.steps, "save_every": self.save_every >= 1, "log_every": self.log_every >= 1,
            "grad_clip": self.grad_clip is None or self.grad_clip > 0,
            "horizon": self.horizon is None or self.horizon >= self.steps,
        }  # fmt: skip
        wrong = [f"{name}={getattr(self, name)}" for name in fine if not fine[name]]
        if wrong:
            raise OutOfRange(
                f"cannot train with {', '.join(wrong)}: steps, lr, save_every, log_every and grad_clip must be above 0, "
                "weight_decay not below, horizon not before the last step, and warmup between 0 and steps"
            )

    def lr_at(self, step: int) -> float:
        """Step size of one step."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.schedule == "constant":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / ((self.horizon or self.steps) - self.warmup)))

    def logs(self, step: int) -> bool:
        """Whether a step's loss is logged."""
        return step % self.log_every == 0 or step == self.steps - 1


@dataclass(frozen=True)
class TrainingLog:
    """How far training has come, over all calls.

    Attributes:
        entries: the logged steps.
        step: the next step; equal to the config's `steps` when `done`.
    """

    entries: tuple[LoggedStep, ...]
    step: int
    done: bool


def step_generator(seed: int, step: int) -> torch.Generator:
    """The (CPU) source of chance of one step, whether or not earlier steps ran in this process."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


def chance_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A source of chance on a device that follows from a step's own; on a CPU that itself."""
    if device.type == "cpu":
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


def train(
    parameters: Mapping[str, Tensor],
    loss_of: LossOf,
    folder: Path,
    config: LoopConfig,
    *,
    stop_after: float | int | None = None,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TrainingLog:
    """Train parameters in place with AdamW, going on from the folder's checkpoint where there is one.

    Args:
        parameters: leaf tensors that require grad; one that a step's loss does not use has gradient 0 there.
        loss_of: the scalar loss of a step, which draws from the generator it is given. Torch's global
            generators are seeded and kept too, and are the caller's again afterwards.
        stop_after: seconds by `clock` after which this call saves and returns, one step further on at least.
        progress: called after every step with the number of steps taken and the loss.

    Raises:
        RunError: a loss or gradient that is not finite (the last checkpoint stays), or a folder that belongs
            to other parameters or another config, is damaged, or cannot be written.
    """
    start = clock()
    run = _Run(parameters, folder, config)
    with _own_randomness(run.devices, config.seed):
        step = run.resume()
        while step < config.steps:
            loss = run.advance(step, loss_of)
            step += 1
            late = stop_after is not None and clock() - start >= stop_after
            if step % config.save_every == 0 or step == config.steps or late:
                run.save(step)
            if progress is not None:
                progress(step, loss)
            if late:
                break
    return TrainingLog(checkpoint.logged(folder), step, step == config.steps)


@contextmanager
def _own_randomness(devices: list[int], seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


class _Run:
    """Parameters, their optimizer, and the folder both are kept in."""

    def __init__(self, parameters: Mapping[str, Tensor], folder: Path, config: LoopConfig) -> None:
        wrong = [name for name, p in parameters.items() if not (p.is_leaf and p.requires_grad)]
        if wrong or not parameters:
            raise RunError(f"expected parameters that are leaf tensors with requires_grad, got {wrong[:3] or 'none at all'}")
        self.parameters, self.folder, self.config = parameters, folder, config
        self.devices = sorted({p.device.index for p in parameters.values() if p.device.type == "cuda"})
        self.optimizer = torch.optim.AdamW(list(parameters.values()), lr=config.lr, weight_decay=config.weight_decay)

    def advance(self, step: int, loss_of: LossOf) -> float:
        """Take one step and log it; its loss."""
        loss = loss_of(step, step_generator(self.config.seed, step))
        if loss.ndim or not loss.requires_grad:
            raise RunError(f"step {step}: expected a scalar loss that depends on the parameters, got shape {tuple(loss.shape)}")
        value, lr = float(loss.detach()), self.config.lr_at(step)
        self._check_finite("loss", value, step)
        norm = self._set_gradients(loss)
        self._check_finite("gradient's norm", norm, step)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.config.logs(step):
            checkpoint.append(self.folder, LoggedStep(step, value, lr, norm))
        return value

    def _set_gradients(self, loss: Tensor) -> float:
        """Clipped gradients of these parameters and of no others; the norm before clipping."""
        values = list(self.parameters.values())
        for parameter, gradient in zip(values, torch.autograd.grad(loss, values, materialize_grads=True), strict=True):
            # A copy: parameters may share one gradient, and clipping works in place.
            parameter.grad = gradient.clone()
        limit = math.inf if self.config.grad_clip is None else self.config.grad_clip
        return float(torch.nn.utils.clip_grad_norm_(values, limit))

    def _check_finite(self, what: str, value: float, step: int) -> None:
        if not math.isfinite(value):
            raise RunError(
                f"the {what} is {value} at step {step}; {self.folder / checkpoint.CHECKPOINT} still holds the last good state. "
                "Lower lr, set grad_clip, or look at what this step was trained on"
            )

    def save(self, step: int) -> None:
        """Replace the checkpoint."""
        tensors = {"random.cpu": torch.get_rng_state()} | {f"random.cuda.{d}": torch.cuda.get_rng_state(d) for d in self.devices}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter
            if step:
                tensors |= {f"{moment}.{name}": self.optimizer.state[parameter][moment] for moment in _MOMENTS}
        checkpoint.write(self.folder, Checkpoint(step, asdict(self.config), tensors))

    def resume(self) -> int:
        """Take over the folder's state, or write the first checkpoint; the next step."""
        found = checkpoint.read(self.folder)
        if found is None:
            self.save(0)
            return 0
        self._check_same(found)
        checkpoint.rewind(self.folder, found.step, [step for step in range(found.step) if self.config.logs(step)])
        for name, parameter in self.parameters.items():
            with torch.no_grad():
                parameter.copy_(found.tensors[f"parameter.{name}"])
            if found.step:
                moments = {moment: found.tensors[f"{moment}.{name}"].to(parameter.device) for moment in _MOMENTS}
                self.optimizer.state[parameter] = {"step": torch.tensor(float(found.step)), **moments}
        torch.set_rng_state(found.tensors["random.cpu"])
        for device in self.devices:
            if f"random.cuda.{device}" in found.tensors:
                torch.cuda.set_rng_state(found.tensors[f"random.cuda.{device}"], device)
        return found.step

    def _check_same(self, found: Checkpoint) -> None:
        changed = [
            f"{k} (was {found.config.get(k)}, now {now})" for k, now in asdict(self.config).items() if found.config.get(k) != now
        ]
        if changed:
            raise RunError(
                f"{self.folder} was trained with another config: {', '.join(changed)}; use that one, or another folder"
            )
        had = {name.removeprefix("parameter."): _kind(t) for name, t in found.tensors.items() if name.startswith("parameter.")}
        have = {name: _kind(t) for name, t in self.parameters.items()}
        odd = sorted(name for name in had.keys() | have.keys() if had.get(name) != have.get(name))
        if odd:
            raise RunError(f"{self.folder} was trained with other parameters; these are new, gone or of another kind: {odd[:5]}")


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype
