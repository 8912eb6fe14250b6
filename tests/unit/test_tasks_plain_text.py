"""Sentences that belong to no task."""

import re

import pytest

from mediant.core.errors import TaskError
from mediant.tasks import ioi
from mediant.tasks.plain_text import sentences

EVERY = sentences(240)


def test_there_are_240_different_sentences() -> None:
    assert len(set(EVERY)) == 240
    with pytest.raises(TaskError, match="from 1 to 240 plain sentences, got 241"):
        sentences(241)


@pytest.mark.parametrize("n", [0, -3])
def test_no_sentences_are_refused(n: int) -> None:
    with pytest.raises(TaskError, match=f"got {n}$"):
        sentences(n)


def test_the_seed_alone_decides_which_come() -> None:
    assert sentences(20, seed=1) == sentences(20, seed=1)
    assert sentences(20, seed=1) != sentences(20, seed=2)
    assert len(set(sentences(20, seed=1))) == 20
    assert set(sentences(20, seed=1)) <= set(EVERY)


@pytest.mark.parametrize("sentence", EVERY)
def test_each_is_one_plain_sentence(sentence: str) -> None:
    assert 8 <= len(sentence.split()) <= 16
    assert sentence == " ".join(sentence.split())
    assert re.match(r'"?[A-Z]', sentence)
    assert re.search(r"[.!?]$", sentence)
    assert sentence.isascii()
    assert sentence.count('"') in (0, 2)


def test_nobody_named_gives_anything_to_anyone() -> None:
    words = {word for sentence in EVERY for word in re.findall(r"\w+", sentence)}
    names = {name for listed in ioi.NAMES.values() for name in listed.split()}
    assert words.isdisjoint(names)
    assert words.isdisjoint({"handed", "offered", "lent", "passed"})
    assert not [sentence for sentence in EVERY if re.search(r"\bgave\b.*\bto\b", sentence)]


def test_no_opening_is_overused() -> None:
    openings = [" ".join(sentence.split()[:2]) for sentence in EVERY]
    assert max(openings.count(opening) for opening in openings) <= 4
