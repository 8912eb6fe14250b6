"""OLMo 2: sublayers read the bare stream, norms stand after them, and queries and keys are normed over all heads.

Heads are coupled twice: by the norm of queries and keys, which a circuit's mixed heads pass together, and by the norm
after attention (see `gemma`).
"""

from dataclasses import replace

from mediant.subject.families.llama import LLAMA

OLMO2 = replace(
    LLAMA,
    name="olmo2",
    model_types=("olmo2",),
    attn_norm="",
    mlp_norm="",
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    joint_key_norm=True,
    cannot={"head_result": "a norm over all heads together stands between them and the residual stream; use head_z"},
    coupled="Queries and keys of all heads are normed together, and so is the attention output: heads depend on one another "
    "through these norms' scales, which are those of the run at hand.",
)
