"""Claim: running through mediant without edits costs no more than 1.03 of the bare model.

    OMP_NUM_THREADS=1 python benchmarks/edit_free.py

Interleaves bare forwards and `run` on the same batch, so that drifts of the machine hit both, and prints the ratio of medians.
The floor is 1: there is nothing to do beyond the forward itself.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import mediant as md
from mediant.subject import Batch, Subject

RESULTS = Path(__file__).parent / "results" / "edit_free.jsonl"


def bare(lm: Subject, batch: Batch) -> None:
    lm.model(
        input_ids=batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids, use_cache=False, logits_to_keep=1
    )


def seconds(call: object, *args: object) -> float:
    start = time.perf_counter()
    call(*args)  # type: ignore[operator]
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lm = md.load("smollm2-135m")
    batch = lm.encode([pair.clean for pair in md.tasks.ioi.generate(8, single_token=lm.single_token, templates=["store"]).pairs])
    with torch.no_grad():
        bare(lm, batch), md.run(lm, batch)
        rows = [(seconds(bare, lm, batch), seconds(md.run, lm, batch)) for _ in range(options.rounds)]
    peer, ours = (statistics.median(column) for column in zip(*rows, strict=True))
    row = {"claim": "edit-free run <= 1.03 x bare", "bare_s": peer, "ours_s": ours, "ratio": ours / peer, "floor": 1.0}
    print(f"bare {peer:.4f} s, mediant {ours:.4f} s: ratio {ours / peer:.3f} (floor 1)")
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
