"""The user's own pairs file: good lines become pairs, bad ones are listed with their numbers, nothing else is raised."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediant.core import Prompt
from mediant.core.errors import TaskError
from mediant.tasks.pairs import parse, read

LINE = {
    "clean": "The keys near the door", "counterfactual": "The key near the door",
    "answer": " are", "counterfactual_answer": " is", "spans": {"subject": "keys", "end": [18, 22]}, "template": "near",
}  # fmt: skip


def line(**change: object) -> str:
    return json.dumps({key: value for key, value in {**LINE, **change}.items() if value is not ...})


def only_complaint(text: str) -> str:
    pairs, wrong = parse([text])
    assert pairs == []
    assert len(wrong) == 1
    return wrong[0]


def test_a_good_file_becomes_a_task(tmp_path):
    path = tmp_path / "keys.jsonl"
    path.write_text(
        "\n".join([line(), "", "   ", line(id="mine", spans={"subject": "keys"}, template=...)]) + "\n", encoding="utf-8"
    )
    task = read(path)
    assert (task.name, task.description, task.metric, task.span_names) == (
        "keys",
        "pairs read from keys.jsonl",
        "logprob_diff",
        ("subject",),
    )
    first, second = task.pairs
    assert (first.id, second.id, first.template, second.template) == ("line-1", "mine", "near", "")
    assert first.clean == Prompt(LINE["clean"], {"subject": (4, 8), "end": (18, 22)})
    assert first.counterfactual == Prompt(LINE["counterfactual"])
    assert (first.answer, first.counterfactual_answer) == (" are", " is")
    assert read(str(path)) == task


def test_ids_and_complaints_count_blank_lines_too():
    pairs, wrong = parse(["", line(), "\t", "{", line()])
    assert [pair.id for pair in pairs] == ["line-2", "line-5"]
    assert len(wrong) == 1
    assert wrong[0].startswith("line 4: not JSON")


def test_only_spans_of_every_line_are_spans_of_the_task_in_the_first_lines_order(tmp_path):
    path = tmp_path / "p.jsonl"
    spans = [{"b": "The", "a": "keys", "c": "door"}, {"a": "keys", "b": "The"}, {"a": "door", "b": "near", "c": "The"}]
    path.write_text("\n".join(line(spans=s) for s in spans), encoding="utf-8")
    assert read(path).span_names == ("b", "a")


def test_fields_that_may_be_left_out_have_defaults():
    (pair,), wrong = parse([line(spans=..., template=...)])
    assert (pair.id, pair.template, dict(pair.clean.spans), wrong) == ("line-1", "", {}, [])


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line().encode())
    assert len(read(path).pairs) == 1


def test_lines_of_another_system_are_read(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes((line() + "\r\n" + line() + "\r\n").encode())
    assert [pair.id for pair in read(path).pairs] == ["line-1", "line-2"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path, separator):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({**LINE, "clean": f"The keys{separator} near the door"}, ensure_ascii=False), encoding="utf-8")
    assert len(read(path).pairs) == 1


COMPLAINTS = {
    "not JSON": ("{", "not JSON: "),
    "text": ('"keys"', "expected a JSON object, got str"),
    "a list": ("[1]", "expected a JSON object, got list"),
    "a number": ("3", "expected a JSON object, got int"),
    "null": ("null", "expected a JSON object, got NoneType"),
    "not a number": ("NaN", "expected a JSON object, got float"),
    "two objects": (line() + line(), "not JSON: Extra data"),
    "no clean": (line(clean=...), "field 'clean' is missing"),
    "no counterfactual": (line(counterfactual=...), "field 'counterfactual' is missing"),
    "no answer": (line(answer=...), "field 'answer' is missing"),
    "no counterfactual answer": (line(counterfactual_answer=...), "field 'counterfactual_answer' is missing"),
    "an empty clean": (line(clean="", spans={}), "clean: String should have at least 1 character"),
    "an empty answer": (line(answer=""), "answer: String should have at least 1 character"),
    "an empty counterfactual": (line(counterfactual=""), "counterfactual: String should have at least 1 character"),
    "an empty counterfactual answer": (line(counterfactual_answer=""), "counterfactual_answer: String should have at least 1"),
    "a number for text": (line(answer=3), "answer: Input should be a valid string"),
    "a number for an id": (line(id=3), "id: Input should be a valid string"),
    "a list for spans": (line(spans=[]), "spans: Input should be a valid dictionary"),
    "a near field": (line(anser=" x"), "unknown field 'anser', did you mean 'answer'?"),
    "a far field": (line(zzzz=" x"), "unknown field 'zzzz'; fields are clean, counterfactual, answer, "),
    "a span that does not occur": (line(spans={"s": "lock"}), "span 's': 'lock' occurs 0 times in 'The keys near the door'"),
    "a span that occurs twice": (line(spans={"s": "e"}), "span 's': 'e' occurs 4 times"),
    "an empty span": (line(spans={"s": ""}), "span 's': '' occurs 0 times"),
    "a span past the end": (line(spans={"s": [18, 23]}), "span 's' (18, 23) lies outside the 22 characters"),
    "a span before the start": (line(spans={"s": [-1, 3]}), "span 's' (-1, 3) lies outside"),
    "a span of nothing": (line(spans={"s": [3, 3]}), "span 's' (3, 3) lies outside"),
    "a span backwards": (line(spans={"s": [5, 3]}), "span 's' (5, 3) lies outside"),
    "a span with one end": (line(spans={"s": [5]}), "spans.s"),
    "a span with three ends": (line(spans={"s": [1, 2, 3]}), "Tuple should have at most 2 items"),
    "a span of fractions": (line(spans={"s": [0.5, 2]}), "spans.s"),
    "a span of nulls": (line(spans={"s": None}), "spans.s"),
    "a reserved span": (line(spans={"last": "keys"}), "span name 'last' is reserved"),
    "half a character": (line().replace("keys near", r"keys \ud800 near"), "clean: "),
    "half a character in a name": (line().replace('"template"', r'"templ\ud800"'), "Input should be a valid string"),
    "nesting without end": ("[" * 100_000, "not JSON: "),
    "objects without end": ('{"clean":' * 100_000, "not JSON: "),
    "an infinite span": (line().replace("[18, 22]", "[1e999, 22]"), "finite"),
}  # fmt: skip


@pytest.mark.parametrize("what", COMPLAINTS)
def test_a_line_that_cannot_be_used_is_named_by_its_number_with_what_is_wrong(what):
    text, message = COMPLAINTS[what]
    pairs, wrong = parse([line(), text, line(), text])
    assert [pair.id for pair in pairs] == ["line-1", "line-3"]
    assert [w.split(":")[0] for w in wrong] == ["line 2", "line 4"]
    assert all(message in w for w in wrong)


def test_a_number_of_thousands_of_digits_is_a_wrong_line_like_any_other():
    assert only_complaint('{"clean": ' + "1" * 5000 + "}").startswith("line 1: ")


def test_everything_wrong_with_a_line_is_said_at_once():
    found = only_complaint(line(answer=..., clean=3, anser=" x", spans={}))
    assert found.removeprefix("line 1: ").split("; ") == [
        "clean: Input should be a valid string",
        "field 'answer' is missing",
        "unknown field 'anser', did you mean 'answer'?",
    ]


def test_an_id_used_twice_is_refused_with_the_line_that_has_it():
    pairs, wrong = parse([line(id="a"), line(id="b"), line(id="a")])
    assert [pair.id for pair in pairs] == ["a", "b"]
    assert wrong == ["line 3: id 'a' was used on line 1 already"]


def test_an_id_that_looks_like_a_line_number_cannot_hide_that_line():
    assert parse([line(id="line-2"), line()])[1] == ["line 2: id 'line-2' was used on line 1 already"]


def test_the_id_of_a_wrong_line_is_free():
    pairs, wrong = parse([line(id="a", answer=""), line(id="a")])
    assert ([pair.id for pair in pairs], len(wrong)) == (["a"], 1)


def test_the_first_five_wrong_lines_are_listed_and_the_rest_counted(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join([line(), *["{"] * 7, line()]), encoding="utf-8")
    with pytest.raises(TaskError) as caught:
        read(path)
    first, *listed = str(caught.value).splitlines()
    assert first.endswith("p.jsonl: 7 of 9 lines cannot be used (and 2 more):")
    assert [entry.strip().split(":")[0] for entry in listed] == ["line 2", "line 3", "line 4", "line 5", "line 6"]


def test_five_wrong_lines_are_all_listed(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(["{"] * 5), encoding="utf-8")
    with pytest.raises(TaskError, match=r"5 of 5 lines cannot be used:\n") as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 6


def refusal(path) -> str:
    with pytest.raises(TaskError) as caught:
        read(path)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \n\t\n", b"\xef\xbb\xbf"])
def test_a_file_without_pairs_is_refused_with_what_a_line_needs(tmp_path, content):
    (tmp_path / "p.jsonl").write_bytes(content)
    needed = "each line is one JSON object with clean, counterfactual, answer, counterfactual_answer"
    assert refusal(tmp_path / "p.jsonl").endswith(f"p.jsonl holds no pairs; {needed}")


def test_a_file_that_is_missing_or_no_text_is_refused_by_its_path(tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "utf16").write_bytes(line().encode("utf-16"))
    for name in ("binary", "utf16", "missing", "."):
        assert refusal(tmp_path / name).startswith(f"cannot read pairs file {tmp_path / name}: ")


nested = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from([*LINE, "id", "answr", "x"])
spans = st.dictionaries(
    st.text(max_size=3), st.text("Thekys ", max_size=3) | st.tuples(st.integers(-2, 25), st.integers(-2, 25)), max_size=2
)
almost = st.builds(lambda change: line(**change), st.dictionaries(fields, nested | st.just(...), max_size=3))
spanned = st.builds(lambda s: line(spans=s), spans)


@settings(max_examples=150)
@given(st.lists(st.text(max_size=30) | nested.map(json.dumps) | almost | spanned, max_size=5))
def test_whatever_the_lines_are_each_is_a_pair_or_a_complaint_with_its_number(lines):
    pairs, wrong = parse(lines)
    numbers = [int(w.removeprefix("line ").split(":")[0]) for w in wrong]
    assert numbers == sorted(set(numbers))
    assert all(1 <= n <= len(lines) for n in numbers)
    assert len(pairs) + len(wrong) == sum(bool(text.strip()) for text in lines)
    assert len({pair.id for pair in pairs}) == len(pairs)
    for pair in pairs:
        assert all(pair.clean.text[slice(*where)] for where in pair.clean.spans.values())


@settings(max_examples=60)
@given(
    data=st.binary(max_size=60)
    | st.builds(lambda at, junk: line().encode()[:at] + junk, st.integers(0, 170), st.binary(max_size=4))
)
def test_whatever_the_bytes_are_the_file_is_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzzed.jsonl"
    path.write_bytes(data)
    try:
        pairs = read(path).pairs
    except TaskError:
        return
    assert pairs
