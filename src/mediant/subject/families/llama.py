"""Llama, SmolLM and Mistral: rotary positions, grouped-query attention, gated MLP, RMS norms."""

from mediant.subject.families.family import Family

LLAMA = Family(
    name="llama",
    model_types=("llama", "mistral", "smollm3"),
    base="model",
    layers="layers",
    embed="embed_tokens",
    final_norm="norm",
    unembed="lm_head",
    attn_norm="input_layernorm",
    attn="self_attn",
    qkv=("q_proj", "k_proj", "v_proj"),
    out_proj="o_proj",
    mlp="mlp",
    mlp_down="down_proj",
    mlp_norm="post_attention_layernorm",
)
