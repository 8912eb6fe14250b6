"""A script: kill training with SIGKILL at every line that writes, and print what going on afterwards ends in.

One process imports torch and forks a child for every call, so that a kill costs milliseconds.
"""

import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from mediant.training import checkpoint, loop
from mediant.training.loop import LoopConfig, train

CONFIG = LoopConfig(
    steps=7, lr=0.1, weight_decay=0.01, warmup=2, schedule="cosine", save_every=3, log_every=2, seed=4, grad_clip=0.5
)
FILES = {loop.__file__, checkpoint.__file__}


def training(folder: Path) -> str:
    """Train to the end; a digest of the parameters, the moments and the losses."""
    start = torch.Generator().manual_seed(1)
    parameters = {name: torch.randn(3, generator=start).requires_grad_() for name in ("w", "b")}

    def loss_of(_: int, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(4, 3, generator=generator)
        kept = torch.nn.functional.dropout(x * parameters["w"] + parameters["b"], 0.3)
        return (kept - 1).square().mean()

    train(parameters, loss_of, folder, CONFIG)
    found = checkpoint.read(folder)
    digest = hashlib.sha256((folder / checkpoint.LOSSES).read_bytes())
    for name in sorted(found.tensors):
        digest.update(name.encode() + found.tensors[name].numpy().tobytes())
    for tensor in parameters.values():
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def tracing(on_line: Callable[[FrameType], None]) -> Callable[..., object]:
    def local(frame: FrameType, event: str, _: object) -> object:
        if event == "line":
            on_line(frame)
        return local

    return lambda frame, _, __: local if frame.f_code.co_filename in FILES else None


def forked(work: Callable[[], str]) -> tuple[int, str]:
    """Exit status and answer of `work` in a child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, work().encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    return os.waitpid(child, 0)[1], answer


def listed(folder: Path) -> str:
    """As JSON: the digest of an undisturbed run, and the function and line of everything it executes in order."""
    lines: list[tuple[str, int]] = []
    sys.settrace(tracing(lambda frame: lines.append((frame.f_code.co_name, frame.f_lineno))))
    digest = training(folder)
    sys.settrace(None)
    return json.dumps([digest, lines])


def killed_before(folder: Path, place: int) -> str:
    """Train until the line at that place of the list is due."""
    left = place

    def count(_: FrameType) -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    sys.settrace(tracing(count))
    return training(folder)


def main(folder: Path) -> None:
    """Print, as JSON, the undisturbed digest and, by kill point, the line, the signal and the digest at the end."""
    training(folder / "first")  # what is imported late is imported here, once
    undisturbed, lines = json.loads(forked(lambda: listed(folder / "whole"))[1])
    places: dict[tuple[str, int], list[int]] = {}
    for place, (function, number) in enumerate(lines):
        places.setdefault((function, number), []).append(place)
    outcomes = []
    for (function, number), often in places.items():
        if function in ("train", "advance", "save", "append", "write"):
            place, run = often[len(often) // 2], folder / f"{function}-{number}"
            status, _ = forked(lambda place=place, run=run: killed_before(run, place))
            digest = forked(lambda run=run: training(run))[1]
            outcomes.append((f"{function}:{number}", os.WTERMSIG(status), digest))
    run = folder / "often"
    deaths = [forked(lambda: killed_before(run, 150))[0] for _ in range(4)]
    outcomes.append(("often", deaths[0], forked(lambda: training(run))[1]))
    print(json.dumps({"undisturbed": undisturbed, "outcomes": outcomes}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
