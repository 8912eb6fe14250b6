"""The algorithm, top to bottom: where do heads look, which are chosen, what does turning them do.

Every function takes strips and returns plain records, one per answer, so that each call is one work item of a run and nothing is
averaged before it is stored.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random

import numpy as np
import torch

from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.attention import Rows, attending
from mediant.interventions.edits import add
from mediant.interventions.execute import edit, run
from mediant.interventions.look import BETA, Look, Schedule
from mediant.interventions.looking import looking
from mediant.measures import judges
from mediant.measures.controls import layer_matched, random_sets
from mediant.measures.intervals import Array
from mediant.measures.panel_judge import PanelJudge
from mediant.runs.folder import Json
from mediant.search.gaze import GazeScores, Score, asked_for
from mediant.studies.gaze_heads.config import Config
from mediant.studies.gaze_heads.task import asked
from mediant.subject import Batch
from mediant.subject.regions import Box
from mediant.subject.vision import VisionSubject
from mediant.tasks.regions import RegionPicture
from mediant.tasks.strips import PanelStrip

SiteSet = tuple[Site, ...]
LOWEST = 0.05
REVERSED = "Reading from right to left, "


def names(n: int) -> list[str]:
    """Span names of a strip's panels."""
    return [f"panel {k}" for k in range(n)]


def panels_of(strip: PanelStrip) -> dict[str, Box]:
    """Span name -> box."""
    return dict(zip(names(strip.n), strip.boxes, strict=True))


def gaze(subject: VisionSubject, strip: PanelStrip, config: Config) -> Json:
    """Attention of every head on every panel while each panel is asked for: (query, layer, head, panel)."""
    mass, spread = asked_for(subject, strip.pixels, strip.boxes, [asked(config, k) for k in range(strip.n)])
    return {"strip": strip.id, "mass": np.round(mass, 6).tolist(), "spread": np.round(spread, 5).tolist()}


@dataclass(frozen=True)
class HeadSets:
    """Heads under test and the sets they are compared with.

    Attributes:
        bottom: the paper's control: heads whose score is in the lowest 5 %, as many as there are, at most K.
        image, localisation: the first K heads of two other rankings from the literature.
    """

    top: SiteSet
    random: tuple[SiteSet, ...]
    layer_matched: tuple[SiteSet, ...]
    bottom: SiteSet
    every: SiteSet
    image: SiteSet
    localisation: SiteSet

    def named(self) -> dict[str, tuple[SiteSet, ...]]:
        """Condition -> head sets, one per draw."""
        return {
            "gaze": (self.top,), "random": self.random, "layer_matched_random": self.layer_matched, "bottom5": (self.bottom,),
            "all": (self.every,), "image_heads": (self.image,), "localisation_heads": (self.localisation,),
        }  # fmt: skip


def head_sets(scores: GazeScores, score: Score, k: int, *, draws: int, seed: int) -> HeadSets:
    """The top K heads and their controls."""
    ranking = scores.ranking(score)
    top, every = tuple(ranking.sites(k)), tuple(scored.site for scored in ranking)
    level = float(np.percentile([scored.score for scored in ranking], 100 * LOWEST))
    pool = [scored.site for scored in ranking if scored.score <= level and scored.site not in top]
    bottom = tuple(Random(seed).sample(pool, min(k, len(pool))))
    return HeadSets(
        top, random_sets(top, every, draws=draws, seed=seed), layer_matched(top, every, draws=draws, seed=seed), bottom, every,
        tuple(scores.image_heads().sites(k)), tuple(scores.localisation_heads().sites(k)),
    )  # fmt: skip


def captions(
    subject: VisionSubject, strips: Sequence[PanelStrip], config: Config, heads: SiteSet = (), beta: float = BETA
) -> list[Json]:
    """Answers to questions that settle the panel; heads given look at the panel that is asked for."""
    jobs = [_Job(strip, k, asked(config, k)) for strip in strips for k in range(strip.n)]
    return _answered(subject, jobs, config, config.answer_tokens, heads, beta)


def redirected(
    subject: VisionSubject,
    strips: Sequence[PanelStrip],
    question: str,
    tokens: int,
    config: Config,
    heads: SiteSet,
    beta: float,
) -> list[Json]:
    """Answers to an open question while heads look at each panel in turn, against the answer without."""
    jobs = [_Job(strip, k, question) for strip in strips for k in range(strip.n)]
    return _answered(subject, jobs, config, tokens, heads, beta)


def unsteered(subject: VisionSubject, strips: Sequence[PanelStrip], question: str, tokens: int, config: Config) -> list[Json]:
    """Answers to an open question, one per strip, with the panel they describe."""
    jobs = [_Job(strip, 0, question) for strip in strips]
    return _answered(subject, jobs, config, tokens)


@dataclass(frozen=True, eq=False)
class _Job:
    strip: PanelStrip
    target: int
    question: str


def _answered(
    subject: VisionSubject, jobs: Sequence[_Job], config: Config, tokens: int, heads: SiteSet = (), beta: float = BETA
) -> list[Json]:
    records: list[Json] = []
    for start in range(0, len(jobs), config.batch_size):
        part = jobs[start : start + config.batch_size]
        batch = subject.look(
            [job.strip.pixels for job in part],
            [job.question for job in part],
            regions=[{"target": job.strip.boxes[job.target]} for job in part],
        )
        with looking(subject, Look(heads, "target", mode=config.mode, beta=beta)):
            texts = subject.answers(batch, max_new_tokens=tokens)
        records += [judged(job.strip, job.target, text) for job, text in zip(part, texts, strict=True)]
    return records


def judged(strip: PanelStrip, target: int, text: str) -> Json:
    """One answer with everything that is later counted."""
    return {
        "strip": strip.id, "target": target, "text": text,
        "exact": judges.exactly(text, strip.captions[target]),
        "facts": [fact in judges.words(text) for fact in strip.facts[target]] if strip.facts else [],
        "described": None if judges.repetitive(text) else judges.described(strip.captions, text),
        "junk": judges.repetitive(text),
    }  # fmt: skip


def looked_at(
    subject: VisionSubject, pictures: Sequence[RegionPicture], config: Config, heads: SiteSet, beta: float
) -> list[Json]:
    """What it names when heads look at each thing's box in turn; without heads, once per picture."""
    jobs = [(picture, i) for picture in pictures for i in range(len(picture.boxes) if heads else 1)]
    records: list[Json] = []
    for start in range(0, len(jobs), config.batch_size):
        part = jobs[start : start + config.batch_size]
        batch = subject.look(
            [picture.pixels for picture, _ in part],
            [config.question_here] * len(part),
            regions=[{"target": picture.boxes[i]} for picture, i in part],
            nearest=True,
        )
        with looking(subject, Look(heads, "target", mode=config.mode, beta=beta)):
            texts = subject.answers(batch, max_new_tokens=config.answer_tokens)
        for row, ((picture, i), text) in enumerate(zip(part, texts, strict=True)):
            said = set(judges.words(text))
            named = [j for j, facts in enumerate(picture.facts) if set(facts) <= said]
            tokens = len(batch.columns(row, Span("target")))
            records.append(
                {"strip": picture.id, "target": i, "size": picture.sizes[i], "tokens": tokens, "text": text, "named": named}
            )
    return records


def verdicts(judge: PanelJudge, strips: Sequence[PanelStrip], answers: Sequence[Json]) -> Json:
    """A judge's word on each answer."""
    by_id = {strip.id: strip for strip in strips}
    found = [judge(by_id[record["strip"]].pixels, by_id[record["strip"]].n, record["text"]) for record in answers]
    return {"verdicts": [asdict(verdict) for verdict in found]}


def derangement(n: int, random: Random) -> list[int]:
    """An order in which no panel stands in its own place."""
    order = list(range(n))
    for _ in range(100):
        random.shuffle(order)
        if all(i != k for i, k in enumerate(order)):
            return order
    return [*range(1, n), 0]


def narrated(subject: VisionSubject, strips: Sequence[PanelStrip], config: Config, heads: SiteSet, beta: float) -> list[Json]:
    """Narrations while heads follow a random derangement of the panels, a new one every so many tokens."""
    n, size = config.panels, config.segment_tokens
    # Decode step s makes new token s + 1: the first turn is a token shorter, so that segments begin where they are cut.
    starts = (0, *(size * i - 1 for i in range(1, n)))
    records: list[Json] = []
    for begin in range(0, len(strips), config.batch_size):
        part = strips[begin : begin + config.batch_size]
        orders = [derangement(n, Random(f"{config.seed}-{strip.id}")) for strip in part]
        regions = [{f"turn {i}": strip.boxes[k] for i, k in enumerate(order)} for strip, order in zip(part, orders, strict=True)]
        batch = subject.look([strip.pixels for strip in part], [config.question_narrate] * len(part), regions=regions)
        plan = Schedule(tuple(f"turn {i}" for i in range(n)), starts)
        with looking(subject, Look(heads, plan, mode=config.mode, beta=beta, when="decode")):
            said = subject.generate(batch, max_new_tokens=n * size)
        for strip, order, ids in zip(part, orders, said.tolist(), strict=True):
            texts = [subject.text_of(ids[size * i : size * (i + 1)]) for i in range(n)]
            segments = [judged(strip, k, text) for k, text in zip(order, texts, strict=True)]
            records.append({"strip": strip.id, "order": order, "segments": segments})
    return records


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation with ties at their mean rank; 0 where one side does not vary."""
    a, b = (_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Array) -> Array:
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(len(values))
    for value in np.unique(values):
        ranks[values == value] = ranks[values == value].mean()
    return ranks


def trajectory(subject: VisionSubject, strip: PanelStrip, question: str, tokens: int, sets: Sequence[SiteSet]) -> Json:
    """Attention on each panel while the model speaks, untouched: raw, and weighted by the norms of the values attended to.

    Per head set: (step, panel), mean over heads, sum over a panel's tokens. Weighting after Kobayashi et al. (2020).
    """
    batch = subject.look([strip.pixels], [question], regions=[panels_of(strip)])
    sites = [site for heads in sets for site in heads]
    rows = [Rows(s.layer, "generated", (s.head,)) for s in sites if s.layer is not None and s.head is not None]
    norms = _value_norms(subject, batch, sites)
    with attending(subject, rows=rows) as seen:
        ids = subject.generate(batch, max_new_tokens=tokens)[0].tolist()
    columns = [batch.columns(0, Span(name)) for name in names(strip.n)]
    raw, weighted, at = [], [], 0
    for heads in sets:
        tables = []
        for site in heads:
            weights = seen.rows[at].weights[:, 0].double().cpu().numpy()
            norm = norms[site]
            tables.append([[weights[:, c].sum(1) for c in columns], [(weights[:, c] * norm[c]).sum(1) for c in columns]])
            at += 1
        mean = np.asarray(tables).mean(0)
        raw.append(np.round(mean[0].T, 5).tolist())
        weighted.append(np.round(mean[1].T, 5).tolist())
    return {"strip": strip.id, "tokens": [subject.decode([i]) for i in ids[1:]], "raw": raw, "weighted": weighted}


def _value_norms(subject: VisionSubject, batch: Batch, sites: Sequence[Site]) -> dict[Site, Array]:
    """Norm of the value each prompt token offers to a head, by column."""
    layers = sorted({site.layer for site in sites if site.layer is not None})
    captured = run(subject, batch, capture=[(Site("v", layer), "prompt") for layer in layers]).captured
    found = {}
    for site in sites:
        values = captured[Site("v", site.layer), Span("prompt")]
        norms = np.zeros(batch.n_cols)
        per_head = values.values.reshape(len(values.cols), subject.shape.n_kv_heads, -1)[
            :, (site.head or 0) // subject.shape.group
        ]
        norms[values.cols.cpu().numpy()] = per_head.float().norm(dim=-1).cpu().numpy()
        found[site] = norms
    return found


def reversed_reading(subject: VisionSubject, strips: Sequence[PanelStrip], config: Config) -> Json:
    """Add what "from right to left" changes at the last prompt token, one layer at a time, to questions without it.

    The direction is the mean difference of residual streams over all panels of the first half of the strips; it is added to the
    questions of the other half. Per layer and draw: share of answers that describe the panel counted from the right.
    """
    half = len(strips) // 2
    layers = [Site("resid_post", layer) for layer in range(subject.shape.n_layers)]
    plain, turned = (_streams(subject, strips[:half], config, prefix, layers) for prefix in ("", REVERSED))
    records: list[Json] = []
    for site in layers:
        direction = (turned[site] - plain[site]).mean(0)
        noise = torch.randn(direction.shape, generator=torch.Generator().manual_seed(config.seed)).to(direction)
        for name, vector in (("direction", direction), ("random", noise / noise.norm() * direction.norm())):
            for strip in strips[half:]:
                batch = subject.look([strip.pixels] * strip.n, [asked(config, k) for k in range(strip.n)])
                with edit(subject, add(site, "last", vector)):
                    texts = subject.answers(batch, max_new_tokens=config.answer_tokens)
                said = [judges.described(strip.captions, text) for text in texts]
                records += [
                    {
                        "layer": site.layer,
                        "vector": name,
                        "strip": strip.id,
                        "k": k,
                        "flipped": p == strip.n - 1 - k,
                        "kept": p == k,
                    }
                    for k, p in enumerate(said)
                ]
    return {"answers": records}


def _streams(
    subject: VisionSubject, strips: Sequence[PanelStrip], config: Config, prefix: str, layers: Sequence[Site]
) -> dict[Site, torch.Tensor]:
    """Residual streams at the last prompt token of every question about every panel."""
    parts = []
    for strip in strips:
        asking = [asked(config, k) for k in range(strip.n)]
        questions = [f"{prefix}{q[0].lower()}{q[1:]}" if prefix else q for q in asking]
        out = run(subject, subject.look([strip.pixels] * strip.n, questions), capture=[(site, "last") for site in layers])
        parts.append({site: out.captured[site, Span("last")].values for site in layers})
    return {site: torch.cat([part[site] for part in parts]) for site in layers}
