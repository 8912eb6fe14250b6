"""Pairs of prompts as aligned token batches, with what the answers score.

    encoded = encode(lm, task.pairs)          # noising: the clean prompt is the base
    encoded.base, encoded.source              # two batches with the same columns

Single-token answers take one row per pair, read at the last column. Longer answers take two rows per pair,
one for each answer appended to the prompt, so that both likelihoods are under the same intervention.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mediant.core.errors import MediantError, TaskError, unknown
from mediant.core.pair import Pair
from mediant.core.span import Span
from mediant.subject import Batch, Subject
from mediant.subject.batch import Tokens

Direction = Literal["noising", "denoising"]
IMAGE = Span("image")


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Aligned base and source batches of some pairs.

    Attributes:
        answers, counterfactual_answers: token ids per pair, of the clean and of the counterfactual prompt.
        rows_per_pair: 1 for single-token answers, 2 otherwise (rows `2i` and `2i + 1` score the two answers).
        keep: for how many last columns logits are needed.
        answer_sets: token ids of all right and all wrong answers per pair; empty where pairs have one of each.
    """

    pairs: tuple[Pair, ...]
    base: Batch
    source: Batch
    answers: tuple[tuple[int, ...], ...]
    counterfactual_answers: tuple[tuple[int, ...], ...]
    rows_per_pair: int
    keep: int
    answer_sets: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()

    @cached_property
    def first_difference(self) -> Int[Tensor, " row"]:
        """First column of each row where base and source tokens or images differ; activations before it are equal."""
        differ = self.base.ids != self.source.ids
        for row in self.other_images:
            differ[row, self.base.columns(row, IMAGE)] = True
        return differ.long().argmax(-1)

    @cached_property
    def other_images(self) -> tuple[int, ...]:
        """Rows whose base and source look at different images."""
        pixels = [(self.base.pixels[row], self.source.pixels[row]) for row in range(len(self.base.pixels))]
        return tuple(row for row, (one, other) in enumerate(pixels) if not np.array_equal(one, other))

    def changed(self, span: Span) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Rows and columns of the part of `span` where base and source activations can differ."""
        rows, cols = self.base.locate(span)
        later = cols >= self.first_difference[rows]
        return rows[later], cols[later]

    def prompt_logits(self, logits: Float[Tensor, "row keep vocab"]) -> Float[Tensor, "pair vocab"]:
        """Logits at each prompt's last token."""
        lengths = self._continuation_lengths()
        rows = torch.arange(0, self.base.n_rows, self.rows_per_pair, device=logits.device)
        return logits[rows, torch.tensor([logits.shape[1] - lengths[r] for r in rows.tolist()], device=logits.device)]

    def log_likelihoods(self, logits: Float[Tensor, "row keep vocab"]) -> tuple[Float[Tensor, " pair"], Float[Tensor, " pair"]]:
        """Log-probability of each pair's answer and counterfactual answer."""
        if self.rows_per_pair == 1:
            logp = logits[:, -1].float().log_softmax(-1)
            return _pick(logp, self.answers), _pick(logp, self.counterfactual_answers)
        scores = self._row_scores(logits)
        return scores[0::2], scores[1::2]

    def greedy_right(self, logits: Float[Tensor, "row keep vocab"]) -> Bool[Tensor, " pair"]:
        """Whether greedy decoding would give the whole answer."""
        right = []
        for row, ids in zip(range(0, self.base.n_rows, self.rows_per_pair), self.answers, strict=True):
            right.append(logits[row, -len(ids) :].argmax(-1).tolist() == list(ids))
        return torch.tensor(right)

    def _row_scores(self, logits: Tensor) -> Tensor:
        targets = [ids for both in zip(self.answers, self.counterfactual_answers, strict=True) for ids in both]
        scores = []
        for row, ids in enumerate(targets):
            logp = logits[row, -len(ids) :].float().log_softmax(-1)
            scores.append(logp.gather(-1, torch.tensor(ids, device=logits.device)[:, None]).sum())
        return torch.stack(scores)

    def _continuation_lengths(self) -> list[int]:
        if self.rows_per_pair == 1:
            return [1] * self.base.n_rows
        return [len(ids) for both in zip(self.answers, self.counterfactual_answers, strict=True) for ids in both]


def encode(subject: Subject, pairs: Sequence[Pair], *, direction: Direction = "noising") -> PairBatch:
    """Tokenise and align pairs.

    Args:
        direction: `noising` writes counterfactual values into the clean run (tests necessity); `denoising`
            writes clean values into the counterfactual run (tests sufficiency).

    Raises:
        TaskError: naming the pair whose prompts differ in length or are equal, or whose answer is no run of tokens.
        UnknownName: a direction other than these two.
    """
    if direction not in ("noising", "denoising"):
        raise unknown("direction", direction, ["noising", "denoising"])
    items = [_encode_one(subject, pair, direction) for pair in pairs]
    if not items:
        raise TaskError("no pairs to encode")
    answers = tuple(tuple(item.answer) for item in items)
    counters = tuple(tuple(item.counterfactual_answer) for item in items)
    sets = [found for pair in pairs if (found := _answer_sets(subject, pair)) is not None]
    single = all(len(ids) == 1 for ids in (*answers, *counters))
    if single:
        base, source = [i.base for i in items], [i.source for i in items]
    else:
        base = [_extended(i.base, ids) for i in items for ids in (i.answer, i.counterfactual_answer)]
        source = [_extended(i.source, ids) for i in items for ids in (i.answer, i.counterfactual_answer)]
    keep = max(len(ids) for ids in (*answers, *counters))
    return PairBatch(
        tuple(pairs),
        subject.collate(base),
        subject.collate(source),
        answers,
        counters,
        1 if single else 2,
        1 if single else keep,
        tuple(sets) if len(sets) == len(items) else (),
    )


def check_pairs(subject: Subject, pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    """What makes pairs unusable, pair by pair, and what is allowed but often a slip."""
    wrong, odd = [], []
    for pair in pairs:
        try:
            item = _encode_one(subject, pair, "noising")
        except MediantError as error:
            wrong.append(str(error))
            continue
        bare = [a for a in (pair.answer, pair.counterfactual_answer) if a[:1].isalnum() and pair.clean.text[-1:].isalnum()]
        if bare:
            meant = f"did you mean {' ' + bare[0]!r} (with a leading space)?"
            odd.append(f"pair {pair.id}: answer {bare[0]!r} runs on from a word; {meant}")
        if len(item.answer) != len(item.counterfactual_answer):
            lengths = f"{len(item.answer)} and {len(item.counterfactual_answer)} tokens"
            odd.append(f"pair {pair.id}: the answers take {lengths}; the longer one is less probable for that alone")
    return wrong, odd


def _answer_sets(subject: Subject, pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Token ids of a pair's right and wrong answers; None where it has one of each."""
    if not pair.answers or not pair.counterfactual_answers:
        return None
    found = []
    for texts in (pair.answers, pair.counterfactual_answers):
        ids = [subject.continuation_ids(pair.clean, text) for text in texts]
        longer = [text for text, one in zip(texts, ids, strict=True) if len(one) != 1]
        if longer:
            raise TaskError(
                f"pair {pair.id}: answers in a set must be single tokens, but {', '.join(map(repr, longer[:5]))} are not"
            )
        found.append(tuple(one[0] for one in ids))
    return found[0], found[1]


@dataclass(frozen=True)
class _Item:
    base: Tokens
    source: Tokens
    answer: list[int]
    counterfactual_answer: list[int]


def _encode_one(subject: Subject, pair: Pair, direction: Direction) -> _Item:
    try:
        clean, counterfactual = subject.tokenize(pair.clean), subject.tokenize(pair.counterfactual)
        answer = subject.continuation_ids(pair.clean, pair.answer)
        other = subject.continuation_ids(pair.clean, pair.counterfactual_answer)
    except MediantError as error:
        raise type(error)(f"pair {pair.id}: {error}") from error
    if len(clean.ids) != len(counterfactual.ids):
        raise TaskError(
            f"pair {pair.id}: the clean prompt has {len(clean.ids)} tokens, the counterfactual {len(counterfactual.ids)}; "
            "swaps need the same number. Choose fillers that tokenise alike."
        )
    if clean.ids == counterfactual.ids and _same_image(clean, counterfactual):
        raise TaskError(f"pair {pair.id}: clean and counterfactual prompts are the same tokens, so nothing can be patched")
    if answer == other:
        raise TaskError(f"pair {pair.id}: answer and counterfactual answer are the same tokens")
    base, source = (clean, counterfactual) if direction == "noising" else (counterfactual, clean)
    # Tokens are aligned one to one, so a span that only one prompt names means the same columns in the other.
    spans = {**clean.spans, **counterfactual.spans} if direction == "denoising" else {**counterfactual.spans, **clean.spans}
    return _Item(
        replace(base, spans={**spans, **base.spans}),
        replace(source, spans={**spans, **source.spans}),
        answer,
        other,
    )


def _same_image(one: Tokens, other: Tokens) -> bool:
    if one.pixels is None or other.pixels is None:
        return one.pixels is other.pixels
    return np.array_equal(one.pixels, other.pixels)


def _extended(tokens: Tokens, answer: Sequence[int]) -> Tokens:
    return tokens.followed_by(answer[:-1])


def _pick(logp: Tensor, ids: Sequence[Sequence[int]]) -> Tensor:
    return logp.gather(-1, torch.tensor([i[0] for i in ids], device=logp.device)[:, None])[:, 0]


@dataclass(frozen=True)
class Column:
    """One column of an effect map: a span and how to show it."""

    span: Span
    label: str


def token_columns(subject: Subject, pairs: Sequence[Pair]) -> list[Column]:
    """Columns for an effect map over pairs: single tokens where all prompts line up, else named spans.

    Prompts line up when they share a template and a length. Otherwise the spans that every prompt names are
    used, in the first prompt's order, plus `last`.
    """
    if not pairs:
        raise TaskError("no pairs were given, so there are no columns")
    tokens = [subject.tokenize(pair.clean) for pair in pairs]
    aligned = (
        len({(len(t.ids), pair.template, tuple(sorted(t.spans.items()))) for t, pair in zip(tokens, pairs, strict=True)}) == 1
    )
    if aligned:
        first = tokens[0]
        return [Column(Span.index(i), _label(subject, first, i)) for i in range(len(first.ids))]
    shared = [name for name in tokens[0].spans if all(name in t.spans for t in tokens)]
    shared.sort(key=lambda name: tokens[0].spans[name])
    columns = [Column(Span(name), name) for name in shared]
    if not any(all(t.spans[name] == (len(t.ids) - 1,) for t in tokens) for name in shared):
        columns.append(Column(Span("last"), "last"))
    return columns


def _label(subject: Subject, tokens: Tokens, index: int) -> str:
    names = [name for name, places in tokens.spans.items() if index in places]
    text = subject.decode([tokens.ids[index]])
    return f"{text} [{names[0]}]" if names else text
