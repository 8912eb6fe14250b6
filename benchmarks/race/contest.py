"""An event of the race: ways of doing one thing, timed in turn, whose results must be equal."""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from benchmarks.race.floor import Cost, Machine
from torch import Tensor

# Largest difference from our result that still counts as equal, relative to the result's own largest number.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Way:
    """One contender's way.

    Attributes:
        run: what is timed.
        read: the comparable numbers in what `run` gave; not timed.
        leading: how many entries of our result it must reproduce, where it parts from ours for a stated reason; None for all.
        once: timed at its first run only, because it takes so long.
    """

    name: str
    run: Callable[[], Any]
    read: Callable[[Any], Tensor] = lambda found: found
    leading: int | None = None
    once: bool = False


@dataclass(frozen=True)
class Absent:
    """A contender that cannot do it, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Target:
    """What we set out to reach: `ours / bare`, at most, or `fastest peer / ours`, at least."""

    bare: float | None = None
    peer: float | None = None

    def __str__(self) -> str:
        peer = {None: "", 1.0: "no slower than any peer"}.get(self.peer, f"{self.peer} x the fastest peer")
        return ", ".join(part for part in (f"at most {self.bare} x bare" if self.bare else "", peer) if part)

    def met(self, to_bare: float | None, to_peer: float | None) -> bool:
        """Whether the measured ratios reach it."""
        slow = self.bare is not None and to_bare is not None and to_bare > self.bare
        behind = self.peer is not None and to_peer is not None and to_peer < self.peer
        return not (slow or behind)


@dataclass(frozen=True)
class Event:
    """A row of the race.

    Attributes:
        told: what is timed and how each contender does it, for the page.
        per: how many times one run does the thing; seconds are divided by it.
        note: one more sentence for the page, found out by running.
    """

    key: str
    title: str
    told: str
    ours: Way
    peers: tuple[Way | Absent, ...]
    cost: Cost
    target: Target
    rounds: int
    bare: Way | None = None
    per: int = 1
    gradients: bool = False
    note: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Entry:
    """What came of one contender.

    Attributes:
        ratio: its seconds by ours, round by round, the median.
        scatter: the lowest and the highest of them.
        deviation: largest difference from our result, relative to the result's largest number.
    """

    name: str
    status: Literal["equal", "differs", "cannot", "failed"]
    seconds: float | None = None
    ratio: float | None = None
    scatter: tuple[float, float] | None = None
    deviation: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """What came of an event."""

    event: Event
    rounds: int
    seconds: float
    bare: Entry | None
    entries: tuple[Entry, ...]
    floor: float

    @property
    def to_bare(self) -> float | None:
        """Our seconds by the bare model's."""
        return 1 / self.bare.ratio if self.bare is not None and self.bare.ratio else None

    @property
    def fastest(self) -> Entry | None:
        """The peer that is fastest beside us, round by round, of those that give our result."""
        return min(
            (entry for entry in self.entries if entry.ratio is not None), key=lambda entry: entry.ratio or 0.0, default=None
        )

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.event.target.met(self.to_bare, self.fastest.ratio if self.fastest else None)

    @property
    def close(self) -> bool:
        """Whether single rounds fall on either side of the target, so that another run may decide otherwise."""
        target, peer = self.event.target, self.fastest
        sides = []
        if target.bare is not None and self.bare is not None and self.bare.scatter is not None:
            sides.append([1 / each <= target.bare for each in self.bare.scatter])
        if target.peer is not None and peer is not None and peer.scatter is not None:
            sides.append([each >= target.peer for each in peer.scatter])
        return any(len(set(each)) == 2 for each in sides)

    @property
    def verdict(self) -> str:
        """`met` or `missed`, and whether by less than rounds differ."""
        return ("met" if self.met else "missed") + (", within the scatter of rounds" if self.close else "")

    @property
    def sound(self) -> bool:
        """Whether all who took part gave the same result."""
        return all(entry.status in ("equal", "cannot") for entry in (*self.entries, *([self.bare] if self.bare else [])))


def hold(event: Event, machine: Machine, *, rounds: int | None = None) -> Result:
    """Warm everybody up and compare results, then time the ones that agree, in turn, round by round."""
    rounds = rounds or event.rounds
    others = [*([event.bare] if event.bare else []), *event.peers]
    ours = event.ours.read(_timed(event, event.ours)[0]).double()
    checked = [_checked(event, other, ours) for other in others]
    racing = [
        event.ours,
        *(o for o, e in zip(others, checked, strict=True) if isinstance(o, Way) and not o.once and e.status == "equal"),
    ]
    times: dict[str, list[float]] = {way.name: [] for way in racing}
    for turn in range(rounds):
        # Everybody comes first in some round.
        for way in racing[turn % len(racing) :] + racing[: turn % len(racing)]:
            times[way.name].append(_timed(event, way)[1])
    own = times[event.ours.name]
    entries = [_finished(entry, times.get(entry.name), own) for entry in checked]
    bare = entries.pop(0) if event.bare else None
    return Result(event, rounds, statistics.median(own), bare, tuple(entries), event.cost.seconds(machine))


def _timed(event: Event, way: Way) -> tuple[Any, float]:
    gc.collect()
    with torch.set_grad_enabled(event.gradients):
        start = time.perf_counter()
        found = way.run()
        return found, (time.perf_counter() - start) / event.per


def _checked(event: Event, other: Way | Absent, ours: Tensor) -> Entry:
    """A contender's first run: its status and deviation."""
    if isinstance(other, Absent):
        return Entry(other.name, "cannot", reason=other.reason)
    try:
        raw, seconds = _timed(event, other)
        found = other.read(raw).double()[: other.leading]
    except Exception as error:
        return Entry(other.name, "failed", reason=f"{type(error).__name__}: {str(error)[:300]}")
    wanted = ours[: other.leading]
    if not wanted.numel():
        return Entry(other.name, "equal")
    if found.shape != wanted.shape:
        return Entry(other.name, "differs", reason=f"shape {tuple(found.shape)} instead of {tuple(wanted.shape)}")
    deviation = float((found - wanted).abs().max() / wanted.abs().max())
    if not deviation <= TOLERANCE:  # also where it is not a number
        return Entry(other.name, "differs", deviation=deviation)
    return Entry(other.name, "equal", seconds if other.once else None, deviation=deviation)


def _finished(entry: Entry, times: list[float] | None, own: list[float]) -> Entry:
    """The entry with its times."""
    if times is None:
        return replace(entry, ratio=entry.seconds / statistics.median(own)) if entry.seconds else entry
    ratios = [a / b for a, b in zip(times, own, strict=True)]
    ratio, scatter = statistics.median(ratios), (min(ratios), max(ratios))
    return replace(entry, seconds=statistics.median(times), ratio=ratio, scatter=scatter)
