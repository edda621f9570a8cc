"""How far a layer sees: the effective receptive field of the middle of its map (figures 6 and C.1-C.4).

Raghu et al. (2021, section 4) after Luo et al. (2016): the absolute gradient of the centre of a feature map with respect to
the input, averaged over images, channels and colours,

    E(u, v) = mean_image mean_channel mean_rgb |d y[channel, i, j] / d x[rgb, u, v]|,    (i, j) = (rows // 2, columns // 2),

of the residual stream after each sublayer (``residual``) and of what the sublayer adds to it (``long``). The mean is of
absolute values: the gradient of the sum of channels, one backward pass instead of one per channel, lets channels cancel. Here
a pass per channel serves all images of a batch, as no image depends on another. Where `channels` are fewer than a layer has,
each image draws its own, which is unbiased, and covered by the intervals, as these are over images.

Spread and centre are two numbers: R = sqrt(sum E r^2 / sum E) in pixels around the position, and C, the share of E in the
position's own patch: a square of the layer's stride (16 px in a ViT/16, 32 px in the last stage of a ResNet-50).

    python -m vit_analysis.receptive_field
    python -m vit_analysis.receptive_field vit_base_patch32_224 resnet50 --images.limit 32 --images.source ~/imagenet/val
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from vit_analysis import command, layers, plot
from vit_analysis.images import Images
from vit_analysis.models import Model, load_all, named
from vit_analysis.reading import intervals, measure, processes, stream
from vit_analysis.reading.intervals import GROUPS, jackknife
from vit_analysis.reading.intervene import sums as true_sums
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Sums
from vit_analysis.table import with_provenance
from vit_analysis.tensors.tokens import on_grid

Models = Sequence[Model] | Mapping[str, nn.Module]

# The paper's number of images; few enough to a batch that the activations of a ResNet-50 stay under 2 GB.
PAPER = Images(limit=32, batch=8)
CHANNELS = 32
STATISTICS = ("first_radius_px", "half_to_last_radius", "last_centre_to_uniform", "centre_less_long")


@dataclass(frozen=True)
class FieldSums(Sums):
    """What the fields of any number of batches add up to."""

    moments: Float64[Tensor, "group layer 3"]
    """Of E: sum, sum of E r^2 in px^2, and sum within the centre patch."""
    images: Float64[Tensor, " group"]
    maps: Float64[Tensor, " pixel"]
    """E of all layers, end to end, row by row."""
    places: list[list[Any]]
    """[model, layer, rows, columns of the input, share of its pixels in the centre patch], in order of execution."""


class Centre(NamedTuple):
    """The middle of a map of so many rows and columns."""

    features: Float[Tensor, "image channel"]
    rows: int
    columns: int


class Field(NamedTuple):
    """E of one layer: its sum over images, and each image's `FieldSums.moments`."""

    total: Float64[Tensor, "row col"]
    moments: Float64[Tensor, "image 3"]
    uniform: float


def compare(
    models: Models,
    images: Images = PAPER,
    *,
    layers: str | Sequence[str] = "paper",
    channels: int | None = CHANNELS,
    state: Path | None = None,
) -> pd.DataFrame:
    """Size of the effective receptive field of every layer.

    Args:
        models: loaded models, or any modules under names of your own (then with layer patterns).
        images: which images; the paper took 32.
        layers: ``paper`` (every sublayer, both branches), ``blocks``, or one or several glob patterns over module paths.
        channels: of each layer and image, drawn at random; None takes all, as the paper does.
        state: where a killed run leaves its sums, to go on from; None leaves nothing.

    Returns:
        Columns model, layer, step, depth, branch (``residual``, ``long``), radius_px, low, high, centre_share, centre_low,
        centre_high, uniform_centre_share (of a constant field): one row per layer, with 95 % intervals over images. NaN where
        a layer does not depend on its input. radius_px_without and centre_share_without hold the values without each group of
        images.

    >>> table = compare([load("lab/vit"), load("lab/resnet")])    # doctest: +SKIP
    """
    return with_maps(models, images, layers=layers, channels=channels, state=state)[0]


def with_maps(
    models: Models,
    images: Images = PAPER,
    *,
    layers: str | Sequence[str] = "paper",
    channels: int | None = CHANNELS,
    state: Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table of `compare`, and the fields themselves.

    Returns:
        The fields have columns model, layer, step, depth, branch, radius_px, rows, columns, map: E row by row, in units of the
        layer per unit of the normalised input.
    """
    both = plan_with_maps(models, images, layers=layers, channels=channels)
    table, maps = measure.tables(dict(zip(("table", "maps"), both, strict=True)), state).values()
    return table, maps


def plan_with_maps(
    models: Models,
    images: Images = PAPER,
    *,
    layers: str | Sequence[str] = "paper",
    channels: int | None = CHANNELS,
) -> tuple[Measurement[FieldSums], Measurement[FieldSums]]:
    """What `with_maps` measures: two tables of the same sums. They need gradients, so a pass of their own."""
    if channels is not None and channels < 1:
        raise ValueError(f"channels must be at least 1, or None for all, got {channels}")
    loaded = named(models)
    steps = {name: _steps(model, images, layers) for name, model in loaded.items()}
    reading = stream.Reading(
        models=loaded,
        images=images,
        taps={name: list(own["layer"]) for name, own in steps.items()},
        reduce=_reducer(loaded),
        differentiate=_differentiator(loaded, channels),
        settings={"channels": channels},
    )
    facts = {"layers": layers, "channels": channels}

    def finish(sums: FieldSums) -> pd.DataFrame:
        table = _table(sums, steps)
        found = _summary(sums, table).to_dict("records")
        return with_provenance(table, "receptive_field", **reading.facts(), **facts, summary=found)

    def finish_maps(sums: FieldSums) -> pd.DataFrame:
        maps = _maps(sums, _table(sums, steps))
        return with_provenance(maps, "receptive_field_maps", **reading.facts(), **facts)

    own = Measurement(reading, partial(_fold, images.batch), FieldSums, finish, alone=True)
    return own, replace(own, finish=finish_maps)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """What the paper says of these fields, as numbers: of every model, then of every two.

    Returns:
        Columns model, other_model (None, or the one whose value is subtracted), statistic, value, low, high. The statistics:
        ``first_radius_px`` (after the first attention, or the first convolution), ``half_to_last_radius`` (radius at depth 0.5
        over that at 1), ``last_centre_to_uniform`` (centre share of the last layer over that of a constant field), and
        ``centre_less_long`` (centre share after the addition less that of the long branch, over attentions, or units, of the
        last half). NaN where a layer that it needs was not chosen.
    """
    return pd.DataFrame(table.attrs["summary"])


def mean_gradient(
    pixels: Tensor, values: Float[Tensor, "image channel"], chosen: Int[Tensor, "image draw"]
) -> Float64[Tensor, "image row col"]:
    """Mean, over each image's chosen channels and over colours, of |d value / d pixel|: one backward pass per draw."""
    total = torch.zeros(len(pixels), *pixels.shape[2:], dtype=torch.float64, device=pixels.device)
    if not values.requires_grad:
        return total  # a constant
    for channel in chosen.T:
        one = torch.zeros_like(values).scatter_(1, channel[:, None], 1)
        # No image depends on another, so the gradient of the sum over images holds that of each.
        (gradient,) = torch.autograd.grad(values, pixels, one, retain_graph=True, materialize_grads=True)
        total += gradient.abs().double().mean(1)
    return total / chosen.shape[1]


def drawn(numbers: Sequence[int], channels: int, draws: int | None) -> Int[Tensor, "image draw"]:
    """Different channels for each image, the same whenever it is read; all of them where there are not more."""
    if draws is None or draws >= channels:
        return torch.arange(channels).expand(len(numbers), -1)
    orders = [torch.randperm(channels, generator=torch.Generator().manual_seed(n)) for n in numbers]
    return torch.stack(orders)[:, :draws]


def offsets(
    size: int, count: int, *, padded: bool
) -> tuple[Float64[Tensor, " pixel"], Bool[Tensor, " pixel"]]:
    """Along one axis: each pixel's distance from the middle one of ``count`` positions, and whether it is in its patch."""
    stride, middle = size / count, count // 2
    place = stride * middle if padded else stride * (middle + 0.5) - 0.5
    distance = torch.arange(size, dtype=torch.float64) - place
    return distance, (distance >= -stride / 2) & (distance < stride / 2)


def _steps(model: Model, images: Images, chosen: str | Sequence[str]) -> pd.DataFrame:
    """Columns layer, step, depth, branch of the chosen layers; other layers than the paper's are steps of their own."""
    try:
        steps = _true_steps(model, layers.sublayers(model.module), images)
    except ValueError:
        if chosen == "paper":
            raise
        steps = []
    depths = np.linspace(0, 1, len(steps))
    known = {
        tap: (tap, step.name, depth, branch)
        for depth, step in zip(depths, steps, strict=True)
        for branch, tap in (("residual", step.residual), ("long", step.long))
        if tap
    }
    taps = list(known) if chosen == "paper" else layers.choose({"": model.module}, chosen)[""]
    rows = [known.get(tap, (tap, tap, np.nan, "residual")) for tap in taps]
    return pd.DataFrame(rows, columns=["layer", "step", "depth", "branch"])


def _true_steps(model: Model, steps: Sequence[layers.Sublayer], images: Images) -> Sequence[layers.Sublayer]:
    """The steps without those that are none, and without long branches that are not what is added, as one image shows."""
    branches = [step.branch for step in steps if step.branch]
    if not branches:
        return steps
    pixels = next(images.read([model.preprocessing])).inputs[0].to(model.device)
    found = set(true_sums(model.module, branches, pixels))
    return [
        step if step.branch is None or step.branch in found else step._replace(long=None)
        for step in steps
        if step.branch is None or step.branch in found or not step.needed
    ]


def _reducer(models: Mapping[str, Model]) -> Callable[[str, str, Tensor], Centre]:
    layouts = {name: layers.layout(model.module) for name, model in models.items()}

    def reduce(model: str, layer: str, activation: Tensor) -> Centre:
        grid = on_grid(activation, layouts[model], f"{layer!r} of {model}")
        rows, columns = grid.shape[1:3]
        # A copy: a ResNet adds its shortcut to its last norm in place.
        return Centre(grid[:, rows // 2, columns // 2].clone(), rows, columns)

    return reduce


def _differentiator(
    models: Mapping[str, Model], channels: int | None
) -> Callable[[str, list[int], Tensor, dict[str, Centre]], dict[str, Field]]:
    padded = {name: layers.is_padded(model.module) for name, model in models.items()}

    def differentiate(
        model: str, numbers: list[int], pixels: Tensor, seen: dict[str, Centre]
    ) -> dict[str, Field]:
        quiet = True if processes.processes()[0] else None
        fields = {}
        for layer, centre in tqdm(seen.items(), desc=model, unit="layer", leave=False, disable=quiet):
            chosen = drawn(numbers, centre.features.shape[1], channels).to(pixels.device)
            gradient = mean_gradient(pixels, centre.features, chosen)
            if not gradient.isfinite().all():
                raise ValueError(f"{layer!r} of {model} has gradients that are not finite")
            fields[layer] = _field(gradient, centre, padded=padded[model])
        return fields

    return differentiate


def _field(gradient: Float64[Tensor, "image row col"], centre: Centre, *, padded: bool) -> Field:
    down, own_rows = offsets(gradient.shape[1], centre.rows, padded=padded)
    across, own_columns = offsets(gradient.shape[2], centre.columns, padded=padded)
    squares = down.square()[:, None] + across.square()
    inside = (own_rows[:, None] & own_columns).double()
    weights = torch.stack([torch.ones_like(inside), squares, inside]).to(gradient.device)
    moments = torch.einsum("irc,mrc->im", gradient, weights)
    return Field(gradient.sum(0), moments, inside.mean().item())


def _fold(size: int, batch: stream.Pass) -> FieldSums:
    """Every image is dealt to a group by its place in the run, as there are too few for whole batches."""
    fields = [(model, layer, field) for model, seen in batch.seen.items() for layer, field in seen.items()]
    moments = torch.stack([field.moments for *_, field in fields], dim=1)
    group = (batch.number * size + torch.arange(batch.size, device=moments.device)) % GROUPS
    nothing = moments.new_zeros(GROUPS, *moments.shape[1:])
    return FieldSums(
        moments=nothing.index_add(0, group, moments),
        images=nothing[:, 0, 0].index_add(0, group, moments.new_ones(batch.size)),
        maps=torch.cat([field.total.flatten() for *_, field in fields]),
        places=[[model, layer, *field.total.shape, field.uniform] for model, layer, field in fields],
    )


def _sizes(moments: Float64[Tensor, "*group layer 3"]) -> Float64[Tensor, "*group layer 2"]:
    """Radius in px and centre share; NaN where there is no gradient at all."""
    total, second, inside = moments.unbind(-1)
    return torch.stack([(second / total).sqrt(), inside / total], dim=-1)


def _table(sums: FieldSums, steps: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    place = pd.DataFrame(sums.places, columns=["model", "layer", "rows", "columns", "uniform_centre_share"])
    known = pd.concat([own.assign(model=name) for name, own in steps.items()])
    table = place[["model", "layer"]].merge(known, how="left", on=["model", "layer"], validate="1:1")
    # Of a block that passes on several values each is a layer, and no step.
    table = table.assign(step=table["step"].fillna(table["layer"]), branch=table["branch"].fillna("residual"))
    order = table.groupby("model").cumcount() / (table.groupby("model")["layer"].transform("size") - 1).clip(
        lower=1
    )
    radius, share = map(jackknife(_sizes, sums.moments, sums.images > 0).of, (0, 1))
    return table.assign(
        depth=table["depth"].fillna(order),
        **radius.columns("radius_px"),
        **share.columns("centre_share", "centre_low", "centre_high"),
        uniform_centre_share=place["uniform_centre_share"],
    )


def _maps(sums: FieldSums, table: pd.DataFrame) -> pd.DataFrame:
    sizes = [(rows, columns) for _, _, rows, columns, _ in sums.places]
    means = (sums.maps / sums.images.sum()).float().cpu().split([rows * columns for rows, columns in sizes])
    return table[["model", "layer", "step", "depth", "branch", "radius_px"]].assign(
        rows=[rows for rows, _ in sizes],
        columns=[columns for _, columns in sizes],
        map=[mean.numpy() for mean in means],
    )


def _summary(sums: FieldSums, table: pd.DataFrame) -> pd.DataFrame:
    def statistic(moments: Tensor) -> Tensor:
        radius, share = _sizes(moments).numpy().T
        sized = table.assign(radius_px=radius, centre_share=share)
        own = [_findings(rows) for _, rows in sized.groupby("model", sort=False)]
        return intervals.with_differences(torch.tensor(own, dtype=torch.float64))

    interval = jackknife(statistic, sums.moments.cpu(), sums.images.cpu() > 0)
    compared = pd.DataFrame(intervals.pairs(list(table["model"].unique())), columns=["model", "other_model"])
    rows = compared.merge(pd.DataFrame({"statistic": STATISTICS}), how="cross")
    values = {name: part.flatten().numpy() for name, part in interval._asdict().items() if name != "without"}
    return rows.assign(**values)


def _findings(own: pd.DataFrame) -> list[float]:
    """`STATISTICS` of one model."""
    stream = own[own["branch"] == "residual"]

    def at(depth: float, column: str) -> float:
        return float(np.interp(depth, stream["depth"], stream[column], left=np.nan, right=np.nan))

    late = own[(own["depth"] >= 0.5) & ~own["step"].str.startswith("MLP")]
    share = late.pivot(index="step", columns="branch", values="centre_share")
    less = share.get("residual", np.nan) - share.get("long", np.nan)
    return [
        at(0.0, "radius_px"),
        at(0.5, "radius_px") / at(1.0, "radius_px"),
        at(1.0, "centre_share") / at(1.0, "uniform_centre_share"),
        float(np.nanmean(less)) if np.isfinite(less).any() else np.nan,
    ]


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Images = PAPER,
    layers: tuple[str, ...] = ("paper",),
    channels: int | None = CHANNELS,
    out: Path = Path("figures/receptive_field"),
    device: str | None = None,
) -> None:
    """Effective receptive fields (figures 6 and C.1-C.4 of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images.
        layers: paper, blocks, or glob patterns over module paths such as 'blocks.*'; each costs a pass per channel.
        channels: of each layer and image, drawn at random; None takes all.
        out: .parquet and .png are added, and _maps.parquet and _maps.png for the fields.
        device: cpu, cuda ...; the GPU if there is one.
    """
    chosen = layers[0] if len(layers) == 1 else layers
    loaded = load_all(models, device=device)
    table, maps = with_maps(loaded, images, layers=chosen, channels=channels, state=out)
    for result, ending, picture in (
        (table, "", plot.receptive_field),
        (maps, "_maps", plot.receptive_field_maps),
    ):
        command.write(result, command.beside(out, ending))
        command.draw(result, command.beside(out, ending), picture)


if __name__ == "__main__":
    command.run(main)
