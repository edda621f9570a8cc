"""How entangled classes are in each layer: the soft nearest neighbour loss (the course notes' explanation of figure 13).

Frosst, Papernot and Hinton (ICML 2019), for b images x with labels y and a temperature T:

    loss(T) = -1/b sum_i log( sum_{j != i, y_j = y_i} exp(-|x_i - x_j|^2 / T) / sum_{k != i} exp(-|x_i - x_k|^2 / T) ),

minus the log probability that a neighbour picked by distance is of the same class: high where classes are entangled, 0 where
they are separated. It is not scale invariant, so a comparison of layers at one T means nothing; as in the paper, T is the one
that minimises the loss, here found by search instead of a gradient step. Raghu et al. (2021) do not use this loss.

One temperature serves all batches of a layer. It is known only after the last batch, so every batch adds its losses at 61
points of a grid that is the same for all data, from 1/1000 to 1000 times its own median squared distance. Such sums merge. The
minimum is that of a parabola through the smallest point that all batches reached and its neighbours. The table also has the
loss at a temperature that needs no search, each batch's median squared distance.

Batches are balanced: 16 images of each of as many classes as fit. Frosst et al.'s published code is not followed: its default
temperature gives log C for C classes in any layer, and an anchor (image i) without a mate (another image of its class) adds
11.5 to its loss.

    python -m vit_analysis.soft_nearest_neighbor
    python -m vit_analysis.soft_nearest_neighbor vit_base_patch16_224 resnet50 --images.source ~/imagenet/val
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("soft_nearest_neighbor")


import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from vit_analysis.images import AnyImages, Images, given
from vit_analysis.models import Models
from vit_analysis.reading.intervals import jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading
from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.table import placed, with_provenance
from vit_analysis.tensors import similarity
from vit_analysis.tensors.tokens import SELECTIONS

logger = logging.getLogger(__name__)

CONSTANT = 2  # layers that are constant over images and told by name
WATCHED = 4  # massive tokens are looked for in one of four images of every batch
MATES = 16  # images of each class in a batch
STEP = 0.1  # between points of the grid, in log10 of the temperature
SPAN = 30  # steps from a batch's median squared distance to either end of its search
ROUNDING = 1e-12  # a loss below this per anchor is rounding of a difference of logarithms, set to 0
ENDS = 300  # steps from T = 1 to either end of the grid: squared distances of float32 do not go further


@dataclass(frozen=True)
class Curves(Grouped):
    """The loss at every temperature, summed over anchors: images that have a mate, another image of their class.

    ``images`` counts the anchors alone.
    """

    loss: Float64[Tensor, "group layer temperature"]
    reached: Float64[Tensor, "group layer temperature"]
    """Anchors whose loss at this temperature is in the sum."""
    fixed: Float64[Tensor, "group layer"]
    """The loss at the median squared distance of the batch."""
    dropped: Float64[Tensor, " group"]
    chance: Float64[Tensor, " group"]
    """The loss of features that do not depend on the class, summed over anchors: log((images - 1) / mates)."""
    massive: Float64[Tensor, "layer 2"]
    """For token layers: squared distances of watched images, summed, as they are and with massive tokens replaced."""
    places: list[list[str]]
    """[model, layer] of each row, in order of execution."""


class Minimum(NamedTuple):
    """The smallest loss, its temperature, and whether it lies at an end of the search."""

    loss: Float64[Tensor, "*layer"]
    temperature: Float64[Tensor, "*layer"]
    at_bound: Bool[Tensor, "*layer"]


def measure(
    models: Models,
    images: AnyImages,
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: str = "all",
    target: str | None = None,
    state: Path | None = None,
) -> pd.DataFrame:
    """Soft nearest neighbour loss of every layer of all models, in one pass over class-balanced batches of the images.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own (then with layer patterns).
        images: which images to choose from: `Images`, a path or a torch data set; ``batch`` decides how many classes a batch
            has, see `balanced`.
        layers: ``blocks``, ``paper``, or one or several glob patterns over module paths.
        tokens: which values of a layer are compared, see `tokens.SELECTIONS`; ``all`` are the distances of whole activations.
        target: which labels are used: for scenes ``shape`` (the default), ``texture`` or ``position``.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, layer, depth, loss, temperature, at_bound, loss_fixed, low, high, anchors, chance: one row per layer, in
        order of execution. The temperature is in units of squared activations; ``at_bound`` says that the loss falls up to the
        end of the search (at the lower one, where it is 0: every image's nearest neighbour is of its class); ``loss_fixed``
        is the loss at the median squared distance; low and high are the 95 % interval of ``loss``; ``anchors`` counts images
        that have a mate. NaN where a layer is constant over images. loss_without holds the values without each group of
        batches.

    Raises:
        Refusal: images without classes, or too few of them for balanced batches.

    Examples:
        >>> table = measure(["lab/vit", "lab/resnet"], Images(limit=3200, batch=160))    # doctest: +SKIP
    """
    return plan(models, images, layers=layers, tokens=tokens, target=target).table(state)


def plan(
    models: Models,
    images: AnyImages,
    *,
    layers: str | Sequence[str] = "blocks",
    tokens: str = "all",
    target: str | None = None,
) -> Measurement[Curves]:
    """Plan what `measure` computes without running it, so that one pass over `balanced` images can serve several analyses."""
    images = given(images)
    if tokens not in SELECTIONS:
        raise Refusal(f"no tokens {tokens!r}; {did_you_mean(tokens, SELECTIONS)}")
    target = _target(images, target)
    images = balanced(images, target)
    settings = {"tokens": tokens, "target": target}
    reading = replace(Reading.of(models, images, layers, partial(_distances, tokens), **settings), whole=True)

    def finish(sums: Curves) -> pd.DataFrame:
        facts = {**settings, "layers": layers, "dropped": int(sums.dropped.sum()), "massive": _massive(sums)}
        table = with_provenance(_table(sums), "soft_nearest_neighbor", **reading.facts(), **facts)
        _warn(sums, table)
        return table

    return Measurement(reading, partial(_fold, images, target), Curves, finish)


def balanced(images: Images, target: str) -> Images:
    """Choose images for as many whole batches as possible, each with the same number of images of each of its classes.

    A batch has `MATES` images of each of as many classes as fit; where there are more classes, batches take them in turn.

    Raises:
        Refusal: a batch or the images are too few for two classes.
    """
    pool, labels = torch.tensor(images.order), images.truth(images.order)[target]
    own = [pool[labels == label].tolist() for label in labels.unique()]
    rich = [numbers for numbers in own if len(numbers) >= MATES]
    classes = min(images.batch // MATES, len(rich))
    if classes < 2:
        raise Refusal(
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
        batch: list[list[int]] = []
        for place in sorted(left, key=lambda place: used[place])[:classes]:
            batch.append(rich[place][used[place] : used[place] + MATES])
            used[place] += MATES
        # Classes take turns, so that any part of a batch has images of several.
        chosen += [number for turn in zip(*batch, strict=True) for number in turn]


def curve(
    distances: Float64[Tensor, "layer image image"], labels: Int[Tensor, " image"]
) -> tuple[Float64[Tensor, "layer point"], Float64[Tensor, "layer point"]]:
    """Temperatures around the median squared distance of every layer, and the loss there, summed over images that have a mate.

    The first point is the median itself; the others are points of the grid, in rising order, as log10 of the temperature. NaN
    for the loss of a layer that is constant over images.
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    mates = (labels[:, None] == labels) & ~itself
    anchors = mates.any(1)
    median = distances[:, ~itself].median(dim=1).values
    middle = median.clamp(min=10.0 ** (STEP * (SPAN - ENDS))).log10()
    grid = STEP * ((middle / STEP).round()[:, None] + torch.arange(-SPAN, SPAN + 1, device=middle.device))
    points = torch.cat([middle[:, None], grid], dim=1)
    near = (-distances[:, anchors]).masked_fill(itself[anchors], -torch.inf)
    mated = _mated(near, mates[anchors])
    losses = []
    for temperature in (10**points).unbind(1):
        scale = temperature[:, None, None]
        losses.append(((near / scale).logsumexp(-1) - (mated / scale).logsumexp(-1)).sum(-1))
    total = torch.stack(losses, dim=1)
    total = total.where(~(total <= ROUNDING * len(mated[0])), 0.0)
    return points, total.where(median[:, None] > 0, torch.nan)


def _mated(
    near: Float64[Tensor, "layer anchor image"], mates: Bool[Tensor, "anchor image"]
) -> Float64[Tensor, "layer anchor mate"]:
    """Pick out the values of each anchor's mates, which are few, padded with minus infinity where other anchors have more."""
    most = int(mates.sum(1).max()) if len(mates) else 0
    there, place = mates.int().sort(dim=1, descending=True, stable=True)
    own = near.gather(2, place[:, :most].expand(len(near), -1, -1))
    return own.masked_fill(there[:, :most] == 0, -torch.inf)


def minimum(loss: Float64[Tensor, "layer temperature"]) -> Minimum:
    """The minimum of the parabola through the smallest point and its neighbours; infinite points are left out."""
    there = ~loss.isposinf()
    first = there.double().argmax(1, keepdim=True)
    last = loss.shape[1] - 1 - there.flip(1).double().argmax(1, keepdim=True)
    place = loss.argmin(1, keepdim=True)
    inner = torch.minimum(torch.maximum(place, first + 1), last - 1)
    before, here, after = (loss.gather(1, inner + step) for step in (-1, 0, 1))
    bend = before - 2 * here + after
    shift = torch.where(bend > 0, (before - after) / (2 * bend), 0.0)
    at_bound = (place == first) | (place == last)
    smallest = torch.where(at_bound, loss.gather(1, place), here - (before - after) * shift / 4)
    steps = torch.where(at_bound, place, inner + shift) - ENDS
    return Minimum(smallest[:, 0], 10 ** (STEP * steps[:, 0]), at_bound[:, 0])


def _target(images: Images, asked: str | None) -> str:
    targets = images.targets
    if not targets:
        raise Refusal(f"{images.source!r} has no classes: it needs a folder for each")
    if asked is not None and asked not in targets:
        raise Refusal(f"no labels {asked!r} in {images.source!r}; {did_you_mean(asked, targets)}")
    return asked or next(iter(targets))


def _distances(
    tokens: str, activation: Activation
) -> tuple[Float64[Tensor, "image image"], Float64[Tensor, "2"]] | None:
    """Squared distances of the images, and the layer's row of `Curves.massive`; None where the layer has no such tokens."""
    own = activation.grams
    chosen = own.of(tokens)
    if chosen is None:
        return None
    distances = similarity.squared_distances(chosen)
    if activation.values.ndim != 3:
        return distances, distances.new_zeros(2)
    some = own.first(max(2, len(chosen) // WATCHED))
    ordinary = some.of("inliers")
    assert ordinary is not None  # every activation has it
    both = [similarity.squared_distances(gram).sum() for gram in (some.all, ordinary)]
    return distances, torch.stack(both)


def _fold(images: Images, target: str, batch: Pass) -> Curves | None:
    kept = batch.kept()
    if not kept:
        raise Refusal("no chosen layer has what --tokens asks for (a class token?)")
    distances = torch.stack([own for *_, (own, _) in kept])
    batch.refuse_not_finite(distances, [f"{str(layer)!r} of {model}" for model, layer, _ in kept])
    labels = images.truth(batch.images)[target].to(distances.device)
    mates = (labels[:, None] == labels).sum(1).double() - 1
    mates = mates[mates > 0]  # of each anchor
    if not len(mates):
        return None
    points, losses = curve(distances, labels)
    places_on_grid = (points[:, 1:] / STEP).round().long() + ENDS
    empty = losses.new_zeros(len(kept), 2 * ENDS + 1)
    count = losses.new_tensor(float(len(mates)))
    return Curves.of_batch(
        batch.number,
        count,
        loss=empty.scatter(1, places_on_grid, losses[:, 1:]),
        reached=empty.scatter(1, places_on_grid, count.expand_as(places_on_grid)),
        fixed=losses[:, 0],
        dropped=losses.new_tensor(float(len(labels) - len(mates))),
        chance=((len(labels) - 1) / mates).log().sum(),
        massive=torch.stack([share for *_, (_, share) in kept]),
        places=[[model, str(layer)] for model, layer, _ in kept],
    )


def _table(sums: Curves) -> pd.DataFrame:
    count = sums.images.sum()
    found, interval = _smallest(sums), jackknife(lambda own: _smallest(own).loss, sums)
    loss = interval.of_positive().columns("loss")
    columns = {
        "loss": loss.pop("loss"),
        "temperature": found.temperature.cpu().numpy(),
        "at_bound": found.at_bound.cpu().numpy(),
        "loss_fixed": (sums.fixed.sum(0) / count).cpu().numpy(),
        "low": loss.pop("low"),
        "high": loss.pop("high"),
        "anchors": int(count),
        "chance": float(sums.chance.sum() / count),
    }
    return placed(sums.places).assign(**columns, **loss)


def _smallest(sums: Curves) -> Minimum:
    """Return the smallest loss of each layer over the temperatures that all batches reached."""
    loss, reached = sums.loss.sum(0), sums.reached.sum(0)
    return minimum(torch.where(reached == reached.amax(1, keepdim=True), loss / reached, torch.inf))


def _massive(sums: Curves) -> list[dict[str, Any]]:
    """Return the share of each token layer's squared distances that is lost when massive tokens are replaced."""
    shares = (1 - sums.massive[:, 1] / sums.massive[:, 0]).tolist()
    return [
        {"model": model, "layer": layer, "distances": share}
        for (model, layer), share in zip(sums.places, shares, strict=True)
        if not math.isnan(share)  # 0 / 0 where there are no tokens
    ]


def dominated(table: pd.DataFrame) -> list[str]:
    """The layers of a table whose distances are mostly those of massive tokens."""
    asked = table.attrs["tokens"] in ("all", "spatial", "mean")
    return [
        f"{row['layer']} of {row['model']}"
        for row in table.attrs["massive"]
        if asked and row["distances"] > 0.5
    ]


def _warn(sums: Curves, table: pd.DataFrame) -> None:
    constant = sums.fixed.sum(0).isnan().tolist()
    told = [
        f"{layer} of {model}" for (model, layer), never in zip(sums.places, constant, strict=True) if never
    ]
    if told:
        more = f" and {len(told) - CONSTANT} more layers" if len(told) > CONSTANT else ""
        names = ", ".join(told[:CONSTANT])
        logger.warning("constant over all images, so its loss is undefined (NaN): %s%s", names, more)
    if dropped := int(sums.dropped.sum()):
        logger.warning(
            "%d images have no other image of their class in their batch and are left out", dropped
        )
    if layers := dominated(table):
        logger.warning(
            "massive tokens make up most of the distances in %d layers (%s ... %s): the loss there is about those tokens; "
            "compare with normalized tokens",
            *(len(layers), layers[0], layers[-1]),
        )
