"""Pronouns after professions."""

import inspect
from collections import Counter

import pytest

from mediant.core.errors import TaskError, UnknownName
from mediant.tasks import pronouns

SPLITS = ("main", "heldout")
# Written down independently of the generator's own lists, for a few unmistakable members of each.
SHE = {"nurse", "secretary", "hairdresser", "therapist", "babysitter", "woman", "girl", "queen", "bride"}
HE = {"carpenter", "mechanic", "plumber", "sailor", "blacksmith", "man", "boy", "king", "groom"}


def person(pair: pronouns.Pair, which: str) -> str:
    prompt = getattr(pair, which)
    return str(prompt.text[slice(*prompt.spans["person"])])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("kind", ["profession", "explicit"])
def test_the_answers_follow_the_persons(split: str, kind: str) -> None:
    seen = set()
    for pair in pronouns.generate(60, split=split, kind=kind).pairs:
        for which, answer in (("clean", pair.answer), ("counterfactual", pair.counterfactual_answer)):
            who = person(pair, which)
            seen.add(who)
            assert who not in SHE or answer == " she"
            assert who not in HE or answer == " he"
        assert {pair.answer, pair.counterfactual_answer} == {" she", " he"}
        assert pair.answer == f" {pair.variables['pronoun']}"
    assert seen & SHE
    assert seen & HE


@pytest.mark.parametrize("split", SPLITS)
def test_the_two_genders_share_no_person(split: str) -> None:
    for lists in (pronouns.PROFESSIONS, pronouns.EXPLICIT):
        assert set(lists[split]["she"].split()).isdisjoint(lists[split]["he"].split())


def test_the_splits_share_no_person() -> None:
    people = {split: set() for split in SPLITS}
    for split in SPLITS:
        for lists in (pronouns.PROFESSIONS, pronouns.EXPLICIT):
            people[split] |= {name for words in lists[split].values() for name in words.split()}
    assert people["main"].isdisjoint(people["heldout"])


def test_only_the_person_changes() -> None:
    for pair in pronouns.generate(60).pairs:
        words = list(zip(pair.clean.text.split(), pair.counterfactual.text.split(), strict=True))
        assert [(old, new) for old, new in words if old != new] == [(pair.variables["person"], pair.variables["other"])]
        assert (person(pair, "clean"), person(pair, "counterfactual")) == (pair.variables["person"], pair.variables["other"])


def test_the_kind_decides_who_replaces_the_profession() -> None:
    gendered = {name for words in pronouns.EXPLICIT["main"].values() for name in words.split()}
    for kind, explicit in (("profession", False), ("explicit", True)):
        for pair in pronouns.generate(40, kind=kind).pairs:  # type: ignore[arg-type]
            assert pair.variables["person"] not in gendered
            assert (pair.variables["other"] in gendered) is explicit


@pytest.mark.parametrize("n", [10, 40, 150])
def test_both_pronouns_are_answers_equally_often(n: int) -> None:
    assert Counter(pair.answer for pair in pronouns.generate(n).pairs) == {" she": n // 2, " he": n // 2}


def test_a_shorter_list_of_one_gender_does_not_tip_the_balance() -> None:
    kept = {" she", " he", " nurse", " hotel", " park", *(f" {name}" for name in pronouns.PROFESSIONS["main"]["he"].split())}
    task = pronouns.generate(30, single_token=lambda text: text in kept)
    assert Counter(pair.answer for pair in task.pairs) == {" she": 15, " he": 15}
    with pytest.raises(TaskError, match="at most 30"):
        pronouns.generate(31, single_token=lambda text: text in kept)


def test_every_profession_can_appear_although_the_longer_list_is_cut() -> None:
    seen = {pair.variables["person"] for seed in range(12) for pair in pronouns.generate(60, seed=seed).pairs}
    assert seen == {name for words in pronouns.PROFESSIONS["main"].values() for name in words.split()}


def test_places_come_from_the_kept_words_and_are_recorded() -> None:
    kept = {" she", " he", " nurse", " pilot", " hotel"}
    pairs = pronouns.generate(8, single_token=lambda text: text in kept, templates=["left", "waited", "said", "told"]).pairs
    assert {pair.variables.get("place") for pair in pairs} == {"hotel", None}
    assert all((" hotel" in pair.clean.text) == ("place" in pair.variables) for pair in pairs)


def test_a_tokenizer_without_whole_pronouns_is_refused() -> None:
    with pytest.raises(TaskError, match="splits ' she'; this task needs a tokenizer that keeps English pronouns whole"):
        pronouns.generate(1, single_token=lambda text: text != " she")


def test_a_gender_without_single_token_professions_is_named() -> None:
    with pytest.raises(TaskError, match="only 0 of 11 persons called 'she'"):
        pronouns.generate(1, single_token=lambda text: text[1:] not in pronouns.PROFESSIONS["main"]["she"].split())


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UnknownName, match="unknown kind 'professions'; did you mean 'profession'"):
        inspect.unwrap(pronouns.generate)(1, kind="professions")  # no type checks, as for users
