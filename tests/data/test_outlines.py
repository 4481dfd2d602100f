"""Polygons and run lengths as masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tether.data.outlines import packed, polygon_mask, run_length_mask, unpacked
from tether.errors import TetherError


def test_a_rectangle_has_exactly_its_pixels():
    mask = polygon_mask(np.array([[2, 3], [6, 3], [6, 8], [2, 8]], np.float32), 10, 9)
    expected = np.zeros((10, 9), bool)
    expected[3:8, 2:6] = True
    assert (mask == expected).all()


def test_a_polygon_is_cut_off_at_the_picture_and_may_be_flat():
    mask = polygon_mask(np.array([[-5, -5], [50, -5], [50, 50], [-5, 50]], np.float32), 4, 6)
    assert mask.all()
    assert not polygon_mask(np.array([[1, 1], [5, 1], [3, 1]], np.float32), 6, 6).any()
    assert not polygon_mask(np.array([[20, 1], [30, 1], [25, 9]], np.float32), 6, 6).any()


@given(st.lists(st.tuples(st.floats(-3, 15, width=32), st.floats(-3, 15, width=32)), min_size=3, max_size=8))
def test_a_polygon_holds_the_centres_inside_it(corners):
    corners = np.array(corners, np.float32)
    mask = polygon_mask(corners, 9, 12)
    for row in range(9):  # count crossings to the left, centre by centre
        for column in range(12):
            x, y, inside = column + 0.5, row + 0.5, False
            for (x1, y1), (x2, y2) in zip(
                corners.astype(float), np.roll(corners, -1, 0).astype(float), strict=True
            ):
                if (y1 <= y) != (y2 <= y) and x1 + (y - y1) * ((x2 - x1) / (y2 - y1)) <= x:
                    inside = not inside
            assert mask[row, column] == inside


def test_two_halves_share_no_pixel_and_lack_none():
    cut = [[0.2, 0], [7.7, 9]]
    left = polygon_mask(np.array([[0, 0], *cut, [0, 9]], np.float32), 9, 9)
    right = polygon_mask(np.array([[9, 0], cut[0], cut[1], [9, 9]], np.float32), 9, 9)
    assert (left ^ right).all()


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=30))
def test_packed_run_lengths_come_back(counts):
    assert unpacked(packed(counts)).tolist() == counts


def test_a_text_written_by_hand_from_the_format():
    mask = np.zeros((3, 4), bool)
    mask[1:3, 1:3] = True  # down the columns: 4 zeros, 2 ones, 1 zero, 2 ones, 3 zeros
    counts = [4, 2, 1, 2, 3]
    assert packed(counts) == "42102" and unpacked("42102").tolist() == counts
    assert (run_length_mask(np.array(counts), 3, 4) == mask).all()


@pytest.mark.parametrize("text", ["~~", "P", "é", "Q" * 20])
def test_a_damaged_text_is_refused(text):
    with pytest.raises(TetherError, match="run-length text"):
        unpacked(text)


def test_runs_have_to_fill_the_picture():
    with pytest.raises(TetherError, match="add up to 5 pixels"):
        run_length_mask(np.array([2, 3]), 3, 4)
    with pytest.raises(TetherError, match="add up"):
        run_length_mask(np.array([-2, 14]), 3, 4)
