"""Which heads carry an edge between token groups? An estimate for all heads at once, from one run with gradients.

    found = knockout_effects(flux, batch, query="text", key="reference", metric=metric)
    found.ranking()                            # heads whose view of the reference, through the text, the picture hangs on most

Were head h of block l kept from attending to the keys in the queries' rows, its values there would be others; the metric then
changes, to first order, by their difference times its gradient (attribution patching, Nanda 2023; Syed et al. 2023, arXiv
2310.10348, with the edge itself cut instead of patched). Every attention call is made once more with the edge cut in all heads,
which costs one forward's attention; gradients flow through all steps of the picture.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mediant.core.edge import AttentionEdge
from mediant.core.ranking import Ranking, Scored
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.bias import cut
from mediant.interventions.edge_masks import EdgeMasks
from mediant.measures.intervals import estimate
from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator, Latents

Metric = Callable[[Latents], Float[Tensor, " row"]]


@dataclass(frozen=True, eq=False)
class KnockoutEffects:
    """Estimated change of the metric when one head's edge is cut.

    Attributes:
        effects: per row of the batch, layer and head, summed over steps; negative where the head helps.
        query, key: the edge's spans.
    """

    effects: Float[np.ndarray, "row layer head"]
    query: str
    key: str

    def ranking(self) -> Ranking:
        """Heads in order of their mean effect, those that help most first."""
        entries = []
        for layer, head in np.ndindex(*self.effects.shape[1:]):
            one = estimate(self.effects[:, layer, head])
            entries.append(Scored(f"head_z.{layer}.{head}", one.value, one.ci95, one.n))
        return Ranking("head", entries, "most_negative", "metric", f"attribution of cutting {self.key} -> {self.query}")


def knockout_effects(
    subject: ImageGenerator, batch: Batch, *, query: str, key: str, metric: Metric, steps: int | None = None
) -> KnockoutEffects:
    """Estimate, for every head, what cutting its edge from `key` to `query` would do to the metric.

    Args:
        metric: of each row's latents; higher where the property is there.
    """
    # Gradients reach every step whether or not the weights ask for any.
    batch = replace(batch, inputs={**batch.inputs, "noise": batch.inputs["noise"].clone().requires_grad_()})
    probe = _Probe(subject, batch, query, key)
    with torch.enable_grad(), probe.watching():
        value = metric(subject.sample(batch, steps=steps, gradients=True))
        found = torch.autograd.grad(value.sum(), [seen for seen, _, _ in probe.seen], allow_unused=True)
    effects = np.zeros((batch.n_rows, subject.shape.n_layers, subject.shape.n_heads))
    for (_, change, layer), gradient in zip(probe.seen, found, strict=True):
        if gradient is not None:
            moved = (gradient[..., : change.shape[-1]] * change).unflatten(-1, (subject.shape.n_heads, -1))
            effects[:, layer] += moved.sum((1, 3)).double().cpu().numpy()
    return KnockoutEffects(effects, query, key)


class _Probe:
    """Sees every head's values as they are, and as they would be with the edge cut."""

    def __init__(self, subject: ImageGenerator, batch: Batch, query: str, key: str) -> None:
        self.subject, self.batch = subject, batch
        edges = [AttentionEdge(layer, None, query, key) for layer in range(subject.shape.n_layers)]
        self.masks = EdgeMasks(subject, [cut(edge) for edge in edges])
        self.wanted = torch.zeros(batch.n_rows, batch.n_cols, dtype=torch.bool, device=batch.ids.device)
        rows, cols = batch.locate(Span.of(query))
        self.wanted[rows, cols] = True
        # Values that came by (part of a graph), how they would change, and their layer; one entry per stream, block and step.
        self.seen: list[tuple[Tensor, Tensor, int]] = []
        self._again = False
        self._now: dict[str, Tensor] = {}
        self._cut: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on attention and on what its heads are projected by, for as long as the block lasts."""
        family, shape, model = self.subject.family, self.subject.shape, self.subject.model
        handles = [self.subject.entry.register_forward_pre_hook(self._note, with_kwargs=True)]
        for layer in range(shape.n_layers):
            for place in family.places(Site("head_z", layer), shape):
                handles.append(model.get_submodule(place.module).register_forward_pre_hook(self._keeping(place.stream)))
            attention = model.get_submodule(family.attention(layer, shape))
            handles.append(attention.register_forward_hook(self._redoing(layer), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.subject.note_call(args, kwargs)

    def _keeping(self, stream: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            (self._cut if self._again else self._now)[stream] = args[0]

        return hook

    def _redoing(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: object) -> None:
            if self._again:
                return
            mask = self.masks.mask(layer)
            self._again = True
            try:
                with torch.no_grad():
                    module(*args, **{**kwargs, "attention_mask": mask})
            finally:
                self._again = False
            width = self.subject.shape.n_heads * self.subject.shape.d_head
            for stream, now in self._now.items():
                first, n = self.subject.window.part(stream)
                # Single blocks hand the MLP's neurons over after the heads, and those do not see the edge.
                change = (self._cut[stream] - now.detach())[..., :width] * self.wanted[:, first : first + n, None]
                self.seen.append((now, change, layer))
            self._now, self._cut = {}, {}

        return hook
