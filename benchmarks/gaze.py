"""Claims: finding gaze heads takes memory that grows with length and not with its square; steering costs next to nothing.

    OMP_NUM_THREADS=1 python benchmarks/gaze.py

The peer is the published recipe written plainly below: eager attention, full weights of all layers for discovery, and a hook that
widens the attention mask to every head for steering. Both run on one random Qwen3-VL (8 layers of 8 heads), each case of
discovery in a process of its own. Decoding alternates between the ways token by token, and speeds are compared pair
by pair, so that all of them see the same machine.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from mediant.core import Site
from mediant.interventions.look import Look
from mediant.interventions.looking import looking
from mediant.search.gaze import attention_on
from mediant.subject import Batch, wrap
from mediant.subject.cache import cache_name
from mediant.subject.vision import VisionSubject

RESULTS = Path(__file__).parent / "results" / "gaze.jsonl"
TOKENS = (256, 1024, 4096, 16384)
# At 16k tokens the published recipe would hold 8 x 8 x 16k x 16k weights: 64 GiB.
LONGEST_PUBLISHED = 4096
CELL, PANELS, WARM = 8, 4, 10
# Width of the model -> timed steps of decoding: one so small that what steering costs shows, and layers as wide as Qwen3-VL-2B's.
STEPS = {512: 200, 2048: 60}
WORDS = ["<pad>", "<eos>", "<|image_pad|>", "<|video_pad|>", "<s>", "</s>", "what", "is", "here", "?"]


def subject(width: int, attention: str) -> VisionSubject:
    """A random model with eyes of one patch per token."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [width // 16, 0, 0], "mrope_interleaved": True}
    text = {
        "vocab_size": len(WORDS), "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": width // 8, "max_position_embeddings": 32768,
        "rope_parameters": rope, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    vision = {
        "depth": 1, "hidden_size": 16, "num_heads": 1, "intermediate_size": 16, "out_hidden_size": width, "patch_size": CELL,
        "spatial_merge_size": 1, "temporal_patch_size": 1, "num_position_embeddings": 64, "deepstack_visual_indexes": [],
    }  # fmt: skip
    config = Qwen3VLConfig(
        text_config=text, vision_config=vision, image_token_id=2, video_token_id=3, vision_start_token_id=4, vision_end_token_id=5
    )
    model = Qwen3VLForConditionalGeneration(config)
    model.set_attn_implementation({"text_config": attention})
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": WORDS[2:6]})
    pixels = Qwen2VLImageProcessorPil(
        patch_size=CELL, merge_size=1, temporal_patch_size=1, size={"shortest_edge": CELL**2, "longest_edge": CELL**2 * 40_000}
    )
    found = wrap(model, tokenizer, pixels, name="random")
    assert isinstance(found, VisionSubject)
    return found


def strip(tokens: int) -> np.ndarray:
    """A random picture of so many image tokens, twice as wide as high."""
    high = int((tokens / 4) ** 0.5)
    return np.random.default_rng(0).integers(0, 256, (high * CELL, 4 * high * CELL, 3), dtype=np.uint8)


def looked(vlm: VisionSubject, tokens: int) -> Batch:
    image = strip(tokens)
    wide = image.shape[1] / PANELS
    boxes = {f"panel {k}": (k * wide, 0.0, (k + 1) * wide, float(image.shape[0])) for k in range(PANELS)}
    return vlm.look([image], ["what is here ?"], regions=[boxes])


def published_discovery(vlm: VisionSubject, batch: Batch) -> np.ndarray:
    """Full attention of all layers, of which the last row is summed over each panel's tokens."""
    with torch.no_grad():
        attentions = vlm.model(**vlm.feed(batch), output_attentions=True, use_cache=False).attentions
    rows = torch.stack([layer[0, :, -1] for layer in attentions])
    return np.stack([rows[..., list(batch.spans[0][f"panel {k}"])].sum(-1).numpy() for k in range(PANELS)], -1)


@contextmanager
def published_steering(vlm: VisionSubject, heads: tuple[Site, ...], batch: Batch, beta: float = 1e4) -> Iterator[None]:
    """A pre-hook on the attention modules of the chosen layers that adds a bias to the mask of every head."""
    target, image = (torch.zeros(batch.n_cols, dtype=torch.bool) for _ in range(2))
    target[list(batch.spans[0]["panel 1"])] = True
    image[list(batch.spans[0]["image"])] = True
    prompt = beta * target.float() - beta * (image & ~target).float()
    handles = []
    for layer in sorted({site.layer for site in heads}):
        mine = [site.head for site in heads if site.layer == layer]

        def widen(_: object, args: tuple, kwargs: dict, mine: list[int] = mine) -> tuple[tuple, dict]:
            mask = kwargs["attention_mask"]
            bias = torch.zeros(1, vlm.shape.n_heads, 1, mask.shape[-1])
            bias[0, mine, 0, : len(prompt)] = prompt
            return args, kwargs | {"attention_mask": mask + bias}

        handles.append(vlm.family.attn_of(vlm.model, layer).register_forward_pre_hook(widen, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def measure(way: str, tokens: int) -> None:
    """One case of discovery: seconds and rise of the resident size, printed."""
    vlm = subject(256, "sdpa" if way == "ours" else "eager")
    batch = looked(vlm, tokens)
    looked(vlm, 64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.perf_counter()
    names = [f"panel {k}" for k in range(PANELS)]
    found = attention_on(vlm, batch, names)[0][0] if way == "ours" else published_discovery(vlm, batch)
    seconds = time.perf_counter() - begun
    rise = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    row = {
        "part": "discovery", "way": way, "image_tokens": len(batch.images[0].cells), "seconds": round(seconds, 2),
        "rise_mib": round(rise), "check": round(float(found.sum()), 4),
    }  # fmt: skip
    print(json.dumps(row))


class Way:
    """One way of decoding, with a model of its own and a prompt already read."""

    def __init__(self, attention: str, width: int, tokens: int) -> None:
        self.vlm = subject(width, attention)
        self.batch, self.cache = looked(self.vlm, tokens), DynamicCache()
        with torch.no_grad(), self.vlm.reading(self.batch):
            self.vlm.model(
                **self.vlm.feed(self.batch), **{cache_name(self.vlm.model): self.cache}, use_cache=True, logits_to_keep=1
            )

    def step(self) -> float:
        """Seconds for the token after the prompt; the cache is as before afterwards."""
        ids = torch.full((1, 1), WORDS.index("here"))
        with torch.no_grad(), self.vlm.reading(self.batch):
            begun = time.perf_counter()
            self.vlm.model(input_ids=ids, **{cache_name(self.vlm.model): self.cache}, use_cache=True)
            seconds = time.perf_counter() - begun
        self.cache.crop(-1)
        return seconds


def decoding(width: int, tokens: int) -> Iterator[dict[str, object]]:
    """Time of one token, steered and not, ours and published: token by token in turn, so that all see the same machine."""
    heads = tuple(Site("head_z", layer, head) for layer, head in ((3, 1), (4, 0), (4, 5), (5, 2), (5, 7), (6, 3)))
    kinds = {"fused": "sdpa", "fused, steered": "sdpa", "eager": "eager", "eager, steered as published": "eager"}
    ways = {name: Way(attention, width, tokens) for name, attention in kinds.items()}
    ours, theirs = ways["fused, steered"], ways["eager, steered as published"]
    steps = STEPS[width]
    times = {way: np.empty(steps) for way in ways}
    with looking(ours.vlm, Look(heads, "panel 1", when="decode")), published_steering(theirs.vlm, heads, theirs.batch):
        for i in range(-WARM, steps):
            for name, way in ways.items():
                times[name][i] = way.step()
    for way, seconds in times.items():
        ratios = times["fused"] / seconds
        low, middle, high = (round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.5, 0.75)))
        yield {
            "part": "decoding", "way": way, "width": width, "image_tokens": tokens,
            "ms_per_token": round(1000 * float(np.median(seconds)), 2), "speed_of_fused": middle, "quartiles": [low, high],
        }  # fmt: skip


def main() -> None:
    cases = [("ours", tokens) for tokens in TOKENS] + [("published", tokens) for tokens in TOKENS if tokens <= LONGEST_PUBLISHED]
    rows = []
    for way, tokens in cases:
        command = [sys.executable, __file__, way, str(tokens)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
        print(rows[-1])
    for width, tokens in product(STEPS, (256, 1024)):
        for row in decoding(width, tokens):
            rows.append(row)
            print(row)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    measure(sys.argv[1], int(sys.argv[2])) if len(sys.argv) > 1 else main()
