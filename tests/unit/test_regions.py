from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediant.core.errors import OutOfRange, RegionError
from mediant.subject.regions import Cell, RegionMap, clipped, column_shares, grid


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


@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.integers(0, 60))
def test_columns_are_shared_out_in_order_and_every_panel_gets_one(widths, more):
    columns = len(widths) + more
    shares = column_shares(widths, columns)
    assert shares[0][0] == 0
    assert shares[-1][1] == columns
    assert all(a < b for a, b in shares)
    assert all(one[1] == two[0] for one, two in pairwise(shares))


def test_equal_panels_share_as_their_boxes_do():
    cells = grid((0, 0, 384, 64), 2, 12)
    image = RegionMap(384, 64, tuple(cells), tuple(range(24)))
    for k, (first, stop) in enumerate(column_shares([64] * 6, 12)):
        assert image.within((64 * k, 0, 64 * (k + 1), 64)) == tuple(r * 12 + c for r in range(2) for c in range(first, stop))
    with pytest.raises(OutOfRange, match="6 panels do not fit into 4 columns"):
        column_shares([64] * 6, 4)
