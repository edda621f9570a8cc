"""Where in the image a token's representation comes from: CKA of each token with each patch (figures 9, 10 and D.1-D.3).

Raghu et al. (2021, section 4): of a layer, the representations X [image, channel] of one token are compared with the pixels
Y [image, 3 x height x width] of one patch of the image, for all patches: one heat map per token. A CNN's "token" is all
channels at one position of its map; patches are the cells of the tokens' own grid, of pixels as the model receives them. The
estimator is that of `cka`: unbiased, in minibatches, weighted by images; intervals are a jackknife over batches.

A ResNet's padded convolutions put position i at pixel i x stride, the upper left corner of its cell: there the own patch and
those that touch it (``near_hit_rate``) say more than the own patch alone.

The U-centred Gram matrices of all tokens and of all patches are two sets of vectors, and one product of them is every pair.

    python -m vit_analysis.localization
    python -m vit_analysis.localization lab/vit lab/vit_gap
    python -m vit_analysis.localization vit_base_patch32_224 resnet50 --images.source ~/imagenet/val --layers penultimate
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn

from vit_analysis import command, layers, plot
from vit_analysis.images import Images
from vit_analysis.models import Model, load_all, named
from vit_analysis.reading import intervals, measure, stream
from vit_analysis.reading.intervals import in_group, jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Sums
from vit_analysis.table import with_provenance
from vit_analysis.tensors import similarity
from vit_analysis.tensors.similarity import SMALLEST_BATCH
from vit_analysis.tensors.tokens import on_grid

logger = logging.getLogger(__name__)

Models = Sequence[Model] | Mapping[str, nn.Module]
Tokens = Literal["all", "normalized"]

# Every pair of a token and a patch is a cell of the table: a million of them from 1024 positions on.
MOST_TOKENS = 1024
STATISTICS = ("own", "hit_rate", "near_hit_rate", "contrast", "edge_effect")


@dataclass(frozen=True)
class PatchSums(Sums):
    """What localization needs of any number of batches."""

    hsic: Float64[Tensor, "group entry"]
    """Of each layer, end to end: every token with every patch, every token with itself, every patch with itself."""
    images: Float64[Tensor, " group"]
    places: list[list[Any]]
    """[model, layer, rows, columns] of each layer, in order of execution."""


class Grid(NamedTuple):
    """One layer's HSIC in a batch, and its grid."""

    hsic: Float64[Tensor, " entry"]
    rows: int
    columns: int


def compare(
    models: Models,
    images: Images,
    *,
    layers: str | Sequence[str] = "last",
    tokens: Tokens = "all",
    state: Path | None = None,
) -> pd.DataFrame:
    """CKA of every token of a layer with every patch of the image.

    Args:
        models: loaded models, or any modules under names of your own.
        images: which images; all of one model have the same size, and none is cropped at random.
        layers: ``last`` or ``penultimate`` block, ``blocks``, or one or several glob patterns over module paths.
        tokens: ``all`` is the paper's choice; ``normalized`` scales each to norm 1, so that the few images in which a token is
            massive do not outweigh the others.
        state: where a killed run leaves its sums, to go on from; None leaves nothing.

    Returns:
        Columns model, layer, token, token_row, token_col, patch_row, patch_col, cka, low, high: one row per pair, row by row
        from the top left; tokens are numbered without class token. NaN where a token or a patch is constant over images.
        cka_without holds the values without each group of batches.

    Raises:
        ValueError: a layer's activation is neither spatial tokens nor a map, or has more positions than can be paired.

    >>> table = compare([load("lab/vit"), load("lab/resnet")], Images(limit=1024))    # doctest: +SKIP
    """
    return measure.table(plan(models, images, layers=layers, tokens=tokens), state)


def plan(
    models: Models, images: Images, *, layers: str | Sequence[str] = "last", tokens: Tokens = "all"
) -> Measurement[PatchSums]:
    """What `compare` measures, to share a pass with others."""
    loaded = named(models)
    chosen = "last" if layers == "paper" else layers
    taps = {name: [":in", *own] for name, own in _choose(loaded, chosen).items()}
    reading = stream.Reading(loaded, images, taps, _reducer(loaded, tokens), settings={"tokens": tokens})

    def finish(sums: PatchSums) -> pd.DataFrame:
        table, found = _table(sums), _summary(sums).to_dict("records")
        _warn_of_constant_tokens(table)
        facts = {"layers": layers, "tokens": tokens, "summary": found}
        return with_provenance(table, "localization", **reading.facts(), **facts)

    return Measurement(reading, _fold, PatchSums, finish)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """How well tokens know their place, layer by layer, then every two layers compared.

    Returns:
        Columns model, layer, other_model, other_layer (None, or whose value is subtracted), statistic, value, low, high,
        chance. Over tokens that are not at the edge: ``own`` (CKA with the own patch), ``hit_rate`` (share whose most similar
        patch is their own), ``near_hit_rate`` (or touches it) and ``contrast`` (own less the mean of the others, in standard
        deviations of the token's map); over those that are, ``edge_effect`` (mean CKA with other patches of the edge less that
        with those of the interior). ``chance`` is what independent values would give: grids of different size differ in it,
        and so do their hit rates. Constant tokens count for nothing.
    """
    return pd.DataFrame(table.attrs["summary"])


def statistics(
    maps: Float64[Tensor, "token patch"], rows: int, columns: int
) -> Float64[Tensor, " statistic"]:
    """`STATISTICS` of one layer's maps; NaN where no token is defined, or none lies where it is asked for."""
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
    """What maps of independent values give."""
    near, edge = neighbours(rows, columns)
    share = near[~edge].double().mean().item() if (~edge).any() else float("nan")
    return [0.0, 1 / (rows * columns), share, 0.0, 0.0]


def neighbours(rows: int, columns: int) -> tuple[Bool[Tensor, "token patch"], Bool[Tensor, " token"]]:
    """Which patches are a token's own or touch it, and which tokens lie at the edge of the grid."""
    row, column = (
        part.flatten() for part in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    )
    near = ((row[:, None] - row).abs() <= 1) & ((column[:, None] - column).abs() <= 1)
    edge = (row == 0) | (row == rows - 1) | (column == 0) | (column == columns - 1)
    return near, edge


def patches(
    pixels: Float[Tensor, "image channel height width"], rows: int, columns: int
) -> Float[Tensor, "image patch pixel"]:
    """The image cut into a grid.

    Raises:
        ValueError: it does not divide.
    """
    height, width = pixels.shape[2:]
    if height % rows or width % columns:
        raise ValueError(f"an input of {height} x {width} px does not divide into {rows} x {columns} patches")
    axes = "image channel (row down) (col across) -> image (row col) (channel down across)"
    return rearrange(pixels, axes, row=rows, col=columns)


def _choose(models: Mapping[str, Model], chosen: str | Sequence[str]) -> dict[str, list[str]]:
    return layers.choose({name: model.module for name, model in models.items()}, chosen)


def _reducer(models: Mapping[str, Model], tokens: Tokens) -> Callable[[str, str, Tensor], Grid | None]:
    layouts = {name: layers.layout(model.module) for name, model in models.items()}
    inputs: dict[str, Tensor] = {}

    def reduce(model: str, layer: str, activation: Tensor) -> Grid | None:
        if layer == ":in":
            inputs[model] = activation  # of this batch, until the next
            return None
        grid = on_grid(activation, layouts[model], f"{layer!r} of {model}")
        rows, columns = grid.shape[1:3]
        if rows * columns > MOST_TOKENS:
            raise ValueError(
                f"{layer!r} of {model} has {rows} x {columns} positions, so {(rows * columns) ** 2:,} pairs with patches; "
                f"choose a layer of at most {MOST_TOKENS} positions, deeper in the model"
            )
        if len(activation) < SMALLEST_BATCH:
            return Grid(activation.new_zeros(0).double(), rows, columns)
        own = grid.flatten(1, 2)
        if tokens == "normalized":
            own = torch.nn.functional.normalize(own.float(), dim=-1)
        parts = similarity.hsic_between(own, patches(inputs[model], rows, columns))
        return Grid(torch.cat([part.flatten() for part in parts]), rows, columns)

    return reduce


def _fold(batch: stream.Pass) -> PatchSums | None:
    if batch.size < SMALLEST_BATCH:
        logger.warning("the last batch has fewer than %d images and is left out", SMALLEST_BATCH)
        return None
    seen = [(model, layer, grid) for model, own in batch.seen.items() for layer, grid in own.items()]
    finite = torch.stack([grid.hsic.isfinite().all() for *_, grid in seen])
    if not finite.all():
        model, layer, _ = seen[int(finite.logical_not().nonzero()[0])]
        raise ValueError(f"{layer!r} of {model} has values that are not finite in batch {batch.number}")
    hsic = torch.cat([grid.hsic for *_, grid in seen])
    return PatchSums(
        hsic=in_group(batch.size * hsic, batch.number),
        images=in_group(hsic.new_tensor(float(batch.size)), batch.number),
        places=[[model, layer, grid.rows, grid.columns] for model, layer, grid in seen],
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
    def flat(hsic: Tensor) -> Tensor:
        return torch.cat([own.flatten() for own in _maps(hsic, sums.places)])

    interval = jackknife(flat, sums.hsic.cpu(), sums.images.cpu() > 0)
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


def _summary(sums: PatchSums) -> pd.DataFrame:
    def statistic(hsic: Tensor) -> Tensor:
        own = [
            statistics(maps, rows, columns)
            for maps, (*_, rows, columns) in zip(_maps(hsic, sums.places), sums.places, strict=True)
        ]
        return intervals.with_differences(torch.stack(own))

    interval = jackknife(statistic, sums.hsic.cpu(), sums.images.cpu() > 0)
    pairs = intervals.pairs([tuple(place) for place in sums.places])
    rows = [
        {"model": model, "layer": layer, "other_model": other and other[0], "other_layer": other and other[1]}
        | {"statistic": name, "chance": None if other else chance}
        for (model, layer, *size), other in pairs
        for name, chance in zip(STATISTICS, chances(*size), strict=True)
    ]
    values = {name: part.flatten().numpy() for name, part in interval._asdict().items() if name != "without"}
    return pd.DataFrame(rows).assign(**values)


def _warn_of_constant_tokens(table: pd.DataFrame) -> None:
    for (model, layer), own in table.groupby(["model", "layer"], sort=False):
        constant = own.groupby("token")["cka"].apply(lambda values: values.isna().all())
        if constant.any():
            logger.warning(
                "%d of %d tokens of %s of %s are constant over all images, so their CKA is undefined (NaN)",
                *(constant.sum(), len(constant), layer, model),
            )


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Images = Images(),  # noqa: B008  (frozen)
    layers: tuple[str, ...] = ("last",),
    tokens: Tokens = "all",
    out: Path = Path("figures/localization"),
    device: str | None = None,
) -> None:
    """CKA of tokens with patches of the image (figures 9, 10 and D.1-D.3 of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images.
        layers: last, penultimate, blocks, or glob patterns over module paths such as 'blocks.*'.
        tokens: all, or normalized: each scaled to norm 1.
        out: .parquet and .png are added.
        device: cpu, cuda ...; the GPU if there is one.
    """
    chosen = layers[0] if len(layers) == 1 else layers
    table = compare(load_all(models, device=device), images, layers=chosen, tokens=tokens, state=out)
    found = summary(table)
    logger.info("%s", found[found["other_model"].isna()].round(3).to_string(index=False))
    command.write(table, out)
    command.draw(table, out, plot.localization)


if __name__ == "__main__":
    command.run(main)
