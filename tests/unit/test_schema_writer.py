"""The schema pipeline against scripted models: good ones, sloppy ones, stubborn ones, and nonsense."""

import json
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediant.core.errors import SpanError
from mediant.tasks.schema_writer import TRIES, parse_reply, write_schema

SPANS = {"start": "everything before the noun", "noun": "the noun", "rest": "what follows", "last": "the last token"}
NOUNS = ["key", "dog", "cup", "car", "cat", "boy"] * 3
PROMPTS = {f"p{i}": ["The", f" {noun}", " near", " the", " door"] for i, noun in enumerate(NOUNS)}


def tokens_of(prompt: str) -> list[str]:
    return json.loads(re.search(r"Tokens: (\[.*\])", prompt).group(1))


def divided(tokens: list[str]) -> dict[str, list[str]]:
    return {"start": tokens[:1], "noun": tokens[1:2], "rest": tokens[2:-1], "last": tokens[-1:]}


def good(prompt: str) -> str:
    """A model that does what it is told."""
    return json.dumps(divided(tokens_of(prompt)) if "Tokens:" in prompt else SPANS)


def test_a_good_model_divides_every_prompt():
    written = write_schema(good, PROMPTS)
    assert written.valid == 1.0
    assert written.accepted
    assert written.rounds == 1
    assert written.table.names == tuple(SPANS)
    assert written.table.spans["p3"] == (0, 1, 2, 2, 3)
    assert written.replies == 3 + 1 + 15 + 18  # three proposals, one schema of them, a trial, and every prompt


def sloppy(prompt: str) -> str:
    """Talk around the JSON, trailing commas, single quotes, a wrong first block."""
    if "Tokens:" not in prompt:
        return f'Sure!\n```json\n{{"wrong": 1}}\n```\nBetter:\n```json\n{json.dumps(SPANS)[:-1]},}}\n```\nHope this helps {{}}'
    return f"Here: ```{divided(tokens_of(prompt))!r}```"


def test_slips_of_form_are_mended():
    assert write_schema(sloppy, PROMPTS).valid == 1.0


def forgetful() -> Callable[[str], str]:
    """Wrong at first, right when told what was wrong."""

    def ask(prompt: str) -> str:
        if "Tokens:" in prompt and "last reply was wrong" not in prompt:
            tokens = tokens_of(prompt)
            return json.dumps(divided([*tokens[:2], *tokens[3:]]))
        return good(prompt)

    return ask


def test_what_is_wrong_is_sent_back():
    written = write_schema(forgetful(), PROMPTS)
    assert written.valid == 1.0
    assert written.replies == 4 + 2 * (15 + 18)
    assert "they differ at token 2" in written.errors[0]


def test_prompts_that_never_pass_are_left_out_and_counted():
    def ask(prompt: str) -> str:
        return "no" if "Tokens:" in prompt and " boy" in prompt else good(prompt)

    written = write_schema(ask, PROMPTS, seed=1)
    assert written.valid == pytest.approx(15 / 18)
    assert not written.accepted
    assert "p5" not in written.table.spans


def test_empty_spans_are_allowed_in_the_last_rounds_only():
    def ask(prompt: str) -> str:
        if "Tokens:" not in prompt:
            return json.dumps(SPANS)
        tokens = tokens_of(prompt)
        return json.dumps({"start": [], "noun": tokens[:2], "rest": tokens[2:-1], "last": tokens[-1:]})

    written = write_schema(ask, PROMPTS, rounds=2)
    assert written.rounds == 3
    assert written.valid == 1.0
    assert written.table.starts("p0") == (0, 0, 2, 4, 5)


@pytest.mark.parametrize("reply", ["", "I cannot help with that.", "{}", '{"only": 1}', "[1, 2]", "{" * 5000])
def test_nonsense_ends_without_a_schema(reply: str):
    written = write_schema(lambda _: reply, PROMPTS, rounds=1)
    assert written.table is None
    assert written.valid == 0.0
    assert written.replies <= 2 * (4 + TRIES * 15)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: {k: d[k] for k in ("noun", "start", "rest", "last")}, "in this order"),
        (lambda d: {**d, "more": []}, "must be exactly"),
        (lambda d: {**d, "last": [*d["rest"][-1:], *d["last"]], "rest": d["rest"][:-1]}, "alone in the last span"),
        (lambda d: {**d, "noun": [" KEY"]}, "differ at token 1"),
    ],
)
def test_every_rule_is_checked(change: Callable[[dict], dict], complaint: str):
    def ask(prompt: str) -> str:
        return json.dumps(change(divided(tokens_of(prompt)))) if "Tokens:" in prompt else json.dumps(SPANS)

    written = write_schema(ask, PROMPTS, rounds=1)
    assert written.table is None
    assert any(complaint in error for error in written.errors)


def test_repeated_keys_are_kept_apart():
    assert parse_reply('{"a": 1, "a": 2, "a": 3}') == {"a": 1, "a 2": 2, "a 3": 3}


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_no_reply_breaks_the_parser(text: str):
    assert isinstance(parse_reply(text), dict)
    assert isinstance(parse_reply("```json\n{" + text + "}\n```"), dict)


def test_no_prompts_are_refused():
    with pytest.raises(SpanError, match="no prompts"):
        write_schema(good, {})
