"""A `Batch` is prompts as padded tokens, and the one place where spans become token columns.

    batch = encode(tokenizer, ["When Mary and John left, John"], side="left")
    rows, cols = batch.locate(Span("last"))

Columns are absolute: they count padding and, in generation, run on past the prompt, so the same
column means the same token with and without a key/value cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mediant.core.errors import SpanError, TaskError, unknown
from mediant.core.pair import Prompt
from mediant.core.span import RESERVED, Span
from mediant.subject.regions import RegionMap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Side = Literal["left", "right"]
TokenSpans = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded token ids, which of them are real, and each row's spans as columns.

    Attributes:
        ids, mask: shape (batch, pos); `mask` is False on padding.
        spans: per row, span name -> columns.
        start, stop: per row, first column of the prompt and first column after it. Columns from `stop` on
            that are real belong to a continuation whose likelihood is scored.
        texts: the prompts as text; empty when the batch was made from ids.
        copies: how many times the same prompts are stacked, see `repeat`.
        images: per row, which image tokens see what, in columns of the batch; empty for text alone.
        inputs: what else the model is given with the prompt: pixels and their grids.
        pixels: per row, the image as it was given; empty for text alone, and where the caller kept them.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    spans: tuple[TokenSpans, ...]
    start: tuple[int, ...]
    stop: tuple[int, ...]
    texts: tuple[str, ...] = ()
    copies: int = 1
    images: tuple[RegionMap, ...] = ()
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    pixels: tuple[npt.NDArray[np.uint8], ...] = ()

    @property
    def n_rows(self) -> int:
        """Number of prompts."""
        return self.ids.shape[0]

    @property
    def n_cols(self) -> int:
        """Padded length."""
        return self.ids.shape[1]

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Positions counted from each prompt's first real token; 0 on padding before it."""
        return (self.mask.long().cumsum(-1) - 1).clamp(min=0)

    def columns(self, row: int, span: Span) -> list[int]:
        """Columns of `span` in one row; generated tokens are not included.

        Raises:
            SpanError: an index outside the prompt, or a name this prompt does not define.
        """
        first, stop = self.start[row], self.stop[row]
        if span.name in ("all", "prompt"):
            return list(range(first, stop))
        if span.name == "last":
            return [stop - 1]
        if span.name == "generated":
            return []
        if span.name:
            if span.name not in self.spans[row]:
                raise unknown("span", span.name, [*self.spans[row], *RESERVED], note=f"(prompt {row})")
            return list(self.spans[row][span.name])
        chosen = list(range(first, stop))[span.start : span.stop]
        if not chosen:
            raise SpanError(f"span {span} selects none of the {stop - first} tokens of prompt {row}")
        return chosen

    def locate(self, span: Span, rows: Sequence[int] | None = None) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Row and column of every token of `span`, ordered by row, then column."""
        pairs = [(row, col) for row in (range(self.n_rows) if rows is None else rows) for col in self.columns(row, span)]
        where = torch.tensor(pairs, dtype=torch.long, device=self.ids.device).reshape(-1, 2)
        return where[:, 0], where[:, 1]

    def tokens_of(self, row: int) -> list[int]:
        """Real token ids of one row."""
        ids: list[int] = self.ids[row][self.mask[row]].tolist()
        return ids

    def repeat(self, times: int) -> "Batch":
        """The batch stacked `times` over, whole copies one after the other."""
        return Batch(
            self.ids.repeat(times, 1),
            self.mask.repeat(times, 1),
            self.spans * times,
            self.start * times,
            self.stop * times,
            self.texts * times,
            self.copies * times,
            self.images * times,
            {name: values.repeat(times, *[1] * (values.ndim - 1)) for name, values in self.inputs.items()},
            self.pixels * times,
        )

    def with_spans(self, spans: Sequence[TokenSpans]) -> "Batch":
        """The batch with more named spans, one mapping of columns per row.

        Raises:
            SpanError: another number of rows, or a column outside a row's prompt.
        """
        if len(spans) != self.n_rows:
            raise SpanError(f"expected spans for {self.n_rows} rows, got {len(spans)}")
        for row, named in enumerate(spans):
            for name, columns in named.items():
                if not columns or not all(self.start[row] <= column < self.stop[row] for column in columns):
                    raise SpanError(f"span {name!r} of row {row} needs columns from {self.start[row]} to {self.stop[row] - 1}")
        return replace(self, spans=tuple({**old, **new} for old, new in zip(self.spans, spans, strict=True)))

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        inputs = {name: values.to(device) for name, values in self.inputs.items()}
        return replace(self, ids=self.ids.to(device), mask=self.mask.to(device), inputs=inputs)


@dataclass(frozen=True)
class Tokens:
    """One tokenised prompt: ids, spans as token indices, and how many ids at the end are a continuation.

    Attributes:
        pixels, seen: of a prompt with an image: the image, and which of its tokens see what.
    """

    ids: list[int]
    spans: TokenSpans
    text: str = ""
    n_continuation: int = 0
    pixels: npt.NDArray[np.uint8] | None = field(default=None, compare=False, repr=False)
    seen: RegionMap | None = field(default=None, compare=False, repr=False)

    def followed_by(self, ids: Sequence[int]) -> "Tokens":
        """The same with a continuation."""
        return replace(self, ids=[*self.ids, *ids], n_continuation=len(ids))


def tokenize(tokenizer: "PreTrainedTokenizerBase", prompt: Prompt | str) -> Tokens:
    """Tokenise a prompt and find the tokens that overlap each of its spans.

    Raises:
        TaskError: the prompt is empty.
        SpanError: spans are given but the tokenizer cannot tell character offsets.
    """
    prompt = Prompt(prompt) if isinstance(prompt, str) else prompt
    if prompt.spans and not tokenizer.is_fast:
        raise SpanError(f"{type(tokenizer).__name__} gives no character offsets, so named spans cannot be found; use index spans")
    encoded = tokenizer(prompt.text, return_offsets_mapping=bool(prompt.spans))
    ids: list[int] = list(encoded["input_ids"])
    if not ids:
        raise TaskError("an empty prompt has no tokens to run on")
    offsets = encoded["offset_mapping"] if prompt.spans else []
    return Tokens(ids, spans_of(prompt, offsets), prompt.text)


def spans_of(prompt: Prompt, offsets: Sequence[tuple[int, int]], *, shift: int = 0) -> TokenSpans:
    """Tokens of each span, by the characters of every token; `shift` characters stand before the prompt's own.

    Raises:
        SpanError: a span without tokens.
    """
    spans = {name: _overlapping(offsets, start + shift, stop + shift) for name, (start, stop) in prompt.spans.items()}
    for name, found in spans.items():
        if not found:
            raise SpanError(f"span {name!r} covers no token of {prompt.text!r}")
    return spans


def _overlapping(offsets: Sequence[tuple[int, int]], start: int, stop: int) -> tuple[int, ...]:
    return tuple(i for i, (a, b) in enumerate(offsets) if a < stop and b > start and a < b)


def collate(items: Sequence[Tokens], *, pad_id: int, side: Side = "left") -> Batch:
    """Pad tokenised prompts into a batch."""
    if not items:
        raise TaskError("a batch needs at least one prompt")
    if side not in ("left", "right"):
        raise unknown("side", side, ["left", "right"])
    width = max(len(item.ids) for item in items)
    shifts = [width - len(item.ids) if side == "left" else 0 for item in items]
    ids = torch.full((len(items), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(items), width), dtype=torch.bool)
    for row, (item, shift) in enumerate(zip(items, shifts, strict=True)):
        ids[row, shift : shift + len(item.ids)] = torch.tensor(item.ids)
        mask[row, shift : shift + len(item.ids)] = True
    return Batch(
        ids,
        mask,
        tuple({n: tuple(c + s for c in cs) for n, cs in item.spans.items()} for item, s in zip(items, shifts, strict=True)),
        tuple(shifts),
        tuple(s + len(item.ids) - item.n_continuation for item, s in zip(items, shifts, strict=True)),
        tuple(item.text for item in items),
    )


def bare_batch(ids: Int[Tensor, "batch pos"], mask: Tensor | None) -> Batch:
    """A batch for a forward that was called on the model directly: no named spans."""
    real = torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.ndim != 2 else mask[:, -ids.shape[1] :].bool()
    first = real.long().argmax(-1)
    stop = ids.shape[1] - real.flip(-1).long().argmax(-1)
    return Batch(ids, real, ({},) * ids.shape[0], tuple(first.tolist()), tuple(stop.tolist()))
