"""The conditions that pictures are made under, each a function of a batch and its requests.

conditions = Conditions(Twins(flux), config)
bench.judge("colour", "no text", requests, partial(conditions.cut, [("reference", "text")], None))
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mediant.core.site import Site
from mediant.interventions.edits import Activation
from mediant.measures.controls import layer_matched, random_sets
from mediant.studies.reference_binding import method
from mediant.studies.reference_binding.config import Config
from mediant.studies.reference_binding.method import Flow, Reading
from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator, Latents, Pixels
from mediant.subject.twins import Twins
from mediant.tasks import encode_requests
from mediant.tasks.requests import Request

Made = TypeVar("Made")

DROP_EARLY: list[Flow] = [("reference", "picture")]
DROP_LATE: list[Flow] = [("reference", "picture"), ("picture", "reference"), ("reference", "text"), ("text", "reference")]


# Every condition has the same requests: what was made of the last few chunks of them is kept.
_KEPT = 32


class _Recent(threading.local, Generic[Made]):
    """What this thread made of the last few chunks of requests."""

    def __init__(self) -> None:
        # Requests are kept beside what was made, so that no other can have their ids.
        self._found: OrderedDict[tuple[object, ...], tuple[list[Request], Made]] = OrderedDict()

    def get(self, requests: Sequence[Request], make: Callable[[], Made], *also: Hashable) -> Made:
        """What was made of these requests, now if not before; `also` tells apart several things made of the same."""
        key = (*also, *(id(each) for each in requests))
        if key not in self._found:
            self._found[key] = list(requests), make()
        self._found.move_to_end(key)
        while len(self._found) > _KEPT:
            self._found.popitem(last=False)
        return self._found[key][1]


@dataclass(frozen=True, eq=False)
class Conditions:
    """What may be done to a subject while it makes pictures, in several threads if there are twins for them."""

    twins: Twins[ImageGenerator]
    config: Config
    _encoded: _Recent[Batch] = field(default_factory=_Recent)
    _texts: _Recent[Activation] = field(default_factory=_Recent)

    @property
    def subject(self) -> ImageGenerator:
        """This thread's."""
        return self.twins.here()

    @property
    def steps(self) -> int:
        """From noise to picture."""
        return self.config.steps

    def encoded(self, chunk: Sequence[Request]) -> Batch:
        """Requests as the subject takes them; the last few are kept."""
        return self._encoded.get(chunk, lambda: encode_requests.encoded(self.subject, chunk))

    def text_after(self, layer: int, chunk: Sequence[Request]) -> Activation:
        """The text of requests' runs after a block, in every step; the last few are kept."""
        return self._texts.get(
            chunk, lambda: method.text_of(self.subject, self.encoded(chunk), layer, "text", steps=self.steps), layer
        )

    def sample(self, batch: Batch, _: Sequence[Request] = ()) -> Latents:
        """Pictures as they are."""
        return self.subject.sample(batch, steps=self.steps)

    def cut(self, flows: Sequence[Flow], heads: Sequence[Site] | None, batch: Batch, _: Sequence[Request]) -> Latents:
        """Flows cut in every block, for all heads or some."""
        return method.knockout(self.subject, batch, flows, steps=self.steps, heads=heads)

    def cut_random_heads(
        self, flows: Sequence[Flow], heads: Sequence[Site], alike: bool, batch: Batch, chunk: Sequence[Request]
    ) -> Latents:
        """Flows cut for as many other heads, drawn anew for every chunk; if `alike`, of the same blocks, or all left there."""
        shape, seed = self.subject.shape, self.config.seed + chunk[0].seed
        pool = [Site("head_z", layer, head) for layer in range(shape.n_layers) for head in range(shape.n_heads)]
        (drawn,) = (layer_matched if alike else random_sets)(heads, pool, draws=1, seed=seed)
        return self.cut(flows, drawn, batch, chunk)

    def cut_in(self, layers: Sequence[int], flows: Sequence[Flow], batch: Batch, _: Sequence[Request]) -> Latents:
        """Flows cut in some blocks."""
        return method.knockout(self.subject, batch, flows, steps=self.steps, layers=layers)

    def cut_random(self, query: str, batch: Batch, chunk: Sequence[Request]) -> Latents:
        """As many tokens of text and picture as the reference has, drawn for each request, hidden in its place."""
        keyed = method.random_keys(batch, self.config.seed + chunk[0].seed)
        return method.knockout(self.subject, keyed, [("random keys", query)], steps=self.steps)

    def strengthened(self, layers: Sequence[int], flow: Flow, beta: float, batch: Batch, _: Sequence[Request]) -> Latents:
        """A flow strengthened in some blocks."""
        return method.strengthened(self.subject, batch, flow, beta, layers=layers, steps=self.steps)

    def strengthened_at_random(
        self, layers: Sequence[int], flow: Flow, beta: float, batch: Batch, chunk: Sequence[Request]
    ) -> Latents:
        """As many random tokens strengthened for the flow's readers as the reference has."""
        keyed = method.random_keys(batch, self.config.seed + chunk[0].seed)
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
        sources = [source[each.name] for each in chunk]
        return method.patched(
            self.subject, self.encoded(sources), batch, layer=layer, slots=slots, steps=self.steps,
            read=self.text_after(layer, sources),
        )  # fmt: skip

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
        """Runs without a reference, with other noise than the run that the lens reads; the last few are kept."""
        return self._encoded.get(
            chunk, lambda: method.without(self.subject, chunk, instructed=instructed, other_noise=1), "empty", instructed
        )
