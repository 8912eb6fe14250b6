"""The page of the study: strips with the panel that heads were turned to, score maps, sweeps, trajectories."""

from collections.abc import Sequence

import numpy as np

from mediant.core.result import Measure, Result
from mediant.measures.intervals import wilson
from mediant.report.figures import ACCENT, MUTED, SECOND, Line, Point, curves, intervals, share_maps
from mediant.report.page import Framed, Page, Section, Table, interval, number
from mediant.runs.folder import Json
from mediant.studies.gaze_heads import carriers, task
from mediant.studies.gaze_heads.config import TITLE
from mediant.studies.gaze_heads.study import Findings
from mediant.subject import Subject
from mediant.tasks.regions import SIZES

CONDITIONS = {
    "": "gaze heads", "_layer_matched_random": "random, same layers", "_random": "random", "_bottom5": "lowest 5 %",
    "_all": "all heads",
}  # fmt: skip


def page(result: Result, found: Findings, subject: Subject) -> Page:
    """Compose the page."""
    m, k, total = result.measures, found.chosen.k, len(found.ranking)
    lead = (
        f"{subject.name} was asked about each panel of {len(found.data.discovery)} strips, and its heads were ranked by their "
        f"attention on that panel. Then the best {k} of {total} heads were turned to another panel, nothing else touched, while "
        f"it answered {found.config.question_this!r} on {len(found.data.test)} strips it had never seen."
    )
    headline = [
        (_percent(m["vqa_redirect_accuracy"]), f"of answers follow the turned heads, n = {m['vqa_redirect_accuracy'].n}"),
        (_percent(m["vqa_redirect_accuracy_layer_matched_random"]), "with random heads of the same layers"),
        (f"{k / total:.1%}", f"of the heads: {k} of {total}"),
        (_percent(m["caption_accuracy"]), "of captions right when the panel is named"),
        *([(number(m["dynamic_spearman"].value), "schedule against narration, Spearman")] if "dynamic_spearman" in m else []),
    ]
    sections = [_shown(found), _scores(found), _matrices(found), _sweep(found), _bars(m), *_dynamic(found)]
    sections += [*_beside(found, m), *_regions(found, m), *_carriers(found), _path(found), _reading(found), _answers(found)]
    return Page(f"{TITLE}: {subject.name}", lead, result, sections, headline)


def _percent(measure: Measure) -> str:
    return "-" if measure.value is None else f"{measure.value:.1%}"


def _right(found: Findings, record: Json) -> bool:
    return bool(record["exact"] if found.data.exact else record["described"] == record["target"] and not record["junk"])


def _shown(found: Findings) -> Section:
    """A few strips, each looked at in turn."""
    strips = found.data.test[: max(1, found.config.n_shown // 3)]
    records = {(r["strip"], r["target"]): r for r in found.answers.answers["gaze"][0]}
    images = []
    for strip in strips:
        before = found.answers.before({"strip": strip.id})
        images.append(Framed(strip.pixels, f"untouched: {before['text']}"))
        for k, box in enumerate(strip.boxes):
            record = records[strip.id, k]
            images.append(Framed(strip.pixels, record["text"], box, _right(found, record)))
    text = (
        f"What it answers to {found.config.question_this!r}: untouched, and with the {found.chosen.k} gaze heads turned to the "
        "framed panel. The first strips of the test set, not chosen."
    )
    return Section("The same question, with the heads turned to each panel", text, images=images)


def _scores(found: Findings) -> Section:
    scores, routing = found.confirmed.diagonal().mean(0), found.confirmed.routing().mean((0, 1))
    layers, heads = scores.shape
    figure = share_maps(
        [("attention mass on the panel asked for", scores), ("share of questions routed right", routing)],
        [str(h) for h in range(heads)], [str(layer) for layer in range(layers)], row_title="layer", column_title="head",
    )  # fmt: skip
    best = ", ".join(f"{s.site.layer}.{s.site.head} ({s.score:.2f})" for s in found.ranking.top(min(10, len(found.ranking))))
    text = (
        "Every head (column) of every layer (row) at the last prompt token, on test strips. A head that always looks at one "
        f"panel has the mass but not the routing. Ranked on other strips, the first ten are {best}."
    )
    return Section("Where the heads are", text, figure=figure)


def _matrices(found: Findings) -> Section:
    """Panel asked for against panel looked at, for the best heads and for heads of the lower half."""
    mean = found.confirmed.mass.mean(0)
    half = [s.site for s in found.ranking][len(found.ranking) // 2 :]
    low = [half[i] for i in np.random.default_rng(found.config.seed).permutation(len(half))[:3]]
    chosen = [s.site for s in found.ranking.top(min(3, len(found.ranking)))] + sorted(low)
    labels = [str(k + 1) for k in range(found.confirmed.n_regions)]
    tables = [(f"{s.layer}.{s.head}", mean[:, s.layer, s.head]) for s in chosen if s.layer is not None and s.head is not None]
    figure = share_maps(tables, labels, labels, row_title="panel asked for")
    return Section(
        "What they look at",
        "Attention mass on each panel (column) when each panel (row) is asked for: the three best heads, then three random heads "
        "of the lower half.",
        figure=figure,
    )


def _sweep(found: Findings) -> Section:
    points = found.chosen.sweep
    n = len(found.data.validation) * found.config.panels
    lines = []
    for key, name, colour in (
        ("accuracy", "gaze heads", ACCENT),
        ("accuracy_random", "random, same layers", MUTED),
        ("attributes", "gaze heads, per fact", SECOND),
    ):
        if key == "attributes" and not found.data.exact:
            continue
        y = [one[key] for one in points]
        low, high = zip(*(wilson(round(v * n), n) for v in y), strict=True)
        lines.append(Line(name, [one["k"] for one in points], y, low, high, colour))
    figure = curves(lines, x_title="heads turned", y_title="share of answers that describe the target", unit="heads", log=False)
    betas = sorted(found.config.betas)
    rows = [
        [str(k), *(f"{one['accuracy']:.3f}" for one in found.chosen.choices if one["k"] == k)]
        for k in sorted({one["k"] for one in found.chosen.choices})
    ]
    text = (
        f"On {len(found.data.validation)} validation strips, from which K = {found.chosen.k} and a bias of {found.chosen.beta:g} "
        f"were chosen, with at most {found.config.largest_share:.0%} of the heads (the table; the curve has that bias). Bands "
        "are 95 % intervals of a share (Wilson). With a bias of thousands heads see nothing but the target, not even what was "
        "said so far."
    )
    table = Table(["heads", *(f"bias {beta:g}" for beta in betas)], rows)
    return Section("How many heads it takes, and how hard they are turned", text, figure=figure, table=table)


def _bars(m: dict[str, Measure]) -> Section:
    points = []
    for prefix, what in (
        ("vqa_redirect_accuracy", "answer"),
        ("narration_redirect_accuracy", "description"),
        ("dynamic_segment_accuracy", "scheduled narration"),
        ("caption_accuracy", "named panel"),
    ):
        for tail, name in CONDITIONS.items():
            one = m.get(f"{prefix}{'_gaze' if prefix == 'caption_accuracy' and not tail else tail}")
            if one is not None and one.value is not None and one.ci95 is not None:
                colour = ACCENT if not tail else SECOND if tail == "_all" else MUTED
                points.append(Point(f"{what}: {name}", one.value, *one.ci95, colour))
    text = (
        "Share of answers that describe the panel the heads are turned to, for each way of asking; on the last lines the panel "
        "is named in the question and the heads are turned to that one, which must not harm. Intervals resample strips."
    )
    return Section("Against other heads", text, figure=intervals(points, unit="share"))


def _dynamic(found: Findings) -> list[Section]:
    if not found.narrations:
        return []
    first = found.narrations["gaze"][0][0]
    strip = next(s for s in found.data.test if s.id == first["strip"])
    images = [
        Framed(strip.pixels, f"turn {i + 1}: {one['text']}", strip.boxes[k], one["described"] == k)
        for i, (k, one) in enumerate(zip(first["order"], first["segments"], strict=True))
    ]
    n = found.config.panels
    tables = []
    for name in ("gaze", "layer_matched_random"):
        table = np.zeros((n, n))
        for draw in found.narrations[name]:
            for record in draw:
                for k, one in zip(record["order"], record["segments"], strict=True):
                    if one["described"] is not None:
                        table[k, one["described"]] += 1
        tables.append((CONDITIONS["" if name == "gaze" else f"_{name}"], table / np.maximum(table.sum(1, keepdims=True), 1)))
    labels = [str(k + 1) for k in range(n)]
    figure = share_maps(tables, labels, labels, row_title="panel scheduled", column_title="panel described")
    text = (
        f"One narration of {found.config.question_narrate!r}, the heads turned to a new panel every "
        f"{found.config.segment_tokens} tokens while it speaks, in an order that leaves no panel in its own place. Below, the "
        f"panel described (column) against the panel scheduled (row), over {len(found.narrations['gaze'][0])} strips."
    )
    return [Section("Turned while it speaks", text, images=images, figure=figure)]


def _beside(found: Findings, m: dict[str, Measure]) -> list[Section]:
    """The twin's heads and numbers."""
    twin = found.beside
    if twin is None:
        return []
    names = [name.removesuffix("_twin") for name in m if name.endswith("_twin")]
    rows = [[name.replace("_", " "), *(_with_interval(m[each]) for each in (name, f"{name}_twin"))] for name in names]
    tables = [("this model", found.confirmed.diagonal().mean(0)), (twin.subject.name, twin.confirmed.diagonal().mean(0))]
    layers, heads = tables[0][1].shape
    alike = tables[1][1].shape == tables[0][1].shape
    figure = share_maps(
        tables if alike else tables[1:], [str(h) for h in range(heads if alike else tables[1][1].shape[1])],
        [str(layer) for layer in range(layers if alike else tables[1][1].shape[0])], row_title="layer", column_title="head",
    )  # fmt: skip
    text = (
        f"The same strips, and heads of its own found as above: K = {twin.chosen.k} and a bias of {twin.chosen.beta:g}. The maps "
        "show attention mass on the panel asked for."
    )
    return [
        Section(f"Beside {twin.subject.name}", text, figure=figure, table=Table(["measure", "this model", "the other"], rows))
    ]


def _with_interval(measure: Measure) -> str:
    return number(measure.value) + (f" {interval(measure)}" if measure.ci95 else "")


def _regions(found: Findings, m: dict[str, Measure]) -> list[Section]:
    if found.regions is None:
        return []
    pictures = {picture.id: picture for picture in found.data.regions}
    images = []
    for record in found.regions.answers["gaze"][0][: found.config.n_shown]:
        picture = pictures[record["strip"]]
        right = record["named"] == [record["target"]]
        images.append(Framed(picture.pixels, f"{record['size']}: {record['text']}", picture.boxes[record["target"]], right))
    points = []
    for size in SIZES:
        for tail, name in CONDITIONS.items():
            one = m[f"region_accuracy_{size}{tail}"]
            if one.value is not None and one.ci95 is not None:
                colour = ACCENT if not tail else SECOND if tail == "_all" else MUTED
                points.append(Point(f"{size}: {name}", one.value, *one.ci95, colour))
    text = (
        f"The same heads, found on strips, on pictures without panels: asked {found.config.question_here!r} with the heads "
        "turned to the framed thing. Sizes are COCO's classes; a small thing may have no image token of its own."
    )
    return [Section("Other pictures, other regions", text, images=images, figure=intervals(points, unit="share named"))]


def _carriers(found: Findings) -> list[Section]:
    """Where the panel that is asked for is known, and which heads move it."""
    shares = carriers.by_set(found.carriers, found.config.seed)
    if not shares:
        return []
    labels = {name.strip("_") or "gaze": label for name, label in CONDITIONS.items()}
    points = [
        Point(labels.get(name, f"{name}, other heads"), one.value, *one.ci95, ACCENT if name == "gaze" else MUTED)
        for name, one in shares.items()
        if name in labels or name.startswith("layer ")
    ]
    where = carriers.streams(found.carriers)
    maps = share_maps(
        [("residual streams", np.clip(where, 0, None))],
        list(carriers.SPANS.values()), [str(layer) for layer in range(len(where))], row_title="after layer",
    )  # fmt: skip
    text = (
        "Nothing is turned here. Two questions about one strip name different panels; values of the second run are put into the "
        f"first ({shares['gaze'].n} pairs), and what counts is how far the answer's first token moves from the one caption to "
        "the other. Heads that pass on the word in the question count as much as heads that look at the picture: they lie in the "
        "layers before the last token knows the panel (next figure). All other heads of a layer are the paths that the gaze "
        "heads leave open."
    )
    return [
        Section("Which paths carry the panel", text, figure=intervals(points, unit="share of the effect")),
        Section(
            "Where the panel is known", "The same share for whole residual streams, one layer and place at a time.", figure=maps
        ),
    ]


def _path(found: Findings) -> Section:
    """Attention on the panels while the untouched model narrates."""
    labels = [str(k + 1) for k in range(found.config.panels)]
    tables = []
    for i, who in enumerate(("gaze heads", "random, same layers")):
        table = np.asarray(found.path["weighted"][i]).T
        # Each head set has its own scale: values of some heads are longer than those of others.
        tables.append((f"{who}, weighted by values", table / max(1e-9, table.max())))
    steps = [token.strip() for token in found.path["tokens"]][: tables[0][1].shape[1]]
    steps += [""] * (tables[0][1].shape[1] - len(steps))
    figure = share_maps(tables, steps, labels, row_title="panel")
    text = (
        "Nothing is turned here: the model describes all panels in order, and each column is one token it says. Attention on "
        "each panel, weighted by the norms of the values attended to; gaze heads make a staircase."
    )
    return Section("Where they look while it speaks", text, figure=figure)


def _reading(found: Findings) -> Section:
    answers: Sequence[Json] = found.reading["answers"]
    layers = sorted({a["layer"] for a in answers})
    lines = []
    for vector, name, colour in (
        ("direction", "reading direction", ACCENT),
        ("random", "random direction of the same length", MUTED),
    ):
        hits = [[a["flipped"] for a in answers if a["layer"] == layer and a["vector"] == vector] for layer in layers]
        bounds = [wilson(sum(h), len(h)) for h in hits]
        y = [sum(h) / len(h) for h in hits]
        lines.append(Line(name, layers, y, [b[0] for b in bounds], [b[1] for b in bounds], colour))
    figure = curves(
        lines, x_title="layer", y_title="share of answers about the panel counted from the right", unit="layer", log=False
    )
    text = (
        'What the words "Reading from right to left" change at the last prompt token, added at one layer to questions '
        "without them. Where it works, the panel's place is still to be looked up."
    )
    return Section("Reading the other way round", text, figure=figure)


def _answers(found: Findings) -> Section:
    rows = []
    for record in found.answers.answers["gaze"][0]:
        strip = next(s for s in found.data.test if s.id == record["strip"])
        before = found.answers.before(record)["text"]
        rows.append([record["strip"], str(record["target"] + 1), record["text"], strip.captions[record["target"]], before])
    header = ["strip", "panel", "answer with heads turned", "caption of that panel", "untouched answer"]
    text = f"Every answer to {found.config.question_this!r}. The panel asked for by name: {task.asked(found.config, 1)!r}."
    return Section("All answers", text, table=Table(header, rows), folded=True)
