"""Descent: steps of known lengths, temperatures in a line, and gradients that reach nothing else."""

import pytest
import torch

from mediant.core.errors import OutOfRange
from mediant.search.descent import descend


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_steps_start_at_their_rate_and_shrink_in_a_line_to_nothing(steps):
    # Under a slope that stays the same, Adam's step is its rate, whatever the slope: the way is their sum.
    slow, fast = torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)
    seen = []

    def loss(_: int, __: float) -> torch.Tensor:
        seen.append(float(slow.detach()[0]))
        return 7 * slow.sum() - 3 * fast.sum()

    course = descend([slow, fast], loss, steps=steps, rates=[0.01, 0.2])
    way = [sum(1 - k / steps for k in range(n)) for n in range(steps + 1)]
    assert seen == pytest.approx([-0.01 * w for w in way[:-1]], abs=1e-6)
    assert slow.tolist() == pytest.approx([-0.01 * way[-1]] * 3, abs=1e-6)
    assert fast.tolist() == pytest.approx([0.2 * way[-1]] * 2, abs=1e-6)
    assert course.losses == pytest.approx([-0.21 * w - 1.2 * w for w in way[:-1]], abs=1e-5)
    assert course.steps == steps


def test_the_temperature_falls_in_a_line_from_its_first_value_to_its_last():
    one, told = torch.zeros(1, requires_grad=True), []

    def loss(step: int, heat: float) -> torch.Tensor:
        told.append((step, heat))
        return one.sum()

    course = descend([one], loss, steps=5, rates=[0.1], temperatures=(2.0, 1.0))
    assert told == [(0, 2.0), (1, 1.75), (2, 1.5), (3, 1.25), (4, 1.0)]
    assert course.temperatures == [2.0, 1.75, 1.5, 1.25, 1.0]
    assert descend([one], loss, steps=1, rates=[0.1], temperatures=(2.0, 1.0)).temperatures == [2.0]
    assert descend([one], loss, steps=2, rates=[0.1]).temperatures == [1.0, 1.0]


def test_other_parts_of_the_loss_get_no_gradient():
    mine, other = torch.zeros(1, requires_grad=True), torch.ones(1, requires_grad=True)
    with torch.no_grad():
        descend([mine], lambda _, __: (mine * other).sum(), steps=2, rates=[0.1])
    assert other.grad is None
    assert other.tolist() == [1.0]


def test_no_steps_are_refused():
    with pytest.raises(OutOfRange, match="at least 1 step, got 0"):
        descend([torch.zeros(1, requires_grad=True)], lambda _, __: torch.zeros(()), steps=0, rates=[0.1])
