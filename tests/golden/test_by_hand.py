"""Two transformers written out in numpy, straight from their papers, against the hooks: patched by hand is patched by hooks.

Every tensor here is float64. GPT-2 then agrees to 1e-9. The library's Llama norms and rotates in float32 whatever its
weights are, so a float64 Llama agrees to float32 rounding only.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from builders import ioi_pair, prompt, subject
from mediant.core import Site, Span
from mediant.interventions import Activation, Where, record, replay, run, set_to, swap

Array = np.ndarray
Replace = dict[tuple[str, int], tuple[int, int | None, Array]]  # (kind, layer) -> (position, head, new value)
PROMPTS = [ioi_pair().clean, prompt("Tom went to the store and gave Mary", S2="and")]


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of (head, pos, d_head) queries; several query heads may share a key/value head."""
    group, n = len(q) // len(k), q.shape[1]
    z = np.zeros_like(q)
    for h in range(len(q)):
        for i in range(n):
            scores = np.array([q[h, i] @ k[h // group, j] for j in range(i + 1)]) / np.sqrt(q.shape[-1])
            z[h, i] = softmax(scores) @ v[h // group, : i + 1]
    return z


def written(value: Array, kind: str, layer: int, replace: Replace, seen: dict) -> Array:
    """Put the replacement, if any, into (pos, width) or (head, pos, d_head) values, and note the result."""
    if (kind, layer) in replace:
        position, head, new = replace[kind, layer]
        value = value.copy()
        value[(position,) if head is None else (head, position)] = new
    seen[kind, layer] = value
    return value


def blocks(
    x: Array, n_layers: int, attention: Callable, mlp: Callable, project: Callable, replace: Replace
) -> tuple[Array, dict]:
    """The residual stream after all layers, and every value on the way."""
    seen: dict = {}
    for layer in range(n_layers):
        x = written(x, "resid_pre", layer, replace, seen)
        z = written(attention(layer, x), "head_z", layer, replace, seen)
        out = written(project(layer, z), "attn_out", layer, replace, seen)
        x = written(x + out, "resid_mid", layer, replace, seen)
        out = written(mlp(layer, x), "mlp_out", layer, replace, seen)
        x = written(x + out, "resid_post", layer, replace, seen)
    return x, seen


def gpt2(w: dict[str, Array], ids: list[int], replace: Replace, *, heads: int = 4, n_layers: int = 3) -> tuple[Array, dict]:
    """Radford et al. 2019: learned positions, pre-layer-norm blocks, tanh-approximated GELU, tied unembedding."""

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * w[name + ".weight"] + w[name + ".bias"]

    def affine(x: Array, name: str) -> Array:
        return x @ w[name + ".weight"] + w[name + ".bias"]

    def attention(layer: int, x: Array) -> Array:
        qkv = affine(norm(x, f"transformer.h.{layer}.ln_1"), f"transformer.h.{layer}.attn.c_attn")
        return attend(*(part.reshape(len(x), heads, -1).transpose(1, 0, 2) for part in np.split(qkv, 3, -1)))

    def project(layer: int, z: Array) -> Array:
        return affine(z.transpose(1, 0, 2).reshape(z.shape[1], -1), f"transformer.h.{layer}.attn.c_proj")

    def mlp(layer: int, x: Array) -> Array:
        y = affine(norm(x, f"transformer.h.{layer}.ln_2"), f"transformer.h.{layer}.mlp.c_fc")
        y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        return affine(y, f"transformer.h.{layer}.mlp.c_proj")

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][: len(ids)]
    x, seen = blocks(x, n_layers, attention, mlp, project, replace)
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T, seen


def llama(w: dict[str, Array], ids: list[int], replace: Replace, *, heads: int = 4, n_layers: int = 3) -> tuple[Array, dict]:
    """Touvron et al. 2023: RMS norms, rotary positions, grouped queries, SwiGLU."""

    def norm(x: Array, name: str) -> Array:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w[name + ".weight"]

    def rotated(x: Array) -> Array:
        """Su et al. 2021, with the first half of a head's dimensions paired with the second."""
        half = x.shape[-1] // 2
        angle = np.arange(x.shape[1])[:, None] * 10000.0 ** (-np.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)

    def attention(layer: int, x: Array) -> Array:
        y, at = norm(x, f"model.layers.{layer}.input_layernorm"), f"model.layers.{layer}.self_attn."
        q, k, v = ((y @ w[f"{at}{p}_proj.weight"].T).reshape(len(x), -1, 32 // heads).transpose(1, 0, 2) for p in "qkv")
        return attend(rotated(q), rotated(k), v)

    def project(layer: int, z: Array) -> Array:
        return z.transpose(1, 0, 2).reshape(z.shape[1], -1) @ w[f"model.layers.{layer}.self_attn.o_proj.weight"].T

    def mlp(layer: int, x: Array) -> Array:
        y, at = norm(x, f"model.layers.{layer}.post_attention_layernorm"), f"model.layers.{layer}.mlp."
        gate = y @ w[at + "gate_proj.weight"].T
        return (gate / (1 + np.exp(-gate)) * (y @ w[at + "up_proj.weight"].T)) @ w[at + "down_proj.weight"].T

    x, seen = blocks(w["model.embed_tokens.weight"][ids], n_layers, attention, mlp, project, replace)
    return norm(x, "model.norm") @ w["lm_head.weight"].T, seen


BY_HAND = {"gpt2": (gpt2, 1e-9), "llama": (llama, 5e-6)}
models = pytest.mark.parametrize("name", list(BY_HAND))


def weights(name: str) -> dict[str, Array]:
    return {k: v.double().numpy() for k, v in subject(name, dtype=torch.float64).model.state_dict().items()}


def differs(expected: Array, got: torch.Tensor) -> float:
    return float(np.abs(expected - got.detach().numpy()).max() / max(1.0, np.abs(expected).max()))


@models
def test_the_untouched_forward_and_every_captured_value_equal_the_computation_by_hand(name):
    forward, tolerance = BY_HAND[name]
    lm = subject(name, dtype=torch.float64)
    batch = lm.encode(PROMPTS)
    kinds = ["resid_pre", "resid_mid", "resid_post", "head_z", "attn_out", "mlp_out"]
    places = [(Site(k, layer), Span("all")) for k in kinds for layer in range(3)]
    out = run(lm, batch, capture=places, keep=batch.n_cols)
    for row in range(2):
        logits, seen = forward(weights(name), batch.tokens_of(row), {})
        assert differs(logits, out.logits[row][batch.mask[row]]) < tolerance
        for site, span in places:
            found = out.captured[site, span]
            value = seen[site.kind, site.layer]
            value = value.transpose(1, 0, 2) if site.kind == "head_z" else value
            assert differs(value, found.values[found.rows == row]) < tolerance, str(site)


PATCHES = [
    "head_z.0.0 4", "head_z.0.3 0", "head_z.1.1 6", "head_z.1.2 2", "head_z.2.0 7", "head_z.2.3 7", "resid_pre.1 2",
    "resid_mid.0 5", "resid_mid.2 7", "attn_out.1 0", "mlp_out.0 3", "mlp_out.2 7", "resid_post.1 6", "resid_post.2 7",
]  # fmt: skip


@models
@pytest.mark.parametrize("patch", PATCHES)
def test_a_value_patched_by_hand_equals_the_value_patched_by_hooks(name, patch):
    site, position = Site.parse(patch.split()[0]), int(patch.split()[1])
    forward, tolerance = BY_HAND[name]
    lm = subject(name, dtype=torch.float64)
    batch = lm.encode(PROMPTS)
    ids = batch.tokens_of(1)
    new = np.random.default_rng(5).normal(size=32 if site.head is None else 8) * 2
    expected, _ = forward(weights(name), ids, {(site.kind, site.layer): (position, site.head, new)})
    untouched, _ = forward(weights(name), ids, {})
    assert np.abs(expected[position:] - untouched[position:]).max() > 1e-3
    assert np.array_equal(expected[:position], untouched[:position])

    span, where = Span.index(position), Where(rows=(1,))
    source = Activation(torch.from_numpy(new)[None], torch.tensor([1]), torch.tensor([batch.start[1] + position]))
    recording = record(lm, batch, keep=3)
    for edit in (set_to(site, span, torch.from_numpy(new), where), swap(site, span, source, where)):
        out = run(lm, batch, [edit], keep=batch.n_cols)
        assert differs(expected, out.logits[1][batch.mask[1]]) < tolerance
        assert differs(expected[-3:], replay(recording, [edit], keep=3).logits[1]) < tolerance
        other, _ = forward(weights(name), batch.tokens_of(0), {})
        assert differs(other, out.logits[0][batch.mask[0]]) < tolerance


@models
def test_two_heads_and_an_mlp_patched_together_equal_the_computation_by_hand(name):
    forward, tolerance = BY_HAND[name]
    lm = subject(name, dtype=torch.float64)
    batch = lm.encode(PROMPTS)
    draw = np.random.default_rng(6)
    a, b, c = draw.normal(size=8), draw.normal(size=8), draw.normal(size=32)
    expected, _ = forward(
        weights(name), batch.tokens_of(0), {("head_z", 0): (3, 2, a), ("head_z", 2): (13, 1, b), ("mlp_out", 1): (9, None, c)}
    )
    edits = [
        set_to(site, Span.index(at), torch.from_numpy(v), Where(rows=(0,)))
        for site, at, v in (("head_z.0.2", 3, a), ("head_z.2.1", 13, b), ("mlp_out.1", 9, c))
    ]
    assert differs(expected[-1], run(lm, batch, edits).last[0]) < tolerance
    assert differs(expected[-1], replay(record(lm, batch), edits).last[0]) < tolerance
