"""One self-contained HTML page per run: sections of text, tables and figures, in light and dark, without a network.

    page = Page(title, lead, sections=[Section("Where", "caption", figure=heat_maps(...))], result=result)
    folder.write("index.html", render(page))

Everything that came from a model or a user is escaped by the template; figures travel as JSON in which no `<`
survives, so nothing in the data can end a script. A content security policy forbids any connection.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from mediant.core.result import Measure, Result

if TYPE_CHECKING:
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
class Table:
    """A plain table; cells are escaped."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One part of a page: heading, what it shows, and strips, a figure or a table."""

    title: str
    text: str
    strips: Sequence[Strip] = ()
    figure: "Figure | None" = None
    table: Table | None = None
    folded: bool = False


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
    environment.filters |= {"number": number, "interval": interval}
    return environment


@cache
def _plotly() -> str:
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


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
