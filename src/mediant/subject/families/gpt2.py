"""GPT-2: learned absolute positions, fused q/k/v projection, layer norms.

`embed` is the sum of token and position embeddings (after the embedding dropout module).
"""

from mediant.subject.families.family import Family

GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    base="transformer",
    layers="h",
    embed="drop",
    final_norm="ln_f",
    unembed="lm_head",
    attn_norm="ln_1",
    attn="attn",
    qkv=("c_attn",),
    out_proj="c_proj",
    mlp="mlp",
    mlp_down="c_proj",
    mlp_norm="ln_2",
)
