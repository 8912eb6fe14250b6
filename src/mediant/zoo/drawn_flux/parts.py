"""The parts of drawn-flux, untrained: the library's own classes in the geometry of the large one.

A latent token stands for 16 x 16 pixels and has 128 channels, as in FLUX.2; a picture of 64 x 64 pixels is 16 of them. All
instruction slots take part in attention, padding included, as in FLUX.2.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mediant.tasks.pictures import requests
from mediant.tasks.pictures.painter import Pixels

if TYPE_CHECKING:
    from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
    from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# The turns of the pipeline's own template, without its empty thoughts.
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LATENT_CHANNELS = 32
# Hidden neurons per channel; as many as leave the whole subject under 16 MiB.
MLP_RATIO = 2.875
ENCODER_LAYERS, ENCODER_WIDTH = 3, 64


@dataclass(frozen=True)
class Geometry:
    """Sizes that may differ between subjects.

    Attributes:
        double, single: blocks in which text and image have weights of their own, and in which they share them.
        slots: instruction slots.
    """

    double: int = 2
    single: int = 6
    heads: int = 6
    slots: int = 32


def tokenizer() -> "PreTrainedTokenizerFast":
    """Byte-level BPE in which every word of the requests is one token; it pads on the right."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=list(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator([f"user\n{text}\nassistant\n" for text in requests.vocabulary() for _ in range(3)], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=made, padding_side="right")
    wrapped.add_special_tokens({"eos_token": SPECIAL[2], "pad_token": SPECIAL[0], "additional_special_tokens": [SPECIAL[1]]})
    wrapped.chat_template = TEMPLATE
    return wrapped


def autoencoder() -> "AutoencoderKLFlux2":
    """Pictures to latents an eighth of their side, and back."""
    from diffusers import AutoencoderKLFlux2

    made = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128), layers_per_block=1, latent_channels=LATENT_CHANNELS, norm_num_groups=4,
        sample_size=requests.SIZE, mid_block_add_attention=False,
    )  # fmt: skip
    _open_paths(made)
    return made


def _open_paths(vae: Any) -> None:
    """Begin with colours passing straight through: without that, hues of small things take ten times as long to appear.

    Convolutions outside residual branches begin near the identity, branches begin closed, and latents begin with little noise.
    """
    with torch.no_grad():
        for name, module in vae.named_modules():
            if not isinstance(module, nn.Conv2d):
                continue
            if name.endswith("conv2"):
                module.weight.zero_()
            elif not name.endswith("conv1"):
                straight = torch.zeros_like(module.weight)
                middle = module.kernel_size[0] // 2
                for i in range(min(module.in_channels, module.out_channels)):
                    if module.stride[0] == 2:
                        straight[i, i, :2, :2] = 0.25
                    else:
                        straight[i, i, middle, middle] = 1.0
                module.weight.mul_(0.3).add_(straight)
        spread = vae.quant_conv
        spread.weight[LATENT_CHANNELS:].zero_()
        spread.bias[LATENT_CHANNELS:].fill_(-5.0)


def text_encoder(vocabulary: "PreTrainedTokenizerFast", slots: int) -> "Qwen3ForCausalLM":
    """Three layers, whose outputs are put side by side."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=len(vocabulary), hidden_size=ENCODER_WIDTH, intermediate_size=3 * ENCODER_WIDTH,
        num_hidden_layers=ENCODER_LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        max_position_embeddings=max(512, slots), tie_word_embeddings=True, pad_token_id=vocabulary.pad_token_id,
        eos_token_id=vocabulary.eos_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def transformer(geometry: Geometry) -> "Flux2Transformer2DModel":
    """Eight blocks of six heads."""
    from diffusers import Flux2Transformer2DModel

    return Flux2Transformer2DModel(
        patch_size=1, in_channels=4 * LATENT_CHANNELS, num_layers=geometry.double, num_single_layers=geometry.single,
        attention_head_dim=32, num_attention_heads=geometry.heads, mlp_ratio=MLP_RATIO,
        joint_attention_dim=ENCODER_LAYERS * ENCODER_WIDTH, timestep_guidance_channels=64, axes_dims_rope=(8, 8, 8, 8),
        rope_theta=100, guidance_embeds=False,
    )  # fmt: skip


def pipeline(
    vae: "AutoencoderKLFlux2", encoder: "Qwen3ForCausalLM", words: "PreTrainedTokenizerFast", dit: "Flux2Transformer2DModel"
) -> "Flux2KleinPipeline":
    """The library's pipeline around trained parts; one transformer call per step."""
    from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline

    made: Any = Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(), vae, encoder, words, dit, is_distilled=True)
    made.set_progress_bar_config(disable=True)
    return made


def as_input(pixels: Pixels | Tensor) -> Tensor:
    """Pictures (n, height, width, 3) as the autoencoder takes them: (n, 3, height, width) from -1 to 1."""
    return torch.as_tensor(pixels).permute(0, 3, 1, 2).float().div(127.5).sub(1)
