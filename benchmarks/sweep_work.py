"""Claim: a layer x position sweep does less than half a forward's work per patch, and is faster than running each in full.

    OMP_NUM_THREADS=1 python benchmarks/sweep_work.py

The peer is the plain recipe, written out here: one full forward with one hook per patch, the same pairs folded into the same
batch. Both give the same numbers, which is checked.
"""

import json
import time
from pathlib import Path

import numpy as np
import torch

import mediant as md
from mediant.interventions import swap
from mediant.measures.metrics import Outcome
from mediant.search import Patcher
from mediant.tasks.encode import encode

RESULTS = Path(__file__).parent / "results" / "sweep_work.jsonl"
LAYERS = (0, 8, 16, 24, 29)


def main() -> None:
    torch.set_num_threads(1)
    lm = md.load("smollm2-135m")
    pairs = md.tasks.ioi.generate(12, single_token=lm.single_token, templates=["store"], order="abba").pairs
    encoded = encode(lm, pairs)
    sites = [md.Site(kind, layer) for kind in ("resid_post", "attn_out", "mlp_out") for layer in LAYERS]
    spans = [md.Span.index(i) for i in range(encoded.base.n_cols)]

    start, before = time.perf_counter(), lm.work.token_layers
    patcher = Patcher(lm, encoded)
    ours = patcher.grid(sites, spans)
    ours_s, work = time.perf_counter() - start, lm.work.token_layers - before

    start = time.perf_counter()
    plain = np.zeros_like(ours)
    with torch.no_grad():
        source = md.run(lm, encoded.source, capture=[(site, span) for site in sites for span in spans])
        for i, site in enumerate(sites):
            for j, span in enumerate(spans):
                out = md.run(lm, encoded.base, [swap(site, span, source.captured[site, span])])
                plain[i, j] = patcher.measured(Outcome(encoded, out.logits)) - patcher.before
    plain_s = time.perf_counter() - start

    forward = encoded.base.n_rows * encoded.base.n_cols * lm.shape.n_layers
    share, error = work / forward / (len(sites) * len(spans)), float(np.abs(ours - plain).max())
    print(f"work per patch {share:.3f} forwards; largest difference {error:.1e}")
    print(f"{ours_s:.1f} s against {plain_s:.1f} s: {plain_s / ours_s:.1f} x")
    claim = "sweep work < 0.5 forward per patch"
    row = {"claim": claim, "work": share, "ours_s": ours_s, "plain_s": plain_s, "ratio": plain_s / ours_s, "error": error}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
