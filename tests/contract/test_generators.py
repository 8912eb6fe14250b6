"""Image generators: every token group has its columns, edits reach both streams, cut edges are cut, and nothing stays behind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import Flux2Transformer2DModel
from PIL import Image

import generators
from mediant.core.edge import AttentionEdge
from mediant.core.errors import EditError, EditNeverFired, ImageError, OutOfRange, SpanError, SubjectError, TaskError, UnknownName
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.interventions import edit, edits
from mediant.interventions.attention import attending, bias, cut
from mediant.interventions.edits import Activation, Where
from mediant.search.edge_knockout import knockout_effects
from mediant.subject.batch import Batch
from mediant.subject.families.flux2 import FLUX2
from mediant.subject.generator import ImageGenerator
from mediant.subject.loading import load
from mediant.subject.pipelines import family_of, shape_of, wrap_pipeline

INSTRUCTION = "the dog of this image"
LAYERS = range(5)
MAKERS = {"klein": generators.klein, "guided": lambda: generators.klein(distilled=False), "dev": generators.dev}
KINDS = ["embed", "resid_pre", "attn_in", "q", "k", "v", "head_z", "mlp_post", "resid_post"]


@pytest.fixture(params=list(MAKERS))
def flux(request: pytest.FixtureRequest) -> ImageGenerator:
    return MAKERS[request.param]()


def asked(flux: ImageGenerator, n: int = 1, *, reference: bool = True, size: tuple[int, int] = (64, 64)):
    """A batch of `n` pictures with references of their own."""
    references = [[generators.picture(i, *size)] for i in range(n)] if reference else []
    texts = [INSTRUCTION, "a cat"][:n]
    return flux.encode(texts, references=references, seeds=range(10, 10 + n), height=16, width=32)


def failing(flux: ImageGenerator, batch: Batch) -> None:
    with edit(flux, edits.zero("head_z.3.1", "picture")), attending(flux, edges("text", "reference")):
        flux.sample(batch)
        raise ZeroDivisionError


def edges(query: str, key: str, head: int | None = None) -> list:
    return [cut(AttentionEdge(layer, head, query, key)) for layer in LAYERS]


def plainly(flux: ImageGenerator, text: str, references: list, seed: int) -> torch.Tensor:
    """What the library's pipeline gives when it is called as anyone would."""
    given = {"image": [Image.fromarray(each) for each in references]} if references else {}
    latents = flux.pipeline(
        prompt=text, height=16, width=32, num_inference_steps=2, guidance_scale=flux.sampling.guidance, output_type="latent",
        generator=torch.Generator().manual_seed(seed), return_dict=False, max_sequence_length=generators.SLOTS,
        text_encoder_out_layers=generators.LAYERS, **given,
    )[0]  # fmt: skip
    return flux._unpacked(latents, 2, 4)


@pytest.mark.parametrize("references", [[], [(64, 64)], [(96, 64), (64, 128)]], ids=["none", "one", "two"])
def test_a_picture_is_bit_for_bit_the_pipelines_own(flux: ImageGenerator, references: list):
    shown = [generators.picture(i, *size) for i, size in enumerate(references)]
    batch = flux.encode([INSTRUCTION], references=[shown] if shown else [], seeds=[3], height=16, width=32)
    assert torch.equal(flux.sample(batch), plainly(flux, INSTRUCTION, shown, 3))


def test_rows_with_references_of_their_own_are_what_each_is_alone(flux: ImageGenerator):
    batch = asked(flux, 2)
    together = flux.sample(batch)
    for i, text in enumerate(batch.texts):
        alone = plainly(flux, text, [generators.picture(i)], 10 + i)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_spans_are_the_text_encoders_own_tokens(flux: ImageGenerator):
    batch = asked(flux)
    slots, words = batch.ids[0, : generators.SLOTS].tolist(), flux.pipeline.tokenizer
    spans = batch.spans[0]
    assert words.decode([slots[i] for i in spans["instruction"]]) == INSTRUCTION
    assert {slots[i] for i in spans["padding"]} == {words.pad_token_id}
    assert sorted([*spans["instruction"], *spans["scaffold"], *spans["padding"]]) == list(spans["text"])
    assert sorted([*spans["instruction"], *spans["beside"]]) == list(spans["text"])
    left = words.padding_side == "left"
    assert (spans["padding"][0] < spans["instruction"][0]) == left


@pytest.mark.parametrize("size", [(64, 64), (80, 128), (1100, 1000), (77, 201)])
def test_reference_tokens_follow_what_the_pipeline_makes_of_any_size(size: tuple[int, int]):
    flux = generators.klein()
    seen = []
    handle = flux.model.register_forward_pre_hook(lambda *args: seen.append(args[2]["img_ids"]), with_kwargs=True)
    try:
        batch = flux.encode([INSTRUCTION], references=[[generators.picture(0, *size)]], height=16, width=32)
        flux.pipeline.prepare_image_latents([flux._prepared(generators.picture(0, *size))], 1, None, flux.device, flux.dtype)
        moments = batch.inputs["reference_ids"][0, :, 0]
        assert len(batch.spans[0]["reference"]) == len(moments)
        assert set(moments.tolist()) == {10}
        if size[0] * size[1] <= 10_000:
            flux.pipeline(
                prompt="", image=Image.fromarray(generators.picture(0, *size)), height=16, width=32, num_inference_steps=1,
                max_sequence_length=8, text_encoder_out_layers=generators.LAYERS, output_type="latent",
            )  # fmt: skip
            assert torch.equal(seen[-1][0, 2 * 4 :], batch.inputs["reference_ids"][0])
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", LAYERS)
def test_writing_back_what_was_read_changes_nothing(flux: ImageGenerator, layer: int):
    batch = asked(flux)
    plain = flux.sample(batch)
    kinds = [kind for kind in KINDS if kind != "embed"]
    places = [(Site(kind, layer), Span(group)) for kind in kinds for group in ("text", "picture", "reference")]
    with edit(flux, capture=places) as active:
        assert torch.equal(flux.sample(batch), plain)
    captured = active.captured()
    calls = sorted(set(captured[places[0]].calls.tolist()))
    assert calls == ([0, 1, 2, 3] if flux is generators.klein(distilled=False) else [0, 2])
    back = [
        edits.swap(
            site, span, captured[site, span].at_step(call // 2, guidance=call % 2), Where(steps=(call // 2,), guidance=call % 2)
        )
        for site, span in places
        for call in calls
    ]
    with edit(flux, back) as active:
        assert torch.equal(flux.sample(batch), plain)
    assert all(report.forwards and not report.unreached_steps for report in active.firings())


def test_sites_hold_what_the_modules_pass_on():
    flux, batch = generators.klein(), asked(generators.klein())
    seen = {}
    double, single = flux.model.transformer_blocks[1], flux.model.single_transformer_blocks[0]
    handles = [
        double.register_forward_hook(lambda _, __, out: seen.setdefault("post", out)),
        single.attn.to_out.register_forward_pre_hook(lambda _, args: seen.setdefault("z", args[0])),
        double.attn.to_add_out.register_forward_pre_hook(lambda _, args: seen.setdefault("text z", args[0])),
    ]
    wanted = [("resid_post.1", "text"), ("resid_post.1", "reference"), ("head_z.2.3", "picture"), ("head_z.1.2", "text")]
    with edit(flux, capture=[(Site.parse(site), Span(span)) for site, span in wanted]) as active:
        flux.sample(batch)
    for handle in handles:
        handle.remove()
    found = active.captured()
    n_text, n_picture = generators.SLOTS, len(batch.spans[0]["picture"])
    assert torch.equal(found["resid_post.1", "text"].at_step(0).values, seen["post"][0][0])
    assert torch.equal(found["resid_post.1", "reference"].at_step(0).values, seen["post"][1][0, n_picture:])
    assert torch.equal(found["head_z.2.3", "picture"].at_step(0).values, seen["z"][0, n_text : n_text + n_picture, 48:64])
    assert torch.equal(found["head_z.1.2", "text"].at_step(0).values, seen["text z"][0, :, 32:48])


def test_text_is_dropped_after_the_last_block_and_matters_before(flux: ImageGenerator):
    batch = asked(flux)
    plain = flux.sample(batch)
    with edit(flux, edits.zero("resid_post.4", "text")):
        assert torch.equal(flux.sample(batch), plain)
    with edit(flux, edits.zero("resid_post.3", "text")):
        assert not torch.equal(flux.sample(batch), plain)


def test_a_step_is_edited_when_its_turn_comes_and_only_then():
    flux, batch = generators.klein(), asked(generators.klein())
    with edit(flux, edits.scale("resid_post.2", "text", 3.0, Where(steps=(1,)))) as active:
        late = flux.sample(batch)
    assert active.firings()[0].forwards == 1
    with edit(flux, capture=[(Site("embed"), Span("picture"))]) as plain:
        flux.sample(batch)
    with (
        edit(flux, edits.scale("resid_post.2", "text", 3.0, Where(steps=(1,)))),
        edit(flux, capture=[(Site("embed"), Span("picture"))]) as now,
    ):
        assert torch.equal(flux.sample(batch), late)
    one, two = plain.captured()["embed", "picture"], now.captured()["embed", "picture"]
    assert torch.equal(one.at_step(0).values, two.at_step(0).values)
    assert torch.equal(one.at_step(1).values, two.at_step(1).values)
    assert not torch.equal(late, flux.sample(batch))
    with pytest.raises(EditNeverFired), edit(flux, edits.zero("resid_post.2", "text", Where(steps=(7,)))):
        flux.sample(batch)


def test_with_every_edge_out_of_the_reference_cut_it_is_the_picture_without_one(flux: ImageGenerator):
    batch, without = asked(flux), asked(flux, reference=False)
    alone = flux.sample(without)
    with attending(flux, edges("text", "reference") + edges("picture", "reference")) as masks:
        assert torch.equal(flux.sample(batch), alone)
    assert masks.built == 1
    with attending(flux, edges("picture", "reference")):
        partly = flux.sample(batch)
    assert not torch.allclose(partly, alone, atol=1e-4)
    assert not torch.allclose(partly, flux.sample(batch), atol=1e-4)


def test_a_bias_of_nothing_changes_nothing_and_heads_cut_one_by_one_are_all_heads_cut(flux: ImageGenerator):
    batch = asked(flux)
    nothing = [bias(AttentionEdge(layer, None, "picture", "reference"), 0.0) for layer in LAYERS]
    with attending(flux, nothing):
        torch.testing.assert_close(flux.sample(batch), (plain := flux.sample(batch)), atol=1e-5, rtol=1e-5)
    with attending(flux, [one for head in range(4) for one in edges("picture", "reference", head)]):
        single = flux.sample(batch)
    with attending(flux, edges("picture", "reference")):
        torch.testing.assert_close(flux.sample(batch), single, atol=1e-5, rtol=1e-5)
    with attending(flux, [bias(AttentionEdge(layer, None, "picture", "reference"), 2.0) for layer in LAYERS]):
        assert not torch.allclose(flux.sample(batch), plain, atol=1e-3)


def test_cut_edges_are_the_librarys_own_mask():
    flux, batch = generators.klein(), asked(generators.klein())
    mask = torch.zeros(1, 1, batch.n_cols, batch.n_cols)
    queries, keys = batch.columns(0, Span("padding")), batch.columns(0, Span("reference"))
    mask[..., torch.tensor(queries)[:, None], torch.tensor(keys)[None]] = float("-inf")
    theirs = flux.pipeline(
        prompt=INSTRUCTION, image=Image.fromarray(generators.picture(0)), height=16, width=32, num_inference_steps=2,
        generator=torch.Generator().manual_seed(10), output_type="latent", return_dict=False,
        attention_kwargs={"attention_mask": mask}, max_sequence_length=generators.SLOTS, guidance_scale=1.0,
        text_encoder_out_layers=generators.LAYERS,
    )[0]  # fmt: skip
    with attending(flux, edges("padding", "reference")):
        assert torch.equal(flux.sample(batch), theirs)


def test_masks_are_built_once_for_rows_that_are_alike_and_per_row_where_spans_differ():
    flux, batch = generators.klein(), asked(generators.klein(), 2)
    with attending(flux, edges("text", "reference")) as masks:
        flux.sample(batch)
    assert [tuple(mask.shape[:2]) for mask, _ in masks._masks.values()] == [(2, 1)]
    with attending(flux, edges("instruction", "reference")) as masks:
        together = flux.sample(batch)
    assert masks.built == 1
    for i, text in enumerate(batch.texts):
        one = flux.encode([text], references=[[generators.picture(i)]], seeds=[10 + i], height=16, width=32)
        with attending(flux, edges("instruction", "reference")):
            torch.testing.assert_close(flux.sample(one), together[i : i + 1], atol=1e-4, rtol=1e-4)


def test_masks_are_those_of_the_batch_that_runs_when_several_run_in_one_context():
    flux, batch = generators.klein(), asked(generators.klein(), 2)
    ones = [
        flux.encode([text], references=[[generators.picture(i)]], seeds=[10 + i], height=16, width=32)
        for i, text in enumerate(batch.texts)
    ]
    alone = []
    for one in ones:
        with attending(flux, edges("instruction", "reference")):
            alone.append(flux.sample(one))
    assert ones[0].spans != ones[1].spans
    with attending(flux, edges("instruction", "reference")) as masks:
        for one, expected in zip([*ones, ones[0]], [*alone, alone[0]], strict=True):
            assert torch.equal(flux.sample(one), expected)
    assert masks.built == 3


def test_schedules_of_edges_share_masks_between_blocks_and_steps():
    flux, batch = generators.klein(), asked(generators.klein())
    early = [cut(AttentionEdge(layer, None, "picture", "reference")) for layer in (0, 1)]
    late = [cut(AttentionEdge(layer, None, "text", "reference"), steps=(1,)) for layer in (2, 3, 4)]
    with attending(flux, early + late) as masks:
        flux.sample(batch)
    assert masks.built == 2
    assert [report.forwards for report in masks.firings()] == [2, 2, 1, 1, 1]


def test_nothing_remains_after_leaving_also_after_an_error(flux: ImageGenerator):
    batch = asked(flux)
    plain = flux.sample(batch)
    with pytest.raises(ZeroDivisionError):
        failing(flux, batch)
    hooks = [module._forward_hooks or module._forward_pre_hooks for module in flux.model.modules()]
    assert not any(hooks)
    assert (flux.in_force, flux.attending) == ([], [])
    assert "prepare_image_latents" not in vars(flux.pipeline)
    assert torch.equal(flux.sample(batch), plain)


def test_gradients_flow_through_the_sampler_and_estimates_are_slopes_of_the_metric():
    flux, batch = generators.klein(), asked(generators.klein(), 2)
    plain = flux.sample(batch)
    along = torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    metric = lambda latents: (latents * along).sum((1, 2, 3))  # noqa: E731
    assert torch.equal(flux.sample(batch, gradients=True).detach(), plain)
    found = knockout_effects(flux, batch, query="text", key="reference", metric=metric)
    for layer, head in ((0, 1), (1, 3), (2, 0)):
        site, span, slope = Site("head_z", layer, head), Span("text"), 0.0
        for step in (0, 1):
            with edit(flux, capture=[(site, span)]) as before:
                flux.sample(batch)
            blind = [cut(AttentionEdge(layer, None, "text", "reference"), steps=(step,))]
            with attending(flux, blind), edit(flux, capture=[(site, span)]) as after:
                flux.sample(batch)
            one, two = (each.captured()[site, span].at_step(step) for each in (before, after))
            moved = [Activation(one.values + sign * 0.01 * (two.values - one.values), one.rows, one.cols) for sign in (1, -1)]
            ends = []
            for source in moved:
                with edit(flux, edits.swap(site, span, source, Where(steps=(step,)))):
                    ends.append(metric(flux.sample(batch)))
            slope = slope + (ends[0] - ends[1]).numpy() / 0.02
        assert found.effects[:, layer, head] == pytest.approx(slope, rel=0.02, abs=0.02)
    assert np.abs(found.effects[:, 4]).max() == 0
    assert found.ranking().entries[0].score == pytest.approx(found.effects.mean(0).min())


def test_estimates_rank_heads_as_cutting_each_of_them_does():
    flux, batch = generators.klein(), asked(generators.klein(), 2)
    plain = flux.sample(batch)
    moved = torch.zeros(len(LAYERS), 4, *plain.shape)
    for layer, head in np.ndindex(len(LAYERS), 4):
        with attending(flux, [cut(AttentionEdge(layer, head, "text", "reference"))]):
            moved[layer, head] = flux.sample(batch) - plain
    agreement = []
    for seed in range(5):
        along = torch.randn(plain.shape, generator=torch.Generator().manual_seed(seed))
        metric = lambda latents: (latents * along).sum((1, 2, 3))  # noqa: B023, E731
        found = knockout_effects(flux, batch, query="text", key="reference", metric=metric)
        exact = (moved * along).sum((3, 4, 5)).permute(2, 0, 1).numpy()
        agreement.append(np.corrcoef(exact.ravel(), found.effects.ravel())[0, 1])
    assert np.median(agreement) > 0.85


def test_a_pipeline_called_directly_has_groups_but_no_parts_of_the_text():
    flux = generators.klein()
    with edit(flux, edits.zero("resid_post.1", "reference")) as active:
        plainly(flux, INSTRUCTION, [generators.picture(0)], 3)
    assert active.firings()[0].tokens == 2 * 64
    with pytest.raises(UnknownName, match="instruction"), edit(flux, edits.zero("resid_post.1", "instruction")):
        plainly(flux, INSTRUCTION, [generators.picture(0)], 3)


def test_what_a_generator_cannot_do_is_said_before_a_step_is_run():
    flux = generators.klein()
    with pytest.raises(OutOfRange, match=r"multiples of 8, .* nearest are 16 x 32"):
        flux.encode(["a"], height=16, width=33)
    with pytest.raises(TaskError, match="same number of references"):
        flux.encode(["a", "b"], references=[[generators.picture(0)], []], height=16, width=16)
    with pytest.raises(ImageError, match="same sizes"):
        flux.encode(["a", "b"], references=[[generators.picture(0)], [generators.picture(1, 64, 96)]], height=16, width=16)
    with pytest.raises(ImageError, match="at least 64 pixels"):
        flux.encode(["a"], references=[[generators.picture(0, 32, 64)]], height=16, width=16)
    with pytest.raises(ImageError, match="8 times"):
        flux.encode(["a"], references=[[generators.picture(0, 64, 640)]], height=16, width=16)
    with pytest.raises(SpanError, match="found 8 times"):
        flux.encode(["s"], height=16, width=16)
    with pytest.raises(SpanError, match="found 0 times"):
        flux.encode(["a dog " * 40], height=16, width=16)
    with pytest.raises(UnknownName, match="reference"), edit(flux, edits.zero("resid_post.1", "reference")):
        flux.sample(asked(flux, reference=False))
    with pytest.raises(OutOfRange, match="blocks 0 to 4, of which 2 are double"):
        flux.validate("resid_post.5")
    with pytest.raises(SubjectError, match="one projection adds up"):
        flux.validate("mlp_out.3")
    with pytest.raises(SubjectError, match="gated by the step's modulation"):
        flux.validate("head_result.1.1")
    with pytest.raises(EditError, match="no key to attend to"), attending(flux, edges("picture", "all")):
        flux.sample(asked(flux))
    with pytest.raises(SubjectError, match="Flux2KleinPipeline"):
        family_of("Flux2KleinKVPipeline")
    with pytest.raises(UnknownName, match="did you mean 'Flux2Pipeline'"):
        family_of("Flux3Pipeline")


def test_models_that_skip_or_replace_blocks_are_refused():
    flux = wrap_pipeline(generators.klein().pipeline, sampling=generators.klein().sampling)
    flux.model.set_attention_backend("_native_flash")
    try:
        with pytest.raises(SubjectError, match="set_attention_backend"), attending(flux, edges("text", "reference")):
            pass
    finally:
        flux.model.set_attention_backend("native")
        flux.model.reset_attention_backend()
    flux.model.transformer_blocks[0]._compiled_call_impl = print  # what `compile` sets
    try:
        with pytest.raises(SubjectError, match="compiled"):
            flux.sample(asked(flux))
    finally:
        flux.model.transformer_blocks[0]._compiled_call_impl = None


def test_a_saved_pipeline_is_loaded_as_a_subject_with_its_settings(tmp_path: Path):
    flux = generators.klein()
    flux.pipeline.save_pretrained(tmp_path)
    (tmp_path / "sampling.json").write_text(f'{{"steps": 2, "slots": {generators.SLOTS}, "layers": [1, 2, 3]}}')
    again = load(tmp_path)
    assert isinstance(again, ImageGenerator)
    assert again.sampling == flux.sampling
    assert len(again.fingerprint) == 64
    torch.testing.assert_close(again.sample(asked(again)), flux.sample(asked(flux)), atol=1e-5, rtol=1e-5)
    pixels = again.pixels(again.sample(asked(again)))
    assert (pixels.shape, pixels.dtype) == ((1, 16, 32, 3), np.uint8)
    (tmp_path / "sampling.json").write_text('{"step": 2}')
    with pytest.raises(UnknownName, match="did you mean 'steps'"):
        load(tmp_path)
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").rename(
        tmp_path / "transformer" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(SubjectError, match="pickled weights only"):
        load(tmp_path)


REAL = {
    "klein-4B": {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680},
    "klein-9B": {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288},
    "dev": {"num_layers": 8, "num_single_layers": 48, "num_attention_heads": 48, "joint_attention_dim": 15360},
}


@pytest.mark.parametrize("name", REAL)
def test_every_site_of_the_published_sizes_is_a_module_that_is_there(name: str):
    with torch.device("meta"):
        model = Flux2Transformer2DModel(guidance_embeds=name == "dev", **REAL[name])
    shape = shape_of(model.config)
    assert (shape.n_layers, shape.n_double) == (
        REAL[name]["num_layers"] + REAL[name]["num_single_layers"],
        REAL[name]["num_layers"],
    )
    for layer in range(shape.n_layers):
        for kind in ("resid_pre", "resid_post", "attn_in", "attn_out", "q", "k", "v", "head_z", "mlp_in", "mlp_post", "mlp_out"):
            site = Site(kind, layer)
            if layer >= shape.n_double and kind in FLUX2.cannot_single:
                continue
            FLUX2.validate(site, shape)
            for place in FLUX2.places(site, shape):
                module = model.get_submodule(place.module)
                if place.part is not None and place.side == "output":
                    assert module.out_features >= place.part[1]
                if kind == "head_z":
                    width = module.in_features if place.part is None else place.part[1] - place.part[0]
                    assert width == shape.n_heads * shape.d_head
                if kind == "mlp_post":
                    width = module.in_features if place.part is None else place.part[1] - place.part[0]
                    assert width == shape.d_mlp
