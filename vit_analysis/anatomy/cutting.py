"""How an image is cut into patches: the grid of the tokens of a Vision Transformer."""

from typing import Any

from torch import nn

from vit_analysis.tensors.tokens import Grid

Size = tuple[int, int]  # rows and columns of pixels


def cut(patches: nn.Conv2d, size: Size) -> Grid:
    """The grid that a convolution cuts an image of this size into: what is left over at the edges is no patch."""
    kernel, stride, padding = patches.kernel_size, patches.stride, patches.padding
    before = [padding[axis] if isinstance(padding, tuple) else 0 for axis in (0, 1)]
    count = [(size[axis] + 2 * before[axis] - kernel[axis]) // stride[axis] + 1 for axis in (0, 1)]
    first = [(kernel[axis] - stride[axis]) / 2 - before[axis] for axis in (0, 1)]
    return Grid(count[0], count[1], float(stride[0]), float(stride[1]), first[0], first[1])


def of_embedding(embed: Any, wanted: Size | None) -> Grid | None:
    """Return where the tokens of a patch embedding of timm's lie; None where it does not say.

    Args:
        embed: the embedding.
        wanted: the size of the images, for an embedding that takes any.
    """
    size, count = getattr(embed, "img_size", None), getattr(embed, "grid_size", None)
    patches: Any = getattr(embed, "proj", None)
    own = isinstance(patches, nn.Conv2d) and not hasattr(embed, "backbone")
    if own and wanted and getattr(embed, "strict_img_size", None) is False:
        if getattr(embed, "dynamic_img_pad", False):  # to whole patches
            wanted = (
                wanted[0] + -wanted[0] % patches.stride[0],
                wanted[1] + -wanted[1] % patches.stride[1],
            )
        return cut(patches, wanted)
    if size is None or count is None:
        return None
    if own:
        grid = cut(patches, (size[0], size[1]))
        if (grid.rows, grid.columns) == tuple(count):
            return grid
    if size[0] % count[0] or size[1] % count[1]:
        return None
    return Grid(count[0], count[1], size[0] / count[0], size[1] / count[1])


def built_for(network: nn.Module) -> Size | None:
    """The size of image that a network of torchvision or transformers is built for."""
    size = getattr(network, "image_size", None)
    size = getattr(getattr(network, "config", None), "image_size", size)
    if isinstance(size, int):
        return size, size
    return (size[0], size[1]) if size else None
