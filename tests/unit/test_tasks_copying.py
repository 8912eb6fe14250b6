"""Docstring and induction: the answer follows from the prompt, and the counterfactual moves it with as little as possible."""

import re

import pytest

from mediant.core.errors import TaskError, UnknownName
from mediant.tasks import docstring, induction

SPLITS = ["main", "heldout"]


@pytest.mark.parametrize("split", SPLITS)
def test_the_documented_arguments_stand_in_order_and_the_next_one_is_the_answer(split: str):
    for pair in docstring.generate(60, seed=1, split=split).pairs:
        for prompt, answer in ((pair.clean, pair.answer), (pair.counterfactual, pair.counterfactual_answer)):
            defined = re.search(r"\(self, (\w+), (\w+), (\w+), (\w+)\)", prompt.text).groups()
            assert len(set(defined)) == 4
            assert re.findall(r":param (\w+):", prompt.text) == list(defined[:2])
            assert prompt.text.endswith("\n    :param")
            assert answer == f" {defined[2]}"
        changed = [a != b for a, b in zip(pair.clean.text.split(), pair.counterfactual.text.split(), strict=True)]
        assert sum(changed) == 2


@pytest.mark.parametrize("split", SPLITS)
def test_what_followed_the_cue_is_the_answer(split: str):
    for pair in induction.generate(60, seed=1, split=split).pairs:
        for prompt, answer in ((pair.clean, pair.answer), (pair.counterfactual, pair.counterfactual_answer)):
            words = prompt.text.split()
            cue = len(words) - 1 - words[::-1].index(words[-1], 1)
            assert words[cue - 1] == words[-2]
            assert answer == f" {words[cue + 1]}"
            assert words.count(words[-1]) == 2
            assert words.count(words[cue + 1]) == 1
        changed = [a != b for a, b in zip(pair.clean.text.split(), pair.counterfactual.text.split(), strict=True)]
        assert sum(changed) == 2


@pytest.mark.parametrize("task", [docstring, induction])
def test_spans_hold_their_words_in_one_order(task):
    for pair in task.generate(30, seed=2).pairs:
        pieces = {name: pair.clean.text[a:b] for name, (a, b) in pair.clean.spans.items()}
        v = pair.variables
        if task is docstring:
            names = ("first", "second", "third", "fourth", "first", "second")
            held = ("A_def", "B_def", "C_def", "D_def", "A_doc", "B_doc")
            assert pieces == dict(zip(held, [v[n] for n in names], strict=True)) | {"end": ":param"}
        else:
            assert pieces == {"cue": v["cue"], "following": v["following"], "other": v["other"], "end": v["cue"]}
        places = [pair.clean.spans[name] for name in task.generate(1).span_names]
        assert places == sorted(places)


@pytest.mark.parametrize("task", [docstring, induction])
def test_splits_share_nothing_and_words_that_cannot_be_kept_whole_are_refused(task):
    main, heldout = (task.generate(60, split=split) for split in SPLITS)
    assert not {p.template for p in main.pairs} & {p.template for p in heldout.pairs}
    assert not {p.answer for p in main.pairs} & {p.answer for p in heldout.pairs}
    assert len({p.clean.text for p in main.pairs}) == 60
    with pytest.raises(TaskError, match="single tokens"):
        task.generate(4, single_token=lambda text: text == " apple")
    with pytest.raises(UnknownName, match="template"):
        task.generate(4, templates=["zzz"])
