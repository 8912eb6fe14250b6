"""Row 3: activation patching of the residual stream, layer by position."""

import torch
from benchmarks.race import floor
from benchmarks.race.arena import Arena
from benchmarks.race.contest import Event, Target, Way
from torch import Tensor

import mediant as md
from mediant.search import Patcher

TOLD = """The stream after each of {layers} layers ({which}) is given its counterfactual value at each of {t} positions, one
cell at a time, {cells} cells in all, on {n} pairs of prompts whose names all differ, so that all positions but the first can
matter. The outcome is the change of the logit difference, per pair. Timed is everything from tokens to effects: source
values, untouched run and patched runs. Ours is `Patcher(lm, pairs, capture=sites).grid(sites, spans)`, which runs layers
above the patch and columns from it on. TransformerLens is once its own `generic_activation_patch`, one forward per cell, and
once the same folded by hand: the prompts copied for all positions of a layer, one hook that gives every copy its own patch.
nnsight is once a trace per cell and once a trace per layer with an invoke per position, which it runs as one batch. pyvene is
once a call per cell and once a batch per layer, each copy with its own location; source values are collected once and handed
over. All but `generic_activation_patch`, which offers no way to ask for it, compute the last token's logits only. The three
that run one cell at a time are timed once, at their first run."""


def event(arena: Arena) -> Event:
    """Everybody's sweep."""
    subject, prompts = arena.subject, arena.prompts(1 if arena.quick else 4)
    n_layers = subject.shape.n_layers
    # In the middle of equal thirds, so that as many layers lie above as in a sweep over all of them.
    layers = [14] if arena.quick else [4, 14, 24]
    sites = [md.Site("resid_post", layer) for layer in layers]
    spans = [md.Span.index(column) for column in range(prompts.n_cols)]

    def ours() -> Tensor:
        return torch.from_numpy(Patcher(subject, prompts.batch, capture=sites).grid(sites, spans))

    n = len(prompts.ids)
    cost = floor.forward(subject.shape, n, range(prompts.n_cols)) + floor.forward(
        subject.shape, n, range(prompts.first, prompts.n_cols), layers=max(layers) + 1, logits=False
    )
    for layer in layers:
        for column in range(prompts.first, prompts.n_cols):
            patched = floor.forward(subject.shape, n, range(column, prompts.n_cols), layers=n_layers - 1 - layer)
            # Weights are read already: nothing forbids one batch of everything.
            cost += floor.Cost(patched.flops, 0)

    def work() -> str:
        before = subject.work.token_layers
        Patcher(subject, prompts.batch, capture=sites).grid(sites, spans)
        cells = len(layers) * prompts.n_cols * prompts.ids.numel() * n_layers
        return f"We compute {(subject.work.token_layers - before) / cells:.2f} of a forward per cell, preparation included."

    told = TOLD.format(
        layers=len(layers), which=", ".join(map(str, layers)), t=prompts.n_cols, cells=len(layers) * prompts.n_cols, n=n
    )
    return Event(
        "sweep", "Layer x position sweep", told, ours=Way("mediant", ours), cost=cost, target=Target(peer=3.0), rounds=3,
        note=work,
        peers=(
            Way("TransformerLens, generic_activation_patch", lambda: arena.lens.positions_documented(prompts, layers), once=True),
            Way("TransformerLens, folded by hand", lambda: arena.lens.positions(prompts, layers)),
            Way("nnsight, a trace per cell", lambda: arena.tracing.positions_one_by_one(prompts, layers), once=True),
            Way("nnsight, cells as invokes", lambda: arena.tracing.positions(prompts, layers)),
            Way("pyvene, a call per cell", lambda: arena.vene.positions_one_by_one(prompts, layers), once=True),
            Way("pyvene, folded by location", lambda: arena.vene.positions(prompts, layers)),
        ),
    )  # fmt: skip
