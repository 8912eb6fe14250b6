"""Choosing words and distinct combinations."""

from collections import Counter
from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediant.core.errors import TaskError, UnknownName
from mediant.tasks.choosing import digits, draw, numbered, pick, require_whole, shuffled, whole

WORDS = ["ox", "cat", "horse"]


def short(text: str) -> bool:
    assert text.startswith(" "), "words are judged as they stand inside a sentence"
    return len(text) <= 4


def test_words_of_several_tokens_are_dropped_in_order() -> None:
    assert whole(WORDS, short, what="animals", at_least=2) == ["ox", "cat"]


def test_without_a_tokenizer_every_word_stays() -> None:
    assert whole(WORDS, None, what="animals", at_least=3) == WORDS


def test_a_tuple_of_forms_stays_only_if_every_form_does() -> None:
    nouns = [("cat", "cats"), ("ox", "ox"), ("cows", "cow")]
    assert whole(nouns, short, what="nouns", at_least=1) == [("ox", "ox")]


def test_too_few_words_are_counted_in_the_message() -> None:
    with pytest.raises(TaskError, match="only 2 of 3 animals are single tokens for this tokenizer, need at least 3"):
        whole(WORDS, short, what="animals", at_least=3)


def test_split_answers_are_named_with_the_way_out() -> None:
    require_whole([" a", " b"], short, mend="never")
    require_whole([" elephant"], None, mend="never")
    with pytest.raises(TaskError, match="splits ' elephant', ' zebra'; buy a bigger one"):
        require_whole([" ox", " elephant", " zebra"], short, mend="buy a bigger one")


def test_pick_returns_the_option_or_names_the_nearest() -> None:
    assert pick("order", "abba", {"abba": 1, "baba": 2}) == 1
    with pytest.raises(UnknownName, match="unknown order 'abab'; did you mean"):
        pick("order", "abab", {"abba": 1, "baba": 2})


@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 5))
def test_draws_are_distinct_in_range_and_as_even_as_capacities_allow(capacities: list[int], n: int, seed: int) -> None:
    if n > sum(capacities):
        with pytest.raises(TaskError, match=f"only {sum(capacities)} distinct"):
            draw(capacities, n, Random(seed))
        return
    drawn = draw(capacities, n, Random(seed))
    assert len(set(drawn)) == len(drawn) == n
    assert all(0 <= index < capacities[cell] for cell, index in drawn)
    served = Counter(cell for cell, _ in drawn)
    highest = max(served.values())
    assert all(served[cell] >= min(capacity, highest - 1) for cell, capacity in enumerate(capacities))


def test_draws_from_an_enormous_cell_need_no_enumeration() -> None:
    assert len(set(draw([10**15, 1], 5, Random(0)))) == 5


def test_the_first_cells_are_served_first() -> None:
    assert {cell for cell, _ in draw([9, 9, 9, 9], 2, Random(0))} == {0, 1}


def test_drawn_items_do_not_alternate_between_cells() -> None:
    cells = [cell for cell, _ in draw([50, 50], 40, Random(0))]
    assert cells != sorted(cells)
    assert len(set(cells[::2])) == 2


def test_digits_enumerate_every_combination_once_in_order() -> None:
    assert [digits(index, (2, 3, 2)) for index in range(12)] == list(product(range(2), range(3), range(2)))


def test_shuffling_leaves_the_original_alone() -> None:
    original = list(range(20))
    mixed = shuffled(original, Random(1))
    assert original == list(range(20))
    assert mixed != original
    assert sorted(mixed) == original


def test_ids_have_four_digits_and_name_the_held_out_split() -> None:
    assert numbered("ioi", "main", 7) == "ioi-0007"
    assert numbered("ioi", "heldout", 12345) == "ioi-heldout-12345"
