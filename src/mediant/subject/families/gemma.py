"""Gemma 2 and 3 (text): norms before and after each sublayer, capped logits, alternating sliding windows.

A head's share of the attention output passes a norm over all heads together, so it has no value of its own in the
residual stream: `head_result` is refused, and circuits take each head's share at the norm's scale in the run at hand.
"""

from dataclasses import replace

from mediant.subject.families.llama import LLAMA

GEMMA = replace(
    LLAMA,
    name="gemma",
    model_types=("gemma2", "gemma3_text"),
    mlp_norm="pre_feedforward_layernorm",
    attn_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    cannot={"head_result": "a norm over all heads together stands between them and the residual stream; use head_z"},
    coupled="Heads of a layer share the norm after attention: a head's share of its output is taken at that norm's scale in the "
    "run at hand, so shares add up but depend on one another.",
)
