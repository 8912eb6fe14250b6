"""Claim: closed-form scores of crossing edges are at least 10 x faster than computing each edge anew, with equal scores.

    OMP_NUM_THREADS=1 python benchmarks/crossing_loop.py

The peer is the plain loop, written out here: for every head, query and key token, put one query, key or value of the other run in
place, take the softmax again, and multiply the change of what the head mixes by the gradient. Both start from the same recorded
attention and gradients of one pair of SmolLM2-135M.
"""

import json
import time
from pathlib import Path

import torch
from torch import Tensor

import mediant as md
from mediant.interventions.nodes import TokenOrder, observe
from mediant.interventions.port_gradients import PortGradients, differentiate
from mediant.measures.metrics import METRICS, Outcome
from mediant.search.crossing import crossing_scores
from mediant.tasks.encode import encode

RESULTS = Path(__file__).parent / "results" / "crossing_loop.jsonl"


def plain(layer: int, clean: PortGradients, other_value: Tensor) -> Tensor:
    """Every crossing edge of a layer, one by one: (3, head, query, key)."""
    now, gradient = clean.nodes.attention[layer], clean.mixed[layer][0].double()
    logits, value, then = now.logits[0].double(), now.value[0].double(), other_value[0].double()
    crossed = [clean.crossed[layer].other_query[0].double(), clean.crossed[layer].other_key[0].double()]
    scores = torch.zeros(3, *logits.shape, dtype=torch.float64)
    n_heads, n = logits.shape[:2]
    for head in range(n_heads):
        mixed = logits[head].softmax(-1) @ value[head]
        for query in range(n):
            for key in range(query + 1):
                for part in range(2):
                    row = logits[head, query].clone()
                    row[key] = crossed[part][head, query, key]
                    scores[part, head, query, key] = (row.softmax(-1) @ value[head] - mixed[query]) @ gradient[head, query]
                values = value[head].clone()
                values[key] = then[head, key]
                scores[2, head, query, key] = (logits[head, query].softmax(-1) @ values - mixed[query]) @ gradient[head, query]
    return scores


def main() -> None:
    torch.set_num_threads(1)
    lm = md.load("smollm2-135m")
    pairs = md.tasks.ioi.generate(1, single_token=lm.single_token, templates=["store"], counterfactual="abc", order="abba").pairs
    batch = encode(lm, pairs)
    tokens = TokenOrder.of(batch.base)
    other = observe(lm, batch.source, tokens, with_attention=True)

    def measure(logits: Tensor) -> Tensor:
        return METRICS["logit_diff"](Outcome(batch, logits)).sum()

    clean = differentiate(lm, batch.base, tokens, measure, other=other, with_attention=True)
    layers = range(lm.shape.n_layers)

    def closed(layer: int) -> Tensor:
        now, crossed = clean.nodes.attention[layer], clean.crossed[layer]
        return crossing_scores(
            now.logits, crossed.other_query, crossed.other_key, now.value, other.attention[layer].value, clean.mixed[layer]
        )[:, 0]

    with torch.no_grad():
        closed(0)
        start = time.perf_counter()
        ours = [closed(layer) for layer in layers]
        ours_s = time.perf_counter() - start
        start = time.perf_counter()
        loop = [plain(layer, clean, other.attention[layer].value) for layer in layers]
        loop_s = time.perf_counter() - start
    error = max(float((a - b).abs().max()) for a, b in zip(ours, loop, strict=True))
    n_edges = sum(int((table != 0).sum()) for table in loop)
    print(f"{n_edges} crossing edges of {batch.base.n_cols} tokens; largest difference {error:.1e}")
    print(f"{ours_s:.2f} s against {loop_s:.1f} s: {loop_s / ours_s:.0f} x (claim: 10 x)")
    row = {"claim": "closed forms >= 10 x the loop", "edges": n_edges, "ours_s": ours_s, "loop_s": loop_s}
    row |= {"ratio": loop_s / ours_s, "error": error}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
