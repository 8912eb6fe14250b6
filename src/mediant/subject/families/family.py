"""A `Family` says where a model class keeps its layers, heads and sublayers: data, not code.

Every family is one small file next to this one. A new one needs the dotted paths below and nothing
else, as long as its blocks are `x + attn(norm(x))` then `x + mlp(norm(x))`; the self-check at load
(`check`) compares every claim with the model that was actually loaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from mediant.core.errors import OutOfRange, SubjectError
from mediant.core.site import HEAD_KINDS, KEY_VALUE_KINDS, LAYERLESS_KINDS, Site
from mediant.subject.families.sight import Sight


@dataclass(frozen=True)
class Shape:
    """Sizes of a subject. Query heads number `n_heads`, key/value heads `n_kv_heads`.

    `parallel` says that attention and MLP of a block read the same stream; `n_double` how many blocks have text and image apart.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    n_vocab: int
    parallel: bool = False
    n_double: int = 0

    @property
    def group(self) -> int:
        """Query heads per key/value head: query head `h` reads key/value head `h // group`."""
        return self.n_heads // self.n_kv_heads


@dataclass(frozen=True)
class Family:
    """Dotted paths of one architecture family.

    `base`, `layers`, `embed`, `final_norm` start at the model or its base; the others at a layer, an
    attention module or an MLP. `qkv` is three projection names, or one for a fused projection.

    Attributes:
        attn_norm, mlp_norm: the norms a sublayer reads the stream through; empty where it reads the bare stream.
        attn_post_norm, mlp_post_norm: norms between a sublayer's output and the stream; empty where there are none. What
            a sublayer adds to the stream is then the norm's output, and its heads' shares depend on one another.
        fused: how a single q/k/v projection orders its outputs: all of q, then k, then v; or head by head.
        parallel: name of the config's switch for blocks whose MLP reads the same stream as their attention.
        joint_key_norm: whether keys of all key/value heads are normed together.
        coupled: what couples parts that circuits take apart, said in every result; empty where nothing does.
        cannot: site kind -> why this family cannot address it; asking for it raises that reason.
        entry: the module that is given token ids, where that is not the one that loops over the layers.
        sight: how images become tokens; None for models of text alone.
        own_positions: whether the model numbers the tokens itself, in several dimensions.
    """

    name: str
    model_types: tuple[str, ...]
    base: str
    layers: str
    embed: str
    final_norm: str
    unembed: str
    attn_norm: str
    attn: str
    qkv: tuple[str, ...]
    out_proj: str
    mlp: str
    mlp_down: str
    cannot: Mapping[str, str] = field(default_factory=dict)
    mlp_norm: str = ""
    attn_post_norm: str = ""
    mlp_post_norm: str = ""
    fused: Literal["by part", "by head"] = "by part"
    parallel: str = ""
    joint_key_norm: bool = False
    coupled: str = ""
    entry: str = ""
    sight: Sight | None = None
    own_positions: bool = False

    def entry_of(self, model: nn.Module) -> nn.Module:
        """The module that is given token ids."""
        return model.get_submodule(self.entry or self.base)

    def base_of(self, model: nn.Module) -> nn.Module:
        """The module whose forward loops over the layers."""
        return model.get_submodule(self.base)

    def layers_of(self, model: nn.Module) -> list[nn.Module]:
        """The transformer blocks in order."""
        return list(self.base_of(model).get_submodule(self.layers).children())

    def attn_of(self, model: nn.Module, layer: int) -> nn.Module:
        """Attention module of a layer."""
        return self.layers_of(model)[layer].get_submodule(self.attn)

    def attn_norm_of(self, model: nn.Module, layer: int) -> nn.Module:
        """Norm before attention, or the layer itself: given the residual stream as it enters the layer, after every hook."""
        return self.layers_of(model)[layer].get_submodule(self.attn_norm)

    def attn_writer_of(self, model: nn.Module, layer: int) -> nn.Module:
        """The module whose output attention adds to the stream."""
        return self.layers_of(model)[layer].get_submodule(self.attn_post_norm or self.attn)

    def mlp_writer_of(self, model: nn.Module, layer: int) -> nn.Module:
        """The module whose output the MLP adds to the stream."""
        return self.layers_of(model)[layer].get_submodule(self.mlp_post_norm or self.mlp)

    def out_proj_of(self, model: nn.Module, layer: int) -> nn.Module:
        """Projection that turns concatenated head values into the attention output."""
        return self.attn_of(model, layer).get_submodule(self.out_proj)

    def mlp_of(self, model: nn.Module, layer: int) -> nn.Module:
        """MLP of a layer."""
        return self.layers_of(model)[layer].get_submodule(self.mlp)

    def final_norm_of(self, model: nn.Module) -> nn.Module:
        """Norm before the unembedding."""
        return self.base_of(model).get_submodule(self.final_norm)

    def unembed_of(self, model: nn.Module) -> nn.Module:
        """Linear map from the normed residual stream to logits."""
        return model.get_submodule(self.unembed)

    def validate(self, site: Site, shape: Shape) -> None:
        """Refuse a site this subject does not have.

        Raises:
            SubjectError: the family cannot address this kind, with the reason.
            OutOfRange: layer or head beyond the model's.
        """
        if site.kind in self.cannot:
            raise SubjectError(f"family {self.name} cannot address {site.kind!r}: {self.cannot[site.kind]}")
        if site.kind == "resid_mid" and shape.parallel:
            raise SubjectError("attention and MLP of this model read the same stream; there is none between them")
        if site.kind not in LAYERLESS_KINDS and (site.layer is None or site.layer >= shape.n_layers):
            raise OutOfRange(
                f"layer {site.layer} of {str(site)!r} does not exist: this model has layers 0 to {shape.n_layers - 1}"
            )
        heads = shape.n_kv_heads if site.kind in KEY_VALUE_KINDS else shape.n_heads
        if site.kind in HEAD_KINDS and site.head is not None and site.head >= heads:
            what = "key/value heads" if site.kind in KEY_VALUE_KINDS else "query heads"
            raise OutOfRange(f"head {site.head} of {str(site)!r} does not exist: this model has {what} 0 to {heads - 1}")


def check(family: Family, model: nn.Module, shape: Shape) -> None:
    """Compare a family's claims with a loaded model.

    Raises:
        SubjectError: naming the path or size that does not hold.
    """
    try:
        layers = family.layers_of(model)
        for layer in range(len(layers)):
            family.out_proj_of(model, layer)
            family.attn_norm_of(model, layer)
            layers[layer].get_submodule(family.mlp_norm)
            family.attn_writer_of(model, layer)
            family.mlp_writer_of(model, layer)
            family.mlp_of(model, layer).get_submodule(family.mlp_down)
            for name in family.qkv:
                family.attn_of(model, layer).get_submodule(name)
        family.final_norm_of(model)
        unembed = family.unembed_of(model)
        family.base_of(model).get_submodule(family.embed)
    except AttributeError as error:
        raise SubjectError(f"{type(model).__name__} is not laid out as family {family.name} expects: {error}") from error
    if len(layers) != shape.n_layers:
        raise SubjectError(f"config names {shape.n_layers} layers, the model has {len(layers)}")
    expected = (shape.n_heads + 2 * shape.n_kv_heads) * shape.d_head
    for layer in range(len(layers)):
        modules = [family.attn_of(model, layer).get_submodule(name) for name in family.qkv]
        weights = [w for m in modules if isinstance(w := getattr(m, "weight", None), Tensor) and w.is_floating_point()]
        found = sum(w.numel() // shape.d_model for w in weights)
        if len(weights) == len(modules) and found != expected:
            raise SubjectError(
                f"layer {layer} projects to {found} numbers per token, but {shape.n_heads} query heads and {shape.n_kv_heads} "
                f"key/value heads of {shape.d_head} make {expected}"
            )
    if shape.n_heads % shape.n_kv_heads:
        raise SubjectError(f"{shape.n_heads} query heads do not divide into {shape.n_kv_heads} key/value heads")
    weight = unembed.weight
    if not isinstance(weight, Tensor):
        raise SubjectError(f"the unembedding is a {type(unembed).__name__} without a weight")
    if tuple(weight.shape) != (shape.n_vocab, shape.d_model):
        raise SubjectError(f"unembedding has shape {tuple(weight.shape)}, expected {(shape.n_vocab, shape.d_model)}")
