"""What every node of a circuit wrote and every port read in one forward, token by token.

    tokens = TokenOrder.of(batch, spans=["S2", "end"])
    clean = observe(lm, batch, tokens)
    clean.outputs[graph.sources.index(Site("head_result", 9, 6))]       # (token, d_model)

Tokens are the real ones, ordered by span: what belongs to one span is one slice, in every tensor here and in the
gates and scores built on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mediant.core.errors import SpanError
from mediant.core.span import Span
from mediant.interventions.execute import run
from mediant.interventions.ports import Passage, Score
from mediant.subject import Batch, Subject


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """The real tokens of a batch, ordered by span, then row, then column.

    Attributes:
        span_of: span number of each token of the batch, -1 on padding: (batch, pos).
        rows, cols: where the ordered tokens stand in the batch.
        bounds: tokens of span `s` are `bounds[s]` to `bounds[s + 1]`.
    """

    span_of: Int[Tensor, "batch pos"]
    rows: Int[Tensor, " token"]
    cols: Int[Tensor, " token"]
    bounds: tuple[int, ...]

    @property
    def n_spans(self) -> int:
        """Number of spans."""
        return len(self.bounds) - 1

    @classmethod
    def from_spans(cls, span_of: Int[Tensor, "batch pos"], n_spans: int) -> "TokenOrder":
        """Order the tokens whose span number is not -1."""
        places = torch.nonzero(span_of >= 0)
        places = places[torch.argsort(span_of[places[:, 0], places[:, 1]], stable=True)]
        counts = torch.bincount(span_of[places[:, 0], places[:, 1]], minlength=n_spans)
        return cls(span_of, places[:, 0], places[:, 1], (0, *counts.cumsum(0).tolist()))

    def after(self, first: Int[Tensor, " batch"]) -> "TokenOrder":
        """Without tokens before a column of each row, where two runs are equal; their spans are still known to attention."""
        keep = self.cols >= first.to(self.cols.device)[self.rows]
        spans = torch.repeat_interleave(torch.arange(self.n_spans), torch.tensor(self.bounds).diff())[keep.cpu()]
        bounds = (0, *torch.bincount(spans, minlength=self.n_spans).cumsum(0).tolist())
        return TokenOrder(self.span_of, self.rows[keep], self.cols[keep], bounds)

    @classmethod
    def of(cls, batch: Batch, spans: Sequence[Span | str] | None = None) -> "TokenOrder":
        """Tokens by span; without spans, all real tokens are one.

        Raises:
            SpanError: a token belongs to no span, or to two.
        """
        found = torch.where(batch.mask, 0, -1)
        if spans is None:
            return cls.from_spans(found, 1)
        found = torch.full_like(found, -1)
        for number, span in enumerate(spans):
            rows, cols = batch.locate(Span.of(span))
            taken = found[rows, cols] >= 0
            if bool(taken.any()):
                row, col = int(rows[taken][0]), int(cols[taken][0])
                raise SpanError(
                    f"token {col - batch.start[row]} of prompt {row} is in span {str(spans[int(found[row, col])])!r} and in "
                    f"{str(span)!r}; a schema gives every token to one span"
                )
            found[rows, cols] = number
        # Tokens of an answer whose likelihood is scored go on from the prompt's last span.
        stop = torch.tensor(batch.stop, device=found.device)[:, None]
        found[batch.mask & (torch.arange(batch.n_cols, device=found.device) >= stop)] = len(spans) - 1
        left = torch.nonzero(batch.mask & (found < 0))
        if len(left):
            row, col = left[0].tolist()
            raise SpanError(f"token {col - batch.start[row]} of prompt {row} is in no span of the schema")
        return cls.from_spans(found, len(spans))

    def pick(self, values: Float[Tensor, "*lead batch pos d"]) -> Float[Tensor, "*lead token d"]:
        """The ordered tokens' values."""
        return values[..., self.rows, self.cols, :]

    def put(self, into: Float[Tensor, "batch pos *d"], values: Float[Tensor, "token *d"]) -> Tensor:
        """A copy of `into` with the ordered tokens' values replaced."""
        return into.index_put((self.rows, self.cols), values.to(into.dtype))


@dataclass(eq=False)
class AttentionRecord:
    """One layer's attention, (rotated) queries and keys, one of each per query head; `score` gives logits of any of them."""

    query: Float[Tensor, "batch head pos d_head"]
    key: Float[Tensor, "batch head pos d_head"]
    value: Float[Tensor, "batch head pos d_head"]
    logits: Float[Tensor, "batch head pos pos"]
    mixed: Float[Tensor, "batch head pos d_head"]
    score: Score


@dataclass(eq=False)
class Nodes:
    """One forward's node outputs and port inputs.

    Attributes:
        outputs: what each source of the graph added to the stream.
        projected: per layer, queries, keys and values of each head as projected (before rotation).
        attention_in, mlp_in: the stream as each layer's sublayers read it; `final_in` the last one.
        attention: per layer, when asked for.
        logits: (batch, kept, vocab).
    """

    outputs: Float[Tensor, "source token d_model"]
    projected: list[Float[Tensor, "3 head token d_head"]]
    attention_in: list[Float[Tensor, "token d_model"]]
    mlp_in: list[Float[Tensor, "token d_model"]]
    final_in: Float[Tensor, "token d_model"]
    attention: list[AttentionRecord]
    logits: Float[Tensor, "batch kept vocab"]

    def reordered(self, now: TokenOrder, then: TokenOrder) -> "Nodes":
        """The same run with the same tokens in another order."""
        place = torch.full_like(now.span_of, -1)
        place[now.rows, now.cols] = torch.arange(len(now.rows), device=place.device)
        at = place[then.rows, then.cols]
        if len(at) != len(now.rows) or bool((at < 0).any()):
            raise SpanError("the two orders are not of the same tokens")
        if torch.equal(at, torch.arange(len(at), device=at.device)):
            return self
        return Nodes(
            self.outputs[:, at], [layer[:, :, at] for layer in self.projected], [layer[at] for layer in self.attention_in],
            [layer[at] for layer in self.mlp_in], self.final_in[at], self.attention, self.logits,
        )  # fmt: skip


class Observing(Passage):
    """Keeps what nodes write and ports read."""

    def __init__(self, subject: Subject, tokens: TokenOrder, *, with_attention: bool) -> None:
        super().__init__(subject)
        self.tokens, self.with_attention = tokens, with_attention
        weight: Tensor = next(subject.model.parameters())
        self.outputs = weight.new_zeros(self.graph.n_sources, len(tokens.rows), subject.shape.d_model)
        self.projected: list[Tensor] = []
        self.attention_in: list[Tensor] = []
        self.mlp_in: list[Tensor] = []
        self.final_in: Tensor | None = None
        self.attention: list[AttentionRecord] = []

    def at_embedding(self, stream: Tensor) -> Tensor:
        """Keep the embedding's output."""
        self.outputs[0] = self.tokens.pick(stream.detach())
        return stream

    def at_attention(self, layer: int, stream: Tensor) -> None:  # noqa: ARG002
        """Keep the stream."""
        self.attention_in.append(self.tokens.pick(stream.detach()))

    def at_port(self, layer: int, port: int, values: Tensor) -> Tensor:  # noqa: ARG002
        """Keep the projections."""
        self.projected.append(self.tokens.pick(values.detach().permute(2, 0, 1, 3)))
        return values

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, score: Score) -> Tensor:  # noqa: ARG002
        """Keep queries, keys, values and logits when asked to."""
        logits = score(query, key)
        mixed = logits.softmax(-1).to(value.dtype) @ value
        if self.with_attention:
            self.attention.append(
                AttentionRecord(query.detach(), key.detach(), value.detach(), logits.detach(), mixed.detach(), score)
            )
        return mixed

    def at_heads(self, layer: int, mixed: Tensor, projected: Tensor) -> None:
        """Keep the heads' outputs."""
        outputs = self.ports.head_outputs(layer, mixed, projected)
        first = self.graph.first_source(layer)
        self.outputs[first : first + self.graph.n_heads] = self.tokens.pick(outputs.detach())

    def at_mlp(self, layer: int, stream: Tensor) -> Tensor:  # noqa: ARG002
        """Keep the stream."""
        self.mlp_in.append(self.tokens.pick(stream.detach()))
        return stream

    def at_mlp_output(self, layer: int, output: Tensor) -> None:
        """Keep the MLP's output."""
        self.outputs[self.graph.first_source(layer) + self.graph.n_heads] = self.tokens.pick(output.detach())

    def at_final(self, stream: Tensor) -> Tensor:
        """Keep the stream."""
        self.final_in = self.tokens.pick(stream.detach())
        return stream

    def nodes(self, logits: Tensor) -> Nodes:
        """What was kept."""
        assert self.final_in is not None  # noqa: S101 - `open` checks that every place was passed
        by_layer = [torch.stack(self.projected[i : i + 3]) for i in range(0, len(self.projected), 3)]
        return Nodes(self.outputs, by_layer, self.attention_in, self.mlp_in, self.final_in, self.attention, logits)


def observe(subject: Subject, batch: Batch, tokens: TokenOrder, *, keep: int = 1, with_attention: bool = False) -> Nodes:
    """Run a batch once and keep every node's output and every port's input."""
    watching = Observing(subject, tokens, with_attention=with_attention)
    with torch.no_grad(), watching.open():
        logits = run(subject, batch, keep=keep).logits
    return watching.nodes(logits)
