"""pyvene: an `IntervenableModel` around the library's own model, one per layer where a sweep goes through layers.

Values of the source prompts are collected once and handed over (`source_representations`). Locations may differ from row to row,
so a sweep can be folded: many copies of the prompts, each with its own column or head.
"""

from typing import Any

import torch
import torch.nn.functional as F
from benchmarks.race.arena import LAST, Prompts
from benchmarks.race.peers.learning import descended, started
from torch import Tensor
from transformers import PreTrainedModel


class Vene:
    """pyvene in the race."""

    def __init__(self, model: PreTrainedModel) -> None:
        import pyvene

        self.pyvene, self.model = pyvene, model
        self.n_layers, self.n_heads = model.config.num_hidden_layers, model.config.num_attention_heads
        self._steered: tuple[Tensor, Any] | None = None
        self.plain = pyvene.IntervenableModel([], model=model)
        sites = [(kind, layer) for kind in ("block_output", "attention_value_output") for layer in range(self.n_layers)]
        self.collecting = pyvene.IntervenableModel(
            [{"layer": layer, "component": kind, "intervention": self._collector()} for kind, layer in sites], model=model
        )

    def _collector(self) -> Any:
        # Without `keep_last_dim`, several tokens' values are laid end to end and cut to the width of one.
        return self.pyvene.CollectIntervention(embed_dim=self.model.config.hidden_size, keep_last_dim=True)

    def forward(self, ids: Tensor) -> Tensor:
        """Last logits (row, vocab)."""
        return self.plain({"input_ids": ids, **LAST})[0].logits[:, -1]

    def capture(self, ids: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """All residual streams (row, column, d) and all heads' mixed values (row, column, heads x d_head)."""
        columns = list(range(ids.shape[1]))
        (_, found), _ = self.collecting({"input_ids": ids, **LAST}, unit_locations={"base": columns})
        return found[: self.n_layers], found[self.n_layers :]

    def positions_one_by_one(self, prompts: Prompts, layers: list[int]) -> Tensor:
        """Effect of the stream after each layer at each column, one call per cell: (layer, column, pair)."""
        streams, _ = self.capture(prompts.source)
        before, found = prompts.score(self.forward(prompts.ids)), []
        for layer in layers:
            swapping, key = self._swapping(layer, "block_output", "pos")
            for column in range(prompts.n_cols):
                where = {"sources->base": (None, column)}
                logits = _swapped(swapping, prompts.ids, where, {key: streams[layer][:, column : column + 1]})
                found.append(prompts.score(logits) - before)
        return torch.stack(found).unflatten(0, (len(layers), -1))

    def positions(self, prompts: Prompts, layers: list[int]) -> Tensor:
        """The same with one batch per layer, each copy with its own column."""
        streams, _ = self.capture(prompts.source)
        n, n_cols = prompts.ids.shape
        ids, before, found = prompts.ids.repeat(n_cols, 1), prompts.score(self.forward(prompts.ids)), []
        where = {"sources->base": (None, [[[column] for column in range(n_cols) for _ in range(n)]])}
        for layer in layers:
            swapping, key = self._swapping(layer, "block_output", "pos")
            logits = _swapped(swapping, ids, where, {key: streams[layer].transpose(0, 1).flatten(0, 1)[:, None]})
            found.append(prompts.score(logits).unflatten(0, (n_cols, n)) - before)
        return torch.stack(found)

    def heads(self, prompts: Prompts, layers: list[int]) -> Tensor:
        """Effect of each head at all columns, one batch per layer, each copy with its own head: (layer, head, pair)."""
        _, mixed = self.capture(prompts.source)
        n, h = len(prompts.ids), self.n_heads
        ids, before, found = prompts.ids.repeat(h, 1), prompts.score(self.forward(prompts.ids)), []
        where = {"sources->base": (None, [[[head] for head in range(h) for _ in range(n)]])}
        for layer in layers:
            swapping, key = self._swapping(layer, "head_attention_value_output", "h")
            values = mixed[layer].unflatten(-1, (h, -1)).permute(2, 0, 1, 3).flatten(0, 1)[:, None]
            logits = _swapped(swapping, ids, where, {key: values})
            found.append(prompts.score(logits).unflatten(0, (h, n)) - before)
        return torch.stack(found)

    def generate(self, ids: Tensor, vectors: Tensor, new: int) -> Tensor:
        """Greedy tokens with a vector added to the stream after every layer."""

        _, found = self._steering(vectors).generate(
            {"input_ids": ids}, intervene_on_prompt=True, max_new_tokens=new, min_new_tokens=new, do_sample=False
        )
        return found[:, ids.shape[1] :]

    def learn(self, ids: Tensor, source: Tensor, wanted: Tensor, *, layer: int, k: int, steps: int) -> Tensor:
        """Losses of learning a subspace of the stream after a layer at the last column, in pyvene's own parameters."""
        width, kind = source.shape[-1], self.pyvene.LowRankRotatedSpaceIntervention
        place = {"layer": layer, "component": "block_output", "intervention_type": kind, "low_rank_dimension": k}
        turning = self.pyvene.IntervenableModel(place, model=self.model)
        (key,) = turning.interventions
        rotate = turning.interventions[key].rotate_layer
        rotate.weight = torch.linalg.qr(started(width, k))[0]
        where = {"sources->base": (None, ids.shape[1] - 1)}

        def loss() -> Tensor:
            # pyvene empties what it is handed.
            return F.cross_entropy(_swapped(turning, ids, where, {key: source[:, None]}), wanted)

        return descended(rotate.parameters(), loss, steps=steps)

    def _steering(self, vectors: Tensor) -> Any:
        """A model that adds these vectors, put together at its first use."""

        def adding(vector: Tensor) -> Any:
            return lambda base, source: base + vector  # noqa: ARG005 - pyvene hands over both

        if self._steered is None or self._steered[0] is not vectors:
            places = [{"component": f"model.layers[{i}].output", "intervention": adding(v)} for i, v in enumerate(vectors)]
            self._steered = vectors, self.pyvene.IntervenableModel(places, model=self.model)
        return self._steered[1]

    def _swapping(self, layer: int, component: str, unit: str) -> tuple[Any, str]:
        """A model that swaps one place; made anew each time, because a used one gives other numbers for other locations."""
        place = {"layer": layer, "component": component, "unit": unit, "intervention_type": self.pyvene.VanillaIntervention}
        made = self.pyvene.IntervenableModel(place, model=self.model)
        (key,) = made.interventions
        return made, key


def _swapped(model: Any, ids: Tensor, where: dict[str, Any], values: dict[str, Tensor]) -> Tensor:
    """Last logits with values written where they belong."""
    return model({"input_ids": ids, **LAST}, unit_locations=where, source_representations=values)[1].logits[:, -1]
