"""A script: kill training with SIGKILL at many lines of its own code, and print what going on afterwards ends in.

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


def tracing(on_line: Callable[[], None]) -> Callable[..., object]:
    def local(frame: FrameType, event: str, _: object) -> object:
        if event == "line":
            on_line()
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


def counted(folder: Path) -> str:
    lines = 0

    def count() -> None:
        nonlocal lines
        lines += 1

    sys.settrace(tracing(count))
    digest = training(folder)
    sys.settrace(None)
    return f"{lines} {digest}"


def killed_after(folder: Path, lines: int) -> str:
    left = lines

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.settrace(tracing(count))
    return training(folder)


def main(folder: Path, points: int) -> None:
    """Print, as JSON, the undisturbed digest and what every kill point gave: the signal and the digest at the end."""
    training(folder / "first")  # what is imported late is imported here, once
    _, answer = forked(lambda: counted(folder / "whole"))
    lines, undisturbed = int(answer.split()[0]), answer.split()[1]
    outcomes = []
    for i in range(points):
        at, place = 1 + i * (lines - 1) // points, folder / str(i)
        status, _ = forked(lambda place=place, at=at: killed_after(place, at))
        # A second kill, of the call that goes on, before the one that ends it.
        forked(lambda place=place, at=at: killed_after(place, 40 + at % 60))
        outcomes.append((os.WTERMSIG(status), forked(lambda place=place: training(place))[1]))
    print(json.dumps({"lines": lines, "undisturbed": undisturbed, "outcomes": outcomes}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
