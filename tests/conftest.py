"""Shapes in signatures are checked while tests run; one thread, so that numbers do not depend on the machine."""

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

CHECKED = ["mediant.subject", "mediant.interventions", "mediant.measures", "mediant.search", "mediant.tasks", "mediant.training"]
install_import_hook(CHECKED, "shapes.check")

import pytest  # noqa: E402 - after the hook that checks shapes
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture
def no_gradients() -> Iterator[None]:
    """Forwards without a graph, for `pytestmark`."""
    with torch.no_grad():
        yield
