"""Mediant finds the parts of a generative model that carry a behaviour, and proves by intervention that they do.

    import mediant as md

    lm     = md.load("smollm2-135m")
    pair   = md.tasks.ioi.sample(lm, seed=0)
    effect = md.patch(lm, pair, at=md.Site("resid_post", layer=12), span="S2")
    print(effect)

Everything is imported when first used, so `import mediant` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mediant import interventions, measures, report, runs, search, studies, subject, tasks, training
    from mediant.core import (
        AttentionEdge,
        CircuitEdge,
        Direction,
        Measure,
        Pair,
        Prompt,
        Ranking,
        Result,
        Site,
        Span,
        Task,
    )  # fmt: skip
    from mediant.interventions import Live, Look, Schedule, attention, edit, edits, looking, record, replay, run
    from mediant.search import gaze, patch
    from mediant.subject import Subject, load, wrap

__version__ = "0.1.0"

_HOME = {
    **dict.fromkeys(["AttentionEdge", "CircuitEdge", "Direction", "Measure", "Pair", "Prompt"], "core"),
    **dict.fromkeys(["Ranking", "Result", "Site", "Span", "Task"], "core"),
    **dict.fromkeys(["Live", "Look", "Schedule", "edit", "looking", "record", "replay", "run"], "interventions"),
    **dict.fromkeys(["Subject", "load", "wrap"], "subject"),
    "patch": "search",
}
_MODULES = {
    "attention": "interventions.attention",
    "edits": "interventions.edits",
    "gaze": "search.gaze",
    **{n: n for n in ("interventions", "measures", "report", "runs", "search", "studies", "subject", "tasks", "training")},
}

__all__ = [
    "AttentionEdge",
    "CircuitEdge",
    "Direction",
    "Live",
    "Look",
    "Measure",
    "Pair",
    "Prompt",
    "Ranking",
    "Result",
    "Schedule",
    "Site",
    "Span",
    "Subject",
    "Task",
    "attention",
    "edit",
    "edits",
    "gaze",
    "interventions",
    "load",
    "looking",
    "measures",
    "patch",
    "record",
    "replay",
    "report",
    "run",
    "runs",
    "search",
    "studies",
    "subject",
    "tasks",
    "training",
    "wrap",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"mediant.{_MODULES[name]}")
    if name in _HOME:
        return getattr(importlib.import_module(f"mediant.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mediant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
