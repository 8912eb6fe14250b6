"""A `Tap` knows how one kind of site is read from, and written to, the tensors a module passes on.

Most sites are a tensor a module receives or returns. Two are not handed over by any module and are
reached through one that is: `resid_mid` (residual + attention output) and `head_result` (a head's share
of the output projection) are edited by adding the *change* to the attention output, so an unchanged value
leaves every bit as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mediant.core.site import Site
from mediant.subject import Subject
from mediant.subject.families import Family
from mediant.subject.families.two_streams import StreamPlace
from mediant.subject.open_model import OpenModel


class Tokens:
    """Tokens of one tensor that passes: rows, columns counted from its first one, and places counted through all rows.

    `whole` says that they are all its tokens in their order, so that nothing needs to be picked out or put back.
    """

    def __init__(self, rows: Int[Tensor, " n"], cols: Int[Tensor, " n"], raw: Float[Tensor, "batch pos width"]) -> None:
        # Decided where the indices are, which is not on a GPU: asking one would wait for it.
        places, n = rows * raw.shape[1] + cols, raw.shape[0] * raw.shape[1]
        self.whole = len(places) == n and torch.equal(places, torch.arange(n, device=places.device))
        self.rows, self.cols, self.places = rows.to(raw.device), cols.to(raw.device), places.to(raw.device)

    def of(self, raw: Float[Tensor, "batch pos width"]) -> Float[Tensor, "n width"]:
        """The tokens' values: a view if they are all there are, else a copy (four times as fast as two indices in brackets)."""
        flat = raw.flatten(0, 1)
        return flat if self.whole else flat.index_select(0, self.places)

    def put(self, raw: Float[Tensor, "batch pos width"], values: Float[Tensor, "n width"]) -> Float[Tensor, "batch pos width"]:
        """`raw` with other values at the tokens; `raw` itself is left as it is."""
        values = values.to(raw.dtype)
        return (values if self.whole else raw.flatten(0, 1).index_copy(0, self.places, values)).reshape(raw.shape)


@dataclass(frozen=True, eq=False)
class Tap:
    """Where a site's tensor passes by.

    Attributes:
        side: whether it is the module's input or its output.
        heads: number of heads the last dimension splits into; 0 when it is not per head.
        part: for fused projections, which slice of the last dimension belongs to the site; where heads take turns, `slot`
            says which third of each head's outputs.
        partner: for derived sites, a module whose input must be remembered.
        derive: turns (remembered input at the tokens, output at the tokens) into the site's value.
        keeps_changes: whether what was written before must be added to what `derive` gives, because the output does not
            tell it apart from other parts.
        stream: which columns pass here, where text and image have modules of their own; see `Window.part`.
        keyword: the argument it is, for inputs given by name.
        member: which of several outputs it is.
    """

    module: nn.Module
    side: Literal["input", "output"]
    heads: int = 0
    part: tuple[int, int] | None = None
    slot: int | None = None
    partner: nn.Module | None = None
    derive: Callable[[Tensor, Tensor], Tensor] | None = None
    keeps_changes: bool = False
    stream: Literal["", "text", "image"] = ""
    keyword: str = "hidden_states"
    member: int = 0

    def gather(self, raw: Float[Tensor, "batch pos width"], at: Tokens, head: int | None, memory: Tensor | None) -> Tensor:
        """The site's values at some tokens, shape (n, d) or (n, head, d); a view of `raw` where nothing must be picked out."""
        if self.derive is not None:
            assert memory is not None  # noqa: S101 - the partner's hook runs before this module's
            return self.derive(at.of(memory), at.of(raw))
        found = at.of(raw) if self.part is None else at.of(raw)[..., slice(*self.part)]
        if not self.heads:
            return found
        split = found.unflatten(-1, (self.heads, -1))
        if self.slot is not None:
            split = split.unflatten(-1, (3, -1))[..., self.slot, :]
        chosen: Tensor = split if head is None else split[:, head]
        return chosen

    def scatter(
        self, raw: Float[Tensor, "batch pos width"], at: Tokens, head: int | None, old: Tensor, new: Tensor, memory: Tensor | None
    ) -> Tensor:
        """What passes instead of `raw` where the site's values at some tokens are `new` instead of `old`."""
        if self.keeps_changes:
            change = new - old
            return at.put(raw, at.of(raw) + (change.sum(1) if change.ndim == 3 else change))
        if memory is not None:
            # The model adds the residual back: the difference to it gives the new value, to the last bit where it is zero.
            return at.put(raw, torch.where(new == old, at.of(raw) + (new - old), new - at.of(memory)))
        return at.put(raw, self._filled(at.of(raw), head, new) if self.heads or self.part else new)

    def _filled(self, full: Float[Tensor, "n width"], head: int | None, new: Tensor) -> Float[Tensor, "n width"]:
        """A copy of whole values in which the site's part is new."""
        place = slice(*(self.part or (None,)))
        part = full[..., place]
        if self.slot is not None:
            thirds = part.unflatten(-1, (self.heads, 3, -1)).clone()
            thirds[:, slice(None) if head is None else head, self.slot] = new
            part = thirds.flatten(-3)
        elif head is None:
            part = new.flatten(-2) if self.heads else new
        else:
            split = part.unflatten(-1, (self.heads, -1)).clone()
            split[:, head] = new
            part = split.flatten(-2)
        if self.part is None:
            return part
        result = full.clone()
        result[..., place] = part
        return result


def taps(model: OpenModel, site: Site) -> tuple[Tap, ...]:
    """How to reach `site` in a model: one tap, or one for each stream where text and image have modules of their own.

    Raises:
        SubjectError, OutOfRange: the model does not have the site.
    """
    if isinstance(model, Subject):
        return (tap(model, site),)
    model.validate(site)
    return tuple(_found(model, place) for place in model.family.places(site, model.shape))


def _found(model: OpenModel, place: StreamPlace) -> Tap:
    module = model.model.get_submodule(place.module)
    return Tap(
        module, place.side, heads=place.heads, part=place.part, stream=place.stream, keyword=place.keyword, member=place.member
    )


def tap(subject: Subject, site: Site) -> Tap:
    """How to reach `site` in a language model.

    Raises:
        SubjectError, OutOfRange: the subject does not have the site.
    """
    subject.validate(site)
    family, model = subject.family, subject.model
    if site.kind == "embed":
        return Tap(subject.base.get_submodule(family.embed), "output")
    if site.kind == "final_resid" or (site.kind == "resid_post" and site.layer == subject.shape.n_layers - 1):
        return Tap(family.final_norm_of(model), "input")
    layer = site.layer
    assert layer is not None  # noqa: S101 - `validate` refused layerless use
    if site.kind in ("resid_pre", "resid_post"):
        return Tap(subject.layers[layer + (site.kind == "resid_post")], "input")
    if site.kind in ("q", "k", "v"):
        return _projection(subject, site.kind, family.attn_of(model, layer))
    if site.kind == "head_result":
        project = family.out_proj_of(model, layer)
        return Tap(project, "output", partner=project, derive=_head_result(subject, project, site.head), keeps_changes=True)
    if site.kind == "resid_mid":
        return Tap(family.attn_writer_of(model, layer), "output", partner=family.attn_norm_of(model, layer), derive=torch.add)
    if site.kind == "head_z":
        return Tap(family.out_proj_of(model, layer), "input", heads=subject.shape.n_heads)
    if site.kind == "mlp_post":
        return Tap(family.mlp_of(model, layer).get_submodule(family.mlp_down), "input")
    find, side = _WHOLE[site.kind]
    return Tap(find(family, model, layer), side)


# Sites that are a sublayer's whole input or output.
_WHOLE: dict[str, tuple[Callable[[Family, nn.Module, int], nn.Module], Literal["input", "output"]]] = {
    "attn_in": (Family.attn_of, "input"),
    "attn_out": (Family.attn_writer_of, "output"),
    "mlp_in": (Family.mlp_of, "input"),
    "mlp_out": (Family.mlp_writer_of, "output"),
}


def _projection(subject: Subject, kind: str, attn: nn.Module) -> Tap:
    shape, names = subject.shape, subject.family.qkv
    heads = shape.n_heads if kind == "q" else shape.n_kv_heads
    which = "qkv".index(kind)
    if len(names) == 3:
        return Tap(attn.get_submodule(names[which]), "output", heads=heads)
    if subject.family.fused == "by head":
        return Tap(attn.get_submodule(names[0]), "output", heads=heads, slot=which)
    widths = [shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head, shape.n_kv_heads * shape.d_head]
    start = sum(widths[:which])
    return Tap(attn.get_submodule(names[0]), "output", heads=heads, part=(start, start + widths[which]))


def head_weight(subject: Subject, layer: int) -> Float[Tensor, "head d_model d_head"]:
    """Output-projection weights split by head."""
    project = subject.family.out_proj_of(subject.model, layer)
    return split_weight(project, subject.shape.n_heads)


def split_weight(project: nn.Module, n_heads: int) -> Float[Tensor, "head out in"]:
    """A linear map's weights, its inputs divided among heads."""
    weight: Tensor = project.weight  # type: ignore[assignment]
    # GPT-2's Conv1D stores (in, out), Linear stores (out, in).
    matrix = weight if isinstance(project, nn.Linear) else weight.mT
    heads: Tensor = matrix.unflatten(1, (n_heads, -1)).transpose(0, 1)
    return heads


def _head_result(subject: Subject, project: nn.Module, head: int | None) -> Callable[[Tensor, Tensor], Tensor]:
    n_heads = subject.shape.n_heads

    def derive(z: Tensor, _: Tensor) -> Tensor:
        split, weight = z.unflatten(-1, (n_heads, -1)), split_weight(project, n_heads)
        if head is not None:
            return F.linear(split[:, head], weight[head])
        return torch.einsum("nhe,hde->nhd", split, weight)

    return derive


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any], keyword: str = "hidden_states") -> Tensor:
    """The hidden states among a module call's arguments, however they were passed."""
    found = kwargs[keyword] if keyword in kwargs else args[0]
    assert isinstance(found, Tensor)  # noqa: S101 - families name only modules called with hidden states
    return found


def with_first_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], new: Tensor, keyword: str = "hidden_states"
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with other hidden states."""
    if keyword in kwargs:
        return args, {**kwargs, keyword: new}
    return (new, *args[1:]), kwargs
