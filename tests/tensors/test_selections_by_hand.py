"""Every choice of tokens, position by position, against what it says it is; no helper of the code is used to say that.

Inputs are not square, images are not as many as tokens, and what is planted is no mean of anything, so that an exchange of
axes, of near and far, or of what stays and what is replaced shows. A choice without a case is an error.
"""

import statistics
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

from vit_analysis.spelling import Refusal
from vit_analysis.tensors import similarity
from vit_analysis.tensors.grams import DERIVED, Grams
from vit_analysis.tensors.tokens import (
    SELECTIONS,
    Grid,
    Layout,
    aligned,
    as_tokens,
    channels_first,
    on_grid,
)

ROWS, COLUMNS, CHANNELS, PREFIX = 3, 5, 7, 2
TOKENS = ROWS * COLUMNS
VIT = Layout(spatial=TOKENS, prefix=PREFIX, class_token=True, grid=(ROWS, COLUMNS))
LAST = Layout(channels_last=True)
KINDS = {"tokens": VIT, "patches": VIT, "map": Layout(), "map, channels last": LAST, "vector": Layout()}


def made(kind: str, images: int = 20) -> tuple[Tensor, np.ndarray]:
    """An activation, and its tokens one by one as ``image token channel``: row by row from the top left."""
    generator = torch.Generator().manual_seed(0)
    if kind == "vector":
        x = torch.randn(images, CHANNELS, generator=generator) + 3
        return x, x.double().numpy()[:, None]
    count = TOKENS + (PREFIX if kind == "tokens" else 0)
    x = torch.randn(images, count, CHANNELS, generator=generator) + 3
    x[1, 4] *= 60  # two massive tokens, of which one has a place that has another one
    x[6, 4] *= -80
    x[6, 9] *= 90
    if kind in ("tokens", "patches"):
        return x, x.double().numpy()
    given = torch.empty(
        (images, CHANNELS, ROWS, COLUMNS) if kind == "map" else (images, ROWS, COLUMNS, CHANNELS)
    )
    for row, column in product(range(ROWS), range(COLUMNS)):
        place = (row, column)
        if kind == "map":
            given[:, :, *place] = x[:, COLUMNS * row + column]
        else:
            given[:, *place] = x[:, COLUMNS * row + column]
    return given, x.double().numpy()


def length(values: np.ndarray) -> float:
    return sum(float(value) ** 2 for value in values) ** 0.5


def each(x: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return np.array([[change(token) for token in image] for image in x])


def without_massive(x: np.ndarray) -> np.ndarray:
    """Tokens longer than five times the median of all, lower of two in the middle, are the mean of the others there."""
    lengths = np.array([[length(token) for token in image] for image in x])
    limit = 5 * statistics.median_low(lengths.ravel().tolist())
    new = x.copy()
    for image, token in zip(*np.nonzero(lengths > limit), strict=True):
        ordinary = [x[other, token] for other in range(len(x)) if lengths[other, token] <= limit]
        new[image, token] = sum(ordinary) / len(ordinary)
    return new


def without_dominant(x: np.ndarray) -> np.ndarray:
    """One image of a hundred, the farthest from the mean of all, is the mean of the others."""
    flat = x.reshape(len(x), -1)
    mean = sum(flat) / len(flat)
    order = sorted(range(len(flat)), key=lambda image: length(flat[image] - mean))
    far = order[-max(1, round(len(flat) / 100)) :]
    rest = [flat[image] for image in order if image not in far]
    new = flat.copy()
    new[far] = sum(rest) / len(rest)
    return new


def standard(token: np.ndarray) -> np.ndarray:
    mean = sum(token) / len(token)
    return (token - mean) / (sum((token - mean) ** 2) / len(token) + 1e-5) ** 0.5


SAID: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "all": lambda x, _: x,
    "spatial": lambda x, prefix: x[:, prefix:],
    "cls": lambda x, _: x[:, 0],
    "mean": lambda x, _: sum(x[:, token] for token in range(x.shape[1])) / x.shape[1],
    "normalized": lambda x, _: each(x, lambda token: token / length(token)),
    "standardized": lambda x, _: each(x, standard),
    "inliers": lambda x, _: without_massive(x),
    "typical": lambda x, _: without_dominant(x),
}
"""What a choice is, from tokens one by one and how many stand before the spatial ones."""
WHOLE = ("all", "spatial", "cls")
"""Choices that leave a map or a vector as it is, axes included."""


def expected(name: str, kind: str, tokens: np.ndarray) -> np.ndarray | None:
    if kind == "patches" and name == "cls":
        return None
    if kind not in ("tokens", "patches") and name in WHOLE:
        return tokens
    return SAID[name](tokens, PREFIX if kind == "tokens" else 0)


def test_every_choice_has_a_case():
    assert SAID.keys() == SELECTIONS.keys()
    assert DERIVED.keys() <= SELECTIONS.keys()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SELECTIONS)
def test_a_choice_is_what_it_says_at_every_position(name, kind):
    x, tokens = made(kind)
    found, said = SELECTIONS[name](x, KINDS[kind]), expected(name, kind, tokens)
    if said is None:
        assert found is None
        return
    assert found is not None
    if name in WHOLE and kind not in ("tokens", "patches"):
        assert torch.equal(found, x)
        return
    if name == "typical" and kind == "map":  # images whole, as they are arranged
        found = found.view(len(x), CHANNELS, TOKENS).mT
    np.testing.assert_allclose(found.reshape(said.shape), said, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SELECTIONS)
def test_its_gram_matrix_is_of_that(name, kind):
    x, tokens = made(kind)
    found, said = Grams(x, KINDS[kind]).of(name), expected(name, kind, tokens)
    if said is None:
        assert found is None
        return
    assert found is not None
    rows = said.reshape(len(said), -1)
    rows = torch.tensor(rows - rows.mean(0))
    ours, theirs = (similarity.u_centre(gram) for gram in (found, rows @ rows.T))
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize(("images", "replaced"), [(20, 1), (149, 1), (160, 2), (300, 3), (99, 1)])
def test_one_in_a_hundred_images_is_replaced_and_those_are_the_far_ones(images, replaced):
    x = torch.randn(images, 4, 3)
    planted = list(range(5, 5 + 7 * replaced, 7))
    for place, image in enumerate(planted):
        x[image] += 100 + 10 * place
    new = SELECTIONS["typical"](x, Layout()).view_as(x)
    changed = [image for image in range(images) if not torch.allclose(new[image], x[image])]
    assert changed == planted
    rest = [image for image in range(images) if image not in planted]
    np.testing.assert_allclose(new[planted[0]], x[rest].mean(0), atol=1e-5)


def test_only_what_is_planted_is_massive_and_a_token_at_the_limit_is_not():
    x = torch.ones(6, 5, 4)
    x[2, 3] = 5.0  # as long as five times the median, and not longer
    x[4, 1] = -5.1
    new = SELECTIONS["inliers"](x, Layout())
    assert (new != x).any(-1).nonzero().tolist() == [[4, 1]]
    assert new[4, 1].tolist() == [1.0] * 4


@pytest.mark.parametrize("ordinary", [0, 1, 2])
def test_a_massive_token_is_the_mean_of_as_many_ordinary_ones_as_there_are_at_its_place(ordinary):
    x = 1 + torch.rand(4, 6, 3)
    x[ordinary:, 2] *= 100
    new = SELECTIONS["inliers"](x, Layout())
    said = sum(x[image, 2] for image in range(ordinary)) / ordinary if ordinary else torch.zeros(3)
    for image in range(ordinary, 4):
        np.testing.assert_allclose(new[image, 2], said, rtol=1e-6)


# Where positions lie -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tokens", "patches", "map", "map, channels last"])
def test_every_position_is_at_its_row_and_column(kind):
    x, tokens = made(kind)
    found, prefix = on_grid(x, KINDS[kind], "x"), PREFIX if kind == "tokens" else 0
    assert found.shape == (20, ROWS, COLUMNS, CHANNELS)
    for row, column in product(range(ROWS), range(COLUMNS)):
        np.testing.assert_array_equal(found[:, row, column], tokens[:, prefix + COLUMNS * row + column])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_read_row_by_row(kind):
    x, tokens = made(kind)
    np.testing.assert_array_equal(as_tokens(x, KINDS[kind]), tokens)


@pytest.mark.parametrize("kind", ["map", "map, channels last"])
def test_a_map_is_brought_to_channels_first(kind):
    x, tokens = made(kind)
    found = channels_first(x, KINDS[kind])
    for row, column in product(range(ROWS), range(COLUMNS)):
        np.testing.assert_array_equal(found[:, :, row, column], tokens[:, COLUMNS * row + column])


@pytest.mark.parametrize(
    ("layout", "shape", "last"),
    [
        (Layout(), (2, 3, 5, 7), False),
        (LAST, (2, 3, 5, 7), True),
        (Layout(grid=(3, 5)), (2, 3, 5, 7), True),
        (Layout(channels_last=True, grid=(5, 7)), (2, 3, 5, 7), False),
        (Layout(channels_last=True, grid=(2, 2)), (2, 3, 5, 7), True),  # the grid says nothing of this map
        (Layout(channels_last=True, grid=(4, 4)), (2, 4, 4, 4), True),  # nor where all are alike
        (Layout(grid=(4, 4)), (2, 4, 4, 4), False),
        (Layout(by_shape=True), (2, 4, 4, 7), True),
        (Layout(channels_last=True, by_shape=True), (2, 7, 4, 4), False),
        (Layout(channels_last=True, by_shape=True), (2, 4, 4, 4), True),
        (Layout(channels_last=True, by_shape=True), (2, 3, 5, 7), True),
        (Layout(by_shape=True), (2, 3, 5, 7), False),
    ],
)
def test_where_channels_are_follows_from_the_grid_then_the_shape_then_what_is_declared(layout, shape, last):
    assert layout.ends_with_channels(torch.zeros(shape)) is last


def test_a_grid_has_its_cells_row_by_row_each_of_its_height_and_width():
    grid = Grid(2, 3, 4.0, 10.0, top=-1.0, left=-2.0)
    centres = [(4 * row, 10 * column) for row in range(2) for column in range(3)]
    for one, other in product(range(6), repeat=2):
        down, across = (a - b for a, b in zip(centres[one], centres[other], strict=True))
        assert float(grid.distances()[one, other]) == pytest.approx((down**2 + across**2) ** 0.5)
    # Of two rows the second, of three columns the second: pixels 4 to 7 and 10 to 19, from where the first cell begins.
    assert grid.middle() == (-1 + 5.5, -2 + 14.5)
    assert Grid(5, 2, 2.0, 6.0).middle() == (4.5, 8.5)


def test_a_layout_that_is_not_told_has_no_tokens_before_the_spatial_ones_and_trusts_any_number_of_them():
    x = torch.randn(2, 11, 4)
    assert Layout().prefix_of(x) == 0
    assert not any(Layout(prefix=prefix).has_class_token(x) for prefix in (0, 2))
    assert Layout(spatial=3, prefix=2).prefix_of(x) == 2
    with pytest.raises(Refusal, match="neither the 3 of the grid nor those with the 2"):
        Layout(spatial=3, prefix=2, counted=True).prefix_of(x)
    assert Layout(spatial=9, prefix=2, counted=True).prefix_of(x) == 2
    assert Layout(spatial=11, prefix=2, counted=True).prefix_of(x) == 0
    assert Layout(spatial=9, prefix=2, counted=True).prefix_of(torch.randn(2, 2, 4)) == 2
    assert Layout(spatial=9, prefix=2).prefix_of(torch.randn(2, 1, 4)) == 1  # no more than there are
    cut = Grid(1, 1, 1.0, 1.0)
    assert (cut.top, cut.left) == (0, 0)


@pytest.mark.parametrize(
    ("shape", "channels", "grid", "patch"),
    [
        ((2, 3, 8, 12), 3, (8, 12), (1, 1)),
        ((2, 3, 8, 12), 6, (4, 3), (1, 2)),
        ((2, 3, 8, 12), 11, (4, 3), (1, 2)),
        ((2, 3, 8, 12), 12, (4, 3), (2, 2)),
        ((2, 3, 8, 12), 24, (4, 3), (2, 4)),
        ((2, 3, 8, 12), 24, (4, 6), (2, 2)),  # four across would be fewer columns than the other has
        ((2, 3, 8, 12), 24, (8, 3), (1, 2)),
        ((2, 3, 8, 10), 24, (2, 2), (2, 2)),  # five do not divide by two again
    ],
)
def test_a_map_is_folded_into_patches_until_it_has_as_many_channels_and_pooled_to_the_grid(
    shape, channels, grid, patch
):
    x = torch.randn(shape)
    found = aligned(x, channels, grid)
    down, across = patch
    rows, columns = shape[2] // down, shape[3] // across
    assert found.shape == (2, grid[0] * grid[1], 3 * down * across)
    for row, column in product(range(grid[0]), range(grid[1])):
        if rows % grid[0] or columns % grid[1]:
            continue
        tall, wide = rows // grid[0], columns // grid[1]
        features = [
            x[:, channel, (tall * row + i) * down + y, (wide * column + j) * across + z]
            for channel, y, z in product(range(3), range(down), range(across))
            for i, j in product(range(tall), range(wide))
        ]
        said = torch.stack(features, 1).view(2, 3 * down * across, tall * wide).mean(-1)
        np.testing.assert_allclose(found[:, grid[1] * row + column], said, atol=1e-6)
