"""Sums in words and signs, solved again by reading the prompt."""

import re
from collections import Counter

import pytest

from mediant.core.errors import TaskError
from mediant.core.pair import Pair, Prompt
from mediant.tasks import arithmetic

SPLITS = ("main", "heldout")
SIGN = {"plus": 1, "+": 1, "minus": -1, "-": -1}
STYLES = pytest.mark.parametrize("leading_space", [True, False])
IN_SPLITS = pytest.mark.parametrize("split", SPLITS)
QUESTION = re.compile(r"(\d) ?(plus|minus|\+|-) ?(\d)")


def solve(line: str) -> int:
    found = QUESTION.findall(line)
    assert len(found) == 1
    a, sign, b = found[0]
    return int(a) + SIGN[sign] * int(b)


def shown(prompt: Prompt) -> list[str]:
    """Lines of solved examples."""
    return prompt.text.split("\n")[:-1]


def question(prompt: Prompt) -> str:
    return prompt.text.split("\n")[-1]


def pairs(n: int = 30, **options: object) -> tuple[Pair, ...]:
    return arithmetic.generate(n, **options).pairs  # type: ignore[arg-type]


@STYLES
@IN_SPLITS
def test_answers_are_right_on_both_sides(leading_space: bool, split: str) -> None:
    space = " " if leading_space else ""
    for pair in pairs(leading_space=leading_space, split=split):
        assert pair.answer == f"{space}{solve(question(pair.clean))}"
        assert pair.counterfactual_answer == f"{space}{solve(question(pair.counterfactual))}"
        assert pair.answer.strip() == pair.variables["result"]
        assert all(re.fullmatch(r" ?[1-9]", answer) for answer in (pair.answer, pair.counterfactual_answer))


@STYLES
@IN_SPLITS
def test_exactly_one_operand_changes(leading_space: bool, split: str) -> None:
    changed = Counter()
    for pair in pairs(leading_space=leading_space, split=split):
        old, new = (QUESTION.findall(question(prompt))[0] for prompt in (pair.clean, pair.counterfactual))
        different = [name for name, before, after in zip(("a", "op", "b"), old, new, strict=True) if before != after]
        assert different == [pair.variables["changed"]]
        assert new[["a", "op", "b"].index(different[0])] == pair.variables["changed_to"]
        changed[different[0]] += 1
    assert min(changed["a"], changed["b"]) > 0


@STYLES
@IN_SPLITS
@pytest.mark.parametrize("shots", [0, 1, 2, 4])
def test_examples_are_solved_shared_and_give_nothing_away(leading_space: bool, split: str, shots: int) -> None:
    for pair in pairs(36, leading_space=leading_space, split=split, shots=shots):
        lines = shown(pair.clean)
        assert len(set(lines)) == len(lines) == shots
        assert lines == shown(pair.counterfactual)
        results = [line[-1] for line in lines]
        assert results == [str(solve(line)) for line in lines]
        assert {pair.answer.strip(), pair.counterfactual_answer.strip()}.isdisjoint(results)
        written = re.sub(r"\d", "#", re.sub(r"plus|minus|\+|-", "~", question(pair.clean)))
        assert [re.sub(r"\d", "#", re.sub(r"plus|minus|\+|-", "~", line[: -len(pair.answer)])) for line in lines] == [
            written
        ] * shots


def test_examples_show_both_operators_in_turn() -> None:
    firsts = set()
    for pair in pairs(30, shots=2):
        signs = [SIGN[QUESTION.findall(line)[0][1]] for line in shown(pair.clean)]
        assert sorted(signs) == [-1, 1]
        firsts.add(signs[0])
    assert firsts == {-1, 1}


@STYLES
def test_spans_mark_the_question_and_not_the_examples(leading_space: bool) -> None:
    for pair in pairs(leading_space=leading_space):
        for prompt in (pair.clean, pair.counterfactual):
            start = len(prompt.text) - len(question(prompt))
            assert all(first >= start for first, _ in prompt.spans.values())
            assert (
                tuple(prompt.text[slice(*prompt.spans[span])] for span in ("a", "op", "b"))
                == QUESTION.findall(question(prompt))[0]
            )
        assert [pair.clean.text[slice(*pair.clean.spans[name])] for name in ("a", "b")] == [
            pair.variables["a"],
            pair.variables["b"],
        ]


def test_compact_prompts_hold_no_space_at_all() -> None:
    for pair in pairs(leading_space=False):
        assert " " not in pair.clean.text
        assert pair.clean.text[slice(*pair.clean.spans["end"])] == "="


def test_no_frame_asks_a_sum_twice_however_many_examples_there_are() -> None:
    everything = pairs(265, shots=2)
    asked = [(pair.template, question(pair.clean)) for pair in everything]
    assert len(set(asked)) == 265
    with pytest.raises(TaskError, match="at most 265"):
        pairs(266, shots=2)


def test_operators_and_frames_are_balanced() -> None:
    drawn = pairs(40)
    assert Counter(pair.variables["op"] for pair in drawn) == {"plus": 20, "minus": 20}
    assert set(Counter(pair.template for pair in drawn).values()) == {8}


def test_the_splits_share_no_sum_as_question_or_example() -> None:
    seen: dict[str, set[frozenset[str] | str]] = {}
    for split in SPLITS:
        found = [QUESTION.findall(line)[0] for pair in pairs(38, split=split) for line in pair.clean.text.split("\n")]
        seen[split] = {f"{min(a, b)}{max(a, b)}{SIGN[sign]}" for a, sign, b in found}
    assert seen["main"].isdisjoint(seen["heldout"])


def test_the_two_splits_make_up_all_single_digit_sums() -> None:
    plus = {(a, b) for a in range(1, 10) for b in range(1, 10) if a + b < 10}
    minus = {(a, b) for a in range(1, 10) for b in range(1, a)}
    for op, every in (("plus", plus), ("minus", minus)):
        listed = [(each.a, each.b) for split in SPLITS for each in arithmetic.sums(op, split)]  # type: ignore[arg-type]
        assert len(listed) == 36
        assert set(listed) == every


def test_digits_split_by_the_tokenizer_point_to_the_other_style() -> None:
    def no_space(text: str) -> bool:
        return len(text) == 1

    with pytest.raises(TaskError, match=r"splits ' 0', ' 1'.*try leading_space=False"):
        arithmetic.generate(2, single_token=no_space, leading_space=True)
    assert len(arithmetic.generate(2, single_token=no_space, leading_space=False).pairs) == 2
    with pytest.raises(TaskError, match="try leading_space=True"):
        arithmetic.generate(2, single_token=lambda text: len(text) == 2, leading_space=False)


def test_a_single_bad_digit_is_enough_to_refuse() -> None:
    with pytest.raises(TaskError, match="splits ' 7'; try"):
        arithmetic.generate(2, single_token=lambda text: text != " 7", leading_space=True)


def test_the_style_follows_the_tokenizer_unless_it_is_given() -> None:
    assert arithmetic.generate(1).pairs[0].answer.startswith(" ")
    assert not arithmetic.generate(1, single_token=lambda text: len(text) == 1).pairs[0].answer.startswith(" ")


@pytest.mark.parametrize("shots", [-1, 5])
def test_shots_out_of_range_are_refused(shots: int) -> None:
    with pytest.raises(TaskError, match=f"expected shots from 0 to 4, got {shots}"):
        arithmetic.generate(2, shots=shots)
