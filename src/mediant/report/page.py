"""One self-contained HTML page per run: sections of text, tables and figures, in light and dark, without a network.

    page = Page(title, lead, sections=[Section("Where", "caption", figure=heat_maps(...))], result=result)
    folder.write("index.html", render(page))

Everything that came from a model or a user is escaped by the template; figures travel as JSON in which no `<`
survives, so nothing in the data can end a script. A content security policy forbids any connection.
"""

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mediant.core.result import Measure, Result

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from jinja2 import Environment
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Token:
    """A token of a strip: text, strength in [-1, 1] for its shade, the span it belongs to, and a hover text."""

    text: str
    shade: float = 0.0
    span: str = ""
    hover: str = ""


@dataclass(frozen=True)
class Strip:
    """A line of tokens with a label before it."""

    label: str
    tokens: Sequence[Token]


@dataclass(frozen=True)
class Framed:
    """An image with a frame around a box of it, and lines of text below.

    Attributes:
        pixels: (height, width, 3) of uint8.
        box: left, top, right, bottom in pixels; None for no frame.
        right: whether what the text says is right, wrong, or neither.
    """

    pixels: "npt.NDArray[np.uint8]"
    text: str = ""
    box: tuple[float, float, float, float] | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Table:
    """A plain table; cells are escaped."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Grid:
    """Small images in rows with a label each, all rows of one length; an image's text is shown when it is pointed at."""

    rows: Sequence[tuple[str, Sequence[Framed]]]


@dataclass(frozen=True)
class Section:
    """One part of a page: heading, what it shows, and strips, images, a figure or a table."""

    title: str
    text: str
    strips: Sequence[Strip] = ()
    figure: "Figure | None" = None
    table: Table | None = None
    folded: bool = False
    images: Sequence[Framed] = ()
    grid: Grid | None = None


@dataclass(frozen=True)
class Page:
    """A whole page."""

    title: str
    lead: str
    result: Result
    sections: Sequence[Section]
    headline: Sequence[tuple[str, str]] = field(default_factory=tuple)


def render(page: Page) -> str:
    """The page as one HTML document."""
    template = _environment().get_template("page.html.j2")
    figures = [(i, _json(s.figure)) for i, s in enumerate(page.sections) if s.figure is not None]
    return template.render(
        page=page, figures=figures, plotly=_plotly() if figures else "", provenance=_lines(page.result.provenance)
    )


def number(value: float | None) -> str:
    """A value with as many digits as a reader needs."""
    if value is None:
        return "-"
    return f"{value:.4f}" if abs(value) < 0.1 else f"{value:.3f}"


def interval(measure: Measure) -> str:
    """The 95 % interval of a measure."""
    return "" if measure.ci95 is None else f"[{number(measure.ci95[0])}, {number(measure.ci95[1])}]"


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mediant.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "interval": interval, "uri": _uri, "frame": _frame}
    return environment


@cache
def _plotly() -> str:
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def _uri(image: Framed) -> str:
    """The image as a data URI; small ones are enlarged by whole pixels, so that the browser need not smooth them."""
    from PIL import Image

    height, width = image.pixels.shape[:2]
    times = max(1, min(3, 900 // width))
    made = Image.fromarray(image.pixels).resize((width * times, height * times), Image.Resampling.NEAREST)
    content = io.BytesIO()
    made.save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def _frame(image: Framed) -> str:
    """Style of the frame around the box, in shares of the image, so that it scales with it."""
    if image.box is None:
        return "display: none"
    height, width = image.pixels.shape[:2]
    left, top, right, bottom = image.box
    sides = {"left": left / width, "top": top / height, "width": (right - left) / width, "height": (bottom - top) / height}
    return "; ".join(f"{side}: {share:.4%}" for side, share in sides.items())


def _json(figure: "Figure") -> str:
    return str(figure.to_json()).replace("<", "\\u003c")


def _lines(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    for name, value in data.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{name}.")
        else:
            lines.append((f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value)))
    return lines
