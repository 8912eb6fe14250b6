"""Claim: closed-form scores of crossing edges are at least 10 x faster than computing each edge anew, with equal scores.

    OMP_NUM_THREADS=1 python benchmarks/crossing_loop.py

The peer is the plain loop, written out here: for every head, query and key token, put one query, key or value of the other run in
place, take the softmax again, and multiply the change of what the head mixes by the gradient. Both start from the same recorded
attention and gradients of one pair of SmolLM2-135M.
"""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import mediant as md
from mediant.interventions.nodes import AttentionRecord, TokenOrder, observe
from mediant.interventions.port_gradients import differentiate
from mediant.measures.metrics import METRICS, Outcome
from mediant.search.crossing import crossing_scores
from mediant.tasks.encode import encode

RESULTS = Path(__file__).parent / "results" / "crossing_loop.jsonl"


def cross(now: AttentionRecord, then: AttentionRecord) -> tuple[Tensor, Tensor]:
    """Logits with the other run's queries, and with its keys."""
    return now.score(then.query, now.key), now.score(now.query, then.key)


def closed(now: AttentionRecord, then: AttentionRecord, gradient: Tensor) -> Tensor:
    """Every crossing edge of a layer at once: (3, head, query, key)."""
    return crossing_scores(now.logits, *cross(now, then), now.value, then.value, gradient)[:, 0]


def plain(now: AttentionRecord, other: AttentionRecord, by_head: Tensor) -> Tensor:
    """The same, one by one."""
    gradient, crossed = by_head[0].double(), [each[0].double() for each in cross(now, other)]
    logits, value, then = now.logits[0].double(), now.value[0].double(), other.value[0].double()
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

    clean = differentiate(lm, batch.base, tokens, measure, with_attention=True)
    layers = list(zip(clean.nodes.attention, other.attention, clean.mixed, strict=True))
    with torch.no_grad():
        closed(*layers[0])
        loop, loop_s, loop_mib = watched(lambda: [plain(*layer) for layer in layers])
        # Run second: only what exceeds the loop's peak shows.
        ours, ours_s, ours_mib = watched(lambda: [closed(*layer) for layer in layers])
    error = max(float((a - b).abs().max()) for a, b in zip(ours, loop, strict=True))
    n_edges = sum(int((table != 0).sum()) for table in loop)
    print(f"{n_edges} crossing edges of {batch.base.n_cols} tokens; largest difference {error:.1e}")
    print(f"{ours_s:.3f} s against {loop_s:.1f} s: {loop_s / ours_s:.0f} x (claim: 10 x)")
    print(f"peak memory above what recording the attention took: {ours_mib:.0f} and {loop_mib:.0f} MiB")
    row = {
        "claim": "closed forms >= 10 x the loop", "edges": n_edges, "ours_s": ours_s, "loop_s": loop_s,
        "ratio": loop_s / ours_s, "error": error, "ours_mib": ours_mib, "loop_mib": loop_mib,
    }  # fmt: skip
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def watched(call: Callable[[], list[Tensor]]) -> tuple[list[Tensor], float, float]:
    """What a call gave, its seconds, and by how many MiB it raised the largest resident size."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    found = call()
    seconds = time.perf_counter() - start
    return found, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


if __name__ == "__main__":
    main()
