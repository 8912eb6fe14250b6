"""A schema gives every token of every prompt to one named span, in the same order in all of them.

    table = from_task_spans(lm, pairs)                  # first | ..IO | IO | IO..S1 | S1 | S1..S2 | S2 | S2..end | end
    scores = eap(lm, pairs, spans=table.names, order=table.order)

Spans make prompts of different length comparable: an edge "from S2 to end" is one edge, whatever the tokens in between
(Haklay et al. 2025). Rules suffice where the prompts name their parts; `search.saliency` makes spans from saliency alone,
and `tasks.schema_writer` lets a language model write them. Tables are kept as the paper's code keeps them: one row per prompt,
one column per span with its first token, and the length; an empty span starts where the next one does.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random

import torch

from mediant.core.errors import SpanError
from mediant.core.pair import Pair
from mediant.interventions.nodes import TokenOrder
from mediant.subject import Subject
from mediant.tasks.encode import PairBatch

SHOWN = 5


@dataclass(frozen=True)
class SpanTable:
    """Which span each token of each prompt is in.

    Attributes:
        names: spans in reading order.
        spans: pair id -> span number of each token.
    """

    names: tuple[str, ...]
    spans: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        for name, row in self.spans.items():
            if not row or not all(0 <= s < len(self.names) for s in row):
                raise SpanError(f"prompt {name}: span numbers must be 0 to {len(self.names) - 1}, got {row}")

    def order(self, batch: PairBatch) -> TokenOrder:
        """The tokens of encoded pairs, ordered by span.

        Raises:
            SpanError: a pair that the table lacks, or of another length.
        """
        found = torch.full_like(batch.base.ids, -1)
        for row in range(batch.base.n_rows):
            pair = batch.pairs[row // batch.rows_per_pair]
            spans = self.of(pair)
            start, stop = batch.base.start[row], batch.base.stop[row]
            if stop - start != len(spans):
                raise SpanError(
                    f"pair {pair.id} has {stop - start} tokens, the schema {len(spans)}; was it made for another tokenizer?"
                )
            found[row, start:stop] = torch.tensor(spans)
            # Tokens of an answer whose likelihood is scored go on from the prompt's last token.
            found[row, stop:] = torch.where(batch.base.mask[row, stop:], spans[-1], -1)
        return TokenOrder.from_spans(found, len(self.names))

    def of(self, pair: Pair) -> tuple[int, ...]:
        """Span numbers of one pair."""
        if pair.id not in self.spans:
            raise SpanError(f"the schema has no row for pair {pair.id}")
        return self.spans[pair.id]

    @property
    def ends(self) -> tuple[int, ...]:
        """Spans that hold some prompt's last token."""
        return tuple(sorted({row[-1] for row in self.spans.values()}))

    def shuffled(self, seed: int) -> "SpanTable":
        """A control: the same cuts, but in every prompt the names are dealt out anew."""
        rng, rows = Random(seed), {}
        for name, row in self.spans.items():
            dealt = list(range(len(self.names)))
            rng.shuffle(dealt)
            rows[name] = tuple(dealt[s] for s in row)
        return SpanTable(self.names, rows)

    def starts(self, pair_id: str) -> tuple[int, ...]:
        """First token of each span of one prompt, and the prompt's length.

        Raises:
            SpanError: spans that are not in reading order.
        """
        row = self.spans[pair_id]
        if list(row) != sorted(row):
            raise SpanError(f"prompt {pair_id}: spans are not in reading order, so they have no starts")
        return (*(next((i for i, s in enumerate(row) if s >= span), len(row)) for span in range(len(self.names))), len(row))

    def save(self, path: Path | str) -> None:
        """Write as CSV: id, one column per span, length."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", *self.names, "length"])
            writer.writerows([name, *self.starts(name)] for name in self.spans)

    @classmethod
    def load(cls, path: Path | str) -> "SpanTable":
        """Read what `save` wrote.

        Raises:
            SpanError: the file is missing or broken, with the line.
        """
        try:
            with Path(path).open(encoding="utf-8", newline="") as file:
                head, *lines = list(csv.reader(file))
        except (OSError, ValueError, csv.Error) as error:
            raise SpanError(f"{path} holds no span table: {error}") from error
        if len(head) < 3 or head[0] != "id" or head[-1] != "length":
            raise SpanError(f"{path}: expected the columns id, one per span, length; got {', '.join(head)}")
        rows = {}
        for number, line in enumerate(lines, start=2):
            try:
                starts = [int(x) for x in line[1:]]
                if len(line) != len(head) or starts != sorted(starts) or starts[0] != 0:
                    raise ValueError("starts must begin at 0 and not fall")
                sizes = [b - a for a, b in pairwise(starts)]
                rows[line[0]] = tuple(span for span, size in enumerate(sizes) for _ in range(size))
            except (ValueError, IndexError) as error:
                raise SpanError(f"{path} line {number}: {error}") from error
        return cls(tuple(head[1:-1]), rows)


def from_task_spans(subject: Subject, pairs: Sequence[Pair], names: Sequence[str] | None = None) -> SpanTable:
    """Rule-based schema: the named spans all prompts share, and what stands before, between and after them.

    The first token is a span of its own (it gathers attention whatever it says), unless it is in a named span. Where another
    span ends the prompt together with "end", the last token is "end" alone.

    Raises:
        SpanError: naming the prompts that lack a span, where spans overlap, or stand in another order than in the first.
    """
    if not pairs:
        raise SpanError("no pairs were given, so there is nothing to make a schema of")
    tokens = {pair.id: subject.tokenize(pair.clean) for pair in pairs}
    first = tokens[pairs[0].id].spans
    shared = list(names) if names is not None else [n for n in first if all(n in t.spans for t in tokens.values())]
    lacking = [pair.id for pair in pairs if not set(shared) <= set(tokens[pair.id].spans)]
    if lacking or not shared:
        where = f"{', '.join(lacking[:SHOWN])} lack one of {', '.join(shared)}" if shared else "the prompts share no named span"
        raise SpanError(f"a schema needs spans that every prompt names: {where}")
    shared.sort(key=lambda name: (first[name], name == "end"))
    places = {pair.id: _own_end([tokens[pair.id].spans[n] for n in shared], shared) for pair in pairs}
    wrong = [name for name, found in places.items() if not _in_order(found)]
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise SpanError(
            f"spans must stand in the same order in all prompts, without overlap: {' < '.join(shared)} as in {pairs[0].id}, "
            f"but not in {', '.join(wrong[:SHOWN])}{more}. Run the orders apart, or leave out a span"
        )
    labels = _with_gaps(shared)
    rows = {name: _numbers(found, len(tokens[name].ids)) for name, found in places.items()}
    used = sorted({s for row in rows.values() for s in row})
    return SpanTable(tuple(labels[s] for s in used), {name: tuple(used.index(s) for s in row) for name, row in rows.items()})


def _own_end(places: Sequence[tuple[int, ...]], names: Sequence[str]) -> list[tuple[int, ...]]:
    """The span "end" keeps its tokens where the one before it ends the prompt too; that one may be left empty."""
    found = list(places)
    last = names.index("end") if "end" in names else 0
    if last:
        found[last - 1] = tuple(t for t in places[last - 1] if t not in places[last])
    return found


def _in_order(places: Sequence[tuple[int, ...]]) -> bool:
    return all(max(a) < min(b) for a, b in pairwise([place for place in places if place]))


def _with_gaps(names: Sequence[str]) -> list[str]:
    """Labels of: first, before, name 0, between 0 and 1, name 1, ..., after."""
    labels = ["first token" if "first" in names else "first", f"..{names[0]}"]
    for name, following in zip(names, [*names[1:], None], strict=True):
        labels += [name, f"{name}..{following}" if following is not None else f"{name}.."]
    return labels


def _numbers(places: Sequence[tuple[int, ...]], length: int) -> tuple[int, ...]:
    """Label of each token: 0 first, 2 + 2i in span i, 1 + 2i before it."""
    row = []
    for token in range(length):
        inside = [i for i, place in enumerate(places) if place and min(place) <= token <= max(place)]
        passed = [i + 1 for i, place in enumerate(places) if place and max(place) < token]
        row.append(2 + 2 * inside[0] if inside else 1 + 2 * max(passed, default=0))
    if row[0] == 1:
        row[0] = 0
    return tuple(row)
