"""The drawn world: every factor is visible where its box says, captions tell all, and held-out combinations stay held out."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest

from mediant.core.errors import OutOfRange, TaskError, UnknownName
from mediant.tasks.pictures import Scene, comics, draw_scene, render
from mediant.tasks.pictures.painter import PALETTE
from mediant.tasks.pictures.scene import ACTIONS, CHARACTERS, COLOURS, FACTORS, OBJECTS, PLACES, STYLES

FOX = Scene("fox", "jumps", "ball", "red", "beach")
SIZE = 96


def changed(one: Scene, two: Scene, size: int = SIZE) -> np.ndarray:
    """Which pixels differ."""
    pictures = [render(scene, size).pixels.astype(int) for scene in (one, two)]
    return np.abs(pictures[0] - pictures[1]).max(-1) > 0


def inside(box: tuple[float, float, float, float], size: int = SIZE, margin: int = 3) -> np.ndarray:
    """Which pixels lie in a box, or next to it."""
    at = np.arange(size)
    left, top, right, bottom = box
    across, down = (at >= left - margin) & (at <= right + margin), (at >= top - margin) & (at <= bottom + margin)
    return down[:, None] & across[None, :]


def test_the_same_scene_is_drawn_alike_every_time_and_at_any_size():
    for style in STYLES:
        scene = replace(FOX, style=style)
        assert np.array_equal(render(scene, 64).pixels, render(scene, 64).pixels)
    small, large = render(FOX, 32), render(FOX, 64)
    assert small.pixels.shape == (32, 32, 3)
    shrunk = large.pixels.reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(shrunk - small.pixels).mean() < 2
    assert large.boxes["object"] == pytest.approx([2 * side for side in small.boxes["object"]])


@pytest.mark.parametrize("factor", FACTORS)
def test_every_two_values_of_every_factor_look_different(factor: str):
    scenes = [replace(FOX, **{factor: value}) for value in FACTORS[factor]]
    pictures = [render(scene, 64).pixels.astype(int) for scene in scenes]
    for i, one in enumerate(pictures):
        for two in pictures[:i]:
            assert (np.abs(one - two).max(-1) > 40).sum() >= 20


@pytest.mark.parametrize("style", [style for style in STYLES if style not in ("neon", "watercolour", "pixel")])
@pytest.mark.parametrize("name", OBJECTS)
def test_what_an_object_changes_lies_in_its_box(name: str, style: str):
    one, two = (replace(FOX, object=name, colour=colour, style=style) for colour in ("red", "blue"))
    found = changed(one, two)
    box = render(one, SIZE).boxes["object"]
    assert found.sum() > 30
    assert not (found & ~inside(box)).any()
    if style == "flat":
        middle = render(one, SIZE).pixels[found].astype(int)
        assert (np.abs(middle - PALETTE["red"]).max(-1) < 12).mean() > 0.6


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", CHARACTERS)
def test_what_a_character_changes_lies_in_its_box_and_within_the_panel(name: str, action: str):
    one, two = (
        replace(FOX, character=name, action=action),
        replace(FOX, character="ghost" if name != "ghost" else "fox", action=action),
    )
    boxes = [render(scene, SIZE).boxes["character"] for scene in (one, two)]
    found = changed(one, two)
    assert not (found & ~(inside(boxes[0]) | inside(boxes[1]))).any()
    left, top, right, bottom = boxes[0]
    assert 0 <= left < right <= SIZE
    assert 0 <= top < bottom <= SIZE
    assert (right - left) * (bottom - top) > 0.08 * SIZE**2


def test_captions_name_every_factor_and_are_read_back():
    random = Random(0)
    for _ in range(300):
        scene = draw_scene(random)
        assert Scene.read(scene.caption) == scene
        assert scene.caption.split()[0].lower() == scene.character
    with pytest.raises(TaskError, match="expected a caption such as"):
        Scene.read("A fox.")
    with pytest.raises(UnknownName, match="did you mean 'rabbit'"):
        Scene.read("Rabbitt jumps with a red ball at the beach.")
    with pytest.raises(UnknownName, match="style"):
        replace(FOX, style="oil")


def test_held_out_pairs_never_meet_in_training_and_each_of_their_parts_does():
    every = [
        Scene(c, a, o, "red", p) for c in CHARACTERS for a in ACTIONS for o in OBJECTS for p in PLACES
    ]  # colours take no part in the split
    main = [scene for scene in every if not scene.held_out]
    things, doings = ({(s.character, s.object) for s in main}, {(s.action, s.place) for s in main})
    for scene in every:
        seen = (scene.character, scene.object) in things and (scene.action, scene.place) in doings
        assert seen == (not scene.held_out)
    assert 0.6 < len(main) / len(every) < 0.85
    for values, at in ((CHARACTERS, "character"), (ACTIONS, "action"), (OBJECTS, "object"), (PLACES, "place")):
        assert {getattr(s, at) for s in main} == {getattr(s, at) for s in every if s.held_out} == set(values)
    assert all(draw_scene(Random(i), "heldout").held_out and not draw_scene(Random(i)).held_out for i in range(50))
    assert all(Scene(s.character, s.action, s.object, c, s.place).held_out == s.held_out for s in every[::37] for c in COLOURS)


def test_a_strip_is_its_panels_with_bars_over_the_borders():
    strip = comics.generate(1, seed=4, size=64)[0]
    assert strip.pixels.shape == (64, 384, 3)
    for k, picture in enumerate(strip.panels):
        left, top, right, bottom = (int(side) for side in strip.panel(k))
        assert np.array_equal(strip.pixels[top:bottom, left + 1 : right - 1], picture.pixels[:, 1:-1])
        x0, y0, x1, y1 = strip.part(k, "object")
        assert left <= x0 < x1 <= right
        assert top <= y0 < y1 <= bottom
    for (_, _, border, _), (start, *_) in pairwise(strip.panel(k) for k in range(6)):
        assert border == start
        assert (strip.pixels[:, int(border) - 1 : int(border) + 1] == 255).all()
    with pytest.raises(OutOfRange, match="0 to 5, got 6"):
        strip.panel(6)


def test_each_caption_fits_one_panel_of_its_strip_alone():
    for split in ("main", "heldout"):
        for strip in comics.generate(30, seed=1, split=split, size=16):
            scenes = [panel.scene for panel in strip.panels]
            assert len({s.character for s in scenes}) == len({s.object for s in scenes}) == 6
            assert all(s.held_out == (split == "heldout") for s in scenes)
    first, again, other = (comics.generate(3, seed=seed, size=16) for seed in (1, 1, 2))
    assert [s.captions for s in first] == [s.captions for s in again] != [s.captions for s in other]
    assert len({s.id for s in [*first, *other]}) == 6
    with pytest.raises(OutOfRange, match="1 to 10 panels"):
        comics.generate(1, panels=11)


def test_letters_stand_in_the_corners_and_differ():
    plain, lettered = (
        comics.compose("x", [panel.scene for panel in comics.sample().panels], letters=text) for text in ("", "AEFHKL")
    )
    tags = []
    for k in range(6):
        left = int(lettered.panel(k)[0])
        differs = (plain.pixels != lettered.pixels)[:, left : left + 64].any(-1)
        assert differs[2:18, 2:18].sum() > 60
        assert not differs[18:].any()
        assert not differs[:, 18:].any()
        tags.append(lettered.pixels[2:18, left + 2 : left + 18].tobytes())
    assert len(set(tags)) == 6
    with pytest.raises(OutOfRange, match="a letter for each"):
        comics.compose("x", [FOX], letters="AB")
