"""A `TwoStreamFamily` says where a diffusion transformer keeps its parts, when text and image attend in one sequence.

Its first blocks are double: text and image have weights of their own and meet in attention. The later ones are single: one
sequence, one set of weights, and an MLP beside attention whose outputs one projection adds up. Columns of the joint sequence are
text, then the picture being made, then reference images.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mediant.core.errors import OutOfRange, SubjectError
from mediant.core.site import HEAD_KINDS, LAYERLESS_KINDS, Site
from mediant.subject.families.family import Shape

Stream = Literal["", "text", "image"]


@dataclass(frozen=True)
class StreamPlace:
    """Where a stream of a site passes by: a module by its dotted path, and which of its inputs or outputs."""

    module: str
    side: Literal["input", "output"]
    stream: Stream = ""
    heads: int = 0
    part: tuple[int, int] | None = None
    keyword: str = "hidden_states"
    member: int = 0


@dataclass(frozen=True)
class TwoStreamFamily:
    """Dotted paths of one family; pairs are (text, image).

    Attributes:
        pipelines: the library's pipelines around such a transformer that are supported.
        refuses: pipelines that cannot be, and why.
        double, single: lists of blocks.
        embed: what turns text embeddings and latents into the stream.
        final: the norm after the last block, which image columns alone reach.
        attn: attention inside a block; what follows is inside it. `to_q`, `to_k`, `to_v` are per stream in double blocks,
            and one projection with the MLP's input in single ones (`fused`).
        out: projections of concatenated heads; in single blocks the MLP's hidden neurons follow the heads.
        mlp: MLPs inside a double block, and `mlp_down` inside those.
        cannot: site kind -> why it cannot be addressed; `cannot_single` in single blocks.
    """

    name: str
    transformers: tuple[str, ...]
    pipelines: tuple[str, ...]
    refuses: Mapping[str, str]
    double: str
    single: str
    embed: tuple[str, str]
    final: str
    attn: str
    q: tuple[str, str]
    k: tuple[str, str]
    v: tuple[str, str]
    fused: str
    out: tuple[str, str]
    single_out: str
    mlp: tuple[str, str]
    mlp_down: str
    inputs: tuple[str, str] = ("encoder_hidden_states", "hidden_states")
    cannot: Mapping[str, str] = field(default_factory=dict)
    cannot_single: Mapping[str, str] = field(default_factory=dict)

    def validate(self, site: Site, shape: Shape) -> None:
        """Refuse a site this model does not have.

        Raises:
            SubjectError: the family cannot address this kind, with the reason.
            OutOfRange: layer or head beyond the model's.
        """
        if site.kind in self.cannot:
            raise SubjectError(f"family {self.name} cannot address {site.kind!r}: {self.cannot[site.kind]}")
        if site.kind in LAYERLESS_KINDS:
            return
        if site.layer is None or site.layer >= shape.n_layers:
            raise OutOfRange(
                f"layer {site.layer} of {str(site)!r} does not exist: this model has blocks 0 to {shape.n_layers - 1}, "
                f"of which {shape.n_double} are double"
            )
        if site.layer >= shape.n_double and site.kind in self.cannot_single:
            raise SubjectError(f"single blocks of family {self.name} have no {site.kind!r}: {self.cannot_single[site.kind]}")
        if site.kind in HEAD_KINDS and site.head is not None and site.head >= shape.n_heads:
            raise OutOfRange(f"head {site.head} of {str(site)!r} does not exist: this model has heads 0 to {shape.n_heads - 1}")

    def block(self, layer: int, shape: Shape) -> str:
        """Path of a block."""
        return f"{self.double}.{layer}" if layer < shape.n_double else f"{self.single}.{layer - shape.n_double}"

    def attention(self, layer: int, shape: Shape) -> str:
        """Path of a block's attention."""
        return f"{self.block(layer, shape)}.{self.attn}"

    def places(self, site: Site, shape: Shape) -> tuple[StreamPlace, ...]:
        """Where a site passes by, stream by stream."""
        if site.kind == "embed":
            return _both(self.embed, "output")
        if site.kind == "final_resid":
            return (StreamPlace(self.final, "input", "image"),)
        assert site.layer is not None  # noqa: S101 - `validate` refused layerless use
        block = self.block(site.layer, shape)
        if site.layer >= shape.n_double:
            return self._of_single(site.kind, block, shape)
        return self._of_double(site.kind, block, shape)

    def _of_double(self, kind: str, block: str, shape: Shape) -> tuple[StreamPlace, ...]:
        attn = f"{block}.{self.attn}"
        text, image = self.inputs
        if kind in ("q", "k", "v"):
            return _both(tuple(f"{attn}.{name}" for name in getattr(self, kind)), "output", heads=shape.n_heads)
        if kind == "resid_post":
            return StreamPlace(block, "output", "text", member=0), StreamPlace(block, "output", "image", member=1)
        if kind in ("resid_pre", "attn_in"):
            module = block if kind == "resid_pre" else attn
            return StreamPlace(module, "input", "text", keyword=text), StreamPlace(module, "input", "image", keyword=image)
        if kind == "attn_out":
            # The attention module gives them the other way round.
            return StreamPlace(attn, "output", "text", member=1), StreamPlace(attn, "output", "image", member=0)
        if kind == "head_z":
            return _both(tuple(f"{attn}.{name}" for name in self.out), "input", heads=shape.n_heads)
        mlp = tuple(f"{block}.{name}" for name in self.mlp)
        if kind == "mlp_post":
            return _both(tuple(f"{name}.{self.mlp_down}" for name in mlp), "input")
        return _both(mlp, "input" if kind == "mlp_in" else "output")

    def _of_single(self, kind: str, block: str, shape: Shape) -> tuple[StreamPlace, ...]:
        attn, width = f"{block}.{self.attn}", shape.n_heads * shape.d_head
        if kind in ("q", "k", "v"):
            first = "qkv".index(kind) * width
            return (StreamPlace(f"{attn}.{self.fused}", "output", heads=shape.n_heads, part=(first, first + width)),)
        if kind == "head_z":
            return (StreamPlace(f"{attn}.{self.single_out}", "input", heads=shape.n_heads, part=(0, width)),)
        if kind == "mlp_post":
            return (StreamPlace(f"{attn}.{self.single_out}", "input", part=(width, width + shape.d_mlp)),)
        if kind == "attn_in":
            return (StreamPlace(attn, "input"),)
        return (StreamPlace(block, "input" if kind == "resid_pre" else "output"),)


def _both(modules: tuple[str, ...], side: Literal["input", "output"], *, heads: int = 0) -> tuple[StreamPlace, ...]:
    text, image = modules
    return StreamPlace(text, side, "text", heads), StreamPlace(image, side, "image", heads)
