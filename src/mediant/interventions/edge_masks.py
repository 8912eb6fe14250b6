"""Attention edges of image generators: one additive mask per set of edges, shared by all blocks and steps it holds in.

    edges = [AttentionEdge(layer, None, query="text", key="reference") for layer in range(flux.shape.n_layers)]
    with attending(flux, [cut(edge) for edge in edges]):          # nothing flows from the reference to the text
        flux.sample(batch)

The library takes a mask in every block, so a hook hands it over and nothing is replaced. Masks are as small as they can be: one
for all rows or heads that are alike. A mask keeps the library from its fastest kernels, whoever builds it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mediant.core.errors import EditError, EditNeverFired, SubjectError
from mediant.interventions.bias import CUT, Bias, check_biases
from mediant.interventions.firings import Firing
from mediant.subject.batch import Batch
from mediant.subject.generator import ImageGenerator

# Attention of the library that adds a mask of any shape; the others refuse one or make less of it.
_TAKE_MASKS = ("native", "_native_math", "_native_efficient", "_native_cudnn")


@dataclass(eq=False)
class EdgeMasks:
    """Biases in force on a generator, and what they did.

    Attributes:
        built: how many masks were built; fewer than blocks times steps wherever edges repeat.
    """

    subject: ImageGenerator
    biases: Sequence[Bias]
    built: int = 0
    forwards: int = 0
    _fired: list[int] = field(default_factory=list)
    _tokens: list[int] = field(default_factory=list)
    _masks: dict[object, tuple[Tensor, list[int]]] = field(default_factory=dict)
    _of: Batch | None = None

    def __post_init__(self) -> None:
        check_biases(self.subject, self.biases)
        _check_backend(self.subject)
        self._fired, self._tokens = [0] * len(self.biases), [0] * len(self.biases)

    def firings(self) -> list[Firing]:
        """One report per bias; `change` is not measured for attention and reads 0."""
        told = zip(self.biases, self._fired, self._tokens, strict=True)
        return [Firing(one.label, fired, tokens, 0.0, () if fired else tuple(one.steps or ())) for one, fired, tokens in told]

    def check(self) -> None:
        """Raise if a bias never acted although a forward ran.

        Raises:
            EditNeverFired: naming the biases.
        """
        silent = [report.label for report in self.firings() if not report.forwards]
        if self.forwards and silent:
            raise EditNeverFired(
                f"{len(silent)} attention edit(s) never fired: {'; '.join(silent[:3])}; their spans are empty, or their steps "
                "were not reached"
            )

    def attach(self) -> list[RemovableHandle]:
        """Lay the hooks: on the transformer, and on attention in every block that an edge is in."""
        self.subject.check_hooks()
        handles = [self.subject.entry.register_forward_pre_hook(self._note, with_kwargs=True)]
        for layer in sorted({one.edge.layer for one in self.biases}):
            module = self.subject.model.get_submodule(self.subject.family.attention(layer, self.subject.shape))
            handles.append(module.register_forward_pre_hook(_handing(self, layer), with_kwargs=True))
        return handles

    def mask(self, layer: int) -> Float[Tensor, "row head query key"] | None:
        """What is added to the logits of a block in this step; None where no edge holds."""
        window = self.subject.window
        held = [i for i, one in enumerate(self.biases) if one.edge.layer == layer and _holds(one, window.step)]
        if not held:
            return None
        assert window.batch is not None  # noqa: S101 - noted by the transformer's hook
        if self._of is not window.batch:
            self._masks, self._of = {}, window.batch
        known = tuple(
            (self.biases[i].edge.head, self.biases[i].edge.query, self.biases[i].edge.key, self.biases[i].beta) for i in held
        )
        if known not in self._masks:
            self._masks[known] = self._build([self.biases[i] for i in held], window.batch)
            self.built += 1
        mask, acted = self._masks[known]
        for i, tokens in zip(held, acted, strict=True):
            self._fired[i] += tokens > 0
            self._tokens[i] += tokens
        return mask

    def _build(self, biases: Sequence[Bias], batch: Batch) -> tuple[Tensor, list[int]]:
        """The mask of some biases, and in how many query rows each acts."""
        alike = all(spans == batch.spans[0] for spans in batch.spans)
        rows = 1 if alike else batch.n_rows
        heads = 1 if all(one.edge.head is None for one in biases) else self.subject.shape.n_heads
        mask = torch.zeros(rows, heads, batch.n_cols, batch.n_cols, device=batch.ids.device)
        acted = []
        for one in biases:
            tokens = 0
            for row in range(rows):
                queries, keys = batch.columns(row, one.edge.query), batch.columns(row, one.edge.key)
                chosen = slice(None) if one.edge.head is None else slice(one.edge.head, one.edge.head + 1)
                at = torch.tensor(queries, device=mask.device)[:, None], torch.tensor(keys, device=mask.device)[None]
                if queries and keys:
                    mask[row, chosen, at[0], at[1]] += one.beta
                    tokens += len(queries) * (batch.n_rows // rows)
            acted.append(tokens)
        if bool((mask == CUT).all(-1).any()):
            raise EditError("cutting these edges leaves a query with no key to attend to; leave it at least one")
        return mask.to(self.subject.dtype), acted

    def _note(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.subject.note_call(args, kwargs)
        self.forwards += 1


def _holds(one: Bias, step: int | None) -> bool:
    return one.steps is None or step in one.steps


def _handing(masks: EdgeMasks, layer: int) -> Any:
    """A pre-hook that adds this context's mask to the one attention is given."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        mask = masks.mask(layer)
        if mask is None:
            return None
        given = kwargs.get("attention_mask")
        if given is not None and given.dtype == torch.bool:
            given = torch.zeros_like(given, dtype=mask.dtype).masked_fill(~given, CUT)
        return args, {**kwargs, "attention_mask": mask if given is None else given + mask}

    return hook


def _check_backend(subject: ImageGenerator) -> None:
    """Refuse attention that ignores masks.

    Raises:
        SubjectError: naming the backend.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    default = _AttentionBackendRegistry.get_active_backend()[0]
    for name, processor in subject.model.attn_processors.items():  # type: ignore[operator, union-attr]
        backend = getattr(processor, "_attention_backend", None) or default
        written = str(getattr(backend, "value", backend))
        if written not in _TAKE_MASKS:
            raise SubjectError(
                f"{name} computes attention with {written!r}, which refuses masks or makes less of them; call "
                "`pipeline.transformer.set_attention_backend('native')` first"
            )
        if getattr(processor, "_parallel_config", None) is not None:
            raise SubjectError(f"{name} computes attention on several devices at once, which takes no masks")


@contextmanager
def masking(subject: ImageGenerator, biases: Sequence[Bias]) -> Iterator[EdgeMasks]:
    """Bias or cut attention edges of a generator for every forward inside the block.

    Raises:
        SubjectError: attention takes no masks, or blocks may be skipped.
        EditNeverFired: a forward ran and a bias touched nothing.
        EditError: every edge of some query was cut.
    """
    masks = EdgeMasks(subject, list(biases))
    changing = [masks] if biases else []
    subject.attending.append(masks)
    subject.in_force += changing
    handles = masks.attach()
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()
        subject.attending.remove(masks)
        subject.in_force = [one for one in subject.in_force if one not in changing]
    masks.check()
