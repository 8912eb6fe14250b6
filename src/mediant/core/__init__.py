"""Plain data, free of torch: sites, spans, edges, pairs, rankings, directions, results, errors."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mediant.core.direction import Direction
    from mediant.core.edge import AttentionEdge, CircuitEdge
    from mediant.core.pair import Pair, Prompt, Task
    from mediant.core.ranking import Ranking, Scored
    from mediant.core.result import Measure, Result
    from mediant.core.site import Site
    from mediant.core.span import Span

_HOME = {
    "AttentionEdge": "edge",
    "CircuitEdge": "edge",
    "Direction": "direction",
    "Measure": "result",
    "Pair": "pair",
    "Prompt": "pair",
    "Ranking": "ranking",
    "Result": "result",
    "Scored": "ranking",
    "Site": "site",
    "Span": "span",
    "Task": "pair",
}

__all__ = [
    "AttentionEdge",
    "CircuitEdge",
    "Direction",
    "Measure",
    "Pair",
    "Prompt",
    "Ranking",
    "Result",
    "Scored",
    "Site",
    "Span",
    "Task",
]


def __getattr__(name: str) -> object:
    # Lazy, so that the command line's help does not pay for numpy.
    if name in _HOME:
        return getattr(importlib.import_module(f"mediant.core.{_HOME[name]}"), name)
    raise AttributeError(f"module 'mediant.core' has no attribute {name!r}")
