"""Scenes: the same everywhere, uniform and independent factors, and ground truth that is true."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare, kstest
from torch.nn import functional as F

from vit_analysis.lab import scenes
from vit_analysis.lab.scenes import FACTORS, OUTLINES, RADIUS, REACH, SHAPES, TEXTURES, draw
from vit_analysis.spelling import Refusal

MANY = 4000
FIRST_SHAPES = ["star", "bar", "square", "cross", "disk", "heart"]
FIRST_TEXTURES = ["stripes", "checker", "dots", "stripes", "plain", "checker"]
FIRST_MEANS = [0.24705, 0.27296, 0.22094, 0.2885, 0.3506, 0.26821]


@pytest.fixture(scope="module")
def many() -> scenes.Scenes:
    return draw(range(MANY), seed=3)


@given(st.lists(st.integers(0, 2**62), min_size=1, max_size=9), st.integers(0, 2**63), st.integers(0, 8))
@settings(max_examples=25, deadline=None)
def test_a_scene_does_not_depend_on_its_batch(indices: list[int], seed: int, which: int) -> None:
    which %= len(indices)
    together, alone = draw(indices, seed=seed), draw([indices[which]], seed=seed)
    for name in ("image", "shape", "texture", "position", "scale"):
        assert torch.equal(getattr(together, name)[which], getattr(alone, name)[0])


def test_indices_may_be_a_tensor() -> None:
    assert torch.equal(draw(torch.tensor([5, 2])).image, draw([5, 2]).image)


def test_another_size_is_the_same_scene() -> None:
    small, large = draw(range(64), size=32), draw(range(64), size=96)
    for name in ("shape", "texture", "position", "scale"):
        assert torch.equal(getattr(small, name), getattr(large, name))
    difference = F.avg_pool2d(large.image, 3) - small.image
    assert difference.abs().mean() < 0.05  # noise and the edges of the texture
    other = draw(range(64, 128), size=32).image
    assert (F.avg_pool2d(large.image, 3) - other).abs().mean() > 0.15


def test_other_seeds_and_numbers_are_other_scenes() -> None:
    assert not torch.equal(draw([0], seed=0).image, draw([0], seed=1).image)
    keys = {draw([i], seed=seed).image.sum().item() for i in range(20) for seed in range(20)}
    assert len(keys) == 400


def test_a_scene_stays_what_it_was() -> None:
    """The weights that are shipped were trained on these: a change of the drawing must be seen."""
    drawn = draw(range(6), seed=0)
    assert [SHAPES[i] for i in drawn.shape] == FIRST_SHAPES
    assert [TEXTURES[i] for i in drawn.texture] == FIRST_TEXTURES
    torch.testing.assert_close(drawn.image.mean(dim=(1, 2, 3)), torch.tensor(FIRST_MEANS), atol=1e-4, rtol=0)


def test_factors_are_uniform() -> None:
    numbers = scenes.uniforms(np.arange(20_000, dtype=np.uint64), seed=1)
    for name in FACTORS:
        assert kstest(numbers[name], "uniform").pvalue > 1e-4, name


def test_factors_are_independent_of_each_other_and_of_their_neighbours() -> None:
    numbers = np.stack(list(scenes.uniforms(np.arange(20_000, dtype=np.uint64), seed=1).values()))
    shifted = np.concatenate([numbers[:, 1:], numbers[:, :-1]])
    correlation = np.corrcoef(shifted) - np.eye(len(shifted))
    assert np.abs(correlation).max() < 5 / np.sqrt(20_000)


def test_ground_truth_is_balanced_and_crossed(many: scenes.Scenes) -> None:
    assert chisquare(torch.bincount(many.shape, minlength=len(SHAPES))).pvalue > 1e-4
    assert chisquare(torch.bincount(many.texture, minlength=len(TEXTURES))).pvalue > 1e-4
    table = torch.zeros(len(SHAPES), len(TEXTURES)).index_put_(
        (many.shape, many.texture), torch.ones(MANY), accumulate=True
    )
    assert chi2_contingency(table.numpy()).pvalue > 1e-4
    assert (2 * many.position - 1).abs().max() <= REACH
    assert RADIUS[0] <= many.scale.min() < 0.36
    assert 0.64 < many.scale.max() <= RADIUS[1]


def test_pixels_are_colours(many: scenes.Scenes) -> None:
    assert many.image.shape == (MANY, 3, 32, 32)
    assert many.image.dtype == torch.float32
    assert many.image.min() >= 0
    assert many.image.max() <= 1


def bright(image: torch.Tensor) -> torch.Tensor:
    """The object: darkest 0.52 less the noise, where the ground is at most 0.4 and the noise."""
    return (image.mean(dim=1) > 0.46).float()


def test_the_position_is_where_the_object_is() -> None:
    drawn = draw(range(2000), seed=5, size=64)
    line = (torch.arange(64) + 0.5) / 64
    mass = bright(drawn.image)
    total = mass.sum(dim=(1, 2))
    row = (mass.sum(dim=2) * line).sum(dim=1) / total
    column = (mass.sum(dim=1) * line).sum(dim=1) / total
    inside = ((2 * drawn.position - 1).abs().amax(dim=1) + 1.1 * drawn.scale) < 1  # nothing is cut
    error = (torch.stack([row, column], dim=1) - drawn.position)[inside].abs().amax(dim=1)
    assert inside.sum() > 500
    assert error.max() < 1 / 64
    assert ((torch.stack([column, row], dim=1) - drawn.position)[inside].abs().amax(dim=1) > 1 / 32).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_scale_is_the_radius(shape: str) -> None:
    """The area grows with the square of the scale, and no outline reaches far beyond it."""
    drawn = draw(range(2000), seed=6, size=64)
    inside = ((2 * drawn.position - 1).abs().amax(dim=1) + 1.1 * drawn.scale) < 1
    chosen = inside & (drawn.shape == SHAPES.index(shape))
    area = bright(drawn.image[chosen]).mean(dim=(1, 2)) / drawn.scale[chosen] ** 2
    assert area.std() / area.mean() < 0.12
    line = torch.linspace(-2, 2, 400)
    y, x = torch.meshgrid(line, line, indexing="ij")
    reached = torch.hypot(x, y)[OUTLINES[shape](x[None], y[None])[0] < 0].max()
    assert 0.9 < reached < 1.35


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_are_centred_and_close_to_distances(shape: str) -> None:
    line = torch.linspace(-2, 2, 401)
    y, x = torch.meshgrid(line, line, indexing="ij")
    distance = OUTLINES[shape](x[None], y[None])[0]
    assert x[distance < 0].mean().abs() < 0.01
    assert y[distance < 0].mean().abs() < 0.01
    dy, dx = torch.gradient(distance, spacing=0.01)
    slope = torch.hypot(dx, dy)[distance.abs() < 0.05]
    assert slope.quantile(0.1) > 0.9
    assert slope.quantile(0.9) < 1.1


def prototypes(masks: torch.Tensor) -> torch.Tensor:
    return F.normalize(masks.flatten(1), dim=1)


def test_shapes_can_be_told_apart_when_nothing_else_varies() -> None:
    """All outlines at one place, size and angle: every pair differs in a good part of their pixels."""
    kinds = torch.arange(len(SHAPES))
    ones = torch.ones(len(SHAPES), 1, 1)
    masks = scenes.coverage(kinds, torch.zeros(2, len(SHAPES), 1, 1), 0.5 * ones, 0 * ones, 32)
    likeness = prototypes(masks) @ prototypes(masks).T - torch.eye(len(SHAPES))
    assert likeness.max() < 0.95


def test_textures_can_be_told_apart_when_nothing_else_varies() -> None:
    factors = {name: torch.full((4, 1, 1), 0.3) for name in FACTORS}
    patterns = scenes.pattern(torch.arange(4), factors, 32)
    assert torch.equal(patterns[0], torch.zeros(32, 32))
    assert torch.pdist(patterns.flatten(1)).min() > 10
    assert patterns[1:].std(dim=(1, 2)).min() > 0.4


def test_the_shape_is_not_in_the_pixels_as_they_are(many: scenes.Scenes) -> None:
    """Nearest neighbours in pixels do better than chance and far worse than a trained model."""
    pixels = many.image.flatten(1)
    nearest = torch.cdist(pixels[:1000], pixels[1000:]).argmin(dim=1)
    right = (many.shape[1000:][nearest] == many.shape[:1000]).float().mean()
    assert 0.12 < right < 0.5


def test_refuses_no_pixels() -> None:
    with pytest.raises(Refusal, match="at least 1 pixel wide, got size=0"):
        draw([0], size=0)


def test_nothing_drawn_is_an_empty_batch() -> None:
    assert draw([]).image.shape == (0, 3, 32, 32)
