"""Edges kept by optimisation: learn which gates may close without the model's answer changing.

    scores = optimise_edges(lm, pairs, sparsity=1.0)
    circuit = strongest(scores).circuit(200)

Every edge has a gate that is drawn open or closed, or in between, from a hard-concrete distribution (Louizos et al. 2018) whose
parameter is learned: the divergence from the model's own answer at the last position is weighed against the expected share
of open gates (Cao et al. 2021; Bhaskar et al. 2024). One circuit that suffices is found, not all parts that could do the work.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import OutOfRange, TaskError
from mediant.core.pair import Pair
from mediant.interventions.execute import run
from mediant.interventions.gates import Gates, run_gated
from mediant.interventions.nodes import Nodes, TokenOrder, observe
from mediant.interventions.ports import graph_of
from mediant.subject import Subject
from mediant.tasks.encode import PairBatch, encode

# Louizos et al. 2018: the concrete distribution is stretched beyond 0 and 1 and cut there, so gates close for good.
STRETCH, TEMPERATURE = (-0.1, 1.1), 2 / 3
START = 2.2


def optimise_edges(
    subject: Subject,
    pairs: Sequence[Pair],
    *,
    sparsity: float = 1.0,
    steps: int = 200,
    lr: float = 0.1,
    batch_size: int = 8,
    seed: int = 0,
) -> EdgeScores:
    """Learn gates for all edges, at all positions alike.

    Args:
        sparsity: nats of divergence that closing every edge is worth.
        steps: updates, each on one batch in turn.

    Returns:
        Minus the chance that a gate is open: as everywhere, edges that help are negative.

    Raises:
        TaskError: no pairs, or pairs that cannot be aligned.
        OutOfRange: a step count or sparsity that makes no sense.
    """
    if not pairs:
        raise TaskError("no pairs were given, so there is nothing to learn gates from")
    if steps < 1 or sparsity < 0:
        raise OutOfRange(f"steps must be at least 1 and sparsity at least 0, got {steps} and {sparsity}")
    graph, random = graph_of(subject), torch.Generator().manual_seed(seed)
    exists = torch.from_numpy(graph.exists)
    wanted = torch.full(exists.shape, START, requires_grad=True)
    optimiser = torch.optim.Adam([wanted], lr=lr)
    batches = [_Prepared(subject, pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size)]
    for step in range(steps):
        gates = _drawn(wanted, random) * exists
        loss = batches[step % len(batches)].divergence(gates) + sparsity * _open(wanted)[exists].mean()
        # By the gates alone: a plain backward would leave gradients in the model.
        (wanted.grad,) = torch.autograd.grad(loss, wanted)
        optimiser.step()
    kept = (_open(wanted.detach()) * exists).double().numpy()
    return EdgeScores(graph, ("all",), -np.asarray(kept)[None], None, len(pairs), [], f"gates learned in {steps} steps", "kl")


class _Prepared:
    """A batch with its ablated run and the model's own answer."""

    def __init__(self, subject: Subject, pairs: Sequence[Pair]) -> None:
        self.subject, self.pairs = subject, encode(subject, pairs)
        self.tokens = TokenOrder.of(self.pairs.base).after(self.pairs.first_difference)
        self.ablated: Nodes = observe(subject, self.pairs.source, self.tokens, keep=self.pairs.keep)
        with torch.no_grad():
            self.answer = self._log_probs(run(subject, self.pairs.base, keep=self.pairs.keep).logits, self.pairs)

    def divergence(self, gates: Tensor) -> Tensor:
        """KL (nats) from the model's answer to the circuit's, mean over pairs."""
        with torch.enable_grad():
            logits = run_gated(self.subject, self.pairs.base, self.tokens, Gates(gates[None]), self.ablated, keep=self.pairs.keep)
            return F.kl_div(self._log_probs(logits, self.pairs), self.answer, log_target=True, reduction="batchmean")

    @staticmethod
    def _log_probs(logits: Tensor, pairs: PairBatch) -> Tensor:
        return pairs.prompt_logits(logits).float().log_softmax(-1)


def _drawn(wanted: Tensor, random: torch.Generator) -> Tensor:
    """Gates between 0 and 1, many exactly at the ends."""
    u = torch.rand(wanted.shape, generator=random).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((torch.log(u) - torch.log1p(-u) + wanted) / TEMPERATURE)
    return (soft * (STRETCH[1] - STRETCH[0]) + STRETCH[0]).clamp(0, 1)


def _open(wanted: Tensor) -> Tensor:
    """Chance that a gate is not closed."""
    return torch.sigmoid(wanted - TEMPERATURE * float(np.log(-STRETCH[0] / STRETCH[1])))
