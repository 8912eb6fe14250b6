"""Planted toy transformers with hand-set weights (`mediant.tasks.toys`): no norms, no biases."""

from mediant.subject.families.family import Family

TOY = Family(
    name="toy",
    model_types=("toy",),
    base="model",
    layers="layers",
    embed="embed",
    final_norm="norm",
    unembed="unembed",
    attn_norm="norm",
    attn="attn",
    qkv=("q", "k", "v"),
    out_proj="o",
    mlp="mlp",
    mlp_down="down",
)
