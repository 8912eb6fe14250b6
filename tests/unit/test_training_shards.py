"""What is drawn in shards is the same whoever draws it; a recorded module answers as it does unrecorded."""

from functools import partial
from random import Random

import pytest
import torch
from torch import nn

from mediant.training import chance_on, sharding
from mediant.training.recording import Recorded
from mediant.training.sharding import drawn_in_shards


def _numbers(seed: str, shard: int, n: int) -> list[float]:
    random = Random(f"{seed}/{shard}")
    return [random.random() for _ in range(n)]


def test_several_processes_draw_what_one_draws(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding, "SHARD", 3)
    draw = partial(_numbers, "a")
    alone = list(drawn_in_shards(draw, 10))
    assert [len(some) for some in alone] == [3, 3, 3, 1]
    assert list(drawn_in_shards(draw, 10, workers=2)) == alone
    assert len({number for some in alone for number in some}) == 10


def test_fewer_items_are_the_first_of_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding, "SHARD", 3)
    few, many = (list(drawn_in_shards(partial(_numbers, "a"), n)) for n in (6, 12))
    assert many[:2] == few


def test_one_worker_draws_no_sooner_than_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharding, "SHARD", 1)
    drawn: list[int] = []
    next(drawn_in_shards(lambda shard, n: drawn.append(shard) or [n], 5))
    assert drawn == [0]


def test_chance_on_a_cpu_is_the_steps_own():
    generator = torch.Generator().manual_seed(3)
    assert chance_on(torch.device("cpu"), generator) is generator


class _Squares(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.weight * x).square().sum() + y.sum()


def _checked(device: str) -> None:
    module = _Squares().to(device)
    recorded = Recorded(module)
    for shape in ((2,), (3, 2), (2,)):
        x, y = torch.randn(shape, device=device), torch.randn(4, device=device, requires_grad=True)
        found, wanted = recorded(x, y), module(x, y)
        torch.testing.assert_close(found, wanted)
        for one, two in zip(
            torch.autograd.grad(found, [module.weight, y]), torch.autograd.grad(wanted, [module.weight, y]), strict=True
        ):
            torch.testing.assert_close(one, two)
        with torch.no_grad():
            module.weight += 1


def test_a_recorded_module_answers_as_the_module():
    _checked("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="records CUDA graphs")
def test_a_recording_follows_its_inputs_and_the_weights_as_they_are_now():
    _checked("cuda")
