"""Plain data, free of torch: sites, spans, edges, pairs, rankings, directions, results, errors."""

from mediant.core.direction import Direction
from mediant.core.edge import AttentionEdge, CircuitEdge
from mediant.core.pair import Pair, Prompt, Task
from mediant.core.ranking import Ranking, Scored
from mediant.core.result import Measure, Result
from mediant.core.site import Site
from mediant.core.span import Span

__all__ = [
    "AttentionEdge", "CircuitEdge", "Direction", "Measure", "Pair", "Prompt", "Ranking", "Result", "Scored", "Site", "Span", "Task",
]
