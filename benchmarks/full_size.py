"""A FLUX.2 [klein] folder with the published sizes and random weights, to see that every command takes the real thing.

    python benchmarks/full_size.py FOLDER [klein-4B | klein-9B]
    mediant run reference-binding --model FOLDER --preset smoke --dtype bfloat16 --set steps=1

Transformer and autoencoder have the sizes of the published ones; the text encoder has the published width and a few layers. It
draws noise. On a CPU klein-4B needs 12 GB of memory.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from mediant.subject.pipelines import SETTINGS
from mediant.zoo.drawn_flux import parts

SIZES: dict[str, dict[str, int]] = {
    "klein-4B": {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680},
    "klein-9B": {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
}
READ = (1, 2, 3)
SLOTS = 64


def main(folder: Path, name: str) -> None:
    """Write the folder."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    words, sizes = parts.tokenizer(), SIZES[name]
    width = sizes["joint_attention_dim"] // len(READ)
    reader = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=len(READ),
            num_attention_heads=32, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
        )
    )  # fmt: skip
    dit = Flux2Transformer2DModel(guidance_embeds=False, **sizes)
    print(f"{name}: {sum(each.numel() for each in dit.parameters()) / 1e9:.2f} billion parameters in the transformer")
    pipeline: Any = Flux2KleinPipeline(
        FlowMatchEulerDiscreteScheduler(), AutoencoderKLFlux2(), reader, words, dit, is_distilled=True
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    (folder / SETTINGS).write_text(json.dumps({"steps": 4, "slots": SLOTS, "layers": list(READ)}) + "\n", encoding="utf-8")
    print(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "klein-4B")
