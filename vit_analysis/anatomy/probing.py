"""What a network does not tell of itself, measured by running it on a few images of noise."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from vit_analysis.anatomy import find
from vit_analysis.anatomy.modes import evaluating
from vit_analysis.anatomy.roles import Anatomy
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.tokens import Grid

IMAGES = 5  # no usual number of tokens
SIDES = (
    32,
    64,
    96,
    128,
    160,
    192,
    224,
    256,
    288,
    320,
    384,
    448,
    512,
)  # of images that a network may be built for


def measured(module: nn.Module, size: tuple[int, int, int]) -> Anatomy:
    """Count the tokens before the spatial ones, and find where these lie, in a network that does not tell.

    What enters the first block and is the same for different images is no part of an image: class tokens and registers. The
    convolution that gives as many positions as there are other tokens cuts the image into patches.

    Args:
        module: the network.
        size: channels, rows and columns of the images that it takes; if it does not run on these, other usual sizes are tried.

    Returns:
        What was found; nothing where the network does not run on such images, or has no tokens.
    """
    try:
        first = find.blocks(module)[0]
    except Refusal:
        return Anatomy()
    for tried in dict.fromkeys([size, *((size[0], side, side) for side in SIDES)]):
        try:
            entering, maps = _seen(module, first, tried)
            break
        except Exception:  # (a network fails in its own way on images that it was not built for)
            continue
    else:
        return Anatomy()
    if not isinstance(entering, Tensor) or entering.ndim != 3 or list(entering.shape).count(IMAGES) != 1:
        return Anatomy()
    entering = entering.movedim(list(entering.shape).index(IMAGES), 0)
    same = (entering == entering[:1]).all(0).all(-1)
    prefix = int(same.sum())
    if same[prefix:].any():
        return Anatomy()  # such tokens stand elsewhere than in front
    tokens = len(same) - prefix
    patches = next((conv for conv, rows, columns in maps if rows * columns == tokens), None)
    grid = find.cut(patches, (tried[1], tried[2])) if patches else None
    found = Anatomy(prefix=prefix, class_token=None if prefix else False, spatial=tokens, grid=grid)
    return found.with_told(Anatomy(tokens=(grid.rows, grid.columns))) if grid else found


def _seen(
    module: nn.Module, block: str, size: tuple[int, int, int]
) -> tuple[Any, list[tuple[nn.Conv2d, int, int]]]:
    """Return what enters a block for images of noise, and the rows and columns that strided convolutions give."""
    entering: list[Any] = []
    maps: list[tuple[nn.Conv2d, int, int]] = []
    weight = next(iter(module.parameters()))
    noise = torch.rand(IMAGES, *size, generator=torch.Generator().manual_seed(0))
    with evaluating(module), torch.no_grad(), ExitStack() as hooks:
        enter = module.get_submodule(block).register_forward_pre_hook(
            lambda _, args: entering.append(args[0].clone()) if args and isinstance(args[0], Tensor) else None
        )
        hooks.callback(enter.remove)
        for conv in module.modules():
            if isinstance(conv, nn.Conv2d) and max(conv.stride) > 1:
                hooks.callback(conv.register_forward_hook(_noting(conv, maps)).remove)
        module(noise.to(weight.device, weight.dtype))
    return entering[0] if entering else None, maps


def _noting(conv: nn.Conv2d, maps: list[tuple[nn.Conv2d, int, int]]) -> Callable[[Any, Any, Tensor], None]:
    return lambda _, __, output: maps.append((conv, *output.shape[2:]))


def positions(module: nn.Module, pixels: Tensor) -> dict[tuple[int, int], Grid]:
    """Find where the positions of maps lie in the input, by the rows and columns of the map.

    Strides, kernels and paddings of all convolutions and poolings are followed from the input on, as the network runs.

    Args:
        module: the network, in evaluation mode.
        pixels: images, of which the first is run.
    """
    steps: list[tuple[nn.Module, tuple[int, int], tuple[int, int]]] = []

    def note(part: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and output.ndim == 4:
            steps.append((part, _size(args[0]), _size(output)))

    with evaluating(module), torch.no_grad(), ExitStack() as hooks:
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                hooks.callback(part.register_forward_hook(note).remove)
        module(pixels[:1].clone())
    rows, columns = pixels.shape[2:]
    found = {(rows, columns): Grid(rows, columns, 1.0, 1.0)}
    for part, before, after in steps:
        if before in found and after not in found and (grid := _after(part, found[before], after)):
            found[after] = grid
    return found


def position(known: Mapping[tuple[int, int], Grid], rows: int, columns: int) -> Grid:
    """Find where the positions of one map lie, from those of others of the same network.

    A map that no convolution made, as where patches are merged, has cells that hold whole ones of a finer map.

    Raises:
        Refusal: no other map divides into it.
    """
    if (rows, columns) in known:
        return known[rows, columns]
    for (high, wide), grid in sorted(known.items()):
        if high % rows == 0 and wide % columns == 0:
            height, width = grid.height * (high // rows), grid.width * (wide // columns)
            return Grid(rows, columns, height, width, grid.top, grid.left)
    size = " x ".join(map(str, max(known)))
    raise Refusal(
        f"an input of {size} px does not divide into {rows} x {columns} patches, and no convolution tells where they lie"
    )


def _size(map: Tensor) -> tuple[int, int]:
    return map.shape[-2], map.shape[-1]


def _after(part: Any, grid: Grid, after: tuple[int, int]) -> Grid | None:
    """The cells of what a convolution or a pooling makes of a map; None where they are not those of its numbers."""
    cells = []
    for axis, (size, stride, start) in enumerate(
        ((grid.rows, grid.height, grid.top), (grid.columns, grid.width, grid.left))
    ):
        kernel, step, padding, dilation = (
            _along(getattr(part, name, default), axis)
            for name, default in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1))
        )
        reach = (kernel - 1) * dilation
        if isinstance(padding, str) or (size + 2 * padding - reach - 1) // step + 1 != after[axis]:
            if ceil(size / step) != after[axis]:
                return None
            padding = max((after[axis] - 1) * step + reach + 1 - size, 0) // 2  # as TensorFlow pads
        middle = start + (stride - 1) / 2 + stride * (reach / 2 - padding)
        cells.append((float(step * stride), middle - (step * stride - 1) / 2))
    (height, top), (width, left) = cells
    return Grid(after[0], after[1], height, width, top, left)


def _along(value: Any, axis: int) -> Any:
    return value[axis] if isinstance(value, tuple | list) else value
