"""One subject's side of the study: choose on validation requests, intervene on the others, keep every verdict.

findings = Experiment(bench, requests).run()
findings.rows["style"]["ref_to_text"]          # one verdict per request
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from mediant.core.site import Site
from mediant.measures.picture_questions import Kind
from mediant.studies.reference_binding import padding_dose, repair, task
from mediant.studies.reference_binding.bench import Bench
from mediant.studies.reference_binding.choice import Choice, Chosen
from mediant.studies.reference_binding.conditions import matched_heads
from mediant.studies.reference_binding.method import FLOWS, Flow, Reading
from mediant.studies.reference_binding.padding_dose import Dose
from mediant.studies.reference_binding.repair import Repair
from mediant.subject.generator import ImageGenerator, Pixels


@dataclass(frozen=True, eq=False)
class Findings:
    """What one subject did, and what the page shows of it.

    Attributes:
        rows: property -> condition -> one verdict per request; of conditions in pairs, one per pair.
        pictures: property -> condition -> the first pictures.
        curves: property -> kind of schedule -> share of requests that still show the property, block by block.
        doses: property -> swaps of text at shrinking amounts of padding.
        repairs: property -> what becomes of requests that failed when attention is strengthened.
    """

    subject: ImageGenerator
    chosen: Chosen
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
    """All interventions on one subject."""

    bench: Bench
    requests: task.Data

    def run(self) -> Findings:
        """Choose on validation requests, then intervene on the others."""
        bench = self.bench
        names: Sequence[str] = bench.config.properties
        chosen = Choice(bench, self.requests).made()
        for name in names:
            self._knockouts(name)
            self._heads(name, chosen.heads[name])
            self._lenses(name, chosen.reading[name])
            self._patchings(name, chosen.layer[name])
        curves = {name: self._curves(name) for name in names}
        doses = {
            name: padding_dose.measured(bench, name, self.requests.pairs[name], chosen.layer[name])
            for name in names
            if name in padding_dose.PROPERTIES
        }
        repairs = {name: repair.measured(bench, name, self.requests) for name in names}
        drawn, pictures = bench.drawn(self.requests.text)
        return Findings(bench.subject, chosen, bench.rows, bench.answers, bench.pictures, curves, doses, repairs, drawn, pictures)

    def _knockouts(self, name: str) -> None:
        bench, do = self.bench, self.bench.conditions
        requests, padding = self.requests.test[name], bench.config.padding
        flows: dict[str, list[Flow]] = {
            "baseline": [], "ref_to_text": [("reference", "text")], "ref_to_image": [("reference", "picture")],
            "ref_to_text_padding": [("reference", padding)], "ref_to_text_content": [("reference", "instruction")],
            "nothing of it": [("reference", "text"), ("reference", "picture")],
            **{f"{key} to {query}": [(key, query)] for key, query in FLOWS if key != "reference"},
        }  # fmt: skip
        for condition, cuts in flows.items():
            bench.judge(name, condition, requests, partial(do.cut, cuts, None))
            if condition.startswith("ref_to"):
                kind: Kind = "cut to picture" if condition == "ref_to_image" else "cut to text"
                bench.ask(kind, name, condition, requests, partial(do.cut, cuts, None), do.with_own)
        for draw in range(bench.config.draws):
            for query in ("text", "picture"):
                bench.judge(name, f"random keys to {query} {draw}", requests, partial(do.cut_random, draw, query))

    def _heads(self, name: str, heads: Mapping[str, Sequence[Site]]) -> None:
        bench, do = self.bench, self.bench.conditions
        requests = self.requests.test[name]
        for query, sites in heads.items():
            flow = [("reference", query)]
            bench.judge(name, f"heads to {query}", requests, partial(do.cut, flow, sites))
            for draw in range(bench.config.draws):
                matched = matched_heads(bench.subject, sites, [bench.config.seed, draw])
                bench.judge(name, f"random heads to {query} {draw}", requests, partial(do.cut, flow, matched))

    def _lenses(self, name: str, reading: Reading) -> None:
        bench, do = self.bench, self.bench.conditions
        requests = self.requests.test[name]
        bench.judge(name, "unconditional", requests, lambda _, chunk: do.sample(do.empty(chunk)))
        bench.judge(name, "text alone", requests, lambda _, chunk: do.sample(do.empty(chunk, instructed=True)))
        for slots in ("text", bench.config.padding, "instruction"):
            lens = partial(do.lens, reading, slots)
            bench.judge(name, f"lens {slots}", requests, lens)
            bench.ask("lens", name, f"lens {slots}", requests, lens, do.with_empty)

    def _patchings(self, name: str, layer: int) -> None:
        bench, do = self.bench, self.bench.conditions
        pairs = self.requests.pairs[name]
        bases, source = [pair.base for pair in pairs], {pair.base.name: pair.source for pair in pairs}
        bench.judge(name, "base shows its own", bases, do.sample, also={"base shows source's": source})
        bench.judge(name, "source shows its own", [pair.source for pair in pairs], do.sample)
        for slots in ("text", bench.config.padding, "instruction"):
            patched = partial(do.patched, layer, slots, source)
            bench.judge(name, f"patched {slots}", bases, patched, source)
            bench.ask("swap", name, f"patched {slots}", bases, patched, partial(do.with_both, source))
        # Text of a third run: what it moves, it moves by being another's.
        half = len(bases) // 2
        stranger = {each.name: bases[(i + half) % len(bases)] for i, each in enumerate(bases)}
        bench.judge(name, "patched stranger", bases, partial(do.patched, layer, "text", stranger), source)

    def _curves(self, name: str) -> dict[str, list[float]]:
        """Share of validation requests that still show the property, for knockouts that begin, end or stand at each block."""
        bench, do = self.bench, self.bench.conditions
        requests, n = self.requests.validation[name], bench.subject.shape.n_layers
        spans = {
            "from block": [range(at, n) for at in range(n)], "up to block": [range(at + 1) for at in range(n)],
            "around block": [range(at, min(n, at + bench.config.window)) for at in range(n)],
        }  # fmt: skip
        found = {
            f"{kind}: reference to {query}": [
                bench.share(f"{kind} {at} to {query}", name, requests, partial(do.cut_in, layers, [("reference", query)]))
                for at, layers in enumerate(where)
            ]
            for kind, where in spans.items()
            for query in ("text", "picture")
        }
        dropped = [bench.share(f"dropped at {at}", name, requests, partial(do.drop, at)) for at in range(n + 1)]
        return found | {"dropped at block": dropped}
