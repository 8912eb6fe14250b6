"""A page shows what it is given, as it is given: numbers in figures, and hostile text as text."""

import json
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from mediant.core.result import Measure, Result
from mediant.report import Page, Section, Strip, Table, Token, render
from mediant.report.figures import Point, heat_maps, intervals, plain, visible
from mediant.report.page import interval, number

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "</title></style><b>bold</b>",
    '" onmouseover="alert(3)',
    "' onfocus='alert(4)' autofocus='",
    "<img src=x onerror=alert(5)>",
    "<!-- ",
    "]]>",
    "&lt;b&gt; &amp;amp;",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(6)",
    "\u2028\u202e",
]
# The parts of a page that are not data.
OWN_SCRIPT = "const dark = matchMedia"


class Reader(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, its text, its scripts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        self._open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            kind, before = self.scripts[-1]
            self.scripts[-1] = (kind, before + data)
        else:
            self.texts.append(data)

    def figure(self, index: int) -> dict:
        found: dict = json.loads(next(text for kind, text in self.scripts if kind.get("id") == f"data-{index}"))
        return found


def measure(text: str = "d", value: float | None = 0.5) -> Measure:
    return Measure(value=value, n=7, ci95=None if value is None else (0.25, 0.75), definition=text, control=text, reason=text)


def result(text: str = "text") -> Result:
    return Result(
        study=text, preset=text, measures={text: measure(text), "none": measure(text, None)}, limits=[text, "second"],
        provenance={"model": text, text: {"inner": text, "list": [text, 1]}},
    )  # fmt: skip


def page(text: str) -> Page:
    """A page that carries `text` in every place that takes text."""
    table = np.array([[0.125, -0.5], [0.0, 0.25]])
    sections = [
        Section(text, text, strips=[Strip(text, [Token(text, 0.5, text, text), Token(text, -0.25), Token(text)])]),
        Section(text, text, figure=heat_maps([(text, table)], [text, text], ["0", "1"], unit=text)),
        Section(text, text, figure=intervals([Point(text, 0.5, 0.25, 0.75)], unit=text)),
        Section(text, text, table=Table([text, text], [[text, text]], text)),
        Section(text, text, table=Table([text], [[text]]), folded=True),
    ]
    return Page(text, text, result(text), sections, [(text, text)])


@pytest.fixture(scope="module")
def harmless() -> Reader:
    return Reader(render(page("harmless")))


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_hostile_text_adds_no_element_attribute_or_script(harmless: Reader, text: str):
    html = render(page(text))
    reader = Reader(html)
    assert reader.tags == harmless.tags
    assert Counter(name for name, _ in reader.attributes) == Counter(name for name, _ in harmless.attributes)
    assert [kind for kind, _ in reader.scripts] == [kind for kind, _ in harmless.scripts]
    assert "<script>alert" not in html
    assert [code for _, code in reader.scripts[0::3]] == [code for _, code in harmless.scripts[0::3]]


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_hostile_text_is_shown_as_it_is(harmless: Reader, text: str):
    reader = Reader(render(page(text)))
    # Every place shows it: as often as the harmless text, in texts and in the hover of a token.
    shown, expected = "\n".join(reader.texts), "\n".join(harmless.texts)
    assert shown.count(text) >= expected.count("harmless") - 1  # provenance lists are shown as JSON
    assert ("title", text) in reader.attributes


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_figures_travel_as_json_without_markup_and_arrive_unchanged(text: str):
    reader = Reader(render(page(text)))
    for index in (1, 2):
        raw = next(code for kind, code in reader.scripts if kind.get("id") == f"data-{index}")
        assert "<" not in raw
    ticks = reader.figure(1)["layout"]["xaxis"]["ticktext"]
    # Plotly reads markup in labels, so these stay escaped once more.
    assert ticks == [plain(visible(text))] * 2
    assert "<" not in ticks[0]
    assert reader.figure(2)["layout"]["yaxis"]["ticktext"] == [plain(text)]


def test_the_page_forbids_every_connection_and_names_no_address(harmless: Reader):
    policy = dict(harmless.attributes)["content"]
    contents = [value for name, value in harmless.attributes if name == "content"]
    policy = next(value for value in contents if value and "default-src" in value)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    links = [value for name, value in harmless.attributes if name in ("src", "href", "action", "data")]
    assert links == ["data:,"]


def test_a_page_without_figures_carries_no_script():
    html = render(Page("t", "l", result(), [Section("s", "t", table=Table(["h"], [["c"]]))]))
    assert Reader(html).scripts == []
    assert len(html) < 20_000


def test_every_figure_has_its_place_and_its_data(harmless: Reader):
    places = [value for name, value in harmless.attributes if name == "id" and value and value.startswith("figure-")]
    data = [kind["id"] for kind, _ in harmless.scripts if "id" in kind]
    assert (places, data) == (["figure-1", "figure-2"], ["data-1", "data-2"])
    assert harmless.scripts[-1][1].lstrip().startswith(OWN_SCRIPT)


def test_measures_limits_and_provenance_are_on_the_page():
    found = Result(
        study="s", preset="p", measures={"one": measure("first", 0.123456), "two": measure("second", None)}, limits=["limit one"],
        provenance={"model": "m", "versions": {"torch": "2.0"}, "config": {"n": 3, "metric": None}},
    )  # fmt: skip
    texts = [text.strip() for text in Reader(render(Page("title", "lead", found, []))).texts if text.strip()]
    joined = "|".join(texts)
    assert "one|0.123|[0.250, 0.750]|7|first" in joined
    assert "two|-|7|second" in joined
    assert "limit one" in texts
    for name, value in (("model", "m"), ("versions.torch", "2.0"), ("config.n", "3"), ("config.metric", "null")):
        assert f"{name}|{value}" in joined


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0, "0.0000"), (0.0999, "0.0999"), (0.1, "0.100"), (-3.14159, "-3.142")],
)
def test_a_number_has_as_many_digits_as_a_reader_needs(value: float | None, text: str):
    assert number(value) == text


def test_an_interval_is_shown_or_left_out():
    assert interval(measure()) == "[0.250, 0.750]"
    assert interval(measure("r", None)) == ""


def test_a_heat_map_holds_the_numbers_given():
    first, second = np.array([[1.0, -2.0, 0.5], [0.0, 0.25, -0.125]]), np.array([[0.1, 0.2, 0.3], [0.4, -0.4, 0.0]])
    figure = heat_maps([("left", first), ("right", second)], [" a", "b", "b"], ["0", "1"], unit="nats").to_dict()
    assert [np.asarray(trace["z"]).tolist() for trace in figure["data"]] == [first.tolist(), second.tolist()]
    assert [list(trace["x"]) for trace in figure["data"]] == [[0, 1, 2]] * 2
    assert [list(trace["y"]) for trace in figure["data"]] == [[0, 1]] * 2
    assert list(figure["layout"]["yaxis"]["ticktext"]) == ["0", "1"]
    assert [figure["layout"][axis]["ticktext"] for axis in ("xaxis", "xaxis2")] == [["·a", "b", "b"]] * 2
    assert [title["text"] for title in figure["layout"]["annotations"]] == ["left", "right"]


def test_the_colours_of_a_heat_map_are_centred_at_zero_and_reach_its_largest_number():
    tables = [("a", np.array([[1.0, -2.0]])), ("b", np.array([[0.5, 0.25]])), ("zero", np.zeros((1, 2)))]
    figure = heat_maps(tables, ["x", "y"], ["0"], unit="u").to_dict()
    axes = [figure["layout"][trace["coloraxis"]] for trace in figure["data"]]
    assert [(axis["cmin"], axis["cmax"]) for axis in axes] == [(-2.0, 2.0), (-0.5, 0.5), (-1.0, 1.0)]
    assert [axis["colorbar"]["tickvals"] for axis in axes] == [[-2.0, 0, 2.0], [-0.5, 0, 0.5], [-1.0, 0, 1.0]]
    assert [trace["coloraxis"] for trace in figure["data"]] == ["coloraxis", "coloraxis2", "coloraxis3"]


def test_the_hover_of_a_cell_says_where_it_is_and_its_number():
    table = np.array([[1.0, -2.0], [0.5, 0.25]])
    figure = heat_maps([("left", table)], [" a", "b"], ["3", "7"], unit="nats", row_title="layer").to_dict()
    hover = np.asarray(figure["data"][0]["text"]).tolist()
    assert hover[0] == ["left<br>layer 3, ·a<br>+1.000 nats", "left<br>layer 3, b<br>-2.000 nats"]
    assert hover[1][1] == "left<br>layer 7, b<br>+0.250 nats"


def test_the_rows_of_a_heat_map_are_text_too():
    figure = heat_maps([("n", np.zeros((1, 1)))], ["x"], ["<b>r</b>"], unit="u", row_title="<b>t</b>").to_dict()
    shown = [*figure["layout"]["yaxis"]["ticktext"], figure["layout"]["yaxis"]["title"]["text"], figure["data"][0]["text"][0][0]]
    assert [text for text in shown if "<b>" in text] == []


def test_a_tall_heat_map_names_every_nth_row_where_it_is():
    rows = [str(100 + i) for i in range(33)]
    axis = heat_maps([("n", np.zeros((33, 1)))], ["x"], rows, unit="u").to_dict()["layout"]["yaxis"]
    assert 8 <= len(axis["tickvals"]) <= 20
    assert list(axis["ticktext"]) == [rows[i] for i in axis["tickvals"]]


def test_a_table_that_does_not_fit_its_labels_is_refused():
    with pytest.raises(ValueError, match="zip"):
        heat_maps([("n", np.zeros((2, 2)))], ["x"], ["0", "1"], unit="u")


def test_intervals_hold_estimates_and_both_ends():
    points = [Point("a", 1.0, 0.5, 2.0, "#111111"), Point("b", -1.0, -1.25, -1.0)]
    figure = intervals(points, unit="nats").to_dict()
    (trace,) = figure["data"]
    assert (list(trace["x"]), list(trace["y"])) == ([1.0, -1.0], [0, 1])
    assert list(figure["layout"]["yaxis"]["ticktext"]) == ["a", "b"]
    error = trace["error_x"]
    assert (list(error["array"]), list(error["arrayminus"]), error["symmetric"]) == ([1.0, 0.0], [0.5, 0.25], False)
    assert list(trace["hovertext"]) == ["a: +1.000 [+0.500, +2.000]", "b: -1.000 [-1.250, -1.000]"]
    assert trace["marker"]["color"][0] == "#111111"
    assert figure["layout"]["yaxis"]["autorange"] == "reversed"
    assert figure["layout"]["xaxis"]["title"]["text"] == "nats"


def test_two_estimates_of_one_name_are_two_lines():
    figure = intervals([Point("a", 1.0, 0.5, 2.0), Point("a", 3.0, 2.5, 4.0)], unit="u").to_dict()
    assert len(set(figure["data"][0]["y"])) == 2


def test_spaces_and_line_breaks_of_a_token_are_made_visible():
    assert [visible(token) for token in (" the", "the", "\n", " \n", "a b", "")] == ["·the", "the", "⏎", "·⏎", "a b", ""]


def test_a_token_is_shaded_by_its_sign_and_strength():
    strip = Strip("clean", [Token("up", 0.5), Token("down", -0.25), Token("none")])
    html = render(Page("t", "l", result(), [Section("s", "t", strips=[strip])]))
    assert 'style="background: rgba(var(--help), 0.500)">up<' in html
    assert 'style="background: rgba(var(--harm), 0.250)">down<' in html
    assert '<span class="t" title="">none<' in html


def test_the_same_page_gives_the_same_bytes():
    assert render(page("x")) == render(page("x"))


def test_no_figure_can_end_its_script_whatever_its_library_writes():
    hostile = {"data": [{"name": "</script><script>alert(1)</script><!--"}], "layout": {}}
    figure = SimpleNamespace(to_json=lambda: json.dumps(hostile))
    reader = Reader(render(Page("t", "l", result(), [Section("s", "t", figure=figure)])))  # type: ignore[arg-type]
    assert reader.figure(0) == hostile
    assert len(reader.scripts) == 3
