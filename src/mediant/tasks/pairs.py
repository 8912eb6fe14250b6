"""The user's own pairs: one JSON object per line.

    {"clean": "The keys near the door", "counterfactual": "The key near the door",
     "answer": " are", "counterfactual_answer": " is", "spans": {"subject": "keys"}, "template": "near"}

`spans` name pieces of the clean prompt, as text that occurs once or as `[start, stop]` characters; the counterfactual
is aligned token by token, so both prompts must have the same number of tokens. Answers continue the prompt, with
their leading space, and may have several tokens. `template` (optional) groups pairs that share wording: they
are resampled together in intervals, and one group can be held out. `variables` (optional) say what the clean prompt is
about, such as {"number": "plural"}, where a study asks for the variable in which the two prompts differ.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mediant.core.errors import MediantError, TaskError, nearest
from mediant.core.pair import Pair, Prompt, Task, find_once

MAX_SHOWN = 5


class PairLine(BaseModel):
    """One line of a pairs file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clean: str = Field(min_length=1)
    counterfactual: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    counterfactual_answer: str = Field(min_length=1)
    spans: dict[str, str | tuple[int, int]] = Field(default_factory=dict)
    template: str = ""
    variables: dict[str, str] = Field(default_factory=dict)
    id: str = ""

    def pair(self, default_id: str) -> Pair:
        """The line as a pair; spans become character ranges of the clean prompt."""
        spans = {
            name: find_once(self.clean, where, name) if isinstance(where, str) else where for name, where in self.spans.items()
        }
        return Pair(
            self.id or default_id,
            Prompt(self.clean, spans),
            Prompt(self.counterfactual),
            self.answer,
            self.counterfactual_answer,
            self.template,
            self.variables,
        )


def read(path: Path | str) -> Task:
    """Read and validate a pairs file.

    Raises:
        TaskError: the file is missing, empty or not text, or some lines are wrong (the first few are listed with
            their numbers and what is wrong with each).
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read pairs file {path}: {error}") from error
    pairs, wrong = parse(lines)
    if wrong:
        more = f" (and {len(wrong) - MAX_SHOWN} more)" if len(wrong) > MAX_SHOWN else ""
        raise TaskError(
            f"{path}: {len(wrong)} of {len(pairs) + len(wrong)} lines cannot be used{more}:\n  " + "\n  ".join(wrong[:MAX_SHOWN])
        )
    if not pairs:
        raise TaskError(f"{path} holds no pairs; each line is one JSON object with {', '.join(_required())}")
    names = [name for name in pairs[0].clean.spans if all(name in pair.clean.spans for pair in pairs)]
    return Task(path.stem, f"pairs read from {path.name}", tuple(pairs), tuple(names), "logprob_diff")


def parse(lines: Iterable[str]) -> tuple[list[Pair], list[str]]:
    """Pairs of the good lines, and one message per bad line."""
    pairs: list[Pair] = []
    wrong: list[str] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            pair = PairLine.model_validate(_object(line)).pair(f"line-{number}")
            if pair.id in seen:
                raise TaskError(f"id {pair.id!r} was used on line {seen[pair.id]} already")
            seen[pair.id] = number
            pairs.append(pair)
        except ValidationError as error:
            wrong.append(f"line {number}: {_explain(error)}")
        except MediantError as error:
            wrong.append(f"line {number}: {error}")
    return pairs, wrong


def repeated(pairs: Iterable[Pair]) -> list[str]:
    """One complaint per pair whose two prompts stand in an earlier one: counted twice, it narrows every interval."""
    first: dict[tuple[str, str], str] = {}
    found = []
    for pair in pairs:
        prompts = (pair.clean.text, pair.counterfactual.text)
        if prompts in first:
            found.append(f"pair {pair.id} has the prompts of pair {first[prompts]} again")
        first.setdefault(prompts, pair.id)
    return found


def _object(line: str) -> dict[str, object]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise TaskError(f"expected a JSON object, got {type(found).__name__}")
    return found


def _explain(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        name = ".".join(str(p) for p in problem["loc"])
        if problem["type"] == "extra_forbidden":
            close = nearest(name, PairLine.model_fields, n=1)
            parts.append(
                f"unknown field {name!r}"
                + (f", did you mean {close[0]!r}?" if close else f"; fields are {', '.join(PairLine.model_fields)}")
            )
        elif problem["type"] == "missing":
            parts.append(f"field {name!r} is missing")
        else:
            parts.append(f"{name}: {problem['msg']}")
    return "; ".join(dict.fromkeys(parts))


def _required() -> list[str]:
    return [name for name, info in PairLine.model_fields.items() if info.is_required()]
