"""Patching of picture generators: how much of another picture comes with the values that one part has while it is made?

    patcher = PicturePatcher(flux, base, source)                # two batches: the same places, other references
    edits = patcher.swaps(Site("head_z", 3, 1), "text")         # one per step: the source's values of the same step
    patcher.measured(patcher.outcome_of(edits)) - patcher.before

The metric is minus how far a picture has moved from the base's along the way to the source's, in mean squared latents: it falls
from 0 at the base's picture to minus their squared distance at the source's, linearly in between, so that its gradient exists and
a pair whose pictures hardly differ counts for little.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import TaskError
from mediant.core.site import HEAD_KINDS, Site
from mediant.core.span import Span
from mediant.interventions import edit, edits
from mediant.interventions.edits import Activation, Edit
from mediant.measures.intervals import Array
from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator, Latents

EVERYWHERE, GROUPS = Span("all"), ("text", "picture", "reference")
# Of an Edit whose values were captured in the pass with the instruction, and in the one without.
PASSES = 2


@dataclass(frozen=True, eq=False)
class Made:
    """Pictures, as latents."""

    latents: Latents


class PicturePatcher:
    """A batch of pairs made ready for many patches: both pictures made once, source values captured once.

    Attributes:
        before, source: metric of the untouched base and source pictures, one value per pair.

    Raises:
        TaskError: batches of different size or with other groups of tokens.
    """

    def __init__(self, subject: ImageGenerator, base: Batch, source: Batch, *, steps: int, capture: Sequence[Site] = ()) -> None:
        rows = zip(base.spans, source.spans, strict=True)
        alike = all(one.get(group) == two.get(group) for one, two in rows for group in GROUPS)
        if base.ids.shape != source.ids.shape or not alike:
            raise TaskError("patching needs base and source of one size: the same text slots, picture and references")
        self.subject, self.base, self.source_batch, self.steps = subject, base, source, steps
        self._captured: dict[Site, Activation] = {}
        with torch.no_grad():
            self.own: Latents = subject.sample(base, steps=steps)
            self.other: Latents = self._source_run(list(capture))
        self._along = self.other - self.own
        self.before = self.measured(Made(self.own))
        self.source = self.measured(Made(self.other))

    @property
    def total(self) -> Array:
        """Total effect per pair: minus the mean squared difference of the two pictures."""
        return self.source - self.before

    def capture(self, sites: Iterable[Site]) -> None:
        """Capture sites of the source run, all missing ones in a single one."""
        missing = [site for site in dict.fromkeys(_whole(site) for site in sites) if site not in self._captured]
        if missing:
            with torch.no_grad():
                self._source_run(missing)

    def swaps(self, site: Site, span: Span | str) -> list[Edit]:
        """The edits that write the source's values, step by step and pass by pass."""
        self.capture([site])
        whole, place = self._captured[_whole(site)], Span.of(span)
        rows, cols = self.base.locate(place)
        found = []
        for call in self._calls(whole):
            step, guidance = divmod(call, PASSES)
            one = whole.at_step(step, guidance=guidance).select(rows, cols)
            values = one.values if site.head is None or _whole(site) == site else one.values[:, site.head]
            swap = edits.swap(site, place, Activation(values, rows, cols))
            found.append(replace(swap, steps=(step,), guidance=guidance))
        return found

    def outcome_of(self, given: Sequence[Edit], *, gradients: bool = False) -> Made:
        """The pictures under some edits together; with `gradients`, as a function of what the edits hold."""
        with torch.set_grad_enabled(gradients), edit(self.subject, *given):
            return Made(self.subject.sample(self.base, steps=self.steps, gradients=gradients))

    def joint(self, sites: Sequence[Site], span: Span | str = "all") -> Array:
        """Effect of giving several sites their source values at once."""
        return self.measured(self.outcome_of([one for site in sites for one in self.swaps(site, span)])) - self.before

    def grid(self, sites: Sequence[Site], spans: Sequence[Span | str]) -> Array:
        """Effects of every site at every span, each on its own: shape (site, span, pair)."""
        self.capture(sites)
        return np.stack([np.stack([self.joint([site], span) for span in spans]) for site in sites])

    def metric(self, latents: Latents) -> Float[Tensor, " pair"]:
        """See above."""
        return -((latents - self.own) * self._along).mean((1, 2, 3))

    def measured(self, made: Made) -> Array:
        """The metric, one value per pair."""
        return np.asarray(self.metric(made.latents).detach().double().cpu().numpy())

    def wrong(self, made: Made) -> Tensor:
        """How far pictures are from the source's: their squared distance over the base's, mean over pairs."""
        far = (self.other - made.latents).square().mean((1, 2, 3)) / self._along.square().mean((1, 2, 3)).clamp(min=1e-8)
        return far.mean()

    def between(self, share: float) -> Batch:
        """The base with its text and references this share of the way to the source's."""
        inputs = {
            name: torch.lerp(own, self.source_batch.inputs[name], share) if own.is_floating_point() else own
            for name, own in self.base.inputs.items()
        }
        return replace(self.base, inputs=inputs)

    def values(self, places: Sequence[tuple[Site, Span]], batch: Batch | None = None) -> list[Activation]:
        """What the places hold while the pictures of a batch are made, step by step; default: the base's."""
        with torch.no_grad(), edit(self.subject, capture=list(dict.fromkeys(places))) as seen:
            self.subject.sample(self.base if batch is None else batch, steps=self.steps)
        captured = seen.captured()
        return [captured[place] for place in places]

    def gradients(self, places: Sequence[tuple[Site, Span]], batch: Batch | None = None) -> list[Activation]:
        """The metric's gradient at every place, step by step.

        Args:
            batch: where it is taken: at the base, or `between` it and the source.
        """
        batch = self.base if batch is None else batch
        captured = dict(zip(places, self.values(places, batch), strict=True))
        shifts, changes = list[Edit](), list[list[Tensor]]()
        for site, span in places:
            own, mine = captured[site, span], list[Tensor]()
            for call in self._calls(own):
                step, guidance = divmod(call, PASSES)
                now = own.at_step(step, guidance=guidance)
                mine.append(torch.zeros_like(now.values).requires_grad_())
                shift = edits.shift(site, span, Activation(mine[-1], now.rows, now.cols))
                shifts.append(replace(shift, steps=(step,), guidance=guidance))
            changes.append(mine)
        with torch.enable_grad(), edit(self.subject, *shifts):
            total = self.metric(self.subject.sample(batch, steps=self.steps, gradients=True)).sum()
            flat = iter(torch.autograd.grad(total, [one for mine in changes for one in mine], allow_unused=True))
        found = []
        for (site, span), mine in zip(places, changes, strict=True):
            slopes = [torch.zeros_like(one) if slope is None else slope for one, slope in zip(mine, flat, strict=False)]
            own = captured[site, span]
            found.append(Activation(torch.cat(slopes), own.rows, own.cols, own.calls))
        return found

    def _source_run(self, sites: Sequence[Site]) -> Latents:
        with edit(self.subject, capture=[(site, EVERYWHERE) for site in sites]) as seen:
            made = self.subject.sample(self.source_batch, steps=self.steps)
        self._captured |= {site: seen.captured()[site, EVERYWHERE] for site in sites}
        return made

    @staticmethod
    def _calls(found: Activation) -> list[int]:
        return [0] if found.calls is None else sorted(set(found.calls.tolist()))


def _whole(site: Site) -> Site:
    return site if site.head is None or site.kind not in HEAD_KINDS else Site(site.kind, site.layer)
