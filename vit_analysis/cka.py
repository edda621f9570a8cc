"""Similarity of all pairs of layers, within and across models: linear CKA, unbiased, in minibatches (figures 1, 2 and B.1).

Raghu et al. (2021, section 3) after Nguyen et al. (2020):

    CKA(K, L) = sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b, K_b) sum_b HSIC(L_b, L_b))

over batches b, with the unbiased HSIC of Song et al. (2012). Batches are weighted by their number of images, so an
incomplete last batch counts for what it holds. Intervals are a delete-one-group jackknife over batches.

    python -m vit_analysis.cka
    python -m vit_analysis.cka vit_base_patch16_224 resnet50 --images.source ~/imagenet/val --out figures/cka
"""

import logging
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from vit_analysis import command, plot
from vit_analysis.images import AnyImages, Images
from vit_analysis.models import Models, load_all
from vit_analysis.reading.intervals import Interval, jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading
from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.table import placed, with_provenance
from vit_analysis.tensors import similarity
from vit_analysis.tensors.grams import Grams
from vit_analysis.tensors.similarity import SMALLEST_BATCH
from vit_analysis.tensors.tokens import SELECTIONS

logger = logging.getLogger(__name__)

Tokens = Literal["all", "spatial", "cls", "mean", "normalized", "standardized", "inliers", "typical"]

ROBUST: tuple[Tokens, ...] = ("all", "normalized", "standardized", "inliers")
# What `plan_controls` can measure besides token selections: the biased estimator; and CKA with the images of every layer in
# another order, which must give 0.
SPECIAL = ("biased", "shuffled")
# Massive tokens are looked for in this share of every batch, the watched images: it costs little, and all batches add up. From
# 8 images the HSIC of a few tokens is too noisy to show that they dominate, so at least 16 are watched.
WATCHED, LEAST_WATCHED = 0.25, 16
# Where massive tokens make up more than this share of a layer's HSIC with itself, its CKA describes them and little else.
DOMINANT = 0.5


@dataclass(frozen=True)
class PairSums(Grouped):
    """The sums over batches from which CKA is computed."""

    hsic: Float64[Tensor, "group selection layer layer"]
    massive: Float64[Tensor, "layer 4"]
    """Over the watched images: tokens, massive tokens, HSIC(K, K), and HSIC(K, K) with massive tokens replaced (`inliers`)."""
    places: list[list[str]]
    """[model, layer] of each row, in order of execution."""


def measure(
    models: Models,
    images: AnyImages,
    *,
    layers: str | Sequence[str] = "paper",
    tokens: Tokens = "all",
    state: Path | None = None,
) -> pd.DataFrame:
    """CKA of every ordered pair of layers of all models, in one pass over the images.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own (then with layer patterns).
        images: which images: `Images`, a path, a torch data set or a tensor.
        layers: ``paper``, ``blocks``, or one or several glob patterns over module paths.
        tokens: which values of a layer are compared, see `tokens.SELECTIONS`; ``all`` is the paper's choice.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, layer, depth, other_model, other_layer, other_depth, cka, low, high: one row per ordered pair of layers,
        in order of execution, with the 95 % interval. NaN where a layer is constant over images. cka_without holds the values
        without each group of batches, from which the interval of anything computed from this table follows.

    >>> table = measure(["lab/vit", "lab/resnet"], Images(limit=256))    # doctest: +SKIP
    """
    return plan(models, images, layers=layers, tokens=tokens).table(state)


def plan(
    models: Models,
    images: AnyImages,
    *,
    layers: str | Sequence[str] = "paper",
    tokens: Tokens = "all",
    pairs: Collection[tuple[str, str]] | None = None,
) -> Measurement[PairSums]:
    """Plan what `measure` computes without running it, so that one pass over the images can serve several analyses.

    Where ``pairs`` of model names are given, the table holds only those pairs of models.
    """

    def finish(sums: PairSums) -> pd.DataFrame:
        interval = jackknife(lambda own: _cka(own)[0], sums)
        _warn_of_constant_layers(sums.places, sums.total.hsic[0, 0])
        shares = massive_shares(sums)
        _warn_of_massive_tokens(shares, tokens)
        facts = {"layers": layers, "tokens": tokens, "massive": shares.to_dict("records")}
        return with_provenance(_pairs(sums.places, interval, pairs), "cka", **reading.facts(), **facts)

    reading = _reading(models, images, layers, (tokens,))
    if pairs is not None:  # so that no table of other pairs is taken from the cache
        reading = replace(reading, settings={**reading.settings, "pairs": [list(pair) for pair in pairs]})
    return Measurement(reading, _fold, PairSums, finish)


def plan_controls(
    models: Models, images: AnyImages, controls: Sequence[str], *, layers: str | Sequence[str] = "blocks"
) -> Measurement[PairSums]:
    """Plan CKA under several controls, each one of `tokens.SELECTIONS` or `SPECIAL`; it can share a pass with other analyses.

    Its table has the columns of `measure` and ``control``.
    """

    def finish(sums: PairSums) -> pd.DataFrame:
        interval = jackknife(_cka, sums)
        parts = [
            _pairs(sums.places, Interval(*(part[..., place, :, :] for part in interval))).assign(
                control=control
            )
            for place, control in enumerate(controls)
        ]
        return with_provenance(
            pd.concat(parts, ignore_index=True), "cka_controls", **reading.facts(), layers=layers
        )

    reading = _reading(models, images, layers, controls, watched=False)
    return Measurement(reading, _fold, PairSums, finish)


def robustness(
    models: Models, images: AnyImages, *, layers: str | Sequence[str] = "paper", state: Path | None = None
) -> pd.DataFrame:
    """Mean CKA over a model's pairs of different layers, under the paper's estimator and three that no token can dominate.

    Returns:
        Columns model, tokens, cka, low, high, cka_without.
    """

    def finish(sums: PairSums) -> pd.DataFrame:
        names = list(dict.fromkeys(model for model, _ in sums.places))
        owns = [torch.tensor([model == name for model, _ in sums.places]) for name in names]

        def means(own: PairSums) -> Float64[Tensor, " row"]:
            values = _cka(own)
            return torch.stack([_mean_off_diagonal(one[rows][:, rows]) for rows in owns for one in values])

        interval = jackknife(means, sums.to("cpu"))
        rows = pd.DataFrame(
            [(name, tokens) for name in names for tokens in ROBUST], columns=["model", "tokens"]
        )
        return with_provenance(
            rows.assign(**interval.columns("cka")), "cka_robustness", **reading.facts(), layers=layers
        )

    reading = _reading(models, images, layers, ROBUST)
    return Measurement(reading, _fold, PairSums, finish).table(state)


def massive_shares(sums: PairSums) -> pd.DataFrame:
    """Measure how far massive tokens dominate each token layer.

    Returns:
        Columns model, layer, tokens (share of tokens that are massive) and hsic (share of the layer's HSIC with itself that is
        lost when they are replaced by ordinary ones).
    """
    counted, found, whole, ordinary = sums.massive.cpu().numpy().T
    table = pd.DataFrame(sums.places, columns=["model", "layer"])
    lost = 1 - ordinary / np.where(whole > 0, whole, np.inf)
    table = table.assign(tokens=found / np.maximum(counted, 1), hsic=np.where(found > 0, lost, 0.0))
    return table[counted > 0].reset_index(drop=True)


def _reading(
    models: Models,
    images: AnyImages,
    chosen: str | Sequence[str],
    selections: Sequence[str],
    *,
    watched: bool = True,
) -> Reading:
    if unknown := [name for name in selections if name not in (*SELECTIONS, *SPECIAL)]:
        raise Refusal(f"no tokens {unknown[0]!r}; {did_you_mean(unknown[0], (*SELECTIONS, *SPECIAL))}")
    reading = Reading.of(models, images, chosen, _reducer(selections, watched), tokens=list(selections))
    images = reading.images
    if images.batches > 1 and 0 < len(images.order) % images.batch < SMALLEST_BATCH:
        logger.warning("the last batch has fewer than %d images and is left out", SMALLEST_BATCH)
    return reading


def _reducer(
    selections: Sequence[str], watched: bool
) -> Callable[[Activation], tuple[list[Tensor], Tensor | None] | None]:
    """Return a reducer: an activation to a centred Gram vector per selection and, if watched, a row of `PairSums.massive`."""

    def vector(selection: str, activation: Activation) -> Tensor | None:
        own = activation.grams
        if selection == "biased":
            return similarity.biased(own.all)
        if selection == "shuffled":
            place = f"{activation.model.name} {activation.layer}"
            order = _shuffle(place, len(own.all), own.all.device)
            return similarity.centred(own.all[order][:, order])
        found = own.of(selection)
        return None if found is None else similarity.centred(found)

    def reduce(activation: Activation) -> tuple[list[Tensor], Tensor | None] | None:
        if len(activation.values) < SMALLEST_BATCH:
            return [], None
        found = [vector(selection, activation) for selection in selections]
        vectors = [one for one in found if one is not None]
        if len(vectors) < len(selections):
            return None
        return vectors, _watch(activation.grams) if watched and activation.values.ndim == 3 else None

    return reduce


@lru_cache(maxsize=4096)  # copying it to a GPU anew for each layer and batch would stall the GPU
def _shuffle(place: str, images: int, device: torch.device) -> Int[Tensor, " image"]:
    """Return a random order of the images, fixed for each layer: no two layers have the same images in the same rows."""
    generator = torch.Generator().manual_seed(zlib.crc32(place.encode()))
    return torch.randperm(images, generator=generator).to(device)


def _watch(own: Grams) -> Float64[Tensor, "4"]:
    some = own.first(max(LEAST_WATCHED, int(WATCHED * len(own.activation))))
    ordinary = some.of("inliers")
    assert ordinary is not None  # every activation has it
    both = torch.stack([similarity.centred(gram) for gram in (some.all, ordinary)])
    massive = some.massive
    count = torch.full((), float(massive.numel()), dtype=torch.float64, device=massive.device)
    return torch.stack([count, massive.sum().double(), *both.double().square().sum(1)])


def _fold(batch: Pass) -> PairSums | None:
    if batch.size < SMALLEST_BATCH:
        return None
    kept = batch.kept()
    if not kept:
        raise Refusal("no chosen layer has what --tokens asks for (a class token?)")
    selections = zip(*(vectors for *_, (vectors, _) in kept), strict=True)
    hsic = torch.stack([similarity.hsic(torch.stack(vectors)) for vectors in selections])
    names = [f"{str(layer)!r} of {model}" for model, layer, _ in kept]
    batch.refuse_not_finite(hsic.diagonal(dim1=1, dim2=2).T, names)
    nothing = hsic.new_zeros(4)
    return PairSums.of_batch(
        batch.number,
        batch.size,
        hsic=batch.size * hsic,
        massive=torch.stack([nothing if share is None else share for *_, (_, share) in kept]),
        places=[[model, str(layer)] for model, layer, _ in kept],
    )


def _cka(sums: PairSums) -> Float64[Tensor, "selection layer layer"]:
    return similarity.cka(sums.hsic.sum(0))


def _pairs(
    places: Sequence[Sequence[str]], interval: Interval, wanted: Collection[tuple[str, str]] | None = None
) -> pd.DataFrame:
    names = placed(places)
    row, other = np.divmod(np.arange(len(names) ** 2), len(names))
    if wanted is not None:
        model = names["model"].to_numpy()
        cells = np.zeros(len(row), dtype=bool)
        for one, two in wanted:
            cells |= (model[row] == one) & (model[other] == two)
        row, other = row[cells], other[cells]
        flat = torch.from_numpy(row * len(names) + other)
        interval = Interval(*(part.cpu().flatten(-2)[..., flat] for part in interval))
    left = names.iloc[row].reset_index(drop=True)
    right = names.iloc[other].reset_index(drop=True).add_prefix("other_")
    return pd.concat([left, right], axis=1).assign(**interval.columns("cka"))


def _mean_off_diagonal(values: Float64[Tensor, "layer layer"]) -> Float64[Tensor, ""]:
    return values[~torch.eye(len(values), dtype=torch.bool)].nanmean()


def _warn_of_constant_layers(places: Sequence[Sequence[str]], hsic: Float64[Tensor, "layer layer"]) -> None:
    constant = [place for place, own in zip(places, hsic.diagonal().tolist(), strict=True) if own == 0]
    if constant:
        told = ", ".join(f"{layer} of {model}" for model, layer in constant)
        logger.warning("constant over all images, so its CKA is undefined (NaN): %s", told)


def _warn_of_massive_tokens(shares: pd.DataFrame, selection: Tokens) -> None:
    dominated = shares[shares["hsic"] > DOMINANT]
    if selection not in ("all", "spatial", "mean") or dominated.empty:
        return
    for model, rows in dominated.groupby("model", sort=False):
        logger.warning(
            "%s: massive tokens, %.1f %% of all, make up %.1f %% or more of the self-similarity of %d of its layers "
            "(%s ... %s). CKA there is about those tokens; compare with normalized tokens.",
            *(model, 100 * rows["tokens"].mean(), 100 * rows["hsic"].min(), len(rows)),
            *(rows["layer"].iloc[0], rows["layer"].iloc[-1]),
        )


def main(
    models: tuple[str, ...] = ("lab/vit", "lab/resnet"),
    /,
    *,
    images: Images = Images(),  # noqa: B008  (frozen)
    layers: tuple[str, ...] = ("paper",),
    tokens: Tokens = "all",
    out: Path = Path("figures/cka"),
    device: str | None = None,
) -> None:
    """CKA of all pairs of layers of some models (figures 1, 2 and B.1 of Raghu et al. 2021).

    Args:
        models: NAME[@WEIGHTS] ...; NAME is lab/... or a timm name, WEIGHTS a checkpoint file or "random".
        images: which images to run the models on.
        layers: paper, blocks, or glob patterns over module paths such as 'blocks.*.attn'.
        tokens: which values of a layer of tokens are compared.
        out: path of the results without ending; .parquet and .png are added.
        device: cpu, cuda ...; by default the GPU if there is one.
    """
    chosen = layers[0] if len(layers) == 1 else layers
    loaded = load_all(models, device=device)
    table = measure(loaded, images, layers=chosen, tokens=tokens, state=out)
    command.write(table, out)
    command.draw(table, out, plot.cka)
    if tokens == "all" and any(row["hsic"] > DOMINANT for row in table.attrs["massive"]):
        beside = command.beside(out, "_robustness")
        robust = robustness(loaded, images, layers=chosen, state=beside)
        shown = robust[["model", "tokens", "cka", "low", "high"]].round(3).to_string(index=False)
        logger.info("mean CKA of different layers:\n%s", shown)
        command.write(robust, beside)


if __name__ == "__main__":
    command.run(main)
