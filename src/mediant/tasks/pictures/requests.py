"""Requests of the drawn world: every answer is drawn, so every factor of it is known.

    request = draw_request(Random(0), "style", "example")
    request.instruction          # "a pink star at the harbour, in the style of this image"
    request.references[0]        # something else, somewhere else, in that style
    request.target               # the star, in that style

Split by combination: some kinds never have some colours, places, styles or clothes in training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from mediant.core.errors import unknown
from mediant.tasks.pictures.painter import PALETTE, RGB, Pixels, rgb_of
from mediant.tasks.pictures.scene import AT, CHARACTERS, COLOURS, HELD_OUT_ONE_IN, OBJECTS, PLACES, STYLES, Split
from mediant.tasks.pictures.still import WEARS, Individual, Placed, Still, Thing, draw, vivid
from mediant.tasks.requests import BUCKETS, FILLER, Request, RequestPair, lengthened

SIZE = 64
KINDS = (*OBJECTS, *CHARACTERS)
# The colours of the paper's swatches.
SWATCHES = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown")
_VALUES: dict[str, Sequence[str]] = {
    "colour": (*COLOURS, "brown"), "place": PLACES, "style": STYLES, "wears": WEARS,
}  # fmt: skip


def held_out(kind: str, factor: str, value: str) -> bool:
    """Whether this kind is kept from having this value in training; it has others, and others have it."""
    return (KINDS.index(kind) + 3 * _VALUES[factor].index(value)) % HELD_OUT_ONE_IN == 1


def generate(bucket: str, n: int, *, seed: int = 0, split: Split = "main", size: int = SIZE) -> list[Request]:
    """`n` requests of a bucket, the same for the same seed, in pictures of `size` pixels a side.

    Raises:
        UnknownName: no such bucket.
    """
    random = Random(f"{bucket}/{seed}/{split}")
    return [draw_request(random, bucket, f"{bucket}-{split}-{seed}-{i}", split, size=size) for i in range(n)]


def generate_pairs(bucket: str, n: int, *, seed: int = 0, split: Split = "main", size: int = SIZE) -> list[RequestPair]:
    """`n` pairs of a bucket: one instruction, references that differ in the property, noise of their own.

    Bases are of the split. So are sources of "main"; in "heldout" they may be of either, since few kinds have two values of one
    factor held out.

    Raises:
        UnknownName: a bucket whose requests take no property of a reference.
    """
    if bucket not in ("colour", "style", "identity"):
        raise unknown("bucket", bucket, ["colour", "style", "identity"])
    random, found = Random(f"{bucket}/{seed}/{split}/pairs"), list[RequestPair]()
    while len(found) < n:
        name, state = f"{bucket}-{split}-{seed}-pair-{len(found)}", random.random()
        one = _sketched(Random(f"{state}"), bucket, "main" if split == "main" else None, other="source")
        two = _sketched(Random(f"{state}"), bucket, split, other="base")
        if one.instruction == two.instruction and one.factors[bucket] != two.factors[bucket]:
            found.append(RequestPair(one.drawn(f"{name}-source", bucket, size), two.drawn(f"{name}-base", bucket, size)))
    return found


def vocabulary() -> list[str]:
    """Instructions in which every word that any request uses occurs."""
    random = Random(0)
    words = [*COLOURS, *OBJECTS, *CHARACTERS, *PLACES, *STYLES]
    # Words are written at the beginning and after another, which tokenizers tell apart.
    return [
        *(f"{word} {word} a {word} an {word}" for word in words),
        *(_sketched(random, bucket, "main").instruction for bucket in BUCKETS for _ in range(10)),
        *(lengthened("a kite", len(FILLER.split())) for _ in range(10)),
    ]


def draw_request(random: Random, bucket: str, name: str, split: Split = "main", *, size: int = SIZE) -> Request:
    """One request.

    Raises:
        UnknownName: no such bucket.
    """
    return _sketched(random, bucket, split).drawn(name, bucket, size)


def _sketched(random: Random, bucket: str, split: Split | None, other: str = "") -> "_Sketch":
    """What a request is about.

    Args:
        split: None for either.
        other: what is asked for is drawn from `random` alone; the property comes from this text as well, so that requests
            of one `random` and several texts differ in the property alone.
    """
    if bucket not in BUCKETS:
        raise unknown("bucket", bucket, BUCKETS)
    state = random.random()
    for attempt in range(1000):
        asked, taken = Random(f"{state}/{attempt}"), Random(f"{state}/{attempt}/{other}")
        sketch, met = _SKETCHED[bucket](asked, taken)
        if split is None or any(held_out(*each) for each in met) == (split == "heldout"):
            return sketch
    raise AssertionError("both splits have combinations of every bucket")


_Met = list[tuple[str, str, str]]


@dataclass(frozen=True, eq=False)
class _Sketch:
    """A request before anything of it is drawn."""

    instruction: str
    references: Sequence[Still | RGB]
    target: Still
    factors: dict[str, str]

    def drawn(self, name: str, bucket: str, size: int) -> Request:
        shown = tuple(draw(each, size) if isinstance(each, Still) else _swatch(each, size) for each in self.references)
        return Request(name, bucket, self.instruction, shown, size, size, self.factors, draw(self.target, size))


def _text(asked: Random, _: Random) -> tuple[_Sketch, _Met]:
    kind, where, style = asked.choice(KINDS), asked.choice(PLACES), asked.choice(STYLES) if asked.random() < 0.6 else "flat"
    what, words, met = _of_kind(asked, kind)
    target = Still((_centred(what),), where, style)
    instruction = f"{words} {_at(where)}" + (f", in {style} style" if style != "flat" else "")
    factors = {"kind": kind, "place": where, "style": style} | ({"colour": str(what.colour)} if isinstance(what, Thing) else {})
    return _Sketch(instruction, [], target, factors), [*met, (kind, "place", where), (kind, "style", style)]


def _colour(asked: Random, taken: Random) -> tuple[_Sketch, _Met]:
    kind = asked.choice(OBJECTS)
    named = taken.choice(SWATCHES)
    rgb = _near(taken, named) if taken.random() < 0.6 else vivid(taken)
    target = Still((_centred(Thing(kind, rgb)),))
    factors = {"kind": kind, "colour": nearest(rgb), "rgb": ",".join(map(str, rgb))}
    sketch = _Sketch(f"{_a(kind)} in the colour of this image", [rgb], target, factors)
    return sketch, [(kind, "colour", factors["colour"])]


def _style(asked: Random, taken: Random) -> tuple[_Sketch, _Met]:
    kind, where = asked.choice(KINDS), asked.choice(PLACES)
    what, words, met = _of_kind(asked, kind)
    style = taken.choice(STYLES)
    shown = taken.choice([each for each in KINDS if each != kind])
    somewhere = taken.choice([each for each in PLACES if each != where])
    reference = Still((_middle(taken, _of_kind(taken, shown)[0]),), somewhere, style)
    target = Still((_centred(what),), where, style)
    factors = {"kind": kind, "place": where, "style": style, "shown": shown, "shown place": somewhere}
    sketch = _Sketch(f"{words} {_at(where)}, in the style of this image", [reference], target, factors)
    return sketch, [*met, (kind, "style", style), (kind, "place", where)]


def _identity(asked: Random, taken: Random) -> tuple[_Sketch, _Met]:
    where = asked.choice(PLACES)
    kind = taken.choice(CHARACTERS)
    who = Individual.drawn(taken, kind)
    reference = Still((_middle(taken, who),))
    target = Still((_centred(who),), where)
    factors = {"kind": kind, "place": where, "identity": _written(who)}
    sketch = _Sketch(f"the character of this image {_at(where)}", [reference], target, factors)
    return sketch, [(kind, "place", where), (kind, "wears", who.wears)]


def _add(asked: Random, taken: Random) -> tuple[_Sketch, _Met]:
    there, added, places, where = _couple(asked, taken)
    factors = {"kind": added.kind, "colour": str(added.colour), "shown": there.kind, "place": where}
    reference, target = Still(places[:1], where), Still(places, where)
    sketch = _Sketch(f"add {_a(added.colour)} {added.kind} to this image", [reference], target, factors)
    return sketch, [(added.kind, "colour", str(added.colour)), (added.kind, "place", where)]


def _remove(asked: Random, taken: Random) -> tuple[_Sketch, _Met]:
    there, removed, places, where = _couple(asked, taken)
    factors = {"kind": removed.kind, "shown": there.kind, "place": where}
    reference, target = Still(places, where), Still(places[:1], where)
    sketch = _Sketch(f"remove the {removed.kind} from this image", [reference], target, factors)
    return sketch, [(removed.kind, "place", where)]


def _couple(asked: Random, taken: Random) -> tuple[Thing, Thing, tuple[Placed, ...], str]:
    """What is there and what is asked about, on two sides of a place; the thing asked about comes from `asked`."""
    second = Thing(asked.choice(OBJECTS), asked.choice(COLOURS))
    where, left = taken.choice(PLACES), taken.random() < 0.5
    first = Thing(taken.choice([kind for kind in OBJECTS if kind != second.kind]), taken.choice(COLOURS))
    sides = (0.28, 0.72) if left else (0.72, 0.28)
    there = Placed(first, sides[0] + taken.uniform(-0.03, 0.03), taken.uniform(0.56, 0.64), taken.uniform(0.38, 0.44))
    return first, second, (there, Placed(second, sides[1], 0.6, 0.41)), where


def _of_kind(random: Random, kind: str) -> tuple[Thing | Individual, str, _Met]:
    """Something of a kind, how it is called, and what of it may be held out."""
    if kind in CHARACTERS:
        return Individual(kind), _a(kind), []
    colour = random.choice(COLOURS)
    return Thing(kind, colour), f"{_a(colour)} {kind}", [(kind, "colour", colour)]


def _centred(what: Thing | Individual) -> Placed:
    """What was asked for; always there, since the instruction does not say where."""
    return Placed(what, 0.5, 0.54, 0.61)


def _middle(random: Random, what: Thing | Individual) -> Placed:
    """What a reference shows, somewhere around the middle."""
    return Placed(what, random.uniform(0.44, 0.56), random.uniform(0.5, 0.58), random.uniform(0.56, 0.66))


def _swatch(rgb: RGB, size: int) -> Pixels:
    return np.broadcast_to(np.array(rgb, np.uint8), (size, size, 3)).copy()


def _written(who: Individual) -> str:
    """Everything about an individual in one line, for rows of results."""
    parts = [
        who.kind,
        who.wears,
        *(",".join(map(str, rgb_of(each))) for each in (who.coat or "red", who.belly or "red", who.cloth)),
    ]
    return " ".join(parts)


def _near(random: Random, name: str) -> RGB:
    red, green, blue = (min(255, max(0, value + random.randint(-14, 14))) for value in PALETTE[name])
    return red, green, blue


def nearest(rgb: RGB) -> str:
    """The swatch a colour is closest to."""
    return min(SWATCHES, key=lambda name: sum((a - b) ** 2 for a, b in zip(PALETTE[name], rgb, strict=True)))


def _at(where: str) -> str:
    return f"{AT.get(where, 'at the')} {where}"


def _a(word: object) -> str:
    return f"{'an' if str(word)[0] in 'aeiou' else 'a'} {word}"


_SKETCHED = {"text": _text, "colour": _colour, "style": _style, "identity": _identity, "add": _add, "remove": _remove}
