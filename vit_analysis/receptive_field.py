"""How far a layer sees: the effective receptive field of the middle of its map (figures 6 and C.1-C.4).

Raghu et al. (2021, section 4) after Luo et al. (2016): the absolute gradient of the centre of a feature map with respect to
the input, averaged over images, channels and colours,

    E(u, v) = mean_image mean_channel mean_rgb |d y[channel, i, j] / d x[rgb, u, v]|,    (i, j) = (rows // 2, columns // 2),

of the residual stream after each sublayer (``residual``) and of what the sublayer adds to it (``long``). The mean is of
absolute values: the gradient of the sum of channels, one backward pass instead of one per channel, lets channels cancel. Here
one backward pass per channel serves all images of a batch, as no image depends on another, and the gradient of a stream to
which a branch is added is that of both together (`reading.gradients`). Where `channels` is less than the number that a layer
has, each image draws its own at random: the mean stays unbiased, and the intervals, which are over images, cover the draw.

Two numbers summarise E: the radius R = sqrt(sum E r^2 / sum E) in pixels around the position, and C, the share of E in the
position's own patch: a square of the layer's stride (16 px in a ViT/16, 32 px in the last stage of a ResNet-50).

Published tables report another size, of another matrix (Ding et al. 2022, "Scaling Up Your Kernels to 31x31", appendix on
effective receptive fields, and their script): the contribution scores

    A(u, v) = log10(1 + mean_image sum_rgb max(0, d sum_channel max(0, y[channel, i, j]) / d x[rgb, u, v])),

of all channels, and of them the side of the smallest centred square that holds more than 20, 30, 50 and 99 % of sum A, with
the share of the image's area that this square has (their r). They take images of 1024 px and the last map. A logarithm of
1 + x knows the units of x: sizes change if a layer is multiplied by a number, and only those of networks with images scaled
alike compare. Dividing A by its maximum, as they do for pictures, changes no share. Their squares lie around pixel
(rows // 2, columns // 2), begin at 3 px and end one pixel before the border; these lie around the position (the same pixel for
a CNN whose stride divides the image) and have any side, so that a ViT's, whose patches have no middle pixel, are even.

    python -m vit_analysis.receptive_field
    python -m vit_analysis.receptive_field vit_base_patch32_224 resnet50 --images.limit 32 --images.source ~/imagenet/val
    python -m vit_analysis.receptive_field torchvision/vgg16 --layers 'features.*'
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("receptive_field")


from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor

from vit_analysis import layers
from vit_analysis.anatomy.positions import position
from vit_analysis.images import AnyImages, Images
from vit_analysis.layers import Tap
from vit_analysis.models import Model, Models
from vit_analysis.reading import gradients, gridded, progress
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.intervals import Interval, jackknife
from vit_analysis.reading.intervene import true_branches
from vit_analysis.reading.measure import Measurement, in_passes
from vit_analysis.reading.state import GROUPS, Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading, one_image, places, prepared
from vit_analysis.spelling import Refusal
from vit_analysis.table import placed, with_provenance
from vit_analysis.tensors.fields import Squares, weights
from vit_analysis.tensors.tokens import Grid, on_grid

# The paper's number of images, in batches small enough that the activations of a ResNet-50 stay under 2 GB.
PAPER = Images(limit=32, batch=8)
CHANNELS = 32
SHARES = (0.2, 0.3, 0.5, 0.99)  # of the contribution scores, as Ding et al. (2022) report them


@dataclass(frozen=True)
class FieldSums(Grouped):
    """The sums over batches from which receptive fields are computed."""

    moments: Float64[Tensor, "group layer 3"]
    """Summed over images: sum of E, sum of E r^2 in px^2, and sum of E within the centre patch."""
    maps: Float64[Tensor, " pixel"]
    """E of all layers, summed over images: one layer after the other, each row by row."""
    scores: Float32[Tensor, "group pixel"]
    """The scores of Ding et al. before the logarithm, summed over images, in the same order."""
    places: list[list[Any]]
    """`Place` of each layer, in order of execution."""


class Centre(NamedTuple):
    """The features at the middle position of a map, and the number of the map's rows and columns."""

    features: Float[Tensor, "image channel"]
    rows: int
    columns: int


class Field(NamedTuple):
    """The fields of one layer: E summed over images, each image's `FieldSums.moments` and scores, and where it lies."""

    total: Float64[Tensor, "row col"]
    moments: Float64[Tensor, "image 3"]
    scores: Float[Tensor, "image row col"]
    middle: tuple[float, float]
    uniform: float


class Place(NamedTuple):
    """A layer, rows and columns of its input, the pixel at which its position lies, share of pixels in the centre patch."""

    model: str
    layer: str
    rows: int
    columns: int
    row: float
    column: float
    uniform: float


def measure(
    models: Models,
    images: AnyImages = PAPER,
    *,
    layers: str | Sequence[str] = "paper",
    channels: int | None = CHANNELS,
    state: Path | None = None,
) -> pd.DataFrame:
    """Size of the effective receptive field of every layer.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own (then with layer patterns).
        images: which images: `Images`, a path, a torch data set or a tensor; the paper took 32.
        layers: ``paper`` (every sublayer, both branches), ``blocks``, or one or several glob patterns over module paths.
        channels: how many channels of each layer are drawn at random for each image; None takes all, as the paper does.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, layer, step, depth, branch (``residual``, ``long``), radius_px, low, high, centre_share, centre_low,
        centre_high, uniform_centre_share (of a constant field); and for 20, 30, 50 and 99 % of the contribution scores
        side_20_px (of the smallest square that holds so much), side_20_low, side_20_high, area_20 (the share of the image in
        that square): one row per layer, with 95 % intervals over images. NaN where a layer does not depend on its input.
        radius_px_without, centre_share_without and side_20_px_without hold the values without each group of images, sides as
        if they grew evenly from square to square.

    Examples:
        >>> table = measure(["lab/vit", "lab/resnet"])    # doctest: +SKIP
    """
    return with_maps(models, images, layers=layers, channels=channels, state=state)[0]


def with_maps(
    models: Models,
    images: AnyImages = PAPER,
    *,
    layers: str | Sequence[str] = "paper",
    channels: int | None = CHANNELS,
    state: Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of `measure` and a second table with the fields themselves.

    Returns:
        The second has columns model, layer, step, depth, branch, radius_px, rows, columns, map: E row by row, in units of the
        layer per unit of the normalised input.
    """
    both = plan_with_maps(models, images, layers=layers, channels=channels)
    (both_tables,) = in_passes([dict(zip(("table", "maps"), both, strict=True))], state)
    table, maps = both_tables.values()
    return table, maps


def plan_with_maps(
    models: Models,
    images: AnyImages = PAPER,
    *,
    layers: str | Sequence[str] = "paper",
    channels: int | None = CHANNELS,
) -> tuple[Measurement[FieldSums], Measurement[FieldSums]]:
    """Plan what `with_maps` computes: two tables of the same sums, in a pass of their own because they need gradients."""
    if channels is not None and channels < 1:
        raise Refusal(f"channels must be at least 1, or None for all, got {channels}")
    loaded, images = prepared(models, images)
    one = {name: one_image(images, model) for name, model in loaded.items()}
    steps = {name: _steps(model, one[name], layers) for name, model in loaded.items()}
    for name, model in loaded.items():
        size = min(images.batch, len(images.order))
        gridded.refuse_without_places(model, list(steps[name]), one[name], size)
    where = {name: places(images, model) for name, model in loaded.items()}
    reading = Reading(
        models=loaded,
        images=images,
        taps={name: list(own) for name, own in steps.items()},
        reduce=_centre,
        differentiate=_differentiator(where, steps, channels),
        settings={"channels": channels},
    )
    facts = {"layers": layers, "channels": channels}

    def finish(sums: FieldSums) -> pd.DataFrame:
        return with_provenance(_table(sums, steps), "receptive_field", **reading.facts(), **facts)

    def finish_maps(sums: FieldSums) -> pd.DataFrame:
        maps = _maps(sums, _table(sums, steps))
        return with_provenance(maps, "receptive_field_maps", **reading.facts(), **facts)

    own = Measurement(reading, partial(_fold, images.batch), FieldSums, finish, alone=True)
    return own, replace(own, finish=finish_maps)


def drawn(numbers: Sequence[int], channels: int, draws: int | None) -> Int[Tensor, "image draw"]:
    """Draw channels for each image, the same whenever that image is read; all channels where there are not more."""
    if draws is None or draws >= channels:
        return torch.arange(channels).expand(len(numbers), -1)
    orders = [torch.randperm(channels, generator=torch.Generator().manual_seed(n)) for n in numbers]
    return torch.stack(orders)[:, :draws]


class Step(NamedTuple):
    """The step of the residual stream that a layer is, at what depth and on which branch; any other layer is its own step."""

    name: str
    depth: float
    branch: str


def _steps(model: Model, pixels: Tensor, chosen: str | Sequence[str]) -> dict[Tap, Step]:
    """Return the taps of the chosen layers, and the step of each."""
    try:
        steps = _true_steps(model, layers.sublayers(model), pixels)
    except Refusal:
        if chosen == "paper":
            raise
        steps = []
    known = {
        tap: Step(step.name, float(depth), branch)
        for depth, step in zip(np.linspace(0, 1, len(steps)), steps, strict=True)
        for branch, tap in (("residual", step.residual), ("long", step.long))
        if tap
    }
    taps = list(known) if chosen == "paper" else layers.choose({model.name: model}, chosen)[model.name]
    return {tap: known.get(tap, Step(str(tap), np.nan, "residual")) for tap in taps}


def _true_steps(model: Model, steps: Sequence[layers.Sublayer], pixels: Tensor) -> Sequence[layers.Sublayer]:
    """Return the steps without long branches that, on one image, are not what is added, and without steps that need them."""
    branches = [step.branch for step in steps if step.branch]
    if not branches:
        return steps
    found = set(true_branches(model.module, branches, pixels))
    return [
        step if step.branch is None or step.branch in found else step._replace(long=None)
        for step in steps
        if step.branch is None or step.branch in found or not step.needed
    ]


def _centre(activation: Activation) -> Centre:
    grid = on_grid(activation.values, activation.layout, str(activation))
    rows, columns = grid.shape[1:3]
    # Copied, as a ResNet adds its shortcut to the output of its last norm in place.
    return Centre(grid[:, rows // 2, columns // 2].clone(), rows, columns)


def _differentiator(
    where: Mapping[str, Mapping[tuple[int, int], Grid]],
    steps: Mapping[str, Mapping[Tap, Step]],
    channels: int | None,
) -> Callable[[Model, list[int], Tensor, Mapping[Layer, Centre]], dict[Layer, Field]]:
    checked: set[str] = set()

    def differentiate(
        model: Model, numbers: list[int], pixels: Tensor, seen: Mapping[Layer, Centre]
    ) -> dict[Layer, Field]:
        features = {layer: centre.features for layer, centre in seen.items()}
        scores = {layer: gradients.positive_gradient(pixels, own) for layer, own in features.items()}
        chosen = {
            layer: drawn(numbers, own.shape[1], channels).to(pixels.device) for layer, own in features.items()
        }
        if model.name not in checked:
            _refuse_cut_off(model, features, scores)
            checked.add(model.name)
        branches = {layer: steps[model.name][layer.tap].branch for layer in features}
        fields = mean_gradients(pixels, features, chosen, branches)
        found = {}
        for layer, centre in seen.items():
            grid = position(where[model.name], centre.rows, centre.columns)
            score = scores[layer]
            nothing = pixels.new_zeros(len(pixels), *pixels.shape[2:])
            found[layer] = _field(fields.pop(layer), nothing if score is None else score, grid)
        return found

    return differentiate


def mean_gradients(
    pixels: Tensor,
    features: gradients.Features,
    chosen: Mapping[Layer, Int[Tensor, "image draw"]],
    branches: Mapping[Layer, str],
) -> dict[Layer, Float64[Tensor, "image row col"]]:
    """Average |d feature / d pixel| of each layer over each image's chosen channels and over colours.

    The first channels have passes of their own in every layer and show what is a sum of what. That is done anew for each
    batch, so that a run that goes on after a kill, or shares its batches, comes to the same numbers.
    """
    image, colours, rows, columns = pixels.shape
    totals = {
        layer: torch.zeros(image, rows, columns, dtype=torch.float64, device=pixels.device)
        for layer in features
    }
    first = {layer: own[:, 0] for layer, own in chosen.items()}
    known: dict[Layer, gradients.Sum] = {}
    for layer, gradient in gradients.learning(pixels, features, branches, first, known):
        totals[layer] += gradient.abs().sum(1)
    passes = [
        (chain, channel)
        for chain in gradients.chains(list(features), known)
        for channel in chosen[chain[0]].T[1:]
    ]
    for chain, channel in progress.within(passes, "channels of layers"):
        for layer, gradient in gradients.along(pixels, features, chain, known, channel):
            totals[layer] += gradient.abs().sum(1)
    return {layer: own.div_(colours * chosen[layer].shape[1]) for layer, own in totals.items()}


def _refuse_cut_off(
    model: Model, features: gradients.Features, scores: Mapping[Layer, Tensor | None]
) -> None:
    """Refuse layers that differ from image to image and yet have no gradient, which a constant layer may lack.

    Raises:
        Refusal: gradients do not reach the input; it names the first layer.
    """
    quantised = any("quantized" in type(module).__module__ for module in model.module.modules())
    for layer, own in features.items():
        constant = not (own != own[:1]).any()
        if not constant and (quantised or scores[layer] is None):
            raise Refusal(
                f"gradients of {str(layer)!r} of {model.name} do not reach its input, though it depends on it: a quantised "
                f"network, or one that runs a part under torch.no_grad()"
            )


def _field(
    gradient: Float64[Tensor, "image row col"], scores: Float[Tensor, "image row col"], grid: Grid
) -> Field:
    own = weights(gradient.shape[1], gradient.shape[2], grid).to(gradient.device)
    moments = torch.einsum("irc,mrc->im", gradient, own)
    return Field(gradient.sum(0), moments, scores, grid.middle(), own[2].mean().item())


def _fold(size: int, batch: Pass) -> FieldSums:
    """Sum a batch, with each image in a group by its place in the run: there are too few images to group whole batches."""
    fields = batch.kept()
    moments = torch.stack([field.moments for *_, field in fields], dim=1)
    batch.refuse_not_finite(
        moments.transpose(0, 1), [f"the gradient of {str(layer)!r} of {model}" for model, layer, _ in fields]
    )
    group = (batch.number * size + torch.arange(batch.size, device=moments.device)) % GROUPS
    nothing = moments.new_zeros(GROUPS, *moments.shape[1:])
    maps = torch.cat([field.total.flatten() for *_, field in fields])
    scores = torch.zeros(GROUPS, len(maps), device=maps.device)
    for own, (*_, field) in zip(
        scores.split([field.total.numel() for *_, field in fields], dim=1), fields, strict=True
    ):
        own.index_add_(0, group, field.scores.flatten(1).float())
    return FieldSums(
        moments=nothing.index_add(0, group, moments),
        images=nothing[:, 0, 0].index_add(0, group, moments.new_ones(batch.size)),
        maps=maps,
        scores=scores,
        places=[list(_place(model, layer, field)) for model, layer, field in fields],
    )


def _place(model: str, layer: Layer, field: Field) -> Place:
    (rows, columns), (row, column) = field.total.shape, field.middle
    return Place(model, str(layer), rows, columns, row, column, field.uniform)


def _sizes(squares: Sequence[Squares], sums: FieldSums) -> Float64[Tensor, "layer size"]:
    """The radius in px, the centre share and the sides of each layer's squares; NaN where there is no gradient at all."""
    total, second, inside = sums.moments.sum(0).unbind(-1)
    fields = _contributions(squares, sums)
    sides = torch.stack([own.between(field, SHARES) for own, field in zip(squares, fields, strict=True)])
    return torch.cat([torch.stack([(second / total).sqrt(), inside / total], dim=-1).cpu(), sides], dim=1)


def _contributions(squares: Sequence[Squares], sums: FieldSums) -> list[Float64[Tensor, " pixel"]]:
    """The contribution scores of each layer, after the logarithm."""
    means = sums.scores.sum(0).double() / sums.images.sum()
    return list(torch.log10(1 + means).cpu().split([len(own.first) for own in squares]))


def _table(sums: FieldSums, steps: Mapping[str, Mapping[Tap, Step]]) -> pd.DataFrame:
    known = {(model, str(tap)): step for model, own in steps.items() for tap, step in own.items()}
    where = [Place(*place) for place in sums.places]
    table = placed([[own.model, own.layer] for own in where])
    # Where a block returns several values, each is a layer of its own and no step of the residual stream.
    found = [known.get((own.model, own.layer), Step(own.layer, np.nan, "residual")) for own in where]
    table.insert(2, "step", [step.name for step in found])
    table = table.assign(
        depth=pd.Series([step.depth for step in found]).fillna(table["depth"]),
        branch=[step.branch for step in found],
    )
    squares = [Squares.around(own.rows, own.columns, (own.row, own.column)) for own in where]
    sizes = jackknife(partial(_sizes, squares), sums)
    return table.assign(
        **sizes.of(0).columns("radius_px"),
        **sizes.of(1).of_share().columns("centre_share", "centre_low", "centre_high"),
        uniform_centre_share=[own.uniform for own in where],
        **_sides(squares, sums, Interval(*(part[..., 2:] for part in sizes))),
    )


def _sides(squares: Sequence[Squares], sums: FieldSums, between: Interval) -> dict[str, Any]:
    """Columns of the sides of squares, of the intervals of the sides between squares, whose upper ends are squares again."""
    fields = _contributions(squares, sums)
    sides = torch.stack([own.holding(field, SHARES) for own, field in zip(squares, fields, strict=True)])
    areas, high = sides.clone(), between.high.clone()
    for row, own in enumerate(squares):
        areas[row] = own.areas[own.number(sides[row])].where(sides[row].isfinite(), torch.nan)
        high[row] = own.sides[own.number(high[row])].where(high[row].isfinite(), torch.nan)
    columns: dict[str, Any] = {}
    for number, share in enumerate(SHARES):
        name = f"side_{100 * share:.0f}"
        bounds = Interval(sides, between.low.clamp(min=0), torch.maximum(high, sides), between.without)
        columns |= bounds.of(number).columns(f"{name}_px", f"{name}_low", f"{name}_high")
        columns[f"area_{100 * share:.0f}"] = areas[:, number].numpy()
    return columns


def _maps(sums: FieldSums, table: pd.DataFrame) -> pd.DataFrame:
    sizes = [(own.rows, own.columns) for own in (Place(*place) for place in sums.places)]
    means = (sums.maps / sums.images.sum()).float().cpu().split([rows * columns for rows, columns in sizes])
    return table[["model", "layer", "step", "depth", "branch", "radius_px"]].assign(
        rows=[rows for rows, _ in sizes],
        columns=[columns for _, columns in sizes],
        map=[mean.numpy() for mean in means],
    )
