"""Let a language model write a schema: propose, unify, apply, check, try again (Haklay et al. 2025, section 4.2).

    written = write_schema(ask, tokens)          # ask: str -> str, e.g. endpoint chat; tokens: prompt id -> token texts
    written.table, written.valid                 # spans of the prompts that passed, and the share that did

Three groups of prompts each get a proposal, one schema is made of the three, and it is then applied prompt by prompt. Nothing a
model says is believed: every reply is parsed defensively and checked against the prompt's own tokens, and what is wrong is sent
back, twice at most. When too many prompts fail, a new round starts with the errors seen; the last rounds allow empty spans.
Models differ widely in how well they do this; the caller decides by `valid` whether to use the result or a rule-based schema.
"""

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from mediant.core.errors import SpanError
from mediant.tasks.schema import SpanTable

Ask = Callable[[str], str]
TRIES, ROUNDS, GROUPS, GROUP_SIZE = 3, 5, 3, 5
TRIAL_FAILURES, ACCEPTED = 0.2, 0.9
SHOWN = 5


@dataclass(frozen=True)
class WrittenSchema:
    """What came of it.

    Attributes:
        descriptions: span name -> what the model says belongs there.
        table: spans of the prompts whose application passed; None when no schema came about.
        valid: share of all `asked` prompts that passed; 0 where no schema passed its trial.
        rounds, replies: how often it started over, and how many replies it took.
        errors: what was wrong with replies, most recent last.
    """

    descriptions: Mapping[str, str]
    table: SpanTable | None
    valid: float
    asked: int
    rounds: int
    replies: int
    errors: Sequence[str] = field(default_factory=list)

    @property
    def accepted(self) -> bool:
        """Whether at least nine of ten prompts passed, the paper's bar."""
        return self.valid >= ACCEPTED


def write_schema(
    ask: Ask,
    tokens: Mapping[str, Sequence[str]],
    *,
    salient: Mapping[str, Sequence[bool]] | None = None,
    seed: int = 0,
    rounds: int = ROUNDS,
) -> WrittenSchema:
    """Have a model write a schema for prompts and apply it to each.

    Args:
        tokens: prompt id -> texts of its tokens.
        salient: prompt id -> which tokens matter to the answer; these tend to get spans of their own.
        rounds: attempts without empty spans, and as many with them.

    Raises:
        SpanError: no prompts.
    """
    if not tokens:
        raise SpanError("no prompts were given, so there is nothing to write a schema for")
    writer = _Writer(ask, tokens, salient or {}, Random(seed))
    found: dict[str, str] = {}
    for number in range(2 * rounds):
        allow_empty = number >= rounds
        found = writer.propose()
        if not found:
            continue
        if writer.passes_trial(list(found), allow_empty=allow_empty):
            rows = {name: row for name in tokens if (row := writer.apply(name, list(found), allow_empty=allow_empty)) is not None}
            table = SpanTable(tuple(found), rows) if rows else None
            return WrittenSchema(found, table, len(rows) / len(tokens), len(tokens), number + 1, writer.replies, writer.errors)
    return WrittenSchema(found, None, 0.0, len(tokens), 2 * rounds, writer.replies, writer.errors)


class _Writer:
    def __init__(self, ask: Ask, tokens: Mapping[str, Sequence[str]], salient: Mapping[str, Sequence[bool]], rng: Random) -> None:
        self.ask, self.tokens, self.salient, self.rng = ask, tokens, salient, rng
        self.replies = 0
        self.errors: list[str] = []

    def sample(self) -> list[str]:
        """Prompts that a schema is proposed for and tried on."""
        names = sorted(self.tokens)
        return self.rng.sample(names, min(len(names), GROUPS * GROUP_SIZE))

    def propose(self) -> dict[str, str]:
        """One schema out of a proposal per group; empty when no reply could be used."""
        names = self.sample()
        groups = [names[i : i + GROUP_SIZE] for i in range(0, len(names), GROUP_SIZE)]
        proposals = [found for group in groups if (found := self._schema(_proposal(self._shown(group), self.errors)))]
        if len(proposals) < 2:
            return proposals[0] if proposals else {}
        return self._schema(_unification(self._shown(names), proposals)) or proposals[0]

    def passes_trial(self, spans: list[str], *, allow_empty: bool) -> bool:
        """Whether a sample of prompts can be divided so; given up as soon as too many failed."""
        trial = self.sample()
        failures = 0
        for name in trial:
            failures += self.apply(name, spans, allow_empty=allow_empty) is None
            if failures > TRIAL_FAILURES * len(trial):
                return False
        return True

    def apply(self, name: str, spans: list[str], *, allow_empty: bool) -> tuple[int, ...] | None:
        """Span number of each token of one prompt; None when no try passed."""
        tokens, complaints = list(self.tokens[name]), list[str]()
        for _ in range(TRIES):
            reply = self._reply(_application(spans, tokens, complaints, allow_empty=allow_empty))
            row, complaints = _checked(reply, spans, tokens, allow_empty=allow_empty)
            if row is not None:
                return row
            self.errors += complaints[:1]
        return None

    def _schema(self, prompt: str) -> dict[str, str]:
        found = parse_reply(self._reply(prompt))
        named = {str(name).strip(): str(about) for name, about in found.items() if str(name).strip()}
        if len(named) < 2:
            self.errors.append("a schema needs at least two named spans")
            return {}
        return named

    def _reply(self, prompt: str) -> str:
        self.replies += 1
        return self.ask(prompt)

    def _shown(self, names: Sequence[str]) -> str:
        lines: list[object] = []
        for name in names:
            texts, marks = list(self.tokens[name]), self.salient.get(name)
            lines.append([[text, int(mark)] for text, mark in zip(texts, marks, strict=True)] if marks else texts)
        return "\n".join(json.dumps(line) for line in lines)


def parse_reply(reply: str) -> dict[str, object]:
    """The last JSON object of a reply, with common slips mended; empty when there is none.

    Equal keys are kept apart by number; single quotes and trailing commas are tolerated.
    """
    blocks = re.findall(r"```(?:json)?\s*(.*?)```", reply, flags=re.DOTALL) or [reply]
    text = blocks[-1]
    start, stop = text.find("{"), text.rfind("}")
    if start < 0 or stop <= start:
        return {}
    text = text[start : stop + 1]
    for candidate in (text, re.sub(r",\s*([}\]])", r"\1", text)):
        try:
            found = json.loads(candidate, object_pairs_hook=_apart)
            return found if isinstance(found, dict) else {}
        except (ValueError, RecursionError):
            continue
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return {}
    return {str(k): v for k, v in found.items()} if isinstance(found, dict) else {}


def _apart(items: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in items:
        number, free = 2, name
        while free in found:
            free, number = f"{name} {number}", number + 1
        found[free] = value
    return found


def _checked(
    reply: str, spans: Sequence[str], tokens: Sequence[str], *, allow_empty: bool
) -> tuple[tuple[int, ...] | None, list[str]]:
    """Span numbers when the reply divides exactly these tokens, in order, among exactly these spans; else what is wrong."""
    found = parse_reply(reply)
    if not found:
        return None, ["the reply holds no JSON object"]
    if list(found) != list(spans):
        return None, [f"the spans must be exactly {list(spans)}, in this order; got {list(found)}"]
    pieces = [value if isinstance(value, list) else [value] for value in found.values()]
    wrong = []
    flat = [str(piece) for part in pieces for piece in part]
    if flat != list(tokens):
        place = next((i for i, (a, b) in enumerate(zip(flat, tokens, strict=False)) if a != b), min(len(flat), len(tokens)))
        wrong.append(f"put together the spans must give the token list; they differ at token {place}")
    if not allow_empty and any(not part for part in pieces):
        wrong.append(f"no span may be empty: {[name for name, part in zip(spans, pieces, strict=True) if not part]}")
    if len(pieces[-1]) != 1:
        wrong.append("the last token must be alone in the last span")
    if wrong:
        return None, wrong
    return tuple(number for number, part in enumerate(pieces) for _ in part), []


def _proposal(shown: str, errors: Sequence[str]) -> str:
    seen = "\nEarlier schemas failed because: " + "; ".join(errors[-SHOWN:]) if errors else ""
    return (
        "Each line is one sentence as a JSON list of tokens, or of [token, mark] pairs, where mark 1 means the token matters.\n"
        f"{shown}\n"
        "Divide these sentences into consecutive named parts. Reply with one JSON object: part title (one to three words) -> "
        "what belongs to it, with examples. Use syntactic or semantic criteria that hold for every sentence; cover every token, "
        "in order; tokens marked 1 in many sentences get parts of their own; the last token is always alone in the last part. "
        f"Do not mention marks.{seen}"
    )


def _unification(shown: str, proposals: Sequence[Mapping[str, str]]) -> str:
    listed = "\n".join(json.dumps(proposal) for proposal in proposals)
    return (
        f"These are sentences as token lists:\n{shown}\nThese are ways to divide them into consecutive parts:\n{listed}\n"
        "Reply with one JSON object, part title -> what belongs to it, that is one way to divide them all: in order, covering "
        "every token, with the last token alone in the last part."
    )


def _application(spans: Sequence[str], tokens: Sequence[str], complaints: Sequence[str], *, allow_empty: bool) -> str:
    again = "\nYour last reply was wrong: " + "; ".join(complaints) if complaints else ""
    empty = "A part that the sentence lacks gets an empty list." if allow_empty else "No part may be empty."
    return (
        f"Parts, in order: {json.dumps(list(spans))}\nTokens: {json.dumps(list(tokens))}\n"
        "Reply with one JSON object: each part, in this order, -> list of its consecutive tokens. Use every token exactly once "
        "and unchanged; add no part; punctuation goes with the token before it; the last token is alone in the last part. "
        f"{empty}{again}"
    )
