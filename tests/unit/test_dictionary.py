"""Sparse dictionaries: each rule by its formula in another form, files as SAELens writes them, errors kept, nonsense refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import builders
from mediant.core.errors import SubjectError, UnknownName
from mediant.core.site import Site
from mediant.interventions import edits
from mediant.interventions.dictionary import SparseDictionary, load_dictionary
from mediant.interventions.edits import Where
from mediant.interventions.execute import run

D, K = 32, 80
HOOK = {"metadata": {"hook_name": "blocks.1.hook_resid_post"}}


def weights(*, gated: bool = False, threshold: bool = False) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    found = {"W_enc": (D, K), "W_dec": (K, D), "b_dec": (D,)}
    found |= {"b_gate": (K,), "r_mag": (K,), "b_mag": (K,)} if gated else {"b_enc": (K,)}
    found |= {"threshold": (K,)} if threshold else {}
    return {name: torch.randn(*shape, generator=draw) / 3 for name, shape in found.items()}


def written(folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file(tensors, folder / "sae_weights.safetensors")
    return folder


def activations(n: int = 6) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(8))


def one_by_one(w: dict[str, torch.Tensor], rule: str, *, shifted: bool, k: int = 5, normed: bool = False) -> torch.Tensor:
    """Features of every token, a scalar at a time."""
    found = torch.zeros(len(activations()), K)
    for row, h in enumerate(activations()):
        x = h - w["b_dec"] if shifted else h
        for i in range(K):
            raw = float(x @ w["W_enc"][:, i])
            if rule == "gated":
                value = max(0.0, raw * float(w["r_mag"][i].exp()) + float(w["b_mag"][i]))
                found[row, i] = value if raw + float(w["b_gate"][i]) > 0 else 0.0
                continue
            raw += float(w["b_enc"][i])
            raw *= float(w["W_dec"][i].norm()) if normed else 1.0
            low = max(0.0, float(w["threshold"][i])) if rule == "jumprelu" else 0.0
            found[row, i] = raw if raw > low else 0.0
        if rule == "topk":
            smallest = found[row].sort(descending=True).values[k - 1]
            found[row][found[row] < smallest] = 0.0
    return found


RULES = [
    ({"architecture": "standard"}, {}, True, False),
    ({"architecture": "standard", "apply_b_dec_to_input": False}, {}, False, False),
    ({"architecture": "jumprelu", "apply_b_dec_to_input": False}, {"threshold": True}, False, False),
    ({"architecture": "gated"}, {"gated": True}, True, False), ({"architecture": "topk", "k": 5}, {}, True, False),
    ({"architecture": "topk", "k": 5, "rescale_acts_by_decoder_norm": True}, {}, True, True),
    ({"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}}, {}, True, False),
]  # fmt: skip


@pytest.mark.parametrize(("config", "kind", "shifted", "normed"), RULES, ids=lambda each: json.dumps(each)[:60])
def test_features_and_what_they_account_for_follow_the_formula(
    tmp_path: Path, config: dict, kind: dict, shifted: bool, normed: bool
):
    w = weights(**kind)
    sae = load_dictionary(written(tmp_path / "sae", config | HOOK, w))
    rule = config.get("architecture", "topk")
    wanted = one_by_one(w, rule, shifted=shifted, normed=normed)
    torch.testing.assert_close(sae.encode(activations()), wanted, atol=1e-5, rtol=1e-5)
    assert 0 < (wanted > 0).float().mean() < 0.7
    norms = w["W_dec"].norm(dim=-1) if normed else 1.0
    back = sum((wanted / norms)[:, i, None] * w["W_dec"][i] for i in range(K)) + w["b_dec"]
    torch.testing.assert_close(sae.decode(wanted), back, atol=1e-5, rtol=1e-5)
    assert sae.site == Site("resid_post", 1)
    assert sae.n_features == K


def test_an_edit_of_a_feature_moves_along_its_decoder_row_and_nothing_else(tmp_path: Path):
    sae = load_dictionary(written(tmp_path / "sae", {"architecture": "standard"} | HOOK, weights()))
    lm = builders.subject()
    batch = lm.encode(builders.prompts())
    place = (sae.site, "last")
    plain = run(lm, batch, capture=[place]).captured[place].values
    active = int(sae.encode(plain).sum(0).argmax())
    change = edits.scale(sae.site, "last", 0.0, Where(features=sae, index=(active,)))
    after = run(lm, batch, [change], capture=[place]).captured[place].values
    torch.testing.assert_close(after, plain - sae.encode(plain)[:, active, None] * sae.decoder[active], atol=1e-5, rtol=1e-5)
    nothing = edits.scale(sae.site, "last", 1.0, Where(features=sae))
    assert torch.equal(run(lm, batch, [nothing]).logits, run(lm, batch).logits)


def test_centred_activations_have_no_mean(tmp_path: Path):
    folder = written(tmp_path / "sae", {"architecture": "standard"}, weights())
    plain, centred = load_dictionary(folder), load_dictionary(folder, centred=True)
    h = activations()
    torch.testing.assert_close(centred.encode(h + 7.0), plain.encode(h - h.mean(-1, keepdim=True)), atol=1e-4, rtol=1e-4)
    assert plain.site is None


def test_older_files_keep_the_logarithm_of_the_threshold(tmp_path: Path):
    w = weights(threshold=True)
    w["threshold"] = w["threshold"].abs()
    old = {name: value for name, value in w.items() if name != "threshold"} | {"log_threshold": w["threshold"].log()}
    new_one, old_one = (
        load_dictionary(written(tmp_path / n, {"architecture": "jumprelu"}, t)) for n, t in (("a", w), ("b", old))
    )
    assert torch.equal(new_one.encode(activations()) > 0, old_one.encode(activations()) > 0)


def test_what_cannot_be_read_is_said(tmp_path: Path):
    with pytest.raises(SubjectError, match="holds no dictionary"):
        load_dictionary(tmp_path)
    refused = [
        ({"architecture": "matching_pursuit"}, weights(), UnknownName, "architecture of a dictionary 'matching_pursuit'"),
        ({"normalize_activations": "layer_norm"}, weights(), SubjectError, "normalises every token by itself"),
        ({"reshape_activations": "hook_z"}, weights(), SubjectError, "heads side by side"),
        ({"architecture": "gated"}, weights(), SubjectError, "lacks b_gate, r_mag, b_mag"),
        ({"architecture": "jumprelu"}, weights(), SubjectError, "lacks threshold"),
        ({}, weights() | {"b_enc": torch.zeros(3)}, SubjectError, "encodes 32 numbers as 80 features"),
    ]
    for i, (config, tensors, error, message) in enumerate(refused):
        with pytest.raises(error, match=message):
            load_dictionary(written(tmp_path / str(i), config, tensors))
    with pytest.raises(UnknownName, match="rule of a dictionary"):
        SparseDictionary(torch.zeros(2, 3), torch.zeros(3, 2), torch.zeros(3), torch.zeros(2), rule="other")
