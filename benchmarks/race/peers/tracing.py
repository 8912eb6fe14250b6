"""nnsight: traces of the library's own model, in which module outputs are read and written by name.

A sweep can be one trace per cell, or one trace with an invoke per cell, which nnsight folds into one batch. Bodies of traces are
read from this file's source.
"""

import torch
from benchmarks.race.arena import LAST, Prompts
from benchmarks.race.peers.learning import exchanged, learned
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Tracing:
    """nnsight in the race."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        from nnsight import TransformersModel

        self.model = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
        self.n_heads, self.d_head = model.config.num_attention_heads, model.config.head_dim

    def forward(self, ids: Tensor) -> Tensor:
        """Last logits (row, vocab)."""
        with self.model.trace(ids, **LAST):
            logits = self.model.lm_head.output.save()
        return logits[:, -1]

    def capture(self, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """All residual streams (row, column, d) and all heads' mixed values (row, column, heads x d_head)."""
        streams: list[Tensor] = []
        mixed: list[Tensor] = []
        with self.model.trace(ids, **LAST):
            for layer in self.model.model.layers:
                mixed.append(layer.self_attn.o_proj.input.save())
                streams.append(layer.output.save())
        return streams, mixed

    def positions_one_by_one(self, prompts: Prompts, layers: list[int]) -> Tensor:
        """Effect of the stream after each layer at each column, one trace per cell: (layer, column, pair)."""
        streams, _ = self.capture(prompts.source)
        before, found = prompts.score(self.forward(prompts.ids)), []
        for layer in layers:
            for column in range(prompts.n_cols):
                with self.model.trace(prompts.ids, **LAST):
                    self.model.model.layers[layer].output[:, column] = streams[layer][:, column]
                    logits = self.model.lm_head.output.save()
                found.append(prompts.score(logits[:, -1]) - before)
        return torch.stack(found).unflatten(0, (len(layers), -1))

    def positions(self, prompts: Prompts, layers: list[int]) -> Tensor:
        """The same with one trace per layer, one invoke per column."""
        streams, _ = self.capture(prompts.source)
        before, found = prompts.score(self.forward(prompts.ids)), []
        for layer in layers:
            logits: list[Tensor] = []
            with self.model.trace(**LAST) as tracer:
                for column in range(prompts.n_cols):
                    with tracer.invoke(prompts.ids):
                        self.model.model.layers[layer].output[:, column] = streams[layer][:, column]
                        logits.append(self.model.lm_head.output.save())
            found.append(torch.stack([prompts.score(each[:, -1]) for each in logits]) - before)
        return torch.stack(found)

    def heads(self, prompts: Prompts, layers: list[int]) -> Tensor:
        """Effect of each head at all columns, one trace per layer, one invoke per head: (layer, head, pair)."""
        _, mixed = self.capture(prompts.source)
        before, found = prompts.score(self.forward(prompts.ids)), []
        for layer in layers:
            logits: list[Tensor] = []
            with self.model.trace(**LAST) as tracer:
                for head in range(self.n_heads):
                    with tracer.invoke(prompts.ids):
                        part = slice(head * self.d_head, (head + 1) * self.d_head)
                        self.model.model.layers[layer].self_attn.o_proj.input[:, :, part] = mixed[layer][:, :, part]
                        logits.append(self.model.lm_head.output.save())
            found.append(torch.stack([prompts.score(each[:, -1]) for each in logits]) - before)
        return torch.stack(found)

    def generate(self, ids: Tensor, vectors: Tensor, new: int) -> Tensor:
        """Greedy tokens with a vector added to the stream after every layer."""
        with self.model.generate(ids, max_new_tokens=new, min_new_tokens=new, do_sample=False) as tracer:
            for _ in tracer.iter[:new]:
                for layer, vector in zip(self.model.model.layers, vectors):  # noqa: B905 - nnsight runs this body
                    layer.output[:] += vector
            found = tracer.result.save()
        return found[:, ids.shape[1] :]

    def learn(self, ids: Tensor, source: Tensor, wanted: Tensor, *, layer: int, k: int, steps: int) -> Tensor:
        """Losses of learning a subspace of the stream after a layer at the last column."""

        def run(basis: Tensor) -> Tensor:
            with self.model.trace(ids, **LAST):
                stream = self.model.model.layers[layer].output
                new = exchanged(stream[:, -1:], source[:, None], basis)
                self.model.model.layers[layer].output = torch.cat([stream[:, :-1], new], 1)
                logits = self.model.lm_head.output.save()
            return logits[:, -1]

        return learned(run, wanted, width=source.shape[-1], k=k, steps=steps)
