"""Sizes of a field over the pixels of an image, around a position: how far it spreads, and in how large a square it lies.

Effective receptive fields are measured by both (`receptive_field`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from vit_analysis.tensors.tokens import Grid


def offsets(
    size: int, place: float, stride: float
) -> tuple[Float64[Tensor, " pixel"], Bool[Tensor, " pixel"]]:
    """Return each pixel's distance along one axis from a position, and whether it is in the position's own patch.

    Args:
        size: how many pixels there are.
        place: the pixel at which the position lies.
        stride: how many pixels its patch has, of which it is the middle.
    """
    distance = torch.arange(size, dtype=torch.float64) - place
    return distance, (distance >= -stride / 2) & (distance < stride / 2)


def weights(rows: int, columns: int, grid: Grid) -> Float64[Tensor, "3 row col"]:
    """Return what a field is multiplied by for its moments: 1, squared distance in px^2, and 1 in the position's own patch."""
    row, column = grid.middle()
    down, own_rows = offsets(rows, row, grid.height)
    across, own_columns = offsets(columns, column, grid.width)
    squares = down.square()[:, None] + across.square()
    inside = (own_rows[:, None] & own_columns).double()
    return torch.stack([torch.ones_like(inside), squares, inside])


class Squares(NamedTuple):
    """The squares around a position, from the smallest on: each is the smallest that holds some pixel of the image.

    Around the middle of a pixel their sides are 1, 3, 5 ... px, around the corner of four pixels 2, 4, 6 ... px. A square may
    reach beyond the image, of which it then holds what is there.
    """

    sides: Float64[Tensor, " square"]
    areas: Float64[Tensor, " square"]
    """The share of the image's pixels in each square."""
    first: Int[Tensor, " pixel"]
    """The first square that holds each pixel, row by row."""

    @classmethod
    def around(cls, rows: int, columns: int, place: tuple[float, float]) -> "Squares":
        """Make the squares around a place: the row and the column of a pixel, or of a point between pixels."""
        down, across = (
            (torch.arange(size, dtype=torch.float64) - middle).abs()
            for size, middle in zip((rows, columns), place, strict=True)
        )
        side = 2 * torch.maximum(down[:, None], across).flatten() + 1
        sides, first, counts = side.unique(return_inverse=True, return_counts=True)
        return cls(sides, counts.cumsum(0).double() / len(side), first)

    def holding(self, field: Float64[Tensor, " pixel"], shares: Sequence[float]) -> Float64[Tensor, " share"]:
        """Return the side of the smallest square that holds more than each share of a field; NaN for a field of zeros."""
        _, number, asked = self._found(field, shares)
        return self.sides[number].where(asked.isfinite(), torch.nan)

    def between(self, field: Float64[Tensor, " pixel"], shares: Sequence[float]) -> Float64[Tensor, " share"]:
        """Return the side at which the square would hold each share, if what it holds grew evenly from square to square.

        Unlike the side of `holding`, it does not step from one square to the next, so that an interval of it can be found.
        """
        held, number, asked = self._found(field, shares)
        held, sides = (torch.cat([own.new_zeros(1), own]) for own in (held, self.sides))
        part = (asked - held[number]) / (held[number + 1] - held[number])
        return sides[number] + part * (sides[number + 1] - sides[number])

    def number(self, sides: Float64[Tensor, " share"]) -> Int[Tensor, " share"]:
        """Return the numbers of the smallest squares that are no smaller than these sides; the last where none is as large."""
        return torch.searchsorted(self.sides, sides.contiguous()).clamp(max=len(self.sides) - 1)

    def _found(
        self, field: Float64[Tensor, " pixel"], shares: Sequence[float]
    ) -> tuple[Float64[Tensor, " square"], Int[Tensor, " share"], Float64[Tensor, " share"]]:
        """Return the share of a field in each square, which squares are asked for, and the shares; NaN if it has none."""
        held = torch.zeros_like(self.sides).index_add(0, self.first, field).cumsum(0)
        asked = torch.tensor(shares, dtype=torch.float64)
        if not held[-1] > 0:
            return held, torch.zeros(len(asked), dtype=torch.int64), asked * torch.nan
        held = held / held[-1]
        return held, torch.searchsorted(held, asked, right=True).clamp(max=len(held) - 1), asked
