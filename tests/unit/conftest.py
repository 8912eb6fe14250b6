"""What unit tests of edits and of attention share: the tiny Llama, without gradients."""

from collections.abc import Iterator

import pytest
import torch

from builders import subject
from mediant.subject import Subject


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """Forwards without a graph, for `pytestmark`."""
    with torch.no_grad():
        yield


@pytest.fixture
def lm() -> Subject:
    """The tiny Llama."""
    return subject()
