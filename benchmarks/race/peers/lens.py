"""TransformerLens 4: `TransformerBridge` around the library's own model, no weight folded, hooks by name.

Where a sweep is folded, many copies of the prompts make one batch and one hook gives every copy its own patch; the documented way
(`generic_activation_patch`) runs one forward per cell and all logits.
"""

import warnings
from functools import partial
from typing import Any

import pandas as pd
import torch
from benchmarks.race.arena import LAST, Prompts
from benchmarks.race.peers.learning import exchanged, learned
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def bridged(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Any:
    """TransformerLens's view of a model, which it rewires in place."""
    from transformer_lens.model_bridge import TransformerBridge

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = TransformerBridge.boot_transformers(model.config._name_or_path, hf_model=model, tokenizer=tokenizer, device="cpu")
    return made.eval()


class Lens:
    """TransformerLens in the race."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.bridge = bridged(model, tokenizer)
        self.n_heads, self.n_layers = model.config.num_attention_heads, model.config.num_hidden_layers

    def forward(self, ids: Tensor) -> Tensor:
        """Last logits (row, vocab)."""
        return self.bridge(ids, **LAST)[:, -1]

    def capture(self, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """All residual streams (row, column, d) and all heads' mixed values (row, column, head, d_head)."""
        names = [_stream(layer) for layer in range(self.n_layers)] + [_heads(layer) for layer in range(self.n_layers)]
        cache = self._cache(ids, names)
        found = [cache[name] for name in names]
        return found[: self.n_layers], found[self.n_layers :]

    def positions(self, prompts: Prompts, layers: list[int]) -> Tensor:
        """Effect of the stream after each layer at each column, one batch per layer: (layer, column, pair)."""
        cache = self._cache(prompts.source, [_stream(layer) for layer in layers])
        n, n_cols = prompts.ids.shape
        ids, columns = prompts.ids.repeat(n_cols, 1), torch.arange(n_cols)

        def write(stream: Tensor, hook: Any, *, source: Tensor) -> Tensor:  # noqa: ARG001 - called by name
            copies = stream.unflatten(0, (n_cols, n))
            copies[columns, :, columns] = source.transpose(0, 1)
            return copies.flatten(0, 1)

        return self._folded(prompts, ids, [(_stream(layer), write) for layer in layers], cache, n_cols)

    def heads(self, prompts: Prompts, layers: list[int]) -> Tensor:
        """Effect of each head at all columns, one batch per layer: (layer, head, pair)."""
        cache = self._cache(prompts.source, [_heads(layer) for layer in layers])
        n, every = len(prompts.ids), torch.arange(self.n_heads)

        def write(mixed: Tensor, hook: Any, *, source: Tensor) -> Tensor:  # noqa: ARG001 - called by name
            copies = mixed.unflatten(0, (self.n_heads, n))
            copies[every, :, :, every] = source.permute(2, 0, 1, 3)
            return copies.flatten(0, 1)

        ids = prompts.ids.repeat(self.n_heads, 1)
        return self._folded(prompts, ids, [(_heads(layer), write) for layer in layers], cache, self.n_heads)

    def positions_documented(self, prompts: Prompts, layers: list[int]) -> Tensor:
        """The same as `positions` by TransformerLens's own sweep."""
        from transformer_lens.patching import generic_activation_patch, layer_pos_patch_setter

        cells = [(layer, column) for layer in layers for column in range(prompts.n_cols)]
        found = generic_activation_patch(
            self.bridge, prompts.ids, self._cache(prompts.source, [_stream(layer) for layer in layers]),
            lambda logits: prompts.score(logits[:, -1]), layer_pos_patch_setter, "resid_post",
            index_df=pd.DataFrame(cells, columns=["layer", "pos"]), reduce="none",
        )  # fmt: skip
        return found.values.unflatten(0, (len(layers), -1)) - prompts.score(self.forward(prompts.ids))

    def generate(self, ids: Tensor, vectors: Tensor, new: int) -> Tensor:
        """Greedy tokens with a vector added to the stream after every layer."""

        def add(stream: Tensor, hook: Any, *, vector: Tensor) -> Tensor:  # noqa: ARG001 - called by name
            return stream + vector

        hooks = [(_stream(layer), partial(add, vector=vector)) for layer, vector in enumerate(vectors)]
        with self.bridge.hooks(fwd_hooks=hooks):
            found = self.bridge.generate(
                ids, max_new_tokens=new, do_sample=False, stop_at_eos=False, return_type="tokens", verbose=False
            )
        return found[:, ids.shape[1] :]

    def learn(self, ids: Tensor, source: Tensor, wanted: Tensor, *, layer: int, k: int, steps: int) -> Tensor:
        """Losses of learning a subspace of the stream after a layer at the last column."""

        def run(basis: Tensor) -> Tensor:
            def exchange(stream: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - called by name
                return torch.cat([stream[:, :-1], exchanged(stream[:, -1:], source[:, None], basis)], 1)

            return self.bridge.run_with_hooks(ids, fwd_hooks=[(_stream(layer), exchange)], **LAST)[:, -1]

        return learned(run, wanted, width=source.shape[-1], k=k, steps=steps)

    def _cache(self, ids: Tensor, names: list[str]) -> Any:
        return self.bridge.run_with_cache(ids, names_filter=names, **LAST)[1]

    def _folded(self, prompts: Prompts, ids: Tensor, hooks: list[Any], cache: Any, copies: int) -> Tensor:
        before = prompts.score(self.forward(prompts.ids))
        found = []
        for name, write in hooks:
            logits = self.bridge.run_with_hooks(ids, fwd_hooks=[(name, partial(write, source=cache[name]))], **LAST)
            found.append(prompts.score(logits[:, -1]).unflatten(0, (copies, -1)) - before)
        return torch.stack(found)


def _stream(layer: int) -> str:
    return f"blocks.{layer}.hook_resid_post"


def _heads(layer: int) -> str:
    return f"blocks.{layer}.attn.hook_z"
