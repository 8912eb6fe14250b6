"""Does a mediator hold a variable? Interchange accuracy, and what learning a mediator needs.

    ready = Interchanges(lm, encode_interchanges(lm, items), Site("resid_post", 16), "end")
    ready.hits(Mediator(ready.site, ready.span))           # one answer per item: does the whole site do what the model says?

Values of the source prompts are captured once, and of the base prompts one recording is kept from the layer on that an exchange
can change: trying another mediator, or one step of learning it, computes only what lies above.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mediant.core.errors import TaskError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Activation
from mediant.interventions.execute import run
from mediant.interventions.mediator import Mediator
from mediant.interventions.replay import Recording, record, replay
from mediant.subject import Subject
from mediant.tasks.interchange import Interchange, InterchangeBatch, encode_interchanges


def answered(subject: Subject, items: Sequence[Interchange], *, batch_size: int = 32) -> list[Interchange]:
    """Items whose base and source the untouched model answers as the causal model does; the others can say nothing."""
    found = list[Interchange]()
    for i in range(0, len(items), batch_size):
        batch = encode_interchanges(subject, items[i : i + batch_size])
        with torch.no_grad():
            base, source = (run(subject, each).last.argmax(-1) for each in (batch.base, batch.source))
        right = (base == batch.own) & (source == batch.sources)
        found += [item for item, one in zip(batch.items, right.tolist(), strict=True) if one]
    return found


@dataclass(frozen=True, eq=False)
class _Part:
    """Some items made ready."""

    batch: InterchangeBatch
    base: Recording
    source: Activation


class Interchanges:
    """Items made ready for exchanges at one site and span.

    Attributes:
        width: numbers a token has at the site.
    """

    def __init__(
        self, subject: Subject, items: Sequence[Interchange], site: Site | str, span: Span | str, *, batch_size: int = 32
    ) -> None:
        if not items:
            raise TaskError("no interchanges were given, so there is nothing to try a mediator on")
        self.subject = subject
        self.site, self.span = subject.validate(site), Span.of(span)
        self.items = tuple(items)
        self._parts = list[_Part]()
        with torch.no_grad():
            for i in range(0, len(items), batch_size):
                batch = encode_interchanges(subject, items[i : i + batch_size])
                source = run(subject, batch.source, capture=[(self.site, self.span)])
                base = record(subject, batch.base).above(self.site)
                self._parts.append(_Part(batch, base, source.captured[self.site, self.span]))
        self.width = self._parts[0].source.values.shape[-1]

    def __len__(self) -> int:
        return len(self.items)

    def values(self) -> Float[Tensor, "n d"]:
        """The sources' values, one row per token: what a basis may be fitted on."""
        return torch.cat([part.source.values for part in self._parts])

    def logits(self, mediator: Mediator) -> Iterator[tuple[Float[Tensor, "item vocab"], InterchangeBatch]]:
        """Last logits of the base runs with the mediator's values of the sources, batch by batch."""
        for part in self._parts:
            yield self._exchanged(part, mediator), part.batch

    def step(self, mediator: Mediator, index: int) -> tuple[Float[Tensor, "item vocab"], InterchangeBatch]:
        """The same for one batch, counted round and round."""
        part = self._parts[index % len(self._parts)]
        return self._exchanged(part, mediator), part.batch

    @property
    def n_batches(self) -> int:
        """Batches in one round."""
        return len(self._parts)

    def answers(self, mediator: Mediator) -> Int[np.ndarray, " item"]:
        """The answer's token under the exchange, per item."""
        with torch.no_grad():
            return np.concatenate([logits.argmax(-1).cpu().numpy() for logits, _ in self.logits(mediator)])

    def hits(self, mediator: Mediator) -> Bool[np.ndarray, " item"]:
        """Per item, whether the answer is the one the causal model gives."""
        wanted = np.concatenate([part.batch.expected.cpu().numpy() for part in self._parts])
        return np.asarray(self.answers(mediator) == wanted)

    def _exchanged(self, part: _Part, mediator: Mediator) -> Tensor:
        return replay(part.base, mediator.swap(part.source)).logits[:, -1]
