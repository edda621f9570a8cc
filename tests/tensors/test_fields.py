"""Squares against a loop over pixels that shares no code with them."""

import numpy as np
import pytest
import torch

from vit_analysis.tensors.fields import Squares, offsets, weights
from vit_analysis.tensors.tokens import Grid

SHARES = (0.2, 0.3, 0.5, 0.99)


def smallest(field: np.ndarray, place: tuple[float, float], share: float) -> tuple[float, float]:
    """Side and area of the smallest centred square that holds more than a share: every side is tried in turn."""
    rows, columns = field.shape
    side = 1.0 if all(float(middle).is_integer() for middle in place) else 2.0
    while True:
        held, pixels = 0.0, 0
        for row in range(rows):
            for column in range(columns):
                if max(abs(row - place[0]), abs(column - place[1])) <= (side - 1) / 2:
                    held, pixels = held + field[row, column], pixels + 1
        if held > share * field.sum():
            return side, pixels / field.size
        side += 2


@pytest.mark.parametrize(
    ("shape", "place"),
    [
        *[((9, 9), (4.0, 4.0)), ((8, 8), (4.0, 4.0)), ((8, 8), (3.5, 3.5)), ((12, 12), (7.5, 7.5))],
        *[((10, 14), (5.0, 7.0)), ((14, 10), (5.5, 3.5)), ((11, 11), (2.0, 9.0))],
    ],
)
def test_sides_are_those_of_a_loop_over_squares_around_pixels_corners_and_off_the_centre(shape, place):
    field = np.random.default_rng(0).gamma(0.3, size=shape)
    squares = Squares.around(*shape, place)
    flat = torch.from_numpy(field).flatten()
    found, between = squares.holding(flat, SHARES), squares.between(flat, SHARES)
    for share, side, inner in zip(SHARES, found.tolist(), between.tolist(), strict=True):
        expected, area = smallest(field, place, share)
        assert side == expected
        number = squares.number(torch.tensor([side], dtype=torch.float64))
        assert squares.areas[number].item() == pytest.approx(area)
        assert side - 2 <= inner <= side


OFF_CENTRE = [((9, 9), (4.0, 4.0)), ((10, 14), (5.0, 7.0)), ((7, 12), (5.5, 2.5)), ((3, 8), (0.0, 7.0))]


@pytest.mark.parametrize(("shape", "place"), OFF_CENTRE)
@pytest.mark.parametrize("hole", [False, True])
def test_between_squares_sides_grow_evenly_with_what_they_hold(shape, place, hole):
    field = np.random.default_rng(1).gamma(0.3, size=shape)
    row, column = np.indices(shape)
    far = np.maximum(abs(row - place[0]), abs(column - place[1]))
    if hole:
        field[far < 2] = 0  # the smallest squares hold nothing
    squares = Squares.around(*shape, place)
    sides = sorted({2 * reach + 1 for reach in far.ravel().tolist()})
    held = [field[2 * far + 1 <= side].sum() / field.sum() for side in sides]
    assert squares.sides.tolist() == sides
    np.testing.assert_allclose(squares.areas, [(2 * far + 1 <= side).mean() for side in sides])
    flat = torch.from_numpy(field).flatten()
    shares = (0.05, *SHARES)
    expected = np.interp(shares, [0, *held], [0, *sides])
    np.testing.assert_allclose(squares.between(flat, shares), expected)
    assert squares.holding(flat, (*shares, 1.0)).tolist() == [
        next((side for side, own in zip(sides, held, strict=True) if own > share), sides[-1])
        for share in (*shares, 1.0)
    ]
    asked = [0.0, *sides, *(side + 0.5 for side in sides), 1e9]
    numbers = [next((n for n, side in enumerate(sides) if side >= own), len(sides) - 1) for own in asked]
    assert squares.number(torch.tensor(asked, dtype=torch.float64)).tolist() == numbers


def test_moments_are_of_distances_from_the_middle_of_the_position_s_own_patch():
    """Of a grid whose cells are neither square nor begin at the first pixel; its middle is of row 2 and column 1."""
    rows, columns, grid = 19, 17, Grid(4, 3, 4.0, 6.0, top=1.0, left=-2.0)
    one, squares, inside = weights(rows, columns, grid)
    assert (one == 1).all()
    down, across = range(1 + 8, 1 + 12), range(-2 + 6, -2 + 12)
    for row, column in np.ndindex(rows, columns):
        far = (row - np.mean(down)) ** 2 + (column - np.mean(across)) ** 2
        assert float(squares[row, column]) == pytest.approx(far)
        assert bool(inside[row, column]) == (row in down and column in across)


@pytest.mark.parametrize(
    ("place", "stride", "own"), [(4.0, 4.0, range(2, 6)), (4.5, 4.0, range(3, 7)), (0.0, 3.0, range(2))]
)
def test_a_patch_has_as_many_pixels_as_its_stride_whether_its_middle_is_one_or_lies_between_two(
    place, stride, own
):
    distance, inside = offsets(9, place, stride)
    assert distance.tolist() == [pixel - place for pixel in range(9)]
    assert inside.tolist() == [pixel in own for pixel in range(9)]


def published(field: np.ndarray, share: float) -> int | None:
    """The published rule, around pixel (rows // 2, columns // 2), for square images."""
    half = len(field) // 2
    for reach in range(1, half):
        inner = slice(half - reach, half + reach + 1)
        if field[inner, inner].sum() / field.sum() > share:
            return 2 * reach + 1
    return None


@pytest.mark.parametrize("size", [64, 65])
def test_sides_are_the_published_ones_where_the_position_is_the_image_s_centre(size):
    row, column = np.mgrid[:size, :size] - size // 2
    for width in (3.0, 8.0):
        field = np.log10(1 + 50 * np.exp(-(row**2 + column**2) / (2 * width**2)))
        squares = Squares.around(size, size, (float(size // 2), float(size // 2)))
        found = squares.holding(torch.from_numpy(field).flatten(), SHARES)
        assert found.tolist() == [published(field, share) for share in SHARES]


def test_a_constant_field_has_its_shares_as_areas():
    squares = Squares.around(101, 101, (50.0, 50.0))
    sides = squares.holding(torch.ones(101**2, dtype=torch.float64), SHARES)
    for share, side in zip(SHARES, sides.tolist(), strict=True):
        assert (side - 2) ** 2 <= share * 101**2 < side**2


def test_sides_do_not_change_with_the_scale_of_what_they_hold():
    field = torch.rand(400, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    squares = Squares.around(20, 20, (9.5, 9.5))
    assert torch.equal(squares.holding(field, SHARES), squares.holding(8 * field, SHARES))
    assert torch.equal(squares.between(field, SHARES), squares.between(8 * field, SHARES))


def test_a_field_of_zeros_has_no_sides():
    squares = Squares.around(6, 6, (3.0, 3.0))
    nothing = torch.zeros(36, dtype=torch.float64)
    assert squares.holding(nothing, SHARES).isnan().all()
    assert squares.between(nothing, SHARES).isnan().all()
