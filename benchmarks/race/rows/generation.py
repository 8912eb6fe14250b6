"""Row 5: generating with an edit in every layer."""

import torch
from benchmarks.race import floor
from benchmarks.race.arena import Arena
from benchmarks.race.contest import Event, Target, Way
from torch import Tensor

import mediant as md

TOLD = """{new} tokens are generated greedily after each of {n} prompts with a key/value cache, while a vector of its own is
added to the stream after every layer, at every token of the prompt and of the answer. Results are token ids, which must all
be the same; the vectors are large enough to change what the model says. *Bare* generates the unedited text. Ours is
`lm.generate` inside `md.edit`; TransformerLens is `bridge.generate` inside `bridge.hooks`; nnsight is `model.generate` with a
loop over steps; pyvene is `generate` with a function at each layer's output, for prompt and answer alike."""


def event(arena: Arena) -> Event:
    """Everybody's steered generation."""
    subject, prompts, shape = arena.subject, arena.prompts(2), arena.subject.shape
    new = 4 if arena.quick else 32
    vectors = 0.3 * torch.randn(shape.n_layers, shape.d_model, generator=torch.Generator().manual_seed(0))
    adds = [md.edits.add(md.Site("resid_post", layer), "all", vector) for layer, vector in enumerate(vectors)]

    def ours() -> Tensor:
        with md.edit(subject, adds):
            return subject.generate(prompts.batch.base, max_new_tokens=new, stop_at_eos=False)

    def bare() -> Tensor:
        found: Tensor = subject.model.generate(
            prompts.ids, attention_mask=torch.ones_like(prompts.ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            pad_token_id=subject.pad_id,
        )  # fmt: skip
        return found[:, prompts.n_cols :]

    cost = floor.forward(shape, len(prompts.ids), range(prompts.n_cols))
    for step in range(new - 1):
        column = prompts.n_cols + step
        cost += floor.forward(shape, len(prompts.ids), range(column, column + 1))
    return Event(
        "generation", f"{new} tokens with an edit in every layer", TOLD.format(new=new, n=len(prompts.ids)),
        ours=Way("mediant", ours), bare=Way("bare", bare, leading=0),
        peers=(
            Way("TransformerLens", lambda: arena.lens.generate(prompts.ids, vectors, new)),
            Way("nnsight", lambda: arena.tracing.generate(prompts.ids, vectors, new)),
            Way("pyvene", lambda: arena.vene.generate(prompts.ids, vectors, new)),
        ),
        cost=cost, target=Target(peer=1.0), rounds=5,
    )  # fmt: skip
