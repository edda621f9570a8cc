"""How far each attention head looks, in pixels of the model's input (figures 3, 4, C.5, C.6); its CKA with a CNN (figure 5).

Raghu et al. (2021, section 4) after Dosovitskiy et al. (2021): for a query patch q, sum_k A_qk |place(q) - place(k)|, averaged
over queries and then over images. The paper does not say how it treats tokens that have no place in the image (the prefix
tokens: class, distillation, registers). Here they are neither queries nor keys: the attention of each query to the patches is
scaled to sum to 1. Without that, a global head that attends mostly to the class token looks local (uniform attention to the
patches has a distance of 116.5 px, but reads 23.3 with 80 % on the class token). The table also has the unscaled distance and
the attention to the prefix tokens.

Attention is computed from the queries and keys that the model hands to its fused kernel, in pieces that fit a cache.

    python -m vit_analysis.attention_distance
    python -m vit_analysis.attention_distance vit_base_patch16_224 resnet50 --images.source ~/imagenet/val
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("attention_distance")


import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor, nn

from vit_analysis import layers
from vit_analysis.images import AnyImages
from vit_analysis.layers import Tap
from vit_analysis.models import Model, Models
from vit_analysis.reading.heads import Heads
from vit_analysis.reading.intervals import Interval, jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading, prepared
from vit_analysis.spelling import Refusal
from vit_analysis.table import with_provenance
from vit_analysis.tensors import similarity
from vit_analysis.tensors.precision import full_float32

SUBSET = 4  # heads in a subset of figure 5
# How many attention weights are computed at once. On a CPU that is mostly one image: half a megabyte stays in a core's cache
# between product, softmax and sums, and the strided queries and keys of one image need no copy. A GPU only needs the memory.
CPU_PIECE, GPU_PIECE = 2**17, 2**27


class Scale(NamedTuple):
    """The distances between a model's tokens in pixels of its input, and the number of its prefix tokens."""

    pixels: Float64[Tensor, "query key"]
    prefix: int


@dataclass(frozen=True)
class HeadSums(Grouped):
    """The sums over batches from which attention distances are computed."""

    totals: Float64[Tensor, "group head 3"]
    """Summed over images: distance, attention to prefix tokens, unscaled distance."""
    places: list[list[Any]]
    """[model, block, head] of each row, in order of execution."""


@dataclass(frozen=True)
class SubsetSums(Grouped):
    """The sums over batches for figure 5: HSIC of all pairs of heads and of the CNN's units, and each head's distance.

    The Gram matrix of several heads is the sum of their Gram matrices, and HSIC adds up likewise.
    """

    hsic: Float64[Tensor, "group layer layer"]
    """Heads first, then the CNN's units."""
    distance: Float64[Tensor, "group head"]
    units: list[str]


def measure(
    models: Models, images: AnyImages, *, blocks: Sequence[int] | None = None, state: Path | None = None
) -> pd.DataFrame:
    """Mean attention distance of every head.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own; each with attention over a
            fixed grid of patches.
        images: which images: `Images`, a path, a torch data set or a tensor.
        blocks: numbers of blocks, negative ones from the last; None takes all.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, block, head, distance_px with its 95 % interval low, high; uniform_px (distance of uniform attention to
        all patches, the query's own included); prefix_mass (share of attention to prefix tokens) and raw_distance_px (unscaled
        distance); distance_px_without and raw_distance_px_without, the values without each group of batches.

    Raises:
        Refusal: a model without attention, without a fixed grid, or with attention in windows.

    Examples:
        >>> table = measure("lab/vit", Images(limit=256))    # doctest: +SKIP
    """
    return plan(models, images, blocks=blocks).table(state)


def plan(models: Models, images: AnyImages, *, blocks: Sequence[int] | None = None) -> Measurement[HeadSums]:
    """Plan what `measure` computes without running it, so that one pass over the images can serve several analyses."""
    loaded, images = prepared(models, images)
    scales = {name: scale(model) for name, model in loaded.items()}
    chosen = {name: _chosen(model, blocks) for name, model in loaded.items()}
    block_of = {(name, tap): Tap(block) for name, own in chosen.items() for block, tap in own.items()}

    def reduce(activation: Activation) -> Tensor:
        own = scales[activation.model.name]
        _refuse_other_tokens(activation, own)
        return head_distances(activation.values, own).sum(0)

    def fold(batch: Pass) -> HeadSums:
        seen = batch.kept()
        totals = torch.cat([heads for *_, heads in seen])
        places = [
            [model, str(layer._replace(tap=block_of[model, layer.tap])), head]
            for model, layer, heads in seen
            for head in range(len(heads))
        ]
        batch.refuse_not_finite(totals, [f"{block} of {model}" for model, block, _ in places])
        return HeadSums.of_batch(batch.number, batch.size, totals=totals, places=places)

    def finish(sums: HeadSums) -> pd.DataFrame:
        uniform = {name: one.pixels.mean().item() for name, one in scales.items()}
        interval = jackknife(lambda own: own.totals.sum(0) / own.images.sum(), sums)
        return with_provenance(_rows(sums.places, interval, uniform), "attention_distance", **reading.facts())

    taps = {name: list(own.values()) for name, own in chosen.items()}
    reading = Reading(loaded, images, taps, reduce)
    return Measurement(reading, fold, HeadSums, finish)


def head_subsets(vit: Model, cnn: Model, images: AnyImages, *, state: Path | None = None) -> pd.DataFrame:
    """CKA of subsets of the first block's heads, from the most local to the most global, with a CNN's lower units (figure 5).

    Heads are sorted by distance and taken by sliding windows of 4, or of half the heads where there are fewer than 8. What is
    compared is each head's mixture of values before the projection that joins the heads: all tokens, flattened. One pass is
    enough: the HSIC of a subset is the sum of those of its heads, so it need not be known beforehand which heads it holds.

    Returns:
        Columns vit, cnn, layer (of the CNN), subset (0 is the most local), heads, distance_px, cka, low, high, cka_without.
    """
    return plan_subsets(vit, cnn, images).table(state)


def all_subsets(
    vits: Sequence[Model], cnns: Sequence[Model], images: AnyImages, *, state: Path | None = None
) -> pd.DataFrame:
    """`head_subsets` of every Vision Transformer with every CNN, one below the other."""
    parts = [head_subsets(vit, cnn, images, state=state) for vit in vits for cnn in cnns]
    whole = pd.concat(parts, ignore_index=True)
    digests = {model.name: model.digest for model in (*vits, *cnns)}
    whole.attrs = parts[0].attrs | {"models": digests}
    return whole


def plan_subsets(vit: Model, cnn: Model, images: AnyImages) -> Measurement[SubsetSums]:
    """Plan what `head_subsets` computes without running it, so that one pass over the images can serve several analyses."""
    loaded, images = prepared([vit, cnn], images)
    vit, cnn = loaded.values()
    place = scale(vit)
    taps = {
        vit.name: list(_chosen(vit, [0]).values()),
        cnn.name: [Tap(unit) for unit in layers.lower_units(cnn)],
    }

    def reduce(activation: Activation) -> Any:
        if len(activation.values) < similarity.SMALLEST_BATCH:
            return None  # `_fold_subsets` leaves the batch out
        if activation.layer.tap.at != "heads":
            return similarity.centred(activation.grams.all)
        _refuse_other_tokens(activation, place)
        heads = [similarity.centred_gram(head) for head in activation.values.output().unbind(1)]
        return torch.stack(heads), head_distances(activation.values, place)[..., 0].sum(0)

    reading = Reading(loaded, images, taps, reduce)

    def finish(sums: SubsetSums) -> pd.DataFrame:
        facts = {**reading.facts(), "heads": sums.distance.shape[1]}
        return with_provenance(_subsets(sums, vit.name, cnn.name), "head_subsets", **facts)

    return Measurement(reading, _fold_subsets, SubsetSums, finish)


def scale(model: Model) -> Scale:
    """Return the distances between the model's tokens, on its device, and the number of its prefix tokens."""
    grid = layers.grid(model)
    return Scale(grid.distances().to(model.device), layers.prefix(model))


def head_distances(heads: Heads, scale: Scale) -> Float64[Tensor, "image head 3"]:
    """Average over each head's spatial queries, image by image: distance, attention to prefix tokens, unscaled distance.

    A query whose attention to all patches together is 0 in float32 has no distance and is left out of the first mean.
    """
    queries = heads.query[:, :, scale.prefix :]
    pixels = nn.functional.pad(scale.pixels.float(), (scale.prefix, 0))
    shape = queries.shape[1], queries.shape[2], heads.key.shape[2]
    images = max(1, (GPU_PIECE if queries.is_cuda else CPU_PIECE) // math.prod(shape))
    memory = queries.new_empty(min(images, len(queries)), *shape, dtype=torch.float32)
    found = []
    with full_float32(queries.device):
        for start in range(0, len(queries), images):
            part = slice(start, start + images)
            attention = _attention(heads, queries[part], part, memory)
            share = attention[..., scale.prefix :].sum(-1)
            raw = attention.mul_(pixels).sum(-1)
            means = [(raw / share).nanmean(-1), 1 - share.mean(-1), raw.mean(-1)]
            found.append(torch.stack(means, dim=-1).double())
    return torch.cat(found)


def _attention(
    heads: Heads, queries: Float[Tensor, "image head query feature"], part: slice, memory: Tensor
) -> Float32[Tensor, "image head query key"]:
    """Return the softmax over all keys, written into ``memory``, which is reused: fresh memory costs a third of the time."""
    memory = memory[: len(queries)]
    flat = memory.flatten(0, 1)
    query, key = queries.float().flatten(0, 1), heads.key[part].float().flatten(0, 1)
    torch.baddbmm(flat, query, key.mT, beta=0, alpha=heads.scale, out=flat)
    if heads.bias is not None:
        memory += torch.broadcast_to(heads.bias, (*heads.query.shape[:3], key.shape[1]))[
            part, :, -queries.shape[2] :
        ]
    return torch.softmax(memory, dim=-1, out=memory)


def _refuse_other_tokens(activation: Activation, scale: Scale) -> None:
    heads, expected = activation.values, scale.prefix + len(scale.pixels)
    if heads.query.ndim != 4 or heads.query.shape[2] != expected or heads.key.shape[2] != expected:
        raise Refusal(
            f"{activation} has {heads.query.shape[-2]} queries and {heads.key.shape[-2]} keys, not the {expected} tokens of "
            f"the model's grid: windows, pooling or another input size; distances need attention over the whole image"
        )
    if heads.images not in (None, len(heads)):
        raise Refusal(
            f"{activation} attends in {len(heads)} things for {heads.images} images (windows, parts of a batch, or heads and "
            f"images along one axis), so images cannot be told apart in it"
        )


def _chosen(model: Model, blocks: Sequence[int] | None) -> dict[str, Tap]:
    """Return the attention taps of the chosen blocks, by path of the block."""
    found = layers.attentions(model)
    if not found:
        raise Refusal(
            f"{model.name} has no attention in its blocks, where it is looked for as 'attn'; choose a Vision Transformer"
        )
    if wrong := [number for number in blocks or () if not -len(found) <= number < len(found)]:
        raise Refusal(f"{model.name} has blocks 0 to {len(found) - 1}, got {wrong[0]}")
    if blocks is None:
        return found
    names = list(found)
    return {names[number]: found[names[number]] for number in sorted({n % len(found) for n in blocks})}


def _fold_subsets(batch: Pass) -> SubsetSums | None:
    if batch.size < similarity.SMALLEST_BATCH:
        return None
    vit, cnn = batch.seen.values()
    ((heads, distance),) = vit.values()
    hsic = similarity.hsic(torch.cat([heads, torch.stack(list(cnn.values()))]))
    units = [str(layer) for layer in cnn]
    batch.refuse_not_finite(hsic.diagonal(), [*("a head" for _ in heads), *units])
    return SubsetSums.of_batch(
        batch.number,
        batch.size,
        hsic=batch.size * hsic,
        distance=distance,
        units=units,
    )


def _rows(places: list[list[Any]], interval: Interval, uniform: Mapping[str, float]) -> pd.DataFrame:
    table = pd.DataFrame(places, columns=["model", "block", "head"])
    distance, mass, raw = (interval.of(column) for column in range(3))
    table = table.assign(**distance.columns("distance_px"), uniform_px=table["model"].map(uniform))
    table["prefix_mass"] = mass.value.cpu().numpy()
    return table.assign(**raw.columns("raw_distance_px", "raw_low", "raw_high"))


def _subsets(sums: SubsetSums, vit: str, cnn: str) -> pd.DataFrame:
    distance = (sums.distance.sum(0) / sums.images.sum()).cpu()
    count = len(distance)
    size = SUBSET if count >= 2 * SUBSET else max(1, count // 2)
    windows = distance.argsort().unfold(0, size, 1)
    member = torch.zeros(len(windows), count, dtype=torch.float64).scatter_(1, windows, 1.0)

    def cka(own: SubsetSums) -> Tensor:
        hsic = own.hsic.sum(0)
        across = member @ hsic[:count, count:]
        within = torch.einsum("sh,hg,sg->s", member, hsic[:count, :count], member)
        return across / (within[:, None] * hsic.diagonal()[count:]).sqrt()

    interval = jackknife(cka, sums.to("cpu"))
    rows = [
        {
            **{"vit": vit, "cnn": cnn, "layer": layer, "subset": subset},
            "heads": ",".join(map(str, sorted(heads))),
            "distance_px": distance[heads].mean().item(),
        }
        for unit, layer in enumerate(sums.units)
        for subset, heads in enumerate(windows.tolist())
    ]
    by_unit = Interval(*(part.transpose(-1, -2) for part in interval))
    return pd.DataFrame(rows).assign(**by_unit.columns("cka"))
