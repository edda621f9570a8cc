"""Where the tokens of a model's attentions lie, those of whole images and those of windows."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from vit_analysis import layers
from vit_analysis.anatomy.positions import merged
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
    """Return the distances between the tokens of each window of a map of patches, or of patches merged two by two.

    Args:
        grid: the patches.
        numbers: of the tokens in each window, row by row of the map; -1 for padding.

    Raises:
        Refusal: the map has another number of tokens than such maps have.
    """
    real, count = numbers >= 0, int((numbers >= 0).sum())
    maps = [merged(grid, 2**step) for step in range((max(grid.rows, grid.columns) - 1).bit_length() + 1)]
    own = next((own for own in maps if own.rows * own.columns == count), None)
    if own is None:
        raise Refusal(
            f"a map of {count} tokens is not one of {grid.rows} x {grid.columns} patches merged two by two, so where they "
            f"lie is not known; choose another model"
        )
    place = torch.stack(
        [numbers // own.columns * own.height, numbers % own.columns * own.width], dim=-1
    ).double()
    pixels = torch.linalg.vector_norm(place[:, :, None] - place[:, None], dim=-1)
    if count == numbers.numel():
        same = bool((pixels == pixels[:1]).all())
        return Scale(pixels[0] if same else pixels, 0, len(numbers), None, own.uniform())
    return Scale(pixels, 0, len(numbers), real, own.uniform(), numbers.numel() - count)
