"""The page of the study: sentence, maps, ranking, controls, attention of the heads, rows."""

import numpy as np

from mediant.core.result import Result
from mediant.core.site import Site
from mediant.report.figures import ACCENT, MUTED, SECOND, Point, heat_maps, intervals, visible
from mediant.report.page import Page, Section, Strip, Table, Token, number
from mediant.studies.activation_patching.config import TITLE
from mediant.studies.activation_patching.measures import verdict
from mediant.studies.activation_patching.method import COMPONENTS
from mediant.studies.activation_patching.study import Findings
from mediant.subject import Subject
from mediant.tasks.encode import token_columns

TITLES = {"resid_post": "residual stream", "attn_out": "attention output", "mlp_out": "MLP output"}
SHOWN_ROWS = 100


def page(result: Result, found: Findings, subject: Subject) -> Page:
    """Compose the page."""
    measures, unit = result.measures, found.data.metric
    pair = found.data.shown[0]
    lead = (
        f'{subject.name} continues "{pair.clean.text}" with "{pair.answer.strip()}" rather than '
        f'"{pair.counterfactual_answer.strip()}". '
        f"Each part of the model was given, one at a time, the value it has on a counterfactual prompt; the change of {unit} "
        "is that part's effect. Orange: without this part's own value the answer gets weaker, so it carries the answer. Blue: "
        "the reverse."
    )
    headline = [
        (f"{measures['accuracy'].value or 0:.1%}", f"accuracy, n = {measures['accuracy'].n}"),
        (number(measures["total_effect"].value), f"total effect ({unit})"),
        (f"{measures['top_heads_share'].value or 0:.0%}", f"of it through {len(found.top)} heads"),
        (number(measures["layer_matched_heads_effect"].value), "layer-matched control"),
        (f"{measures['sufficiency_top10'].value or 0:.0%}", "restored by these heads alone"),
    ]
    sections = [
        _sentence(found, subject), _map(found, subject, unit), _heads(found, subject, unit), _ranking(found, unit),
        _controls(result, unit), _attention(found, subject), _rows(found),
    ]  # fmt: skip
    return Page(f"{TITLE}: {found.data.name} in {subject.name}", lead, result, sections, headline)


def _labels(found: Findings, subject: Subject) -> list[str]:
    return [column.label for column in token_columns(subject, found.data.shown)]


def _joined_map(found: Findings, subject: Subject) -> np.ndarray:
    """Mean effects over all pairs: (component, layer, column)."""
    columns = range(len(_labels(found, subject)))
    by_column = [[np.asarray(r["effects"]) for r in found.shown if r["column"] == column] for column in columns]
    return np.stack([np.concatenate(parts, axis=-1).mean(-1) for parts in by_column], axis=-1)


def _sentence(found: Findings, subject: Subject) -> Section:
    pair = found.data.shown[0]
    strips = []
    carried = _joined_map(found, subject)[0]
    strongest = carried[np.abs(carried).argmax(0), np.arange(carried.shape[1])]
    tokens = subject.tokenize(pair.clean)
    aligned = len(strongest) == len(tokens.ids)
    reach = float(np.abs(strongest).max()) or 1.0
    for label, prompt in (("clean", pair.clean), ("counterfactual", pair.counterfactual)):
        ids = subject.tokenize(prompt).ids
        line = [
            Token(
                subject.decode([token]), -0.75 * float(strongest[i]) / reach if aligned and label == "clean" else 0.0,
                next((name for name, places in tokens.spans.items() if i in places), "") if label == "clean" else "",
                f"strongest effect over layers: {strongest[i]:+.2f}" if aligned else "",
            )
            for i, token in enumerate(ids)
        ]  # fmt: skip
        answer = pair.answer if label == "clean" else pair.counterfactual_answer
        strips.append(Strip(label, [*line, Token(f"  →{answer}")]))
    text = (
        "The clean prompt is the base, the counterfactual the source of the values. Tokens of the clean prompt are shaded by the "
        "strongest effect their residual stream has in any layer; small labels are the named spans."
    )
    return Section("The prompt and its counterfactual", text, strips)


def _map(found: Findings, subject: Subject, unit: str) -> Section:
    tables = _joined_map(found, subject)
    named = [(TITLES[kind], tables[i]) for i, kind in enumerate(COMPONENTS)]
    rows = [str(layer) for layer in range(subject.shape.n_layers)]
    text = (
        f"Mean effect on {unit} of one layer's residual stream, attention output or MLP output at one position, over "
        f"{len(found.data.shown)} pairs of this frame. Positions before the first differing word are equal in both "
        "prompts, so their effect is exactly 0."
    )
    return Section("Which layers and positions", text, figure=heat_maps(named, _labels(found, subject), rows, unit=unit))


def _heads(found: Findings, subject: Subject, unit: str) -> Section:
    shape = subject.shape
    table = np.asarray(found.heads["mean"]).reshape(shape.n_layers, shape.n_heads)
    figure = heat_maps(
        [("all positions", table)],
        [f"head {h}" for h in range(shape.n_heads)],
        [str(la) for la in range(shape.n_layers)],
        unit=unit,
    )
    text = f"Mean effect of every head on its own, over {len(found.data.discovery)} pairs that are used for nothing else."
    return Section("Which heads", text, figure=figure)


def _ranking(found: Findings, unit: str) -> Section:
    strongest = found.ranking.top(min(20, len(found.ranking)))
    colours = [ACCENT if s.site in found.top else MUTED for s in strongest]
    points = [
        Point(_name(s.site), s.score, *(s.ci95 or (s.score, s.score)), colour)
        for s, colour in zip(strongest, colours, strict=True)
    ]
    text = f"The twenty strongest heads with 95 % intervals; the first {len(found.top)} (blue) are the ones confirmed below."
    return Section("Ranking of heads", text, figure=intervals(points, unit=unit))


def _controls(result: Result, unit: str) -> Section:
    names = [
        "total_effect",
        "top_heads_effect",
        "strongest_head_effect",
        "layer_matched_heads_effect",
        "random_heads_effect",
        "all_heads_effect",
    ]
    colours = [MUTED, ACCENT, ACCENT, SECOND, SECOND, MUTED]
    points = []
    for name, colour in zip(names, colours, strict=True):
        measure = result.measures[name]
        if measure.value is not None and measure.ci95 is not None:
            points.append(Point(name.replace("_", " "), measure.value, *measure.ci95, colour))
    n = result.measures["top_heads_effect"].n
    return Section(
        "Do they matter more than other heads?",
        f"{verdict(result.measures)} All on {n} pairs that ranking never saw.",
        figure=intervals(points, unit=unit),
    )


def _attention(found: Findings, subject: Subject) -> Section:
    pair = found.data.shown[0]
    tokens = subject.tokenize(pair.clean)
    strips = []
    for name, rows in list(found.attention["weights"].items())[:8]:
        weights = np.asarray(rows[0])
        line = [
            Token(subject.decode([t]), 0.85 * float(w), "", f"{visible(subject.decode([t]))}: {w:.2f}")
            for t, w in zip(tokens.ids, weights, strict=True)
        ]
        strips.append(Strip(_name(Site.parse(name)), line))
    text = (
        "Where the strongest heads look from the last token, in this prompt: the stronger the shade, the more attention. "
        "Looking is not proof; the effects above are."
    )
    return Section("What these heads attend to", text, strips)


def _rows(found: Findings) -> Section:
    rows = [
        [
            r["id"],
            r["split"],
            r["prompt"],
            r["answer"].strip(),
            f"{r['before']:+.2f}",
            f"{r['total']:+.2f}",
            f"{r['top']:+.2f}",
            f"{r['layer_matched']:+.2f}",
        ]
        for r in found.rows[:SHOWN_ROWS]
    ]
    header = ["pair", "set", "prompt", "answer", "before", "total effect", "top heads", "layer-matched"]
    text = f"The first {len(rows)} of {len(found.rows)} pairs; all are in items.jsonl."
    return Section("Pair by pair", text, table=Table(header, rows), folded=True)


def _name(site: Site) -> str:
    return f"head {site.layer}.{site.head}"
