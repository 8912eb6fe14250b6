"""Training is AdamW, comes to the same bits however often it is killed, and says why it stops."""

import dataclasses
import doctest
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mediant.core.errors import OutOfRange, RunError, UnknownName
from mediant.training import checkpoint, loop
from mediant.training.loop import LoopConfig, LossOf, step_generator, train

CONFIG = LoopConfig(steps=7, lr=0.1, weight_decay=0.05, warmup=2, schedule="cosine", save_every=3, log_every=2, grad_clip=0.5)


def fresh() -> dict[str, Tensor]:
    values = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return {"w": values[0].clone().requires_grad_(), "b": values[1].clone().requires_grad_()}


def noisy(parameters: dict[str, Tensor]) -> LossOf:
    """A loss that draws from the step's generator."""

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        x = torch.randn(4, 3, dtype=torch.float64, generator=generator)
        return (x * parameters["w"] + parameters["b"] - step).square().mean()

    return loss_of


def trained(folder: Path, config: LoopConfig = CONFIG, **options: object) -> tuple[dict[str, list[float]], loop.TrainingLog]:
    parameters = fresh()
    log = train(parameters, noisy(parameters), folder, config, **options)
    return {name: tensor.tolist() for name, tensor in parameters.items()}, log


def ticking(seconds: float) -> Callable[[], float]:
    """A clock on which that many seconds pass between one look and the next."""
    looks = iter(range(10**6))
    return lambda: next(looks) * seconds


def adamw_by_hand(config: LoopConfig, lrs: list[float]) -> tuple[dict[str, np.ndarray], list[float], list[float]]:
    """Decoupled weight decay (Loshchilov & Hutter 2019), gradients by hand; parameters, losses, gradient norms."""
    p = {name: tensor.detach().numpy().copy() for name, tensor in fresh().items()}
    m, v = ({name: np.zeros(3) for name in p} for _ in range(2))
    losses, norms = [], []
    for step, lr in enumerate(lrs):
        x = torch.randn(4, 3, dtype=torch.float64, generator=step_generator(config.seed, step)).numpy()
        error = x * p["w"] + p["b"] - step
        gradient = {"w": (2 * error * x).sum(0) / 12, "b": 2 * error.sum(0) / 12}
        losses.append((error**2).mean())
        norms.append(math.sqrt(sum((g**2).sum() for g in gradient.values())))
        shrink = min(1.0, config.grad_clip / norms[-1])
        for name, g in gradient.items():
            m[name] = 0.9 * m[name] + 0.1 * shrink * g
            v[name] = 0.999 * v[name] + 0.001 * (shrink * g) ** 2
            update = (m[name] / (1 - 0.9 ** (step + 1))) / (np.sqrt(v[name] / (1 - 0.999 ** (step + 1))) + 1e-8)
            p[name] = p[name] * (1 - lr * config.weight_decay) - lr * update
    return p, losses, norms


def test_the_module_examples_run() -> None:
    assert [doctest.testmod(module).failed for module in (loop, checkpoint)] == [0, 0]
    assert all(doctest.testmod(module).attempted for module in (loop, checkpoint))


def test_steps_are_those_of_adamw_with_clipping_warmup_and_cosine(tmp_path: Path) -> None:
    # Two steps up to 0.1, then half a cosine over the other five.
    lrs = [0.05, 0.1, *(0.05 * (1 + math.cos(math.pi * i / 5)) for i in range(5))]
    expected, losses, norms = adamw_by_hand(CONFIG, lrs)
    parameters, log = trained(tmp_path, dataclasses.replace(CONFIG, log_every=1))
    for name, values in expected.items():
        np.testing.assert_allclose(parameters[name], values, rtol=1e-5)
    assert max(norms) > CONFIG.grad_clip
    np.testing.assert_allclose([entry.loss for entry in log.entries], losses, rtol=1e-5)
    np.testing.assert_allclose([entry.grad_norm for entry in log.entries], norms, rtol=1e-5)
    np.testing.assert_allclose([entry.lr for entry in log.entries], lrs, rtol=1e-12)


def test_the_schedule_rises_and_then_stays_or_falls() -> None:
    constant = LoopConfig(steps=6, lr=0.8, warmup=4)
    assert pytest.approx([constant.lr_at(step) for step in range(6)]) == [0.2, 0.4, 0.6, 0.8, 0.8, 0.8]
    cosine = LoopConfig(steps=4, lr=0.8, schedule="cosine")
    assert pytest.approx([cosine.lr_at(step) for step in range(4)]) == [0.8, 0.4 * (1 + 0.5**0.5), 0.4, 0.4 * (1 - 0.5**0.5)]
    assert LoopConfig(steps=3, lr=0.3, warmup=3, schedule="cosine").lr_at(2) == pytest.approx(0.3)


def test_every_so_many_steps_and_the_last_are_logged(tmp_path: Path) -> None:
    _, log = trained(tmp_path / "2")
    assert ([entry.step for entry in log.entries], log.step, log.done) == ([0, 2, 4, 6], 7, True)
    _, log = trained(tmp_path / "4", dataclasses.replace(CONFIG, log_every=4))
    assert [entry.step for entry in log.entries] == [0, 4, 6]
    lines = [json.loads(line) for line in (tmp_path / "4" / checkpoint.LOSSES).read_text().splitlines()]
    assert [dataclasses.asdict(entry) for entry in log.entries] == lines


def test_a_steps_generator_is_made_from_seed_and_step_alone() -> None:
    draws = {
        (seed, step): torch.rand(3, generator=step_generator(seed, step)).tolist() for seed in range(4) for step in range(40)
    }
    assert len(draws) == len({tuple(draw) for draw in draws.values()})
    assert draws[1, 2] == torch.rand(3, generator=step_generator(1, 2)).tolist()


def test_the_seed_decides_what_is_drawn(tmp_path: Path) -> None:
    first, again, other = (trained(tmp_path / str(i), dataclasses.replace(CONFIG, seed=s))[0] for i, s in enumerate([0, 0, 1]))
    assert first == again
    assert first != other


@pytest.mark.parametrize("budget", [0, 25, 1000])
def test_slices_of_time_come_to_the_same_bits_and_the_same_log(tmp_path: Path, budget: int) -> None:
    expected, whole = trained(tmp_path / "whole")
    steps = []
    while not steps or steps[-1] < 7:
        parameters, log = trained(tmp_path / "sliced", stop_after=budget, clock=ticking(10))
        steps.append(log.step)
        assert log.done == (log.step == 7)
    # The clock is looked at once at the start and once after every step.
    assert {0: [1, 2, 3, 4, 5, 6, 7], 25: [3, 6, 7], 1000: [7]}[budget] == steps
    assert (expected, whole) == (parameters, log)


def test_a_run_killed_at_any_line_that_writes_and_called_again_ends_in_the_same_bits(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "training_kills.py"
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, check=True)
    outcome = json.loads(done.stdout)
    assert len(outcome["outcomes"]) > 40
    assert [line for line, signal, _ in outcome["outcomes"] if signal != 9] == []
    assert [line for line, _, digest in outcome["outcomes"] if digest != outcome["undisturbed"]] == []


def test_a_finished_run_is_read_and_not_trained_further(tmp_path: Path) -> None:
    expected, log = trained(tmp_path)
    parameters = fresh()

    def never(_: int, __: torch.Generator) -> Tensor:
        raise AssertionError

    assert log == train(parameters, never, tmp_path, CONFIG)
    assert expected == {name: tensor.tolist() for name, tensor in parameters.items()}


def test_torchs_own_randomness_is_seeded_kept_and_given_back(tmp_path: Path) -> None:
    def drops(folder: Path, caller: int, **options: float) -> tuple[list[float], int]:
        w = torch.ones(50, requires_grad=True)
        torch.manual_seed(caller)
        before = torch.get_rng_state()
        log = train({"w": w}, lambda _, __: torch.nn.functional.dropout(w).sum(), folder, LoopConfig(steps=4, lr=0.1), **options)
        assert torch.equal(before, torch.get_rng_state())
        return w.tolist(), log.step

    whole, sliced = drops(tmp_path / "whole", 1), [drops(tmp_path / "sliced", caller, stop_after=0) for caller in (2, 3, 4, 5)]
    assert [step for _, step in sliced] == [1, 2, 3, 4]
    assert whole == sliced[-1]


def test_only_these_parameters_get_gradients_and_they_are_moved_in_place(tmp_path: Path) -> None:
    w, other, unused = (torch.ones(2, requires_grad=True) for _ in range(3))
    train({"w": w, "unused": unused}, lambda _, __: (w * other).sum(), tmp_path, LoopConfig(steps=3, lr=0.1))
    assert w.tolist() == pytest.approx([0.7, 0.7])
    assert [tensor.grad for tensor in (w, other, unused)] == [None, None, None]
    assert (other.tolist(), unused.tolist()) == ([1, 1], [1, 1])


def test_a_gradient_that_parameters_share_is_clipped_once(tmp_path: Path) -> None:
    # AdamW divides by the gradient's size, so clipping shows only beside another step's gradient.
    def end(folder: Path, *names: str) -> list[float]:
        parameters = {name: torch.zeros(3, requires_grad=True) for name in names}
        scale = 1 / math.sqrt(len(names))
        config = LoopConfig(steps=2, lr=0.1, grad_clip=1.0)
        train(parameters, lambda step, _: sum(parameters.values()).sum() * scale * (100.0, 0.1)[step], folder, config)
        return parameters[names[-1]].tolist()

    # The norm over both is that of the one, so both are clipped alike, to 1 / sqrt(2) of it.
    assert end(tmp_path / "one", "a") == pytest.approx(end(tmp_path / "two", "a", "b"), rel=1e-4)


def test_progress_is_told_after_every_step(tmp_path: Path) -> None:
    told: list[tuple[int, float]] = []
    _, log = trained(tmp_path, dataclasses.replace(CONFIG, log_every=1), progress=lambda step, loss: told.append((step, loss)))
    assert [(entry.step + 1, entry.loss) for entry in log.entries] == told


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lr": 0.2}, "lr (was 0.1, now 0.2)"),
        ({"steps": 9, "seed": 5}, "steps (was 7, now 9), seed (was 0, now 5)"),
        ({"grad_clip": None}, "grad_clip (was 0.5, now None)"),
        ({"schedule": "constant"}, "schedule (was cosine, now constant)"),
    ],
)
def test_another_config_is_refused_naming_the_fields(tmp_path: Path, change: dict[str, object], named: str) -> None:
    trained(tmp_path, stop_after=0)
    with pytest.raises(RunError) as error:
        trained(tmp_path, dataclasses.replace(CONFIG, **change))
    assert f"another config: {named};" in str(error.value)
    assert trained(tmp_path)[1].done


def test_other_parameters_are_refused_by_name(tmp_path: Path) -> None:
    def with_parameters(**tensors: Tensor) -> None:
        parameters = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        train(parameters, lambda _, __: torch.cat([p.double() for p in parameters.values()]).sum(), tmp_path, CONFIG)

    with_parameters(a=torch.zeros(2), b=torch.zeros(3), c=torch.zeros(1))
    with pytest.raises(RunError, match=r"new, gone or of another kind: \['b', 'c', 'd'\]"):
        with_parameters(a=torch.zeros(2), b=torch.zeros(4), d=torch.zeros(1))
    with pytest.raises(RunError, match=r"of another kind: \['a'\]"):
        with_parameters(a=torch.zeros(2).double(), b=torch.zeros(3), c=torch.zeros(1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"lr": 0.0}, r"lr=0\.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"weight_decay": -1.0}, r"weight_decay=-1\.0"),
        ({"warmup": 11}, "warmup=11"),
        ({"save_every": 0, "log_every": 0}, "save_every=0, log_every=0"),
        ({"grad_clip": 0.0}, r"grad_clip=0\.0"),
    ],
)
def test_impossible_configs_are_refused_by_field(config: dict[str, object], message: str) -> None:
    with pytest.raises(OutOfRange, match=f"cannot train with {message}:"):
        LoopConfig(**{"steps": 10, "lr": 0.1, **config})


def test_an_unknown_schedule_is_refused_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    config = LoopConfig(steps=1, lr=0.1)
    object.__setattr__(config, "schedule", "cosin")
    with pytest.raises(UnknownName, match="unknown schedule 'cosin'; did you mean 'cosine'"):
        config.__post_init__()


def test_parameters_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    leaf = torch.zeros(1, requires_grad=True)
    for parameters, message in (
        ({"fixed": torch.zeros(1), "w": leaf}, "'fixed'"),
        ({"product": leaf * 2}, "'product'"),
        ({}, "none at all"),
    ):
        with pytest.raises(RunError, match=f"leaf tensors with requires_grad, got .*{message}"):
            train(parameters, lambda _, __: leaf.sum(), tmp_path, CONFIG)


def test_a_loss_that_is_no_scalar_or_depends_on_nothing_is_refused(tmp_path: Path) -> None:
    w = torch.zeros(2, requires_grad=True)
    for name, loss in (("vector", lambda: w * 1), ("detached", lambda: w.sum().detach())):
        with pytest.raises(RunError, match="step 0: expected a scalar loss that depends on the parameters"):
            train({"w": w}, lambda _, __, loss=loss: loss(), tmp_path / name, CONFIG)
