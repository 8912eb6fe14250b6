"""What unit tests of edits and of attention share: the tiny Llama."""

import pytest

from builders import subject
from mediant.subject import Subject


@pytest.fixture
def lm() -> Subject:
    """The tiny Llama."""
    return subject()
