"""How far a layer sees: the effective receptive field of the middle of its map (figures 6 and C.1-C.4).

Raghu et al. (2021, section 4) after Luo et al. (2016): the absolute gradient of the centre of a feature map with respect to
the input, averaged over images, channels and colours,

    E(u, v) = mean_image mean_channel mean_rgb |d y[channel, i, j] / d x[rgb, u, v]|,    (i, j) = (rows // 2, columns // 2),

of the residual stream after each sublayer (``residual``) and of what the sublayer adds to it (``long``). The mean is of
absolute values: the gradient of the sum of channels, one backward pass instead of one per channel, lets channels cancel. Here
one backward pass per channel serves all images of a batch, as no image depends on another. Where `channels` is less than the
number that a layer has, each image draws its own at random: the mean stays unbiased, and the intervals, which are over images,
cover the draw.

Two numbers summarise E: the radius R = sqrt(sum E r^2 / sum E) in pixels around the position, and C, the share of E in the
position's own patch: a square of the layer's stride (16 px in a ViT/16, 32 px in the last stage of a ResNet-50).

    python -m vit_analysis.receptive_field
    python -m vit_analysis.receptive_field vit_base_patch32_224 resnet50 --images.limit 32 --images.source ~/imagenet/val
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
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from vit_analysis import layers
from vit_analysis.anatomy.positions import position
from vit_analysis.images import AnyImages, Images
from vit_analysis.layers import Tap
from vit_analysis.models import Model, Models
from vit_analysis.reading import progress
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.intervals import jackknife
from vit_analysis.reading.intervene import true_branches
from vit_analysis.reading.measure import Measurement, in_passes
from vit_analysis.reading.state import GROUPS, Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading, one_image, places, prepared
from vit_analysis.spelling import Refusal
from vit_analysis.table import placed, with_provenance
from vit_analysis.tensors.tokens import Grid, on_grid

# The paper's number of images, in batches small enough that the activations of a ResNet-50 stay under 2 GB.
PAPER = Images(limit=32, batch=8)
CHANNELS = 32


@dataclass(frozen=True)
class FieldSums(Grouped):
    """The sums over batches from which receptive fields are computed."""

    moments: Float64[Tensor, "group layer 3"]
    """Summed over images: sum of E, sum of E r^2 in px^2, and sum of E within the centre patch."""
    maps: Float64[Tensor, " pixel"]
    """E of all layers, summed over images: one layer after the other, each row by row."""
    places: list[list[Any]]
    """[model, layer, rows, columns of the input, share of its pixels in the centre patch], in order of execution."""


class Centre(NamedTuple):
    """The features at the middle position of a map, and the number of the map's rows and columns."""

    features: Float[Tensor, "image channel"]
    rows: int
    columns: int


class Field(NamedTuple):
    """E of one layer: its sum over images, each image's `FieldSums.moments`, and the share of pixels in the centre patch."""

    total: Float64[Tensor, "row col"]
    moments: Float64[Tensor, "image 3"]
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
        centre_high, uniform_centre_share (of a constant field): one row per layer, with 95 % intervals over images. NaN where
        a layer does not depend on its input. radius_px_without and centre_share_without hold the values without each group of
        images.

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
    where = {name: places(images, model) for name, model in loaded.items()}
    reading = Reading(
        models=loaded,
        images=images,
        taps={name: list(own) for name, own in steps.items()},
        reduce=_centre,
        differentiate=_differentiator(where, channels),
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


def mean_gradient(
    pixels: Tensor, values: Float[Tensor, "image channel"], chosen: Int[Tensor, "image draw"]
) -> Float64[Tensor, "image row col"]:
    """Average |d value / d pixel| over each image's chosen channels and over colours, with one backward pass per draw."""
    total = torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.float64, device=pixels.device)
    if not values.requires_grad:
        return total  # the layer does not depend on its input
    for channel in chosen.T:
        one = torch.zeros_like(values).scatter_(1, channel[:, None], 1)
        # No image depends on another, so the gradient of the sum over images holds that of each.
        (gradient,) = torch.autograd.grad(values, pixels, one, retain_graph=True, materialize_grads=True)
        total += gradient.abs().double().mean(1)
    return total / chosen.shape[1]


def drawn(numbers: Sequence[int], channels: int, draws: int | None) -> Int[Tensor, "image draw"]:
    """Draw channels for each image, the same whenever that image is read; all channels where there are not more."""
    if draws is None or draws >= channels:
        return torch.arange(channels).expand(len(numbers), -1)
    orders = [torch.randperm(channels, generator=torch.Generator().manual_seed(n)) for n in numbers]
    return torch.stack(orders)[:, :draws]


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
    taps = list(known) if chosen == "paper" else layers.choose({"": model}, chosen)[""]
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
    where: Mapping[str, Mapping[tuple[int, int], Grid]], channels: int | None
) -> Callable[[Model, list[int], Tensor, Mapping[Layer, Centre]], dict[Layer, Field]]:
    checked: set[str] = set()

    def differentiate(
        model: Model, numbers: list[int], pixels: Tensor, seen: Mapping[Layer, Centre]
    ) -> dict[Layer, Field]:
        fields = {}
        if model.name not in checked:
            _refuse_cut_off(model, seen, pixels)
            checked.add(model.name)
        for layer, centre in progress.within(seen.items(), f"layers of {model.name}"):
            chosen = drawn(numbers, centre.features.shape[1], channels).to(pixels.device)
            gradient = mean_gradient(pixels, centre.features, chosen)
            fields[layer] = _field(gradient, position(where[model.name], centre.rows, centre.columns))
        return fields

    return differentiate


def _refuse_cut_off(model: Model, seen: Mapping[Layer, Centre], pixels: Tensor) -> None:
    """Refuse layers that differ from image to image and yet have no gradient, which a constant layer may lack.

    Raises:
        Refusal: gradients do not reach the input; it names the first layer.
    """
    quantised = any("quantized" in type(module).__module__ for module in model.module.modules())
    for layer, centre in seen.items():
        features = centre.features
        constant = not (features != features[:1]).any()
        if not constant and (quantised or not _reaches(features, pixels)):
            raise Refusal(
                f"gradients of {str(layer)!r} of {model.name} do not reach its input, though it depends on it: a quantised "
                f"network, or one that runs a part under torch.no_grad()"
            )


def _reaches(features: Tensor, pixels: Tensor) -> bool:
    """Return whether any gradient of the features arrives at the images."""
    if not features.requires_grad:
        return False
    (found,) = torch.autograd.grad(features.sum(), pixels, retain_graph=True, allow_unused=True)
    return found is not None


def _field(gradient: Float64[Tensor, "image row col"], grid: Grid) -> Field:
    row, column = grid.middle()
    down, own_rows = offsets(gradient.shape[1], row, grid.height)
    across, own_columns = offsets(gradient.shape[2], column, grid.width)
    squares = down.square()[:, None] + across.square()
    inside = (own_rows[:, None] & own_columns).double()
    weights = torch.stack([torch.ones_like(inside), squares, inside]).to(gradient.device)
    moments = torch.einsum("irc,mrc->im", gradient, weights)
    return Field(gradient.sum(0), moments, inside.mean().item())


def _fold(size: int, batch: Pass) -> FieldSums:
    """Sum a batch, with each image in a group by its place in the run: there are too few images to group whole batches."""
    fields = batch.kept()
    moments = torch.stack([field.moments for *_, field in fields], dim=1)
    batch.refuse_not_finite(
        moments.transpose(0, 1), [f"the gradient of {str(layer)!r} of {model}" for model, layer, _ in fields]
    )
    group = (batch.number * size + torch.arange(batch.size, device=moments.device)) % GROUPS
    nothing = moments.new_zeros(GROUPS, *moments.shape[1:])
    return FieldSums(
        moments=nothing.index_add(0, group, moments),
        images=nothing[:, 0, 0].index_add(0, group, moments.new_ones(batch.size)),
        maps=torch.cat([field.total.flatten() for *_, field in fields]),
        places=[[model, str(layer), *field.total.shape, field.uniform] for model, layer, field in fields],
    )


def _sizes(sums: FieldSums) -> Float64[Tensor, "layer 2"]:
    """The radius in px and the centre share of each layer; NaN where there is no gradient at all."""
    total, second, inside = sums.moments.sum(0).unbind(-1)
    return torch.stack([(second / total).sqrt(), inside / total], dim=-1)


def _table(sums: FieldSums, steps: Mapping[str, Mapping[Tap, Step]]) -> pd.DataFrame:
    known = {(model, str(tap)): step for model, own in steps.items() for tap, step in own.items()}
    table = placed([[model, layer] for model, layer, *_ in sums.places])
    # Where a block returns several values, each is a layer of its own and no step of the residual stream.
    found = [known.get((model, layer), Step(layer, np.nan, "residual")) for model, layer, *_ in sums.places]
    table.insert(2, "step", [step.name for step in found])
    table = table.assign(
        depth=pd.Series([step.depth for step in found]).fillna(table["depth"]),
        branch=[step.branch for step in found],
    )
    sizes = jackknife(_sizes, sums)
    return table.assign(
        **sizes.of(0).columns("radius_px"),
        **sizes.of(1).of_share().columns("centre_share", "centre_low", "centre_high"),
        uniform_centre_share=[uniform for *_, uniform in sums.places],
    )


def _maps(sums: FieldSums, table: pd.DataFrame) -> pd.DataFrame:
    sizes = [(rows, columns) for _, _, rows, columns, _ in sums.places]
    means = (sums.maps / sums.images.sum()).float().cpu().split([rows * columns for rows, columns in sizes])
    return table[["model", "layer", "step", "depth", "branch", "radius_px"]].assign(
        rows=[rows for rows, _ in sizes],
        columns=[columns for _, columns in sizes],
        map=[mean.numpy() for mean in means],
    )
