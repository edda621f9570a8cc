"""How far each attention head looks, in pixels of the model's input (figures 3, 4, C.5, C.6), and figure 5.

Raghu et al. (2021, section 4) after Dosovitskiy et al. (2021): for a query patch q, sum_k A_qk |place(q) - place(k)|, averaged
over queries and then over images. The paper does not say what becomes of tokens that have no place (class, distillation,
registers). Here they are no queries, and no keys either: the attention to the patches is scaled to sum to 1. Without that, a
global head that rests on the class token looks local (uniform attention of 116.5 px reads 23.3 with 80 % on it), so the
unscaled distance and the attention to those tokens stand beside.

Attention is computed from the queries and keys that the model hands to its fused kernel, in pieces that fit a cache.

    python -m vit_analysis.attention_distance
    python -m vit_analysis.attention_distance vit_base_patch16_224 resnet50 --images.source ~/imagenet/val
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor, nn

from vit_analysis import command, layers, plot
from vit_analysis.attention import Scale, head_distances
from vit_analysis.images import Images
from vit_analysis.models import Model, load_all, named
from vit_analysis.reading import measure, stream
from vit_analysis.reading.capture import Heads
from vit_analysis.reading.intervals import Interval, in_group, jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Sums
from vit_analysis.table import with_provenance
from vit_analysis.tensors import grams, similarity

Models = Sequence[Model] | Mapping[str, nn.Module]

SUBSET = 4  # heads in a subset of figure 5


@dataclass(frozen=True)
class HeadSums(Sums):
    """What distances need of any number of batches."""

    totals: Float64[Tensor, "group head 3"]
    """Over images: distance, attention to prefix tokens, distance without scaling."""
    images: Float64[Tensor, " group"]
    places: list[list[Any]]
    """[model, block, head] of each row, in order of execution."""


@dataclass(frozen=True)
class SubsetSums(Sums):
    """What figure 5 needs: HSIC of all heads and units. The Gram matrix of several heads is the sum of theirs, and so HSIC."""

    hsic: Float64[Tensor, "group layer layer"]
    """Heads first, then the CNN's units."""
    distance: Float64[Tensor, "group head"]
    images: Float64[Tensor, " group"]
    units: list[str]


def distances(
    models: Models, images: Images, *, blocks: Sequence[int] | None = None, state: Path | None = None
) -> pd.DataFrame:
    """Mean attention distance of every head.

    Args:
        models: loaded models, or any modules under names of your own; each with attention over a fixed grid of patches.
        images: which images.
        blocks: numbers of blocks, negative ones from the last; None takes all.
        state: where a killed run leaves its sums, to go on from; None leaves nothing.

    Returns:
        Columns model, block, head, distance_px with its 95 % interval low, high; uniform_px (attention to all patches alike,
        itself included); prefix_mass (share of attention to prefix tokens) and raw_distance_px (without scaling it away);
        distance_px_without and raw_distance_px_without, the values without each group of batches.

    Raises:
        ValueError: a model without attention, without a fixed grid, or with attention in windows.

    >>> table = distances([load("lab/vit")], Images(limit=256))    # doctest: +SKIP
    """
    return measure.table(plan(models, images, blocks=blocks), state)


def plan(models: Models, images: Images, *, blocks: Sequence[int] | None = None) -> Measurement[HeadSums]:
    """What `distances` measures, to share a pass with others."""
    loaded = named(models)
    scales = {name: scale(model) for name, model in loaded.items()}
    taps = {name: [f"{path}:heads" for path in _chosen(model, blocks)] for name, model in loaded.items()}
    reading = stream.Reading(loaded, images, taps, _reducer(scales))

    def finish(sums: HeadSums) -> pd.DataFrame:
        uniform = {name: one.pixels.mean().item() for name, one in scales.items()}
        groups = torch.cat([sums.totals.flatten(1), sums.images[:, None]], dim=1)
        interval = jackknife(_mean, groups, sums.images > 0)
        return with_provenance(_rows(sums.places, interval, uniform), "attention_distance", **reading.facts())

    return Measurement(reading, _fold, HeadSums, finish)


def head_subsets(vit: Model, cnn: Model, images: Images, *, state: Path | None = None) -> pd.DataFrame:
    """CKA of subsets of the first block's heads, from the most local to the most global, with a CNN's lower units (figure 5).

    Heads are sorted by distance and taken by sliding windows of 4, or of half the heads where there are fewer than 8. What is
    compared is each head's mixture of values before the projection that joins the heads: all tokens, flattened. One pass:
    the HSIC of a subset is the sum of those of its heads, so it need not be known beforehand which heads it holds.

    Returns:
        Columns vit, cnn, layer (of the CNN), subset (0 is the most local), heads, distance_px, cka, low, high, cka_without.
    """
    return measure.table(plan_subsets(vit, cnn, images), state)


def plan_subsets(vit: Model, cnn: Model, images: Images) -> Measurement[SubsetSums]:
    """What `head_subsets` measures, to share a pass with others."""
    loaded = named([vit, cnn])
    place = scale(vit)
    units, layout = layers.lower_units(cnn.module), layers.layout(cnn.module)
    taps = {vit.name: [f"{_chosen(vit, [0])[0]}:heads"], cnn.name: units}

    def reduce(model: str, layer: str, activation: Any) -> Any:
        if len(activation.query if isinstance(activation, Heads) else activation) < similarity.SMALLEST_BATCH:
            return None  # `_fold_subsets` leaves the batch out
        if not isinstance(activation, Heads):
            return similarity.centred(grams.of(activation, layout).all)
        _refuse_other_tokens(activation, place, f"{layer} of {model}")
        heads = [similarity.centred_gram(head) for head in activation.output().unbind(1)]
        return torch.stack(heads), head_distances(activation, place)[..., 0].sum(0)

    reading = stream.Reading(loaded, images, taps, reduce)

    def finish(sums: SubsetSums) -> pd.DataFrame:
        facts = {**reading.facts(), "heads": sums.distance.shape[1]}
        return with_provenance(_subsets(sums, vit.name, cnn.name), "head_subsets", **facts)

    return Measurement(reading, _fold_subsets, SubsetSums, finish)


def scale(model: Model) -> Scale:
    """Where the model's tokens lie, on its device."""
    grid = layers.grid(model.module)
    return Scale(grid.distances().to(model.device), layers.layout(model.module).prefix)


def _reducer(scales: Mapping[str, Scale]) -> Callable[[str, str, Any], Tensor]:
    def reduce(model: str, layer: str, heads: Heads) -> Tensor:
        _refuse_other_tokens(heads, scales[model], f"{layer} of {model}")
        return head_distances(heads, scales[model]).sum(0)

    return reduce


def _refuse_other_tokens(heads: Heads, scale: Scale, place: str) -> None:
    expected = scale.prefix + len(scale.pixels)
    if heads.query.ndim != 4 or heads.query.shape[2] != expected or heads.key.shape[2] != expected:
        raise ValueError(
            f"{place} has {heads.query.shape[-2]} queries and {heads.key.shape[-2]} keys, not the {expected} tokens of the "
            f"model's grid: windows, pooling or another input size; distances need attention over the whole image"
        )


def _chosen(model: Model, blocks: Sequence[int] | None) -> list[str]:
    found = layers.attentions(model.module)
    if not found:
        raise ValueError(
            f"{model.name} has no attention in its blocks, where it is looked for as 'attn'; choose a Vision Transformer"
        )
    if wrong := [number for number in blocks or () if not -len(found) <= number < len(found)]:
        raise ValueError(f"{model.name} has blocks 0 to {len(found) - 1}, got {wrong[0]}")
    return found if blocks is None else [found[number] for number in sorted({n % len(found) for n in blocks})]


def _fold(batch: stream.Pass) -> HeadSums:
    seen = [(model, layer, heads) for model, layers in batch.seen.items() for layer, heads in layers.items()]
    totals = torch.cat([heads for _, _, heads in seen])
    places = [
        [model, layer.removesuffix(".attn:heads"), head]
        for model, layer, heads in seen
        for head in range(len(heads))
    ]
    _refuse_not_finite(totals.sum(-1), [f"{block} of {model}" for model, block, _ in places], batch.number)
    count = totals.new_tensor(float(batch.size))
    return HeadSums(in_group(totals, batch.number), in_group(count, batch.number), places)


def _fold_subsets(batch: stream.Pass) -> SubsetSums | None:
    if batch.size < similarity.SMALLEST_BATCH:
        return None
    vit, cnn = batch.seen.values()
    ((heads, distance),) = vit.values()
    hsic = similarity.hsic(torch.cat([heads, torch.stack(list(cnn.values()))]))
    _refuse_not_finite(hsic.diagonal(), [*("a head" for _ in heads), *cnn], batch.number)
    return SubsetSums(
        hsic=in_group(batch.size * hsic, batch.number),
        distance=in_group(distance, batch.number),
        images=in_group(hsic.new_tensor(float(batch.size)), batch.number),
        units=list(cnn),
    )


def _refuse_not_finite(values: Float64[Tensor, " place"], places: Sequence[str], batch: int) -> None:
    finite = values.isfinite()
    if not finite.all():
        raise ValueError(
            f"{places[int(finite.logical_not().nonzero()[0])]} has values that are not finite in batch {batch}"
        )


def _mean(sums: Float64[Tensor, " sum"]) -> Float64[Tensor, "head 3"]:
    return (sums[:-1] / sums[-1]).view(-1, 3)


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

    def cka(hsic: Tensor) -> Tensor:
        across = member @ hsic[:count, count:]
        own = torch.einsum("sh,hg,sg->s", member, hsic[:count, :count], member)
        return across / (own[:, None] * hsic.diagonal()[count:]).sqrt()

    interval = jackknife(cka, sums.hsic.cpu(), sums.images.cpu() > 0)
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


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Images = Images(),  # noqa: B008  (frozen)
    blocks: tuple[int, ...] = (),
    out: Path = Path("figures/attention_distance"),
    device: str | None = None,
) -> None:
    """How far attention heads look (figures 3, 4, C.5 and C.6 of Raghu et al. 2021); with CNNs, figure 5 too.

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random". Those without
            attention are the CNNs of figure 5, written beside with _heads in the name.
        images: which images.
        blocks: numbers of blocks, negative ones from the last; all of them unless said.
        out: .parquet and .png are added.
        device: cpu, cuda ...; the GPU if there is one.
    """
    loaded = load_all(models, device=device)
    vits = [model for model in loaded if layers.attentions(model.module)]
    if not vits:
        raise ValueError(f"no attention in {', '.join(models)}; name a Vision Transformer")
    table = distances(vits, images, blocks=blocks or None, state=out)
    command.write(table, out)
    command.draw(table, out, plot.attention_distance)
    cnns = [model for model in loaded if model not in vits]
    beside = command.beside(out, "_heads")
    subsets = [head_subsets(vit, cnn, images, state=beside) for vit in vits for cnn in cnns]
    if subsets:
        facts = {
            **table.attrs,
            "models": {model.name: model.digest for model in loaded},
            "analysis": "head_subsets",
        }
        both = pd.concat(subsets, ignore_index=True)
        both.attrs = facts
        command.write(both, beside)
        command.draw(both, beside, plot.head_subsets)


if __name__ == "__main__":
    command.run(main)
