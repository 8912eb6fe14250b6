"""Row 2: keeping all residual streams and all heads' mixed values of one forward."""

from collections.abc import Sequence

import torch
from benchmarks.race import floor
from benchmarks.race.arena import LAST, Arena
from benchmarks.race.contest import Event, Target, Way
from benchmarks.race.floor import Cost
from torch import Tensor

import mediant as md
from mediant.interventions.execute import Output

TOLD = """The same forward, and what it leaves is kept: the residual stream after each of the {layers} layers and the mixed
values of all {heads} heads, at every token. Ours is `md.run(lm, batch, capture=...)`; TransformerLens is `run_with_cache`
with a filter for these names; nnsight is one trace that saves layer outputs and inputs of the output projections; pyvene has
a `CollectIntervention` at each place, in a model that is put together once, before the clock runs. *Bare* keeps nothing."""


def event(arena: Arena) -> Event:
    """Everybody's capture."""
    prompts = arena.prompts(2 if arena.quick else 8)
    subject, batch, ids, shape = arena.subject, prompts.batch.base, prompts.ids, arena.subject.shape
    layers = range(shape.n_layers)
    sites = [md.Site("resid_post", layer) for layer in layers] + [md.Site("head_z", layer) for layer in layers]
    places = [(site, md.Span("all")) for site in sites]

    def read(out: Output) -> Tensor:
        # Entries are ordered by row, then column.
        return torch.stack([out.captured[place].values.reshape(*ids.shape, -1) for place in places])

    def stacked(found: tuple[Sequence[Tensor], Sequence[Tensor]]) -> Tensor:
        return torch.stack([each.reshape(*ids.shape, -1) for part in found for each in part])

    plain = floor.forward(shape, len(ids), range(prompts.n_cols))
    kept = 2 * shape.n_layers * ids.numel() * shape.d_model * floor.FLOAT
    return Event(
        "capture", "All residual streams and all heads", TOLD.format(layers=shape.n_layers, heads=shape.n_layers * shape.n_heads),
        ours=Way("mediant", lambda: md.run(subject, batch, capture=places), read),
        bare=Way("bare", lambda: subject.model(input_ids=ids, **LAST).logits, lambda _: torch.zeros(0), 0),
        peers=(
            Way("TransformerLens", lambda: arena.lens.capture(ids), stacked),
            Way("nnsight", lambda: arena.tracing.capture(ids), stacked),
            Way("pyvene", lambda: arena.vene.capture(ids), stacked),
        ),
        cost=plain + Cost(0, kept), target=Target(bare=1.10, peer=1.0), rounds=9,
    )  # fmt: skip
