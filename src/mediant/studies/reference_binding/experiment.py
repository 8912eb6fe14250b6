"""One subject's side of the study: choose on validation requests, intervene on the others, keep every verdict.

findings = Experiment(bench, requests).run()
findings.rows["style"]["ref_to_text"]          # one verdict per request
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from mediant.core.site import Site
from mediant.measures.picture_questions import Kind
from mediant.studies.reference_binding import padding_dose, repair, task
from mediant.studies.reference_binding.bench import Bench, based
from mediant.studies.reference_binding.choice import Choice, Chosen
from mediant.studies.reference_binding.method import FLOWS, Flow, Reading
from mediant.studies.reference_binding.padding_dose import Dose
from mediant.studies.reference_binding.repair import Repair
from mediant.subject.generator import ImageGenerator, Pixels
from mediant.tasks.requests import Request, RequestPair

Item = TypeVar("Item")
TRIED_AT_ONCE = 50


@dataclass(frozen=True, eq=False)
class Findings:
    """What one subject did, and what the page shows of it.

    Attributes:
        tried: property -> one verdict per request on untouched pictures.
        kept, pairs: property -> those of the requests, and pairs, that interventions are made on: untouched pictures show their
            reference's property, and empty runs do not (nor, in pairs, the base the source's).
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
        tried, pairs = {}, {}
        for name in names:
            tried[name], pairs[name] = self._tried(name)
        kept = {name: self._kept(name, tried[name]) for name in names}
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

    def _enough(self, items: Sequence[Item], good: Callable[[str, list[Item]], list[bool]]) -> list[Item]:
        """The first items that are good, tried until there are enough of them."""
        found: list[Item] = []
        for start in range(0, len(items), TRIED_AT_ONCE):
            some = list(items[start : start + TRIED_AT_ONCE])
            if len(found) < self.bench.config.n_kept:
                found += [each for each, one in zip(some, good(f"from {start}", some), strict=True) if one]
        return found[: self.bench.config.n_kept]

    def _kept(self, name: str, tried: Sequence[bool]) -> list[Request]:
        """Requests whose untouched picture shows their property, which an empty run of theirs does not show anyway."""
        bench, do = self.bench, self.bench.conditions

        def absent(label: str, some: list[Request]) -> list[bool]:
            shown = bench.shown(f"empty runs {label}", name, some, lambda _, chunk: do.sample(do.empty(chunk)))
            return [not one for one in shown]

        return self._enough([each for each, one in zip(self.requests.test[name], tried, strict=True) if one], absent)

    def _tried(self, name: str) -> tuple[list[bool], list[RequestPair]]:
        """Whether each request's untouched picture shows its property; and the first pairs in which a swap can be told."""
        bench, requests = self.bench, self.requests.test[name]
        pairs = {pair.base.name: pair for pair in self.requests.pairs[name]}
        sources = {each.name: pairs[each.name].source if each.name in pairs else each for each in requests}
        told = bench.several("tried", name, requests, bench.conditions.sample, {"own": None, "source's": sources})
        able = [
            pairs[each.name]
            for each, own, others in zip(requests, told["own"], told["source's"], strict=True)
            if own and not others and each.name in pairs
        ]

        def shown(label: str, some: list[RequestPair]) -> list[bool]:
            return bench.shown(f"sources {label}", name, [pair.source for pair in some], bench.conditions.sample)

        return told["own"], self._enough(able, shown)

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
            for alike in (False, True):
                random = partial(do.cut_random_heads, flow, sites, alike)
                bench.judge(name, f"{'layer-matched' if alike else 'random'} heads to {query}", requests, random)

    def _lenses(self, name: str, requests: Sequence[Request], reading: Reading) -> None:
        bench, do = self.bench, self.bench.conditions
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
        half = len(bases) // 2 // bench.config.batch * bench.config.batch or len(bases) // 2
        stranger = {each.name: pairs[(i + half) % len(pairs)].source for i, each in enumerate(bases)}
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
