"""The pictures of the page: the matrix, the curves behind it, the report cards, and the controls."""

from collections.abc import Mapping, Sequence

import numpy as np

from mediant.core.result import Measure, Result
from mediant.measures.effects import cluster_labels
from mediant.measures.intervals import Array, estimate_ratio
from mediant.report.figures import ACCENT, MUTED, SECOND, THIRD, Line, Point, curves, intervals, share_maps
from mediant.report.page import Page, Section, Table, number
from mediant.studies.mediation.measures import IIA, WORSE, Tried, beats, leading, plural, verdicts
from mediant.studies.mediation.method import Entry
from mediant.studies.mediation.searches import FAMILIES
from mediant.studies.mediation.study import Findings
from mediant.subject.open_model import OpenModel

COLOURS = (ACCENT, SECOND, THIRD, "#a64ca6", "#c0392b", "#5d8aa8", "#7f8c3d", "#b8860b", "#4b4b8f", MUTED)
COLUMNS = {
    "patching": "patching", "attribution": "attribution", "integrated": "integrated gradients", "learning": "learning",
    "probing": "probing", "observing": "observing",
}  # fmt: skip


def page(result: Result, found: Findings, subject: OpenModel) -> Page:
    """The whole page."""
    measures, entries = result.measures, found.entries
    ran = [entry for entry in entries if not entry.reason]
    won = [entry for entry in ran if beats(measures, entry)]
    data = found.ground.data
    headline = [
        (f"{len(ran)} of {len(entries)}", "searches run"),
        (f"{len(won)} of {len(ran)}", "better than random units"),
        (str(len(data.judged)), "pairs judged on"),
        (str(found.ground.site), "site of the last rows"),
    ]
    sections = [
        *found.world.shown(found.ground, found.entries, found.tried),
        _matrix(found, measures),
        _beside(found, measures),
        _controls(found, measures),
        *([_by_place(found)] if "turned" in found.by_place else []),
        *([_das(measures)] if "das_iia" in measures else []),
        *(_curves(found, kind) for kind in dict.fromkeys(entry.kind for entry in ran)),
        _cards(entries, measures),
        _units(ran),
    ]
    lead = (
        f"{subject.name} on {data.description}. Every row is a kind of mediator, every column a way of searching; each cell was "
        f"run on the same {len(data.discovery)} pairs and judged on {len(data.judged)} others by one question: how much of "
        f"{found.world.outcome} comes with the counterfactual's values, when {found.ground.config.share:.0%} of the units have "
        "them? " + " ".join(said for said in verdicts(measures, entries) if not said.startswith(WORSE))
    )
    return Page("Mediators and searches", lead, result, sections, headline)


def _best(found: Findings, measures: Mapping[str, Measure], what: str) -> Array:
    """(kind, family): the measure of each cell's leading search; NaN where none was run."""
    entries, config = found.entries, found.ground.config
    kinds = list(dict.fromkeys(entry.kind for entry in entries))
    table = np.full((len(kinds), len(FAMILIES)), np.nan)
    for i, kind in enumerate(kinds):
        for j, family in enumerate(FAMILIES):
            mine = [e for e in entries if e.kind == kind and e.search.family == family and not e.reason]
            if mine:
                value = measures[f"{leading(mine, found.tried, config).name}_{what}"].value
                table[i, j] = np.nan if value is None else value
    return table


def _matrix(found: Findings, measures: Mapping[str, Measure]) -> Section:
    kinds = list(dict.fromkeys(entry.kind for entry in found.entries))
    table = _best(found, measures, "faithfulness")
    figure = share_maps(
        [("share of the total effect", np.clip(table, 0, None))], list(COLUMNS.values()), kinds, row_title="", written=True
    )
    text = (
        "Share of the total effect that comes with the counterfactual's values of the units found; where a cell has several "
        "searches, of the most faithful on validation pairs. Empty cells are explained at the end of the page. Coarse mediators "
        "hand on everything: see below what else."
    )
    return Section("The matrix", text, figure=figure)


def _beside(found: Findings, measures: Mapping[str, Measure]) -> Section:
    kinds = list(dict.fromkeys(entry.kind for entry in found.entries))
    tables = []
    for what, title in (("leak", "handed on besides"), ("stability", "same in both halves")):
        table = _best(found, measures, what)
        if not np.isnan(table).all():
            tables.append((title, np.clip(table, 0, 1.2)))
    text = (
        "Left: the same exchange between two that agree in what is asked about and differ in the rest; a mediator of that "
        "alone would hand on nothing. Right: how far the search finds the same units on either half of its pairs."
    )
    short = ["patch", "attr.", "integ.", "learn", "probe", "obs."]
    return Section("Selectivity and stability", text, figure=share_maps(tables, short, kinds, row_title="", written=True))


def _controls(found: Findings, measures: Mapping[str, Measure]) -> Section:
    points = []
    for kind in dict.fromkeys(entry.kind for entry in found.entries):
        for entry in found.entries:
            if entry.kind == kind and not entry.reason:
                one = measures[f"{entry.name}_faithfulness"]
                points.append(_point(f"{kind}: {entry.search.name}", one, ACCENT if beats(measures, entry) else SECOND))
        points.append(_point(f"{kind}: as many at random", measures[f"{kind}_random_faithfulness"], MUTED))
    lost = [said for said in verdicts(measures, found.entries) if said.startswith(WORSE)]
    text = " ".join(["Every search with its 95 % interval, beside as many units of its kind drawn at random (grey).", *lost])
    return Section("Better than random?", text, figure=intervals(points, unit="share of the total effect"))


def _point(label: str, measure: Measure, colour: str) -> Point:
    assert measure.value is not None  # noqa: S101 - only what was run is shown
    low, high = measure.ci95 or (measure.value, measure.value)
    return Point(label, measure.value, low, high, colour)


def _by_place(found: Findings) -> Section:
    spans, turned = found.by_place["spans"], found.by_place["turned"]
    tables = [(name, np.asarray(rows).mean(-1)) for name, rows in turned.items()]
    layers = [str(layer) for layer in range(len(tables[0][1]))]
    text = (
        "Share of the judged pairs whose answer becomes the counterfactual's when one layer's whole stream has its values at one "
        "span: interchange accuracy of a causal model with one variable. Right: the same architecture with random weights, which "
        "answers as a coin does whatever it is given."
    )
    return Section("Where the variable is", text, figure=share_maps(tables, spans, layers, row_title="layer"), folded=True)


def _das(measures: Mapping[str, Measure]) -> Section:
    names = {
        "das_iia": "DAS", "das_iia_heldout": "DAS, held-out words", "das_iia_shuffled_answers": "towards shuffled answers",
        "das_iia_random_weights": "random weights", "das_iia_over_random_weights": "DAS less random weights, pair by pair",
    }  # fmt: skip
    colours = {"das_iia": ACCENT, "das_iia_heldout": ACCENT, "das_iia_over_random_weights": SECOND}
    points = [_point(names[name], measures[name], colours.get(name, MUTED)) for name in IIA if name in measures]
    text = (
        "Interchange accuracy of learned subspaces of one size. A rotation can make structure where there is none: the same "
        "search on random weights, and towards answers that mean nothing, shows how much."
    )
    return Section("What DAS finds where there is nothing", text, figure=intervals(points, unit="share of answers turned"))


def _curves(found: Findings, kind: str) -> Section:
    tried: Tried = found.tried
    mine = [entry for entry in found.entries if entry.kind == kind and not entry.reason]
    lines = []
    for entry, colour in zip(mine, COLOURS, strict=False):
        ladder, table = tried.ladders[entry.name], tried.curves[entry.name]
        clusters = cluster_labels([pair.template for pair in found.ground.data.validation])
        points = [estimate_ratio(row, tried.total["validation"], clusters=clusters, draws=300) for row in table]
        low, high = ([p.ci95[end] for p in points] for end in (0, 1))
        lines.append(Line(entry.search.name, ladder, [p.value for p in points], low, high, colour))
    title, level = "dimensions" if kind == "subspace" else plural(kind), found.ground.config.enough
    figure = curves(lines, x_title=title, y_title="share of the total effect", level=level, unit=kind)
    text = f"How much comes with the best so many {plural(kind)}, on {len(found.ground.data.validation)} pairs of their own."
    return Section(plural(kind).capitalize(), text, figure=figure, folded=True)


def _cards(entries: Sequence[Entry], measures: Mapping[str, Measure]) -> Section:
    header = [
        "mediator", "search", "faithful", "95 %", "random", "held out", "handed on besides", "disturbs (nats)",
        "units for 80 %", "stable", "forwards", "backwards",
    ]  # fmt: skip
    rows = []
    for entry in entries:
        if entry.reason:
            rows.append([entry.kind, entry.search.name, "not run", entry.reason[:80], *[""] * 8])
            continue
        of = {what: measures[f"{entry.name}_{what}"] for what in CARD}
        low, high = of["faithfulness"].ci95 or (0.0, 0.0)
        rows.append(
            [
                entry.kind, entry.search.name, number(of["faithfulness"].value), f"{low:.2f} to {high:.2f}",
                number(measures[f"{entry.kind}_random_faithfulness"].value), number(of["generality"].value),
                number(of["leak"].value), number(of["disturbance"].value), _percent(of["sparsity"].value),
                number(of["stability"].value), f"{entry.forwards:,.0f}", f"{entry.backwards:,.0f}",
            ]
        )  # fmt: skip
    text = (
        "One line per search: what it found, what else that does, how few units suffice, what finding them cost in prompts run."
    )
    return Section("Report cards", text, table=Table(header, rows))


CARD = ("faithfulness", "generality", "leak", "disturbance", "sparsity", "stability")


def _percent(value: float | None) -> str:
    return "more" if value is None else f"{100 * value:.2g} %"


def _units(ran: Sequence[Entry]) -> Section:
    rows = []
    for entry in ran:
        assert entry.among is not None  # noqa: S101 - it was run
        rows.append([entry.kind, entry.search.name, ", ".join(entry.among.label(unit) for unit in entry.order[:6])])
    text = "The first units of every search."
    return Section("What was found", text, table=Table(["mediator", "search", "first units"], rows), folded=True)
