"""The same architecture with random weights: what a search finds where nothing was learned.

    nobody = untrained(lm, seed=0)

A search that does as well here as on the trained model has shown what it can make, not what the model does.
"""

import torch

from mediant.subject.loading import wrap
from mediant.subject.subject import Subject


def untrained(subject: Subject, *, seed: int) -> Subject:
    """A subject of the same class and sizes as its configuration initialises it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(subject.model)(subject.model.config)
    model.to(dtype=subject.dtype, device=subject.device).eval().requires_grad_(False)
    eyes = getattr(subject, "image_processor", None)
    return wrap(model, subject.tokenizer, eyes, name=f"{subject.name}, random weights")
