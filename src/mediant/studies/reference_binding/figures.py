"""The page of the study: grids of pictures, the flow between token groups, curves over blocks, padding against instruction."""

from collections.abc import Mapping, Sequence

import numpy as np

from mediant.core.result import Measure, Result
from mediant.measures.intervals import wilson
from mediant.report.figures import ACCENT, MUTED, SECOND, THIRD, Line, Point, curves, intervals, share_maps
from mediant.report.flow_figure import flows
from mediant.report.page import Framed, Grid, Page, Section, Table, number
from mediant.studies.reference_binding.config import TITLE
from mediant.studies.reference_binding.experiment import Findings
from mediant.studies.reference_binding.measures import PUBLISHED
from mediant.studies.reference_binding.method import FLOWS, GROUPS
from mediant.studies.reference_binding.study import AllFindings
from mediant.studies.reference_binding.verdicts import PROPERTIES
from mediant.subject.generator import ImageGenerator
from mediant.tasks.requests import Request

SHOWN = {
    "untouched": "untouched", "ref_to_text": "reference hidden from text", "ref_to_image": "reference hidden from picture",
    "nothing of it": "reference hidden from both", "lens text": "lens: its text in an empty run",
    "lens {padding}": "lens: its padding alone", "lens instruction": "lens: its instruction alone",
}  # fmt: skip
PAIRS = {
    "pair untouched": "untouched", "patched text": "text of the other run", "patched {padding}": "padding of the other run",
    "patched instruction": "instruction of the other run",
}  # fmt: skip
WHO = {"": "natural", "_planted": "planted"}


def page(result: Result, found: AllFindings, subject: ImageGenerator) -> Page:
    """Compose the page."""
    m = result.measures
    lead = (
        f"{subject.name} drew {found.config.n} pictures for each of three properties of a reference: its colour, its style, and "
        "who is in it. Attention from the reference was cut, text activations were put into empty runs and swapped between runs, "
        "and what was left of the property was judged."
    )
    headline = [
        (_percent(m[f"knockout_ref_to_{end}_{name}"]), f"lose {name} when the reference is hidden from the {words}")
        for name in found.config.properties
        for end, words in (("text", "text"), ("image", "picture"))
    ]
    names = found.config.properties
    sections = [_summary(m, names, tail) for tail in found.subjects]
    for tail, one in found.subjects.items():
        sections += [_flow(one, tail), *(_grid(found, one, name, tail) for name in names)]
        sections += [*(_pairs(found, one, name, tail) for name in names), _bars(m, tail), *_blocks(found, one, tail)]
        sections += [_heads(one, m, tail), *_doses(one, m, tail), *_repairs(one, tail), _drawing(found, one, m, tail)]
    return Page(f"{TITLE}: {subject.name}", lead, result, sections, headline)


def _percent(measure: Measure | None) -> str:
    return "-" if measure is None or measure.value is None else f"{measure.value:.0%}"


def _cell(measure: Measure | None) -> str:
    if measure is None or measure.value is None or measure.ci95 is None:
        return "-"
    return f"{100 * measure.value:.1f} [{100 * measure.ci95[0]:.1f}, {100 * measure.ci95[1]:.1f}]"


def _summary(m: Mapping[str, Measure], names: Sequence[str], tail: str) -> Section:
    """The paper's three tables beside this subject's."""
    rows = []
    for what, published in PUBLISHED.items():
        row = [what.replace("_", " ")]
        for name in names:
            row += [_cell(_of(m, what, name, tail)), f"{published[name]:.1f}" if name in published else "-"]
        rows.append(row)
    both = [
        (what, name, measure.value, published[name])
        for what, published in PUBLISHED.items()
        for name in published
        if (measure := _of(m, what, name, tail)) is not None and measure.value is not None
    ]
    apart = [(what, name) for what, name, value, theirs in both if (value >= 0.5) != (theirs >= 50)]
    text = (
        f"The {WHO[tail]} subject beside the published FLUX.2 [klein] 9B, in percent, with 95 % intervals. In "
        f"{len(both) - len(apart)} of {len(both)} cells both lie on the same side of one half."
    )
    for name in names:
        cells = [what.replace("_", " ") for what, other in apart if other == name]
        if cells:
            text += f" They part over {name}: {', '.join(cells)}."
    header = ["", *(head for name in names for head in (name, "paper"))]
    return Section(f"The paper's three tables: {WHO[tail]} subject", text, table=Table(header, rows))


def _of(m: Mapping[str, Measure], what: str, name: str, tail: str) -> Measure | None:
    """The measure of a row of the paper's tables and a property."""
    head = what.removesuffix("_padding").removesuffix("_content")
    return m.get(f"{head}_{name}{what.removeprefix(head)}{tail}")


def _flow(one: Findings, tail: str) -> Section:
    """Share of pictures that lose the property when one flow is cut."""
    panels = []
    for name in one.rows:
        rows = one.rows[name]
        keys = {flow: f"{flow[0]} to {flow[1]}" for flow in FLOWS}
        keys |= {("reference", "text"): "ref_to_text", ("reference", "picture"): "ref_to_image"}
        lost = {flow: [not shown for shown in rows[key]] for flow, key in keys.items()}
        panels.append((name, {flow: float(np.mean(gone)) if gone else 0.0 for flow, gone in lost.items()}))
    text = (
        "Each arrow is attention from one group of tokens to another; the number is the share of pictures that lose the property "
        "when that attention alone is cut in every block. A property that comes by two ways survives the loss of either."
    )
    return Section(f"Who tells whom: {WHO[tail]} subject", text, figure=flows(panels, GROUPS))


def _grid(found: AllFindings, one: Findings, name: str, tail: str) -> Section:
    requests, n = one.kept[name], found.config.n_shown
    rows: list[tuple[str, Sequence[Framed]]] = [("reference", [Framed(r.references[0], r.instruction) for r in requests[:n]])]
    for condition, label in SHOWN.items():
        key = condition.format(padding=found.config.padding)
        rows.append((label, _framed(requests, one.pictures[name][key], one.rows[name][key])))
    text = (
        f"The first {n} of the requests whose untouched picture shows the {name}. A green frame says that the judge sees the "
        f"{name} of the reference above, a red one that it does not. The lens reads {one.chosen.reading[name].label}, chosen on "
        "other requests."
    )
    return Section(f"{name.capitalize()}, {WHO[tail]} subject", text, grid=Grid(rows))


def _pairs(found: AllFindings, one: Findings, name: str, tail: str) -> Section:
    pairs, n = one.pairs[name], found.config.n_shown
    rows: list[tuple[str, Sequence[Framed]]] = [
        ("reference of the other run", [Framed(p.source.references[0], p.source.instruction) for p in pairs[:n]]),
        ("reference of this run", [Framed(p.base.references[0], p.base.instruction) for p in pairs[:n]]),
    ]
    for condition, label in PAIRS.items():
        key = condition.format(padding=found.config.padding)
        right = None if key == "pair untouched" else one.rows[name][key]
        rows.append((label, _framed([p.base for p in pairs], one.pictures[name][key], right)))
    text = (
        f"One instruction, two references. The text of the first run, after block {one.chosen.layer[name]} and in every step, is "
        f"put into the second. Green: the picture has taken on the other's {name}."
    )
    return Section(f"{name.capitalize()} moved between runs, {WHO[tail]} subject", text, grid=Grid(rows))


def _framed(requests: Sequence[Request], pictures: Sequence[np.ndarray], right: Sequence[bool] | None) -> list[Framed]:
    return [
        Framed(picture, requests[i].instruction, right=None if right is None else right[i]) for i, picture in enumerate(pictures)
    ]


def _bars(m: Mapping[str, Measure], tail: str) -> Section:
    points = []
    for name in PROPERTIES:
        for key, label, colour in (
            (f"knockout_ref_to_text_{name}", "hidden from text", ACCENT),
            (f"knockout_ref_to_text_{name}_padding", "hidden from padding", ACCENT),
            (f"knockout_ref_to_text_{name}_content", "hidden from instruction", ACCENT),
            (f"knockout_ref_to_text_{name}_random", "random tokens hidden from text", MUTED),
            (f"knockout_ref_to_image_{name}", "hidden from picture", SECOND),
            (f"knockout_ref_to_image_{name}_random", "random tokens hidden from picture", MUTED),
        ):
            one = m.get(f"{key}{tail}")
            if one is not None and one.value is not None and one.ci95 is not None:
                points.append(Point(f"{name}: {label}", one.value, *one.ci95, colour))
    text = (
        "Share of pictures that lose the property, among those that had it, beside as many random tokens hidden from the same "
        "readers."
    )
    return Section(f"What a cut costs: {WHO[tail]} subject", text, figure=intervals(points, unit="share lost"))


def _blocks(found: AllFindings, one: Findings, tail: str) -> list[Section]:
    n, sections = found.config.n_validation, []
    for name in one.curves:
        lines = []
        for key, colour in (
            ("from block: reference to text", ACCENT), ("from block: reference to picture", SECOND), ("dropped at block", MUTED),
        ):  # fmt: skip
            y = list(one.curves[name][key])
            low, high = zip(*(wilson(round(v * n), n) for v in y), strict=True)
            label = (
                "reference dropped from block"
                if key.startswith("dropped")
                else key.replace("from block: ", "hidden from block on: ")
            )
            lines.append(Line(label, list(range(len(y))), y, low, high, colour))
        text = (
            f"Share of {n} validation requests whose pictures still show the {name}, when a cut begins at a block and lasts to "
            "the end. In the last curve the picture never sees the reference, and from the block on nothing does: what is left "
            "must have gone into the text before."
        )
        figure = curves(lines, x_title="block", y_title="share that shows it", unit="block", log=False)
        sections.append(Section(f"Block by block: {name}, {WHO[tail]} subject", text, figure=figure))
    return sections


def _heads(one: Findings, m: Mapping[str, Measure], tail: str) -> Section:
    shape = one.subject.shape
    tables = []
    for name in one.rows:
        for query, ranking in one.chosen.effects[name].items():
            table = np.zeros((shape.n_layers, shape.n_heads))
            for scored in ranking:
                table[scored.site.layer or 0, scored.site.head or 0] = max(0.0, -scored.score)
            tables.append((f"{name} to {query}", table))
    figure = share_maps(
        tables,
        [str(h) for h in range(shape.n_heads)],
        [str(b) for b in range(shape.n_layers)],
        row_title="block",
        column_title="head",
    )
    parts = []
    for name in one.rows:
        for end in ("text", "image"):
            key = f"heads_ref_to_{end}_{name}"
            found = (number(m[f"{key}{kind}{tail}"].value) for kind in ("", "_random", "_layer_matched_random"))
            parts.append("{} by {}: {} ({}; {})".format(name, end, *found))
    text = (
        "How much less a picture would resemble its own run, were one head's view of the reference cut (attribution, validation "
        f"pairs). Cutting only the heads with the largest values, on other requests, loses the share given here (in brackets: as "
        f"many random heads; others of the same blocks): {', '.join(parts)}."
    )
    return Section(f"Which heads carry it: {WHO[tail]} subject", text, figure=figure)


def _doses(one: Findings, m: Mapping[str, Measure], tail: str) -> list[Section]:
    """Rate of transfer over the padding that was left."""
    sections = []
    names = {"": "all text", "_padding": "padding", "_words": "instruction's own words", "_filler": "words that say nothing"}
    colours = dict(zip(names, (ACCENT, SECOND, MUTED, THIRD), strict=True))
    for name, doses in one.doses.items():
        lines = []
        for end, label in names.items():
            told = [(dose.padding, m.get(f"dose_{name}_{round(100 * dose.share)}{end}{tail}")) for dose in doses]
            there = sorted((x, one.value, *one.ci95) for x, one in told if one is not None and one.value is not None and one.ci95)
            if there:
                x, y, low, high = (list(column) for column in zip(*there, strict=True))
                lines.append(Line(label, x, y, low, high, colours[end]))
        if not lines:
            continue
        text = (
            "The number of text slots stays, and the instruction grows by words that say nothing, so that padding shrinks. Share "
            f"of pairs whose picture takes on the {name} of another run's reference with some slots of that run's text."
        )
        figure = curves(lines, x_title="slots of padding", y_title=f"share that takes on the {name}", unit="slots", log=False)
        sections.append(Section(f"Less and less padding: {name}, {WHO[tail]} subject", text, figure=figure))
    return sections


def _repairs(one: Findings, tail: str) -> list[Section]:
    """Failed requests with attention strengthened along one flow."""
    if not one.repairs:
        return []
    rows = []
    for name, repairs in one.repairs.items():
        for each in repairs:
            cells = [f"{sum(got)} of {len(got)}" for got in (each.shown, each.random, each.kept)]
            blocks = f"{each.layers[0]} to {each.layers[-1]}"
            rows.append([name, f"{each.flow[0]} to {each.flow[1]}", blocks, f"+{each.beta:g}", *cells])
    text = (
        "Requests whose picture lacked the property when left alone, with attention strengthened along one flow in blocks that "
        "validation requests chose; the same for random tokens; and how many of the requests that had the property keep it."
    )
    header = ["", "flow", "blocks", "added", "repaired", "at random", "kept"]
    return [Section(f"Strengthened instead of cut: {WHO[tail]} subject", text, table=Table(header, rows))]


def _drawing(found: AllFindings, one: Findings, m: Mapping[str, Measure], tail: str) -> Section:
    requests, per_row = found.data.requests.text, found.config.n_shown
    framed = [
        Framed(picture, requests[i].instruction, right=all(one.drawn[i].values())) for i, picture in enumerate(one.drawn_pictures)
    ]
    rows = [("", framed[i : i + per_row]) for i in range(0, len(framed), per_row)]
    shown, right = (m.get(f"t2i_{name}_accuracy{tail}") for name in ("concept", "everything"))
    text = f"Without a reference: {_percent(shown)} of pictures show the thing asked for, {_percent(right)} everything about it."
    return Section(f"Drawing from text, {WHO[tail]} subject", text, grid=Grid(rows))
