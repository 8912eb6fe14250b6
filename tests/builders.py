"""Tiny random models of every supported family, built in code, with a word-level tokenizer."""

import functools

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mediant.core import Pair, Prompt
from mediant.interventions import Rotation
from mediant.subject import Subject, wrap

TEXT = (
    "</s> <pad> the a When Mary John Tom Anna and went to store park , gave drink ball . said is are key keys near one two three"
)
WORDS = TEXT.split()
SIZES = {
    "vocab_size": len(WORDS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3, "bos_token_id": 0, "eos_token_id": 0,
    "pad_token_id": 1,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word; no token is added."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", unk_token="</s>", pad_token="<pad>")


def _llama():
    return LlamaForCausalLM(LlamaConfig(**SIZES))


def _mistral():
    return MistralForCausalLM(MistralConfig(**SIZES, head_dim=8))


def _qwen2():
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def _qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))


def _gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(WORDS), n_embd=32, n_layer=3, n_head=4, n_positions=64, initializer_range=0.3,
                   bos_token_id=0, eos_token_id=0, pad_token_id=1)
    )  # fmt: skip


def _gemma2():
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=32))


def _gemma3():
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=8, query_pre_attn_scalar=8, sliding_window=32))


def _olmo2():
    return Olmo2ForCausalLM(Olmo2Config(**{**SIZES, "num_key_value_heads": 4}))


def _neox():
    sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, use_parallel_residual=True))


BUILDERS = {
    "llama": _llama, "mistral": _mistral, "qwen2": _qwen2, "qwen3": _qwen3, "gpt2": _gpt2, "gemma2": _gemma2,
    "gemma3": _gemma3, "olmo2": _olmo2, "neox": _neox,
}  # fmt: skip


def implementation(name: str, attention: str) -> str:
    """Fused attention cannot cap its logits, so the library offers Gemma 2 only the plain one."""
    return "eager" if name == "gemma2" else attention


@functools.cache
def subject(name: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Subject:
    """A tiny random subject; cached, because no test may change a model."""
    torch.manual_seed(seed)
    model = BUILDERS[name]().to(dtype)
    model.set_attn_implementation(implementation(name, attention))
    return wrap(model, tokenizer(), name=f"tiny-{name}")


def prompt(text: str, **spans: str) -> Prompt:
    """A prompt with spans located by text that occurs once."""
    return Prompt(text).locate(**spans)


def ioi_pair(a: str = "Mary", b: str = "John", i: int = 0) -> Pair:
    """A clean/counterfactual pair that differs in the second subject."""
    clean, other = (f"When {a} and {b} went to the store , {s} gave a drink to" for s in (b, a))
    at = clean.rindex(b, clean.index(","))
    end = (len(clean) - 2, len(clean))
    io = (5, 5 + len(a))
    return Pair(
        f"pair-{i}",
        Prompt(clean, {"IO": io, "S2": (at, at + len(b)), "end": end}),
        Prompt(other, {"IO": io, "S2": (at, at + len(a)), "end": (len(other) - 2, len(other))}),
        f" {a}", f" {b}", "store", {"IO": a, "S": b},
    )  # fmt: skip


def pairs() -> list[Pair]:
    """Four pairs of equal length."""
    names = ["Mary", "John", "Tom", "Anna"]
    return [ioi_pair(a, b, i) for i, (a, b) in enumerate(zip(names, names[1:] + names[:1], strict=True))]


def prompts(io: str = "ball") -> list[Prompt]:
    """Three prompts of unequal length that name the spans IO and S2, the shortest one's IO as given."""
    return [
        ioi_pair().clean,
        prompt("Tom went to the store and gave Mary", S2="and", IO="store"),
        prompt("Anna said ball drink", S2="said", IO=io),
    ]


def vector(width: int, seed: int = 0) -> torch.Tensor:
    """Random normal numbers."""
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


def rotation(width: int, k: int) -> Rotation:
    """`k` random orthonormal directions."""
    made = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(width)))
    return Rotation(made.Q[:, :k].contiguous())
