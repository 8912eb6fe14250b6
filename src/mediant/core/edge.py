"""Edges: where information passes between parts.

>>> AttentionEdge(layer=9, head=6, query="last", key="IO")
AttentionEdge(layer=9, head=6, query=Span('last'), key=Span('IO'))
>>> CircuitEdge.parse("head_result.5.5->q.8.6")
CircuitEdge('head_result.5.5->q.8.6')
"""

from dataclasses import dataclass

from mediant.core.errors import OutOfRange
from mediant.core.site import Site
from mediant.core.span import Span


@dataclass(frozen=True)
class AttentionEdge:
    """Attention of one head from a query span to a key span (`key` is read by `query`).

    `head=None` means every head of the layer.
    """

    layer: int
    head: int | None
    query: Span
    key: Span

    def __init__(self, layer: int, head: int | None, query: Span | str, key: Span | str) -> None:
        if layer < 0 or (head is not None and head < 0):
            raise OutOfRange(f"layers and heads count from 0, got layer {layer}, head {head}")
        object.__setattr__(self, "layer", layer)
        object.__setattr__(self, "head", head)
        object.__setattr__(self, "query", Span.of(query))
        object.__setattr__(self, "key", Span.of(key))


@dataclass(frozen=True, order=True, repr=False)
class CircuitEdge:
    """A node's contribution to one input port of a later node (Elhage et al. 2021; Wang et al. 2022).

    `source` writes to the residual stream (`head_result`, `mlp_out`, `embed`); `target` is the port
    that reads it (`q`, `k`, `v` of a head, `mlp_in`, or `final_resid`). Heads of `q`, `k` and `v` ports are *query* heads:
    under grouped-query attention each reads its key/value head's stream through a port of its own.
    """

    source: Site
    target: Site

    @classmethod
    def parse(cls, text: str) -> "CircuitEdge":
        """Read `SOURCE->TARGET` with sites in their dotted form."""
        source, arrow, target = text.partition("->")
        if not arrow:
            raise OutOfRange(f"expected SOURCE->TARGET, got {text!r}")
        return cls(Site.parse(source), Site.parse(target))

    def __str__(self) -> str:
        return f"{self.source}->{self.target}"

    def __repr__(self) -> str:
        return f"CircuitEdge({str(self)!r})"
