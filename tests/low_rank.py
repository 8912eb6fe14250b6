"""Adapters with planted weights, and what a model says under them."""

import torch
from torch import Tensor

from mediant.interventions import run
from mediant.interventions.lora import Adapter, applied
from mediant.subject import Subject

TEXTS = ["When Mary and John went to the store , John gave a drink to", "the ball near the park is"]
TARGETS = {
    "llama": ("q_proj", "v_proj", "down_proj"),
    "mistral": ("o_proj", "gate_proj"),
    "qwen2": ("q_proj", "k_proj"),
    "qwen3": ("v_proj", "lm_head"),
    "gpt2": ("c_attn", "c_proj"),
}


def hooks(subject: Subject) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in subject.model.modules())


def logits(subject: Subject) -> Tensor:
    with torch.no_grad():
        batch = subject.encode(TEXTS)
        return run(subject, batch, keep=batch.n_cols).logits[batch.mask]


def logits_with(subject: Subject, *adapters: tuple[Adapter, float]) -> Tensor:
    with applied(subject, adapters):
        return logits(subject)


def taught(
    subject: Subject, name: str = "adapter", *, targets: tuple[str, ...] | None = None, seed: int = 1, **options
) -> Adapter:
    """An adapter with a B that is not zero."""
    adapter = Adapter.create(subject, targets or TARGETS[subject.name.removeprefix("tiny-")], seed=seed, name=name, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in adapter.matrices.values():
            m.b.copy_(0.2 * torch.randn(m.b.shape, generator=generator))
    return adapter
