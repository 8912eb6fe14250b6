"""Activation patching: which layer, head, MLP, neuron or position carries the difference between two prompts?

    effect = patch(lm, pair, at=Site("resid_post", 12), span="S2")
    grid   = Patcher(lm, encode(lm, pairs)).grid([Site("resid_post", l) for l in range(30)], spans)

One site at a time is given the value it has on the source prompt, and the change of the metric is its natural
indirect effect (Vig et al. 2020; Meng et al. 2022; Wang et al. 2022). *Noising* puts counterfactual values into the
clean run and tests necessity; *denoising* the reverse and tests sufficiency. Each patch replays only the layers
and columns it can change; sites that start at the same layer, and neighbouring positions where few tokens are left,
are folded into one batch; and positions before the first differing token, where both runs are equal, cost nothing:
their effect is exactly 0.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mediant.core.errors import OutOfRange, SpanError, TaskError
from mediant.core.pair import Pair
from mediant.core.ranking import Ranking, Scored
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Activation, Edit, swap_at
from mediant.interventions.execute import Output
from mediant.interventions.firings import Firing
from mediant.interventions.replay import Recording, branch, record, replay
from mediant.measures.effects import Decomposition, Effect, cluster_labels
from mediant.measures.intervals import Array, estimate
from mediant.measures.metrics import Metric, Outcome, metric
from mediant.subject import Subject
from mediant.tasks.encode import Direction, PairBatch, encode

FOLD_TOKENS = 768
# What a forward costs beyond its tokens, in tokens: weights are read once, however few tokens there are.
PASS_TOKENS = 16


class Patcher:
    """A batch of pairs made ready for many patches: base recorded once, source captured once.

    Sites named in `capture` are kept from the first source run; others cost one more when first asked for.

    Attributes:
        before, source: metric of the untouched base and source runs, one value per pair.
        outcome: the untouched base run's answers.
    """

    def __init__(
        self, subject: Subject, pairs: PairBatch, *, by: str | Metric = "logit_diff", capture: Sequence[Site] = ()
    ) -> None:
        self.subject, self.pairs, self.metric = subject, pairs, metric(by)
        self._fork = int(pairs.first_difference.min())
        with torch.no_grad():
            self.base: Recording = record(subject, pairs.base, keep=pairs.keep)
            places = [(site, Span("all")) for site in dict.fromkeys(_whole(subject.validate(site)) for site in capture)]
            source = branch(self.base, pairs.source, self._fork, capture=places, keep=pairs.keep)
        self.outcome = Outcome(pairs, self.base.logits)
        self.before, self.source = self.measured(self.outcome), self.measured(Outcome(pairs, source.logits))
        self._captured: dict[Site, Activation] = {site: source.captured[site, span] for site, span in places}

    @property
    def total(self) -> Array:
        """Total effect per pair."""
        return self.source - self.before

    def capture(self, sites: Iterable[Site]) -> None:
        """Capture sites of the source run, all missing ones in a single forward."""
        whole = dict.fromkeys(_whole(self.subject.validate(site)) for site in sites)
        missing = [site for site in whole if site not in self._captured]
        if missing:
            places = [(site, Span("all")) for site in missing]
            with torch.no_grad():
                out = branch(self.base, self.pairs.source, self._fork, capture=places, keep=self.pairs.keep)
            self._captured |= {site: out.captured[site, span] for site, span in places}

    def source_at(self, site: Site, span: Span) -> Activation:
        """The source's values at the part of `span` where the runs can differ."""
        self.capture([site])
        found = self._captured[_whole(site)].select(*self.pairs.changed(span))
        return (
            found if site.head is None or _whole(site) == site else Activation(found.values[:, site.head], found.rows, found.cols)
        )

    def swap(self, site: Site, span: Span | str, *, copy: int = 0) -> Edit:
        """The edit that writes the source's values into one copy of the base."""
        source = self.source_at(site, Span.of(span))
        shifted = Activation(source.values, source.rows + copy * self.pairs.base.n_rows, source.cols)
        return swap_at(site, Span.of(span), shifted)

    def swaps(self, site: Site, span: Span | str) -> list[Edit]:
        """The same as a list, which of a picture made in steps has one entry per step."""
        return [self.swap(site, span)]

    def effect(self, edits: Sequence[Edit]) -> tuple[Array, list[Firing]]:
        """Metric after minus before for some edits together, one value per pair."""
        out = self._under(edits)
        return self.measured(Outcome(self.pairs, out.logits)) - self.before, out.firings

    def wrong(self, outcome: Outcome) -> Tensor:
        """How far an outcome is from the source's: cross-entropy (nats) between the two answers, mean over pairs."""
        return F.softplus(outcome.answer_logprob - outcome.counterfactual_logprob).mean()

    def outcome_of(self, edits: Sequence[Edit], *, gradients: bool = False) -> Outcome:
        """The answers under some edits together; with `gradients`, as a function of what the edits hold."""
        return Outcome(self.pairs, self._under(edits, gradients=gradients).logits)

    def _under(self, edits: Sequence[Edit], *, gradients: bool = False) -> Output:
        with torch.set_grad_enabled(gradients):
            return replay(self.base, edits, keep=self.pairs.keep)

    def joint(self, sites: Sequence[Site], span: Span | str = "all") -> Array:
        """Effect of giving several sites their source values at once."""
        if not sites:
            return np.zeros(len(self.pairs.pairs))
        return self.effect([self.swap(site, span) for site in sites])[0]

    def grid(
        self, sites: Sequence[Site | str], spans: Sequence[Span | str], *, tick: Callable[[int], None] | None = None
    ) -> Array:
        """Effects of every site at every span, each on its own: shape (site, span, pair)."""
        result = np.zeros((len(sites), len(spans), len(self.pairs.pairs)))
        places = [self.subject.validate(site) for site in sites]
        self.capture(places)
        cells = [(i, j) for i in range(len(places)) for j in range(len(spans))]
        found = self.each([self.variant(places[i], spans[j]) for i, j in cells], tick=tick)
        for (i, j), values in zip(cells, found, strict=True):
            result[i, j] = values
        return result

    def variant(self, site: Site, span: Span | str) -> "Variant":
        """One intervention on a copy of the base that is yet to be numbered."""
        return lambda copy: self.swap(site, span, copy=copy)

    def each(self, variants: "Sequence[Variant]", *, tick: Callable[[int], None] | None = None) -> Array:
        """Effect of each variant on its own, several folded into one forward: shape (variant, pair).

        Args:
            tick: called with how many more are done.
        """
        n, tell = self.pairs.base.n_rows, tick or (lambda _: None)
        result, cells = np.zeros((len(variants), len(self.pairs.pairs))), list[_Cell]()
        for i, make in enumerate(variants):
            first = make(0)
            if not first.empty:
                assert first.places is not None  # noqa: S101 - swaps are made at places
                start = min(_start(first.site), self.subject.shape.n_layers)
                cells.append(_Cell(int(first.places[1].min()), start, i))
        if len(cells) < len(variants):
            tell(len(variants) - len(cells))
        for some in _folds(cells, n, self.pairs.base.n_cols, self.subject.shape.n_layers):
            edits = [variants[cell.variant](copy) for copy, cell in enumerate(some)]
            with torch.no_grad():
                starts = [cell.start for cell in some]
                out = replay(self.base, edits, times=len(some), starts=starts, keep=self.pairs.keep)
            for cell, logits in zip(some, out.logits.split(n), strict=True):
                result[cell.variant] = self.measured(Outcome(self.pairs, logits)) - self.before
            tell(len(some))
        return result

    def measured(self, outcome: Outcome) -> Array:
        """The metric of an outcome, one value per pair."""
        values: Tensor = self.metric(outcome)
        return np.asarray(values.double().cpu().numpy())


class _Cell(NamedTuple):
    """A variant, and the first column and layer it needs."""

    column: int
    start: int
    variant: int


def _folds(cells: Sequence[_Cell], rows: int, n_cols: int, n_layers: int) -> list[list[_Cell]]:
    """Which variants run together: those of neighbouring columns, where reading the weights once more would cost more than
    computing columns that some of them do not need. Within a fold, variants of later layers join the others on their way up.
    """
    firsts = sorted({cell.column for cell in cells})
    by_start = sorted(cells, key=lambda cell: (cell.start, cell.column, cell.variant))

    def cut(a: int, b: int) -> list[list[_Cell]]:
        some = [cell for cell in by_start if firsts[a] <= cell.column < (firsts[b] if b < len(firsts) else n_cols)]
        size = max(1, FOLD_TOKENS // (rows * (n_cols - firsts[a])))
        return [some[i : i + size] for i in range(0, len(some), size)]

    def cost(folds: list[list[_Cell]], column: int) -> int:
        tokens = sum(n_layers - cell.start for fold in folds for cell in fold) * rows * (n_cols - column)
        return tokens + PASS_TOKENS * sum(n_layers - fold[0].start for fold in folds)

    # best[b]: least cost of the first b columns, and where their last fold begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for b in range(1, len(firsts) + 1):
        best.append(min((best[a][0] + cost(cut(a, b), firsts[a]), a) for a in range(b)))
    found, b = list[list[_Cell]](), len(firsts)
    while b:
        found, b = cut(best[b][1], b) + found, best[b][1]
    return found


Variant = Callable[[int], Edit]


def patch(
    subject: Subject,
    pairs: Pair | Sequence[Pair],
    *,
    at: Site | str | Sequence[Site | str],
    span: Span | str = "all",
    by: str | Metric = "logit_diff",
    direction: Direction = "noising",
) -> Effect:
    """Natural indirect effect of one site, or of several together, at a span.

    Raises:
        UnknownName, OutOfRange, SubjectError: a site, span or metric that does not exist here.
        TaskError: pairs that cannot be aligned.
    """
    items = [pairs] if isinstance(pairs, Pair) else list(pairs)
    sites = [subject.validate(site) for site in ([at] if isinstance(at, Site | str) else at)]
    if not sites:
        raise OutOfRange("nothing to patch: no sites were given")
    if Span.of(span).name == "generated":
        raise SpanError("pairs are scored without generating, so nothing can be patched at generated tokens")
    patcher = Patcher(subject, encode(subject, items, direction=direction), by=by)
    values, firings = patcher.effect([patcher.swap(site, span) for site in sites])
    label = f"{direction} {', '.join(map(str, sites[:3]))}{', ...' if len(sites) > 3 else ''} at {span}"
    clusters = cluster_labels([p.template for p in items]) or []
    return Effect(label, values, patcher.before, patcher.source, tuple(p.id for p in items), tuple(clusters), firings)


def decompose(
    subject: Subject,
    pairs: Pair | Sequence[Pair],
    *,
    at: Site | str | Sequence[Site | str],
    span: Span | str = "all",
    by: str | Metric = "logit_diff",
) -> Decomposition:
    """Total, natural indirect and natural direct effects of a mediator, per item."""
    pairs = [pairs] if isinstance(pairs, Pair) else list(pairs)
    sites = [subject.validate(site) for site in ([at] if isinstance(at, Site | str) else at)]
    there = Patcher(subject, encode(subject, pairs), by=by)
    back = Patcher(subject, encode(subject, pairs, direction="denoising"), by=by)
    # NDE = m(x' | do Z = Z(x)) - m(x): the reverse patch, measured from the base's own metric.
    return Decomposition(there.total, there.joint(sites, span), back.joint(sites, span) + back.before - there.before)


def rank(
    subject: Subject,
    pairs: Sequence[Pair],
    sites: Sequence[Site | str],
    *,
    span: Span | str = "all",
    by: str | Metric = "logit_diff",
    direction: Direction = "noising",
    batch_size: int = 32,
    seed: int = 0,
) -> Ranking:
    """Patch sites one at a time and rank them by |mean effect|."""
    if not sites:
        raise OutOfRange("nothing to rank: no sites were given")
    if not pairs:
        raise TaskError("nothing to rank on: no pairs were given")
    places = [subject.validate(site) for site in sites]
    parts = [
        Patcher(subject, encode(subject, pairs[i : i + batch_size], direction=direction), by=by).grid(places, [span])[:, 0]
        for i in range(0, len(pairs), batch_size)
    ]
    return ranking_of(places, np.concatenate(parts, axis=1), pairs, method=f"activation patching, {direction}", by=by, seed=seed)


def ranking_of(
    sites: Sequence[Site], effects: Array, pairs: Sequence[Pair], *, method: str, by: str | Metric = "logit_diff", seed: int = 0
) -> Ranking:
    """A ranking from a (site, pair) table of effects."""
    clusters = cluster_labels([p.template for p in pairs])
    entries = []
    for site, values in zip(sites, effects, strict=True):
        found = estimate(values, clusters=clusters, seed=seed, draws=500)
        entries.append(Scored(str(site), found.value, found.ci95, found.n))
    unit = sites[0].kind if len({s.kind for s in sites}) == 1 else "site"
    name = by if isinstance(by, str) else getattr(by, "__name__", "metric")
    return Ranking("head" if unit == "head_z" else unit, entries, metric=name, method=method)


def neuron_effects(patcher: Patcher, layer: int, span: Span | str, neurons: Sequence[int]) -> Array:
    """Effect of each hidden MLP neuron on its own: shape (neuron, pair).

    Raises:
        OutOfRange: a neuron the MLP does not have.
    """
    site, size = Site("mlp_post", layer), patcher.subject.shape.d_mlp
    wrong = [i for i in neurons if not 0 <= i < size]
    if wrong:
        raise OutOfRange(f"neurons {wrong[:5]} do not exist: layer {layer} has neurons 0 to {size - 1}")

    def variant(neuron: int) -> Variant:
        return lambda copy: replace(patcher.swap(site, span, copy=copy), index=(neuron,))

    return patcher.each([variant(neuron) for neuron in neurons])


def _whole(site: Site) -> Site:
    """All heads of a per-head site, so that one capture serves every head; a head's own result is derived singly."""
    return site if site.head is None or site.kind == "head_result" else Site(site.kind, site.layer)


def _start(site: Site) -> int:
    """First layer whose recomputation the site needs; the final norm comes after all layers."""
    return 10**6 if site.layer is None else site.layer + (site.kind == "resid_post")
