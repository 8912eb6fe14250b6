"""Row 6: attribution of every edge of the circuit graph."""

import torch
from benchmarks.race import floor
from benchmarks.race.arena import Arena
from benchmarks.race.contest import Absent, Event, Target, Way
from benchmarks.race.peers.lens_edges import LensEdges
from torch import Tensor

from mediant.interventions.ports import graph_of
from mediant.search.attribution import eap

TOLD = """Every edge between the {sources} parts that write to the stream and the {targets} that read it, {edges} in all, gets
the score of edge attribution patching, summed over tokens, on {n} pairs. TransformerLens splits no inputs of grouped queries,
so all contenders get a copy of the model in which every query head has a key and value head of its own, with the shared
weights; it gives the same logits. Ours is `search.eap`. TransformerLens is once its own
`attribution_patch(granularity="edge")`, which keeps an object per edge and token and is timed once, at its first run; and
once the usual recipe, written on its split inputs and head results: both forwards in one batch each, one backward, one
product per reading place, no weight with a gradient."""
REASON = (
    "it has no edge attribution, and a recipe needs the stream as each head's query, key and value read it, which in the "
    "library's own model is one tensor for all of them"
)


def event(arena: Arena) -> Event:
    """Everybody's edge scores."""
    prompts = arena.prompts(1 if arena.quick else 2)
    subject = arena.ungrouped
    graph, shape, n = graph_of(subject), subject.shape, len(prompts.ids)
    lens = LensEdges(subject)

    def ours() -> Tensor:
        return torch.from_numpy(eap(subject, prompts.pairs, batch_size=n).within[0])

    # Two forwards, and a backward, which without gradients of weights costs one; then the scores' products over tokens and width.
    columns = range(prompts.first, prompts.n_cols)
    once = floor.forward(shape, n, range(prompts.n_cols))
    scores = sum(
        (3 * shape.n_heads + 1) * (graph.first_source(layer) + shape.n_heads) for layer in range(shape.n_layers)
    ) + graph.n_sources  # fmt: skip
    products = floor.Cost(2 * scores * n * len(columns) * shape.d_model, 0)
    told = TOLD.format(sources=graph.n_sources, targets=graph.n_targets, edges=f"{graph.n_edges:,}", n=n)
    return Event(
        "edges", "Scores of every edge", told, ours=Way("mediant", ours),
        peers=(
            Way("TransformerLens, attribution_patch", lambda: lens.documented(prompts), once=True),
            Way("TransformerLens, recipe on its hooks", lambda: lens.recipe(prompts)),
            Absent("nnsight", REASON), Absent("pyvene", REASON),
        ),
        cost=once + once + once + products, target=Target(peer=1.0), rounds=3, gradients=True,
    )  # fmt: skip
