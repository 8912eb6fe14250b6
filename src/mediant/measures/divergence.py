"""How far an edited model's next-token distribution moves: KL divergence, and selectivity built on it."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.interventions.edits import Edit
from mediant.interventions.execute import run
from mediant.subject import Subject


def kl(reference: Float[Tensor, "*n vocab"], edited: Float[Tensor, "*n vocab"]) -> Float[Tensor, "*n"]:
    """KL(reference || edited) in nats, from logits."""
    p, q = reference.float().log_softmax(-1), edited.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)


def selectivity(subject: Subject, texts: Sequence[str], edits: Sequence[Edit]) -> Float[Tensor, " text"]:
    """Mean KL over each text's tokens between the untouched and the edited model (nats per token).

    Low is selective: the edit leaves unrelated text alone.
    """
    batch = subject.encode(list(texts))
    with torch.no_grad():
        before = run(subject, batch, keep=batch.n_cols).logits
        after = run(subject, batch, edits, keep=batch.n_cols).logits
    moved = kl(before, after) * batch.mask
    return moved.sum(-1) / batch.mask.sum(-1)
