"""Edge attribution on TransformerLens: its own tool, and the usual recipe written out on its split inputs and head results.

Both need a model whose query heads have keys and values of their own.
"""

from collections.abc import Callable
from typing import Any

import torch
from benchmarks.race.arena import LAST, Prompts, twin
from benchmarks.race.peers.lens import bridged
from torch import Tensor

from mediant.core.graph import CircuitGraph
from mediant.interventions.ports import graph_of
from mediant.subject import Subject

PARTS = ("q", "k", "v")


class LensEdges:
    """TransformerLens scoring every edge."""

    def __init__(self, subject: Subject) -> None:
        self.bridge = bridged(twin(subject.model), subject.tokenizer)
        # Its own tool needs a gradient to begin somewhere; no other weight has one, which is less to compute.
        model = twin(subject.model)
        model.get_input_embeddings().weight.requires_grad_(True)
        self.documented_bridge = bridged(model, subject.tokenizer)
        self.graph: CircuitGraph = graph_of(subject)
        self.width = subject.shape.d_model

    def documented(self, prompts: Prompts) -> Tensor:
        """Its own `attribution_patch`, prompt by prompt, its edges between tokens summed over positions: (target, source)."""
        from transformer_lens.tools.analysis import EdgeAttributionConfig, attribution_patch

        table = torch.zeros(self.graph.n_targets, self.graph.n_sources)
        n = len(prompts.ids)
        for row in range(n):
            right, wrong = prompts.batch.answers[row][0], prompts.batch.counterfactual_answers[row][0]
            # Its gradient is taken at what it calls the corrupt run, ours at the clean one.
            found = attribution_patch(
                self.documented_bridge, prompts.source[row : row + 1], prompts.ids[row : row + 1],
                lambda logits, right=right, wrong=wrong: logits[0, -1, right] - logits[0, -1, wrong],
                EdgeAttributionConfig(granularity="edge"),
            )  # fmt: skip
            for (writer, reader), score in found.edge_scores.items():
                table[self._target(reader), self._source(writer)] += score / n
        return table

    def _source(self, node: Any) -> int:
        if node.kind == "embed":
            return 0
        return self.graph.first_source(node.layer) + (self.graph.n_heads if node.kind == "mlp_out" else node.head)

    def _target(self, node: Any) -> int:
        if node.kind == "logits":
            return self.graph.n_targets - 1
        heads = self.graph.n_heads
        inside = 3 * heads if node.kind == "mlp_in" else PARTS.index(node.kind[0]) * heads + node.head
        return self.graph.first_target(node.layer) + inside

    def recipe(self, prompts: Prompts) -> Tensor:
        """A forward of the other prompts, a forward and backward of these, one product per reading place: (target, source)."""
        writers, readers = self._places()
        model, n = self.bridge, len(prompts.ids)
        change = torch.zeros(self.graph.n_sources, *prompts.ids.shape, self.width)
        table = torch.zeros(self.graph.n_targets, self.graph.n_sources)

        def write(name: str, sign: int) -> tuple[str, Callable[..., None]]:
            def hook(values: Tensor, hook: Any) -> None:  # noqa: ARG001 - called by name
                change[writers[name]] += sign * _by_node(values.detach())

            return name, hook

        def begin(values: Tensor, hook: Any) -> Tensor:  # noqa: ARG001 - called by name
            return values.detach().requires_grad_(True)

        def read(name: str) -> tuple[str, Callable[..., None]]:
            place, known = readers[name], self.graph.readable(readers[name].start)

            def hook(gradient: Tensor, hook: Any) -> None:  # noqa: ARG001 - called by name
                table[place, :known] = _by_node(gradient).flatten(1) @ change[:known].flatten(1).mT

            return name, hook

        model.set_use_attn_result(True)
        model.set_use_split_qkv_input(True)
        model.set_use_hook_mlp_in(True)
        try:
            with torch.no_grad():
                model.run_with_hooks(prompts.source, fwd_hooks=[write(name, 1) for name in writers], **LAST)
            steps = [("hook_embed", begin), *[write(name, -1) for name in writers]]
            with model.hooks(fwd_hooks=steps, bwd_hooks=[read(name) for name in readers]):
                prompts.score(model(prompts.ids, **LAST)[:, -1]).sum().backward()
        finally:
            model.set_use_attn_result(False)
            model.set_use_split_qkv_input(False)
            model.set_use_hook_mlp_in(False)
        return table / n

    def _places(self) -> tuple[dict[str, slice], dict[str, slice]]:
        """Hook names of what writes to the stream, and of what reads it, with their rows in our tables."""
        graph = self.graph
        writers = {"hook_embed": slice(0, 1)}
        last = graph.n_targets - 1
        readers = {f"blocks.{graph.n_layers - 1}.hook_resid_post": slice(last, last + 1)}
        for layer in range(graph.n_layers):
            first = graph.first_source(layer)
            mlp = first + graph.n_heads
            writers |= {
                f"blocks.{layer}.attn.hook_result": slice(first, mlp),
                f"blocks.{layer}.hook_mlp_out": slice(mlp, mlp + 1),
            }
            first = graph.first_target(layer)
            for part, name in enumerate(PARTS):
                start = first + part * graph.n_heads
                readers[f"blocks.{layer}.attn.hook_{name}_input"] = slice(start, start + graph.n_heads)
            mlp = first + 3 * graph.n_heads
            readers[f"blocks.{layer}.hook_mlp_in"] = slice(mlp, mlp + 1)
        return writers, readers


def _by_node(values: Tensor) -> Tensor:
    """(node, row, column, d) of hooks that have a head dimension or none."""
    return values.permute(2, 0, 1, 3) if values.ndim == 4 else values[None]
