"""Where tokens of attentions in windows lie, token by token, on maps that are not square."""

from math import hypot

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vit_analysis import models
from vit_analysis.anatomy.windows import Partition
from vit_analysis.images import Preprocessing
from vit_analysis.layers import Tap
from vit_analysis.reading import scales
from vit_analysis.reading.scales import of_windows, scales_of
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.tokens import Grid

GRID = Grid(6, 10, 4.0, 8.0)


def cut(rows: int, columns: int, high: int, wide: int) -> Tensor:
    """The numbers of the tokens in windows of so many rows and columns, -1 where they reach beyond the map."""
    return torch.tensor(
        [
            [
                row * columns + column if row < rows and column < columns else -1
                for row in range(top, top + high)
                for column in range(left, left + wide)
            ]
            for top in range(0, rows, high)
            for left in range(0, columns, wide)
        ]
    )


@pytest.mark.parametrize(
    ("step", "shape", "window"),
    [
        *[(0, (6, 10), (3, 5)), (0, (6, 10), (6, 5)), (0, (6, 10), (4, 5))],
        *[
            (1, (3, 5), (3, 5)),
            (1, (3, 5), (2, 2)),
            (2, (2, 3), (1, 3)),
            (3, (1, 2), (1, 1)),
            (4, (1, 1), (1, 1)),
        ],
    ],
)
def test_tokens_of_a_window_are_as_far_apart_as_their_patches_merged_so_often(step, shape, window):
    numbers, (rows, columns) = cut(*shape, *window), shape
    scale = of_windows(GRID, numbers)
    high, wide = 4 * 2**step, 8 * 2**step
    padded = bool((numbers < 0).any())
    places = [(row * high, column * wide) for row in range(rows) for column in range(columns)]
    assert scale.uniform == pytest.approx(
        np.mean([hypot(a - c, b - d) for a, b in places for c, d in places])
    )
    assert (scale.windows, scale.prefix) == (len(numbers), 0)
    assert scale.padding == int((numbers < 0).sum())
    assert scale.places == rows * columns
    assert (scale.real is not None) == padded
    if scale.real is not None:
        assert torch.equal(scale.real, numbers > -1)
    assert scale.pixels.ndim == (3 if padded else 2)  # windows that are alike have one table
    for number, window_of in enumerate(numbers.tolist()):
        own = scale.pixels[number] if padded else scale.pixels
        for i, one in enumerate(window_of):
            for j, other in enumerate(window_of):
                if min(one, other) >= 0:
                    far = hypot(*(a - b for a, b in zip(places[one], places[other], strict=True)))
                    assert float(own[i, j]) == pytest.approx(far)


def test_windows_that_are_not_alike_have_distances_of_their_own():
    numbers = cut(6, 10, 3, 5)
    numbers[2] = numbers[2].flip(0)[torch.tensor([3, 1, 2, 0, *range(4, 15)])]
    scale = of_windows(GRID, numbers)
    assert scale.pixels.shape == (4, 15, 15)
    assert scale.real is None
    assert scale.places == 60


@pytest.mark.parametrize("count", [16, 59, 61])
def test_another_number_of_tokens_is_refused(count):
    with pytest.raises(
        Refusal, match=f"a map of {count} tokens is not one of 6 x 10 patches merged two by two"
    ):
        of_windows(GRID, torch.arange(count)[None])


class Net(nn.Module):
    """What is asked for here is known without it."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.fixture
def model(monkeypatch):
    own = models.own(Net(), "m", preprocessing=Preprocessing(input_size=(3, 24, 80)))
    known = {name: Partition(name, f"{name}.norm", f"{name}.attn") for name in ("b", "d")}
    asked = []

    def found(module: nn.Module, partitions: dict[str, Partition], pixels: Tensor) -> dict[str, Tensor]:
        asked.append((list(partitions), tuple(pixels.shape)))
        assert module is own.module
        return {name: cut(6, 10, 3, 5) for name in partitions}

    monkeypatch.setattr(scales.layers, "partitions", lambda _: known)
    monkeypatch.setattr(scales.layers, "prefix", lambda _: 2)
    monkeypatch.setattr(scales, "windows", found)
    return own, asked


@pytest.mark.parametrize("chosen", ["abc", "bd", "ac", "d"])
def test_blocks_that_attend_to_the_whole_image_and_in_windows_each_have_their_own(model, chosen):
    own, asked = model
    taps = {name: Tap(f"{name}.attn", "heads") for name in chosen}
    found = scales_of(own, taps, GRID)
    assert list(found) == list(chosen)  # in the order of the blocks
    for name, scale in found.items():
        divided = name in "bd"
        assert (scale.windows, scale.prefix) == ((4, 0) if divided else (1, 2))
        assert scale.pixels.shape == ((15, 15) if divided else (60, 60))
        assert scale.uniform == pytest.approx(float(GRID.distances().mean()))
    divided = [name for name in "bd" if name in chosen]
    assert asked == (
        [(divided, (1, 3, 24, 80))] if divided else []
    )  # no model runs for others, nor for blocks not chosen


@pytest.mark.parametrize("error", [ValueError("odd"), Refusal("mine"), FileNotFoundError("gone")])
def test_a_model_that_fails_is_said_to_and_what_it_refuses_itself_stays(model, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(scales, "windows", fail)
    kind, said = (
        (Refusal, "Net does not take images of 3 x 24 x 80: odd")
        if type(error) is ValueError
        else (type(error), str(error))
    )
    with pytest.raises(kind, match=f"^{said}$"):
        scales_of(model[0], {"b": Tap("b.attn", "heads")}, GRID)
