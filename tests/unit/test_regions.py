from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediant.core.errors import RegionError
from mediant.subject.regions import Cell, RegionMap, clipped, grid


def tiled() -> RegionMap:
    """An image of 96 x 64: two tiles of 2 x 2 cells each, a newline token, and the whole in 2 x 2 cells."""
    cells = [
        *grid((0, 0, 48, 64), 2, 2),
        *grid((48, 0, 96, 64), 2, 2, view=1),
        Cell(None, 1),
        *grid((0, 0, 96, 64), 2, 2, view=2),
    ]
    return RegionMap(96, 64, tuple(cells), tuple(range(3, 3 + len(cells))))


def test_a_box_has_tokens_in_every_view():
    assert tiled().within((0, 0, 48, 64)) == (3, 4, 5, 6, 12, 14)
    assert tiled().within((48, 0, 96, 32)) == (7, 8, 13)


def test_tokens_without_a_place_are_others_and_never_inside():
    image = tiled()
    everything = image.within((0, 0, 96, 64))
    assert 11 not in everything
    assert image.others(everything) == (11,)


def test_a_middle_on_the_edge_is_inside():
    assert tiled().within((12, 16, 12.5, 16.5)) == (3,)


def test_a_box_between_the_middles_is_refused_or_stands_for_the_nearest_token_of_each_view():
    image = tiled()
    with pytest.raises(RegionError, match="holds no image token's middle; tokens of this 96 x 64 image see about 24 x 32 pixels"):
        image.within((0, 0, 4, 4))
    assert image.within((0, 0, 4, 4), nearest=True) == (3, 7, 12)


@pytest.mark.parametrize(
    ("box", "message"),
    [((50, 0, 40, 10), "left < right"), ((0, 9, 10, 9), "left < right"), ((100, 0, 120, 20), "outside the image of 96 x 64"),
     ((-20, -20, 0, 0), "outside the image")],
)  # fmt: skip
def test_boxes_that_are_none_are_refused(box, message):
    with pytest.raises(RegionError, match=message):
        tiled().within(box)


def test_a_mask_covers_the_tokens_whose_middles_it_covers():
    image = tiled()
    mask = [[x < 48 for x in range(96)] for _ in range(64)]
    assert image.covering(mask) == image.within((0, 0, 47.9, 64))
    with pytest.raises(RegionError, match="covers no image token"):
        image.covering([[False] * 96 for _ in range(64)])
    with pytest.raises(RegionError, match="64 rows of 96 pixels"):
        image.covering([[True] * 4])


def test_what_padding_showed_has_no_place():
    assert clipped(Cell((-10, 0, 5, 8)), 96, 64).box == (0, 0, 5, 8)
    assert clipped(Cell((-10, 0, 0, 8)), 96, 64).box is None


def test_cells_and_columns_must_be_as_many():
    with pytest.raises(RegionError, match="2 cells but 1 image tokens"):
        RegionMap(8, 8, (Cell(None), Cell(None)), (0,))


def column_shares(widths: list[int], columns: int) -> list[tuple[int, int]]:
    """The published way from panels to columns: in proportion to pixel widths, rounded, at least one column each."""
    edges, total, so_far = [0], sum(widths), 0
    for i, width in enumerate(widths, start=1):
        so_far += width
        edges.append(min(max(round(columns * so_far / total), edges[-1] + 1), columns - (len(widths) - i)))
    return list(pairwise(edges))


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6))
def test_panels_made_of_whole_cells_get_the_columns_of_the_published_way(cells):
    widths, columns = [32 * n for n in cells], sum(cells)
    image = RegionMap(32 * columns, 64, tuple(grid((0, 0, 32 * columns, 64), 2, columns)), tuple(range(2 * columns)))
    left = 0
    for width, (first, stop) in zip(widths, column_shares(widths, columns), strict=True):
        found = image.within((left, 0, left + width, 64))
        assert found == tuple(r * columns + c for r in range(2) for c in range(first, stop))
        left += width
