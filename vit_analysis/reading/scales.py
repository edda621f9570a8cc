"""Where the tokens of a model's attentions lie, those of whole images and those of windows."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from vit_analysis import layers
from vit_analysis.anatomy.windows import Partition, windows
from vit_analysis.layers import Tap
from vit_analysis.models import Model
from vit_analysis.reading.capture import trouble
from vit_analysis.reading.stream import as_input_of
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.attention import Scale
from vit_analysis.tensors.tokens import Grid


def scales_of(model: Model, chosen: Mapping[str, Tap], grid: Grid) -> dict[str, Scale]:
    """Return the distances between the tokens of some blocks' attentions, on the model's device, by block.

    Args:
        model: the model.
        chosen: the taps of the attentions.
        grid: where its patches lie.

    Raises:
        Refusal: it is not known which tokens are in a window.
    """
    divided = {block: own for block, own in layers.partitions(model).items() if block in chosen}
    found = {block: of_windows(grid, own) for block, own in _windows(model, divided).items()}
    if whole := [block for block in chosen if block not in divided]:
        own = Scale(grid.distances(), layers.prefix(model), uniform=grid.uniform())
        found |= dict.fromkeys(whole, own)
    return {block: found[block].to(model.device) for block in chosen}


def _windows(model: Model, partitions: Mapping[str, Partition]) -> dict[str, Tensor]:
    if not partitions:
        return {}
    pixels = as_input_of(model, torch.zeros(1, *model.preprocessing.input_size))
    try:
        return windows(model.module, partitions, pixels)
    except (Refusal, OSError):
        raise
    except Exception as error:
        raise trouble(model.module, pixels, error) from error


def of_windows(grid: Grid, numbers: Int[Tensor, "window token"]) -> Scale:
    """Return the distances between the tokens of each window of a map that has whole cells of a grid of patches.

    Raises:
        Refusal: it has not.
    """
    real, count = numbers >= 0, int((numbers >= 0).sum())
    side = max(1, round((grid.rows * grid.columns / count) ** 0.5))
    rows, columns = grid.rows // side, grid.columns // side
    if (rows * side, columns * side) != (grid.rows, grid.columns) or rows * columns != count:
        raise Refusal(
            f"a map of {count} tokens is not made of whole squares of {grid.rows} x {grid.columns} patches (merged with "
            f"padding?), so where they lie is not known; choose a size of image that the model divides without padding"
        )
    own = Grid(rows, columns, grid.height * side, grid.width * side)
    place = torch.stack([numbers // columns * own.height, numbers % columns * own.width], dim=-1).double()
    pixels = torch.linalg.vector_norm(place[:, :, None] - place[:, None], dim=-1)
    if real.all():
        same = bool((pixels == pixels[:1]).all())
        return Scale(pixels[0] if same else pixels, 0, len(numbers), None, own.uniform())
    return Scale(pixels, 0, len(numbers), real, own.uniform())
