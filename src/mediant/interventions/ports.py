"""A forward in which every query head reads the residual stream through ports of its own.

    class Watch(Passage):
        def at_mlp(self, layer, stream):
            print(layer, stream.norm())
            return stream

    with Watch(lm).open():
        run(lm, batch)

The model runs as it is. Hooks on its own projections spread grouped keys and values to one per query head, and
attention is written out in the place where transformers looks it up, so that the input of one port, the output of one
head and one attention logit can each be read, replaced and differentiated. A `Passage` that overrides nothing gives the
model's own output to rounding. Under post-norms (Gemma, OLMo 2) a head's share of the sublayer's output is taken at the
norm's scale in the run at hand: shares add up exactly, but each depends on the others through that scale.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mediant.core.errors import EditNeverFired, SubjectError
from mediant.core.graph import CircuitGraph
from mediant.interventions.attention_function import attention_logits, replacing_attention
from mediant.interventions.taps import first_input, head_weight, with_first_input
from mediant.subject import Subject

Q, K, V = range(3)
BLOCK = 32  # tokens at a time, so that all ports' gradients stay in the cache
Score = Callable[[Tensor, Tensor], Tensor]
ByHead = tuple[Float[Tensor, "3 head d_head d_model"], Float[Tensor, "3 head d_head"] | None]


def graph_of(subject: Subject) -> CircuitGraph:
    """Nodes and edges of a subject."""
    return CircuitGraph(subject.shape.n_layers, subject.shape.n_heads, subject.shape.parallel)


class Ports:
    """The weights of a subject's layers, taken apart by head.

    Raises:
        SubjectError: weights that cannot be split (quantised), or parts that only work together.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject, self.graph = subject, graph_of(subject)
        shape = subject.shape
        for layer in range(shape.n_layers):
            for name in subject.family.qkv:
                weight = getattr(subject.family.attn_of(subject.model, layer).get_submodule(name), "weight", None)
                if not isinstance(weight, Tensor) or not weight.dtype.is_floating_point:
                    raise SubjectError(f"{name} of layer {layer} has no plain weight (quantised?); load the model unquantised")
        if subject.family.joint_key_norm and shape.n_kv_heads != shape.n_heads:
            raise SubjectError(
                f"{subject.name} norms all {shape.n_kv_heads} key heads together while {shape.n_heads} query heads share them, "
                "so its query heads cannot be given ports of their own; head-level methods (`rank`, `patch`) still work"
            )

    def attention_reader(self, layer: int) -> nn.Module:
        """The module whose input is the stream as attention reads it."""
        family, model = self.subject.family, self.subject.model
        return family.attn_norm_of(model, layer) if family.attn_norm else family.attn_of(model, layer)

    def mlp_reader(self, layer: int) -> nn.Module:
        """The module whose input is the stream as the MLP reads it."""
        family, block = self.subject.family, self.subject.layers[layer]
        return block.get_submodule(family.mlp_norm or family.mlp)

    def normed(self, layer: int, stream: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_model"]:
        """What the projections are given for a stream, by the model's own norm."""
        if not self.subject.family.attn_norm:
            return stream
        # `forward` and not a call: hooks on the module are for the run at hand.
        out: Tensor = self.attention_reader(layer).forward(stream)
        return out

    def weights(self, layer: int) -> ByHead:
        """Projection weights and biases, one per query head."""
        family, shape = self.subject.family, self.subject.shape
        modules = [family.attn_of(self.subject.model, layer).get_submodule(name) for name in family.qkv]
        matrices = [_matrix(module) for module in modules]
        biases = [getattr(module, "bias", None) for module in modules]
        if len(modules) == 1:
            width = matrices[0].shape[-1]
            if family.fused == "by head":
                matrix = matrices[0].reshape(shape.n_heads, 3, shape.d_head, width).transpose(0, 1)
                bias = None if biases[0] is None else biases[0].reshape(shape.n_heads, 3, shape.d_head).transpose(0, 1)
            else:
                matrix = matrices[0].reshape(3, shape.n_heads, shape.d_head, width)
                bias = None if biases[0] is None else biases[0].reshape(3, shape.n_heads, shape.d_head)
            return matrix.detach(), None if bias is None else bias.detach()
        per_head = [self._spread(m.unflatten(0, (-1, shape.d_head)), 0) for m in matrices]
        offsets = [self._spread(b.unflatten(0, (-1, shape.d_head)), 0) for b in biases if b is not None]
        return torch.stack(per_head).detach(), torch.stack(offsets).detach() if len(offsets) == 3 else None

    def project(
        self, normed: Float[Tensor, "port n d_model"], weights: ByHead, ports: Bool[Tensor, " all"]
    ) -> Float[Tensor, "port n d_head"]:
        """Queries, keys and values of some heads from inputs of their own, with a layer's `weights`."""
        weight, bias = weights
        chosen = slice(None) if bool(ports.all()) else ports
        out = normed @ weight.flatten(0, 1)[chosen].mT
        return out if bias is None else out + bias.flatten(0, 1)[chosen, None]

    def pull_back(
        self, layer: int, stream: Float[Tensor, "n d_model"], gradient: Float[Tensor, "3 head n d_head"]
    ) -> Float[Tensor, "port n d_model"]:
        """Gradients with respect to each port's own stream, from gradients of the projections' outputs."""
        weights, gradient = self.weights(layer)[0].flatten(0, 1), gradient.flatten(0, 1)
        if not self.subject.family.attn_norm:
            return gradient @ weights
        found = stream.new_empty(len(gradient), *stream.shape)
        for some in torch.arange(len(stream)).split(BLOCK):
            at = slice(int(some[0]), int(some[-1]) + 1)
            with torch.enable_grad():
                # All ports have the same stream, so one graph serves them all.
                inputs = stream[at].detach().requires_grad_(True)
                normed = self.normed(layer, inputs)
                found[:, at] = torch.autograd.grad(normed, inputs, gradient[:, at] @ weights, is_grads_batched=True)[0]
        return found

    def head_outputs(
        self, layer: int, z: Float[Tensor, "*n head d_head"], projected: Float[Tensor, "*n d_model"]
    ) -> Float[Tensor, "head *n d_model"]:
        """What each head adds to the stream, without the projection's bias."""
        result = torch.einsum("...he,hde->h...d", z, head_weight(self.subject, layer))
        if not self.subject.family.attn_post_norm:
            return result
        norm: Any = self.subject.layers[layer].get_submodule(self.subject.family.attn_post_norm)
        eps = float(getattr(norm, "variance_epsilon", None) or norm.eps)
        gain = norm.forward(torch.ones_like(projected[..., :1].expand_as(projected))) * (1 + eps) ** 0.5
        scale = torch.rsqrt(projected.float().square().mean(-1, keepdim=True) + eps).to(projected.dtype)
        scaled: Tensor = result * gain * scale
        return scaled

    def spread(self, raw: Float[Tensor, "batch pos width"]) -> Float[Tensor, "batch pos head d_head"]:
        """A projection's output, grouped heads repeated to one per query head."""
        return self._spread(raw.unflatten(-1, (-1, self.subject.shape.d_head)), 2)

    def _spread(self, by_head: Tensor, dim: int) -> Tensor:
        times = self.subject.shape.n_heads // by_head.shape[dim]
        return by_head if times == 1 else by_head.repeat_interleave(times, dim)


def _matrix(module: nn.Module) -> Tensor:
    weight: Tensor = module.weight  # type: ignore[assignment]
    # GPT-2's Conv1D stores (in, out), Linear stores (out, in).
    return weight if isinstance(module, nn.Linear) else weight.mT


class Passage:
    """One way through the model; subclasses override the places they read or change.

    Every method is given what the model would use and returns what it will use.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject, self.ports, self.graph = subject, Ports(subject), graph_of(subject)
        self._visits = [0] * 4

    def at_embedding(self, stream: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """The stream entering the first layer."""
        return stream

    def at_attention(self, layer: int, stream: Float[Tensor, "batch pos d_model"]) -> None:
        """The stream as attention reads it, before its norm."""

    def at_port(self, layer: int, port: int, values: Float[Tensor, "batch pos head d_head"]) -> Tensor:  # noqa: ARG002
        """Queries, keys or values (`port` 0, 1, 2) as projected, one per query head."""
        return values

    def attend(
        self,
        layer: int,  # noqa: ARG002
        query: Float[Tensor, "batch head pos d_head"],
        key: Float[Tensor, "batch head pos d_head"],
        value: Float[Tensor, "batch head pos d_head"],
        score: Score,
    ) -> Float[Tensor, "batch head pos d_head"]:
        """Head values from (rotated) queries, keys and values; `score` gives their scaled, capped and masked logits."""
        return score(query, key).softmax(-1).to(value.dtype) @ value

    def at_heads(
        self, layer: int, mixed: Float[Tensor, "batch pos head d_head"], projected: Float[Tensor, "batch pos d_model"]
    ) -> None:
        """What each head mixed, and what their projection wrote of it."""

    def at_mlp(self, layer: int, stream: Float[Tensor, "batch pos d_model"]) -> Tensor:  # noqa: ARG002
        """The stream as the MLP reads it, before its norm."""
        return stream

    def at_mlp_output(self, layer: int, output: Float[Tensor, "batch pos d_model"]) -> None:
        """What the MLP adds to the stream."""

    def at_final(self, stream: Float[Tensor, "batch pos d_model"]) -> Tensor:
        """The stream entering the final norm."""
        return stream

    @contextmanager
    def open(self) -> Iterator[None]:
        """Lay the hooks; on leaving take them away and check that every layer's ports, heads and MLP were passed.

        Raises:
            EditNeverFired: a place was passed less often than another, so the model does not run as its family says.
        """
        handles = []
        family, model = self.subject.family, self.subject.model
        hook_in = [(self.subject.layers[0], self._embedding()), (family.final_norm_of(model), self._final())]
        hook_out = []
        for layer in range(self.graph.n_layers):
            attn = family.attn_of(model, layer)
            hook_in += [
                (self.ports.attention_reader(layer), self._attention(layer)),
                (self.ports.mlp_reader(layer), self._mlp(layer)),
            ]
            hook_out += [(attn.get_submodule(name), self._projection(layer, i)) for i, name in enumerate(family.qkv)]
            hook_out += [(family.out_proj_of(model, layer), self._heads(layer))]
            hook_out += [(family.mlp_writer_of(model, layer), self._mlp_output(layer))]
        try:
            handles += [module.register_forward_pre_hook(hook, with_kwargs=True) for module, hook in hook_in]
            handles += [module.register_forward_hook(hook, with_kwargs=True) for module, hook in hook_out]
            with replacing_attention(self.subject, self._attend):
                yield
        finally:
            for handle in handles:
                handle.remove()
        if len(set(self._visits)) != 1:
            raise EditNeverFired(
                f"{self.subject.name} passed its layers' attention, heads, MLPs and projections {self._visits} times; "
                f"family {self.subject.family.name} does not describe how it runs"
            )

    def _embedding(self) -> Any:
        return lambda _, args, kwargs: with_first_input(args, kwargs, self.at_embedding(first_input(args, kwargs)))

    def _final(self) -> Any:
        return lambda _, args, kwargs: with_first_input(args, kwargs, self.at_final(first_input(args, kwargs)))

    def _attention(self, layer: int) -> Any:
        return lambda _, args, kwargs: self.at_attention(layer, first_input(args, kwargs))

    def _mlp(self, layer: int) -> Any:
        return lambda _, args, kwargs: with_first_input(args, kwargs, self.at_mlp(layer, first_input(args, kwargs)))

    def _projection(self, layer: int, index: int) -> Any:
        family = self.subject.family

        def separate(_: nn.Module, __: Any, ___: Any, output: Tensor) -> Tensor:
            self._visits[3] += index == 0
            return self.at_port(layer, index, self.ports.spread(output)).flatten(-2)

        def fused(_: nn.Module, __: Any, ___: Any, output: Tensor) -> Tensor:
            self._visits[3] += 1
            by_head = family.fused == "by head"
            n_heads = self.graph.n_heads
            parts = output.unflatten(-1, (n_heads, 3, -1) if by_head else (3, n_heads, -1))
            dim = -2 if by_head else -3
            new = [self.at_port(layer, port, parts.select(dim, port)) for port in (Q, K, V)]
            return torch.stack(new, dim=dim).flatten(-3)

        return fused if len(family.qkv) == 1 else separate

    def _attend(
        self, _: Any, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        self._visits[0] += 1

        def score(queries: Tensor, keys: Tensor) -> Tensor:
            logits = attention_logits(queries, keys, mask, scaling=kwargs.get("scaling"), softcap=kwargs.get("softcap"))
            # Rows of padding see nothing; they are read by nobody, but must not spread NaN.
            return logits.masked_fill(~logits.isfinite().any(-1, keepdim=True), 0.0)

        mixed = self.attend(int(module.layer_idx), query, key, value, score)  # type: ignore[arg-type]
        return mixed.transpose(1, 2).contiguous(), None

    def _heads(self, layer: int) -> Any:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            self._visits[1] += 1
            z = first_input(args, kwargs).unflatten(-1, (self.graph.n_heads, -1))
            self.at_heads(layer, z, output)

        return hook

    def _mlp_output(self, layer: int) -> Any:
        def hook(_: nn.Module, __: Any, ___: Any, output: Tensor) -> None:
            self._visits[2] += 1
            self.at_mlp_output(layer, output)

        return hook
