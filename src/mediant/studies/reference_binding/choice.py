"""What validation requests choose: where the lens reads, after which block text is swapped, and the heads that carry a flow.

chosen = Choice(bench, requests).made()
chosen.reading["style"], chosen.layer["style"], chosen.heads["style"]["text"]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from mediant.core.ranking import Ranking
from mediant.core.site import Site
from mediant.runs.folder import Json
from mediant.search.edge_knockout import KnockoutEffects
from mediant.studies.reference_binding import method, task
from mediant.studies.reference_binding.bench import Bench, based
from mediant.studies.reference_binding.method import WAYS, Reading
from mediant.tasks.encode_requests import encoded
from mediant.tasks.requests import Request, with_reference_of


@dataclass(frozen=True, eq=False)
class Chosen:
    """What validation requests chose for one subject.

    Attributes:
        reading: property -> what the lens reads; `readings` has the share shown for every way and block.
        layer: property -> the block after which text is taken from another run; `patchings` has the share for every block.
        heads: property -> flow's end -> heads found to carry the reference there; `effects` has the ranking.
    """

    reading: Mapping[str, Reading]
    layer: Mapping[str, int]
    heads: Mapping[str, Mapping[str, Sequence[Site]]]
    readings: Mapping[str, Sequence[Json]]
    patchings: Mapping[str, Sequence[Json]]
    effects: Mapping[str, Mapping[str, Ranking]]


@dataclass(frozen=True, eq=False)
class Choice:
    """The search on validation requests."""

    bench: Bench
    requests: task.Data

    def made(self) -> Chosen:
        """The best of everything tried, property by property."""
        shape = self.bench.subject.shape
        names: Sequence[str] = self.bench.config.properties
        readings = {name: self._readings(name) for name in names}
        patchings = {name: self._patchings(name) for name in names}
        effects = {name: {query: self._effects(name, query) for query in ("text", "picture")} for name in names}
        k = max(1, round(self.bench.config.head_share * shape.n_layers * shape.n_heads))
        best = {name: max(rows, key=lambda one: one["shown"]) for name, rows in readings.items()}
        return Chosen(
            {name: Reading(one["way"], one["layer"]) for name, one in best.items()},
            {name: int(max(rows, key=lambda one: one["moved"])["layer"]) for name, rows in patchings.items()},
            {name: {query: [one.site for one in r.entries[:k]] for query, r in flows.items()} for name, flows in effects.items()},
            readings, patchings, effects,
        )  # fmt: skip

    def _readings(self, name: str) -> list[Json]:
        """Every way and block of the lens, with the share of validation requests whose property it shows."""
        n_layers, requests = self.bench.subject.shape.n_layers, self.requests.validation[name]
        # The last block's text goes nowhere, so putting it back there can show nothing.
        ways = [Reading(way, layer) for way in WAYS for layer in range(n_layers - (way == "diagonal"))]
        return [
            {
                "way": one.way, "layer": one.layer,
                "shown": self.bench.share(
                    f"lens {one.way} {one.layer}", name, requests, partial(self.bench.conditions.lens, one, "text")
                ),
            }
            for one in ways
        ]  # fmt: skip

    def _patchings(self, name: str) -> list[Json]:
        """Every block that text could be taken from, with the share of validation pairs in which the source's property moved."""
        bases, source = based(self.requests.validation_pairs[name])
        return [
            {
                "layer": layer,
                "moved": self.bench.share(
                    f"patch {layer}", name, bases, partial(self.bench.conditions.patched, layer, "text", source), source
                ),
            }
            for layer in range(self.bench.subject.shape.n_layers - 1)
        ]  # fmt: skip

    def _effects(self, name: str, query: str) -> Ranking:
        """Heads by how much their view of the reference keeps a picture its own, over validation pairs."""
        steps = self.bench.config.steps
        pairs = {pair.base.name: pair for pair in self.requests.validation_pairs[name]}

        def compute(chunk: Sequence[Request]) -> Json:
            subject = self.bench.subject
            base = encoded(subject, chunk)
            other = encoded(subject, [with_reference_of(pairs[each.name]) for each in chunk])
            return {"effects": method.head_effects(subject, base, other, query, steps=steps).effects.tolist()}

        records = self.bench.mapped(
            f"{name}/effects of heads to {query}", [pair.base for pair in pairs.values()], compute, at_once=8
        )
        effects = np.concatenate([np.asarray(record["effects"]) for record in records])
        return KnockoutEffects(effects, query, "reference").ranking()
