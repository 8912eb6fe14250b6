"""A model that can be looked into: loading, families, batches, servers."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mediant.subject.batch import Batch
    from mediant.subject.loading import load, wrap
    from mediant.subject.subject import Subject

__all__ = ["Batch", "Subject", "load", "wrap"]
_HOME = {"Batch": "batch", "Subject": "subject", "load": "loading", "wrap": "loading"}


def __getattr__(name: str) -> object:
    # Lazy, because the catalogue of models is read by commands that need no torch.
    if name in _HOME:
        return getattr(importlib.import_module(f"mediant.subject.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mediant.subject' has no attribute {name!r}")
