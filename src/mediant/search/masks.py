"""Edges kept by optimisation: learn which gates may close without the model's answer changing.

    scores = optimise_edges(lm, pairs, sparsity=1.0)
    circuit = strongest(scores).circuit(200)

Every edge has a gate that is drawn open or closed, or in between, from a hard-concrete distribution (Louizos et al. 2018) whose
parameter is learned: the divergence from the model's own answer at the last position is weighed against the expected share
of open gates (Cao et al. 2021; Bhaskar et al. 2024). One circuit that suffices is found, not all parts that could do the work.
With `sampling="uniform"` gates are open or closed but for a few (uniform gradient sampling, Li & Janson 2024, arXiv 2409.09951).
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import OutOfRange, TaskError, unknown
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
    sampling: str = "hard_concrete",
    draws: int = 1,
) -> EdgeScores:
    """Learn gates for all edges, at all positions alike.

    Args:
        sparsity: nats of divergence that closing every edge is worth.
        steps: updates, each on one batch in turn.
        sampling: `hard_concrete`, or `uniform` (uniform gradient sampling, which wants many draws: few gates have a gradient).
        draws: of gates per update, folded into one forward.

    Returns:
        Minus the chance that a gate is open: as everywhere, edges that help are negative.

    Raises:
        TaskError: no pairs, or pairs that cannot be aligned.
        OutOfRange: a step count or sparsity that makes no sense.
        UnknownName: another way of sampling.
    """
    if sampling not in SAMPLINGS:
        raise unknown("sampling", sampling, SAMPLINGS)
    drawn, chance_open = SAMPLINGS[sampling]
    if not pairs:
        raise TaskError("no pairs were given, so there is nothing to learn gates from")
    if steps < 1 or sparsity < 0 or draws < 1:
        raise OutOfRange(f"steps and draws are at least 1 and sparsity at least 0, got {steps}, {draws} and {sparsity}")
    graph, random = graph_of(subject), torch.Generator().manual_seed(seed)
    exists = torch.from_numpy(graph.exists)
    wanted = torch.full(exists.shape, START, requires_grad=True)
    optimiser = torch.optim.Adam([wanted], lr=lr)
    batches = [Prepared(subject, pairs[i : i + batch_size], draws) for i in range(0, len(pairs), batch_size)]
    for step in range(steps):
        gates = drawn(wanted.expand(draws, -1, -1), random) * exists
        loss = batches[step % len(batches)].divergence(gates) + sparsity * chance_open(wanted)[exists].mean()
        # By the gates alone: a plain backward would leave gradients in the model.
        (wanted.grad,) = torch.autograd.grad(loss, wanted)
        optimiser.step()
    kept = (chance_open(wanted.detach()) * exists).double().numpy()
    return EdgeScores(
        graph, ("all",), -np.asarray(kept)[None], None, len(pairs), [], f"gates learned in {steps} steps, {sampling}", "kl"
    )


class Prepared:
    """A batch with its ablated run and the model's own answer, for gates that are tried on it again and again.

    Args:
        copies: of the batch in one forward, each under gates of its own.
    """

    def __init__(self, subject: Subject, pairs: Sequence[Pair], copies: int = 1) -> None:
        self.subject, self.pairs = subject, encode(subject, pairs)
        self.base, source = self.pairs.base.repeat(copies), self.pairs.source.repeat(copies)
        copy = torch.arange(copies, device=source.ids.device).repeat_interleave(self.pairs.base.n_rows)[:, None]
        order = TokenOrder.from_spans(torch.where(self.base.mask, copy, -1), copies)
        self.tokens = order.after(self.pairs.first_difference.repeat(copies))
        self.ablated: Nodes = observe(subject, source, self.tokens, keep=self.pairs.keep)
        with torch.no_grad():
            self.answer = self._log_probs(run(subject, self.pairs.base, keep=self.pairs.keep).logits, self.pairs)

    def divergence(self, gates: Float[Tensor, "copy target source"]) -> Float[Tensor, ""]:
        """KL (nats) from the model's answer to the circuits', mean over pairs and copies."""
        with torch.set_grad_enabled(gates.requires_grad):
            logits = run_gated(self.subject, self.base, self.tokens, Gates(gates), self.ablated, keep=self.pairs.keep)
            each = [self._log_probs(part, self.pairs) for part in logits.split(self.pairs.base.n_rows)]
            found = [F.kl_div(part, self.answer, log_target=True, reduction="batchmean") for part in each]
            return torch.stack(found).mean()

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


def _drawn_uniformly(wanted: Tensor, random: torch.Generator) -> Tensor:
    """Gates open or closed by chance p, or, by chance p (1 - p), anywhere between.

    For one edge between, the mean derivative by its gate is the difference that opening it makes, which is the derivative of the
    mean loss by p; and p (1 - p) is that of p by its logit. So the derivative by gates between is the one by logits, on average.
    """
    chance = torch.sigmoid(wanted.detach())
    u, v, w = (torch.rand(wanted.shape, generator=random) for _ in range(3))
    between = u < chance * (1 - chance)
    gates = torch.where(between, v, (w < chance).to(v))
    return gates + between * (wanted - wanted.detach())


Draw = Callable[[Tensor, torch.Generator], Tensor]
SAMPLINGS: dict[str, tuple[Draw, Callable[[Tensor], Tensor]]] = {
    "hard_concrete": (_drawn, _open),
    "uniform": (_drawn_uniformly, torch.sigmoid),
}
