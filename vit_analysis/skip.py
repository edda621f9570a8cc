"""How much skip connections carry: norm ratios (figures 7 and E.1) and cosines (E.2).

Raghu et al. (2021, section 5): per token, |z| / |f(z)|, with z what enters on the skip connection (after its projection) and
f(z) what the long branch returns: attention or MLP with their LayerNorm and LayerScale, or a ResNet unit up to its last norm.
The joined output must be z + f(z), which is checked; so a block of another kind is refused, not misread.

    python -m vit_analysis.skip
    python -m vit_analysis.skip vit_base_patch16_224 resnet50 --images.source ~/imagenet/val --out figures/skip
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("skip")


import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vit_analysis import layers
from vit_analysis.images import AnyImages
from vit_analysis.layers import Branch, Tap
from vit_analysis.models import Models
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.intervals import jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading, prepared
from vit_analysis.spelling import Refusal
from vit_analysis.table import WITHOUT, with_provenance
from vit_analysis.tensors import similarity
from vit_analysis.tensors.tokens import Layout, as_tokens, norms

logger = logging.getLogger(__name__)

FIRST = 9  # tokens that figure 7 shows one by one
# Medians are read from a histogram with 32 bins per octave, from 2^-12 to 2^12: right to 1.1 % without storing any ratio.
OCTAVES, BINS = 12, 32
# Of these the table has the values without each group, as intervals are computed from them elsewhere.
COMPARED = ("norm_ratio", "cosine", "skip_norm", "long_norm")
MEANS = ("norm_ratio", "cosine", "cosine_branches", "cosine_long", "skip_norm", "long_norm")


@dataclass(frozen=True)
class RatioSums(Grouped):
    """The sums over batches from which norm ratios and cosines are computed."""

    totals: Float64[Tensor, "group place statistic"]
    """Summed over images: the statistics of `MEANS`."""
    counts: Float64[Tensor, "place bin"]
    """Histogram of the norm ratios of single tokens."""
    named: Float64[Tensor, "group name bin"]
    """The same by group, of the rows of class token and spatial tokens alone: few enough to be kept for each group."""
    places: list[list[str]]
    """[model, block, sublayer, token] of each row."""


def measure(
    models: Models, images: AnyImages, *, first: int = FIRST, state: Path | None = None
) -> pd.DataFrame:
    """Norm of each skip connection over the norm of its long branch, |z| / |f(z)|, averaged over tokens, then over images.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own: Vision Transformers, or
            ResNets (positions are tokens).
        images: which images: `Images`, a path, a torch data set or a tensor.
        first: how many tokens of a Vision Transformer have a row of their own, prefix tokens included.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, block, sublayer (attention, mlp, unit), token (``cls``, ``spatial`` for the mean over all spatial
        tokens, or a number); norm_ratio with its 95 % interval low, high, and its median over images and tokens; cosine of
        z + f(z) and z, cosine_branches of z and f(z), cosine_long of z + f(z) and f(z); skip_norm, long_norm of z and f(z);
        and of norm_ratio, cosine and both norms the values without each group of batches (``norm_ratio_without`` ...).
        The ratio is infinite where a branch adds nothing.

    Examples:
        >>> table = measure(["lab/vit", "lab/resnet"], Images(limit=256))    # doctest: +SKIP
    """
    return plan(models, images, first=first).table(state)


def plan(models: Models, images: AnyImages, *, first: int = FIRST) -> Measurement[RatioSums]:
    """Plan what `measure` computes without running it, so that one pass over the images can serve several analyses."""
    if first < 0:
        raise Refusal(f"first must be at least 0, got {first}")
    loaded, images = prepared(models, images)
    readers = {name: _Reader(layers.branches(model), first) for name, model in loaded.items()}
    taps = {name: reader.taps for name, reader in readers.items()}

    def reduce(activation: Activation) -> Any:
        return readers[activation.model.name](activation)

    def finish(sums: RatioSums) -> pd.DataFrame:
        return with_provenance(_ratio_rows(sums), "skip", **reading.facts())

    settings = {"first": first}  # saved sums with other rows do not fit
    reading = Reading(loaded, images, taps, reduce, settings=settings)
    return Measurement(reading, _fold_ratios, RatioSums, finish)


def ratios(skip: Tensor, long: Tensor, layout: Layout, first: int) -> tuple[list[str], Tensor, Tensor]:
    """Statistics of one branch in one batch, from z and f(z): tokens, or maps whose positions are tokens.

    Returns:
        The names of the rows; for each the sum over images of `MEANS`; for each the histogram of the ratios of single tokens.
        The cosine of a vector of zeros is 0, and a token that is zero in both has no ratio.
    """
    z, f = as_tokens(skip, layout), as_tokens(long, layout)
    zz, ff, zf = norms(z).double().square(), norms(f).double().square(), inner_products(z, f)
    total = (zz + 2 * zf + ff).clamp(min=0)
    cosines = [(zz + zf) / (zz * total).sqrt(), zf / (zz * ff).sqrt(), (zf + ff) / (ff * total).sqrt()]
    ratio = (zz / ff).sqrt()
    values = torch.stack([ratio, *(x.nan_to_num(0, 0, 0) for x in cosines), zz.sqrt(), ff.sqrt()], dim=-1)
    bins = ((ratio.log2() + OCTAVES) * BINS).nan_to_num(0).clamp(0, 2 * OCTAVES * BINS - 1).long()
    rows = dict(_rows(layout, layout.prefix_of(skip), min(first, z.shape[1]) if skip.ndim == 3 else 0))
    counts = values.new_zeros(len(rows), 2 * OCTAVES * BINS)
    for count, tokens in zip(counts, rows.values(), strict=True):
        found = bins[:, tokens].flatten()
        count.index_add_(0, found, torch.ones_like(found, dtype=count.dtype))
    return list(rows), torch.stack([values[:, tokens].nanmean(1).sum(0) for tokens in rows.values()]), counts


def inner_products(
    x: Float[Tensor, "image token channel"], y: Float[Tensor, "image token channel"]
) -> Float64[Tensor, "image token"]:
    """Inner product of every token of x with the same token of y, summed in float32.

    Computed piece by piece in memory that is reused: products of whole maps would be written out only to be read once.
    """
    found = torch.empty(x.shape[:2], device=x.device)
    scratch = torch.empty(0, device=x.device)
    for start in range(0, len(x), size := max(1, similarity.piece(x.device) // x[0].numel())):
        part = slice(start, start + size)
        both = torch.mul(x[part].float(), y[part].float(), out=scratch.resize_(x[part].shape))
        torch.sum(both, dim=-1, out=found[part])
    return found.double()


def _rows(layout: Layout, prefix: int, first: int) -> Iterator[tuple[str, slice]]:
    if layout.class_token and prefix:  # where it is not known, no row claims to be of one
        yield "cls", slice(0, 1)
    yield "spatial", slice(prefix, None)
    yield from ((str(number), slice(number, number + 1)) for number in range(first))


class _Reader:
    """The reducer of one model's branches, called inside its hooks; it holds z and f(z) until it has both.

    They are not copied: the model needs both unchanged until it adds them, and they are reduced before that.
    """

    def __init__(self, branches: Sequence[Branch], first: int) -> None:
        self.branches, self.first = branches, first
        self.held: dict[Tap, Tensor] = {}
        self.first_image: dict[Branch, tuple[Tensor, Tensor]] = {}
        self.found: dict[Branch, Any] = {}
        self.checked: set[Branch] = set()

    @property
    def taps(self) -> list[Tap]:
        """The taps that read z, f(z) and the joined output of every branch."""
        return [tap for one in self.branches for tap in (one.skip, one.long, one.joined)]

    def __call__(self, activation: Activation) -> Any:
        """Reduce z and f(z) once both are there; return the branch and its `ratios` when its joined output is there."""
        result, tap = None, activation.layer.tap
        if activation.layer != Layer(tap):
            return None  # one of several values or runs of a module: not what is added
        for branch in self.branches:
            if tap == branch.joined:
                self._check(branch, activation)
                result = branch, *self.found.pop(branch)
            if tap in (branch.skip, branch.long):
                self.held[tap] = activation.values
                if branch.skip in self.held and branch.long in self.held:
                    self._reduce(branch, activation.layout)
        return result

    def _reduce(self, branch: Branch, layout: Layout) -> None:
        skip, long = self.held.pop(branch.skip), self.held.pop(branch.long)
        if skip.numel() != long.numel():
            raise branch.refusal()
        self.found[branch] = ratios(skip, long, layout, self.first)
        if branch not in self.checked:
            self.first_image[branch] = skip[:1].clone(), long[:1].clone()

    def _check(self, branch: Branch, joined: Activation) -> None:
        """Refuse a branch whose joined output is not z + f(z), checked on one image of the run."""
        if branch in self.checked:
            return
        if branch not in self.first_image:
            raise branch.refusal()
        if not branch.is_sum(joined.model.module, *self.first_image.pop(branch), joined.values[:1]):
            raise branch.refusal()
        self.checked.add(branch)


def _fold_ratios(batch: Pass) -> RatioSums:
    kept = [(model, *own) for model, _, own in batch.kept()]
    if not kept:
        raise Refusal(
            f"the blocks of {' and '.join(batch.seen)} pass on several values at once, and skip connections among them are "
            f"not known; choose a Vision Transformer or a ResNet"
        )
    means = torch.cat([total for *_, total, _ in kept])
    places = [
        [model, branch.block, branch.sublayer, token]
        for model, branch, tokens, *_ in kept
        for token in tokens
    ]
    batch.refuse_not_finite(
        means[:, -2:], [f"{block} ({sublayer}) of {model}" for model, block, sublayer, _ in places]
    )
    return RatioSums.of_batch(
        batch.number,
        batch.size,
        totals=means,
        counts=torch.cat([count for *_, count in kept]),
        named=torch.cat([count for *_, count in kept])[_named(places)],
        places=places,
    )


def _named(places: Sequence[Sequence[str]]) -> list[int]:
    """Return the numbers of the rows whose token is not a number."""
    return [row for row, (*_, token) in enumerate(places) if not token.isdigit()]


def _ratio_rows(sums: RatioSums) -> pd.DataFrame:
    interval = jackknife(lambda own: own.totals.sum(0) / own.images.sum(), sums)
    table = pd.DataFrame(sums.places, columns=["model", "block", "sublayer", "token"])
    means = {name: interval.of(place).columns(name) for place, name in enumerate(MEANS)}
    ratio, cosine = means["norm_ratio"], means["cosine"]
    table = table.assign(norm_ratio=ratio["norm_ratio"], median=medians(sums.counts).cpu().numpy())
    table = table.assign(cosine=cosine["cosine"], low=ratio["low"], high=ratio["high"])
    for name in MEANS:
        kept = (name, f"{name}{WITHOUT}") if name in COMPARED else (name,)
        table = table.assign(**{column: means[name][column] for column in kept})
    middle = jackknife(lambda own: medians(own.named.sum(0)), sums).columns("median")[f"median{WITHOUT}"]
    # Of a numbered token the groups were not kept apart: its median is the same without each of them.
    groups = len(sums.held) if len(sums.held) > 1 else 0
    without: list[Any] = [np.full(groups, value, dtype=np.float32) for value in table["median"]]
    for place, row in enumerate(_named(sums.places)):
        without[row] = middle[place]
    table = table.assign(**{f"median{WITHOUT}": without})
    nothing = table[np.isinf(table["norm_ratio"])]
    if not nothing.empty:
        told = ", ".join(dict.fromkeys(f"{row.block} of {row.model}" for row in nothing.itertuples()))
        logger.warning(
            "the long branch adds nothing to some tokens, so their norm ratio is infinite: %s", told
        )
    return table


def medians(counts: Float64[Tensor, "place bin"]) -> Float64[Tensor, " place"]:
    """Medians from histograms, as if values were evenly spread within a bin; 0 in the first bin, infinite in the last."""
    below = counts.cumsum(1)
    half = below[:, -1:] / 2
    place = (below < half).sum(1, keepdim=True)
    inside = (half - below.gather(1, place)) / counts.gather(1, place) + 1
    value = 2 ** ((place + inside)[:, 0] / BINS - OCTAVES)
    ends = torch.where(place == 0, 0.0, torch.inf)[:, 0]
    return torch.where((place[:, 0] > 0) & (place[:, 0] < counts.shape[1] - 1), value, ends)
