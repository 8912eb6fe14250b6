"""Indirect object identification, checked by reading the sentences back."""

import inspect
import re
from collections import Counter

import pytest

from mediant.core.errors import TaskError, UnknownName
from mediant.core.pair import Prompt
from mediant.tasks import ioi

SPLITS = ("main", "heldout")
EVERY_NAME = {name for names in ioi.NAMES.values() for name in names.split()}


def mentioned(prompt: Prompt) -> list[str]:
    """The names in the text, in reading order."""
    return [word for word in re.findall(r"\w+", prompt.text) if word in EVERY_NAME]


def word(prompt: Prompt, span: str) -> str:
    return prompt.text[slice(*prompt.spans[span])]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("counterfactual", ["s2_io_flip", "abc"])
def test_the_answer_is_the_name_said_once(split: str, counterfactual: str) -> None:
    for pair in ioi.generate(48, split=split, counterfactual=counterfactual).pairs:
        counts = Counter(mentioned(pair.clean))
        assert sorted(counts.values()) == [1, 2]
        once, twice = sorted(counts, key=lambda name: counts[name])
        assert (pair.answer, pair.counterfactual_answer) == (f" {once}", f" {twice}")
        assert (pair.variables["IO"], pair.variables["S"]) == (once, twice)
        assert mentioned(pair.clean)[2] == twice


def test_the_flip_changes_one_word_and_makes_the_subject_the_answer() -> None:
    for pair in ioi.generate(48).pairs:
        words = list(zip(pair.clean.text.split(), pair.counterfactual.text.split(), strict=True))
        assert [(old, new) for old, new in words if old != new] == [(pair.variables["S"], pair.variables["IO"])]
        roles = {span: word(pair.counterfactual, span) for span in ("IO", "S1", "S2")}
        assert roles == {"IO": pair.variables["IO"], "S1": pair.variables["S"], "S2": pair.variables["IO"]}
        counts = Counter(mentioned(pair.counterfactual))
        assert [f" {name}" for name, times in counts.items() if times == 1] == [pair.counterfactual_answer]


def test_abc_names_three_fresh_people() -> None:
    for pair in ioi.generate(48, counterfactual="abc").pairs:
        assert len(set(mentioned(pair.counterfactual))) == 3
        assert set(mentioned(pair.counterfactual)).isdisjoint(mentioned(pair.clean))
        assert set(mentioned(pair.counterfactual)) <= set(ioi.NAMES["main"].split())


def test_both_counterfactuals_share_their_clean_prompts() -> None:
    flip, abc = ioi.generate(30, seed=4), ioi.generate(30, seed=4, counterfactual="abc")
    assert [pair.clean for pair in flip.pairs] == [pair.clean for pair in abc.pairs]


@pytest.mark.parametrize("order", ["abba", "baba"])
def test_the_order_says_who_is_named_first(order: str) -> None:
    for pair in ioi.generate(24, order=order).pairs:
        first = "IO" if order == "abba" else "S"
        assert mentioned(pair.clean)[0] == pair.variables[first]
        assert pair.variables["order"] == order


def test_orders_and_frames_are_balanced() -> None:
    pairs = ioi.generate(48).pairs
    assert Counter(pair.variables["order"] for pair in pairs) == {"abba": 24, "baba": 24}
    assert Counter(Counter(pair.template for pair in pairs).values()) == {4: 12}


def test_a_small_task_is_balanced_over_orders_too() -> None:
    assert Counter(pair.variables["order"] for pair in ioi.generate(6, seed=9).pairs) == {"abba": 3, "baba": 3}


def test_spans_hold_the_roles_in_the_clean_prompt() -> None:
    for split in SPLITS:
        for pair in ioi.generate(36, split=split).pairs:
            found = {span: word(pair.clean, span) for span in pair.clean.spans}
            expected = {"IO": pair.variables["IO"], "S1": pair.variables["S"], "S2": pair.variables["S"], "end": "to"}
            expected |= {span: pair.variables[span] for span in ("place", "object") if span in pair.variables}
            assert found == expected
            assert pair.clean.spans["S1"][1] < pair.clean.spans["S2"][0]
            assert pair.clean.spans["IO"][1] < pair.clean.spans["S2"][0]


def test_spans_stay_at_the_same_places_in_the_counterfactual() -> None:
    for counterfactual in ("s2_io_flip", "abc"):
        for pair in ioi.generate(36, counterfactual=counterfactual).pairs:
            for span in pair.clean.spans:
                before = [len(prompt.text[: prompt.spans[span][0]].split()) for prompt in (pair.clean, pair.counterfactual)]
                assert before[0] == before[1]
            assert [word(pair.counterfactual, span) for span in ("place", "object") if span in pair.variables] == [
                pair.variables[span] for span in ("place", "object") if span in pair.variables
            ]


def test_the_store_frame_has_the_well_known_wording() -> None:
    pair = ioi.generate(1, templates=["store"], order="abba", seed=2).pairs[0]
    v = pair.variables
    assert pair.clean.text == f"When {v['IO']} and {v['S']} went to the {v['place']}, {v['S']} gave a {v['object']} to"
    assert pair.template == "store"


def test_there_are_enough_frames_and_names() -> None:
    assert len(ioi.FRAMES["main"]) >= 10
    assert len(ioi.FRAMES["heldout"]) >= 5
    assert len(set(ioi.NAMES["main"].split())) == len(ioi.NAMES["main"].split()) == 40
    assert len(set(ioi.NAMES["heldout"].split())) == len(ioi.NAMES["heldout"].split()) == 20


@pytest.mark.parametrize("words", [ioi.NAMES, ioi.PLACES, ioi.OBJECTS], ids=["names", "places", "objects"])
def test_words_of_the_splits_are_disjoint(words: dict[str, str]) -> None:
    assert set(words["main"].split()).isdisjoint(words["heldout"].split())


def test_only_words_the_tokenizer_keeps_whole_are_used() -> None:
    kept = {" Mary", " John", " Tom", " store", " park", " ring", " map"}
    for pair in ioi.generate(30, single_token=lambda text: text in kept).pairs:
        used = {value for key, value in pair.variables.items() if key != "order"}
        assert {f" {value}" for value in used} <= kept


def test_too_few_names_are_counted() -> None:
    places = {f" {each}" for each in (ioi.PLACES["main"] + " " + ioi.OBJECTS["main"]).split()}
    with pytest.raises(TaskError, match="only 1 of 40 names are single tokens for this tokenizer, need at least 2"):
        ioi.generate(1, single_token=lambda text: text in places | {" Mary"})
    four = places | {" Mary", " John", " Tom", " Eric"}
    assert len(ioi.generate(2, single_token=lambda text: text in four).pairs) == 2
    with pytest.raises(TaskError, match=r"only 4 of 40 names.*need at least 5"):
        ioi.generate(2, single_token=lambda text: text in four, counterfactual="abc")


def test_unknown_options_name_the_valid_ones() -> None:
    unchecked = inspect.unwrap(ioi.generate)  # a wrong literal would fail the type checks of a test run first
    with pytest.raises(UnknownName, match="unknown order 'abab'"):
        unchecked(1, order="abab")
    with pytest.raises(UnknownName, match="unknown counterfactual 's2_flip'; did you mean 's2_io_flip'"):
        unchecked(1, counterfactual="s2_flip")


class Subject:
    """A stand-in that keeps only a few words whole."""

    def single_token(self, text: str) -> bool:
        return text in {" Mary", " Tom", " store", " ring"}


def test_a_sample_fits_the_subject() -> None:
    pair = ioi.sample(Subject())
    assert sorted(mentioned(pair.clean)) in (["Mary", "Mary", "Tom"], ["Mary", "Tom", "Tom"])
    assert (pair.template, pair.variables["order"], pair.variables["object"]) == ("store", "abba", "ring")


def test_samples_vary_with_their_seed_only() -> None:
    assert ioi.sample(Subject(), seed=3) == ioi.sample(Subject(), seed=3)
    assert len({ioi.sample(Subject(), seed=seed).clean.text for seed in range(12)}) == 2
