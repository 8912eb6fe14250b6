"""Qwen 2, 2.5 and 3: laid out as Llama. Qwen 2 adds biases to q, k, v; Qwen 3 norms q and k per head.

Sites `q` and `k` are the projections' outputs, before those per-head norms and before rotation.
"""

from dataclasses import replace

from mediant.subject.families.llama import LLAMA

QWEN = replace(LLAMA, name="qwen", model_types=("qwen2", "qwen3"))
