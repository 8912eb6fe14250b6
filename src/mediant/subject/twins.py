"""The same weights for several threads: a hook laid for one forward must not fire in another's.

    twins = Twins(lm)
    with twins.side_by_side():
        engine.map(folder, items, title="", workers=twins.n)        # items call twins.here() for their subject

On two cores, two forwards side by side with a thread each are about half as fast again as one after the other with two threads
each: small matrix products do not divide well. Weights are shared, so a twin costs no memory but its activations.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from mediant.core.errors import EditError
from mediant.subject.generator import ImageGenerator
from mediant.subject.open_model import Window, Work
from mediant.subject.subject import Subject

MOST = 2
Model = TypeVar("Model", Subject, ImageGenerator)


class Twins(Generic[Model]):
    """One subject per thread; the thread that made this keeps the subject itself.

    Attributes:
        n: how many threads are worth their while: one on a GPU, for a model spread over devices, and where torch has one.
    """

    def __init__(self, subject: Model) -> None:
        self.subject: Model = subject
        spread = getattr(subject.model, "hf_device_map", None) is not None
        self.n = min(MOST, torch.get_num_threads()) if subject.device.type == "cpu" and not spread else 1
        self._own = threading.local()
        self._own.subject = subject

    def here(self) -> Model:
        """This thread's subject."""
        if not hasattr(self._own, "subject"):
            self._own.subject = twin(self.subject)
        mine: Model = self._own.subject
        return mine

    @contextmanager
    def side_by_side(self) -> Iterator[None]:
        """Share torch's threads out among the workers; before and after, every forward has them all."""
        before = torch.get_num_threads()
        torch.set_num_threads(max(1, before // self.n))
        try:
            yield
        finally:
            torch.set_num_threads(before)


def twin(subject: Model) -> Model:
    """Another subject with the same weights and with modules, configuration and tokenizer of its own.

    Raises:
        EditError: edits are in force, which the twin would not have.
    """
    if subject.in_force or subject.attending:
        raise EditError("a twin would not have the edits that are in force; leave their contexts first")
    own: dict[str, Any] = {"window": Window(), "attending": [], "in_force": [], "work": Work()}
    if isinstance(subject, ImageGenerator):
        parts = [part for part in subject.pipeline.components.values() if isinstance(part, nn.Module)]
        pipeline = deepcopy(subject.pipeline, _weights(parts))
        return replace(subject, **own, pipeline=pipeline, model=pipeline.transformer)
    return replace(
        subject, **own, model=deepcopy(subject.model, _weights([subject.model])), tokenizer=deepcopy(subject.tokenizer)
    )


def _weights(parts: list[nn.Module]) -> dict[int, Any]:
    """What a deep copy is told to share."""
    return {id(each): each for part in parts for each in (*part.parameters(), *part.buffers())}
