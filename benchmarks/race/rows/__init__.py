"""The rows of the race, one file each: `event(arena)` gives the inputs, the ways to do it, and what it costs at least."""

from collections.abc import Callable

from benchmarks.race.arena import Arena
from benchmarks.race.contest import Event
from benchmarks.race.rows import capture, edges, forward, generation, heads, rotation, sweep

ROWS: dict[str, Callable[[Arena], Event]] = {
    "forward": forward.event,
    "capture": capture.event,
    "sweep": sweep.event,
    "heads": heads.event,
    "generation": generation.event,
    "edges": edges.event,
    "rotation": rotation.event,
}
