"""The conditions that pictures are made under, each a function of a batch and its requests.

conditions = Conditions(flux, config)
bench.judge("colour", "no text", requests, partial(conditions.cut, [("reference", "text")], None))
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mediant.core.site import Site
from mediant.studies.reference_binding import method
from mediant.studies.reference_binding.config import Config
from mediant.studies.reference_binding.method import Flow, Reading
from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator, Latents, Pixels
from mediant.tasks.requests import Request

DROP_EARLY: list[Flow] = [("reference", "picture")]
DROP_LATE: list[Flow] = [("reference", "picture"), ("picture", "reference"), ("reference", "text"), ("text", "reference")]


# Encoded requests that are kept: every condition has the same ones.
_KEPT = 16


@dataclass(frozen=True, eq=False)
class Conditions:
    """What may be done to a subject while it makes pictures."""

    subject: ImageGenerator
    config: Config
    _encoded: OrderedDict[tuple[int, ...], tuple[list[Request], Batch]] = field(default_factory=OrderedDict)

    @property
    def steps(self) -> int:
        """From noise to picture."""
        return self.config.steps

    def encoded(self, chunk: Sequence[Request]) -> Batch:
        """Requests as the subject takes them; the last few are kept."""
        # Requests are kept beside their batch, so that no other can have their ids.
        key = tuple(id(each) for each in chunk)
        if key not in self._encoded:
            self._encoded[key] = list(chunk), method.encoded(self.subject, chunk)
        self._encoded.move_to_end(key)
        while len(self._encoded) > _KEPT:
            self._encoded.popitem(last=False)
        return self._encoded[key][1]

    def sample(self, batch: Batch, _: Sequence[Request] = ()) -> Latents:
        """Pictures as they are."""
        return self.subject.sample(batch, steps=self.steps)

    def cut(self, flows: Sequence[Flow], heads: Sequence[Site] | None, batch: Batch, _: Sequence[Request]) -> Latents:
        """Flows cut in every block, for all heads or some."""
        return method.knockout(self.subject, batch, flows, steps=self.steps, heads=heads)

    def cut_in(self, layers: Sequence[int], flows: Sequence[Flow], batch: Batch, _: Sequence[Request]) -> Latents:
        """Flows cut in some blocks."""
        return method.knockout(self.subject, batch, flows, steps=self.steps, layers=layers)

    def cut_random(self, draw: int, query: str, batch: Batch, _: Sequence[Request]) -> Latents:
        """As many tokens of text and picture as the reference has, hidden in its place."""
        keyed = method.random_keys(batch, self.config.seed + draw)
        return method.knockout(self.subject, keyed, [("random keys", query)], steps=self.steps)

    def strengthened(self, layers: Sequence[int], flow: Flow, beta: float, batch: Batch, _: Sequence[Request]) -> Latents:
        """A flow strengthened in some blocks."""
        return method.strengthened(self.subject, batch, flow, beta, layers=layers, steps=self.steps)

    def strengthened_at_random(
        self, layers: Sequence[int], flow: Flow, beta: float, batch: Batch, _: Sequence[Request]
    ) -> Latents:
        """As many random tokens strengthened for the flow's readers as the reference has."""
        keyed = method.random_keys(batch, self.config.seed)
        return method.strengthened(self.subject, keyed, ("random keys", flow[1]), beta, layers=layers, steps=self.steps)

    def drop(self, at: int, batch: Batch, _: Sequence[Request]) -> Latents:
        """The reference hidden from the picture, and from a block on from everything."""
        return method.split_knockout(self.subject, batch, DROP_EARLY, DROP_LATE, at, steps=self.steps)

    def lens(self, reading: Reading, slots: str, batch: Batch, chunk: Sequence[Request]) -> Latents:
        """Pictures of empty runs with the text of this one put in."""
        return method.lens(
            self.subject, batch, self.empty(chunk), reading, slots=slots, steps=self.steps,
            lens_steps=self.config.lens_steps,
        )  # fmt: skip

    def patched(self, layer: int, slots: str, source: Mapping[str, Request], batch: Batch, chunk: Sequence[Request]) -> Latents:
        """Pictures whose text comes from the run of each request's source."""
        given = self.encoded([source[each.name] for each in chunk])
        return method.patched(self.subject, given, batch, layer=layer, slots=slots, steps=self.steps)

    def with_own(self, batch: Batch, chunk: Sequence[Request]) -> list[list[Pixels]]:
        """Reference and untouched picture of each request."""
        made = self.subject.pixels(self.sample(batch))
        return [[each.references[0], made[i]] for i, each in enumerate(chunk)]

    def with_empty(self, _: Batch, chunk: Sequence[Request]) -> list[list[Pixels]]:
        """Reference of each request, and the picture with nothing put in."""
        made = self.subject.pixels(self.sample(self.empty(chunk)))
        return [[each.references[0], made[i]] for i, each in enumerate(chunk)]

    def with_both(self, source: Mapping[str, Request], batch: Batch, chunk: Sequence[Request]) -> list[list[Pixels]]:
        """Both references of each pair, and the untouched picture."""
        made = self.subject.pixels(self.sample(batch))
        return [[source[each.name].references[0], each.references[0], made[i]] for i, each in enumerate(chunk)]

    def empty(self, chunk: Sequence[Request], *, instructed: bool = False) -> Batch:
        """Runs without a reference, with other noise than the run that the lens reads."""
        return method.without(self.subject, chunk, instructed=instructed, other_noise=1)


def matched_heads(subject: ImageGenerator, sites: Sequence[Site], seed: Sequence[int]) -> list[Site]:
    """As many random heads of the same blocks, none of them among `sites` where there are others."""
    rng = np.random.default_rng(list(seed))
    found = []
    for layer in sorted({site.layer for site in sites if site.layer is not None}):
        taken = [site.head for site in sites if site.layer == layer]
        free = [head for head in range(subject.shape.n_heads) if head not in taken]
        pool = free if len(free) >= len(taken) else list(range(subject.shape.n_heads))
        found += [Site("head_z", layer, int(head)) for head in rng.permutation(pool)[: len(taken)]]
    return found
