"""The page of the study: verdict, circuit, curves, tables, stability."""

import numpy as np

from mediant.core.result import Measure, Result
from mediant.measures.faithfulness import normalised
from mediant.measures.intervals import resamples
from mediant.report.circuit_figure import circuit_figure
from mediant.report.figures import ACCENT, MUTED, SECOND, Line, curves, heat_maps
from mediant.report.page import Page, Section, Strip, Table, Token, number
from mediant.studies.positional_circuits.config import TITLE
from mediant.studies.positional_circuits.method import joined
from mediant.studies.positional_circuits.study import Findings, TaskFindings
from mediant.subject import Subject

NAMES = {"positional": "by position", "nonpositional": "same at all positions", "shuffled": "spans shuffled"}
COLOURS = {"positional": ACCENT, "nonpositional": SECOND, "shuffled": MUTED}
DRAWS = 300


def page(result: Result, found: Findings, subject: Subject) -> Page:
    """Compose the page."""
    first = found.tasks[0]
    m = first.measures
    pair = first.data.evaluation[0]
    lead = (
        f'{subject.name} continues "{pair.clean.text}" with "{pair.answer.strip()}". Every edge of its computation graph was '
        "scored: what one part writes and another reads, at each span, and what attention draws from one span to another. "
        "Circuits of the best edges were then run with everything else taking the counterfactual prompt's values."
    )
    headline = [
        (f"{m['accuracy'].value or 0:.1%}", f"accuracy, n = {m['accuracy'].n}"),
        (_count(m["edges_positional_at_0.8"]), "edges by position at hard faithfulness 0.8"),
        (_count(m["edges_nonpositional_at_0.8"]), "edges without positions"),
        (number(m["edge_ratio_at_0.8"].value), "ratio, concrete edges"),
        (number(m["edge_ratio_shuffled_spans"].value), "shuffled over true spans"),
    ]
    sections = [section for task in found.tasks for section in _task(task, subject)]
    title = f"{TITLE}: {', '.join(t.data.name for t in found.tasks)} in {subject.name}"
    return Page(title, lead, result, sections, headline)


def _task(found: TaskFindings, subject: Subject) -> list[Section]:
    said = f"{found.verdict} {found.spans.note}"
    return [
        Section(f"{found.data.name}: does it need positions?", said, strips=_strips(found, subject)),
        _curves(found), _circuit(found), _spans(found), _effects(found), _chosen(found), *_written(found),
    ]  # fmt: skip


def _count(measure: Measure) -> str:
    return "-" if measure.value is None else f"{measure.value:,.0f}"


def _strips(found: TaskFindings, subject: Subject) -> list[Strip]:
    """The first prompt and its counterfactual, with the spans under the tokens."""
    pair, names = found.data.evaluation[0], found.data.table.names
    spans = found.data.table.of(pair)
    strips = []
    for label, prompt in (("clean", pair.clean), ("counterfactual", pair.counterfactual)):
        ids = subject.tokenize(prompt).ids
        tokens = [Token(subject.decode([i]), 0.0, names[s]) for i, s in zip(ids, spans, strict=True)]
        strips.append(Strip(label, [*tokens, Token(f"  →{pair.answer if label == 'clean' else pair.counterfactual_answer}")]))
    return strips


def _curves(found: TaskFindings) -> Section:
    items = resamples(len(found.data.evaluation), None, draws=DRAWS, seed=0)
    lines = []
    for kind, name in NAMES.items():
        hits = joined(found.records, kind, "agrees")
        drawn = np.array([hits[:, i].mean(1) for i in items])
        low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
        x = [max(1.0, size) for size in found.curves[kind].concrete()]
        lines.append(Line(name, x, hits.mean(1).tolist(), low.tolist(), high.tolist(), COLOURS[kind]))
    figure = curves(lines, x_title="edges between single tokens (mean over pairs)", y_title="hard faithfulness", level=0.8)
    text = (
        "Share of prompts on which a circuit answers as the whole model does, against its size. Bands are 95 % intervals over "
        f"prompts (n = {len(found.data.evaluation)}). Circuits without positions keep every edge of attention between positions, "
        "and those count; the table of all sizes counts in two other ways."
    )
    return Section(f"{found.data.name}: how faithful at every size", text, figure=figure)


def _circuit(found: TaskFindings) -> Section:
    text = (
        "Spans are columns, layers are rows; the slider sets the size. Orange edges help the answer, blue ones work against it; "
        "lines between columns are attention, reading at the later span what stands at the earlier one. Hover a node for its "
        "strongest edges; drag to move, scroll to zoom. These are the strongest edges, far fewer than a faithful circuit has."
    )
    return Section(f"{found.data.name}: the circuit", text, figure=circuit_figure(found.drawn, found.scores))


def _spans(found: TaskFindings) -> Section:
    """Where attention carries the answer: crossing scores summed over layers and heads."""
    assert found.scores.crossing is not None  # noqa: S101 - the study always scores them
    names = found.scores.spans
    tables = [(part, found.scores.crossing[i].sum((0, 1))) for i, part in enumerate(("queries", "keys", "values"))]
    figure = heat_maps(tables, names, names, unit="logits", row_title="read at")
    text = (
        "Scores of attention edges, summed over layers and heads: row reads from column. Orange: the answer gets weaker when "
        "that part of the attention takes the counterfactual's queries, keys or values."
    )
    return Section(f"{found.data.name}: from where to where", text, figure=figure)


def _effects(found: TaskFindings) -> Section:
    rows = [
        [
            str(e["effect"]), f"{e['share']:.0%}", f"{e['difference']:.1%}", f"{e['control']:.1%}", f"{e['correlation']:.2f}",
            f"{e['control_correlation']:.2f}",
        ]
        for e in found.effects
    ]  # fmt: skip
    header = ["effect", "top edges", "lists differ", "control", "rank correlation", "control"]
    text = (
        "What summing over positions does to a ranking of edges. Cancellation: edges with opposite signs at different "
        "positions vanish. Over-estimation: many weak positions outvote a strong one. The control compares one rule between "
        "three parts of the pairs, each a third of the data."
    )
    return Section(f"{found.data.name}: what is lost without positions", text, table=Table(header, rows))


def _written(found: TaskFindings) -> list[Section]:
    """What a language model made of the schema, when one was asked."""
    written = found.spans.written
    if written is None:
        return []
    rows = [[name, about] for name, about in written.descriptions.items()] + [["(refused)", error] for error in written.errors]
    text = (
        f"{written.replies} replies in {written.rounds} rounds; {written.valid:.0%} of {written.asked} prompts were divided "
        "correctly. Below: its last schema, span by span, and the latest faults its replies were sent back for."
    )
    return [
        Section(f"{found.data.name}: the schema a language model wrote", text, table=Table(["span", "what"], rows), folded=True)
    ]


def _chosen(found: TaskFindings) -> Section:
    rows = []
    for kind, name in NAMES.items():
        curve, hits = found.curves[kind], joined(found.records, kind, "agrees").mean(1)
        metric = joined(found.records, kind, "metric")
        full, empty = (np.concatenate([np.asarray(r[x]) for r in found.records]) for x in ("full", "empty"))
        within = curve.concrete(crossing=False)
        for i, (concrete, abstract) in enumerate(zip(curve.concrete(), curve.abstract(), strict=True)):
            rows.append(
                [
                    name, f"{concrete:,.0f}", f"{abstract:,.0f}", f"{within[i]:,.0f}", f"{hits[i]:.2f}",
                    f"{metric[i].mean() / full.mean():.2f}", f"{normalised(metric[i], full, empty):.2f}",
                ]
            )  # fmt: skip
    header = ["circuit", "concrete edges", "between nodes at spans", "without crossing", "hard", "soft", "normalised"]
    text = "Every circuit that was run, in all three ways of counting its edges and all three measures of faithfulness."
    return Section(f"{found.data.name}: all sizes", text, table=Table(header, rows), folded=True)
