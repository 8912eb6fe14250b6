"""How far an edited model's next-token distribution moves: KL divergence, and selectivity built on it.

    selectivity(lm, ["The river froze in January.", ...], [zero("head_z.23.3", "all")])    # nats per token, one value per text

Low is selective: the edit leaves unrelated text alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mediant.interventions.edits import Edit
from mediant.interventions.replay import Recording, record, replay
from mediant.subject import Subject


def kl(reference: Float[Tensor, "*n vocab"], edited: Float[Tensor, "*n vocab"]) -> Float[Tensor, "*n"]:
    """KL(reference || edited) in nats, from logits."""
    p, q = reference.float().log_softmax(-1), edited.float().log_softmax(-1)
    return F.kl_div(q, p, log_target=True, reduction="none").sum(-1).clamp(min=0)


def record_texts(subject: Subject, texts: Sequence[str]) -> Recording:
    """The untouched model on some texts, with logits at every token."""
    batch = subject.encode(list(texts))
    return record(subject, batch, keep=batch.n_cols)


def disturbance(untouched: Recording, edits: Sequence[Edit]) -> Float[Tensor, " text"]:
    """Mean KL over each text's tokens between the untouched and the edited model (nats per token)."""
    batch = untouched.batch
    after = replay(untouched, edits, keep=batch.n_cols).logits
    moved = kl(untouched.logits, after) * batch.mask
    return moved.sum(-1) / batch.mask.sum(-1)


def selectivity(subject: Subject, texts: Sequence[str], edits: Sequence[Edit]) -> Float[Tensor, " text"]:
    """How much an edit disturbs unrelated texts (nats per token); for several edits, record the texts once."""
    with torch.no_grad():
        return disturbance(record_texts(subject, texts), edits)
