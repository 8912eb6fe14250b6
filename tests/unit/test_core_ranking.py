"""Rankings: one order per rule, the same whatever came first, and files that are read back or refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mediant.core import Ranking, Scored, Site
from mediant.core.errors import OutOfRange, RunError, UnknownName

SCORES = {"head_z.0.0": 0.5, "head_z.0.1": -2.0, "head_z.1.0": 1.0, "head_z.1.1": 0.0}
entries = st.lists(
    st.builds(
        Scored,
        st.sampled_from([f"head_z.{la}.{h}" for la in range(3) for h in range(3)]),
        st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 2.0]) | st.floats(-5, 5),
        st.none() | st.tuples(st.floats(-5, 0), st.floats(0, 5)),
        st.integers(0, 9),
    ),
    max_size=9,
    unique_by=lambda s: s.mediator,
)
rules = st.sampled_from(["absolute", "most_negative", "most_positive"])


def ranked(rule: str = "absolute") -> Ranking:
    return Ranking("head", [Scored(name, score) for name, score in SCORES.items()], rule)


@pytest.mark.parametrize(
    ("rule", "scores"),
    [("absolute", [-2.0, 1.0, 0.5, 0.0]), ("most_negative", [-2.0, 0.0, 0.5, 1.0]), ("most_positive", [1.0, 0.5, 0.0, -2.0])],
)
def test_the_rule_decides_the_order(rule, scores):
    assert [s.score for s in ranked(rule)] == scores


def test_the_order_is_by_size_of_the_effect_unless_said_otherwise():
    assert ranked().rule == "absolute"
    assert [s.mediator for s in Ranking("head", [Scored("b", 1.0), Scored("a", -3.0)])] == ["a", "b"]


@given(entries, rules, st.randoms())
def test_the_order_does_not_depend_on_what_came_first(given_entries, rule, random):
    shuffled = random.sample(given_entries, len(given_entries))
    assert Ranking("head", shuffled, rule).entries == Ranking("head", given_entries, rule).entries


@pytest.mark.parametrize("rule", ["absolute", "most_negative", "most_positive"])
def test_ties_are_broken_by_name(rule):
    assert [s.mediator for s in Ranking("head", [Scored("c", 1.0), Scored("a", 1.0), Scored("b", 1.0)], rule)] == ["a", "b", "c"]


def test_opposite_effects_of_one_size_tie_under_the_absolute_rule():
    assert [s.mediator for s in Ranking("head", [Scored("b", 1.0), Scored("a", -1.0), Scored("c", -1.0)])] == ["a", "b", "c"]


def test_the_given_list_is_left_as_it_was():
    given_entries = [Scored("a", 1.0), Scored("b", 2.0)]
    Ranking("head", given_entries)
    assert [s.mediator for s in given_entries] == ["a", "b"]


def test_the_top_is_the_first_of_the_order():
    ranking = ranked()
    assert [s.mediator for s in ranking.top(2)] == ["head_z.0.1", "head_z.1.0"]
    assert ranking.sites(2) == [Site("head_z", 0, 1), Site("head_z", 1, 0)]
    assert ranking.top(0) == []
    assert ranking.top(4) == ranking.entries
    assert len(ranking) == 4


@pytest.mark.parametrize("k", [-1, 5])
def test_more_than_was_ranked_cannot_be_asked_for(k):
    with pytest.raises(OutOfRange, match=f"asked for the top {k} of 4 ranked heads"):
        ranked().top(k)
    with pytest.raises(OutOfRange):
        ranked().sites(k)


def test_the_top_of_an_empty_ranking_is_empty():
    assert Ranking("head", []).top(0) == []
    with pytest.raises(OutOfRange):
        Ranking("head", []).top(1)


def test_an_unknown_rule_is_named_with_its_neighbours():
    with pytest.raises(UnknownName, match="absolute"):
        Ranking("head", [], rule="absolut")


@settings(max_examples=40)
@given(
    entries=entries,
    rule=rules,
    unit=st.text(max_size=5),
    note=st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=2),
)
def test_a_saved_ranking_is_read_back_whole(tmp_path_factory, entries, rule, unit, note):
    path = tmp_path_factory.mktemp("rankings") / "ranking.json"
    ranking = Ranking(unit, entries, rule, "prob_diff", "by hand", note)
    ranking.save(path)
    loaded = Ranking.load(path)
    assert loaded == ranking
    assert all(s.ci95 is None or isinstance(s.ci95, tuple) for s in loaded)
    first = path.read_bytes()
    loaded.save(str(path))
    assert path.read_bytes() == first


def test_a_ranking_is_read_in_its_order_even_from_a_file_that_was_reordered(tmp_path):
    path = tmp_path / "ranking.json"
    ranked().save(path)
    data = json.loads(path.read_text(encoding="utf-8"))
    data["entries"].reverse()
    path.write_text(json.dumps(data), encoding="utf-8")
    assert Ranking.load(path) == ranked()


ONE = '{"mediator": "a", "score": 1.0, "ci95": null, "n": 1}'
BROKEN = {
    "not JSON": b"{",
    "empty": b"",
    "not text": b"\xff\xfe\x00",
    "a list": b"[]",
    "null": b"null",
    "no entries": b'{"unit": "head"}',
    "no unit": f'{{"entries": [{ONE}]}}'.encode(),
    "an unknown field": b'{"unit": "head", "entries": [], "colour": "red"}',
    "an entry without a score": b'{"unit": "head", "entries": [{"mediator": "a", "ci95": null, "n": 1}]}',
    "a score that is text": ONE.replace("1.0", '"big"').join(['{"unit": "head", "entries": [', "]}"]).encode(),
    "entries that are a number": b'{"unit": "head", "entries": 3}',
    "an interval that is a number": ONE.replace("null", "3").join(['{"unit": "head", "entries": [', "]}"]).encode(),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_is_no_ranking_is_refused_by_its_path(tmp_path, what):
    path = tmp_path / "ranking.json"
    path.write_bytes(BROKEN[what])
    with pytest.raises(RunError, match=r"ranking\.json is not a saved ranking"):
        Ranking.load(path)


def test_a_ranking_file_with_an_unknown_rule_is_refused_by_its_path(tmp_path):
    path = tmp_path / "ranking.json"
    path.write_text('{"unit": "head", "entries": [], "rule": "best"}', encoding="utf-8")
    with pytest.raises(RunError, match=r"ranking\.json is not a saved ranking"):
        Ranking.load(path)


def test_a_ranking_file_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "ranking.json"
    path.write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(RunError):
        Ranking.load(path)


def test_a_missing_ranking_file_is_refused_by_its_path(tmp_path):
    with pytest.raises(RunError, match=r"none\.json is not a saved ranking"):
        Ranking.load(tmp_path / "none.json")
    with pytest.raises(RunError):
        Ranking.load(tmp_path)
