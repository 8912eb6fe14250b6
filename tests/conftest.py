"""Shapes in signatures are checked while tests run; one thread, so that numbers do not depend on the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from jaxtyping import install_import_hook

CHECKED = ["mediant.subject", "mediant.interventions", "mediant.measures", "mediant.search", "mediant.tasks", "mediant.training"]
install_import_hook(CHECKED, "shapes.check")

import torch  # noqa: E402 - after the hook that checks shapes

torch.set_num_threads(1)
