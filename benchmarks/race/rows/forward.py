"""Row 1: what a forward costs through each library when nothing is edited."""

from benchmarks.race import floor
from benchmarks.race.arena import LAST, Arena
from benchmarks.race.contest import Event, Target, Way
from torch import Tensor

import mediant as md

TOLD = """One forward of {n} prompts of {t} tokens, logits of the last token, without a key/value cache, nothing edited or
read. *Bare* is the library's own model called directly. Ours is `md.run(lm, batch)`; TransformerLens is `bridge(ids)`;
nnsight is a trace that saves the logits; pyvene is an `IntervenableModel` without interventions. All of them are asked for
the last token's logits only and pass that on to the model."""


def event(arena: Arena) -> Event:
    """Everybody's plain forward."""
    prompts = arena.prompts(2 if arena.quick else 8)
    subject, batch, ids = arena.subject, prompts.batch.base, prompts.ids

    def bare() -> Tensor:
        logits: Tensor = subject.model(input_ids=ids, **LAST).logits
        return logits[:, -1]

    return Event(
        "forward", "A forward with no edits", TOLD.format(n=len(ids), t=prompts.n_cols),
        ours=Way("mediant", lambda: md.run(subject, batch).last),
        bare=Way("bare", bare),
        peers=(
            Way("TransformerLens", lambda: arena.lens.forward(ids)),
            Way("nnsight", lambda: arena.tracing.forward(ids)),
            Way("pyvene", lambda: arena.vene.forward(ids)),
        ),
        cost=floor.forward(subject.shape, len(ids), range(prompts.n_cols)),
        target=Target(bare=1.03), rounds=9,
    )  # fmt: skip
