"""Finds where in the image a token comes from: CKA of each token with each patch (figures 9, 10 and D.1-D.3).

Raghu et al. (2021, section 4): of a layer, the representations X [image, channel] of one token are compared with the pixels
Y [image, 3 x height x width] of one patch of the image, for all patches: one heat map per token. A CNN's "token" is all
channels at one position of its map; patches are the cells of the tokens' own grid, of pixels as the model receives them. The
estimator is that of `cka`: unbiased, in minibatches, weighted by images; intervals are a jackknife over batches.

A ResNet's padded convolutions put position i at pixel i x stride, the upper left corner of its cell: there a token's own patch
and those that touch it (``near_hit_rate``) say more than its own patch alone.

The U-centred Gram matrices of all tokens and of all patches are two sets of vectors, whose product is the HSIC of every pair.

    python -m vit_analysis.localization
    python -m vit_analysis.localization lab/vit lab/vit_gap
    python -m vit_analysis.localization vit_base_patch32_224 resnet50 --images.source ~/imagenet/val --layers penultimate
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("localization")


import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from vit_analysis import layers
from vit_analysis.anatomy.positions import position
from vit_analysis.images import AnyImages
from vit_analysis.layers import INPUT, Tap
from vit_analysis.models import Model, Models
from vit_analysis.reading.intervals import jackknife, of_table
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading, places, prepared
from vit_analysis.spelling import Refusal
from vit_analysis.table import with_provenance
from vit_analysis.tensors import similarity
from vit_analysis.tensors.similarity import SMALLEST_BATCH
from vit_analysis.tensors.tokens import Grid, on_grid
from vit_analysis.typed import Scaling

logger = logging.getLogger(__name__)


# Every pair of a token and a patch is a row of the table: 1024 positions make a million rows.
MOST_TOKENS = 1024
SHARES = ("hit_rate", "near_hit_rate")
STATISTICS = ("own", "hit_rate", "near_hit_rate", "contrast", "edge_effect")


@dataclass(frozen=True)
class PatchSums(Grouped):
    """The sums over batches from which the CKA of tokens with patches is computed."""

    hsic: Float64[Tensor, "group entry"]
    """One layer after the other: every token with every patch, every token with itself, every patch with itself."""
    places: list[list[Any]]
    """[model, layer, rows, columns] of each layer, in order of execution."""


class Pairs(NamedTuple):
    """HSIC of the tokens of one layer with the patches of a batch, and the rows and columns of its grid."""

    hsic: Float64[Tensor, " entry"]
    rows: int
    columns: int


def measure(
    models: Models,
    images: AnyImages,
    *,
    layers: str | Sequence[str] = "last",
    tokens: Scaling = "all",
    state: Path | None = None,
) -> pd.DataFrame:
    """CKA of every token of a layer with every patch of the image.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own.
        images: which images: `Images`, a path, a torch data set or a tensor; all of one model have the same size, and none is
            cropped at random.
        layers: ``last`` or ``penultimate`` block, ``blocks``, or one or several glob patterns over module paths.
        tokens: ``all`` is the paper's choice; ``normalized`` scales each to norm 1, so that the few images in which a token is
            massive do not outweigh the others.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, layer, token, token_row, token_col, patch_row, patch_col, cka, low, high: one row per pair, row by row
        from the top left; tokens are numbered without class token. NaN where a token or a patch is constant over images.
        cka_without holds the values without each group of batches.

    Raises:
        Refusal: a layer's activation is neither spatial tokens nor a map, or has more positions than can be paired.

    Examples:
        >>> table = measure(["lab/vit", "lab/resnet"], Images(limit=1024))    # doctest: +SKIP
    """
    return plan(models, images, layers=layers, tokens=tokens).table(state)


def plan(
    models: Models, images: AnyImages, *, layers: str | Sequence[str] = "last", tokens: Scaling = "all"
) -> Measurement[PatchSums]:
    """Plan what `measure` computes without running it, so that one pass over the images can serve several analyses."""
    loaded, images = prepared(models, images)
    taps = _taps(loaded, "last" if layers == "paper" else layers)
    inputs: dict[str, Tensor] = {}  # by model, of the current batch
    where: dict[str, dict[tuple[int, int], Grid]] = {}  # by model

    def prepare() -> None:
        for name, model in loaded.items():
            where[name] = places(images, model)

    def reduce(activation: Activation) -> Pairs | None:
        if activation.layer.tap == INPUT:
            inputs[activation.model.name] = activation.values.clone()  # the model may write into it
            return None
        name = activation.model.name
        return _pairs(activation, inputs[name], where[name], tokens)

    def finish(sums: PatchSums) -> pd.DataFrame:
        table = _table(sums)
        _warn_of_constant_tokens(table)
        return with_provenance(table, "localization", **reading.facts(), layers=layers, tokens=tokens)

    reading = Reading(loaded, images, taps, reduce, settings={"tokens": tokens})
    return Measurement(reading, _fold, PatchSums, finish, prepare)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise how well the tokens of each layer keep their place in the image.

    Returns:
        Columns model, layer, statistic, value, low, high, chance. Over tokens that are not at the edge: ``own`` (CKA with the
        own patch), ``hit_rate`` (share whose most similar patch is their own), ``near_hit_rate`` (share whose most similar
        patch is their own or touches it) and ``contrast`` (own less the mean of the others, in standard deviations of the
        token's map). Over tokens at the edge: ``edge_effect`` (mean CKA with other patches of the edge less that with those of
        the interior). ``chance`` is what independent values would give: grids of different size differ in it, and so do their
        hit rates. Constant tokens count for nothing.
    """
    rows = []
    for (model, layer), own in table.groupby(["model", "layer"], sort=False):
        _, size = grid_maps(own)
        interval = of_table(lambda part: statistics(*_spread(part)), own)
        for place, (name, chance) in enumerate(zip(STATISTICS, chances(*size), strict=True)):
            one = interval.of(place)
            if name in SHARES:
                one = one.of_share(
                    float((size[0] - 2) * (size[1] - 2) if min(size) > 2 else size[0] * size[1])
                )
            value, low, high = (part.item() for part in one[:3])
            rows.append(
                {
                    **{"model": model, "layer": layer, "statistic": name, "value": value},
                    **{"low": low, "high": high, "chance": chance},
                }
            )
    return pd.DataFrame(rows)


def grid_maps(rows: pd.DataFrame) -> tuple[Float64[Tensor, "token patch"], tuple[int, int]]:
    """CKA of the tokens of one layer with all patches, from its rows of the table; and the rows and columns of its grid."""
    size = int(rows["token_row"].max()) + 1, int(rows["token_col"].max()) + 1
    return torch.tensor(rows["cka"].to_numpy(dtype=float)).view(size[0] * size[1], -1), size


def _spread(rows: pd.DataFrame) -> tuple[Float64[Tensor, "token patch"], int, int]:
    maps, size = grid_maps(rows)
    return maps, *size


def statistics(
    maps: Float64[Tensor, "token patch"], rows: int, columns: int
) -> Float64[Tensor, " statistic"]:
    """`STATISTICS` of one layer's maps; NaN for a statistic none of whose tokens (interior or edge) has a defined CKA."""
    near, edge = neighbours(rows, columns)
    own = torch.eye(len(maps), dtype=torch.bool)
    defined = ~maps.isnan().all(1)
    inside, outside = defined & ~edge, defined & edge
    best = maps.nan_to_num(nan=-torch.inf).argmax(1)
    hit, near_hit = own.gather(1, best[:, None])[:, 0], near.gather(1, best[:, None])[:, 0]
    others = torch.where(own, torch.nan, maps).nanmean(1)
    spread = (maps - maps.nanmean(1, keepdim=True)).square().nanmean(1).sqrt()
    contrast = (maps.diagonal() - others) / spread
    along = torch.where(edge & ~own, maps, torch.nan).nanmean(1)
    across = torch.where(edge, torch.nan, maps).nanmean(1)
    of_tokens = torch.stack([maps.diagonal(), hit.double(), near_hit.double(), contrast])
    return torch.cat([of_tokens[:, inside].nanmean(1), (along - across)[outside].nanmean()[None]])


def chances(rows: int, columns: int) -> list[float]:
    """The expected `STATISTICS` of maps of independent values."""
    near, edge = neighbours(rows, columns)
    share = near[~edge].double().mean().item() if (~edge).any() else float("nan")
    return [0.0, 1 / (rows * columns), share, 0.0, 0.0]


def neighbours(rows: int, columns: int) -> tuple[Bool[Tensor, "token patch"], Bool[Tensor, " token"]]:
    """Return which patches are a token's own or touch it, and which tokens lie at the edge of the grid."""
    row, column = (
        part.flatten() for part in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    near = ((row[:, None] - row).abs() <= 1) & ((column[:, None] - column).abs() <= 1)
    edge = (row == 0) | (row == rows - 1) | (column == 0) | (column == columns - 1)
    return near, edge


def coarser(
    maps: Float64[Tensor, "token patch"], size: tuple[int, int], wanted: tuple[int, int]
) -> Float64[Tensor, "cell other_cell"]:
    """The maps of a grid on a coarser one: each pair of cells has the mean of the pairs that they cover, weighted by area.

    Pairs that are undefined (NaN) count for nothing.

    Args:
        maps: CKA of every token with every patch.
        size: rows and columns of their grid.
        wanted: rows and columns of the coarser one.
    """
    shares = torch.einsum("ra,cb->rcab", *(_overlap(*pair) for pair in zip(wanted, size, strict=True)))
    weights = shares.reshape(wanted[0] * wanted[1], size[0] * size[1])
    known = ~maps.isnan()
    return (weights @ maps.nan_to_num() @ weights.T) / (weights @ known.double() @ weights.T)


def _overlap(coarse: int, fine: int) -> Float64[Tensor, "coarse fine"]:
    """Along one axis: the share of each coarse cell that each fine cell covers."""
    start, own = torch.arange(coarse).double()[:, None] / coarse, torch.arange(fine).double() / fine
    common = torch.minimum(start + 1 / coarse, own + 1 / fine) - torch.maximum(start, own)
    return common.clamp(min=0) * coarse


def patches(
    pixels: Float[Tensor, "image channel height width"], grid: Grid
) -> Float[Tensor, "image patch pixel"]:
    """Cut every image into the cells of a grid, row by row; a cell that reaches beyond the image has zeros there.

    Zeros are the same in all images, so that in a similarity they count for nothing. Cells begin at the first one that
    does not begin before the image: positions of padded convolutions lie at the upper left corner of theirs.

    Raises:
        Refusal: the cells are no whole pixels.
    """
    height, width = int(grid.height), int(grid.width)
    if (height, width) != (grid.height, grid.width):
        raise Refusal(f"patches of {grid.height:g} x {grid.width:g} px are no whole pixels")
    top, left = (max(0, round(start)) for start in (grid.top, grid.left))
    inside = pixels[:, :, top : top + grid.rows * height, left : left + grid.columns * width]
    missing = grid.rows * height - inside.shape[2], grid.columns * width - inside.shape[3]
    if any(missing):
        inside = torch.nn.functional.pad(inside, (0, missing[1], 0, missing[0]))
    axes = "image channel (row down) (col across) -> image (row col) (channel down across)"
    return rearrange(inside, axes, row=grid.rows, col=grid.columns)


def _taps(models: Mapping[str, Model], chosen: str | Sequence[str]) -> dict[str, list[Tap]]:
    found = layers.choose(models, chosen)
    return {name: [INPUT, *own] for name, own in found.items()}


def _pairs(
    activation: Activation, pixels: Tensor, places: Mapping[tuple[int, int], Grid], tokens: Scaling
) -> Pairs:
    grid = on_grid(activation.values, activation.layout, str(activation))
    rows, columns = grid.shape[1:3]
    if rows * columns > MOST_TOKENS:
        raise Refusal(
            f"{activation} has {rows} x {columns} positions, so {(rows * columns) ** 2:,} pairs with patches; "
            f"choose a layer of at most {MOST_TOKENS} positions, deeper in the model"
        )
    if len(grid) < SMALLEST_BATCH:
        return Pairs(grid.new_zeros(0).double(), rows, columns)
    own = grid.flatten(1, 2)
    if tokens == "normalized":
        own = torch.nn.functional.normalize(own.float(), dim=-1)
    parts = similarity.hsic_between(own, patches(pixels, position(places, rows, columns)))
    return Pairs(torch.cat([part.flatten() for part in parts]), rows, columns)


def _fold(batch: Pass) -> PatchSums | None:
    if batch.size < SMALLEST_BATCH:
        logger.warning("the last batch has fewer than %d images and is left out", SMALLEST_BATCH)
        return None
    seen = batch.kept()
    finite = torch.stack([pairs.hsic.isfinite().all() for *_, pairs in seen])
    batch.refuse_not_finite(
        torch.where(finite, 0.0, torch.nan), [f"{str(layer)!r} of {model}" for model, layer, _ in seen]
    )
    hsic = torch.cat([pairs.hsic for *_, pairs in seen])
    return PatchSums.of_batch(
        batch.number,
        batch.size,
        hsic=batch.size * hsic,
        places=[[model, str(layer), pairs.rows, pairs.columns] for model, layer, pairs in seen],
    )


def _maps(
    hsic: Float64[Tensor, " entry"], places: Sequence[Sequence[Any]]
) -> list[Float64[Tensor, "token patch"]]:
    """CKA of every token with every patch, layer by layer. Never clamped; NaN where either is constant (0 / 0)."""
    counts = [rows * columns for *_, rows, columns in places]
    parts = hsic.split([size for count in counts for size in (count * count, count, count)])
    return [
        cross.view(count, count) / token.sqrt()[:, None] / patch.sqrt()
        for count, cross, token, patch in zip(counts, parts[::3], parts[1::3], parts[2::3], strict=True)
    ]


def _table(sums: PatchSums) -> pd.DataFrame:
    def flat(own: PatchSums) -> Tensor:
        return torch.cat([maps.flatten() for maps in _maps(own.hsic.sum(0), own.places)])

    interval = jackknife(flat, sums.to("cpu"))
    tables = []
    for model, layer, rows, columns in sums.places:
        token, patch = np.divmod(np.arange((rows * columns) ** 2), rows * columns)
        (token_row, token_col), (patch_row, patch_col) = np.divmod(token, columns), np.divmod(patch, columns)
        tables.append(
            pd.DataFrame(
                {
                    "model": model,
                    "layer": layer,
                    "token": token,
                    "token_row": token_row,
                    "token_col": token_col,
                }
                | {"patch_row": patch_row, "patch_col": patch_col}
            )
        )
    return pd.concat(tables, ignore_index=True).assign(**interval.columns("cka"))


def _warn_of_constant_tokens(table: pd.DataFrame) -> None:
    for (model, layer), own in table.groupby(["model", "layer"], sort=False):
        constant = own.groupby("token")["cka"].apply(lambda values: values.isna().all())
        if constant.any():
            logger.warning(
                "%d of %d tokens of %s of %s are constant over all images, so their CKA is undefined (NaN)",
                *(constant.sum(), len(constant), layer, model),
            )
