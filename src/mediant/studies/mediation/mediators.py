"""Kinds of mediators: units that may be given another run's values, numbered, so that searches among any kind can be compared.

    head = Places("head", [(Site("head_z", la, h), Span("all")) for la in range(30) for h in range(9)])
    head.exchange(Answers(lm, pairs, "logit_diff"), [3, 17])    # answers of clean prompts when two heads have other values

Whatever the kind, a set of units is judged by the same question: how much of what the counterfactual leads to comes with
its values?
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.graph import CircuitGraph
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions.edits import Edit
from mediant.interventions.features import Featurizer, Rotation
from mediant.interventions.gates import Gates, run_gated
from mediant.interventions.ports import graph_of
from mediant.measures.metrics import Outcome
from mediant.studies.mediation.ready import Answers, Ready
from mediant.subject import Subject

Units = Sequence[int]
Ints = npt.NDArray[np.int64]


class Kind(Protocol):
    """Numbered units of one kind."""

    @property
    def name(self) -> str:
        """As in the matrix's rows."""
        ...

    @property
    def n_units(self) -> int:
        """How many there are, or, at one site, how many numbers the site has: what shares are shares of."""
        ...

    @property
    def available(self) -> Units:
        """Those that a random control may draw."""
        ...

    def label(self, unit: int) -> str:
        """What a unit is called."""
        ...

    def exchange(self, ready: Ready, units: Units) -> Any:
        """What comes of it when these units have the source's values and nothing else is touched."""
        ...


@dataclass(frozen=True)
class Places:
    """Whole sites at spans: layers' streams, sublayers, heads."""

    name: str
    places: tuple[tuple[Site, Span], ...]

    @property
    def n_units(self) -> int:
        """One unit per place."""
        return len(self.places)

    @property
    def available(self) -> Units:
        """All."""
        return range(self.n_units)

    def label(self, unit: int) -> str:
        """Site, and the span where it is not everywhere."""
        site, span = self.places[unit]
        return str(site) if span == Span("all") else f"{site} at {span}"

    def exchange(self, ready: Ready, units: Units) -> Any:
        """One swap per place."""
        ready.patcher.capture([self.places[i][0] for i in units])
        return ready.patcher.outcome_of([swap for i in units for swap in ready.patcher.swaps(*self.places[i])])


@dataclass(frozen=True)
class Neurons:
    """Hidden neurons of all MLPs, layer by layer, at every token."""

    n_layers: int
    per_layer: int
    name: str = "neuron"

    @property
    def n_units(self) -> int:
        """Of all layers."""
        return self.n_layers * self.per_layer

    @property
    def available(self) -> Units:
        """All."""
        return range(self.n_units)

    def label(self, unit: int) -> str:
        """Site, with the neuron's number in brackets."""
        layer, neuron = divmod(unit, self.per_layer)
        return f"mlp_post.{layer}[{neuron}]"

    def exchange(self, ready: Ready, units: Units) -> Any:
        """One swap per layer."""
        by_layer: dict[int, list[int]] = {}
        for unit in units:
            layer, neuron = divmod(int(unit), self.per_layer)
            by_layer.setdefault(layer, []).append(neuron)
        sites = {layer: Site("mlp_post", layer) for layer in sorted(by_layer)}
        ready.patcher.capture(sites.values())
        edits = [
            replace(swap, index=tuple(by_layer[layer]))
            for layer, site in sites.items()
            for swap in ready.patcher.swaps(site, "all")
        ]
        return ready.patcher.outcome_of(edits)


@dataclass(frozen=True, eq=False)
class Features:
    """Features of one site at one span: its own coordinates, principal axes, a dictionary's features, or a subspace's axes.

    Attributes:
        width: numbers of the site, which shares are shares of where units are dimensions.
        live: the features that differ between some base and source; others cannot be told from doing nothing.
    """

    name: str
    site: Site
    span: Span
    width: int
    features: Featurizer | None = None
    live: tuple[int, ...] | None = None
    overcomplete: bool = False

    @property
    def n_units(self) -> int:
        """The site's dimensions; of a dictionary, its features."""
        return self.n_features if self.overcomplete else self.width

    @property
    def n_features(self) -> int:
        """Features there are."""
        return self.width if self.features is None else self.features.n_features

    @property
    def available(self) -> Units:
        """Features that differ."""
        return range(self.n_features) if self.live is None else self.live

    def label(self, unit: int) -> str:
        """Kind and number."""
        return f"{self.name} {unit}"

    def edits(self, ready: Ready, units: Units) -> list[Edit]:
        """Swaps in this basis."""
        index = tuple(int(i) for i in units)
        return [replace(swap, features=self.features, index=index) for swap in ready.patcher.swaps(self.site, self.span)]

    def exchange(self, ready: Ready, units: Units) -> Any:
        """One swap per step."""
        return ready.patcher.outcome_of(self.edits(ready, units))


@dataclass(frozen=True, eq=False)
class Edges:
    """Every edge of the circuit graph, at all tokens."""

    graph: CircuitGraph
    name: str = "edge"
    _number: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        number = np.full(self.graph.exists.shape, -1, dtype=np.int64)
        number[self.graph.exists] = np.arange(self.graph.exists.sum())
        object.__setattr__(self, "_number", number)

    @cached_property
    def places(self) -> Ints:
        """(edge, 2): target and source of each."""
        return np.argwhere(self.graph.exists)

    @property
    def n_units(self) -> int:
        """Edges of the graph."""
        return len(self.places)

    @property
    def available(self) -> Units:
        """All."""
        return range(self.n_units)

    def units(self, targets: Ints, sources: Ints) -> list[int]:
        """Numbers of edges."""
        found: list[int] = self._number[targets, sources].tolist()
        return found

    def label(self, unit: int) -> str:
        """Source and port."""
        target, source = self.places[unit]
        return str(self.graph.edge(int(target), int(source)))

    def exchange(self, ready: Ready, units: Units) -> Outcome:
        """All gates open but those of these edges, which carry the source's values."""
        assert isinstance(ready, Answers)  # noqa: S101 - pictures have no such graph
        tokens, other = ready.source_nodes
        gates = Gates.constant(self.graph, 1.0)
        targets, sources = self.places[list(units)].T
        gates.within[0, targets, sources] = 0.0
        pairs = ready.patcher.pairs
        with torch.no_grad():
            logits = run_gated(ready.subject, pairs.base, tokens, gates, other, keep=pairs.keep)
        return Outcome(pairs, logits)


def subspace(site: Site, span: Span, basis: Float[Tensor, "d k"]) -> Features:
    """A subspace of a site, its axes being units."""
    return Features("subspace", site, span, basis.shape[0], Rotation(basis))


def places_of(subject: Subject, kind: str, spans: Sequence[str]) -> Places:
    """Layers' streams at spans, or sublayers or heads at every token."""
    layers = range(subject.shape.n_layers)
    if kind == "layer":
        found = [(Site("resid_post", la), Span.of(span)) for span in spans for la in layers]
        return Places(kind, tuple(found))
    if kind == "sublayer":
        found = [(Site(each, la), Span("all")) for la in layers for each in ("attn_out", "mlp_out")]
        return Places(kind, tuple(found))
    return Places(kind, tuple((site, Span("all")) for site in subject.heads()))


def edges_of(subject: Subject) -> Edges:
    """The subject's edges."""
    return Edges(graph_of(subject))
