"""The demo used in a browser as a new user would: click, box, upload, re-target while it speaks, and what goes wrong."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from test_page import browser  # noqa: F401 - a fixture

from conftest import Mediant
from eyes import noise

pytestmark = pytest.mark.browser
SERVER = Path(__file__).parents[1] / "demo_server.py"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The page on a tiny random model, served by a process of its own until the tests are done."""
    server = subprocess.Popen([sys.executable, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    with server:
        yield server.stdout.readline().strip()
        server.stdin.close()
        assert server.wait(30) == 0


@pytest.fixture
def page(browser, address: str):  # noqa: F811
    context = browser.new_context(viewport={"width": 1150, "height": 1000})
    opened = context.new_page()
    opened.asked = []
    opened.on("request", lambda request: opened.asked.append(request.url))
    opened.goto(address)
    opened.locator("#stage img").first.wait_for(timeout=30_000)
    yield opened
    context.close()


def click(page, x: float, y: float = 0.5) -> None:
    """Click the picture at shares of its width and height."""
    box = page.locator("#stage img").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] * x, box["y"] + box["height"] * y)


def status(page, pattern: str, line: str = "#status") -> str:
    """Wait for a line to say something."""
    line = page.locator(line)
    line.get_by_text(re.compile(pattern)).first.wait_for(timeout=20_000)
    return line.inner_text()


def test_a_click_marks_a_panel_and_the_model_speaks(page, address: str):
    click(page, 0.75)
    assert "Looking at panel 2" in status(page, "Looking at panel")
    page.locator("#describe").click()
    status(page, "Done", "#speaking")
    assert page.locator("#said").inner_text().strip()
    assert "rgb(217, 130, 43)" in page.locator("#said span").first.evaluate("e => getComputedStyle(e).color")
    assert {url.split("/")[2] for url in page.asked if url.startswith("http")} == {address.split("/")[2]}


def test_a_click_while_it_speaks_turns_the_heads(page):
    click(page, 0.25)
    status(page, "Looking at panel 1")
    page.locator("#question input").fill("what happens in the third panel ?")
    page.keyboard.press("Enter")
    page.locator("#describe").click()
    status(page, "Speaking", "#speaking")
    click(page, 0.75)
    status(page, "Looking at panel 2")
    page.locator("#loose").click()
    status(page, "where they will")
    # What the description goes on to say must not take the place of it.
    status(page, "Done", "#speaking")
    status(page, "where they will")


def test_a_stopped_description_says_that_it_was_stopped(page):
    page.locator("#describe").click()
    status(page, "Speaking", "#speaking")
    page.locator("#stop").click()
    status(page, "Stopped|Done", "#speaking")


def test_a_box_is_two_clicks_and_an_empty_one_is_said(page):
    page.locator("#mark").get_by_text("box").click()
    click(page, 0.3, 0.2)
    status(page, "opposite corner")
    click(page, 0.6, 0.9)
    assert re.search(r"Looking at the box: \d+ image tokens", status(page, "Looking at the box"))
    click(page, 0.5, 0.5)
    status(page, "opposite corner")
    click(page, 0.5, 0.5)
    assert "That did not work" in status(page, "did not work")


def upload(page, path: Path) -> None:
    with page.expect_file_chooser() as chosen:
        page.locator("#upload").click()
    chosen.value.set_files(str(path))


def test_pictures_of_her_own(page, tmp_path: Path):
    good, huge, broken, thin = (tmp_path / name for name in ("good.png", "huge.png", "broken.png", "thin.png"))
    Image.fromarray(noise(60, 90)).save(good)
    Image.new("RGB", (9000, 9000), (10, 200, 30)).save(huge)
    broken.write_bytes(b"<script>alert(1)</script>")
    Image.new("RGB", (900, 1)).save(thin)
    upload(page, good)
    status(page, "Your picture")
    click(page, 0.25)
    status(page, "Looking at panel 1")
    upload(page, broken)
    assert "not an image that can be read" in status(page, "did not work")
    upload(page, huge)
    assert "more than 64,000,000 in all" in status(page, "9000 x 9000")
    upload(page, thin)
    assert "refuses images of 900 x 1" in status(page, "900 x 1")
    # The picture from before is still there to be looked at.
    click(page, 0.75)
    status(page, "Looking at panel 2")


def test_a_study_without_a_demo_says_which_have_one(mediant: Mediant):
    mediant("demo", "activation-patching").refuses("has no demo", "gaze-heads")
    mediant("demo", "gaze").refuses("unknown study", "gaze-heads")
