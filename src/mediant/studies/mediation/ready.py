"""A batch of pairs made ready for exchanges: what was done without one is known, so that any set of units can be tried.

ready = Answers(lm, pairs, "logit_diff")
ready.change(kind.exchange(ready, units))          # the metric after minus before, per pair
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import torch

from mediant.core.pair import Pair
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Edit
from mediant.interventions.nodes import Nodes, TokenOrder, observe
from mediant.measures.divergence import kl
from mediant.measures.intervals import Array
from mediant.measures.metrics import Outcome
from mediant.search.patching import Patcher
from mediant.subject import Subject
from mediant.tasks.encode import encode


class Exchanger(Protocol):
    """What both patchers can do, of answers and of pictures."""

    @property
    def total(self) -> Array:
        """Total effect per pair."""
        ...

    def capture(self, sites: Iterable[Site]) -> None:
        """Capture sites of the source run, all missing ones at once."""

    def swaps(self, site: Site, span: Span | str) -> list[Edit]:
        """The edits that write the source's values, one per step of what is made."""
        ...

    def outcome_of(self, edits: Sequence[Edit], *, gradients: bool = False) -> Any:
        """What comes of some edits together."""
        ...


class Ready(Protocol):
    """A batch of pairs, whatever comes of them."""

    @property
    def patcher(self) -> Exchanger:
        """What writes values."""
        ...

    def change(self, outcome: Any) -> Array:
        """The metric after minus before, per pair."""
        ...

    def disturbance(self, outcome: Any) -> Array:
        """How far it has moved in any direction, per pair."""
        ...


class Answers:
    """Pairs of prompts."""

    def __init__(self, subject: Subject, pairs: Sequence[Pair], by: str) -> None:
        self.subject, self.patcher = subject, Patcher(subject, encode(subject, pairs), by=by)

    @cached_property
    def source_nodes(self) -> tuple[TokenOrder, Nodes]:
        """What every part wrote on the source prompts, at the tokens where the runs differ."""
        pairs = self.patcher.pairs
        tokens = TokenOrder.of(pairs.base).after(pairs.first_difference)
        return tokens, observe(self.subject, pairs.source, tokens, keep=pairs.keep)

    def change(self, outcome: Outcome) -> Array:
        """The metric after minus before, per pair."""
        return self.patcher.measured(outcome) - self.patcher.before

    def disturbance(self, outcome: Outcome) -> Array:
        """KL (nats) from the untouched next token to the one under the exchange, per pair."""
        with torch.no_grad():
            found: Array = kl(self.patcher.outcome.logits, outcome.logits).double().cpu().numpy()
        return found
