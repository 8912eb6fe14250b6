"""Schemas: every token in one span, unequal lengths inside a span, and orders that do not fit named."""

import pytest

from builders import pairs, prompt, subject
from mediant.core import Pair
from mediant.core.errors import SpanError
from mediant.interventions.nodes import TokenOrder
from mediant.tasks.encode import encode
from mediant.tasks.schema import SpanTable, from_task_spans


def pair(number: int, clean: str, other: str, **spans: str) -> Pair:
    return Pair(f"p{number}", prompt(clean, **spans), prompt(other), " is", " are")


SHORT = pair(0, "the keys near the park", "the key near the park", noun="keys", place="park", end="park")
BEFORE = "When Mary and John said the"
LONG = pair(1, f"{BEFORE} keys near one ball", f"{BEFORE} key near one ball", noun="keys", place="one ball", end="ball")


def test_named_spans_and_what_lies_between_cover_every_token_in_order():
    table = from_task_spans(subject(), pairs())
    assert table.names == ("first", "IO", "IO..S2", "S2", "S2..end", "end")
    row = table.of(pairs()[0])
    words = pairs()[0].clean.text.split()
    assert [table.names[s] for s in row] == [
        "first", "IO", *["IO..S2"] * 7, "S2", *["S2..end"] * 3, "end",
    ]  # fmt: skip
    assert len(words) == len(row)
    assert table.ends == (5,)


def test_spans_of_unequal_length_and_a_span_that_another_ends_with():
    table = from_task_spans(subject(), [SHORT, LONG])
    assert table.names == ("first", "..noun", "noun", "noun..place", "place", "end")
    assert table.of(SHORT) == (0, 2, 3, 3, 5)
    assert table.of(LONG) == (0, 1, 1, 1, 1, 1, 2, 3, 4, 5)
    order = table.order(encode(subject(), [SHORT, LONG]))
    assert isinstance(order, TokenOrder)
    assert order.n_spans == 6
    sizes = [order.bounds[i + 1] - order.bounds[i] for i in range(6)]
    assert sizes == [2, 5, 2, 3, 1, 2]
    assert order.cols[order.bounds[2] : order.bounds[3]].tolist() == [6, 6]  # left padding: both nouns stand in column 6
    assert order.rows[order.bounds[1] : order.bounds[2]].tolist() == [1] * 5  # the short prompt has nothing there


def test_another_order_overlap_and_missing_spans_are_refused_by_name():
    turned = pair(2, "one ball near the keys", "one ball near the key", place="ball", noun="keys", end="keys")
    with pytest.raises(SpanError, match=r"same order in all prompts.*noun < place < end as in p0, but not in p2"):
        from_task_spans(subject(), [SHORT, LONG, turned])
    more = pair(0, "the keys near the park", "the key near the park", noun="keys", wrong="park")
    with pytest.raises(SpanError, match="every prompt names: p1 lack one of noun, wrong"):
        from_task_spans(subject(), [more, LONG], ["noun", "wrong"])
    bare = [Pair(p.id, p.clean.text, p.counterfactual.text, p.answer, p.counterfactual_answer) for p in (SHORT, LONG)]
    with pytest.raises(SpanError, match="share no named span"):
        from_task_spans(subject(), bare)
    with pytest.raises(SpanError, match="no pairs"):
        from_task_spans(subject(), [])


def test_a_shuffled_schema_keeps_the_cuts_and_deals_names_out_anew_in_every_prompt():
    table = from_task_spans(subject(), pairs())
    dealt = table.shuffled(0)
    assert dealt != table
    assert dealt == table.shuffled(0)
    assert dealt != table.shuffled(1)
    for one in pairs():
        before, after = table.of(one), dealt.of(one)
        assert {(a == b, x == y) for a, x in zip(before, after, strict=True) for b, y in zip(before, after, strict=True)} <= {
            (True, True),
            (False, False),
        }
    assert len({dealt.of(one) for one in pairs()}) > 1


def test_tables_read_back_as_they_were_and_broken_files_name_the_line(tmp_path):
    table, file = from_task_spans(subject(), [SHORT, LONG]), tmp_path / "spans.csv"
    table.save(file)
    assert SpanTable.load(file) == table
    assert file.read_text(encoding="utf-8").splitlines()[0] == "id,first,..noun,noun,noun..place,place,end,length"
    assert table.starts("p0") == (0, 1, 1, 2, 4, 4, 5)
    with pytest.raises(SpanError, match="not in reading order"):
        SpanTable(("a", "b"), {"x": (1, 0)}).save(file)
    file.write_text("id,a,b,length\nx,0,3,2\n", encoding="utf-8")
    with pytest.raises(SpanError, match="line 2: starts must begin at 0 and not fall"):
        SpanTable.load(file)
    file.write_text("name,a\n", encoding="utf-8")
    with pytest.raises(SpanError, match="expected the columns"):
        SpanTable.load(file)


def test_a_table_of_another_tokenizer_or_another_pair_is_refused():
    table = from_task_spans(subject(), [SHORT])
    with pytest.raises(SpanError, match="no row for pair p1"):
        table.order(encode(subject(), [LONG]))
    with pytest.raises(SpanError, match="another tokenizer"):
        SpanTable(("a",), {"p0": (0, 0)}).order(encode(subject(), [SHORT]))
    with pytest.raises(SpanError, match="span numbers must be 0 to 0"):
        SpanTable(("a",), {"p0": (0, 1)})


def test_a_span_called_first_does_not_hide_the_first_token():
    short = pair(2, "the keys near the door", "the key near the door", first="keys", place="door")
    assert from_task_spans(subject(), [short]).names == ("first token", "first", "first..place", "place")
