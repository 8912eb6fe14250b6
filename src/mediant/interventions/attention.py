"""Attention: observe chosen rows, bias edges, cut edges; everything else stays fused.

    with attending(lm, [bias(AttentionEdge(9, 6, "last", "IO"), 4.0)]) as attention:
        lm.generate(batch, max_new_tokens=5)

    with attending(lm, rows=[Rows(layer=9, heads=(6, 7), query="last")]) as attention:
        run(lm, batch)
    attention.rows[0].weights          # (batch, head, query, key): the rows asked for, nothing else

While the context is open, the model's attention implementation is a thin function that calls the one it
replaced and, in the layers and heads that were named, computes the named query rows once more: memory
grows with the rows asked for, never with length squared. Biases are added to the logits in float32 before
the softmax; a cut edge gets weight exactly 0 and the rest is renormalised.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mediant.core.edge import AttentionEdge
from mediant.core.errors import EditError, EditNeverFired
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.attention_function import AttentionFunction, attention_logits, replacing_attention
from mediant.interventions.execute import Firing
from mediant.subject import Batch, Subject

CUT = float("-inf")
Change = tuple[int | None, "Bias"]


@dataclass(frozen=True)
class Bias:
    """Add `beta` to the logits of an attention edge; minus infinity cuts it.

    Attributes:
        steps: generated tokens (from 0) whose rows are biased; None means the query span decides alone.
    """

    edge: AttentionEdge
    beta: float
    steps: tuple[int, ...] | None = None


def bias(edge: AttentionEdge, beta: float, *, steps: tuple[int, ...] | None = None) -> Bias:
    """Strengthen (beta > 0) or weaken (beta < 0) an attention edge."""
    return Bias(edge, beta, steps)


def cut(edge: AttentionEdge, *, steps: tuple[int, ...] | None = None) -> Bias:
    """Remove an attention edge; the remaining weights are renormalised."""
    return Bias(edge, CUT, steps)


@dataclass(frozen=True)
class Rows:
    """Attention rows to observe: the queries of a span, for some heads of a layer (None: all)."""

    layer: int
    query: Span | str = "last"
    heads: tuple[int, ...] | None = None


@dataclass(eq=False)
class ObservedRows:
    """Weights of the rows asked for, after any bias.

    Attributes:
        weights: (token, head, key) with keys as columns of the batch; one entry per query token, ordered as
            `rows`, `cols`. Rows of generated tokens are appended as they come, padded to the longest.
    """

    request: Rows
    rows: list[Tensor] = field(default_factory=list)
    cols: list[Tensor] = field(default_factory=list)
    parts: list[Tensor] = field(default_factory=list)

    @property
    def weights(self) -> Float[Tensor, "token head key"]:
        """All observed rows, shorter ones padded with zeros on the right."""
        if not self.parts:
            raise EditError(f"no attention row of {self.request} was observed; run something inside the context")
        width = max(part.shape[-1] for part in self.parts)
        return torch.cat([nn.functional.pad(part, (0, width - part.shape[-1])) for part in self.parts])


class Attending:
    """Biases in force and rows observed, with what they did."""

    def __init__(self, subject: Subject, biases: Sequence[Bias], rows: Sequence[Rows]) -> None:
        self.subject, self.biases, self.forwards = subject, list(biases), 0
        self.rows = [ObservedRows(request) for request in rows]
        for one in biases:
            if math.isnan(one.beta) or one.beta == math.inf:
                raise EditError(f"a bias must be a number, or minus infinity to cut, got {one.beta} on {one.edge}")
        for layer, head in [(b.edge.layer, b.edge.head) for b in biases]:
            subject.validate(Site("head_z", layer, head))
        for request in rows:
            for head in request.heads or (0,):
                subject.validate(Site("head_z", request.layer, head))
        self._layers = {b.edge.layer for b in biases} | {r.layer for r in rows}
        self._outer = [context for context in subject.attending if isinstance(context, Attending)]
        self._fired = [0] * len(self.biases)
        self._tokens = [0] * len(self.biases)

    def firings(self) -> list[Firing]:
        """One report per bias; `change` is not measured for attention and reads 0."""
        labels = [f"{'cut' if b.beta == CUT else f'bias {b.beta:+g}'} {b.edge}" for b in self.biases]
        return [Firing(label, f, t, 0.0) for label, f, t in zip(labels, self._fired, self._tokens, strict=True)]

    def check(self) -> None:
        """Raise if a bias never acted although a forward ran."""
        silent = [report.label for report in self.firings() if not report.forwards]
        if self.forwards and silent:
            raise EditNeverFired(
                f"{len(silent)} attention edit(s) never fired: {'; '.join(silent[:3])}; a query sees only keys at or "
                "before it, so the query span must not come before the key span"
            )

    def note_window(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the base module: which columns this forward covers."""
        ids, cache = kwargs.get("input_ids", args[0] if args else None), kwargs.get("past_key_values")
        assert isinstance(ids, Tensor)  # noqa: S101 - a causal LM called with ids
        self.subject.observe(ids, kwargs.get("attention_mask"), 0 if cache is None else cache.get_seq_length())
        self.forwards += 1

    def __call__(
        self,
        plain: AttentionFunction,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The attention function while the context is open."""
        output, weights = plain(module, query, key, value, mask, **kwargs)
        layer = int(module.layer_idx)  # type: ignore[arg-type]
        if layer not in self._layers:
            return output, weights
        batch, offset = self.subject.window.batch, self.subject.window.offset
        assert batch is not None  # noqa: S101 - noted before any layer runs
        call = _Call(query, key, value, mask, kwargs.get("scaling"), kwargs.get("softcap"), batch, offset)
        own = [(i, b) for i, b in enumerate(self.biases) if b.edge.layer == layer]
        # A row computed anew must keep what the contexts around this one do to it.
        outer = [(None, b) for context in self._outer for b in context.biases if b.edge.layer == layer]
        changes: list[Change] = [*outer, *own]
        if own:
            output = self._rewrite(call, output, own, changes)
        for observed in self.rows:
            if observed.request.layer == layer:
                self._observe(call, observed, changes)
        return output, weights

    def _rewrite(self, call: "_Call", output: Tensor, own: list[tuple[int, Bias]], changes: "list[Change]") -> Tensor:
        output = output.clone()
        heads = sorted({h for _, b in own for h in call.heads(b.edge.head)})
        keep = call.touched([b for _, b in own])
        rows = torch.nonzero(keep.any(0)).flatten()
        if not len(rows):
            return output
        weights = self._weights(call, heads, rows, changes, keep[:, rows], count=True)
        values = call.value[:, [h // call.group for h in heads]]
        new = (weights.to(values.dtype) @ values).transpose(1, 2)
        old = output[:, rows][:, :, heads]
        merged = output[:, rows]
        merged[:, :, heads] = torch.where(keep[:, rows, None, None], new, old)
        output[:, rows] = merged
        return output

    def _weights(
        self, call: "_Call", heads: list[int], rows: Tensor, changes: "list[Change]", wanted: Tensor, *, count: bool
    ) -> Tensor:
        """Softmax of the biased logits; rows that are not `wanted` may be padding, whose weights mean nothing."""
        logits = call.logits(heads, rows)
        for i, one in changes:
            mine = [j for j, h in enumerate(heads) if h in call.heads(one.edge.head)]
            queries = call.queries(one)[:, rows]
            hit = queries[:, :, None] & call.keys(one.edge.key)[:, None, :] & logits[:, 0].isfinite()
            if bool(hit.any()):
                added = torch.zeros_like(logits[:, 0]).masked_fill(hit, one.beta)
                for j in mine:
                    logits[:, j] = logits[:, j] + added
                if count and i is not None:
                    self._fired[i] += 1
                    self._tokens[i] += int(queries.sum())
        if bool((wanted[:, None] & ~logits.isfinite().any(-1)).any()):
            raise EditError("cutting these edges leaves a query with no key to attend to; leave it at least one")
        return logits.softmax(-1)

    def _observe(self, call: "_Call", observed: ObservedRows, changes: "list[Change]") -> None:
        request = observed.request
        heads = list(request.heads) if request.heads is not None else list(range(call.query.shape[1]))
        wanted = call.span_rows(Span.of(request.query))
        rows = torch.nonzero(wanted.any(0)).flatten()
        if not len(rows):
            return
        weights = self._weights(call, heads, rows, changes, wanted[:, rows], count=False)
        where = torch.nonzero(wanted[:, rows])
        observed.rows.append(where[:, 0])
        observed.cols.append(rows[where[:, 1]] + call.offset)
        observed.parts.append(weights[where[:, 0], :, where[:, 1]])


@dataclass(frozen=True, eq=False)
class _Call:
    """One attention call and the columns it covers."""

    query: Float[Tensor, "batch head query d"]
    key: Float[Tensor, "batch kv key d"]
    value: Float[Tensor, "batch kv key d"]
    mask: Tensor | None
    scaling: float | None
    softcap: float | None
    batch: Batch
    offset: int

    @property
    def group(self) -> int:
        return self.query.shape[1] // self.key.shape[1]

    def heads(self, head: int | None) -> list[int]:
        return list(range(self.query.shape[1])) if head is None else [head]

    def logits(self, heads: list[int], rows: Tensor) -> Float[Tensor, "batch head row key"]:
        """Attention logits of some heads and query rows, in float32; keys a query may not see are minus infinity."""
        keys = self.key[:, [h // self.group for h in heads]]
        return attention_logits(
            self.query[:, heads][:, :, rows], keys, self.mask, scaling=self.scaling, softcap=self.softcap, rows=rows,
            n_queries=self.query.shape[2],
        )  # fmt: skip

    def span_rows(self, span: Span) -> Bool[Tensor, "batch query"]:
        """Which query rows of this call a span covers."""
        found = torch.zeros(self.batch.n_rows, self.query.shape[2], dtype=torch.bool, device=self.query.device)
        rows, cols = self.batch.locate(span)
        inside = (cols >= self.offset) & (cols < self.offset + found.shape[1])
        found[rows[inside], cols[inside] - self.offset] = True
        if span.name in ("all", "generated"):
            found[:, max(0, self.batch.n_cols - self.offset) :] = True
        return found

    def queries(self, one: Bias) -> Bool[Tensor, "batch query"]:
        found = self.span_rows(one.edge.query)
        if one.steps is not None:
            steps = torch.arange(found.shape[1], device=found.device) + self.offset - self.batch.n_cols
            found &= torch.isin(steps, torch.tensor(one.steps, device=found.device))
        return found

    def touched(self, biases: list[Bias]) -> Bool[Tensor, "batch query"]:
        return torch.stack([self.queries(b) for b in biases]).any(0)

    def keys(self, span: Span) -> Bool[Tensor, "batch key"]:
        found = torch.zeros(self.batch.n_rows, self.key.shape[2], dtype=torch.bool, device=self.key.device)
        rows, cols = self.batch.locate(span)
        found[rows, cols] = True
        if span.name in ("all", "generated"):
            found[:, self.batch.n_cols :] = True
        return found


@contextmanager
def attending(subject: Subject, biases: Sequence[Bias] = (), *, rows: Sequence[Rows] = ()) -> Iterator[Attending]:
    """Bias or cut attention edges and observe attention rows for every forward inside the block.

    Raises:
        SubjectError: the attention implementation takes no masks.
        EditNeverFired: a forward ran and a bias touched nothing.
        EditError: every edge of some query was cut.
    """
    attending_now = Attending(subject, biases, rows)
    batch = subject.window.batch
    changing = [attending_now] if biases else []
    with replacing_attention(subject, attending_now):
        handle = subject.base.register_forward_pre_hook(attending_now.note_window, with_kwargs=True)
        subject.attending.append(attending_now)
        subject.in_force += changing
        try:
            yield attending_now
        finally:
            subject.attending.remove(attending_now)
            subject.in_force = [one for one in subject.in_force if one not in changing]
            handle.remove()
            subject.window.batch = batch
    attending_now.check()
