"""GPT-NeoX and Pythia: attention and MLP of a block read the same stream; q, k and v come fused head by head."""

from mediant.subject.families.family import Family

NEOX = Family(
    name="neox",
    model_types=("gpt_neox",),
    base="gpt_neox",
    layers="layers",
    embed="emb_dropout",
    final_norm="final_layer_norm",
    unembed="lm_head",
    attn_norm="input_layernorm",
    attn="attention",
    qkv=("query_key_value",),
    out_proj="dense",
    mlp="mlp",
    mlp_down="dense_4h_to_h",
    mlp_norm="post_attention_layernorm",
    fused="by head",
    parallel="use_parallel_residual",
)
