"""Finds where a network's maps lie in its input, by the strides, kernels and paddings that it runs through."""

from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vit_analysis.anatomy.modes import evaluating
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.tokens import Grid

CONVOLUTION = ("weight", "bias", "stride", "padding", "dilation")
# The arguments after the input of what is followed, whether a module or a network itself calls it.
ARGUMENTS = {
    "conv2d": CONVOLUTION,
    "max_pool2d": ("kernel_size", "stride", "padding", "dilation"),
    "max_pool2d_with_indices": ("kernel_size", "stride", "padding", "dilation"),
    "avg_pool2d": ("kernel_size", "stride", "padding"),
    "pad": ("pad", "mode", "value"),
}


class Step(NamedTuple):
    """One call: its name, rows and columns before and after, its arguments by name."""

    name: str
    before: tuple[int, int]
    after: tuple[int, int]
    arguments: Mapping[str, Any]


class _Watch(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        names = ARGUMENTS.get(getattr(func, "__name__", ""))
        own = args[0] if args else kwargs.get("input")
        result = output[0] if isinstance(output, tuple) and output else output
        if names and isinstance(own, Tensor) and isinstance(result, Tensor) and own.ndim == result.ndim == 4:
            arguments = dict(zip(names, args[1:], strict=False)) | kwargs
            self.steps.append(Step(func.__name__, _size(own), _size(result), arguments))
        return output


def positions(module: nn.Module, pixels: Tensor) -> dict[tuple[int, int], Grid]:
    """Find where the positions of maps lie in the input, by the rows and columns of the map, the input first.

    Args:
        module: the network.
        pixels: images, of which the first is run.
    """
    with evaluating(module), torch.inference_mode(False), torch.no_grad(), _Watch() as watch:
        module(pixels[:1].clone())
    rows, columns = pixels.shape[2:]
    found = {(rows, columns): Grid(rows, columns, 1.0, 1.0)}
    for step in watch.steps:
        if step.before in found and step.after not in found and (grid := _after(found[step.before], step)):
            found[step.after] = grid
    return found


def position(known: Mapping[tuple[int, int], Grid], rows: int, columns: int) -> Grid:
    """Find where the positions of one map lie, from those of others of the same network.

    A map that none of these steps made, as where patches are merged, has cells that hold whole ones of a finer map, or those
    of a map whose cells are merged two by two and padded where their number is odd.

    Raises:
        Refusal: no other map divides into it.
    """
    if (rows, columns) in known:
        return known[rows, columns]
    *finer, (whole, image) = sorted(known.items())  # the input is the largest
    for (high, wide), grid in finer:
        if high % rows == 0 and wide % columns == 0:
            return _of_whole(grid, rows, columns)
    for _, grid in finer:
        for step in range(1, max(grid.rows, grid.columns).bit_length()):
            if (own := merged(grid, 2**step)) and (own.rows, own.columns) == (rows, columns):
                return own
    if whole[0] % rows == 0 and whole[1] % columns == 0:
        return _of_whole(image, rows, columns)
    size = " x ".join(map(str, max(known)))
    raise Refusal(
        f"an input of {size} px does not divide into {rows} x {columns} patches, and no convolution tells where they lie"
    )


def merged(grid: Grid, side: int) -> Grid:
    """The cells of a map of squares of so many times so many cells; what is left over at the end is padded."""
    rows, columns = -(-grid.rows // side), -(-grid.columns // side)
    return Grid(rows, columns, grid.height * side, grid.width * side, grid.top, grid.left)


def _of_whole(grid: Grid, rows: int, columns: int) -> Grid:
    height, width = grid.height * (grid.rows // rows), grid.width * (grid.columns // columns)
    return Grid(rows, columns, height, width, grid.top, grid.left)


def _after(grid: Grid, step: Step) -> Grid | None:
    """The cells of what a step makes of a map; None where they are not those of its numbers."""
    if step.name == "pad":
        pad = [int(number) for number in step.arguments.get("pad", ())]
        left, top = (pad[0], pad[2]) if len(pad) >= 4 else (pad[0] if pad else 0, 0)
        own = (
            *step.after,
            grid.height,
            grid.width,
            grid.top - top * grid.height,
            grid.left - left * grid.width,
        )
        return Grid(*own)
    cells = []
    for axis, (size, stride, start) in enumerate(
        ((grid.rows, grid.height, grid.top), (grid.columns, grid.width, grid.left))
    ):
        kernel, hop, padding, dilation = _numbers(step, axis)
        reach = (kernel - 1) * dilation
        if isinstance(padding, str) or (size + 2 * padding - reach - 1) // hop + 1 != step.after[axis]:
            if ceil(size / hop) != step.after[axis] and ceil((size - reach) / hop) != step.after[axis]:
                return None
            padding = max((step.after[axis] - 1) * hop + reach + 1 - size, 0) // 2  # "same", or rounded up
        middle = start + (stride - 1) / 2 + stride * (reach / 2 - padding)
        cells.append((float(hop * stride), middle - (hop * stride - 1) / 2))
    (height, top), (width, left) = cells
    return Grid(step.after[0], step.after[1], height, width, top, left)


def _numbers(step: Step, axis: int) -> tuple[int, int, Any, int]:
    """Kernel, stride, padding and dilation along an axis."""
    own = step.arguments
    weight = own.get("weight")
    kernel = weight.shape[2 + axis] if isinstance(weight, Tensor) else _along(own.get("kernel_size", 1), axis)
    hop = _along(own.get("stride") or (1 if isinstance(weight, Tensor) else kernel), axis)
    return kernel, hop, _along(own.get("padding", 0), axis), _along(own.get("dilation", 1), axis)


def _along(value: Any, axis: int) -> Any:
    if not isinstance(value, tuple | list):
        return value
    return value[axis if len(value) > 1 else 0]


def _size(map: Tensor) -> tuple[int, int]:
    return map.shape[-2], map.shape[-1]
