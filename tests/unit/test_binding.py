"""Conditions of the reference-binding study, on a tiny random generator: each does what its limit case says."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import generators
from mediant.core.errors import SpanError
from mediant.core.site import Site
from mediant.core.span import Span
from mediant.measures.controls import layer_matched, random_sets
from mediant.measures.picture_judge import shows_colour
from mediant.studies.reference_binding import method, padding_dose, task
from mediant.studies.reference_binding.conditions import Conditions
from mediant.studies.reference_binding.config import Config
from mediant.studies.reference_binding.method import Reading
from mediant.studies.reference_binding.verdicts import at_size
from mediant.subject.generator import ImageGenerator, Latents
from mediant.subject.twins import Twins
from mediant.tasks.pictures import requests
from mediant.tasks.request_files import paired
from mediant.tasks.requests import FILLER, Request, RequestPair, lengthened

STEPS, BLOCKS, CLOSED = 2, 5, -1e4
SHORT = "it"


@pytest.fixture(scope="module")
def flux() -> ImageGenerator:
    return generators.klein()


@pytest.fixture(scope="module")
def conditions(flux: ImageGenerator) -> Conditions:
    return Conditions(Twins(flux), Config(model="x", steps=STEPS))


def request(name: str, picture: int = 0, instruction: str = SHORT) -> Request:
    return Request(name, "colour", instruction, (generators.picture(picture),), height=16, width=32)


def same(one: Latents, two: Latents) -> bool:
    return torch.allclose(one, two, atol=1e-4)


@pytest.mark.parametrize("flow", [("reference", "text"), ("reference", "picture"), ("text", "picture")])
def test_strengthening_by_very_little_is_cutting_and_by_nothing_is_nothing(conditions: Conditions, flow: tuple[str, str]):
    chunk = [request("a", 0), request("b", 1)]
    batch, layers = method.encoded(conditions.subject, chunk), [1, 3]
    plain = conditions.sample(batch)
    assert same(conditions.strengthened(layers, flow, 0.0, batch, chunk), plain)
    cut = conditions.cut_in(layers, [flow], batch, chunk)
    assert same(conditions.strengthened(layers, flow, CLOSED, batch, chunk), cut)
    assert not same(cut, plain)
    stronger = conditions.strengthened(layers, flow, 3.0, batch, chunk)
    assert not same(stronger, plain)
    assert not same(stronger, conditions.strengthened_at_random(layers, flow, 3.0, batch, chunk))


def test_dropping_at_the_first_block_leaves_nothing_and_after_the_last_leaves_the_text(conditions: Conditions):
    chunk = [request("a")]
    batch = method.encoded(conditions.subject, chunk)
    assert same(conditions.drop(BLOCKS, batch, chunk), conditions.cut([("reference", "picture")], None, batch, chunk))
    everything = [("reference", "picture"), ("reference", "text")]
    assert same(conditions.drop(0, batch, chunk), conditions.cut(everything, None, batch, chunk))
    assert not same(conditions.drop(2, batch, chunk), conditions.drop(0, batch, chunk))


def test_a_run_patched_with_itself_stays_and_the_last_block_moves_nothing(conditions: Conditions):
    chunk = [request("a", 0), request("b", 1)]
    batch = method.encoded(conditions.subject, chunk)
    plain = conditions.sample(batch)
    itself, other = (
        {each.name: each for each in chunk},
        {each.name: replace(each, references=chunk[1].references) for each in chunk},
    )
    for layer in range(BLOCKS):
        assert same(conditions.patched(layer, "text", itself, batch, chunk), plain)
    assert same(conditions.patched(BLOCKS - 1, "text", other, batch, chunk), plain)
    moved = conditions.patched(1, "text", other, batch, chunk)
    assert not same(moved[:1], plain[:1])
    assert same(moved[1:], plain[1:])


def test_the_lens_of_a_run_without_anything_shows_that_run(conditions: Conditions):
    chunk = [request("a")]
    empty = conditions.empty(chunk)
    reading = Reading("diagonal", 1)
    own = method.lens(conditions.subject, empty, empty, reading, slots="text", steps=STEPS, lens_steps=1)
    assert same(own, conditions.subject.sample(empty, steps=1))
    batch = method.encoded(conditions.subject, chunk)
    assert not same(conditions.lens(reading, "text", batch, chunk), own)
    assert not same(conditions.lens(Reading("input", 1), "text", batch, chunk), conditions.sample(empty))


def test_random_keys_are_as_many_and_never_the_reference(flux: ImageGenerator):
    batch = method.encoded(flux, [request("a"), request("b")])
    keyed = method.random_keys(batch, 3)
    for row in range(2):
        keys = keyed.columns(row, Span("random keys"))
        # At least one other key is always left to see.
        assert len(keys) == len(set(keys)) == min(len(batch.spans[row]["reference"]), batch.n_cols - 65)
        assert not set(keys) & set(batch.spans[row]["reference"])
    assert method.random_keys(batch, 4).spans != keyed.spans


def test_what_was_made_of_the_same_requests_is_made_once_per_thread(conditions: Conditions):
    chunk = [request("a", 0), request("b", 1)]
    batch = conditions.encoded(chunk)
    assert conditions.encoded(chunk) is batch
    assert conditions.encoded(list(chunk)) is batch
    assert conditions.encoded(chunk[:1]) is not batch
    assert conditions.empty(chunk) is conditions.empty(chunk)
    assert conditions.empty(chunk) is not conditions.empty(chunk, instructed=True)
    assert conditions.text_after(1, chunk) is conditions.text_after(1, chunk)
    assert conditions.text_after(2, chunk) is not conditions.text_after(1, chunk)
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(lambda: (conditions.subject, conditions.encoded(chunk))).result()
    assert elsewhere[0] is not conditions.subject
    assert elsewhere[1] is not batch
    torch.testing.assert_close(elsewhere[1].inputs["prompt_embeds"], batch.inputs["prompt_embeds"])


def test_random_keys_differ_from_chunk_to_chunk(conditions: Conditions):
    hidden = []
    for name in "ab":
        chunk = [request(name)]
        batch = conditions.encoded(chunk)
        keyed = method.random_keys(batch, conditions.config.seed + chunk[0].seed)
        wanted = method.knockout(conditions.subject, keyed, [("random keys", "text")], steps=STEPS)
        assert torch.equal(conditions.cut_random("text", batch, chunk), wanted)
        hidden.append(keyed.spans[0]["random keys"])
    assert hidden[0] != hidden[1]


@pytest.mark.parametrize("alike", [False, True])
def test_random_heads_are_as_many_others_and_drawn_anew_for_every_chunk(conditions: Conditions, alike: bool):
    sites, flow = [Site("head_z", 1, 0), Site("head_z", 2, 1)], [("reference", "picture")]
    pool = [Site("head_z", layer, head) for layer in range(BLOCKS) for head in range(4)]
    drawn = []
    for chunk in ([request(name, 0)] for name in "abcd"):
        (heads,) = (layer_matched if alike else random_sets)(sites, pool, draws=1, seed=chunk[0].seed)
        batch = conditions.encoded(chunk)
        made = conditions.cut_random_heads(flow, sites, alike, batch, chunk)
        assert torch.equal(made, conditions.cut(flow, heads, batch, chunk))
        assert not same(made, conditions.cut(flow, sites, batch, chunk))
        drawn.append(heads)
    assert len(set(drawn)) > 1


def test_instructions_grow_by_a_beginning_of_the_same_words_until_padding_is_spent(flux: ImageGenerator):
    pairs = [RequestPair(request("s", 0), request("b", 1))]
    room = len(method.encoded(flux, [pairs[0].base]).spans[0]["padding"])
    left, texts = [], []
    for share in (1.0, 0.67, 0.33, 0.0):
        (pair,) = padding_dose.longer(flux, pairs, share)
        assert pair.source.instruction == pair.base.instruction
        assert np.array_equal(pair.base.references[0], pairs[0].base.references[0])
        left.append(len(method.encoded(flux, [pair.base]).spans[0]["padding"]))
        texts.append(pair.base.instruction)
        # A byte is a token here, so a word may be up to seven of them.
        assert room * share <= left[-1] <= room * share + 7
    assert texts[0] == SHORT
    assert all(longer.startswith(shorter) for shorter, longer in pairwise(texts))
    assert texts[2].startswith(f"{SHORT}, {FILLER.split()[0]}")


@pytest.mark.parametrize("words", ["the dog", "e", "please"])
def test_words_and_filler_part_the_instruction(flux: ImageGenerator, words: str):
    long = lengthened(words, 2)
    batch = padding_dose._parted(flux, method.encoded(flux, [request("a", instruction=long)]), [words])
    spans = batch.spans[0]
    assert (*spans["words"], *spans["filler"]) == spans["instruction"]
    assert flux._decode([int(batch.ids[0, slot]) for slot in spans["words"]]).strip() == words
    assert flux._decode([int(batch.ids[0, slot]) for slot in spans["filler"]]) == ", please take"
    with pytest.raises(SpanError, match="begins with"):
        flux.slots_of(batch, ["another"])


def test_swapping_all_parts_one_by_one_is_told_from_swapping_one(conditions: Conditions):
    base, source = request("b", 0, lengthened("the dog", 1)), request("s", 1, lengthened("the dog", 1))
    batch = method.encoded(conditions.subject, [base])
    given, plain = {base.name: source}, {base.name: "the dog"}
    made = {
        which: padding_dose._swapped(conditions, 1, which, given, plain, batch, [base])
        for which in ("text", "beside", "words", "filler")
    }
    untouched = conditions.sample(batch)
    for one in made:
        assert not same(made[one], untouched), one
        assert all(not same(made[one], made[two]) for two in made if two != one)


def test_neighbours_of_one_instruction_and_size_are_pairs():
    wide = replace(request("w", 5), width=64)
    found = paired([request("a", 0), request("x", 9, "other"), request("b", 1), wide, request("c", 1), request("d", 2)])
    assert [(pair.source.name, pair.base.name) for pair in found] == [("a", "b"), ("c", "d")]


def test_larger_drawings_are_the_same_drawings_and_judged_in_the_judges_size():
    small, large = (requests.generate("style", 3, seed=4, size=size) for size in (64, 256))
    for one, two in zip(small, large, strict=True):
        assert (one.instruction, one.factors, one.seed) == (two.instruction, two.factors, two.seed)
        assert two.target is not None
        assert two.target.shape == two.references[0].shape == (256, 256, 3)
        shrunk = at_size(np.stack([two.target]))[0]
        assert np.abs(shrunk.astype(float) - one.target).mean() < np.abs(shrunk.astype(float) - small[0].target).mean() + 1e-9
    swatch = requests.generate("colour", 1, seed=4, size=256)[0]
    assert shows_colour(at_size(np.stack([swatch.target]))[0], [int(part) for part in swatch.factors["rgb"].split(",")])


def test_tasks_to_choose_on_and_tasks_to_test_on_share_nothing(tmp_path: Path):
    lines = []
    for i in range(12):
        Image.fromarray(generators.picture(i)).save(tmp_path / f"{i}.png")
        one = {"task_id": f"t{i}", "instruction": "it" if i % 2 else "that", "height": 64, "width": 64, "noise_seed": i}
        lines.append(json.dumps(one | {"source_image_path": f"{i}.png"}))
    (tmp_path / "solid_color.jsonl").write_text("\n".join(lines))
    data = task.load(Config(model="x", tasks=str(tmp_path), properties=("colour",), n=4, n_validation=2))

    def names(singles: Sequence[Request], pairs: Sequence[RequestPair]) -> set[str]:
        return {one.name for one in singles} | {one.name for pair in pairs for one in (pair.source, pair.base)}

    test = names(data.test["colour"], data.pairs["colour"])
    validation = names(data.validation["colour"], data.validation_pairs["colour"])
    assert (len(data.pairs["colour"]), len(data.validation_pairs["colour"])) == (4, 2)
    assert not test & validation
