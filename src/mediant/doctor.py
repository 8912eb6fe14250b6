"""What this machine has: versions, threads, devices, models, browser-breaking packages."""

import importlib.metadata
import importlib.util
import os
import shutil
from collections.abc import Iterator

NEEDED = ("torch", "transformers", "safetensors", "numpy", "plotly", "cyclopts")
ROOM_GB = 2.0


def report() -> Iterator[str]:
    """One line per finding; lines that ask for action begin with `!`."""
    for name in NEEDED:
        try:
            yield f"  {name:<14}{importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"! {name} is missing: run `make install`"
    yield from _compute()
    yield from _cache()
    if importlib.util.find_spec("torchvision") is not None:
        yield "! torchvision is installed; beside a CPU-only torch it breaks imports of transformers: `pip uninstall torchvision`"


def _compute() -> Iterator[str]:
    import torch

    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    yield f"  devices       cpu ({torch.get_num_threads()} threads){', ' + ', '.join(devices) if devices else ''}"
    if "OMP_NUM_THREADS" not in os.environ:
        yield "  threads       if this machine is busy with other work, OMP_NUM_THREADS=1 is faster than sharing cores"


def _cache() -> Iterator[str]:
    from mediant.subject import catalogue, fetch

    folder = fetch.cache_dir()
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    yield f"{' ' if free > ROOM_GB else '!'} cache         {folder} ({free:.1f} GB free)"
    cards = catalogue.models()
    width = max(map(len, cards)) + 2
    for name, card in cards.items():
        yield f"  {name:<{width}}{fetch.is_fetched(name) or f'not here; {card.how_to_get}'}"
