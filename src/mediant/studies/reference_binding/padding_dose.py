"""Padding dose-response: as an instruction grows by words that say nothing, padding shrinks; does text still carry the property?

    for dose in measured(bench, "style", pairs, layer=4):
        dose.padding, dose.moved["text"], dose.moved["padding"]

The number of slots stays. Pairs have one instruction and two references, as in patching, and the same number of words is put
behind it for both runs, so that their texts stay aligned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from mediant.runs.folder import Json
from mediant.studies.reference_binding import method
from mediant.studies.reference_binding.bench import Bench, based, untouched
from mediant.studies.reference_binding.conditions import Conditions
from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator, Latents
from mediant.tasks.encode_requests import encoded
from mediant.tasks.requests import Request, RequestPair, lengthened

# Those the paper does it for; nothing of an identity goes through its text.
PROPERTIES = ("colour", "style")
WORDS, FILLER = "words", "filler"


@dataclass(frozen=True)
class Dose:
    """Swaps of text at one length of the instruction.

    Attributes:
        share: of the padding of the plain instruction, how much was to be left.
        padding: slots of padding there were, on average.
        moved: which slots were swapped -> whether the picture has taken on the other reference's property, for every pair in
            which that can be told.
    """

    share: float
    padding: float
    moved: Mapping[str, Sequence[bool]]


def measured(bench: Bench, name: str, pairs: Sequence[RequestPair], layer: int) -> list[Dose]:
    """Swaps at every dose of padding, for the first pairs; text is taken after a block."""
    chosen = pairs[: bench.config.n_dose]
    return [_at(bench, name, chosen, layer, share) for share in bench.config.dose] if chosen else []


def _at(bench: Bench, name: str, pairs: Sequence[RequestPair], layer: int, share: float) -> Dose:
    conditions, label = bench.conditions, f"{share:.0%} padding"
    given = longer(bench.subject, pairs, share)
    bases, _ = based(given)
    plain = {long.base.name: short.base.instruction for long, short in zip(given, pairs, strict=True)}

    def counted(chunk: Sequence[Request]) -> Json:
        return {"padding": [len(spans["padding"]) for spans in conditions.encoded(chunk).spans]}

    padding = [n for record in bench.mapped(f"{name}/{label}", bases, counted) for n in record["padding"]]
    slots = ["text", *([bench.config.padding] if bench.config.padding == "beside" or min(padding) else []), WORDS]
    slots += [FILLER] if all(len(plain[each.name]) < len(each.instruction) for each in bases) else []
    good = untouched(bench, name, label, given)
    kept, among = based([pair for pair, one in zip(given, good, strict=True) if one])
    moved = {
        which: bench.shown(f"{label}, {which}", name, kept, partial(_swapped, conditions, layer, which, among, plain), among)
        for which in slots
    }
    return Dose(share, float(np.mean(padding)), moved)


def longer(subject: ImageGenerator, pairs: Sequence[RequestPair], share: float) -> list[RequestPair]:
    """Pairs whose instruction goes on until about this share of its padding is left."""
    found = []
    for pair in pairs:
        plain = encoded(subject, [pair.base])
        room = len(plain.spans[0]["padding"])
        n_words = 0
        while subject.n_tokens(lengthened("", n_words + 1)) <= room * (1 - share):
            n_words += 1
        one, two = (replace(each, instruction=lengthened(each.instruction, n_words)) for each in (pair.source, pair.base))
        found.append(RequestPair(one, two))
    return found


def _swapped(
    conditions: Conditions, layer: int, slots: str, source: Mapping[str, Request], plain: Mapping[str, str], batch: Batch,
    chunk: Sequence[Request],
) -> Latents:  # fmt: skip
    """Pictures with some slots of the source's text, which may be the words of the plain instruction or those behind them."""
    sources, told = [source[each.name] for each in chunk], [plain[each.name] for each in chunk]
    return method.patched(
        conditions.subject, _parted(conditions.subject, conditions.encoded(sources), told),
        _parted(conditions.subject, batch, told), layer=layer, slots=slots, steps=conditions.steps,
        read=conditions.text_after(layer, sources),
    )  # fmt: skip


def _parted(subject: ImageGenerator, batch: Batch, plain: Sequence[str]) -> Batch:
    """The batch with the instruction's own words and the filler behind them as spans."""
    spans = []
    for own, there in zip(subject.slots_of(batch, plain), batch.spans, strict=True):
        beyond = tuple(slot for slot in there["instruction"] if slot not in own)
        spans.append({WORDS: own} | ({FILLER: beyond} if beyond else {}))
    return batch.with_spans(spans)
