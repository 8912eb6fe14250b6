"""A copy of the checkout under `runs/mutants/tree` that mutants are written into, so that the checkout itself never changes."""

import gc
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "runs" / "mutants"
TREE = RUNS / os.environ.get("MUTANTS_COPY", "tree")
RESULTS = ROOT / "benchmarks" / "results" / "mutation.jsonl"
ROOMS = ("core", "interventions", "measures", "search")
SUITES = ("tests/golden", "tests/unit", "tests/contract")
COPIED = ("src", "tests", "docs", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")
# Imported once, before forking: what the package and its tests need, and nothing of the package itself.
WARM = """torch torch._dynamo torch.func transformers transformers.cache_utils transformers.masking_utils diffusers peft
accelerate numpy safetensors.torch gguf pydantic cyclopts rich jinja2 plotly.graph_objects jaxtyping beartype hypothesis pytest
jsonschema mpmath PIL.Image"""


def build() -> None:
    """Copy what the tests need; unchanged files keep their times, so compiled ones stay valid."""
    for name in COPIED:
        source, target = ROOT / name, TREE / name
        for file in [source] if source.is_file() else sorted(source.rglob("*")):
            if file.is_dir() or "__pycache__" in file.parts:
                continue
            copy = target / file.relative_to(source) if source.is_dir() else target
            if not copy.exists() or copy.read_bytes() != file.read_bytes():
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copy)


def enter() -> None:
    """Work in the copy: its `src` first on the path, no network, one thread."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", PYTHONPATH=str(TREE / "src"))
    os.chdir(TREE)
    sys.path.insert(0, str(TREE / "src"))


def warm() -> None:
    """Import what every test process needs."""
    for name in WARM.split():
        __import__(name)
    torch = sys.modules["torch"]
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
