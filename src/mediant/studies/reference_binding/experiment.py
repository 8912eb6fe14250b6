"""One subject's side of the study: choose on validation requests, intervene on the others, keep every verdict.

findings = Experiment(bench, requests).run()
findings.rows["style"]["ref_to_text"]          # one verdict per request
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mediant.core.site import Site
from mediant.measures.picture_questions import Kind
from mediant.studies.reference_binding import padding_dose, repair, task
from mediant.studies.reference_binding.bench import Bench, based, untouched
from mediant.studies.reference_binding.choice import Choice, Chosen
from mediant.studies.reference_binding.conditions import matched_heads
from mediant.studies.reference_binding.method import FLOWS, Flow, Reading
from mediant.studies.reference_binding.padding_dose import Dose
from mediant.studies.reference_binding.repair import Repair
from mediant.subject.generator import ImageGenerator, Pixels
from mediant.tasks.requests import Request, RequestPair

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Findings:
    """What one subject did, and what the page shows of it.

    Attributes:
        tried: property -> one verdict per request on untouched pictures.
        kept, pairs: property -> those of the requests, and pairs, that interventions are made on: untouched pictures show their
            reference's property (and in pairs the base not the source's).
        rows: property -> condition -> one verdict per request or pair of these.
        pictures: property -> condition -> the first pictures.
        curves: property -> kind of schedule -> share of requests that still show the property, block by block.
        doses: property -> swaps of text at shrinking amounts of padding.
        repairs: property -> what becomes of requests that failed when attention is strengthened.
    """

    subject: ImageGenerator
    chosen: Chosen
    tried: Mapping[str, Sequence[bool]]
    kept: Mapping[str, Sequence[Request]]
    pairs: Mapping[str, Sequence[RequestPair]]
    rows: Mapping[str, Mapping[str, Sequence[bool]]]
    answers: Mapping[str, Mapping[str, Sequence[bool | None]]]
    pictures: Mapping[str, Mapping[str, Sequence[Pixels]]]
    curves: Mapping[str, Mapping[str, Sequence[float]]]
    doses: Mapping[str, Sequence[Dose]]
    repairs: Mapping[str, Sequence[Repair]]
    drawn: Sequence[Mapping[str, bool]]
    drawn_pictures: Sequence[Pixels]


@dataclass(frozen=True, eq=False)
class Experiment:
    """All interventions on one subject.

    Attributes:
        extended: also knockouts block by block, the padding dose-response and repair by amplification.
    """

    bench: Bench
    requests: task.Data
    extended: bool = True

    def run(self) -> Findings:
        """Choose on validation requests, then intervene on the others."""
        bench, requests = self.bench, self.requests
        names: Sequence[str] = bench.config.properties
        chosen = Choice(bench, requests).made()
        tried = {name: self._tried(name) for name in names}
        kept = {name: self._first(requests.test[name], tried[name]) for name in names}
        pairs = {name: self._kept_pairs(name) for name in names}
        for name in names:
            self._knockouts(name, kept[name])
            self._heads(name, kept[name], chosen.heads[name])
            self._lenses(name, kept[name], chosen.reading[name])
            self._patchings(name, pairs[name], chosen.layer[name])
        curves = {name: self._curves(name) for name in names if self.extended}
        doses = {
            name: padding_dose.measured(bench, name, pairs[name], chosen.layer[name])
            for name in names
            if self.extended and name in padding_dose.PROPERTIES
        }
        repairs = {name: repair.measured(bench, name, requests, tried[name]) for name in names if self.extended}
        drawn, pictures = bench.drawn(requests.text)
        return Findings(
            bench.subject, chosen, tried, kept, pairs, bench.rows, bench.answers, bench.pictures, curves, doses, repairs, drawn,
            pictures,
        )  # fmt: skip

    def _first(self, items: Sequence[Item], good: Sequence[bool]) -> list[Item]:
        return [each for each, one in zip(items, good, strict=True) if one][: self.bench.config.n_kept]

    def _tried(self, name: str) -> list[bool]:
        return self.bench.shown("tried", name, self.requests.test[name], self.bench.conditions.sample)

    def _kept_pairs(self, name: str) -> list[RequestPair]:
        """Pairs in which each run shows its own reference's property, and the base not the source's."""
        pairs = self.requests.pairs[name]
        good = untouched(self.bench, name, "pairs", pairs)
        return self._first(pairs, good)

    def _knockouts(self, name: str, requests: Sequence[Request]) -> None:
        bench, do = self.bench, self.bench.conditions
        padding = bench.config.padding
        flows: dict[str, list[Flow]] = {
            "ref_to_text": [("reference", "text")], "ref_to_image": [("reference", "picture")],
            "ref_to_text_padding": [("reference", padding)], "ref_to_text_content": [("reference", "instruction")],
            "nothing of it": [("reference", "text"), ("reference", "picture")],
        }  # fmt: skip
        bench.judge(name, "untouched", requests[: bench.config.n_shown], do.sample)
        for condition, cuts in flows.items():
            bench.judge(name, condition, requests, partial(do.cut, cuts, None))
            if condition.startswith("ref_to"):
                kind: Kind = "cut to picture" if condition == "ref_to_image" else "cut to text"
                bench.ask(kind, name, condition, self.requests.test[name], partial(do.cut, cuts, None), do.with_own)
        for key, query in FLOWS:
            if key != "reference":
                bench.judge(name, f"{key} to {query}", requests[: bench.config.n_flow], partial(do.cut, [(key, query)], None))
        for query in ("text", "picture"):
            bench.judge(name, f"random keys to {query}", requests, partial(do.cut_random, query))

    def _heads(self, name: str, requests: Sequence[Request], heads: Mapping[str, Sequence[Site]]) -> None:
        bench, do = self.bench, self.bench.conditions
        for query, sites in heads.items():
            flow = [("reference", query)]
            bench.judge(name, f"heads to {query}", requests, partial(do.cut, flow, sites))
            for draw in range(bench.config.draws):
                matched = matched_heads(bench.subject, sites, [bench.config.seed, draw])
                bench.judge(name, f"random heads to {query} {draw}", requests, partial(do.cut, flow, matched))

    def _lenses(self, name: str, requests: Sequence[Request], reading: Reading) -> None:
        bench, do = self.bench, self.bench.conditions
        bench.judge(name, "unconditional", requests, lambda _, chunk: do.sample(do.empty(chunk)))
        bench.judge(name, "text alone", requests, lambda _, chunk: do.sample(do.empty(chunk, instructed=True)))
        for slots in ("text", bench.config.padding, "instruction"):
            lens = partial(do.lens, reading, slots)
            bench.judge(name, f"lens {slots}", requests, lens)
            bench.ask("lens", name, f"lens {slots}", self.requests.test[name], lens, do.with_empty)

    def _patchings(self, name: str, pairs: Sequence[RequestPair], layer: int) -> None:
        bench, do = self.bench, self.bench.conditions
        bases, source = based(pairs)
        every, sources = based(self.requests.pairs[name])
        bench.judge(name, "pair untouched", bases[: bench.config.n_shown], do.sample)
        for slots in ("text", bench.config.padding, "instruction"):
            bench.judge(name, f"patched {slots}", bases, partial(do.patched, layer, slots, source), source)
            swapped = partial(do.patched, layer, slots, sources)
            bench.ask("swap", name, f"patched {slots}", every, swapped, partial(do.with_both, sources))
        # Text of a third run: what it moves, it moves by being another's.
        half = len(bases) // 2
        stranger = {each.name: bases[(i + half) % len(bases)] for i, each in enumerate(bases)}
        bench.judge(name, "patched stranger", bases, partial(do.patched, layer, "text", stranger), source)

    def _curves(self, name: str) -> dict[str, list[float]]:
        """Share of validation requests that still show the property, for knockouts that begin at each block."""
        bench, do = self.bench, self.bench.conditions
        requests, n = self.requests.validation[name], bench.subject.shape.n_layers
        found = {
            f"from block: reference to {query}": [
                bench.share(
                    f"from block {at} to {query}", name, requests, partial(do.cut_in, range(at, n), [("reference", query)])
                )
                for at in range(n)
            ]
            for query in ("text", "picture")
        }  # fmt: skip
        dropped = [bench.share(f"dropped at {at}", name, requests, partial(do.drop, at)) for at in range(n + 1)]
        return found | {"dropped at block": dropped}
