"""Tiny random FLUX.2 pipelines, built in code: Klein with padding on the right, dev with padding on the left."""

import functools
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mediant.subject.generator import ImageGenerator, Sampling
from mediant.subject.pipelines import wrap_pipeline

SLOTS, LAYERS = 56, (1, 2, 3)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def tokenizer(side: str = "right") -> PreTrainedTokenizerFast:
    """One token per byte."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, padding_side=side)
    made.add_special_tokens({"pad_token": "<pad>", "eos_token": "</s>", "additional_special_tokens": ["<s>"]})
    made.chat_template = TEMPLATE
    return made


@functools.lru_cache(maxsize=1)
def klein_parts() -> dict[str, Any]:
    torch.manual_seed(0)
    words = tokenizer()
    text = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, initializer_range=0.3, tie_word_embeddings=True,
        )
    )  # fmt: skip
    return {"text_encoder": text.eval(), "tokenizer": words, "vae": autoencoder(), "transformer": transformer()}


def autoencoder() -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 4, 4), layers_per_block=1, latent_channels=1, mid_block_add_attention=False,
        norm_num_groups=1, use_quant_conv=False, use_post_quant_conv=False, sample_size=32,
    )  # fmt: skip
    return vae.eval()


def transformer(joint: int = 48, *, guidance: bool = False) -> Flux2Transformer2DModel:
    """Two double and three single blocks of four heads; weights large enough for every edge to matter."""
    made = Flux2Transformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=joint, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
    return made.eval()


@functools.lru_cache(maxsize=2)
def klein(*, distilled: bool = True) -> ImageGenerator:
    """A Klein of 5 blocks; undistilled, a guided step takes two passes."""
    parts = klein_parts()
    pipeline = Flux2KleinPipeline(scheduler=FlowMatchEulerDiscreteScheduler(), is_distilled=distilled, **parts)
    sampling = Sampling(steps=2, slots=SLOTS, layers=LAYERS, guidance=1.0 if distilled else 3.0)
    return wrap_pipeline(pipeline, sampling=sampling)


def picture(seed: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Noise as an image."""
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


DEV_TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'][0]['text'] }}</s>\n{% endfor %}"


@functools.lru_cache(maxsize=1)
def dev() -> ImageGenerator:
    """A FLUX.2 [dev]: Mistral, guidance as an input, and padding on the left."""
    torch.manual_seed(1)
    words = tokenizer("left")
    words.chat_template = DEV_TEMPLATE
    config = Mistral3Config(
        text_config=MistralConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
            num_key_value_heads=2, head_dim=8, initializer_range=0.3,
        ),
        vision_config=PixtralVisionConfig(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, head_dim=8
        ),
    )  # fmt: skip
    parts = {"text_encoder": Mistral3ForConditionalGeneration(config).eval(), "tokenizer": words, "vae": autoencoder()}
    pipeline = Flux2Pipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer(guidance=True), **parts)
    pipeline.system_message = "You draw."
    return wrap_pipeline(pipeline, sampling=Sampling(steps=2, slots=SLOTS, layers=LAYERS, guidance=2.5))
