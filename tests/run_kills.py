"""A script: kill runs with SIGKILL, go on with them, and print what every folder holds in the end.

    python run_kills.py study FOLDER ROUNDS KILLS COMMAND...    # a study, killed at random moments
    python run_kills.py lines FOLDER                            # a run folder, killed at every line of its own code

One process imports everything once and forks a worker for every attempt, so that a kill costs milliseconds.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType

from mediant.runs import engine, folder
from mediant.runs.engine import LocalEngine, WorkItem
from mediant.runs.folder import Manifest, RunFolder

SEED = 20
# Long enough for any one item on a busy machine; reached only when a worker hangs.
PATIENCE = 120.0


def forked(work: Callable[[], object]) -> int:
    """Process id of a child that does `work` in silence and exits with 0, or 1 after an exception."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        status = 0 if work() in (None, 0) else 1
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def whole_lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    return data[: data.rfind(b"\n") + 1].splitlines()


def killed(child: int, items: Path, target: int, delay: float) -> int:
    """Kill a worker some time after it has stored `target` items; its exit status."""
    deadline = time.monotonic() + PATIENCE
    while len(whole_lines(items)) < target and time.monotonic() < deadline:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return ended(child)
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return ended(child)


def compared(place: Path, whole: Path) -> dict[str, object]:
    """What one folder holds in the end, against the undisturbed one."""
    keys = [json.loads(line)["key"] for line in whole_lines(place / "items.jsonl")]
    names = [name for name in ("items.jsonl", "result.json", "index.html") if (whole / name).exists()]
    there = [name for name in names if (place / name).exists()]
    return {
        "missing": [name for name in names if name not in there],
        "differ": [name for name in there if (place / name).read_bytes() != (whole / name).read_bytes()],
        "twice": len(keys) - len(set(keys)),
        "left": len(list(place.iterdir())) - len(list(whole.iterdir())),
    }


def study(place: Path, rounds: int, kills: int, command: list[str]) -> dict[str, object]:
    """Kill a study `kills` times in each of `rounds` folders, and let each end."""
    import jinja2
    import plotly.graph_objects
    import rich.progress
    import torch
    import transformers.models.llama.modeling_llama

    from mediant.cli import main
    from mediant.studies.activation_patching import figures
    from mediant.studies.positional_circuits import figures as circuits

    del jinja2, plotly, rich, transformers, figures, circuits  # imported for the workers
    torch.set_num_threads(1)

    def worker(out: Path) -> int:
        return forked(lambda: main([*command, "--out", str(out), "--resume"]))

    random, whole = Random(SEED), place / "whole"
    began = time.monotonic()
    assert ended(worker(whole)) == 0
    total = len(whole_lines(whole / "items.jsonl"))
    pause = (time.monotonic() - began) / total
    report = []
    for number in range(rounds):
        out, deaths = place / str(number), []
        for target in sorted(random.sample(range(total + 1), kills)):
            status = killed(worker(out), out / "items.jsonl", target, random.uniform(0, pause / 4))
            stored = len(whole_lines(out / "items.jsonl"))
            deaths.append({"status": status, "unfinished": not (out / "result.json").exists(), "stored": stored})
        report.append({"deaths": deaths, "status": ended(worker(out)), **compared(out, whole)})
    return {"total": total, "rounds": report}


def lines(place: Path) -> dict[str, object]:
    """Kill a small run at every line of the modules that keep it, and go on."""

    def work(out: Path) -> None:
        manifest = Manifest(study="s", preset="p", config={"n": 3}, versions={"python": "3"})
        run = RunFolder.open(out, manifest, resume=True)
        items = [WorkItem(f"item/{i}", lambda i=i: {"values": [i / 3] * 4}) for i in range(3)]
        found = LocalEngine(show_progress=False).map(run, items, title="")
        run.write("result.json", json.dumps(found) + "\n")

    def counted(out: Path) -> None:
        passed = tracing(lambda _: None)
        work(out)
        sys.settrace(None)
        (place / "lines").write_text(str(passed()))

    def at_line(out: Path, last: int) -> None:
        tracing(lambda line: os.kill(os.getpid(), signal.SIGKILL) if line == last else None)
        work(out)

    assert ended(forked(lambda: counted(place / "whole"))) == 0
    report = []
    for number in range(1, int((place / "lines").read_text()) + 1):
        out = place / str(number)
        died = ended(forked(lambda out=out, number=number: at_line(out, number)))
        began = (out / "manifest.json").exists()
        status = ended(forked(lambda out=out: work(out)))
        report.append({"died": died, "began": began, "status": status, **compared(out, place / "whole")})
    return {"points": report}


def tracing(on_line: Callable[[int], object]) -> Callable[[], int]:
    """Call `on_line` with the number of every line of the run modules that is passed; how many there were."""
    passed = 0
    files = {engine.__file__, folder.__file__}

    def local(frame: FrameType, event: str, _: object) -> object:
        nonlocal passed
        if event == "line":
            passed += 1
            on_line(passed)
        return local

    sys.settrace(lambda frame, _, __: local if frame.f_code.co_filename in files else None)
    return lambda: passed


if __name__ == "__main__":
    mode, root, *rest = sys.argv[1:]
    Path(root).mkdir(parents=True)
    done = lines(Path(root)) if mode == "lines" else study(Path(root), int(rest[0]), int(rest[1]), rest[2:])
    print(json.dumps(done))
