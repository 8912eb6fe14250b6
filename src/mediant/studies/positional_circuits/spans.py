"""Where the spans come from: the task's own named spans, saliency alone, or a language model behind an endpoint.

    found = find(config, subject, items, ask)
    found.table, found.by, found.note

What a language model writes is used only when at least nine of ten prompts were divided correctly. Otherwise the study falls
back on the named spans, or on saliency where prompts have none, and says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mediant.core.errors import SpanError, TaskError
from mediant.core.pair import Pair
from mediant.core.result import Measure
from mediant.measures.intervals import wilson
from mediant.search.saliency import salient, segment
from mediant.studies.positional_circuits.config import Config
from mediant.studies.positional_circuits.task import Items
from mediant.subject import Subject
from mediant.subject.chat import Message
from mediant.subject.endpoint import OpenAIEndpoint
from mediant.tasks.schema import SpanTable, from_task_spans
from mediant.tasks.schema_writer import ACCEPTED, Ask, WrittenSchema, write_schema

REPLY_TOKENS, TEMPERATURE = 1000, 0.7
ERRORS_KEPT = 20


@dataclass(frozen=True)
class Spans:
    """A schema applied to every prompt, and how it came about.

    Attributes:
        by: `named`, `saliency` or `llm`: what the table rests on, after any fallback.
        note: one sentence for the page.
        written: what the language model did, when one was asked.
    """

    by: str
    table: SpanTable
    note: str
    written: WrittenSchema | None = None

    @property
    def valid(self) -> Measure | None:
        """Share of prompts that the language model divided correctly."""
        if self.written is None:
            return None
        n = self.written.asked
        return Measure(
            value=self.written.valid, n=n, ci95=wilson(round(self.written.valid * n), n), control=None,
            definition=f"Share of prompts that the language model divided by its own schema without a fault (bar {ACCEPTED:g}).",
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """For the run folder."""
        written = None if self.written is None else {**vars(self.written), "table": None, "errors": list(self.written.errors)}
        rows = {name: list(row) for name, row in self.table.spans.items()}
        return {"by": self.by, "names": list(self.table.names), "rows": rows, "note": self.note, "written": written}

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> "Spans":
        """What `to_json` wrote."""
        table = SpanTable(tuple(found["names"]), {name: tuple(row) for name, row in found["rows"].items()})
        written = None if found["written"] is None else WrittenSchema(**found["written"])
        return cls(found["by"], table, found["note"], written)


def find(config: Config, subject: Subject, items: Items, ask: Ask | None = None) -> Spans:
    """Spans of all prompts of a task.

    Args:
        ask: a language model, for `spans = "llm"`; by default the endpoint in the config.

    Raises:
        SpanError: prompts that name no common spans, or whose tokens cannot be matched.
        EndpointError: an endpoint that does not answer.
    """
    pairs = (*items.discovery, *items.evaluation)
    if config.spans == "named":
        return Spans("named", from_task_spans(subject, pairs), "Spans are those that the prompts name, and what stands between.")
    if config.spans == "saliency":
        return Spans("saliency", segment(subject, pairs, by=items.metric), "Spans were cut by saliency alone.")
    tokens = {pair.id: [subject.decode([i]) for i in subject.tokenize(pair.clean).ids] for pair in pairs}
    marks = salient(subject, pairs, by=items.metric) if config.schema_marks else None
    written = write_schema(ask or _asking(config), tokens, salient=marks, seed=config.seed, rounds=config.schema_rounds)
    written = replace(written, errors=list(written.errors)[-ERRORS_KEPT:])
    did = f"A language model's schema divided {written.valid:.0%} of the prompts correctly after {written.replies} replies"
    if written.accepted and written.table is not None:
        return Spans("llm", written.table, f"{did}; spans are its own, and prompts it failed on were left out.", written)
    fallback = _without(subject, pairs, items.metric)
    return replace(fallback, note=f"{did}, below the bar of {ACCEPTED:.0%}, so it was not used. {fallback.note}", written=written)


def divided(items: Items, spans: Spans) -> Items:
    """The pairs that have spans.

    Raises:
        TaskError: too few are left.
    """
    rows = spans.table.spans
    kept = replace(
        items,
        discovery=tuple(p for p in items.discovery if p.id in rows),
        evaluation=tuple(p for p in items.evaluation if p.id in rows),
    )
    if min(len(kept.discovery), len(kept.evaluation)) < 6:
        raise TaskError(f"only {len(kept.discovery)} + {len(kept.evaluation)} pairs of {items.name} have spans; 6 + 6 are needed")
    return kept


def _without(subject: Subject, pairs: Sequence[Pair], metric: str) -> Spans:
    """A schema without a language model."""
    try:
        return Spans("named", from_task_spans(subject, pairs), "The prompts' named spans were used instead.")
    except SpanError as named:
        try:
            return Spans("saliency", segment(subject, pairs, by=metric), "Spans cut by saliency were used instead.")
        except SpanError as cut:
            raise SpanError(f"the language model wrote no usable schema, and nothing can stand in: {named}; {cut}") from cut


def _asking(config: Config) -> Callable[[str], str]:
    assert config.endpoint is not None  # noqa: S101 - the config is refused without one
    endpoint = OpenAIEndpoint(config.endpoint, config.endpoint_model, config.endpoint_key, timeout_s=600.0)
    count = iter(range(10**9))

    def ask(prompt: str) -> str:
        # A seed of its own for each question, so that a second try is not the first one again.
        seed = config.seed + next(count)
        return endpoint.chat([Message("user", prompt)], max_tokens=config.schema_tokens, temperature=TEMPERATURE, seed=seed).text

    return ask
