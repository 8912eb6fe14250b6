"""Results: what a number needs to be believed, a schema that says so, and files that are read back or refused."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, ValidationError
from pydantic import ValidationError as Refused

from mediant.core import Measure, Result
from mediant.core.errors import RunError

words = st.text(max_size=5)
finite = st.floats(allow_nan=False, allow_infinity=False)
valued = st.builds(
    Measure, value=finite, n=st.integers(0, 10**6), ci95=st.tuples(finite, finite).map(lambda t: tuple(sorted(t))),
    definition=st.text(min_size=1, max_size=5), control=st.none() | words, reason=st.none() | words,
)  # fmt: skip
unvalued = st.builds(
    Measure,
    value=st.none() | finite,
    n=st.integers(0, 9),
    ci95=st.none(),
    definition=st.just("d"),
    reason=st.text(min_size=1, max_size=5),
)
results = st.builds(
    Result, study=words, preset=words, measures=st.dictionaries(words, valued | unvalued, max_size=3),
    limits=st.lists(words, min_size=1, max_size=2),
    provenance=st.dictionaries(words, words | st.integers(0, 9) | st.none() | st.booleans(), max_size=3),
)  # fmt: skip
VALIDATOR = Draft202012Validator(Result.json_schema())


def measure(**change: object) -> Measure:
    return Measure(**{"value": 0.9, "n": 200, "ci95": (0.86, 0.94), "definition": "share right", **change})


def result(**change: object) -> Result:
    fields = {"study": "s", "preset": "p", "measures": {"right": measure()}, "limits": ["one model"], "provenance": {"seed": 0}}
    return Result(**{**fields, **change})


def test_the_published_schema_is_a_schema():
    Draft202012Validator.check_schema(Result.json_schema())
    assert Result.json_schema()["properties"]["schema"]["const"] == "mediant/result/1"
    assert "schema_" not in Result.json_schema()["properties"]


@settings(max_examples=50)
@given(results)
def test_every_result_follows_the_published_schema_and_is_read_back_whole(tmp_path_factory, found):
    VALIDATOR.validate(json.loads(found.to_json()))
    path = tmp_path_factory.mktemp("results") / "result.json"
    found.save(path)
    assert Result.load(path) == found
    assert Result.load(str(path)).to_json() == path.read_text(encoding="utf-8")


def test_the_file_is_written_out_as_documented():
    assert result().to_json() == (
        '{\n "schema": "mediant/result/1",\n "study": "s",\n "preset": "p",\n "measures": {\n  "right": {\n   "value": 0.9,\n'
        '   "n": 200,\n   "ci95": [\n    0.86,\n    0.94\n   ],\n   "definition": "share right",\n   "control": null,\n'
        '   "reason": null\n  }\n },\n "limits": [\n  "one model"\n ],\n "provenance": {\n  "seed": 0\n }\n}\n'
    )


def test_the_same_result_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        result().save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("field", ["value", "ci95"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_refused(field, number):
    with pytest.raises(Refused, match="finite"):
        measure(**{field: number if field == "value" else (0.0, number)})
    with pytest.raises(Refused, match="finite"):
        measure(**{field: number if field == "value" else (number, 0.0)})


def test_a_missing_value_needs_a_reason():
    assert measure(value=None, ci95=None, reason="the subject cannot do the task").value is None
    for reason in (None, ""):
        with pytest.raises(Refused, match="without a value needs a reason"):
            measure(value=None, ci95=None, reason=reason)


def test_a_missing_interval_needs_a_reason():
    assert measure(ci95=None, reason="counted, not sampled").ci95 is None
    for reason in (None, ""):
        with pytest.raises(Refused, match="without an interval needs a reason"):
            measure(ci95=None, reason=reason)


def test_zero_is_a_value():
    assert measure(value=0.0).value == 0.0
    assert measure(n=0).n == 0


@pytest.mark.parametrize(
    "change", [{"n": -1}, {"definition": ""}, {"ci95": (0.0,)}, {"ci95": (0.0, 1.0, 2.0)}, {"unit": "nats"}, {"n": 1.5}]
)
def test_a_measure_that_says_too_little_or_too_much_is_refused(change):
    with pytest.raises(Refused):
        measure(**change)


@pytest.mark.parametrize("change", [{"ci95": (0.94, 0.86)}, {"value": None, "reason": "not run"}])
def test_an_interval_that_contradicts_its_value_is_refused(change):
    with pytest.raises(Refused):
        measure(**change)


def test_a_result_cannot_be_changed_afterwards():
    with pytest.raises(Refused, match="frozen"):
        result().study = "other"
    with pytest.raises(Refused, match="frozen"):
        measure().value = 1.0


def as_data() -> dict:
    return json.loads(result().to_json())


def broken(*path: str, to: object = ...) -> dict:
    """A result's data with one place changed, or removed."""
    data = as_data()
    place = data
    for key in path[:-1]:
        place = place[key]
    if to is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return data


BROKEN = {
    "a null without a reason": broken("measures", "right", "value", to=None),
    "no interval and no reason": broken("measures", "right", "ci95", to=None),
    "no study": broken("study"),
    "no preset": broken("preset"),
    "no measures": broken("measures"),
    "no limits": broken("limits"),
    "empty limits": broken("limits", to=[]),
    "limits that are text": broken("limits", to="none"),
    "no provenance": broken("provenance"),
    "provenance that is a list": broken("provenance", to=[]),
    "another version": broken("schema", to="mediant/result/2"),
    "an unknown field": broken("colour", to="red"),
    "measures that are a list": broken("measures", to=[]),
    "a measure without n": broken("measures", "right", "n"),
    "a measure without a definition": broken("measures", "right", "definition"),
    "a measure without a value": broken("measures", "right", "value"),
    "an empty definition": broken("measures", "right", "definition", to=""),
    "an unknown field of a measure": broken("measures", "right", "unit", to="nats"),
    "a negative n": broken("measures", "right", "n", to=-1),
    "a fraction of items": broken("measures", "right", "n", to=2.5),
    "a value that is a list": broken("measures", "right", "value", to=[1]),
    "an interval with one end": broken("measures", "right", "ci95", to=[0.1]),
    "an interval with three ends": broken("measures", "right", "ci95", to=[0.1, 0.2, 0.3]),
    "an interval of nulls": broken("measures", "right", "ci95", to=[None, None]),
    "a study that is a number": broken("study", to=3),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_the_schema_refuses_is_refused_on_loading_too(tmp_path, what):
    VALIDATOR.validate(as_data())
    with pytest.raises(ValidationError):
        VALIDATOR.validate(BROKEN[what])
    path = tmp_path / "result.json"
    path.write_text(json.dumps(BROKEN[what]), encoding="utf-8")
    with pytest.raises(RunError, match=r"result\.json is not a result of this version"):
        Result.load(path)


@pytest.mark.parametrize(("place", "reason"), [("value", "the value"), ("ci95", "the interval")])
def test_a_null_without_a_reason_is_refused_on_loading(tmp_path, place, reason):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(broken("measures", "right", place, to=None)), encoding="utf-8")
    with pytest.raises(RunError, match="needs a reason"):
        Result.load(path)


@pytest.mark.parametrize("place", ["value", "ci95"])
def test_the_schema_refuses_a_null_without_a_reason(place):
    data = broken("measures", "right", place, to=None)
    with pytest.raises(ValidationError):
        VALIDATOR.validate(data)


def test_the_schema_refuses_a_file_that_names_no_version():
    with pytest.raises(ValidationError):
        VALIDATOR.validate(broken("schema"))


def test_a_file_that_names_no_version_is_refused(tmp_path):
    path = tmp_path / "result.json"
    path.write_text(json.dumps(broken("schema")), encoding="utf-8")
    with pytest.raises(RunError):
        Result.load(path)


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"[]", b"[" * 100_000], ids=["empty", "cut", "null", "list", "nested"])
def test_a_file_that_is_no_result_is_refused_by_its_path(tmp_path, data):
    path = tmp_path / "result.json"
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"result\.json is not a result"):
        Result.load(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_file_with_a_number_that_is_none_is_refused(tmp_path, number):
    path = tmp_path / "result.json"
    path.write_text(result().to_json().replace("0.9,", f"{number},", 1), encoding="utf-8")
    with pytest.raises(RunError):
        Result.load(path)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "result.json"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RunError):
        Result.load(path)


def test_a_missing_result_is_refused_by_its_path(tmp_path):
    with pytest.raises(RunError, match=r"none\.json is not a result"):
        Result.load(tmp_path / "none.json")
    with pytest.raises(RunError):
        Result.load(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_provenance_that_json_cannot_hold_is_refused(value):
    with pytest.raises(Refused):
        result(provenance={"loss": value})


def test_provenance_of_another_type_is_refused_like_any_other():
    with pytest.raises(Refused):
        result(provenance={"path": object()})
