"""Models placed by a device map: parameters stay where they were put, and hooks and replays work on them there."""

import copy
from collections.abc import Callable

import pytest
import torch
from test_families import ALL, clean_and_other, close, library_model, sites

from builders import subject, tokenizer
from mediant.interventions import Edit, record, replay, run, scale, zero
from mediant.subject import load, wrap


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


PARTS = {
    "llama": [
        "model.embed_tokens",
        "model.rotary_emb",
        "model.layers.0",
        "model.layers.1",
        "model.layers.2",
        "model.norm",
        "lm_head",
    ],
    "gpt2": ["transformer.wte", "transformer.wpe", "transformer.drop", "transformer.h", "transformer.ln_f", "lm_head"],
}


@pytest.mark.parametrize("family", list(PARTS))
@pytest.mark.parametrize("placed", ["whole", "split", "hooked"])
def test_a_device_map_is_respected_and_hooks_work_on_what_it_placed(family, placed, tmp_path):
    library_model(family).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    lm = load(tmp_path, device_map={"": "cpu"} if placed == "whole" else dict.fromkeys(PARTS[family], "cpu"))
    if placed == "hooked":
        from accelerate import dispatch_model

        dispatch_model(lm.model, dict.fromkeys(PARTS[family], "cpu"), force_hooks=True)
    where = [(id(p), p.device) for p in lm.model.parameters()]
    plain = subject(family)
    batch, _ = clean_and_other(lm)
    changes: list[Callable] = [lambda s: zero(s, "S2"), lambda s: scale(s, ALL, 2.0)]
    for site in sites(lm):
        for change in changes:
            assert close(run(plain, batch, [change(site)]).last, run(lm, batch, [change(site)]).last, 1e-6), str(site)
    assert torch.equal(plain.generate(batch, max_new_tokens=4), lm.generate(batch, max_new_tokens=4))
    assert where == [(id(p), p.device) for p in lm.model.parameters()]
    assert {torch.device("cpu")} == {p.device for p in lm.model.parameters()}


@pytest.mark.parametrize("family", list(PARTS))
def test_layers_whose_forward_a_placement_has_wrapped_replay_all_the_same(family):
    from accelerate import dispatch_model

    model = copy.deepcopy(library_model(family))
    dispatch_model(model, dict.fromkeys(PARTS[family], "cpu"), force_hooks=True)
    lm, plain = wrap(model, tokenizer()), subject(family)
    base, _ = clean_and_other(lm)
    for site in [s for s in sites(lm) if s.kind != "embed"]:
        change: list[Edit] = [scale(site, "S2", -1.5)]
        assert close(run(plain, base, change).logits, replay(record(lm, base), change).logits), str(site)
