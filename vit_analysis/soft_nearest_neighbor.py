"""How entangled classes are in each layer: the soft nearest neighbour loss (the course notes' explanation of figure 13).

Frosst, Papernot and Hinton (ICML 2019), for b images x with labels y and a temperature T:

    loss(T) = -1/b sum_i log( sum_{j != i, y_j = y_i} exp(-|x_i - x_j|^2 / T) / sum_{k != i} exp(-|x_i - x_k|^2 / T) ),

minus the log probability that a neighbour picked by distance is of the same class: high where classes are entangled, 0 where
they are separated. It is not scale invariant, so a comparison of layers at one T means nothing; as in the paper, T is the one
that minimises the loss, here found by search instead of a gradient step. Raghu et al. (2021) do not use this loss.

Temperatures are in units of each batch's median squared distance, on a grid from 1/1000 to 1000. So features of any scale have
the same sums, which merge without a look at the data beforehand, and 1 is the fixed temperature that layers can be compared at.
Between grid points the minimum is that of a parabola in log T.

Batches are balanced: as many classes as have 16 images in a batch, as many images of each. Frosst et al.'s published code is
not followed: its default temperature gives log C in any layer, and an anchor without a mate adds 11.5 to its loss.

    python -m vit_analysis.soft_nearest_neighbor
    python -m vit_analysis.soft_nearest_neighbor vit_base_patch16_224 resnet50 --images.source ~/imagenet/val
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor, nn

from vit_analysis import command, features, layers, plot, similarity
from vit_analysis.images import Images
from vit_analysis.models import Model, load_all, named
from vit_analysis.running import Sums, in_group, jackknife
from vit_analysis.spelling import did_you_mean
from vit_analysis.table import placed, with_provenance
from vit_analysis.tokens import SELECTIONS, Layout, Selection

logger = logging.getLogger(__name__)

Models = Sequence[Model] | Mapping[str, nn.Module]

MATES = 16  # images of each class in a batch
TEMPERATURES = torch.logspace(-3, 3, 61, dtype=torch.float64)
FIXED = 30  # where the temperature is the median squared distance itself
STEP = 0.1  # of log10 of the temperature


@dataclass(frozen=True)
class Curves(Sums):
    """The loss at every temperature, summed over anchors: images that have a mate, another image of their class."""

    loss: Float64[Tensor, "group layer temperature"]
    median: Float64[Tensor, "group layer"]
    """Logarithm of the median squared distance, once per anchor."""
    anchors: Float64[Tensor, " group"]
    dropped: Float64[Tensor, " group"]
    chance: Float64[Tensor, " group"]
    """The loss of features that do not depend on the class, summed over anchors: log((images - 1) / mates)."""
    places: list[list[str]]
    """[model, layer] of each row, in order of execution."""


class Minimum(NamedTuple):
    """Where a loss is smallest."""

    loss: Float64[Tensor, "*layer"]
    log_temperature: Float64[Tensor, "*layer"]
    """log10, in units of the median squared distance."""
    at_bound: Bool[Tensor, "*layer"]


def compare(
    models: Models,
    images: Images,
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: str = "all",
    target: str | None = None,
    state: Path | None = None,
) -> pd.DataFrame:
    """Soft nearest neighbour loss of every layer of all models, in one pass over class-balanced batches of the images.

    Args:
        models: loaded models, or any modules under names of your own (then with layer patterns).
        images: which images to choose from; ``batch`` decides how many classes a batch has, see `balanced`.
        layers: ``blocks``, ``paper``, or one or several glob patterns over module paths.
        tokens: what of a layer is compared, see `tokens.SELECTIONS`; ``all`` are the distances of whole activations.
        target: what the labels tell: of scenes ``shape`` (the default), ``texture`` or ``position``.
        state: where a killed run leaves its sums, to go on from; None leaves nothing.

    Returns:
        Columns model, layer, depth, loss, temperature, at_bound, loss_fixed, low, high, anchors, chance: one row per layer, in
        order of execution. The temperature is in units of squared activations; ``at_bound`` says that the loss falls up to the
        end of the search (at the lower one, where it is 0: every image's nearest neighbour is of its class); ``loss_fixed``
        is the loss at the median squared distance; low and high are the 95 % interval of ``loss``; ``anchors`` counts images
        that have a mate. NaN where a layer is constant over images.

    Raises:
        ValueError: images without classes, or too few of them for balanced batches.

    >>> table = compare([load("lab/vit"), load("lab/resnet")], Images(limit=3200, batch=160))    # doctest: +SKIP
    """
    loaded = named(models)
    if tokens not in SELECTIONS:
        raise ValueError(f"no tokens {tokens!r}; {did_you_mean(tokens, SELECTIONS)}")
    target = _target(images, target)
    images = balanced(images, target)
    taps, settings = _taps(loaded, layers), {"tokens": tokens, "target": target}
    reading = features.Reading(
        loaded, images, taps, partial(_distances, _layouts(loaded), tokens), settings=settings
    )
    sums = features.measure(reading, partial(_fold, images, target), Curves, state)
    _warn(sums)
    return with_provenance(
        _table(sums),
        "soft_nearest_neighbor",
        **reading.facts(),
        **settings,
        layers=layers,
        dropped=int(sums.dropped.sum()),
    )


def balanced(images: Images, target: str) -> Images:
    """As many whole batches as there are with the same number of images of each of their classes.

    A batch has as many classes as get `MATES` images each; where there are more, batches take them in turn.

    Raises:
        ValueError: a batch or the images are too few for two classes.
    """
    pool, labels = torch.tensor(images.order), images.truth(images.order)[target]
    own = [pool[labels == label].tolist() for label in labels.unique()]
    rich = [numbers for numbers in own if len(numbers) >= MATES]
    classes = min(images.batch // MATES, len(rich))
    if classes < 2:
        raise ValueError(
            f"a batch needs {MATES} images of each of 2 classes or more; it has {images.batch}, and {len(rich)} of {len(own)} "
            f"classes have {MATES} among {len(pool)} images; raise images.batch or images.limit"
        )
    if len(rich) < len(own):
        logger.warning("%d classes have fewer than %d images and are left out", len(own) - len(rich), MATES)
    used, chosen = [0] * len(rich), list[int]()
    while True:
        left = [place for place, numbers in enumerate(rich) if used[place] + MATES <= len(numbers)]
        if len(left) < classes:
            return images.only(chosen, batch=classes * MATES)
        for place in sorted(left, key=lambda place: used[place])[:classes]:
            chosen += rich[place][used[place] : used[place] + MATES]
            used[place] += MATES


def curve(
    distances: Float64[Tensor, "layer image image"], labels: Int[Tensor, " image"]
) -> tuple[Float64[Tensor, "layer temperature"], Float64[Tensor, " layer"]]:
    """The loss at every temperature, summed over images that have a mate, and the median squared distance.

    NaN for a layer that is constant over images.
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    mates = (labels[:, None] == labels) & ~itself
    anchors = mates.any(1)
    median = distances[:, ~itself].median(dim=1).values
    near = (-distances[:, anchors] / median[:, None, None]).masked_fill(itself[anchors], -torch.inf)
    losses = []
    for temperature in TEMPERATURES.tolist():
        logits = near / temperature
        mated = logits.masked_fill(~mates[anchors], -torch.inf)
        losses.append((logits.logsumexp(-1) - mated.logsumexp(-1)).sum(-1))
    return torch.stack(losses, dim=1), median


def minimum(curve: Float64[Tensor, "layer temperature"]) -> Minimum:
    """The smallest loss over temperatures, by the parabola through the smallest grid point and its neighbours."""
    last = curve.shape[1] - 1
    place = curve.argmin(1, keepdim=True)
    inner = place.clamp(1, last - 1)
    before, here, after = (curve.gather(1, inner + step) for step in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = torch.where(bend > 0, (before - after) / (2 * bend), 0.0)
    at_bound = (place == 0) | (place == last)
    loss = torch.where(at_bound, curve.gather(1, place), here - (before - after) * shift / 4)
    steps = torch.where(at_bound, place, inner + shift) - FIXED
    return Minimum(loss[:, 0], STEP * steps[:, 0], at_bound[:, 0])


def _target(images: Images, asked: str | None) -> str:
    targets = images.targets
    if not targets:
        raise ValueError(f"{images.source!r} has no classes: it needs a folder for each")
    if asked is not None and asked not in targets:
        raise ValueError(f"no labels {asked!r} in {images.source!r}; {did_you_mean(asked, targets)}")
    return asked or next(iter(targets))


def _taps(models: Mapping[str, Model], chosen: str | Sequence[str]) -> dict[str, list[str]]:
    return layers.choose({name: model.module for name, model in models.items()}, chosen)


def _layouts(models: Mapping[str, Model]) -> dict[str, Layout]:
    return {name: layers.layout(model.module) for name, model in models.items()}


def _distances(
    layouts: Mapping[str, Layout], tokens: str, model: str, _: str, activation: Tensor
) -> Float64[Tensor, "image image"] | None:
    """Squared distances of the images; None where the layer has no such tokens."""
    values = SELECTIONS[tokens](activation, layouts[model])
    return None if values is None else similarity.squared_distances(values)


def _fold(images: Images, target: str, batch: features.Pass) -> Curves | None:
    places = [[model, layer] for model, seen in batch.seen.items() for layer in seen]
    if not places:
        raise ValueError("no chosen layer has what --tokens asks for (a class token?)")
    distances = torch.stack([own for seen in batch.seen.values() for own in seen.values()])
    if not distances.isfinite().all():
        model, layer = places[int(distances.isfinite().all(2).all(1).logical_not().nonzero()[0])]
        raise ValueError(f"{layer!r} of {model} has values that are not finite in batch {batch.number}")
    labels = images.truth(batch.images)[target].to(distances.device)
    mates = (labels[:, None] == labels).sum(1).double() - 1
    mates = mates[mates > 0]  # of each anchor
    if not len(mates):
        return None
    loss, median = curve(distances, labels)
    sums = {
        "loss": loss,
        "median": len(mates) * median.log(),
        "anchors": loss.new_tensor(float(len(mates))),
        "dropped": loss.new_tensor(float(len(labels) - len(mates))),
        "chance": ((len(labels) - 1) / mates).log().sum(),
    }
    return Curves(**{name: in_group(value, batch.number) for name, value in sums.items()}, places=places)


def _table(sums: Curves) -> pd.DataFrame:
    """Anchors ride along as one more column of the curves, so that the jackknife divides by what is left."""
    anchors = sums.anchors[:, None, None].expand(-1, sums.loss.shape[1], 1)
    interval = jackknife(_smallest, torch.cat([sums.loss, anchors], dim=2), sums.anchors > 0)
    mean = sums.loss.sum(0) / sums.anchors.sum()
    found = minimum(mean)
    columns = {
        "loss": interval.value,
        "temperature": (found.log_temperature * math.log(10) + sums.median.sum(0) / sums.anchors.sum()).exp(),
        "at_bound": found.at_bound,
        "loss_fixed": mean[:, FIXED],
        "low": interval.low,
        "high": interval.high,
    }
    return placed(sums.places).assign(
        **{name: value.cpu().numpy() for name, value in columns.items()},
        anchors=int(sums.anchors.sum()),
        chance=float(sums.chance.sum() / sums.anchors.sum()),
    )


def _smallest(sums: Float64[Tensor, "layer column"]) -> Float64[Tensor, " layer"]:
    return minimum(sums[:, :-1] / sums[:, -1:]).loss


def _warn(sums: Curves) -> None:
    constant = sums.loss.sum((0, 2)).isnan().tolist()
    told = [
        f"{layer} of {model}" for (model, layer), never in zip(sums.places, constant, strict=True) if never
    ]
    if told:
        logger.warning("constant over all images, so its loss is undefined (NaN): %s", ", ".join(told))
    if dropped := int(sums.dropped.sum()):
        logger.warning(
            "%d images have no other image of their class in their batch and are left out", dropped
        )


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Images = Images(limit=4000, batch=160),  # noqa: B008  (frozen)
    layers: tuple[str, ...] = ("blocks",),
    tokens: Selection = "all",
    target: str | None = None,
    out: Path = Path("figures/soft_nearest_neighbor"),
    device: str | None = None,
) -> None:
    """Soft nearest neighbour loss of each layer: high where classes are entangled, 0 where they are separated.

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images to choose from; a batch of 160 has ten classes of 16 images.
        layers: blocks, paper, or glob patterns over module paths such as 'blocks.*.attn'.
        tokens: what of a token layer is compared.
        target: what the labels tell; of scenes shape, texture or position.
        out: .parquet and .png are added.
        device: cpu, cuda ...; the GPU if there is one.
    """
    chosen = layers[0] if len(layers) == 1 else layers
    loaded = load_all(models, device=device)
    table = compare(loaded, images, layers=chosen, tokens=tokens, target=target, state=out)
    command.write(table, out)
    command.draw(table, out, plot.soft_nearest_neighbor)


if __name__ == "__main__":
    command.run(main)
