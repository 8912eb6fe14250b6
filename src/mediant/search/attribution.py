"""Edge attribution: how much would the metric change if one edge carried the other run's value?

    scores = eap(lm, pairs)                                            # EAP: 2 forwards, 1 backward per batch
    scores = eap(lm, pairs, method="ig-inputs", steps=5)               # gradients along the way to the other embeddings
    scores = eap(lm, pairs, spans=["S1", "S2", "end"])                 # positional: one table per span, crossing edges
    scores.top(10)

An edge's score is the difference of what its source writes in the two runs, times the metric's gradient by what its
target reads (Syed et al. 2023; with integrated gradients Hanna et al. 2024; positional Haklay et al. 2025). Scores are
natural indirect effects to first order: negative where the edge helps.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import OutOfRange, TaskError, unknown
from mediant.core.graph import CircuitGraph
from mediant.core.pair import Pair
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Activation, swap_at
from mediant.interventions.execute import edit, run
from mediant.interventions.nodes import Nodes, TokenOrder, observe
from mediant.interventions.port_gradients import PortGradients, differentiate
from mediant.interventions.ports import graph_of
from mediant.measures.ablation import COUNTERFACTUAL, Ablation, ablated_run
from mediant.measures.metrics import Metric, Outcome, metric
from mediant.search.crossing import by_spans, crossing_scores
from mediant.subject import Subject
from mediant.tasks.encode import PairBatch, encode

METHODS = ("eap", "ig-inputs", "ig-activations", "clean-corrupted")
Order = Callable[[PairBatch], TokenOrder]
BLOCK = 128  # tokens whose edges are held at once


def eap(
    subject: Subject,
    pairs: Sequence[Pair],
    *,
    metric: str | Metric = "logit_diff",
    method: str = "eap",
    ablation: Ablation = COUNTERFACTUAL,
    steps: int = 5,
    spans: Sequence[Span | str] | None = None,
    crossing: bool = True,
    batch_size: int = 16,
    bootstrap: int = 0,
    seed: int = 0,
    order: Order | None = None,
) -> EdgeScores:
    """Scores of every edge of the subject's circuit graph.

    Args:
        method: `eap` takes the gradient at the clean run; `ig-inputs` averages it over `steps` embeddings between the
            counterfactual's and the clean (its own end left out, as published); `clean-corrupted` over both ends;
            `ig-activations` moves one layer's outputs at a time, for the edges that leave it.
        spans: a schema, every token in exactly one span; None sums over positions.
        crossing: with spans, also score edges between positions.
        bootstrap: Poisson resamples of the items that are accumulated beside the scores.
        order: assigns tokens to spans in another way than by `spans`' own places (for controls).

    Raises:
        UnknownName: no such method or metric.
        SpanError: a token in no span, or in two.
        TaskError: no pairs, or pairs that cannot be aligned.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    if not ablation.pairwise and method not in ("eap", "ig-inputs"):
        raise TaskError(
            f"method {method!r} goes from the clean to the counterfactual prompt; with {ablation.kind} ablation take 'eap' or "
            "'ig-inputs'"
        )
    if steps < 1:
        raise OutOfRange(f"steps must be at least 1, got {steps}")
    if not pairs:
        raise TaskError("no pairs were given, so there is nothing to attribute")
    names = ("all",) if spans is None else tuple(str(s) for s in spans)
    total = Accumulator(graph_of(subject), names, crossing=spans is not None and crossing, bootstrap=bootstrap, seed=seed)
    for start in range(0, len(pairs), batch_size):
        accumulate(
            total, subject, pairs[start : start + batch_size], metric=metric, method=method, ablation=ablation, steps=steps,
            order=order or (lambda batch: TokenOrder.of(batch.base, spans)),
        )  # fmt: skip
    name = metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")
    return total.scores(f"{method}, {ablation.kind} ablation", name)


def accumulate(
    total: "Accumulator",
    subject: Subject,
    pairs: Sequence[Pair],
    *,
    order: Order,
    metric: str | Metric = "logit_diff",
    method: str = "eap",
    ablation: Ablation = COUNTERFACTUAL,
    steps: int = 5,
    beside: Sequence[tuple["Accumulator", Order]] = (),
) -> None:
    """Add one batch of pairs to running sums: what `eap` does per batch, for callers that watch or share out the batches.

    Args:
        beside: further sums under other schemas, filled from the same passes (the shuffled control).
    """
    batch = encode(subject, pairs)
    sums = [_Sums(to, of(batch)) for to, of in [(total, order), *beside]]
    tokens = sums[0].tokens
    if ablation.pairwise:
        # Before the first different token there is nothing to attribute.
        tokens = tokens.after(batch.first_difference)
    attribution = _Attribution(subject, batch, tokens, metric, sums, ablation)
    getattr(attribution, method.replace("-", "_"))(steps)


class Accumulator:
    """Sums of scores over items, in one pass, with Poisson bootstrap replicates beside them.

    Poisson weights stand for resampling items with replacement without keeping any item's scores: millions of edges
    times hundreds of items would not fit (Chamandy et al. 2012).
    """

    def __init__(self, graph: CircuitGraph, spans: tuple[str, ...], *, crossing: bool, bootstrap: int = 0, seed: int = 0) -> None:
        self.graph, self.spans, self.n = graph, spans, 0
        sizes = (1 + bootstrap, len(spans))
        self.within = np.zeros((*sizes, graph.n_targets, graph.n_sources), dtype=np.float64 if not bootstrap else np.float32)
        shape = (1 + bootstrap, 3, graph.n_layers, graph.n_heads, len(spans), len(spans))
        self.crossing = np.zeros(shape) if crossing else None
        self._rng = np.random.default_rng(seed)
        self._weights = np.ones((0, 1 + bootstrap))
        self._drawn = np.zeros(bootstrap)

    def begin(self, n: int) -> None:
        """Draw the weights of the next `n` items."""
        draws = self._rng.poisson(1.0, (n, self.within.shape[0] - 1))
        self._weights = np.concatenate([np.ones((n, 1)), draws], axis=1)
        self.n += n
        self._drawn = self._drawn + draws.sum(0)

    def add_within(
        self, first: int, scores: Float[Tensor, "token port source"], spans: Int[Tensor, " token"], items: Int[Tensor, " token"]
    ) -> None:
        """Add scores of neighbouring ports, one table per token, to the token's span under the weights of its item."""
        ports, sources = scores.shape[1:]
        weights = torch.from_numpy(self._weights).to(scores)[items]
        for span in spans.unique().tolist():
            mine = spans == span
            summed = (weights[mine].mT @ scores[mine].flatten(1)).unflatten(1, (ports, sources))
            self.within[:, span, first : first + ports, :sources] += summed.cpu().numpy()

    def add_crossing(self, layer: int, scores: Float[Tensor, "3 item head span span"]) -> None:
        """Add a layer's crossing scores, one table per item."""
        assert self.crossing is not None  # noqa: S101 - callers ask for crossing edges only where they are kept
        weights = torch.from_numpy(self._weights).to(scores)
        self.crossing[:, :, layer] += torch.einsum("iw,kihst->wkhst", weights, scores).cpu().numpy()

    def scores(self, method: str, name: str) -> EdgeScores:
        """Means over items."""
        counts = [self.n, *np.maximum(1, self._drawn).tolist()]

        def table(i: int) -> EdgeScores:
            crossing = None if self.crossing is None else self.crossing[i] / counts[i]
            return EdgeScores(self.graph, self.spans, self.within[i] / counts[i], crossing, self.n, [], method, name)

        whole = table(0)
        whole.draws = [table(i) for i in range(1, self.within.shape[0])]
        return whole


@dataclass(frozen=True, eq=False)
class _Sums:
    """Where scores go: sums, and the spans of the batch at hand."""

    total: Accumulator
    tokens: TokenOrder

    def members(self) -> Float[Tensor, "batch pos span"]:
        """Which token is in which span."""
        hot = torch.nn.functional.one_hot(self.tokens.span_of.clamp(min=0), self.tokens.n_spans).double()
        return hot * (self.tokens.span_of >= 0)[..., None]


@dataclass(eq=False)
class _Attribution:
    """One batch of pairs."""

    subject: Subject
    pairs: PairBatch
    tokens: TokenOrder
    by: str | Metric
    sums: Sequence[_Sums]
    ablation: Ablation

    def __post_init__(self) -> None:
        for each in self.sums:
            each.total.begin(len(self.pairs.pairs))
        self.graph = graph_of(self.subject)
        rows, cols = self.tokens.rows, self.tokens.cols
        self.items = rows // self.pairs.rows_per_pair
        self.spans = [each.tokens.span_of[rows, cols] for each in self.sums]
        self.crossing = any(each.total.crossing is not None for each in self.sums)
        self.other = ablated_run(self.subject, self.pairs, self.tokens, self.ablation, with_attention=self.crossing)

    def eap(self, _: int) -> None:
        """Gradient at the clean run."""
        clean = self._gradients()
        self._add(clean, self._change(clean.nodes))

    def ig_inputs(self, steps: int) -> None:
        """Mean gradient on the straight line from the other run's embeddings; the clean end is left out."""
        clean = observe(self.subject, self.pairs.base, self.tokens, keep=self.pairs.keep)
        change, there = self._change(clean), self.other.outputs[0]
        for k in range(steps):
            at = there + k / steps * (clean.outputs[0] - there)
            self._add(self._gradients(at), change, share=1 / steps)

    def clean_corrupted(self, _: int) -> None:
        """Mean of the gradients at both ends; crossing edges at the clean one."""
        clean = self._gradients()
        change = self._change(clean.nodes)
        self._add(clean, change, share=0.5)
        self._add(self._gradients(self.other.outputs[0]), change, share=0.5, crossing=False)

    def ig_activations(self, steps: int) -> None:
        """Mean gradient while one sublayer's output moves, for the edges that leave it; crossing edges at the clean run."""
        clean = observe(self.subject, self.pairs.base, self.tokens, keep=self.pairs.keep)
        change, outputs = self._change(clean), self._sublayer_outputs()
        for site, nodes in self._sublayers():
            only = torch.zeros_like(change)
            only[nodes] = change[nodes]
            for k in range(1, steps + 1):
                # The sublayer's whole output moves from the other run's to the clean one's.
                back = change[nodes].sum(0) * (1 - k / steps)
                if site.kind == "embed":
                    self._add(self._gradients(clean.outputs[0] + back), only, share=1 / steps, crossing=False)
                    continue
                moved = Activation(outputs[site] + back, self.tokens.rows, self.tokens.cols)
                with edit(self.subject, swap_at(site, Span("all"), moved)):
                    self._add(self._gradients(), only, share=1 / steps, crossing=False)
        self._add(self._gradients(), torch.zeros_like(change))

    def _sublayers(self) -> Iterator[tuple[Site, slice]]:
        yield Site("embed"), slice(0, 1)
        for layer in range(self.graph.n_layers):
            first = self.graph.first_source(layer)
            yield Site("attn_out", layer), slice(first, first + self.graph.n_heads)
            yield Site("mlp_out", layer), slice(first + self.graph.n_heads, first + self.graph.n_heads + 1)

    def _sublayer_outputs(self) -> dict[Site, Float[Tensor, "token d_model"]]:
        """What each layer's attention and MLP add to the stream in the clean run."""
        sites = [site for site, _ in self._sublayers() if site.kind != "embed"]
        with torch.no_grad():
            found = run(self.subject, self.pairs.base, capture=[(site, Span("all")) for site in sites]).captured
        outputs = {}
        for site in sites:
            seen = found[site, Span("all")]
            table = seen.values.new_zeros(*self.pairs.base.ids.shape, seen.values.shape[-1])
            table[seen.rows, seen.cols] = seen.values
            outputs[site] = self.tokens.pick(table)
        return outputs

    def _gradients(self, embedding: Tensor | None = None) -> PortGradients:
        return differentiate(
            self.subject, self.pairs.base, self.tokens, self._measure, embedding=embedding,
            with_attention=self.crossing, keep=self.pairs.keep,
        )  # fmt: skip

    def _measure(self, logits: Tensor) -> Tensor:
        return metric(self.by)(Outcome(self.pairs, logits)).sum()

    def _change(self, clean: Nodes) -> Float[Tensor, "source token d_model"]:
        return self.other.outputs - clean.outputs

    def _add(self, found: PortGradients, change: Tensor, *, share: float = 1.0, crossing: bool = True) -> None:
        for first, gradients in found.by_layer():
            known = change[: self.graph.readable(first)]
            for at in torch.arange(len(self.items)).split(BLOCK):
                some = slice(int(at[0]), int(at[-1]) + 1)
                scores = gradients[:, some].transpose(0, 1) @ known[:, some].permute(1, 2, 0) * share
                for each, spans in zip(self.sums, self.spans, strict=True):
                    each.total.add_within(first, scores, spans[some], self.items[some])
        if crossing and self.crossing:
            self._add_crossing(found, share)

    def _add_crossing(self, found: PortGradients, share: float) -> None:
        step = self.pairs.rows_per_pair
        wanted = [(each.total, each.members()) for each in self.sums if each.total.crossing is not None]
        attention = zip(found.nodes.attention, self.other.attention, found.mixed, strict=True)
        for layer, (now, then, gradient) in enumerate(attention):
            by_query, by_key = now.score(then.query, now.key), now.score(now.query, then.key)
            scores = crossing_scores(now.logits, by_query, by_key, now.value, then.value, gradient)
            for total, members in wanted:
                summed = by_spans(scores, members.to(scores.device))
                total.add_crossing(layer, summed.unflatten(1, (-1, step)).sum(2) * share)
