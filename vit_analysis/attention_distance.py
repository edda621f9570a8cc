"""How far, how spread and how alike for all queries each attention head looks (figures 3, 4, C.5, C.6); figure 5.

Raghu et al. (2021, section 4) after Dosovitskiy et al. (2021): for a query patch q, sum_k A_qk |place(q) - place(k)|, averaged
over queries and then over images. The paper does not say how it treats tokens that have no place in the image (the prefix
tokens: class, distillation, registers). Here they are neither queries nor keys: the attention of each query to the patches is
scaled to sum to 1. Without that, a global head that attends mostly to the class token looks local (uniform attention to the
patches has a distance of 116.5 px, but reads 23.3 with 80 % on the class token). The table also has the unscaled distance and
the attention to the prefix tokens.

Beyond the paper, of the same scaled attention p(k | q) of the N patches to each other: its *entropy*, -sum_k p log p in nats,
averaged over queries, at most log N; and the *normalised mutual information* of query and key (Park et al. 2023, "What Do
Self-Supervised Vision Transformers Learn?"), I(q, k) / sqrt(H(q) H(k)) with p(q) = 1 / N, of each image: 0 where all queries
attend to the same, 1 where each attends to a key of its own.

Attention in windows (Swin) is attention over the whole image that is 0 outside a query's window: distances are between the
places of tokens at the stride of their map, N is the number of the map's tokens, and uniform attention that to all of them.

Attention is computed from the queries and keys that the model hands to its fused kernel, in pieces that fit a cache.

    python -m vit_analysis.attention_distance
    python -m vit_analysis.attention_distance vit_base_patch16_224 resnet50 --images.source ~/imagenet/val
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("attention_distance")


import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from vit_analysis import layers
from vit_analysis.images import AnyImages
from vit_analysis.layers import Tap
from vit_analysis.models import Model, Models
from vit_analysis.reading.heads import Heads
from vit_analysis.reading.intervals import Interval, jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.scales import scales_of
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading, prepared
from vit_analysis.spelling import Refusal
from vit_analysis.table import with_provenance
from vit_analysis.tensors import similarity
from vit_analysis.tensors.attention import Scale, Sums, add_up, statistics
from vit_analysis.tensors.precision import full_float32

SUBSET = 4  # heads in a subset of figure 5
# How many attention weights are computed at once, in two pieces of memory. On a CPU that is mostly one image: a megabyte stays
# in a core's cache between product and sums, and the strided queries and keys of one image need no copy. A GPU only needs the
# memory.
CPU_PIECE, GPU_PIECE = 2**17, 2**26


@dataclass(frozen=True)
class HeadSums(Grouped):
    """The sums over batches from which attention distances are computed."""

    totals: Float64[Tensor, "group head 5"]
    """Summed over images: distance, attention to tokens without a place, unscaled distance, entropy, mutual information."""
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
    """Mean attention distance, entropy and normalised mutual information of every head.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own; each with attention over a
            fixed grid of patches, or over windows of it where the family is known.
        images: which images: `Images`, a path, a torch data set or a tensor.
        blocks: numbers of blocks, negative ones from the last; None takes all.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, block, head, depth (0 is the first block, 1 the last); distance_px with its 95 % interval low, high;
        uniform_px (distance of uniform attention to all patches, the query's own included); prefix_mass (share of attention to
        prefix tokens, and to what windows are padded with) and raw_distance_px (unscaled distance) with raw_low, raw_high;
        entropy (nats) with entropy_low, entropy_high and uniform_entropy (log of the number of patches); nmi with nmi_low,
        nmi_high; distance_px_without, raw_distance_px_without, entropy_without, nmi_without, the values without each group of
        batches.

    Raises:
        Refusal: a model without attention, without a fixed grid, or with attention in windows that are not known.

    Examples:
        >>> table = measure("lab/vit", Images(limit=256))    # doctest: +SKIP
    """
    return plan(models, images, blocks=blocks).table(state)


def plan(models: Models, images: AnyImages, *, blocks: Sequence[int] | None = None) -> Measurement[HeadSums]:
    """Plan what `measure` computes without running it, so that one pass over the images can serve several analyses."""
    loaded, images = prepared(models, images)
    grids = {name: layers.grid(model) for name, model in loaded.items()}
    chosen = {name: _chosen(model, blocks) for name, model in loaded.items()}
    scales = {name: scales_of(model, chosen[name], grids[name]) for name, model in loaded.items()}
    block_of = {(name, tap): Tap(block) for name, own in chosen.items() for block, tap in own.items()}

    def reduce(activation: Activation) -> Tensor:
        own = scales[activation.model.name][block_of[activation.model.name, activation.layer.tap].path]
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
        interval = jackknife(lambda own: own.totals.sum(0) / own.images.sum(), sums)
        table = _rows(
            sums.places, interval, scales, {name: list(layers.attentions(loaded[name])) for name in loaded}
        )
        return with_provenance(table, "attention_distance", **reading.facts())

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
    grid, first = layers.grid(vit), _chosen(vit, [0])
    (place,) = scales_of(vit, first, grid).values()
    taps = {
        vit.name: list(first.values()),
        cnn.name: [Tap(unit) for unit in layers.lower_units(cnn)],
    }

    def reduce(activation: Activation) -> Any:
        if len(activation.values) < similarity.SMALLEST_BATCH:
            return None  # `_fold_subsets` leaves the batch out
        if activation.layer.tap.at != "heads":
            return similarity.centred(activation.grams.all)
        _refuse_other_tokens(activation, place)
        heads = [similarity.centred_gram(head) for head in _of_images(activation.values.output(), place)]
        return torch.stack(heads), head_distances(activation.values, place)[..., 0].sum(0)

    reading = Reading(loaded, images, taps, reduce)

    def finish(sums: SubsetSums) -> pd.DataFrame:
        facts = {**reading.facts(), "heads": sums.distance.shape[1]}
        return with_provenance(_subsets(sums, vit.name, cnn.name), "head_subsets", **facts)

    return Measurement(reading, _fold_subsets, SubsetSums, finish)


class Piecewise(NamedTuple):
    """Queries with a place, all keys, and biases: image x window x head x token x ..., all of them views."""

    query: Tensor
    key: Tensor
    bias: Tensor | None
    scale: float

    @classmethod
    def of(cls, heads: Heads, scale: Scale) -> "Piecewise":
        """The heads, divided into the windows of each image."""
        windows = (-1, scale.windows)
        query, bias = heads.query[:, :, scale.prefix :].unflatten(0, windows), heads.bias
        if bias is not None:
            bias = bias.expand(*heads.query.shape[:3], heads.key.shape[2])[:, :, scale.prefix :]
            bias = bias.unflatten(0, windows)
        return cls(query, heads.key.unflatten(0, windows), bias, heads.scale)

    def scores(self, piece: tuple[slice, ...], memory: Tensor) -> Tensor:
        """Compute the scores of a piece, in memory that is reused: fresh memory costs a third of the time."""
        query, key = (own[piece].float() for own in (self.query, self.key))
        scores = memory[: query[..., 0].numel() * key.shape[3]].view(*query.shape[:4], key.shape[3])
        flat = scores.flatten(0, 2)
        torch.baddbmm(flat, query.flatten(0, 2), key.flatten(0, 2).mT, beta=0, alpha=self.scale, out=flat)
        if self.bias is not None:
            scores += self.bias[piece]
        return scores


def head_distances(heads: Heads, scale: Scale) -> Float64[Tensor, "image head 5"]:
    """Average over each head's spatial queries, image by image, what `tensors.attention.statistics` says."""
    own = Piecewise.of(heads, scale)
    counts, size = own.query.shape[:3], (own.query.shape[3], own.key.shape[3])
    pixels = nn.functional.pad(scale.pixels.float(), (scale.prefix, 0)).reshape(-1, 1, *size)
    pixels = pixels.expand(scale.windows, 1, *size)
    real = None if scale.real is None else (scale.real[:, None, :, None] & scale.real[:, None, None])
    pieces = _pieces(counts, (GPU_PIECE if own.query.is_cuda else CPU_PIECE) // math.prod(size))
    largest = math.prod(part.stop for part in pieces[0])
    scores, weights = own.query.new_empty(2, largest * math.prod(size), dtype=torch.float32)
    found = Sums(*(own.query.new_empty(*counts, size[0], dtype=torch.float32) for _ in Sums._fields))
    with full_float32(own.query.device):
        for piece in pieces:
            part = own.scores(piece, scores)
            among = real if real is None else real[piece[1]]
            parts = add_up(part, weights[: part.numel()].view_as(part), scale, pixels[piece[1]], among)
            for whole, summed in zip(found, parts, strict=True):
                whole[piece] = summed
    return statistics(found, scale.places)


def _pieces(counts: Sequence[int], room: int) -> list[tuple[slice, slice, slice]]:
    """Divide images, windows and heads into pieces of at most ``room`` heads: whole images if one fits, else whole windows."""
    _, windows, heads = counts
    steps = max(1, room // (windows * heads)), max(1, min(windows, room // heads)), max(1, min(heads, room))
    parts = (
        [slice(at, min(at + step, count)) for at in range(0, count, step)]
        for count, step in zip(counts, steps, strict=True)
    )
    return list(itertools.product(*parts))


def _of_images(output: Float[Tensor, "window head query width"], scale: Scale) -> Tensor:
    """What each head adds to all tokens of an image that have a place or are prefix tokens: head x image x ..."""
    own = output.unflatten(0, (-1, scale.windows))
    if scale.real is not None:
        own = own * scale.real[:, None, :, None]
    return own.movedim(2, 0).flatten(2)


def _refuse_other_tokens(activation: Activation, scale: Scale) -> None:
    heads, expected = activation.values, scale.prefix + scale.pixels.shape[-1]
    if heads.query.shape[-2] != expected or heads.key.shape[-2] != expected:
        raise Refusal(
            f"{activation} has {heads.query.shape[-2]} queries and {heads.key.shape[-2]} keys, not the {expected} tokens of "
            f"the model's grid: windows, pooling or another input size; distances need attention over the whole image"
        )
    if heads.query.ndim != 4 or (heads.images is not None and heads.images * scale.windows != len(heads)):
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


def _rows(
    places: list[list[Any]],
    interval: Interval,
    scales: Mapping[str, Mapping[str, Scale]],
    blocks: Mapping[str, list[str]],
) -> pd.DataFrame:
    table = pd.DataFrame(places, columns=["model", "block", "head"])
    names = [(model, block.partition("#")[0]) for model, block, _ in places]
    own = [scales[model][block] for model, block in names]
    table["depth"] = [blocks[model].index(block) / max(1, len(blocks[model]) - 1) for model, block in names]
    distance, mass, raw, entropy, told = (interval.of(column) for column in range(5))
    table = table.assign(**distance.columns("distance_px"), uniform_px=[scale.uniform for scale in own])
    table["prefix_mass"] = mass.value.cpu().numpy()
    table = table.assign(
        **raw.columns("raw_distance_px", "raw_low", "raw_high"),
        **entropy.columns("entropy", "entropy_low", "entropy_high"),
        uniform_entropy=[math.log(scale.places) for scale in own],
    )
    return table.assign(**told.columns("nmi", "nmi_low", "nmi_high"))


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
