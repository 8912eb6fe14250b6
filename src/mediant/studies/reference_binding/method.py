"""Three interventions on a picture made with a reference (Ge et al. 2026), and the search for heads that carry what they find.

    batch = encoded(flux, requests)
    knockout(flux, batch, [("reference", "text")], steps=4)               # what is left when the text cannot see the reference
    lens(flux, batch, Reading("diagonal", layer=4), slots="text", steps=4)    # what the text alone brings into an empty picture
    patched(flux, source, base, layer=4, slots="text", steps=4)           # whose reference wins when the text is another run's

A flow ("reference", "text") is information from the first group to the second: queries of the second lose sight of keys of the
first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.edge import AttentionEdge
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edit, edits
from mediant.interventions.attention import attending, bias, cut
from mediant.interventions.edits import Activation, Edit
from mediant.search.edge_knockout import KnockoutEffects, knockout_effects
from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator, Latents
from mediant.tasks.encode_requests import encoded
from mediant.tasks.requests import Request

GROUPS = ("text", "picture", "reference")
FLOWS = tuple((key, query) for key in GROUPS for query in GROUPS if key != query)
WAYS: tuple[Literal["diagonal", "input"], ...] = ("diagonal", "input")
# What is added to the logits of a flow, in nats, where the search for heads takes its gradients.
WEAKER = (0.0, -0.7, -1.6, -3.0, -6.0)
Flow = tuple[str, str]
Heads = Sequence[Site]


@dataclass(frozen=True)
class Reading:
    """What the lens reads, and where it puts it.

    Attributes:
        way: `diagonal` puts the text after a block back after the same block, in one step; `input` puts it where text enters
            the first block, in every step.
        layer: the block read.
    """

    way: Literal["diagonal", "input"]
    layer: int

    @property
    def label(self) -> str:
        """Short name for pages."""
        return f"block {self.layer}, {'put back there' if self.way == 'diagonal' else 'put in as text'}"


def without(subject: ImageGenerator, requests: Sequence[Request], *, instructed: bool, other_noise: int = 0) -> Batch:
    """The same without references, and if not `instructed` without words."""
    bare = [replace(each, references=(), instruction=each.instruction if instructed else "") for each in requests]
    return encoded(subject, bare, other_noise=other_noise)


def knockout(
    subject: ImageGenerator, batch: Batch, flows: Sequence[Flow], *, steps: int, layers: Sequence[int] | None = None,
    heads: Heads | None = None,
) -> Latents:  # fmt: skip
    """Pictures with flows cut, in all blocks or some, for all heads or some."""
    every = range(subject.shape.n_layers) if layers is None else layers
    places = [(layer, None) for layer in every] if heads is None else [(site.layer or 0, site.head) for site in heads]
    cuts = [cut(AttentionEdge(layer, head, query, key)) for key, query in flows for layer, head in places]
    with attending(subject, cuts):
        return subject.sample(batch, steps=steps)


def strengthened(subject: ImageGenerator, batch: Batch, flow: Flow, beta: float, *, layers: Sequence[int], steps: int) -> Latents:
    """Pictures with `beta` added to the logits of a flow in some blocks."""
    key, query = flow
    with attending(subject, [bias(AttentionEdge(layer, None, query, key), beta) for layer in layers]):
        return subject.sample(batch, steps=steps)


def split_knockout(
    subject: ImageGenerator, batch: Batch, early: Sequence[Flow], late: Sequence[Flow], at: int, *, steps: int
) -> Latents:
    """Pictures with some flows cut before a block and others from it on."""
    layers = range(subject.shape.n_layers)
    cuts = [cut(AttentionEdge(layer, None, query, key)) for layer in layers for key, query in (early if layer < at else late)]
    with attending(subject, cuts):
        return subject.sample(batch, steps=steps)


def text_of(subject: ImageGenerator, batch: Batch, layer: int, slots: str, *, steps: int) -> Activation:
    """The text after a block, in every step of a run."""
    with edit(subject, capture=[(Site("resid_post", layer), Span(slots))]) as active:
        subject.sample(batch, steps=steps)
    return active.captured()[Site("resid_post", layer), Span(slots)]


def lens(
    subject: ImageGenerator, source: Batch, empty: Batch, reading: Reading, *, slots: str, steps: int, lens_steps: int = 1
) -> Latents:
    """What the text of `source` brings into pictures that have neither instruction nor reference.

    Args:
        slots: which of the text: a span of `source`.
    """
    read = text_of(subject, source, reading.layer, slots, steps=lens_steps).at_step(0)
    site = Site("embed") if reading.way == "input" else Site("resid_post", reading.layer)
    with edit(subject, edits.swap_at(site, Span(slots), read)):
        return subject.sample(empty, steps=lens_steps if reading.way == "diagonal" else steps)


def patched(
    subject: ImageGenerator, source: Batch, base: Batch, *, layer: int, slots: str, steps: int, read: Activation | None = None
) -> Latents:  # fmt: skip
    """Pictures of `base` whose text, after a block and in every step, is that of `source`.

    Args:
        slots: which of the text: a span of both.
        read: all of the source's text after the block, where it has been captured before.
    """
    read = text_of(subject, source, layer, "text", steps=steps) if read is None else read
    with edit(subject, _step_by_step(read, source, Site("resid_post", layer), Span(slots))):
        return subject.sample(base, steps=steps)


def _step_by_step(read: Activation, source: Batch, site: Site, span: Span) -> list[Edit]:
    calls = [0] if read.calls is None else sorted(set(read.calls.tolist()))
    found = []
    for call in calls:
        step, guidance = divmod(call, 2)
        wanted = read.at_step(step, guidance=guidance).select(*source.locate(span))
        found.append(replace(edits.swap_at(site, span, wanted), steps=(step,), guidance=guidance))
    return found


def resemblance(own: Latents, other: Latents) -> Callable[[Latents], Float[Tensor, " row"]]:
    """A metric that falls from the picture with its own reference to the one with another, linear in between.

    In mean squared latents: where both references lead to the same picture, there is nothing to lose, and the pair counts for
    nothing.
    """
    along = own - other

    def metric(latents: Latents) -> Float[Tensor, " row"]:
        return ((latents - other) * along).mean((1, 2, 3))

    return metric


def head_effects(subject: ImageGenerator, base: Batch, other: Batch, query: str, *, steps: int) -> KnockoutEffects:
    """How much each head's view of the reference keeps a picture its own, where `other` is it with another reference.

    Gradients are taken where the whole flow is as it is, and where it is weakened (`WEAKER`), and averaged, as integrated
    gradients are: of heads that stand in for each other none seems to matter while the others are there.
    """
    metric = resemblance(subject.sample(base, steps=steps), subject.sample(other, steps=steps))
    found = []
    for beta in WEAKER:
        edges = [bias(AttentionEdge(layer, None, query, "reference"), beta) for layer in range(subject.shape.n_layers) if beta]
        with attending(subject, edges):
            one = knockout_effects(subject, base, query=query, key="reference", metric=metric, steps=steps)
        found.append(one.effects)
    return KnockoutEffects(np.mean(found, 0), query, "reference")


def random_keys(batch: Batch, seed: int) -> Batch:
    """The batch with a span "random keys": as many columns as the reference has, from the text and the picture."""
    generator = torch.Generator().manual_seed(seed)
    n = len(batch.spans[0]["reference"])
    others = batch.n_cols - n
    spans = []
    for row in range(batch.n_rows):
        elsewhere = [column for column in range(batch.n_cols) if column not in set(batch.spans[row]["reference"])]
        order = torch.randperm(others, generator=generator)[: min(n, others - 1)]
        spans.append({"random keys": tuple(sorted(elsewhere[i] for i in order.tolist()))})
    return batch.with_spans(spans)
