"""What is on disk is always one good checkpoint and a log that fits it; anything else is refused by name."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mediant.core.errors import RunError
from mediant.training import checkpoint
from mediant.training.checkpoint import CHECKPOINT, LOSSES, Checkpoint, LoggedStep
from mediant.training.loop import LoopConfig, train

CONFIG = LoopConfig(steps=10, lr=0.1, save_every=4)


def descend(folder: Path, *, stop_after: int | None = None) -> tuple[list[float], list[int]]:
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    log = train({"w": w}, lambda _, __: w.square().sum(), folder, CONFIG, stop_after=stop_after)
    return w.tolist(), [entry.step for entry in log.entries]


def breaking_at(folder: Path, bad: int, factor: float | Tensor) -> tuple[Tensor, str]:
    """Train with one bad step; the parameter and the message."""
    w = torch.tensor([1.0, -2.0], requires_grad=True)
    with pytest.raises(RunError) as error:
        train({"w": w}, lambda step, _: (w.square() * (factor if step == bad else 1.0)).sum(), folder, CONFIG)
    assert w.grad is None
    return w, str(error.value)


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_last_good_checkpoint(tmp_path: Path, factor: float) -> None:
    w, message = breaking_at(tmp_path, 6, factor)
    assert message.startswith(f"the loss is {factor} at step 6; {tmp_path / CHECKPOINT} still holds the last good state")
    found = checkpoint.read(tmp_path)
    assert found.step == 4
    assert [entry.step for entry in checkpoint.logged(tmp_path)] == [0, 1, 2, 3, 4, 5]
    assert torch.isfinite(w).all()
    # Where the data are mended, training goes on as if nothing had been.
    assert descend(tmp_path / "whole") == descend(tmp_path)


def test_a_gradient_that_is_not_finite_never_reaches_parameters_or_checkpoint(tmp_path: Path) -> None:
    w = torch.tensor([0.0, 1.0], requires_grad=True)

    def loss_of(step: int, _: torch.Generator) -> Tensor:
        # The root's slope at 0 is infinite while the loss itself is finite.
        return w[0].abs().sqrt() if step == 3 else w[1] * 1

    with pytest.raises(RunError, match=r"the gradient's norm is (nan|inf) at step 3"):
        train({"w": w}, loss_of, tmp_path, LoopConfig(steps=4, lr=0.1, save_every=1))
    assert w.tolist() == pytest.approx([0.0, 0.7])
    found = checkpoint.read(tmp_path)
    assert (found.step, found.tensors["parameter.w"].tolist()) == (3, w.tolist())


def test_a_run_that_fails_at_once_leaves_its_start(tmp_path: Path) -> None:
    breaking_at(tmp_path, 0, math.nan)
    found = checkpoint.read(tmp_path)
    assert (found.step, found.tensors["parameter.w"].tolist(), checkpoint.logged(tmp_path)) == (0, [1.0, -2.0], ())


def test_a_folder_holds_two_files_and_no_pickle(tmp_path: Path) -> None:
    descend(tmp_path / "new" / "run")
    assert sorted(file.name for file in (tmp_path / "new" / "run").iterdir()) == [CHECKPOINT, LOSSES]
    tensors = load_file(tmp_path / "new" / "run" / CHECKPOINT)
    assert sorted(tensors) == ["exp_avg.w", "exp_avg_sq.w", "parameter.w", "random.cpu"]


def test_what_was_logged_after_the_checkpoint_is_cut_off_and_written_again(tmp_path: Path) -> None:
    expected = descend(tmp_path / "whole")
    breaking_at(tmp_path / "run", 6, math.nan)
    log = tmp_path / "run" / LOSSES
    for rest in (
        "",
        '{"step": 6, "loss": 0.1',
        '{"step": 6}\n',
        "\x00\x00\n",
        '{"step": 6, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0}',
    ):
        log.write_text(log.read_text() + rest)
        assert expected == descend(tmp_path / "run")
        assert list(range(10)) == [json.loads(line)["step"] for line in log.read_text().splitlines()]
        assert log.read_bytes() == (tmp_path / "whole" / LOSSES).read_bytes()


def test_a_checkpoint_that_was_half_written_beside_the_good_one_does_no_harm(tmp_path: Path) -> None:
    descend(tmp_path, stop_after=0)
    (tmp_path / f"{CHECKPOINT}.partial").write_bytes(b"half")
    assert descend(tmp_path / "whole") == descend(tmp_path)


def test_a_log_that_does_not_reach_the_checkpoint_is_refused(tmp_path: Path) -> None:
    breaking_at(tmp_path, 6, math.nan)
    lines = (tmp_path / LOSSES).read_text().splitlines(keepends=True)
    for kept in (lines[:3], lines[1:], [*lines[:2], *lines[3:]], [*lines[:2], lines[1], *lines[2:]], []):
        (tmp_path / LOSSES).write_text("".join(kept))
        with pytest.raises(RunError, match=r"losses\.jsonl lacks or repeats steps before the checkpoint's step 4"):
            descend(tmp_path)
    (tmp_path / LOSSES).unlink()
    with pytest.raises(RunError, match="lacks or repeats steps"):
        descend(tmp_path)


def test_a_log_without_a_checkpoint_and_damaged_or_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    descend(tmp_path)
    content = (tmp_path / CHECKPOINT).read_bytes()
    for damaged in (content[:-1], b"", b"\xff" * 64):
        (tmp_path / CHECKPOINT).write_bytes(damaged)
        with pytest.raises(RunError, match=r"checkpoint\.safetensors cannot be read .*delete .* to train anew"):
            descend(tmp_path)
    for metadata in (None, {"format": "pt"}):
        save_file({"parameter.w": torch.zeros(2)}, tmp_path / CHECKPOINT, metadata)
        with pytest.raises(RunError, match="is not a checkpoint of the form mediant/checkpoint/1"):
            descend(tmp_path)
    (tmp_path / CHECKPOINT).unlink()
    with pytest.raises(RunError, match=r"has losses\.jsonl but no checkpoint\.safetensors"):
        descend(tmp_path)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"cannot write to .*file"):
        descend(tmp_path / "file")
    (tmp_path / "run" / CHECKPOINT).mkdir(parents=True)
    with pytest.raises(RunError, match="cannot be read"):
        descend(tmp_path / "run")


def test_tensors_that_share_memory_or_are_not_contiguous_are_kept_each(tmp_path: Path) -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    checkpoint.write(tmp_path, Checkpoint(5, {"lr": 0.5}, {"a": whole, "b": whole.T, "c": whole[0]}))
    found = checkpoint.read(tmp_path)
    assert (found.step, found.config) == (5, {"lr": 0.5})
    assert found.tensors["b"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert (found.tensors["a"].tolist(), found.tensors["c"].tolist()) == ([[0, 1, 2], [3, 4, 5]], [0, 1, 2])


def test_numbers_in_the_log_come_back_exactly(tmp_path: Path) -> None:
    entry = LoggedStep(step=3, loss=0.1 + 0.2, lr=1e-300, grad_norm=2.0**0.5)
    checkpoint.append(tmp_path, entry)
    assert checkpoint.logged(tmp_path) == (entry,)
