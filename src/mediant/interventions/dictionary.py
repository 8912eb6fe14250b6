"""Sparse dictionaries as a basis: features of an autoencoder that SAELens saved, with its error kept.

    sae = load_dictionary("gemma-scope/layer_12")             # cfg.json and sae_weights.safetensors
    lm.encode(...); edits.scale(sae.site, "S2", 0.0, Where(features=sae, index=(4071,)))      # ablate one feature

What the dictionary does not reconstruct stays in the activation (`interventions.features`), so unchanged features change nothing.

A feature is active by one of four rules (SAELens 6): `standard`, a rectified pre-activation; `jumprelu`, which also has to
exceed a threshold of its own (Rajamanoharan et al. 2024, arXiv 2407.14435); `topk`, among the k largest of its token (Gao et al.
2024, 2406.04093); `gated`, where a second bias decides (Rajamanoharan et al. 2024, 2404.16014).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mediant.core.errors import SubjectError, unknown
from mediant.core.site import Site

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
RULES = ("standard", "jumprelu", "topk", "gated")
# TransformerLens's name for a place -> ours.
HOOKS = {
    "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "hook_resid_post": "resid_post", "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out", "mlp.hook_post": "mlp_post",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class SparseDictionary:
    """An autoencoder with many features, of which few are active.

    Attributes:
        bias: per feature; of a gated dictionary, that of its magnitudes.
        shifted: the decoder's bias is taken from activations before they are encoded.
        rule: when a feature is active, see above.
        threshold: of `jumprelu`; of `gated`, the bias of its gates.
        gain: of `gated`: what its encoder is multiplied by for magnitudes.
        k: of `topk`.
        normed: pre-activations are multiplied by the norms of the decoder's rows, and features divided by them.
        centred: activations have their mean taken off first, as TransformerLens's centred weights would.
        site: where it was trained, if its configuration says.
    """

    encoder: Float[Tensor, "d k"]
    decoder: Float[Tensor, "k d"]
    bias: Float[Tensor, " k"]
    offset: Float[Tensor, " d"]
    shifted: bool = True
    rule: str = "standard"
    threshold: Float[Tensor, " k"] | None = None
    gain: Float[Tensor, " k"] | None = None
    k: int = 0
    normed: bool = False
    centred: bool = False
    site: Site | None = None

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise unknown("rule of a dictionary", self.rule, RULES)

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.encoder.shape[1]

    def encode(self, h: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """Features, most of them 0; computed in the dictionary's own precision."""
        x = h.to(self.encoder)
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        x = x - self.offset if self.shifted else x
        raw = x @ self.encoder
        if self.rule == "gated":
            assert self.gain is not None and self.threshold is not None  # noqa: PT018, S101 - such a dictionary has both
            return ((raw * self.gain + self.bias).relu() * (raw + self.threshold > 0)).to(h)
        raw = raw + self.bias
        raw = raw * self._norms if self.normed else raw
        active = raw.relu()
        if self.rule == "jumprelu":
            assert self.threshold is not None  # noqa: S101 - such a dictionary has one
            active = active * (raw > self.threshold.relu())
        if self.rule == "topk":
            values, places = active.topk(self.k, dim=-1)
            active = torch.zeros_like(active).scatter(-1, places, values)
        return active.to(h)

    def decode(self, f: Float[Tensor, "n k"]) -> Float[Tensor, "n d"]:
        """What the features account for."""
        given = f.to(self.decoder)
        given = given / self._norms if self.normed else given
        return (given @ self.decoder + self.offset).to(f)

    @property
    def _norms(self) -> Float[Tensor, " k"]:
        found: Tensor = self.decoder.norm(dim=-1)
        return found


def load_dictionary(folder: Path | str, *, centred: bool = False) -> SparseDictionary:
    """Read a dictionary in SAELens' format.

    Args:
        centred: it was trained on TransformerLens's centred weights (its default for models with LayerNorm, such as GPT-2).

    Raises:
        SubjectError: no dictionary there, weights that do not fit each other, or an input that is normalised token by token.
        UnknownName: an architecture that is not one of these four.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    place = Path(folder)
    try:
        config: dict[str, Any] = json.loads((place / CONFIG).read_text(encoding="utf-8"))
        weights = load_file(place / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise SubjectError(f"{place} holds no dictionary in SAELens' format ({CONFIG} and {WEIGHTS}): {error}") from error
    normalised = config.get("normalize_activations") or "none"
    if normalised in ("layer_norm", "constant_norm_rescale"):
        raise SubjectError(
            f"{place} normalises every token by itself ({normalised}); an edit of its features is no edit of the site's"
        )
    if (config.get("reshape_activations") or "none") != "none":
        raise SubjectError(f"{place} lays heads side by side ({config['reshape_activations']}), which is not supported")
    return _made(place, config, weights, centred)


def _made(place: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor], centred: bool) -> SparseDictionary:
    rule, k = _rule(config)
    needed = ["W_enc", "W_dec", "b_dec", *(["b_gate", "r_mag", "b_mag"] if rule == "gated" else ["b_enc"])]
    missing = [name for name in needed if name not in weights]
    if missing:
        raise SubjectError(f"{place / WEIGHTS} lacks {', '.join(missing)}, which a {rule} dictionary has")
    d, n = weights["W_enc"].shape
    wrong = {name: tuple(weights[name].shape) for name in needed if weights[name].shape != _shape(name, d, n)}
    if wrong:
        raise SubjectError(f"{place / WEIGHTS} encodes {d} numbers as {n} features, which {wrong} do not fit")
    threshold = weights.get("threshold")
    if rule == "jumprelu" and threshold is None:
        if "log_threshold" not in weights:
            raise SubjectError(f"{place / WEIGHTS} lacks threshold, which a jumprelu dictionary has")
        threshold = weights["log_threshold"].exp()
    return SparseDictionary(
        weights["W_enc"], weights["W_dec"], weights["b_mag" if rule == "gated" else "b_enc"], weights["b_dec"],
        shifted=bool(config.get("apply_b_dec_to_input", True)), rule=rule,
        threshold=weights["b_gate"] if rule == "gated" else threshold,
        gain=weights["r_mag"].exp() if rule == "gated" else None, k=k,
        normed=bool(config.get("rescale_acts_by_decoder_norm", False)), centred=centred, site=_site(config),
    )  # fmt: skip


def _shape(name: str, d: int, n: int) -> tuple[int, ...]:
    return {"W_enc": (d, n), "W_dec": (n, d), "b_dec": (d,)}.get(name, (n,))


def _rule(config: Mapping[str, Any]) -> tuple[str, int]:
    """Architecture and k; older files name the activation instead."""
    rule = str(config.get("architecture") or "standard")
    given = config.get("activation_fn_kwargs") or {}
    if rule == "standard" and (config.get("activation_fn_str") or config.get("activation_fn")) == "topk":
        rule = "topk"
    if rule not in RULES:
        raise unknown("architecture of a dictionary", rule, RULES)
    return rule, int(config.get("k") or given.get("k") or 0)


def _site(config: Mapping[str, Any]) -> Site | None:
    hook = (config.get("metadata") or {}).get("hook_name") or config.get("hook_name") or ""
    parts = hook.split(".", 2)
    if len(parts) != 3 or parts[0] != "blocks" or parts[2] not in HOOKS:
        return None
    return Site(HOOKS[parts[2]], int(parts[1]))
