"""Claim: edge attribution is at least as fast as TransformerLens's own, with equal scores and less memory.

    pip install 'mediant[bench]'
    OMP_NUM_THREADS=1 python benchmarks/eap.py

Three contenders score every edge of SmolLM2-135M on the same pairs, one thread, each in a process of its own:

    mediant          `search.eap`
    transformerlens  its own `attribution_patch(granularity="edge")`: prompt by prompt, a Python object per edge and token
    hooks            the usual recipe, written out here on its split inputs and head results: one batch, all gradients kept

TransformerLens refuses models whose query heads share keys, so all three get a copy of SmolLM2 in which every query head
has its own key and value head with the shared weights; it gives the same logits. What is timed is scoring alone: the best
of three, once for TransformerLens's own, which takes minutes.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, PreTrainedModel

import mediant as md
from mediant.core.pair import Pair
from mediant.interventions.ports import graph_of
from mediant.search.attribution import eap
from mediant.subject import Subject
from mediant.subject.loading import wrap
from mediant.tasks.encode import PairBatch, encode

RESULTS = Path(__file__).parent / "results" / "eap.jsonl"
ROUNDS = {"mediant": 3, "transformerlens": 1, "hooks": 3}
N_PAIRS = 8


def ungrouped(model: PreTrainedModel) -> LlamaForCausalLM:
    """The same function with one key and value head per query head."""
    config = AutoConfig.from_pretrained(model.config._name_or_path)
    times, config.num_key_value_heads = config.num_attention_heads // config.num_key_value_heads, config.num_attention_heads
    weights = model.state_dict()
    for name in [n for n in weights if n.endswith(("k_proj.weight", "v_proj.weight"))]:
        weights[name] = weights[name].unflatten(0, (-1, config.head_dim)).repeat_interleave(times, 0).flatten(0, 1)
    copy = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    copy.load_state_dict(weights)
    return copy  # type: ignore[no-any-return]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = [_spawned(name, Path(folder)) for name in ROUNDS]
        scores = {name: np.load(Path(folder) / f"{name}.npy") for name in ROUNDS}
    size = np.abs(scores["mediant"]).max()
    for row in rows:
        row["largest_difference"] = float(np.abs(scores[row["contender"]] - scores["mediant"]).max() / size)
        row["times_mediant"] = row["seconds"] / rows[0]["seconds"]
        print(json.dumps(row))
    with RESULTS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _spawned(name: str, folder: Path) -> dict[str, float | str]:
    answer = subprocess.run([sys.executable, __file__, name, str(folder)], check=True, capture_output=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def contend(name: str, folder: Path) -> None:
    """One contender: scores to a file, time and memory to the output."""
    torch.set_num_threads(1)
    original = md.load("smollm2-135m")
    model = ungrouped(original.model)
    lm = wrap(model, original.tokenizer)
    pairs = md.tasks.ioi.generate(
        N_PAIRS, single_token=lm.single_token, templates=["store"], counterfactual="abc", order="abba"
    ).pairs
    batch = encode(lm, pairs)
    scorers: dict[str, Callable[[], np.ndarray]] = {
        "mediant": lambda: ours(lm, pairs),
        "transformerlens": lambda: theirs(bridge(model, lm), batch, lm),
        "hooks": lambda: by_hooks(bridge(model, lm), batch, lm),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(ROUNDS[name]):
        start = time.perf_counter()
        scores = scorers[name]()
        times.append(time.perf_counter() - start)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    np.save(folder / f"{name}.npy", scores)
    row = {
        "contender": name,
        "n_pairs": N_PAIRS,
        "n_tokens": batch.base.n_cols,
        "seconds": min(times),
        "peak_mib": (after - before) / 1024,
    }
    print(json.dumps(row))


def ours(lm: Subject, pairs: tuple[Pair, ...]) -> np.ndarray:
    """(target, source)."""
    return eap(lm, pairs, batch_size=N_PAIRS).within[0]


def bridge(model: PreTrainedModel, lm: Subject) -> object:
    """TransformerLens's view of a copy of the model; it rewires the copy in place."""
    from transformer_lens.model_bridge import TransformerBridge

    if not hasattr(bridge, "made"):
        made = TransformerBridge.boot_transformers(
            model.config._name_or_path or "HuggingFaceTB/SmolLM2-135M", hf_model=model, tokenizer=lm.tokenizer, device="cpu"
        )
        bridge.made = made.eval()  # type: ignore[attr-defined]
    return bridge.made  # type: ignore[attr-defined,no-any-return]


def theirs(model: Any, batch: PairBatch, lm: Subject) -> np.ndarray:
    """TransformerLens's own sweep, its edges between tokens summed over positions."""
    from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

    graph, table = graph_of(lm), np.zeros((graph_of(lm).n_targets, graph_of(lm).n_sources))
    parts = {"q_input": 0, "k_input": 1, "v_input": 2}

    def source(node: Any) -> int:
        if node.kind == "embed":
            return 0
        return graph.first_source(node.layer) + (graph.n_heads if node.kind == "mlp_out" else node.head)

    def target(node: Any) -> int:
        if node.kind == "logits":
            return graph.n_targets - 1
        inside = 3 * graph.n_heads if node.kind == "mlp_in" else parts[node.kind] * graph.n_heads + node.head
        return graph.first_target(node.layer) + inside

    for row in range(N_PAIRS):
        right, wrong = batch.answers[row][0], batch.counterfactual_answers[row][0]
        # Its gradient is taken at what it calls the corrupt run, ours at the clean one.
        found = attribution_patch(
            model, batch.source.ids[row : row + 1], batch.base.ids[row : row + 1],
            lambda logits, right=right, wrong=wrong: logits[0, -1, right] - logits[0, -1, wrong],
            EdgeAttributionConfig(granularity="edge"),
        )  # fmt: skip
        for (writer, reader), score in found.edge_scores.items():
            table[target(reader), source(writer)] += score / N_PAIRS
    return table


def by_hooks(model: Any, batch: PairBatch, lm: Subject) -> np.ndarray:
    """Forward with the other prompts, forward and backward with these, one product per reading place."""
    graph = graph_of(lm)
    outputs = {"hook_embed": slice(0, 1)}
    readers = {f"blocks.{graph.n_layers - 1}.hook_resid_post": slice(graph.n_targets - 1, graph.n_targets)}
    for layer in range(graph.n_layers):
        heads = slice(graph.first_source(layer), graph.first_source(layer) + graph.n_heads)
        outputs |= {f"blocks.{layer}.attn.hook_result": heads, f"blocks.{layer}.hook_mlp_out": slice(heads.stop, heads.stop + 1)}
        first = graph.first_target(layer)
        for part, name in enumerate(("q", "k", "v")):
            readers[f"blocks.{layer}.attn.hook_{name}_input"] = slice(
                first + part * graph.n_heads, first + (part + 1) * graph.n_heads
            )
        readers[f"blocks.{layer}.hook_mlp_in"] = slice(first + 3 * graph.n_heads, first + 3 * graph.n_heads + 1)
    change = torch.zeros(graph.n_sources, *batch.base.ids.shape, lm.shape.d_model)
    table = np.zeros((graph.n_targets, graph.n_sources))

    def by_node(values: torch.Tensor) -> torch.Tensor:
        return values.permute(2, 0, 1, 3) if values.ndim == 4 else values[None]

    def write(name: str, sign: int) -> tuple[str, Callable[..., None]]:
        def hook(values: torch.Tensor, hook: Any) -> None:  # noqa: ARG001 - called by name
            change[outputs[name]] += sign * by_node(values.detach())

        return name, hook

    def read(name: str) -> tuple[str, Callable[..., None]]:
        place, n = readers[name], graph.readable(readers[name].start)

        def hook(gradient: torch.Tensor, hook: Any) -> None:  # noqa: ARG001 - called by name
            table[place, :n] = (by_node(gradient).flatten(1) @ change[:n].flatten(1).mT).numpy()

        return name, hook

    model.set_use_attn_result(True)
    model.set_use_split_qkv_input(True)
    model.set_use_hook_mlp_in(True)
    right, wrong = (torch.tensor(ids)[:, 0] for ids in (batch.answers, batch.counterfactual_answers))
    rows = torch.arange(N_PAIRS)
    with torch.no_grad():
        model.run_with_hooks(batch.source.ids, fwd_hooks=[write(name, 1) for name in outputs])
    with model.hooks(fwd_hooks=[write(name, -1) for name in outputs], bwd_hooks=[read(name) for name in readers]):
        logits = model(batch.base.ids)[:, -1]
        (logits[rows, right] - logits[rows, wrong]).sum().backward()
    model.zero_grad()
    return table / N_PAIRS


if __name__ == "__main__":
    contend(sys.argv[1], Path(sys.argv[2])) if len(sys.argv) > 1 else main()
