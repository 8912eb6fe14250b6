"""How far an edited model's next-token distribution moves: KL divergence, and selectivity built on it.

    selectivity(lm, ["The river froze in January.", ...], [zero("head_z.23.3", "all")])    # nats per token, one value per text

Low is selective: the edit leaves unrelated text alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Untouched:
    """The untouched model on some texts: its recording and its log-probabilities at every token."""

    recording: Recording
    logp: Float[Tensor, "text pos vocab"]


def record_texts(subject: Subject, texts: Sequence[str]) -> Untouched:
    """Run the untouched model on some texts once, for as many edits as follow."""
    batch = subject.encode(list(texts))
    recording = record(subject, batch, keep=batch.n_cols)
    return Untouched(recording, recording.logits.float().log_softmax(-1))


def disturbance(untouched: Untouched, edits: Sequence[Edit]) -> Float[Tensor, " text"]:
    """Mean KL over each text's tokens between the untouched and the edited model (nats per token)."""
    batch = untouched.recording.batch
    after = replay(untouched.recording, edits, keep=batch.n_cols).logits.float().log_softmax(-1)
    moved = F.kl_div(after, untouched.logp, log_target=True, reduction="none").sum(-1).clamp(min=0) * batch.mask
    return moved.sum(-1) / batch.mask.sum(-1)


def selectivity(subject: Subject, texts: Sequence[str], edits: Sequence[Edit]) -> Float[Tensor, " text"]:
    """How much an edit disturbs unrelated texts (nats per token); for several edits, record the texts once."""
    with torch.no_grad():
        return disturbance(record_texts(subject, texts), edits)
