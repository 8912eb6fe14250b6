"""A mediator: its size, its gates made hard, and the edit that exchanges it."""

import pytest
import torch

from builders import rotation
from mediant.core import Site, Span
from mediant.interventions.edits import Activation
from mediant.interventions.mediator import Mediator

SITE, SPAN = Site("resid_post", 1), Span("last")


def test_a_hard_gate_is_open_above_a_half_and_else_closed():
    basis = rotation(8, 5)
    soft = Mediator(SITE, SPAN, basis, torch.tensor([0.0, 0.49, 0.5, 0.51, 1.0], requires_grad=True))
    hard = soft.hard
    assert hard.gate is not None
    assert hard.gate.tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert not hard.gate.requires_grad
    assert (hard.site, hard.span, hard.features) == (SITE, SPAN, basis)
    whole = Mediator(SITE, SPAN, basis)
    assert whole.hard is whole


def test_the_size_counts_coordinates_features_or_what_gates_let_through():
    assert Mediator(SITE, SPAN).size(8) == 8
    assert Mediator(SITE, SPAN, rotation(8, 3)).size(8) == 3
    assert Mediator(SITE, SPAN, rotation(8, 3), torch.tensor([0.25, 1.0, 0.5])).size(8) == pytest.approx(1.75)


def test_the_exchange_writes_the_source_through_the_gate_in_the_basis():
    source = Activation(torch.ones(1, 8), torch.tensor([0]), torch.tensor([4]))
    basis, gate = rotation(8, 3), torch.tensor([0.0, 1.0, 0.5])
    made = Mediator(SITE, SPAN, basis, gate).swap(source)
    assert (made.kind, made.site, made.span) == ("swap", SITE, SPAN)
    assert made.features is basis
    assert made.gate is gate
