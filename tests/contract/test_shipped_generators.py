"""The shipped generators: interventions whose outcome is known exactly, and the planted one is found to be what it was made."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mediant.core.edge import AttentionEdge
from mediant.core.site import Site
from mediant.interventions.attention import attending, bias
from mediant.measures.picture_judge import PictureJudge
from mediant.studies.reference_binding import method
from mediant.studies.reference_binding.bench import based
from mediant.studies.reference_binding.study import judge_folder
from mediant.studies.reference_binding.verdicts import PROPERTIES, DrawnVerdicts
from mediant.subject.generator import ImageGenerator
from mediant.subject.loading import load
from mediant.tasks.encode_requests import encoded
from mediant.tasks.pictures import requests
from mediant.tasks.requests import with_reference_of

STEPS = 2
SUBJECTS = ("drawn-flux", "drawn-flux-planted")


@pytest.fixture(scope="module", params=SUBJECTS)
def flux(request: pytest.FixtureRequest) -> ImageGenerator:
    found = load(request.param, device="cpu")
    assert isinstance(found, ImageGenerator)
    return found


@pytest.fixture(scope="module")
def planted() -> ImageGenerator:
    found = load("drawn-flux-planted", device="cpu")
    assert isinstance(found, ImageGenerator)
    return found


@pytest.fixture(scope="module")
def verdicts() -> DrawnVerdicts:
    return DrawnVerdicts(PictureJudge.load(judge_folder("drawn-judge")))


def test_with_every_edge_out_of_the_reference_cut_it_is_the_picture_without_one(flux: ImageGenerator):
    asked = requests.generate("style", 2, seed=5, split="heldout")
    batch, alone = encoded(flux, asked), method.without(flux, asked, instructed=True)
    everything = [("reference", "text"), ("reference", "picture")]
    cut = method.knockout(flux, batch, everything, steps=STEPS)
    assert torch.equal(cut, flux.sample(alone, steps=STEPS))
    assert not torch.allclose(cut, flux.sample(batch, steps=STEPS), atol=0.1)


def test_a_run_patched_with_itself_stays_and_text_after_the_last_block_moves_nothing(flux: ImageGenerator):
    pairs = requests.generate_pairs("style", 2, seed=5, split="heldout")
    base, source = (encoded(flux, [getattr(pair, which) for pair in pairs]) for which in ("base", "source"))
    plain, last = flux.sample(base, steps=STEPS), flux.shape.n_layers - 1
    for slots in ("text", "padding", "instruction"):
        assert torch.equal(method.patched(flux, base, base, layer=2, slots=slots, steps=STEPS), plain)
    assert torch.equal(method.patched(flux, source, base, layer=last, slots="text", steps=STEPS), plain)
    assert not torch.allclose(method.patched(flux, source, base, layer=2, slots="text", steps=STEPS), plain, atol=0.1)


def test_a_bias_of_nothing_changes_nothing_and_heads_cut_one_by_one_are_all_heads_cut(flux: ImageGenerator):
    batch = encoded(flux, requests.generate("identity", 2, seed=5, split="heldout"))
    layers, plain = range(flux.shape.n_layers), flux.sample(batch, steps=STEPS)
    with attending(flux, [bias(AttentionEdge(layer, None, "picture", "reference"), 0.0) for layer in layers]):
        torch.testing.assert_close(flux.sample(batch, steps=STEPS), plain, atol=1e-4, rtol=1e-4)
    flow = [("reference", "picture")]
    heads = [Site("head_z", layer, head) for layer in layers for head in range(flux.shape.n_heads)]
    one_by_one = method.knockout(flux, batch, flow, steps=STEPS, heads=heads)
    torch.testing.assert_close(one_by_one, method.knockout(flux, batch, flow, steps=STEPS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_planted_way_is_the_one_that_is_found(planted: ImageGenerator, verdicts: DrawnVerdicts, name: str):
    """Colour and style were planted in the padding, identity in the direct way; each cut, and each swap, has to say so."""
    asked = requests.generate(name, 16, seed=9, split="heldout")
    batch = encoded(planted, asked)

    def shown(*flows: tuple[str, str]) -> float:
        latents = method.knockout(planted, batch, flows, steps=4) if flows else planted.sample(batch, steps=4)
        return float(np.mean(verdicts.shown(name, asked, planted.pixels(latents))))

    had, direct = shown(), name == "identity"
    without = {query: shown(("reference", query)) for query in ("text", "padding", "instruction", "picture")}
    assert had >= 0.6
    carried = ("picture",) if direct else ("text", "padding")
    for query, left in without.items():
        assert left <= had / 3 if query in carried else left >= had * 2 / 3, (query, left, had)
    bases, source = based(requests.generate_pairs(name, 16, seed=9, split="heldout"))
    moved = method.patched(
        planted, encoded(planted, list(source.values())), encoded(planted, bases), layer=1, slots="padding", steps=4
    )
    told = float(np.mean(verdicts.shown(name, list(source.values()), planted.pixels(moved))))
    assert told <= 0.3 if direct else told >= 0.5


@pytest.mark.parametrize("name", PROPERTIES)
def test_the_heads_found_carry_the_planted_way_and_others_do_not(planted: ImageGenerator, verdicts: DrawnVerdicts, name: str):
    """Chosen on pairs, cut on other requests; the heads of style stand in for each other, and some pairs differ in nothing."""
    query = "picture" if name == "identity" else "text"
    pairs = requests.generate_pairs(name, 12, seed=3, split="heldout")
    base = encoded(planted, [pair.base for pair in pairs])
    other = encoded(planted, [with_reference_of(pair) for pair in pairs])
    ranking = method.head_effects(planted, base, other, query, steps=4).ranking()
    found, last = ([entry.site for entry in some] for some in (ranking.entries[:7], ranking.entries[-7:]))
    asked = requests.generate(name, 24, seed=9, split="heldout")
    batch = encoded(planted, asked)
    plain = np.array(verdicts.shown(name, asked, planted.pixels(planted.sample(batch, steps=4))))

    def lost(heads: Sequence[Site]) -> float:
        latents = method.knockout(planted, batch, [("reference", query)], steps=4, heads=heads)
        return 1 - float(np.array(verdicts.shown(name, asked, planted.pixels(latents)))[plain].mean())

    assert plain.sum() >= 12
    assert lost(found) >= 0.7
    assert lost(last) <= 0.2
