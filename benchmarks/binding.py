"""Claims: cut attention edges cost what one shared mask costs, no mask is built twice, and patching text costs next to nothing.

    OMP_NUM_THREADS=1 python benchmarks/binding.py

Peers are the library's own way, one mask handed to the pipeline for all blocks, and the published recipe written plainly below:
processors that build a dense mask in every block and step. All run on one random FLUX.2 with the published numbers of tokens
(1,024 squared: 512 text slots, 4,096 for the picture, 4,096 for a reference), in turn, so that all see the same machine.
"""

import json
import resource
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2AttnProcessor, Flux2ParallelSelfAttnProcessor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from mediant.core.edge import AttentionEdge
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edit, edits
from mediant.interventions.attention import attending, cut
from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator, Sampling
from mediant.subject.pipelines import wrap_pipeline

RESULTS = Path(__file__).parent / "results" / "binding.jsonl"
# Text slots, and the side of picture and reference in tokens: the tiny pipeline of the tests, and the paper's 1,024 squared.
SIZES = {1216: (128, 8, 32), 8704: (512, 64, 64)}
PATCH, STEPS = 8, 2
REPEATS = {1216: 12, 8704: 3}


def subject(slots: int) -> ImageGenerator:
    """A random FLUX.2 of four blocks and four heads."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    letters = {"<pad>": 0, "<s>": 1} | {letter: i + 2 for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=letters, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", padding_side="right")
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, head_dim=16,
        )
    )  # fmt: skip
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(4, 4, 4),
        layers_per_block=1, latent_channels=1, norm_num_groups=1, mid_block_add_attention=False,
    )  # fmt: skip
    transformer = Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=32, num_attention_heads=4,
        joint_attention_dim=32, timestep_guidance_channels=16, axes_dims_rope=(8, 8, 8, 8), guidance_embeds=False,
    )  # fmt: skip
    pipeline = Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), vae, text.eval(), words, transformer, is_distilled=True)
    return wrap_pipeline(pipeline, sampling=Sampling(STEPS, slots, (1,)))


def asked(flux: ImageGenerator, picture: int, reference: int) -> Batch:
    """One picture with one reference."""
    shown = np.random.default_rng(0).integers(0, 255, (reference * PATCH, reference * PATCH, 3), dtype=np.uint8)
    side = picture * PATCH
    return flux.encode(["a dog in the colour of this image"], references=[[shown]], height=side, width=side)


def dense(batch: Batch) -> torch.Tensor:
    """The mask that hides the reference from the text, built anew."""
    mask = torch.zeros(1, 1, batch.n_cols, batch.n_cols)
    rows, cols = (torch.tensor(batch.columns(0, Span(name))) for name in ("text", "reference"))
    mask[:, :, rows[:, None], cols[None]] = float("-inf")
    return mask


@contextmanager
def shared_mask(flux: ImageGenerator, batch: Batch) -> Any:
    """The library's own way: one mask for every block, from the first step to the last."""
    mask = dense(batch)
    handles = [
        module.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True)
        for name, module in flux.model.named_modules()
        if name.endswith(".attn")
    ]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def mask_per_block(flux: ImageGenerator, batch: Batch) -> Any:
    """The published recipe: a processor in every block that builds its own mask."""

    def masked(kind: type) -> Any:
        class Masked(kind):  # type: ignore[misc, valid-type]
            def __call__(self, attn: Any, *args: Any, **kwargs: Any) -> Any:
                *given, _, rotary = args
                return super().__call__(attn, *given, dense(batch), rotary, **kwargs)

        return Masked()

    before = dict(flux.model.attn_processors)
    kinds = {name: Flux2ParallelSelfAttnProcessor if name.startswith("single") else Flux2AttnProcessor for name in before}
    flux.model.set_attn_processor({name: masked(kind) for name, kind in kinds.items()})
    yield
    flux.model.set_attn_processor(before)


def timed(run: Callable[[], object], context: Callable[[], AbstractContextManager[object]]) -> float:
    """Seconds of one picture, entering the context included."""
    begun = time.perf_counter()
    with context():
        run()
    return time.perf_counter() - begun


def case(n_tokens: int) -> dict[str, Any]:
    """All ways at one length, in turn."""
    slots, picture, reference = SIZES[n_tokens]
    flux = subject(slots)
    batch = asked(flux, picture, reference)
    assert batch.n_cols == n_tokens
    every = range(flux.shape.n_layers)
    cuts = [cut(AttentionEdge(layer, None, "text", "reference")) for layer in every]
    with edit(flux, capture=[(Site("resid_post", layer), Span("text")) for layer in every]) as active:
        plain = flux.sample(batch)
    source = active.captured()
    places = [Site("resid_post", layer) for layer in every]
    patches = [
        edits.swap(site, "text", source[site, Span("text")].at_step(step), edits.Where(steps=(step,)))
        for site in places
        for step in range(STEPS)
    ]
    built = []

    @contextmanager
    def ours() -> Any:
        with attending(flux, cuts) as masks:
            yield
        built.append(masks.built)

    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "bare": nullcontext,
        "knockout": ours,
        "shared mask": lambda: shared_mask(flux, batch),
        "mask per block": lambda: mask_per_block(flux, batch),
        "patching": lambda: edit(flux, patches),
    }
    pictures = {}
    for name, context in ways.items():
        with context():
            pictures[name] = flux.sample(batch)
    assert torch.equal(pictures["knockout"], pictures["shared mask"])
    assert torch.equal(pictures["knockout"], pictures["mask per block"])
    assert torch.equal(pictures["patching"], plain)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS[n_tokens]):
        for name, context in ways.items():
            seconds[name].append(timed(lambda: flux.sample(batch), context))
    assert set(built) == {1}
    pairs = {
        "knockout_over_shared_mask": ("knockout", "shared mask"),
        "mask_per_block_over_shared_mask": ("mask per block", "shared mask"),
        "patching_over_bare": ("patching", "bare"), "shared_mask_over_bare": ("shared mask", "bare"),
    }  # fmt: skip
    ratios = {
        key: statistics.median(a / b for a, b in zip(seconds[one], seconds[two], strict=True))
        for key, (one, two) in pairs.items()
    }
    return {
        "tokens": n_tokens, "steps": STEPS, "blocks": flux.shape.n_layers, "masks_built": built[-1],
        "mask_mib": n_tokens**2 * 4 / 2**20, "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **{f"{name.replace(' ', '_')}_s": statistics.median(each) for name, each in seconds.items()}, **ratios,
    }  # fmt: skip


def main() -> None:
    """Print every case and add it to the results."""
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("w", encoding="utf-8") as file:
        for n_tokens in SIZES:
            row = case(n_tokens)
            print(json.dumps(row, indent=1))
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
