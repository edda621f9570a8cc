import numpy as np
import pytest
from scipy.stats import spearmanr

from vit_analysis.spelling import Refusal
from vit_analysis.study import numbers as q
from vit_analysis.study.evidence import Matrix


def square(values: np.ndarray, layers: list[str] | None = None) -> Matrix:
    depth = np.linspace(0, 1, len(values))
    other = np.linspace(0, 1, values.shape[1])
    return Matrix(values, layers or [f"blocks.{i}" for i in range(len(values))], depth, other)


def test_a_map_on_the_common_grid_keeps_its_corners_and_a_plane_stays_a_plane():
    rows, columns = np.mgrid[0:5, 0:9]
    plane = square(rows / 4 + 2 * columns / 8)
    grid = np.linspace(0, 1, 24)
    np.testing.assert_allclose(q.resampled(plane), grid[:, None] + 2 * grid)


def test_uniformity_does_not_depend_on_how_many_layers_are_looked_at():
    def smooth(count: int) -> Matrix:
        depth = np.linspace(0, 1, count)
        return square(np.exp(-np.abs(depth[:, None] - depth)))

    assert q.uniformity(smooth(24)) == pytest.approx(q.uniformity(smooth(139)), abs=0.002)
    assert q.uniformity(square(np.full((7, 7), 0.3))) == pytest.approx(0.3)
    assert q.uniformity(square(np.eye(24))) == 0


def test_the_far_corner_is_the_lowest_third_with_the_highest():
    values = np.zeros((24, 24))
    values[:8, 16:] = 1
    assert q.far(square(values)) == 1
    assert q.far(square(values.T)) == 0


def test_stages_are_read_from_names_and_their_contrast_is_within_less_between():
    layers = ["conv1", "layer1.0.conv1", "layer1.0", "layer2.0", "layer2.1"]
    matrix = square(np.full((5, 5), 0.1), layers)
    assert q.stages(matrix).tolist() == [-1, 1, 1, 2, 2]
    matrix.values[[1, 2, 3, 4], [2, 1, 4, 3]] = 0.9
    assert q.contrast(matrix, q.stages(matrix)) == pytest.approx(0.8)
    with pytest.raises(Refusal, match="needs a CNN with stages"):
        q.stages(square(np.eye(3)))


def test_a_grid_with_the_period_of_a_block_is_found_and_a_smooth_map_has_none():
    layers = [f"blocks.{block}{part}" for block in range(6) for part in (".norm1", ".attn", ".norm2", "")]
    place = np.arange(24)
    grid = square((place[:, None] % 4 == place % 4).astype(float), layers)
    assert q.periodicity(grid) > 0.9
    trend = np.exp(-np.abs(place[:, None] - place) / 8)
    assert q.periodicity(square(grid.values + 3 * trend, layers)) > 0.5
    other = square(trend + 0.1 * (place[:, None] % 3 == place % 3), layers)  # a grid with another period
    assert q.periodicity(other) < 0
    with pytest.raises(Refusal, match="needs several layers of each block"):
        q.periodicity(square(np.eye(6)))


def test_matched_depth_is_where_the_best_match_lies_and_never_falls():
    values = np.zeros((9, 5))
    values[[0, 1, 2, 3, 4], range(5)] = 1  # half as deep, layer by layer
    assert q.matched(square(values), 0.5) == pytest.approx(0.25)
    assert q.matched(square(values), 1.0) == pytest.approx(0.5)
    values[:, 3] = 0
    values[0, 3] = 1  # one match out of order: pooled with its neighbour
    assert (
        q.matched(square(values), 0.75)
        == pytest.approx(q.matched(square(values), 0.5))
        == pytest.approx(0.125)
    )


def test_layers_until_nearly_as_alike_as_ever():
    values = np.array([[0.1, 0.1, 0.1], [0.5, 0.85, 0.5], [0.5, 0.92, 0.5], [0.5, 1.0, 0.5]])
    assert q.layers_until(square(values)) == 3


def test_thirds_of_blocks():
    falling = np.array([0.9, 0.9, 0.5, 0.5, 0.2, 0.2])
    assert q.third_down(falling) == pytest.approx(0.7)
    assert q.third_top(falling) == pytest.approx(0.2)
    assert spearmanr(falling, range(6)).statistic < 0
