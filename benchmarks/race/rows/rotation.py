"""Row 7: one step of learning a subspace (distributed alignment search)."""

import time

import torch
from benchmarks.race import floor
from benchmarks.race.arena import Arena
from benchmarks.race.contest import Event, Target, Way
from benchmarks.race.floor import Cost
from torch import Tensor

import mediant as md
from mediant.search.rotations import das

TOLD = """One step of distributed alignment search: {k} dimensions of the stream after layer {layer} at the last token, a
batch of {n} interchanges of the indirect-object task; forward, loss, backward, optimiser. Timed are {steps} steps from one
start, divided by {steps}. Source values are collected before the clock runs, by all; we also record the base prompts once
before it, as `Interchanges` does, so that a step runs only the layers above the site at the last column. Ours is `das`.
TransformerLens and nnsight run the recipe written by hand, the same start, optimiser and schedule, with a hook or in a trace:
all steps' losses must be ours. pyvene is its `LowRankRotatedSpaceIntervention`, whose orthogonal matrix has parameters of its
own and goes another way after the first step: only the first loss must be ours. Weights have no gradients anywhere."""

NOTE = """Our preparation, the prompts' encoding, the source's values and the recording, took {prepared:.2f} s, once: it is paid
back over the hundreds of steps of a search, not over the few timed here."""


def event(arena: Arena) -> Event:
    """Everybody's step."""
    subject, n, k, steps = arena.subject, 4 if arena.quick else 16, 8, 2 if arena.quick else 4
    shape, layer = subject.shape, subject.shape.n_layers // 2
    begun = time.perf_counter()
    ready = arena.interchanges(n, md.Site("resid_post", layer))
    prepared = time.perf_counter() - begun
    _, batch = ready.step(md.interventions.mediator.Mediator(ready.site, ready.span), 0)
    ids, source, wanted = batch.base.ids, ready.values(), batch.expected
    given = {"layer": layer, "k": k, "steps": steps}

    def ours() -> Tensor:
        return torch.tensor(das(ready, k=k, epochs=steps).course.losses)

    column = ids.shape[1] - 1
    up = floor.forward(shape, n, range(column, column + 1), layers=shape.n_layers - 1 - layer)
    # Forward, and back to the site; the exchange itself is three products with the basis.
    cost = up + up + Cost(3 * 2 * 3 * n * k * shape.d_model, 0)
    return Event(
        "rotation", "A step of learning a subspace", TOLD.format(k=k, layer=layer, n=n, steps=steps), ours=Way("mediant", ours),
        peers=(
            Way("TransformerLens, recipe with a hook", lambda: arena.lens.learn(ids, source, wanted, **given)),
            Way("nnsight, recipe in a trace", lambda: arena.tracing.learn(ids, source, wanted, **given)),
            Way("pyvene, low-rank rotation", lambda: arena.vene.learn(ids, source, wanted, **given), leading=1),
        ),
        cost=cost, target=Target(peer=1.0), rounds=5, per=steps, gradients=True,
        note=lambda: NOTE.format(prepared=prepared),
    )  # fmt: skip
