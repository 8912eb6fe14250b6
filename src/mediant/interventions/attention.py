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

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mediant.core.errors import EditError, EditNeverFired
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.attention_call import AttentionContext, Call, call_of, noted_window
from mediant.interventions.attention_function import AttentionFunction, replacing_attention
from mediant.interventions.bias import CUT, Bias, bias, check_biases, cut
from mediant.interventions.edge_masks import EdgeMasks, masking
from mediant.interventions.firings import Firing
from mediant.subject import Subject
from mediant.subject.generator import ImageGenerator

__all__ = ["CUT", "Attending", "Bias", "ObservedRows", "Rows", "attending", "bias", "cut"]


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
        check_biases(subject, biases)
        for request in rows:
            for head in request.heads or (0,):
                subject.validate(Site("head_z", request.layer, head))
        self._layers = {b.edge.layer for b in biases} | {r.layer for r in rows}
        self._outer: list[AttentionContext] = list(subject.attending)
        self._fired = [0] * len(self.biases)
        self._tokens = [0] * len(self.biases)

    def firings(self) -> list[Firing]:
        """One report per bias; `change` is not measured for attention and reads 0."""
        return [Firing(b.label, f, t, 0.0) for b, f, t in zip(self.biases, self._fired, self._tokens, strict=True)]

    def check(self) -> None:
        """Raise if a bias never acted although a forward ran."""
        silent = [report.label for report in self.firings() if not report.forwards]
        if self.forwards and silent:
            raise EditNeverFired(
                f"{len(silent)} attention edit(s) never fired: {'; '.join(silent[:3])}; a query sees only keys at or "
                "before it, so the query span must not come before the key span"
            )

    def note_window(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the entry module: which columns this forward covers."""
        noted_window(self, args, kwargs)

    def __call__(
        self, plain: AttentionFunction, module: nn.Module, *tensors: Tensor | None, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The attention function while the context is open."""
        output, weights = plain(module, *tensors, **more)
        if int(module.layer_idx) not in self._layers:  # type: ignore[arg-type]
            return output, weights
        call = call_of(self.subject, module, tensors, more)
        own = [(i, b) for i, b in enumerate(self.biases) if b.edge.layer == call.layer]
        if own:
            output = self._rewrite(call, output, own)
        for observed in self.rows:
            if observed.request.layer == call.layer:
                self._observe(call, observed)
        return output, weights

    def adjust(self, call: Call, heads: Sequence[int], rows: Tensor, logits: Tensor) -> Tensor:
        """Logits of some heads and rows with this context's biases."""
        for one in self.biases:
            if one.edge.layer == call.layer:
                self._add(call, heads, rows, logits, one)
        return logits

    @staticmethod
    def _add(call: Call, heads: Sequence[int], rows: Tensor, logits: Tensor, one: Bias) -> int:
        """Add one bias in place; in how many query rows it acted."""
        queries = _queries(call, one)[:, rows]
        hit = queries[:, :, None] & call.keys(one.edge.key)[:, None, :] & logits[:, 0].isfinite()
        if not bool(hit.any()):
            return 0
        added = torch.zeros_like(logits[:, 0]).masked_fill(hit, one.beta)
        concerned = call.heads(one.edge.head)
        for j, head in enumerate(heads):
            if head in concerned:
                logits[:, j] = logits[:, j] + added
        return int(queries.sum())

    def _rewrite(self, call: Call, output: Tensor, own: list[tuple[int, Bias]]) -> Tensor:
        output = output.clone()
        heads = sorted({h for _, b in own for h in call.heads(b.edge.head)})
        keep = torch.stack([_queries(call, b) for _, b in own]).any(0)
        rows = torch.nonzero(keep.any(0)).flatten()
        if not len(rows):
            return output
        weights = self._weights(call, heads, rows, keep[:, rows], own)
        old = output[:, rows][:, :, heads]
        merged = output[:, rows]
        merged[:, :, heads] = torch.where(keep[:, rows, None, None], call.mixed(weights, heads), old)
        output[:, rows] = merged
        return output

    def _weights(
        self, call: Call, heads: list[int], rows: Tensor, wanted: Tensor, own: Sequence[tuple[int, Bias]] | None = None
    ) -> Tensor:
        """Softmax of the biased logits; rows that are not `wanted` may be padding, whose weights mean nothing.

        Args:
            own: this context's biases, to be counted as fired; None to add all of them uncounted.
        """
        logits = call.logits(heads, rows)
        # A row computed anew must keep what the contexts around this one do to it.
        for context in self._outer:
            logits = context.adjust(call, heads, rows, logits)
        if own is None:
            logits = self.adjust(call, heads, rows, logits)
        for i, one in own or ():
            acted = self._add(call, heads, rows, logits, one)
            self._fired[i] += acted > 0
            self._tokens[i] += acted
        if bool((wanted[:, None] & ~logits.isfinite().any(-1)).any()):
            raise EditError("cutting these edges leaves a query with no key to attend to; leave it at least one")
        return logits.softmax(-1)

    def _observe(self, call: Call, observed: ObservedRows) -> None:
        request = observed.request
        heads = list(request.heads) if request.heads is not None else list(range(call.query.shape[1]))
        wanted = call.span_rows(Span.of(request.query))
        rows = torch.nonzero(wanted.any(0)).flatten()
        if not len(rows):
            return
        weights = self._weights(call, heads, rows, wanted[:, rows])
        where = torch.nonzero(wanted[:, rows])
        observed.rows.append(where[:, 0])
        observed.cols.append(rows[where[:, 1]] + call.offset)
        observed.parts.append(weights[where[:, 0], :, where[:, 1]])


def _queries(call: Call, one: Bias) -> Bool[Tensor, "batch query"]:
    found = call.span_rows(one.edge.query)
    if one.steps is not None:
        steps = torch.arange(found.shape[1], device=found.device) + call.offset - call.batch.n_cols
        found &= torch.isin(steps, torch.tensor(one.steps, device=found.device))
    return found


@overload
def attending(
    subject: Subject, biases: Sequence[Bias] = (), *, rows: Sequence[Rows] = ()
) -> AbstractContextManager[Attending]: ...
@overload
def attending(subject: ImageGenerator, biases: Sequence[Bias] = ()) -> AbstractContextManager[EdgeMasks]: ...


def attending(
    subject: Subject | ImageGenerator, biases: Sequence[Bias] = (), *, rows: Sequence[Rows] = ()
) -> AbstractContextManager[Attending] | AbstractContextManager[EdgeMasks]:
    """Bias or cut attention edges, and in language models observe attention rows, for every forward inside the block.

    Raises:
        SubjectError: the attention implementation takes no masks.
        EditNeverFired: a forward ran and a bias touched nothing.
        EditError: every edge of some query was cut.
    """
    return masking(subject, biases) if isinstance(subject, ImageGenerator) else _attending(subject, biases, rows)


@contextmanager
def _attending(subject: Subject, biases: Sequence[Bias], rows: Sequence[Rows]) -> Iterator[Attending]:
    attending_now = Attending(subject, biases, rows)
    batch = subject.window.batch
    changing = [attending_now] if biases else []
    with replacing_attention(subject, attending_now):
        handle = subject.entry.register_forward_pre_hook(attending_now.note_window, with_kwargs=True)
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
