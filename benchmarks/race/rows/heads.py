"""Row 4: every head patched, one at a time."""

import torch
from benchmarks.race import floor
from benchmarks.race.arena import Arena
from benchmarks.race.contest import Event, Target, Way
from torch import Tensor

import mediant as md
from mediant.search import Patcher

TOLD = """Each of {cells} heads is given its counterfactual mixed values at all tokens, one head at a time, on {n} pair;
outcome and timing as in the sweep. Ours is `Patcher(lm, pairs, capture=layers).grid(heads, ["all"])`. Peers take the faster
of their two ways in the sweep, one batch per layer in which each copy has its own head: a hook on `hook_z` in
TransformerLens, an invoke per head in nnsight, a location per copy on `head_attention_value_output` in pyvene."""


def event(arena: Arena) -> Event:
    """Everybody's head sweep."""
    subject, prompts, shape = arena.subject, arena.prompts(1), arena.subject.shape
    layers = [0, 15, 29] if arena.quick else list(range(shape.n_layers))
    sites = [md.Site("head_z", layer, head) for layer in layers for head in range(shape.n_heads)]

    wholes = [md.Site("head_z", layer) for layer in layers]

    def ours() -> Tensor:
        found = torch.from_numpy(Patcher(subject, prompts.batch, capture=wholes).grid(sites, ["all"])[:, 0])
        return found.unflatten(0, (len(layers), -1))

    n, later = len(prompts.ids), range(prompts.first, prompts.n_cols)
    cost = floor.forward(shape, n, range(prompts.n_cols)) + floor.forward(shape, n, later, logits=False)
    # A head's change of the stream, the MLP of its layer, and all layers above.
    own = n * len(later) * 2 * (shape.d_model * shape.d_head + floor.mlp_weights(shape))
    for layer in layers:
        above = floor.forward(shape, n, later, layers=shape.n_layers - 1 - layer)
        cost += floor.Cost(shape.n_heads * (own + above.flops), 0)
    return Event(
        "heads", "Every head patched, one at a time", TOLD.format(cells=len(sites), n=n),
        ours=Way("mediant", ours), cost=cost, target=Target(peer=1.0), rounds=2,
        peers=(
            Way("TransformerLens, folded by hand", lambda: arena.lens.heads(prompts, layers)),
            Way("nnsight, heads as invokes", lambda: arena.tracing.heads(prompts, layers)),
            Way("pyvene, folded by location", lambda: arena.vene.heads(prompts, layers)),
        ),
    )  # fmt: skip
