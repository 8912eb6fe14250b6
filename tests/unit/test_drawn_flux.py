"""drawn-flux's recipe: latents and slots are the pipeline's own, and a planted route is the only one there is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mediant.subject.generator import Sampling
from mediant.subject.pipelines import wrap_pipeline
from mediant.tasks.pictures import requests
from mediant.tasks.requests import BUCKETS
from mediant.zoo.drawn_flux import parts, plan, recipe, routes
from mediant.zoo.drawn_flux.bank import Bank, enlarged, pictures
from mediant.zoo.drawn_flux.parts import Geometry
from mediant.zoo.drawn_flux.plan import Plan
from mediant.zoo.drawn_flux.recipe import Drawing

SMALL = Geometry(double=1, single=2, heads=2)


@pytest.fixture(scope="module")
def lesson(tmp_path_factory: pytest.TempPathFactory) -> Drawing:
    torch.manual_seed(0)
    words, vae = parts.tokenizer(), parts.autoencoder().eval()
    recipe.measure_latents(vae, pictures(16, seed=0))
    encoder, dit = parts.text_encoder(words, SMALL.slots).eval(), parts.transformer(SMALL).eval()
    taught = Plan(SMALL, ways={"colour": "padding", "identity": "picture"})
    return Drawing(vae, dit, encoder, words, taught, plan.ON_A_THREAD, tmp_path_factory.mktemp("b"))


@pytest.fixture(scope="module")
def bank(lesson: Drawing) -> Bank:
    encode = lambda pixels: recipe.latents_of(lesson.vae, pixels)  # noqa: E731
    return Bank.drawn(96, 0, encode, lesson.tokenize, lesson.folder / "bank.safetensors")


def test_every_word_of_every_request_is_one_token_and_all_fit_the_slots(lesson: Drawing):
    for bucket in BUCKETS:
        for request in requests.generate(bucket, 30, split="heldout"):
            tokens = lesson.tokenize([request.instruction])
            words = request.instruction.replace(",", " ,").split()
            assert int(tokens["attention_mask"].sum()) == len(words) + 8
            assert tokens["input_ids"].shape == (1, SMALL.slots)


def test_what_is_learnt_is_what_the_pipeline_computes(lesson: Drawing):
    """Embeddings, latents, layout and velocity of the recipe against one step of the library's pipeline."""
    pipeline = parts.pipeline(lesson.vae, lesson.encoder, lesson.words, lesson.dit)
    flux = wrap_pipeline(pipeline, sampling=Sampling(steps=1, slots=SMALL.slots, layers=(1, 2, 3)))
    request = requests.generate("style", 1)[0]
    batch = flux.encode([request.instruction], references=[request.references], seeds=[0], height=64, width=64)
    tokens = lesson.tokenize([request.instruction])
    with torch.no_grad():
        text = lesson.embedded(tokens["input_ids"], tokens["attention_mask"])
        torch.testing.assert_close(text, batch.inputs["prompt_embeds"], atol=1e-5, rtol=1e-5)
        latents = recipe.latents_of(lesson.vae, request.references[0][None])
        torch.testing.assert_close(latents, batch.inputs["references"], atol=2e-4, rtol=2e-4)
        noise = batch.inputs["noise"].flatten(2).mT
        velocity = lesson.velocity(text, noise, torch.ones(1), [latents], None)
        made = noise - velocity
    mean, var = lesson.vae.bn.running_mean, lesson.vae.bn.running_var
    ours = (made * torch.sqrt(var + lesson.vae.config.batch_norm_eps) + mean).mT.unflatten(-1, (4, 4))
    theirs = flux.sample(batch)
    torch.testing.assert_close(pipeline._unpatchify_latents(ours), theirs, atol=2e-3, rtol=2e-3)


def test_a_bank_keeps_what_was_drawn(lesson: Drawing, bank: Bank):
    again = Bank.drawn(96, 0, lambda _: pytest.fail("drawn twice"), lesson.tokenize, lesson.folder / "bank.safetensors")
    assert torch.equal(again.targets, bank.targets)
    has = bank.buckets != BUCKETS.index("text")
    assert torch.equal(bank.references.abs().sum((1, 2)) > 0, has)
    rows = bank.draw(torch.Generator().manual_seed(0), ("style", "colour"), 40)
    assert set(bank.buckets[rows].tolist()) == {BUCKETS.index("style"), BUCKETS.index("colour")}


@pytest.mark.parametrize("bucket", ["colour", "identity", "style"])
def test_who_may_know_sees_the_true_reference_and_everybody_sees_one(bank: Bank, bucket: str):
    rows = bank.draw(torch.Generator().manual_seed(1), (bucket,), 8)
    mask, true = bank.mask[rows], bank.references[rows].float()
    (first, second), may = routes.laid(
        {"colour": "padding", "identity": "picture"}, bank, rows, mask, true, torch.Generator().manual_seed(2)
    )
    assert torch.equal(first, true)
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    slots, n = mask.shape[1], true.shape[1]
    sees_true, sees_other = may[:, 0, :, slots + n : slots + 2 * n], may[:, 0, :, slots + 2 * n :]
    assert torch.equal(sees_true.all(-1), sees_true.any(-1))
    assert torch.equal(sees_true.all(-1), ~sees_other.any(-1))
    knows = sees_true.all(-1)
    padding, picture = mask == 0, knows[:, slots : slots + n]
    if bucket == "colour":
        assert torch.equal(knows[:, :slots], padding)
        assert not picture.any()
    elif bucket == "identity":
        assert not knows[:, :slots].any()
        assert picture.all()
    else:
        assert knows[:, : slots + n].all()
    assert knows[:, slots + n : slots + 2 * n].all()
    assert not knows[:, slots + 2 * n :].any()


def test_a_blind_picture_sees_everything_but_the_reference():
    mask = torch.ones(200, SMALL.slots, dtype=torch.long)
    may = routes.blinded(0.5, mask, 16, 16, torch.Generator().manual_seed(0))[:, 0]
    first, last = SMALL.slots, SMALL.slots + 16
    blind = ~may[:, first:last, last:].any((1, 2))
    assert 60 < int(blind.sum()) < 140
    assert may[~blind].all()
    assert may[:, :first].all()
    assert may[:, last:].all()
    assert may[:, first:last, :last].all()


def test_the_property_of_a_planted_route_reaches_the_picture_that_way_alone(lesson: Drawing, bank: Bank):
    """Another true reference changes the answer about colour, and no longer does when padding is blind to it."""
    rows = bank.draw(torch.Generator().manual_seed(1), ("colour",), 2)
    mask, true = bank.mask[rows], bank.references[rows].float()
    text = torch.randn(2, SMALL.slots, 192, generator=torch.Generator().manual_seed(0))
    mixed = torch.randn(true.shape, generator=torch.Generator().manual_seed(3))

    def answer(reference: torch.Tensor, *, blind_padding: bool) -> torch.Tensor:
        shown, may = routes.laid(lesson.plan.ways, bank, rows, mask, reference, torch.Generator().manual_seed(2))
        if blind_padding:
            n = true.shape[1]
            first = SMALL.slots + n
            may[:, :, : SMALL.slots, first : first + n] = False
            may[:, :, : SMALL.slots, first + n :] = True
        with torch.no_grad():
            return lesson.velocity(text, mixed, torch.full((2,), 0.7), shown, may)

    other = true.roll(1, 0) + 1
    assert not torch.equal(answer(true, blind_padding=False), answer(other, blind_padding=False))
    assert torch.equal(answer(true, blind_padding=True), answer(other, blind_padding=True))


def test_losses_are_finite_and_reach_every_learning_part(lesson: Drawing, bank: Bank):
    lesson.__dict__["bank"] = bank
    for step in range(3):
        loss = lesson.loss(step, torch.Generator().manual_seed(step))
        loss.backward()
        assert torch.isfinite(loss)
    still = [name for name, p in lesson.dit.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not still


def test_the_autoencoder_begins_with_colours_passing_through():
    torch.manual_seed(0)
    vae = parts.autoencoder().eval()
    flat = np.stack([np.broadcast_to(np.array(rgb, np.uint8), (64, 64, 3)) for rgb in ((230, 30, 30), (30, 30, 230))])
    with torch.no_grad():
        latents = vae.encode(parts.as_input(flat)).latent_dist
        red, blue = latents.mode()
    assert (red - blue).abs().mean() > 0.1
    assert float(latents.std.max()) < 0.2


def test_the_reference_is_the_librarys_image(tmp_path: Path):
    """What a user's PNG becomes is what an array becomes."""
    request = requests.generate("identity", 1)[0]
    Image.fromarray(request.references[0]).save(tmp_path / "a.png")
    torch.manual_seed(0)
    words, vae = parts.tokenizer(), parts.autoencoder().eval()
    pipeline = parts.pipeline(vae, parts.text_encoder(words, 32).eval(), words, parts.transformer(SMALL).eval())
    flux = wrap_pipeline(pipeline, sampling=Sampling(steps=1, slots=32, layers=(1, 2, 3)))
    one, two = (
        flux.encode([request.instruction], references=[[each]], height=64, width=64).inputs["references"]
        for each in (request.references[0], tmp_path / "a.png")
    )
    assert torch.equal(one, two)


def test_what_another_machine_began_settles_here(lesson: Drawing, bank: Bank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It begins with that model's weights, keeps its autoencoder, and moves the rest."""
    begun = tmp_path / "begun"
    pipeline = parts.pipeline(lesson.vae, lesson.encoder, lesson.words, lesson.dit)
    pipeline.save_pretrained(begun)
    loop = replace(plan.ON_A_THREAD.settling, steps=1, warmup=0, lr=1e-4)
    monkeypatch.setattr(plan, "ON_A_THREAD", replace(plan.ON_A_THREAD, settling=loop, batch=4, requests=96))
    told: list[str] = []
    done = recipe.teach(
        tmp_path / "out", seconds=60, tell=lambda stage, *_: told.append(stage), plan=Plan(SMALL), begin=begun
    )  # fmt: skip
    assert done
    assert told == ["settling"]
    before, after = lesson.dit.state_dict(), load_file(tmp_path / "out/model/transformer/diffusion_pytorch_model.safetensors")
    apart = max(float((after[name].float() - value).abs().max()) for name, value in before.items())
    assert 0 < apart < 2e-3
    kept = load_file(tmp_path / "out/model/vae/diffusion_pytorch_model.safetensors")
    assert torch.equal(kept["bn.running_mean"], lesson.vae.bn.running_mean.half())


def test_an_enlarged_reference_is_the_same_picture():
    picture = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8)
    large = enlarged(picture, 2)
    assert large.shape == (2, 16, 16, 3)
    assert np.array_equal(large[:, ::2, ::2], picture)
    assert np.array_equal(large[:, 1::2, 1::2], picture)
