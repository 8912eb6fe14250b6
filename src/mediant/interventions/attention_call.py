"""One attention call as edits see it: which rows and keys it has, and logits of chosen heads and rows.

Contexts that change attention (`attending`, `looking`) share this. Each can say what it adds to the logits of any head and row,
so that one nested in another computes rows anew without undoing what the outer one did to them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mediant.core.span import Span
from mediant.interventions.attention_function import attention_logits, logits_of
from mediant.subject import Batch, Subject

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call and the columns it covers: `offset` is the column of its first query."""

    query: Float[Tensor, "batch head query d"]
    key: Float[Tensor, "batch kv key d"]
    value: Float[Tensor, "batch kv key d"]
    mask: Tensor | None
    scaling: float | None
    softcap: float | None
    batch: Batch
    offset: int
    layer: int

    @property
    def group(self) -> int:
        """Query heads per key/value head."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def key_offset(self) -> int:
        """Column of the first key: above 0 where a sliding window has dropped the oldest."""
        return max(0, self.offset + self.query.shape[2] - self.key.shape[2])

    def heads(self, head: int | None) -> list[int]:
        """One head, or all of them."""
        return list(range(self.query.shape[1])) if head is None else [head]

    def logits(self, heads: "Sequence[int]", rows: Int[Tensor, " row"] | None = None) -> Float[Tensor, "batch head row key"]:
        """Attention logits of some heads and query rows (or all), in float32; keys a query may not see are minus infinity."""
        if self.query.shape[2] == 1:
            return self._row_logits(heads)
        rows = torch.arange(self.query.shape[2], device=self.query.device) if rows is None else rows
        keys = self.key[:, [h // self.group for h in heads]]
        return attention_logits(
            self.query[:, list(heads)][:, :, rows], keys, self.mask, scaling=self.scaling, softcap=self.softcap, rows=rows,
            n_queries=self.query.shape[2],
        )  # fmt: skip

    def mixed(self, weights: Float[Tensor, "batch head row key"], heads: "Sequence[int]") -> Float[Tensor, "batch row head d"]:
        """Values of some heads under given weights."""
        weights = weights.to(self.value.dtype)
        if weights.shape[2] == 1:
            return torch.stack([weights[:, j] @ self.value[:, h // self.group] for j, h in enumerate(heads)], 2)
        values = self.value[:, [h // self.group for h in heads]]
        return (weights @ values).transpose(1, 2)

    def _row_logits(self, heads: "Sequence[int]") -> Float[Tensor, "batch head 1 key"]:
        """Logits of the only row there is, head by head: choosing several heads at once would copy all their keys."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        one = [self.key[:, h // self.group].to(wide) @ self.query[:, h, 0, :, None].to(wide) for h in heads]
        scaling = self.query.shape[-1] ** -0.5 if self.scaling is None else self.scaling
        return logits_of(torch.stack(one, 1).mT, self.mask, scaling=scaling, softcap=self.softcap, rows=None, n_queries=1)

    def span_rows(self, span: Span) -> Bool[Tensor, "batch query"]:
        """Which query rows of this call a span covers."""
        return self._covered(span, self.query.shape[2], self.offset)

    def keys(self, span: Span) -> Bool[Tensor, "batch key"]:
        """Which keys of this call a span covers."""
        return self._covered(span, self.key.shape[2], self.key_offset)

    def _covered(self, span: Span, width: int, first: int) -> Bool[Tensor, "batch col"]:
        found = torch.zeros(self.batch.n_rows, width, dtype=torch.bool, device=self.query.device)
        rows, cols = self.batch.locate(span)
        inside = (cols >= first) & (cols < first + width)
        found[rows[inside], cols[inside] - first] = True
        if span.name in ("all", "generated"):
            found[:, max(0, self.batch.n_cols - first) :] = True
        return found


@runtime_checkable
class AttentionContext(Protocol):
    """What contexts that change attention have in common."""

    subject: Subject
    forwards: int

    def adjust(self, call: Call, heads: "Sequence[int]", rows: Int[Tensor, " row"], logits: Tensor) -> Tensor:
        """Logits (batch, head, row, key) of some heads and rows with what this context adds to them."""
        ...


def noted_window(context: AttentionContext, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pre-hook of the entry module: note which columns this forward covers."""
    context.subject.note_call(args, kwargs)
    context.forwards += 1


def call_of(subject: Subject, module: nn.Module, tensors: "Sequence[Tensor | None]", more: "Mapping[str, Any]") -> Call:
    """A call of an attention function from what it is given: query, key, value and mask, and its keywords."""
    query, key, value, mask = tensors
    assert query is not None and key is not None and value is not None  # noqa: S101, PT018 - only the mask may be missing
    batch = subject.window.batch
    assert batch is not None  # noqa: S101 - noted before any layer runs
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    return Call(query, key, value, mask, more.get("scaling"), more.get("softcap"), batch, subject.window.offset, layer)
