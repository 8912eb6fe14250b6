"""Information-flow routes: what share of what a port reads came from each part before it, by nearness alone.

    scores = flow_routes(lm, pairs)
    circuit = greedy(scores).circuit(500)

A part u that wrote x_u into a stream y is as near to it as leaving it out moves y away, max(0, |y|_1 - |y - x_u|_1), and its
share is that over the sum over all parts (Ferrando & Voita 2024, arXiv 2403.00824; as in MIB, Mueller et al. 2025). One forward,
no counterfactual, nothing causal: a part may write much that nobody uses. Shares add up to one within each port, so they cannot
be compared between ports: grow circuits with `greedy`, and `strongest` refuses them.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.edge_scores import EdgeScores
from mediant.core.errors import TaskError
from mediant.core.pair import Pair
from mediant.interventions.nodes import Nodes, TokenOrder, observe
from mediant.interventions.ports import graph_of
from mediant.subject import Subject
from mediant.tasks.encode import encode


def flow_routes(subject: Subject, pairs: Sequence[Pair], *, batch_size: int = 16) -> EdgeScores:
    """Mean share of every edge in what its port reads, over the tokens of clean prompts.

    Returns:
        Minus the share: as everywhere, edges that help are negative.

    Raises:
        TaskError: no pairs.
    """
    if not pairs:
        raise TaskError("no pairs were given, so there is no flow to follow")
    graph, n_tokens = graph_of(subject), 0
    total = np.zeros((1, graph.n_targets, graph.n_sources))
    for start in range(0, len(pairs), batch_size):
        batch = encode(subject, pairs[start : start + batch_size])
        tokens = TokenOrder.of(batch.base)
        nodes = observe(subject, batch.base, tokens, keep=batch.keep)
        for target, shares in _ports(subject, nodes):
            total[0, target, : len(shares)] -= shares.sum(-1).double().cpu().numpy()
        n_tokens += len(tokens.rows)
    return EdgeScores(graph, ("all",), total / n_tokens, None, len(pairs), [], "information-flow routes", "share", per_port=True)


def _ports(subject: Subject, nodes: Nodes) -> "list[tuple[slice, Float[Tensor, 'source token']]]":
    """Shares of what each port reads; queries, keys and values of a layer's heads read one stream."""
    graph, found = graph_of(subject), []
    for layer in range(graph.n_layers):
        first = graph.first_target(layer)
        heads = slice(first, first + 3 * graph.n_heads)
        found.append((heads, _shares(nodes.attention_in[layer], nodes.outputs[: graph.readable(first)])))
        mlp = slice(heads.stop, heads.stop + 1)
        found.append((mlp, _shares(nodes.mlp_in[layer], nodes.outputs[: graph.readable(heads.stop)])))
    last = slice(graph.n_targets - 1, graph.n_targets)
    return [*found, (last, _shares(nodes.final_in, nodes.outputs))]


def _shares(stream: Float[Tensor, "token d"], parts: Float[Tensor, "source token d"]) -> Float[Tensor, "source token"]:
    whole = stream.abs().sum(-1)
    # One part at a time: all of them at once would be a second copy of every output.
    near = torch.stack([(whole - (stream - part).abs().sum(-1)).clamp(min=0) for part in parts])
    found: Tensor = near / near.sum(0).clamp(min=torch.finfo(near.dtype).tiny)
    return found
