"""A `Site` is a named place in a model where an activation can be read or replaced.

>>> Site("head_z", layer=9, head=6)
Site('head_z.9.6')
>>> Site.parse("resid_post.12").layer
12

Kinds follow the field's names. Widths: `d_model` for the residual stream and component outputs,
`d_head` for per-head values, `d_mlp` for hidden neurons. `k` and `v` have key/value heads; every
other per-head kind has query heads (under grouped-query attention they differ in number).
"""

from dataclasses import dataclass

from mediant.core.errors import OutOfRange, unknown

SITE_KINDS: dict[str, str] = {
    "embed": "token (and learned position) embeddings entering layer 0",
    "resid_pre": "residual stream entering a layer",
    "resid_mid": "residual stream between attention and MLP",
    "resid_post": "residual stream leaving a layer",
    "attn_in": "normalised input of the attention sublayer",
    "q": "query of a head, before rotary embedding and query norm",
    "k": "key of a key/value head, before rotary embedding and key norm",
    "v": "value of a key/value head",
    "head_z": "attention-weighted values of a query head (d_head)",
    "head_result": "a head's own contribution to the residual stream (d_model)",
    "attn_out": "output of the attention sublayer, all heads summed",
    "mlp_in": "normalised input of the MLP",
    "mlp_post": "hidden neurons of the MLP after the non-linearity",
    "mlp_out": "output of the MLP",
    "final_resid": "residual stream entering the final norm",
}
HEAD_KINDS = frozenset({"q", "k", "v", "head_z", "head_result"})
KEY_VALUE_KINDS = frozenset({"k", "v"})
LAYERLESS_KINDS = frozenset({"embed", "final_resid"})


@dataclass(frozen=True, repr=False)
class Site:
    """A place in a model: kind, layer (from 0) and, for per-head kinds, the head (from 0).

    `head=None` on a per-head kind means all heads together.

    Raises:
        UnknownName: the kind is not one of `SITE_KINDS`.
        OutOfRange: a layer is missing, superfluous or negative; a head is given where none exists.
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in SITE_KINDS:
            raise unknown("site", self.kind, SITE_KINDS)
        if self.kind in LAYERLESS_KINDS and self.layer is not None:
            raise OutOfRange(f"site {self.kind!r} belongs to no layer, got layer={self.layer}")
        if self.kind not in LAYERLESS_KINDS and (self.layer is None or self.layer < 0):
            raise OutOfRange(f"site {self.kind!r} needs layer >= 0, got {self.layer}")
        if self.head is not None and (self.kind not in HEAD_KINDS or self.head < 0):
            raise OutOfRange(
                f"site {self.kind!r} takes no head {self.head}; per-head sites are {sorted(HEAD_KINDS)}, counted from 0"
            )

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read the form that `str(site)` writes: `kind`, `kind.layer` or `kind.layer.head`."""
        kind, *numbers = text.split(".")
        if len(numbers) > 2 or not all(part.isdecimal() and len(part) < 10 for part in numbers):
            raise OutOfRange(f"expected KIND, KIND.LAYER or KIND.LAYER.HEAD, got {text!r}")
        layer, head = [*(int(part) for part in numbers), None, None][:2]
        return cls(kind, layer, head)

    def __lt__(self, other: "Site") -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[str, int, int]:
        # All heads together come before single ones.
        return (self.kind, -1 if self.layer is None else self.layer, -1 if self.head is None else self.head)

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.kind, self.layer, self.head) if part is not None)

    def __repr__(self) -> str:
        return f"Site({str(self)!r})"
