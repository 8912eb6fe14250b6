"""Agreement of verb and subject across a distractor."""

import inspect
from collections import Counter

import pytest

from mediant.core.errors import TaskError, UnknownName
from mediant.core.pair import Prompt
from mediant.tasks import agreement

SPLITS = ("main", "heldout")
SINGULAR_VERBS = {" is", " was", " has"}
PLURAL_OF = {" is": " are", " was": " were", " has": " have"}


def word(prompt: Prompt, span: str) -> str:
    return prompt.text[slice(*prompt.spans[span])]


def is_plural(noun: str) -> bool:
    """English spelling is enough here: no noun of the lists is singular with an s, or plural without."""
    return noun.endswith("s")


@pytest.mark.parametrize("split", SPLITS)
def test_the_verb_agrees_with_the_subject_on_both_sides(split: str) -> None:
    for pair in agreement.generate(64, split=split).pairs:
        for prompt, answer in ((pair.clean, pair.answer), (pair.counterfactual, pair.counterfactual_answer)):
            assert (answer not in SINGULAR_VERBS) == is_plural(word(prompt, "subject"))
        verbs = sorted((pair.answer, pair.counterfactual_answer), key=lambda verb: verb not in SINGULAR_VERBS)
        assert PLURAL_OF[verbs[0]] == verbs[1]


@pytest.mark.parametrize("split", SPLITS)
def test_only_the_number_of_the_subject_changes(split: str) -> None:
    for pair in agreement.generate(64, split=split).pairs:
        words = list(zip(pair.clean.text.split(), pair.counterfactual.text.split(), strict=True))
        changed = [(old, new) for old, new in words if old != new]
        assert changed == [(word(pair.clean, "subject"), word(pair.counterfactual, "subject"))]
        shorter, longer = sorted(changed[0], key=len)
        assert longer in (f"{shorter}s", f"{shorter}es")
        assert word(pair.clean, "distractor") == word(pair.counterfactual, "distractor")


@pytest.mark.parametrize("words", [agreement.SUBJECTS, agreement.DISTRACTORS], ids=["subjects", "distractors"])
def test_every_noun_has_a_singular_and_its_plural(words: dict[str, str]) -> None:
    for split in SPLITS:
        for noun in words[split].split():
            singular, plural = noun.split("/")
            assert not is_plural(singular)
            assert plural in (f"{singular}s", f"{singular}es")


def test_subjects_and_distractors_are_different_nouns_in_every_split() -> None:
    lists = [set(words[split].split()) for words in (agreement.SUBJECTS, agreement.DISTRACTORS) for split in SPLITS]
    assert sum(len(nouns) for nouns in lists) == len(set().union(*lists)) == 60


def test_variables_record_both_numbers() -> None:
    names = {False: "singular", True: "plural"}
    for pair in agreement.generate(40).pairs:
        assert pair.variables == {
            "subject": word(pair.clean, "subject"),
            "subject_number": names[is_plural(word(pair.clean, "subject"))],
            "distractor": word(pair.clean, "distractor"),
            "distractor_number": names[is_plural(word(pair.clean, "distractor"))],
        }


def test_all_four_combinations_of_numbers_come_equally_often() -> None:
    pairs = agreement.generate(64).pairs
    numbers = Counter((pair.variables["subject_number"], pair.variables["distractor_number"]) for pair in pairs)
    assert set(numbers.values()) == {16}
    assert len(numbers) == 4
    assert Counter(Counter(pair.template for pair in pairs).values()) == {8: 8}


@pytest.mark.parametrize(("distractor", "equal"), [("same", True), ("opposite", False)])
def test_the_distractor_can_be_held_to_one_kind(distractor: agreement.Distractor, equal: bool) -> None:
    pairs = agreement.generate(32, distractor=distractor).pairs
    assert {pair.variables["subject_number"] == pair.variables["distractor_number"] for pair in pairs} == {equal}
    assert Counter(pair.variables["subject_number"] for pair in pairs) == {"singular": 16, "plural": 16}


def test_end_coincides_with_a_distractor_in_last_place() -> None:
    last = agreement.generate(8, templates=["near"]).pairs
    assert all(pair.clean.spans["end"] == pair.clean.spans["distractor"] for pair in last)
    inner = agreement.generate(8, templates=["clearly"]).pairs
    assert {word(pair.clean, "end") for pair in inner} == {"clearly"}


def test_a_noun_needs_both_its_forms_whole() -> None:
    banned = {" keys", " dog", " cabinets"}
    pairs = agreement.generate(400, single_token=lambda text: text not in banned).pairs
    assert {"key", "keys", "dog", "dogs"}.isdisjoint(pair.variables["subject"] for pair in pairs)
    assert {"cabinet", "cabinets"}.isdisjoint(pair.variables["distractor"] for pair in pairs)
    assert {"book", "books", "cat", "cats"} <= {pair.variables["subject"] for pair in pairs}


def test_frames_whose_verbs_are_split_are_left_out() -> None:
    pairs = agreement.generate(40, single_token=lambda text: text != " were").pairs
    assert {pair.answer for pair in pairs} == {" is", " are", " has", " have"}
    with pytest.raises(TaskError, match=r"0 of 1 templates have verbs \(was, were\)"):
        agreement.generate(4, single_token=lambda text: text != " were", templates=["behind"])


def test_an_unknown_kind_of_distractor_is_refused() -> None:
    with pytest.raises(UnknownName, match="unknown distractor 'opposed'; did you mean 'opposite'"):
        inspect.unwrap(agreement.generate)(1, distractor="opposed")  # no type checks, as for users
