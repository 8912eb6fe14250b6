"""The page of a run in a real browser: drawn, readable in any light and width, silent, and deaf to what its data say."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import trained
from conftest import Arguments
from mediant.cli import main

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.browser
CHROMIUM = Path("/usr/bin/chromium")
QUIET = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
DRAWN = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is missing"
        pytest.fail(reason) if os.environ.get("MEDIANT_REQUIRE_BROWSER") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(CHROMIUM), args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def page_file(arguments: Arguments, agreement: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run whose model, file, spans, templates, ids and prompts all carry markup."""
    folder = tmp_path_factory.mktemp("hostile")
    model = folder / "<img src=x onerror=alert(7)>"
    model.symlink_to(agreement, target_is_directory=True)
    lines = [
        {
            **line,
            "id": f"<i>{i}</i>",
            "template": f"<b>{line['template']}</b>",
            "spans": {f"<u>{name}": piece for name, piece in line["spans"].items()},
        }
        for i, line in enumerate(trained.pair_lines(hostile=True))
    ]
    task = trained.write_lines(folder / "<s>pairs.jsonl", lines)
    assert main(arguments(folder / "run", model=model, task=task)) == 0
    return folder / "run" / "index.html"


@dataclass
class Seen:
    """An open page and everything it said or asked for."""

    page: "Page"
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


Open = Callable[..., AbstractContextManager[Seen]]


@pytest.fixture(scope="module")
def opened(browser: "Browser", page_file: Path) -> Open:
    """`with opened(scheme="dark", width=390) as seen:` the drawn page."""

    @contextmanager
    def open_page(scheme: str = "light", width: int = 1200, file: Path = page_file) -> Iterator[Seen]:
        context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
        seen = Seen(context.new_page())
        seen.page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
        seen.page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
        seen.page.on("dialog", lambda dialog: (seen.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        seen.page.on("request", lambda request: seen.asked.append(request.url))
        seen.page.goto(file.as_uri())
        seen.page.wait_for_selector("body[data-drawn=yes]", timeout=DRAWN)
        yield seen
        context.close()

    return open_page


LOOKS = [("light", 1200), ("dark", 1200), ("light", 390), ("dark", 390)]


@pytest.mark.parametrize(("scheme", "width"), LOOKS, ids=str)
def test_the_page_draws_every_figure_in_silence_and_asks_for_nothing_else(opened: Open, page_file: Path, scheme: str, width: int):
    with opened(scheme, width) as seen:
        figures = seen.page.locator(".figure")
        assert figures.count() == 4
        assert [figures.nth(i).locator("svg.main-svg").count() > 0 for i in range(4)] == [True] * 4
        assert width < 1200 or seen.page.evaluate("document.documentElement.scrollWidth") <= width
        assert seen.asked == [page_file.as_uri()]
        assert seen.said == []


def test_the_page_of_long_words_is_no_wider_than_a_phone(opened: Open):
    with opened("light", 390) as seen:
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 390


def luminance(colour: str) -> float:
    red, green, blue = (float(part) for part in colour[colour.index("(") + 1 : colour.index(")")].split(",")[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_the_ground_on_the_page_and_in_figures(opened: Open, scheme: str):
    with opened(scheme) as seen:
        ground, ink = seen.page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        ticks = seen.page.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
        assert (luminance(ground) < 60) is (scheme == "dark")
        assert abs(luminance(ground) - luminance(ink)) > 150
        assert abs(luminance(ground) - luminance(ticks)) > 150


def test_a_change_of_light_redraws_the_figures(opened: Open):
    with opened("light") as seen:
        from playwright.sync_api import expect

        tick = seen.page.locator(".xtick text").first
        before = tick.evaluate("e => getComputedStyle(e).fill")
        seen.page.emulate_media(color_scheme="dark")
        expect(tick).not_to_have_css("fill", before, timeout=DRAWN)
        assert seen.said == []


def test_hostile_words_are_shown_as_text_and_do_nothing(opened: Open):
    with opened() as seen:
        text = seen.page.inner_text("body")
        shown = [word for word in trained.HOSTILE if word in text]
        assert "<script>alert(1)</script>" in shown
        assert "<img src=x onerror=alert(7)>" in text
        assert "<s>pairs" in text
        assert seen.page.locator("main img, main b:has-text('bold'), main i, main s, main u, main script").count() == 0
        assert seen.page.evaluate("document.querySelectorAll('script').length") == 2 + 4
        assert (
            seen.page.evaluate(
                "[...document.querySelectorAll('*')].filter(e => e.getAttributeNames().some(n => n.startsWith('on'))).length"
            )
            == 0
        )
        seen.page.locator("summary").first.click()
        rows = seen.page.inner_text("details[open]")
        assert len([word for word in trained.HOSTILE if word in rows]) >= 3
        assert "<i>" in rows
        assert seen.said == []


def test_hostile_words_are_text_in_figures_too(opened: Open):
    with opened() as seen:
        ticks = seen.page.evaluate("[...document.querySelectorAll('#figure-1 .xtick text')].map(e => e.textContent)")
        assert [tick for tick in ticks if any(word in tick for word in trained.HOSTILE)] != []
        assert [tick for tick in ticks if "[<u>subject]" in tick] != []


def test_a_hover_over_a_heat_map_says_layer_token_and_effect(opened: Open, page_file: Path):
    with opened() as seen:
        figure = seen.page.locator("#figure-2")
        figure.scroll_into_view_if_needed()
        map_of_heads = figure.locator(".heatmaplayer image, .heatmaplayer .hm").first
        box = map_of_heads.bounding_box()
        assert box is not None
        seen.page.mouse.move(box["x"] + box["width"] / 8, box["y"] + box["height"] / 6)
        hover = figure.locator(".hoverlayer .hovertext")
        hover.first.wait_for(timeout=DRAWN)
        assert "head 0" in (hover.first.text_content() or "")
        assert "layer " in (hover.first.text_content() or "")
        assert seen.said == []


def test_the_figures_hold_the_numbers_of_the_run(opened: Open, page_file: Path):
    """The heads of the page are the means of the stored items."""
    stored = [json.loads(line) for line in (page_file.parent / "items.jsonl").read_text().splitlines()]
    with opened() as seen:
        drawn = seen.page.evaluate("document.getElementById('figure-2').data[0].z")
    for layer in range(3):
        parts = [record["effects"] for record in stored if record["key"].startswith(f"heads/{layer:02d}/")]
        heads = [[value for part in parts for value in part[head]] for head in range(4)]
        assert drawn[layer] == pytest.approx([sum(values) / len(values) for values in heads])


def test_the_table_of_pairs_holds_the_stored_numbers_of_each_pair(opened: Open, page_file: Path):
    stored = [json.loads(line) for line in (page_file.parent / "items.jsonl").read_text().splitlines()]
    parts = [record for stage in ("confirm/", "heldout/") for record in stored if record["key"].startswith(stage)]
    expected = [
        [f"{part['before'][i]:+.2f}", f"{part['total'][i]:+.2f}", f"{part['effects']['top'][0][i]:+.2f}"]
        for part in parts
        for i in range(len(part["before"]))
    ]
    with opened() as seen:
        cells = seen.page.evaluate(
            "[...document.querySelectorAll('section:has(summary) table')][0].querySelectorAll('tr').values()"
            ".map(row => [...row.children].map(cell => cell.textContent)).toArray()"
        )
    assert len(expected) == 36
    assert [row[4:7] for row in cells[1:]] == expected
    assert len({row[0] for row in cells[1:]}) == 36
    for row in cells[1:]:
        assert row[3] == ("are" if any(f" {plural} " in row[2] for _, plural in trained.NOUNS) else "is")


def section(page: "Page", title: str) -> "Locator":
    return page.locator("section", has=page.locator("h2", has_text=title))


def test_the_headline_is_the_result(opened: Open, page_file: Path):
    measures = json.loads((page_file.parent / "result.json").read_text())["measures"]
    with opened() as seen:
        boxes = seen.page.locator(".headline div b").all_inner_texts()
        table = seen.page.locator("section", has=seen.page.locator("h2", has_text="Measures")).inner_text()
        limits = (
            seen.page.locator("section", has=seen.page.locator("h2", has_text="What this does not show")).locator("li").count()
        )
    assert boxes[0] == f"{measures['accuracy']['value']:.1%}"
    assert boxes[2] == f"{measures['top_heads_share']['value']:.0%}"
    assert [name for name in measures if name not in table] == []
    assert limits == 5


def test_without_a_browser_the_page_can_be_required(monkeypatch: pytest.MonkeyPatch):
    """The guard above fails instead of skipping when the environment asks for it."""
    guard = browser.__wrapped__ if hasattr(browser, "__wrapped__") else browser.__pytest_wrapped__.obj
    monkeypatch.setattr("test_page.CHROMIUM", Path("/nowhere/chromium"))
    monkeypatch.setenv("MEDIANT_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="is missing"):
        next(guard())
    monkeypatch.delenv("MEDIANT_REQUIRE_BROWSER")
    with pytest.raises(pytest.skip.Exception, match="is missing"):
        next(guard())
