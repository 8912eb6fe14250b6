"""Pairs as aligned batches: which tokens meet which, what is refused, and what answers score by hand."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import WORDS, ioi_pair, pairs, subject
from mediant.core import Pair, Prompt, Span
from mediant.core.errors import SpanError, TaskError, UnknownName
from mediant.subject import Subject
from mediant.tasks.encode import PairBatch, encode, token_columns

EVERY = Span("all")
TEXT, OTHER = (
    "When Mary and John went to the store , John gave a drink to",
    "When Mary and John went to the store , Mary gave a drink to",
)
SHORT = Pair("short", Prompt("Tom and Anna said Tom gave"), Prompt("Tom and Anna said Anna gave"), " Anna", " Tom")
LONG = Pair("long", Prompt(TEXT), Prompt(OTHER), " Mary", " John")


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def forward(lm: Subject, text: str) -> np.ndarray:
    """Logits of a single prompt without padding, mask or batch: (position, vocabulary) in float64."""
    with torch.no_grad():
        return lm.model(torch.tensor([ids(text)])).logits[0].double().numpy()


def logprob(lm: Subject, prompt: str, answer: str) -> float:
    """Log-probability of a continuation, teacher-forced, written out."""
    logits, start, total = forward(lm, prompt + answer), len(ids(prompt)), 0.0
    for i, token in enumerate(ids(answer)):
        row = logits[start - 1 + i]
        total += row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()
    return total


def kept(lm: Subject, encoded: PairBatch, which: str = "base") -> torch.Tensor:
    batch = getattr(encoded, which)
    with torch.no_grad():
        return lm.model(
            batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids, logits_to_keep=encoded.keep
        ).logits


def asking(pair: Pair, answer: str, other: str) -> Pair:
    return replace(pair, answer=answer, counterfactual_answer=other)


MIXED = [
    asking(LONG, " Mary and Tom", " John"),
    asking(SHORT, " Anna", " Tom and"),
    asking(replace(LONG, id="l2"), " a drink", " the key"),
]

TURNED = [asking(pair, pair.counterfactual_answer, pair.answer) for pair in MIXED]


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_each_row_holds_its_own_prompt_and_the_direction_says_which(direction):
    encoded = encode(subject(), [LONG, SHORT], direction=direction)
    clean, other = (encoded.base, encoded.source) if direction == "noising" else (encoded.source, encoded.base)
    for row, pair in enumerate([LONG, SHORT]):
        assert clean.tokens_of(row) == ids(pair.clean.text)
        assert other.tokens_of(row) == ids(pair.counterfactual.text)
    assert encoded.pairs == (LONG, SHORT)
    assert (encoded.answers, encoded.counterfactual_answers) == (((5,), (8,)), ((6,), (7,)))


def test_noising_is_what_happens_unless_said_otherwise():
    assert encode(subject(), [LONG]).base.tokens_of(0) == ids(TEXT)


def test_both_batches_have_the_same_columns_and_end_together():
    encoded = encode(subject(), [LONG, SHORT])
    base, source = encoded.base, encoded.source
    assert torch.equal(base.mask, source.mask)
    assert (base.start, base.stop) == (source.start, source.stop) == ((0, 8), (14, 14))
    assert base.mask[:, -1].all()


def test_prompts_of_unequal_length_are_refused_with_the_pair_and_both_counts():
    odd = Pair("odd-7", Prompt("Tom gave a drink"), Prompt("Tom gave a drink to Anna"), " to", " .")
    with pytest.raises(
        TaskError, match=r"pair odd-7: the clean prompt has 4 tokens, the counterfactual 6; swaps need the same number"
    ):
        encode(subject(), [LONG, odd])
    with pytest.raises(TaskError, match=r"the clean prompt has 4 tokens, the counterfactual 6"):
        encode(subject(), [odd], direction="denoising")


def test_equal_prompts_are_refused():
    with pytest.raises(TaskError, match="pair same: clean and counterfactual prompts are the same tokens"):
        encode(subject(), [LONG, Pair("same", Prompt("Tom  gave"), Prompt("Tom gave"), " a", " the")])


def test_equal_answers_are_refused():
    with pytest.raises(TaskError, match="pair long: answer and counterfactual answer are the same tokens"):
        encode(subject(), [asking(LONG, " Mary", "  Mary")])


def test_answers_that_share_their_first_tokens_are_not_equal():
    assert encode(subject(), [asking(LONG, " Mary", " Mary and")]).rows_per_pair == 2


@pytest.mark.parametrize(("answer", "other"), [("Mary", " John"), (" John", "Mary")])
def test_an_answer_that_melts_into_the_prompt_is_refused_with_the_space_it_lacks(answer, other):
    with pytest.raises(
        TaskError, match=r"pair long: answer 'Mary' is not a run of tokens .* did you mean ' Mary' \(with a leading space\)"
    ):
        encode(subject(), [asking(LONG, answer, other)])


@pytest.mark.parametrize("answer", ["", "  "])
def test_an_answer_without_tokens_is_refused_without_a_wrong_hint(answer):
    with pytest.raises(TaskError, match="pair long: answer") as caught:
        encode(subject(), [asking(LONG, answer, " John")])
    assert "did you mean" not in str(caught.value)


def test_trouble_with_a_prompt_names_its_pair_and_stays_the_same_kind():
    blank = Pair("blank", Prompt("Tom gave", {"gap": (3, 4)}), Prompt("Anna gave"), " a", " the")
    with pytest.raises(SpanError, match="pair blank: span 'gap' covers no token"):
        encode(subject(), [blank])
    with pytest.raises(TaskError, match="pair void: an empty prompt"):
        encode(subject(), [Pair("void", Prompt(""), Prompt("a"), " a", " the")])


def test_no_pairs_and_no_such_direction_are_refused():
    with pytest.raises(TaskError, match="no pairs to encode"):
        encode(subject(), [])
    with pytest.raises(UnknownName, match="unknown direction 'nosing'; did you mean 'noising' or 'denoising'"):
        inspect.unwrap(encode)(subject(), [LONG], direction="nosing")  # no type checks, as for users


def test_single_token_answers_take_one_row_and_the_last_column():
    encoded = encode(subject(), [LONG, SHORT])
    assert (encoded.rows_per_pair, encoded.keep, encoded.base.n_rows) == (1, 1, 2)


def test_one_longer_answer_gives_every_pair_two_rows_that_end_before_their_last_token():
    encoded = encode(subject(), MIXED)
    assert (encoded.rows_per_pair, encoded.keep, encoded.base.n_rows) == (2, 3, 6)
    continued = [" Mary and", "", "", " Tom", " a", " the"]
    owners = [pair for pair in MIXED for _ in range(2)]
    for row, (pair, more) in enumerate(zip(owners, continued, strict=True)):
        assert encoded.base.tokens_of(row) == ids(pair.clean.text + more)
        assert encoded.source.tokens_of(row) == ids(pair.counterfactual.text + more)


def test_spans_do_not_reach_into_the_answer():
    encoded = encode(subject(), MIXED)
    for row, pair in enumerate(p for p in MIXED for _ in range(2)):
        columns = encoded.base.columns(row, EVERY)
        assert encoded.base.ids[row, columns].tolist() == ids(pair.clean.text)
        assert encoded.base.columns(row, Span("last")) == columns[-1:]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("items", [[LONG, SHORT], MIXED, TURNED], ids=["single", "several", "turned"])
def test_answers_score_what_teacher_forcing_by_hand_gives(family, direction, items):
    lm = subject(family)
    encoded = encode(lm, items, direction=direction)
    for which in ("base", "source"):
        found = encoded.log_likelihoods(kept(lm, encoded, which))
        for i, pair in enumerate(items):
            prompt = pair.clean if (which == "base") == (direction == "noising") else pair.counterfactual
            assert abs(found[0][i].item() - logprob(lm, prompt.text, pair.answer)) < 1e-4
            assert abs(found[1][i].item() - logprob(lm, prompt.text, pair.counterfactual_answer)) < 1e-4


@pytest.mark.parametrize("items", [[LONG, SHORT], MIXED], ids=["single", "several"])
def test_prompt_logits_are_those_at_each_prompts_last_token(items):
    lm = subject()
    encoded = encode(lm, items)
    found = encoded.prompt_logits(kept(lm, encoded)).numpy()
    assert found.shape == (len(items), len(WORDS))
    for i, pair in enumerate(items):
        assert np.allclose(found[i], forward(lm, pair.clean.text)[-1], atol=1e-4)


def greedy(lm: Subject, prompt: str, n: int) -> str:
    answer = ""
    for _ in range(n):
        answer += " " + WORDS[int(forward(lm, prompt + answer)[-1].argmax())]
    return answer


@pytest.mark.parametrize("n", [1, 2, 3])
def test_greedy_decoding_is_right_only_when_every_token_of_the_answer_is_the_likeliest(n):
    lm = subject()
    right = [greedy(lm, pair.clean.text, n) for pair in (LONG, SHORT)]
    assert right[0] != right[1]
    assert not {"</s>", "<pad>"} & set(" ".join(right).split())
    wrong = [" ".join([*answer.split(" ")[:-1], "near"]) for answer in right]
    items = [
        asking(LONG, right[0], " key"),
        asking(SHORT, right[1], " key"),
        asking(LONG, wrong[0], right[0]),
        asking(SHORT, " near", right[1]),
    ]
    encoded = encode(lm, items)
    assert encoded.greedy_right(kept(lm, encoded)).tolist() == [True, True, False, False]


def first_changed(encoded: PairBatch, row: int) -> int:
    base, source = encoded.base.ids[row].tolist(), encoded.source.ids[row].tolist()
    return next(i for i, (a, b) in enumerate(zip(base, source, strict=True)) if a != b)


@pytest.mark.parametrize("items", [[LONG, SHORT], MIXED, [*pairs(), LONG]], ids=["single", "several", "many"])
@pytest.mark.parametrize("span", [EVERY, Span("last"), Span.index(0), Span.slice(3, -1), Span.index(-3)])
def test_changed_is_the_part_of_a_span_from_the_first_differing_token_on(items, span):
    encoded = encode(subject(), items)
    first = [first_changed(encoded, row) for row in range(encoded.base.n_rows)]
    assert encoded.first_difference.tolist() == first
    rows, cols = encoded.changed(span)
    expected = [(r, c) for r in range(encoded.base.n_rows) for c in encoded.base.columns(r, span) if c >= first[r]]
    assert list(zip(rows.tolist(), cols.tolist(), strict=True)) == expected


def test_the_differing_token_itself_can_differ_and_what_stands_before_cannot():
    encoded = encode(subject(), [LONG])
    assert encoded.changed(Span.index(9))[1].tolist() == [9]
    assert encoded.changed(Span.slice(0, 9))[1].tolist() == []


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_span_that_one_prompt_names_means_the_same_columns_in_the_other(direction):
    pair = replace(LONG, clean=Prompt(TEXT, {"IO": (5, 9)}), counterfactual=Prompt(OTHER, {"gave": (44, 48)}))
    encoded = encode(subject(), [pair, SHORT], direction=direction)
    for batch in (encoded.base, encoded.source):
        assert (batch.columns(0, Span("IO")), batch.columns(0, Span("gave"))) == ([1], [10])
    with pytest.raises(UnknownName, match="unknown span 'IO'"):
        encoded.base.columns(1, Span("IO"))


@pytest.mark.parametrize("direction", ["noising", "denoising"])
def test_a_span_that_both_prompts_name_keeps_each_prompts_own_place(direction):
    pair = replace(LONG, clean=Prompt(TEXT, {"name": (5, 9)}), counterfactual=Prompt(OTHER, {"name": (39, 43)}))
    encoded = encode(subject(), [pair], direction=direction)
    clean, other = (encoded.base, encoded.source) if direction == "noising" else (encoded.source, encoded.base)
    assert (clean.columns(0, Span("name")), other.columns(0, Span("name"))) == ([1], [9])


def test_prompts_that_line_up_get_a_column_per_token_with_the_span_it_belongs_to():
    columns = token_columns(subject(), [ioi_pair(), replace(ioi_pair(), id="again")])
    assert [c.span for c in columns] == [Span.index(i) for i in range(14)]
    expected = TEXT.split()
    expected[1], expected[9], expected[13] = "Mary [IO]", "John [S2]", "to [end]"
    assert [c.label for c in columns] == expected


def shifted(pair: Pair, words: str = "near the park , ") -> Pair:
    """The same pair behind some more words."""

    def moved(prompt: Prompt) -> Prompt:
        return Prompt(words + prompt.text, {n: (a + len(words), b + len(words)) for n, (a, b) in prompt.spans.items()})

    return replace(pair, id=f"{pair.id}-shifted", clean=moved(pair.clean), counterfactual=moved(pair.counterfactual))


@pytest.mark.parametrize(
    "second",
    [
        shifted(ioi_pair()), replace(ioi_pair(), template="other"),
        replace(ioi_pair(), clean=Prompt(TEXT, {"S2": (39, 43), "IO": (14, 18), "end": (57, 59)})),
    ],
    ids=["length", "template", "places"],
)  # fmt: skip
def test_prompts_that_do_not_line_up_get_a_column_per_shared_span_in_reading_order(second):
    columns = token_columns(subject(), [ioi_pair(), second])
    assert [(c.span, c.label) for c in columns] == [(Span("IO"), "IO"), (Span("S2"), "S2"), (Span("end"), "end")]


def test_columns_follow_the_text_and_not_the_order_in_which_spans_were_named():
    turned = replace(ioi_pair(), clean=Prompt(TEXT, dict(reversed(ioi_pair().clean.spans.items()))))
    assert [c.label for c in token_columns(subject(), [turned, shifted(ioi_pair())])] == ["IO", "S2", "end"]


def without(pair: Pair, *names: str) -> Pair:
    return replace(pair, clean=Prompt(pair.clean.text, {n: w for n, w in pair.clean.spans.items() if n not in names}))


def test_only_spans_that_every_prompt_names_become_columns():
    columns = token_columns(subject(), [ioi_pair(), without(shifted(ioi_pair()), "IO")])
    assert [c.label for c in columns] == ["S2", "end"]
    assert [c.label for c in token_columns(subject(), [without(ioi_pair(), "IO"), shifted(ioi_pair())])] == ["S2", "end"]


def test_the_last_token_is_added_unless_a_span_is_the_last_token_of_every_prompt():
    items = [without(ioi_pair(), "end"), without(shifted(ioi_pair()), "end")]
    columns = token_columns(subject(), items)
    assert [(c.span, c.label) for c in columns] == [(Span("IO"), "IO"), (Span("S2"), "S2"), (Span("last"), "last")]
    early = replace(ioi_pair(), clean=Prompt(TEXT, {**ioi_pair().clean.spans, "end": (49, 50)}))
    assert [c.label for c in token_columns(subject(), [early, shifted(ioi_pair())])] == ["IO", "S2", "end", "last"]
