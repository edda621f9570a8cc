"""Similarity of all pairs of layers, within and across models: linear CKA, unbiased, in minibatches (figures 1, 2 and B.1).

Raghu et al. (2021, section 3) after Nguyen et al. (2020):

    CKA(K, L) = sum_b HSIC(K_b, L_b) / sqrt(sum_b HSIC(K_b, K_b) sum_b HSIC(L_b, L_b))

over batches b, with the unbiased HSIC of Song et al. (2012). Batches are weighted by their number of images, so an
incomplete last batch counts for what it holds. What is unbiased does not depend on their size, but large ones cost more:
a batch of 180 images or more that runs through the models is several of these b, its parts (`grams.PART`). Intervals are a
delete-one-group jackknife over whole batches, as those of other tables of the same images, with which they are combined.

    python -m vit_analysis.cka
    python -m vit_analysis.cka vit_base_patch16_224 resnet50 --images.source ~/imagenet/val --out figures/cka
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("cka")


import logging
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, Int
from torch import Tensor

from vit_analysis.images import AnyImages
from vit_analysis.layers import INPUT
from vit_analysis.models import Models
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.intervals import Interval, jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading
from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.table import placed, with_provenance
from vit_analysis.tensors import measures, similarity
from vit_analysis.tensors.grams import Gram, Grams
from vit_analysis.tensors.similarity import SMALLEST_BATCH
from vit_analysis.tensors.tokens import SELECTIONS
from vit_analysis.typed import Measure, Selection

logger = logging.getLogger(__name__)

Shared = Literal["", "pixels", "pixels and twins"]

ROBUST: tuple[Selection, ...] = ("all", "normalized", "standardized", "inliers")
# What turns a Gram matrix into a vector; the biased estimator serves as a control only.
VECTORS = {**measures.MEASURES, "biased": similarity.biased}
# Measures whose value depends on how many images are compared, which are all of a batch; and so do `tokens.DOMINANT_IMAGES`.
OF_BATCH: tuple[str, ...] = ("mutual_knn", "biased")


class View(NamedTuple):
    """A choice of what of two layers is compared, and how.

    Attributes:
        tokens: one of `tokens.SELECTIONS`.
        measure: one of `VECTORS`.
        order: the images that are compared: ``same``, as they are; or in an order of its own for each ``layer`` or each
            ``model``, within a batch: images that do not belong together, whose similarity is that of nothing with nothing.
        given: what is taken away first (`measures.given`): the pixels, or those and all layers of untrained twins.
    """

    tokens: str = "all"
    measure: str = "cka"
    order: Literal["same", "layer", "model"] = "same"
    given: Shared = ""

    @property
    def name(self) -> str:
        """The measure, as tables name it."""
        return f"partial_{self.measure}" if self.given else self.measure

    @property
    def whole(self) -> bool:
        """Whether it compares all images of a batch at once, and not those of each part of it."""
        return self.measure in OF_BATCH or self.tokens == "typical"


# Massive tokens are looked for in one image of so many, the watched images: it costs little, and all batches add up. From 8
# images the HSIC of a few tokens is too noisy to show that they dominate, so at least 16 are watched.
WATCHED, LEAST_WATCHED = 4, 16
# Where massive tokens make up more than this share of a layer's HSIC with itself, its CKA describes them and little else.
DOMINANT = 0.5
CONSTANT = 2  # layers that are constant over images and told by name


@dataclass(frozen=True)
class PairSums(Grouped):
    """The sums over batches from which CKA, or another measure, is computed."""

    hsic: Float64[Tensor, "group view layer layer"]
    massive: Float64[Tensor, "layer 4"]
    """Over the watched images: tokens, massive tokens, HSIC(K, K), and HSIC(K, K) with massive tokens replaced (`inliers`)."""
    places: list[list[str]]
    """[model, layer] of each row, in order of execution."""


def measure(
    models: Models,
    images: AnyImages,
    *,
    layers: str | Sequence[str] = "paper",
    tokens: Selection = "all",
    measure: Measure = "cka",
    state: Path | None = None,
) -> pd.DataFrame:
    """CKA of every ordered pair of layers of all models, in one pass over the images.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own (then with layer patterns).
        images: which images: `Images`, a path, a torch data set or a tensor.
        layers: ``paper``, ``blocks``, or one or several glob patterns over module paths.
        tokens: which values of a layer are compared, see `tokens.SELECTIONS`; ``all`` is the paper's choice.
        measure: ``cka`` is the paper's; ``partial_cka`` takes away what layers share with the pixels, ``rank_cka`` and
            ``mutual_knn`` are not moved by a few images or directions (`tensors.measures`).
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, layer, depth, other_model, other_layer, other_depth, measure, cka (of whatever measure), low, high: one
        row per ordered pair of layers, in order of execution, with the 95 % interval. NaN where a layer is constant over
        images. cka_without holds the values without each group of batches, from which the interval of anything computed from
        this table follows.

    Examples:
        >>> table = measure(["lab/vit", "lab/resnet"], Images(limit=256))    # doctest: +SKIP
    """
    return plan(models, images, layers=layers, tokens=tokens, measure=measure).table(state)


def plan(
    models: Models,
    images: AnyImages,
    *,
    layers: str | Sequence[str] = "paper",
    tokens: Selection = "all",
    measure: Measure = "cka",
    pairs: Collection[tuple[str, str]] | None = None,
) -> Measurement[PairSums]:
    """Plan what `measure` computes without running it, so that one pass over the images can serve several analyses.

    Where ``pairs`` of model names are given, the table holds only those pairs of models.
    """
    partial = measure == "partial_cka"
    view = View(tokens, "cka" if partial else measure, given="pixels" if partial else "")

    def finish(sums: PairSums) -> pd.DataFrame:
        interval = jackknife(lambda own: _similarities(own, (view,), ())[0], sums)
        _warn_of_constant_layers(sums.places, sums.total.hsic[0, 0])
        shares = massive_shares(sums)
        _warn_of_massive_tokens(shares, tokens)
        facts = {"layers": layers, "tokens": tokens, "massive": shares.to_dict("records")}
        table = _pairs(sums.places, interval, pairs, view.name)
        return with_provenance(table, "cka", **reading.facts(), measure=measure, **facts)

    reading = _reading(models, images, layers, (view,))
    if pairs is not None:  # so that no table of other pairs is taken from the cache
        reading = replace(reading, settings={**reading.settings, "pairs": [list(pair) for pair in pairs]})
    return Measurement(reading, _fold, PairSums, finish)


def plan_controls(
    models: Models,
    images: AnyImages,
    views: Mapping[str, View],
    *,
    layers: str | Sequence[str] = "blocks",
    twins: Collection[str] = (),
    pairs: Collection[tuple[str, str]] | None = None,
) -> Measurement[PairSums]:
    """Plan similarity under several views, by name, usually of block outputs; it can share a pass with other analyses.

    Its table has the columns of `measure` and ``control``, the view's name. Where ``pairs`` of model names are given, it holds
    only those pairs of models. ``twins`` are the models that views take away whose `View.given` says so.
    """

    def finish(sums: PairSums) -> pd.DataFrame:
        interval = jackknife(lambda own: _similarities(own, list(views.values()), twins), sums)
        parts = [
            _pairs(
                sums.places, Interval(*(part[..., place, :, :] for part in interval)), pairs, view.name
            ).assign(control=name)
            for place, (name, view) in enumerate(views.items())
        ]
        return with_provenance(
            pd.concat(parts, ignore_index=True), "cka_controls", **reading.facts(), layers=layers
        )

    reading = _reading(models, images, layers, list(views.values()), watched=False)
    settings: dict[str, Any] = {
        "views": {name: list(view) for name, view in views.items()},
        "twins": sorted(twins),
    }
    if pairs is not None:
        settings["pairs"] = [list(pair) for pair in pairs]
    return Measurement(replace(reading, settings={**reading.settings, **settings}), _fold, PairSums, finish)


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
            values = similarity.cka(own.hsic.sum(0))
            return torch.stack([_mean_off_diagonal(one[rows][:, rows]) for rows in owns for one in values])

        interval = jackknife(means, sums.to("cpu"))
        rows = pd.DataFrame(
            [(name, tokens) for name in names for tokens in ROBUST], columns=["model", "tokens"]
        )
        return with_provenance(
            rows.assign(**interval.columns("cka")), "cka_robustness", **reading.facts(), layers=layers
        )

    reading = _reading(models, images, layers, [View(tokens) for tokens in ROBUST])
    return Measurement(reading, _fold, PairSums, finish).table(state)


def dominated(table: pd.DataFrame) -> bool:
    """Return whether massive tokens make up most of a layer's similarity with itself."""
    return any(row["hsic"] > DOMINANT for row in table.attrs["massive"])


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
    views: Sequence[View],
    *,
    watched: bool = True,
) -> Reading:
    for view in views:
        for what, name, known in (
            ("tokens", view.tokens, tuple(SELECTIONS)),
            ("measure", view.measure, tuple(VECTORS)),
        ):
            if name not in known:
                raise Refusal(f"no {what} {name!r}; {did_you_mean(name, known)}")
    summed = _summed(views)
    reading = Reading.of(
        models, images, chosen, _reducer(summed, watched), views=[list(own) for own in summed]
    )
    images = reading.images
    if images.batches > 1 and 0 < len(images.order) % images.batch < SMALLEST_BATCH:
        logger.warning("the last batch has fewer than %d images and is left out", SMALLEST_BATCH)
    most = min(images.batch, len(images.order))
    if most < measures.NEAR and any(view.measure == "mutual_knn" for view in views):
        raise Refusal(f"mutual nearest neighbours need batches of {measures.NEAR} images or more, got {most}")
    if any(view.given for view in views):  # the pixels, as the first model receives them
        name, own = next(iter(reading.taps.items()))
        reading = replace(reading, taps={**reading.taps, name: [INPUT, *own]})
    return replace(reading, whole=any(view.whole for view in views))


def _summed(views: Sequence[View]) -> list[View]:
    """The views that need sums of their own: what is taken away is taken from the sums."""
    return list(dict.fromkeys(view._replace(given="") for view in views))


def _reducer(
    views: Sequence[View], watched: bool
) -> Callable[[Activation], tuple[list[Tensor], Tensor | None] | None]:
    """Return a reducer: an activation to a vector per view and, if watched, a row of `PairSums.massive`."""

    def reduce(activation: Activation) -> tuple[list[Tensor], Tensor | None] | None:
        if len(activation.values) < SMALLEST_BATCH:
            return [], None
        # Of whole batches first, as parts can be cut out of them.
        found = {view: _vector(view, activation) for view in sorted(views, key=lambda view: not view.whole)}
        vectors = [vector for view in views if (vector := found[view]) is not None]
        if len(vectors) < len(views):
            return None
        return vectors, _watch(activation.grams) if watched and activation.values.ndim == 3 else None

    return reduce


def _vector(view: View, activation: Activation) -> Tensor | None:
    """What a view makes of an activation, such that the inner product of two layers is their similarity in this batch.

    That of the parts of a batch is their mean, weighted by images. None where there are no such tokens.
    """
    own, tokens = activation.grams, "all" if _is_input(activation.layer) else view.tokens
    if activation.values.is_cuda:
        own.of(tokens)  # one product, of which parts are cut out, fills a GPU better than several
    found = [part.of(tokens) for part in ([own] if view.whole else own.parts)]
    grams = [_reordered(gram, view, activation) for gram in found if gram is not None]
    if len(grams) < len(found):
        return None
    if view.measure == "mutual_knn" and len(grams[0]) < measures.NEAR:
        return grams[0].new_zeros(len(grams[0]) ** 2).float()  # a small last batch counts for nothing
    vectors = []
    for size, same in groupby(grams, len):
        share = (size / len(activation.values)) ** 0.5
        if view.measure == "cka":  # of all parts at once
            vectors.append(share * similarity.centred(torch.stack(list(same))).flatten())
        else:
            vectors += [share * VECTORS[view.measure](gram) for gram in same]
    return torch.cat(vectors)


def _is_input(layer: Layer) -> bool:
    return layer.tap == INPUT


def _reordered(gram: Gram, view: View, activation: Activation) -> Gram:
    """The Gram matrix of the images in the order that a view asks for."""
    if view.order == "same":
        return gram
    name = activation.model.name
    place = f"{name} {activation.layer}" if view.order == "layer" else name
    order = _shuffle(place, len(gram), gram.device)
    return gram[order][:, order]


@lru_cache(maxsize=4096)  # copying it to a GPU anew for each layer and batch would stall the GPU
def _shuffle(place: str, images: int, device: torch.device) -> Int[Tensor, " image"]:
    """Return a random order of the images, fixed for each place: no two places have the same images in the same rows."""
    generator = torch.Generator().manual_seed(zlib.crc32(place.encode()))
    return torch.randperm(images, generator=generator).to(device)


def _watch(own: Grams) -> Float64[Tensor, "4"]:
    """Return the row of `PairSums.massive` of an activation, of one part of its batch in so many."""
    most = max(LEAST_WATCHED, len(own.activation) // WATCHED)
    return torch.stack([_watched(part.first(most)) for part in own.parts[::WATCHED]]).sum(0)


def _watched(some: Grams) -> Float64[Tensor, "4"]:
    ordinary = some.of("inliers")
    assert ordinary is not None  # every activation has it
    both = similarity.centred(torch.stack([some.all, ordinary]))
    massive = some.massive
    count = torch.full((), float(massive.numel()), dtype=torch.float64, device=massive.device)
    return torch.stack([count, massive.sum().double(), *both.double().square().sum(1)])


def _fold(batch: Pass) -> PairSums | None:
    if batch.size < SMALLEST_BATCH:
        return None
    kept = batch.kept()
    if all(_is_input(layer) for _, layer, _ in kept):
        raise Refusal("no chosen layer has what --tokens asks for (a class token?)")
    views = zip(*(vectors for *_, (vectors, _) in kept), strict=True)
    hsic = torch.stack([similarity.hsic(torch.stack(vectors)) for vectors in views])
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


def _similarities(
    sums: PairSums, views: Sequence[View], twins: Collection[str]
) -> Float64[Tensor, "view layer layer"]:
    """The similarity of every pair of layers but the pixels, under every view; NaN for what is taken away."""
    whole, summed = sums.hsic.sum(0), _summed(views)
    pixels = [number for number, (_, layer) in enumerate(sums.places) if layer == str(INPUT)]
    shared = [number for number, (model, _) in enumerate(sums.places) if model in twins]
    kept = [number for number in range(len(sums.places)) if number not in pixels]
    found = []
    for view in views:
        products = whole[summed.index(view._replace(given=""))]
        if view.given:
            away = pixels + (shared if "twins" in view.given else [])
            left = [number for number in range(len(products)) if number not in away]
            partial = torch.full_like(products, torch.nan)
            partial[torch.tensor(left)[:, None], torch.tensor(left)] = measures.given(products, away)
            products = partial
        found.append(similarity.cka(products)[kept][:, kept])
    return torch.stack(found)


def _pairs(
    places: Sequence[Sequence[str]],
    interval: Interval,
    wanted: Collection[tuple[str, str]] | None,
    measure: str,
) -> pd.DataFrame:
    names = placed([place for place in places if place[1] != str(INPUT)])
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
    return pd.concat([left, right], axis=1).assign(measure=measure, **interval.columns("cka"))


def _mean_off_diagonal(values: Float64[Tensor, "layer layer"]) -> Float64[Tensor, ""]:
    return values[~torch.eye(len(values), dtype=torch.bool)].nanmean()


def _warn_of_constant_layers(places: Sequence[Sequence[str]], hsic: Float64[Tensor, "layer layer"]) -> None:
    constant = [place for place, own in zip(places, hsic.diagonal().tolist(), strict=True) if own == 0]
    if constant:
        told = ", ".join(f"{layer} of {model}" for model, layer in constant[:CONSTANT])
        more = f" and {len(constant) - CONSTANT} more layers" if len(constant) > CONSTANT else ""
        logger.warning("constant over all images, so its CKA is undefined (NaN): %s%s", told, more)


def _warn_of_massive_tokens(shares: pd.DataFrame, selection: Selection) -> None:
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
