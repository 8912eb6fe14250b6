"""Claim: memory of positional edge attribution grows with pairs of tokens per head, never with tokens x edges.

    OMP_NUM_THREADS=1 python benchmarks/positional_memory.py

Scores all edges by span and all crossing edges of one pair of prompts, each case in a process of its own, and prints by
how much the largest resident size rose: on SmolLM2-135M with longer and longer prompts, and on random models that are
deeper and deeper, where edges grow with the square of the depth. Scores themselves take one number per edge and span.
"""

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import mediant as md
from mediant.core.pair import Pair, Prompt
from mediant.interventions.nodes import TokenOrder
from mediant.interventions.ports import graph_of
from mediant.search.attribution import Accumulator, accumulate
from mediant.subject.loading import wrap
from mediant.tasks.encode import PairBatch

RESULTS = Path(__file__).parent / "results" / "positional_memory.jsonl"
CASES = ((32, 0), (64, 0), (128, 0), (256, 0), (512, 0), (64, 20), (64, 40), (64, 80), (128, 80), (256, 80))
SPANS = 4


def resident() -> float:
    """Largest resident size so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(tokens: int, layers: int) -> None:
    """One case: the rise, printed. With 0 layers, the real model."""
    torch.set_num_threads(1)
    if not layers:
        lm = md.load("smollm2-135m")
    else:
        config = LlamaConfig(
            hidden_size=96, intermediate_size=192, num_hidden_layers=layers, num_attention_heads=12, num_key_value_heads=12,
            vocab_size=8, tie_word_embeddings=True,
        )  # fmt: skip
        words = Tokenizer(WordLevel({word: i for i, word in enumerate(["?", "Mary", "John", "the", "to"])}, unk_token="?"))
        words.pre_tokenizer = Whitespace()
        lm = wrap(LlamaForCausalLM(config).eval(), PreTrainedTokenizerFast(tokenizer_object=words, pad_token="?"))
    filler = " the" * (tokens - 2)
    pair = Pair("long", Prompt(f"Mary{filler} to"), Prompt(f"John{filler} to"), " Mary", " John")

    def order(batch: PairBatch) -> TokenOrder:
        place = torch.arange(batch.base.n_cols) * SPANS // batch.base.n_cols
        return TokenOrder.from_spans(place.expand(batch.base.n_rows, -1), SPANS)

    graph, total = graph_of(lm), Accumulator(graph_of(lm), tuple("abcd"), crossing=True)
    before = resident()
    accumulate(total, lm, [pair], order=order)
    n_pairs = graph.n_layers * graph.n_heads * tokens**2
    row = {
        "layers": graph.n_layers, "tokens": tokens, "rise_mib": round(resident() - before), "edges": graph.n_edges,
        # What it would take, in float32, to hold one number per edge and token, and one patched value per crossing edge.
        "per_edge_and_token_mib": round(4 * tokens * graph.n_edges / 2**20),
        "values_per_crossing_edge_mib": round(4 * 3 * n_pairs * lm.shape.d_head / 2**20),
    }  # fmt: skip
    print(json.dumps(row))


def main() -> None:
    for tokens, layers in CASES:
        command = [sys.executable, __file__, str(tokens), str(layers)]
        row = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        print(row)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(row + "\n")


if __name__ == "__main__":
    measure(int(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 1 else main()
