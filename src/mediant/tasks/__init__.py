"""Data with known answers: generated tasks, the user's own pairs, planted toy models."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mediant.tasks import (
        agreement,
        arithmetic,
        catalogue,
        colours,
        encode,
        foreign,
        ioi,
        pairs,
        plain_text,
        pronouns,
        regions,
        request_files,
        requests,
        strips,
        toys,
    )

__all__ = [
    "agreement", "arithmetic", "catalogue", "colours", "encode", "foreign", "ioi", "pairs", "plain_text", "pronouns", "regions",
    "request_files", "requests", "strips", "toys",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name in __all__:
        return importlib.import_module(f"mediant.tasks.{name}")
    raise AttributeError(f"module 'mediant.tasks' has no attribute {name!r}")
