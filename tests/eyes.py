"""Tiny random models with eyes, one of every family and layout, with tokenizers and the library's image processors."""

import functools

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.ovis2.image_processing_pil_ovis2 import Ovis2ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from mediant.subject import wrap
from mediant.subject.vision import VisionSubject

_SPECIAL = """
<pad> <eos> <image> <|image_pad|> <|video_pad|> <|vision_start|> <|vision_end|> <IMG_CONTEXT> <img> </img> <video>
<start_of_image> <end_of_image> <image_soft_token> <fake_token_around_image> <global-img>
<IMG_ATOM> <IMG_START> <IMG_GRID> <IMG_COL> <IMG_ROW> <IMG_END> user assistant
"""
_TEXT = "what is happens in the first second third panel here ? . fox jumps frog runs red ball"
SPECIAL = _SPECIAL.split() + [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)]
WORDS = [*SPECIAL, *_TEXT.split()]
LM = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 2048, "initializer_range": 0.3, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": 1,
}  # fmt: skip
PLAIN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}PLACE {% else %}"
    "{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant {% endif %}"
)


def at(word: str) -> int:
    return WORDS.index(word)


def _mrope() -> dict:
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}


def _qwen_ids() -> dict:
    return {
        "image_token_id": at("<|image_pad|>"), "video_token_id": at("<|video_pad|>"),
        "vision_start_token_id": at("<|vision_start|>"), "vision_end_token_id": at("<|vision_end|>"),
    }  # fmt: skip


def _qwen2_vl(**_):
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4}
    config = Qwen2VLConfig(text_config={**LM, "rope_parameters": _mrope()}, vision_config=vision, **_qwen_ids())
    return Qwen2VLForConditionalGeneration(config), _qwen_pixels()


def _qwen25_vl(**_):
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 32, "out_hidden_size": 32, "patch_size": 4,
        "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config={**LM, "rope_parameters": _mrope()}, vision_config=vision, **_qwen_ids())
    return Qwen2_5_VLForConditionalGeneration(config), _qwen_pixels()


def _qwen3_vl(deep: tuple[int, ...] = (0, 1), **_):
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 4, "intermediate_size": 32, "out_hidden_size": 32, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 64, "deepstack_visual_indexes": list(deep),
    }  # fmt: skip
    text = {**LM, "head_dim": 8, "rope_parameters": _mrope() | {"mrope_interleaved": True}}
    return Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **_qwen_ids())), _qwen_pixels()


def _qwen_pixels():
    return Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 8 * 8 * 400}, **PLAIN
    )


def _clip(size: int = 16, patch: int = 4) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=size, patch_size=patch,
        projection_dim=32,
    )  # fmt: skip


def _llama() -> dict:
    return {"model_type": "llama", **LM}


def _llava(**changed):
    config = LlavaConfig(
        vision_config=_clip(), text_config=_llama(), image_token_id=at("<image>"), image_seq_length=16, vision_feature_layer=-1,
        vision_feature_select_strategy=changed.pop("strategy", "default"),
    )  # fmt: skip
    made = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "do_pad": False, **PLAIN, **changed}
    return LlavaForConditionalGeneration(config), LlavaImageProcessorPil(**made)


def _llava_next(**_):
    pinpoints = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
    config = LlavaNextConfig(
        vision_config=_clip(), text_config=_llama(), image_token_id=at("<image>"), image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    made = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}, "image_grid_pinpoints": pinpoints, **PLAIN}
    return LlavaNextForConditionalGeneration(config), LlavaNextImageProcessorPil(**made)


def _internvl(**_):
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "image_size": [16, 16],
        "patch_size": [4, 4],
    }  # fmt: skip
    config = InternVLConfig(
        vision_config=vision, text_config={"model_type": "qwen2", **LM}, image_token_id=at("<IMG_CONTEXT>"), image_seq_length=4,
        downsample_ratio=0.5,
    )  # fmt: skip
    made = {"size": {"height": 16, "width": 16}, "crop_to_patches": True, "min_patches": 1, "max_patches": 6, **PLAIN}
    return InternVLForConditionalGeneration(config), GotOcr2ImageProcessorPil(**made)


def _gemma3(**_):
    text = {
        **LM, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "image_size": 16,
        "patch_size": 2,
    }  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=16, image_token_index=at("<image_soft_token>"),
        boi_token_index=at("<start_of_image>"), eoi_token_index=at("<end_of_image>"),
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    # The library starts this matrix at zero, and such a model would be blind.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    return model, Gemma3ImageProcessorPil(size={"height": 16, "width": 16}, **PLAIN)


def _smolvlm(**_):
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "image_size": 16,
        "patch_size": 4,
    }  # fmt: skip
    config = SmolVLMConfig(text_config=_llama(), vision_config=vision, image_token_id=at("<image>"), scale_factor=2)
    made = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}, "do_image_splitting": True, **PLAIN}
    return SmolVLMForConditionalGeneration(config), SmolVLMImageProcessorPil(**made)


def _ovis2(**_):
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 37, "image_size": 16,
        "patch_size": 4, "vocab_size": 40, "hidden_stride": 2, "num_visual_indicator_tokens": 5,
    }  # fmt: skip
    ids = [at(f"<IMG_{name}>") for name in ("START", "GRID", "COL", "ROW", "END")]
    config = Ovis2Config(
        vision_config=vision, text_config={"model_type": "qwen2", **LM}, image_token_id=at("<IMG_ATOM>"), hidden_size=32,
        visual_indicator_token_ids=ids, vocab_size=len(WORDS),
    )  # fmt: skip
    made = {"size": {"height": 16, "width": 16}, "crop_to_patches": True, "max_patches": 6, **PLAIN}
    return Ovis2ForConditionalGeneration(config), Ovis2ImageProcessorPil(**made)


BUILDERS = {
    "qwen2-vl": _qwen2_vl, "qwen2.5-vl": _qwen25_vl, "qwen3-vl": _qwen3_vl, "llava": _llava,
    "llava-padded": functools.partial(_llava, do_pad=True),
    "llava-full": functools.partial(_llava, strategy="full"),
    "llava-next": _llava_next, "internvl": _internvl, "ovis2": _ovis2, "gemma3": _gemma3, "smolvlm": _smolvlm,
}  # fmt: skip


def tokenizer(placeholder: str) -> PreTrainedTokenizerFast:
    """One token per word, image tokens and markers kept whole, and a chat template that leaves `placeholder`."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<eos>", pad_token="<pad>")
    made.add_special_tokens({"additional_special_tokens": SPECIAL[2:]})
    made.chat_template = TEMPLATE.replace("PLACE", placeholder)
    return made


@functools.cache
def vision_subject(name: str = "qwen3-vl", *, seed: int = 0, attention: str = "sdpa", local: bool = False) -> VisionSubject:
    """A tiny random subject with eyes; cached, because no test may change a model.

    Args:
        local: a vision tower whose tokens see their own patches alone.
    """
    torch.manual_seed(seed)
    model, pixels = BUILDERS[name]()
    # Random models must not say image tokens, which would stand for pictures that are not there.
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    with torch.no_grad():
        model.lm_head.weight[: len(SPECIAL)] = 0
    if local:
        _blinker(model)
    model.set_attn_implementation({"text_config": attention})
    from mediant.subject.families import family_of

    sight = family_of(model.config.model_type).sight
    placeholder = sight.film.placeholder if sight.film else sight.placeholders[0]
    found = wrap(model, tokenizer(placeholder), pixels, name=f"tiny-{name}")
    assert isinstance(found, VisionSubject)
    return found


def _blinker(model) -> None:
    """Silence attention in the vision tower, so that no patch hears of another."""
    for name, parameter in model.named_parameters():
        vision = "vision" in name or "visual" in name
        if vision and ("out_proj" in name or "o_proj" in name or "attn.proj" in name or "projection_layer" in name):
            torch.nn.init.zeros_(parameter)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A random picture."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
