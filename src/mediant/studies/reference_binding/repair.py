"""Repair by amplification: where a plain edit fails, does strengthening attention along one flow bring the property in?

    for repair in measured(bench, "colour", requests, tried):
        repair.flow, repair.beta, repair.shown, repair.kept

What is added to the logits of the flow's edges is a number of nats, in a window of blocks that validation requests chose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from mediant.studies.reference_binding import task
from mediant.studies.reference_binding.bench import Bench
from mediant.studies.reference_binding.method import Flow

DIRECTIONS: tuple[Flow, ...] = (("reference", "text"), ("text", "picture"), ("reference", "picture"))


@dataclass(frozen=True)
class Repair:
    """Requests under a flow that was strengthened.

    Attributes:
        layers: the blocks it was strengthened in.
        beta: what was added to the logits.
        shown: for requests that failed when left alone, whether they now show the property.
        random: the same with as many random tokens of text and picture strengthened in place of the flow's keys.
        kept: for requests that did not fail, whether they still show it.
    """

    flow: Flow
    layers: Sequence[int]
    beta: float
    shown: Sequence[bool]
    random: Sequence[bool]
    kept: Sequence[bool]


def measured(bench: Bench, name: str, requests: task.Data, untouched: Sequence[bool]) -> list[Repair]:
    """Every direction at every strength, given whether untouched pictures show the property."""
    conditions, n = bench.conditions, bench.config.n_repair
    test = requests.test[name]
    failed = [each for each, shown in zip(test, untouched, strict=True) if not shown][:n]
    fine = [each for each, shown in zip(test, untouched, strict=True) if shown][:n]
    found = []
    for flow in DIRECTIONS:
        layers = _window(bench, name, requests, flow)
        for beta in bench.config.repair:
            label = f"{flow[0]} to {flow[1]} {beta:+g}"
            stronger = partial(conditions.strengthened, layers, flow, beta)
            at_random = partial(conditions.strengthened_at_random, layers, flow, beta)
            shown = bench.shown(f"{label}, failed", name, failed, stronger)
            random = bench.shown(f"{label}, failed, at random", name, failed, at_random)
            kept = bench.shown(f"{label}, fine", name, fine, stronger)
            found.append(Repair(flow, layers, beta, shown, random, kept))
    return found


def _window(bench: Bench, name: str, requests: task.Data, flow: Flow) -> Sequence[int]:
    """The blocks in which the flow, strengthened, lets most validation requests succeed."""
    n, width, beta = bench.subject.shape.n_layers, bench.config.window, sorted(bench.config.repair)[len(bench.config.repair) // 2]
    windows = [range(at, at + width) for at in range(max(1, n - width + 1))]
    shares = [
        bench.share(
            f"{flow[0]} to {flow[1]} {beta:+g} from {layers[0]}", name, requests.validation[name],
            partial(bench.conditions.strengthened, layers, flow, beta),
        )
        for layers in windows
    ]  # fmt: skip
    return list(windows[max(range(len(windows)), key=shares.__getitem__)])
