"""The judge of pictures: rates without its errors are right on average, colours are CIE's, what is saved is loaded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mediant.core.errors import SubjectError, TaskError
from mediant.measures.intervals import wilson
from mediant.measures.picture_judge import Errors, PictureJudge, colour_share, corrected, lab, shows_colour

WORDS = {"kind": ("ball", "fox"), "style": ("flat", "neon", "ink")}
PERFECT = Errors(10**7, 10**7, 0, 10**7)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (3, 10), (50, 60), (60, 60)])
def test_a_judge_without_error_leaves_wilsons_interval(hits: int, n: int):
    found = corrected(hits, n, PERFECT)
    assert found.value == pytest.approx(hits / n)
    assert found.ci95 == pytest.approx(wilson(hits, n), abs=1e-4)


def test_known_errors_are_taken_out():
    # Of 100 pictures 60 have it: 0.9 * 60 + 0.2 * 40 = 62 are said to.
    found = corrected(62, 100, Errors(900, 1000, 200, 1000))
    assert found.value == pytest.approx(0.6)
    low, high = wilson(62, 100)
    assert found.ci95[1] - found.ci95[0] > (high - low) / 0.7 - 1e-9
    assert corrected(5, 100, Errors(900, 1000, 200, 1000)).value == 0.0


def test_intervals_cover_the_truth_when_the_judge_is_measured_on_few_pictures():
    random = np.random.default_rng(0)
    truth, sensitivity, specificity, covered = 0.7, 0.9, 0.85, 0
    for _ in range(400):
        errors = Errors(int(random.binomial(120, sensitivity)), 120, int(random.binomial(120, 1 - specificity)), 120)
        seen = random.binomial(100, truth * sensitivity + (1 - truth) * (1 - specificity))
        low, high = corrected(int(seen), 100, errors).ci95
        covered += low <= truth <= high
    assert covered / 400 > 0.93


def test_more_than_the_errors_allow_leaves_the_items_own_interval():
    """A judge that misses one in ten said yes to all: its errors do not hold here, and a hundred items are still a hundred."""
    errors = Errors(900, 1000, 20, 1000)
    for seen in (95, 98, 100):
        assert corrected(seen, 100, errors).ci95 == pytest.approx((wilson(seen, 100)[0], 1.0))
    for seen in (0, 5):
        assert corrected(seen, 100, Errors(1000, 1000, 200, 1000)).ci95 == pytest.approx((0.0, wilson(seen, 100)[1]))


def test_what_the_judge_chose_is_not_counted_as_missed():
    """Chosen by a judge that misses at random: what stays is seen again, what goes is rarely; the truth is recovered."""
    random, truth, errors = np.random.default_rng(1), 0.6, Errors(4500, 5000, 100, 5000)
    covered, found = 0, []
    for _ in range(300):
        still = random.random(100) < truth
        seen = np.where(still, 1.0, random.random(100) < 1 - errors.specificity)
        one = corrected(int(seen.sum()), 100, errors, chosen=True)
        found.append(one.value)
        covered += one.ci95[0] <= truth <= one.ci95[1]
    assert np.mean(found) == pytest.approx(truth, abs=0.01)
    assert covered / 300 > 0.94
    assert corrected(60, 100, errors).value > corrected(60, 100, errors, chosen=True).value


def test_a_judge_no_better_than_a_coin_is_refused():
    with pytest.raises(TaskError, match="better than chance"):
        corrected(5, 10, Errors(50, 100, 50, 100))
    with pytest.raises(TaskError, match="needs items"):
        corrected(0, 0, PERFECT)


def test_lab_is_cies():
    # Published values for sRGB under D65 (Lindbloom's calculator, to a tenth).
    known = {(255, 0, 0): (53.24, 80.09, 67.20), (0, 255, 0): (87.73, -86.18, 83.18), (0, 0, 255): (32.30, 79.19, -107.86)}
    for rgb, wanted in known.items():
        assert lab(np.array(rgb, np.uint8)) == pytest.approx(wanted, abs=0.05)
    assert lab(np.array([255, 255, 255], np.uint8)) == pytest.approx((100, 0, 0), abs=0.02)
    assert lab(np.array([0, 0, 0], np.uint8)) == pytest.approx((0, 0, 0), abs=1e-9)


def test_a_colour_is_shown_where_enough_of_a_picture_is_near_it():
    picture = np.full((50, 50, 3), 255, np.uint8)
    picture[:10, :5] = (200, 40, 40)
    assert colour_share(picture, (205, 45, 38)) == pytest.approx(0.02)
    assert not shows_colour(picture, (205, 45, 38))
    picture[:10, :15] = (200, 40, 40)
    assert shows_colour(picture, (205, 45, 38))
    assert not shows_colour(picture, (40, 40, 200))


def test_what_is_saved_is_loaded(tmp_path: Path):
    judge = replace(PictureJudge.untrained(WORDS), likeness=0.37, errors={"style": Errors(9, 10, 1, 10)})
    folder = tmp_path / "of" / "its own"
    judge.save(folder)
    again = PictureJudge.load(folder)
    assert (again.likeness, again.errors) == (0.37, judge.errors)
    pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    for name, scores in judge.answers(pixels).items():
        torch.testing.assert_close(again.answers(pixels)[name], scores, atol=0.02, rtol=0.02)
    assert again.answers(pixels)["identity"].norm(dim=-1) == pytest.approx([1, 1, 1], abs=1e-5)
    assert again.alike(pixels, pixels) == pytest.approx([1, 1, 1], abs=1e-5)
    assert set(again.best("style", pixels)) <= set(WORDS["style"])
    (folder / "judge.json").unlink()
    with pytest.raises(SubjectError, match="holds no judge"):
        PictureJudge.load(folder)
