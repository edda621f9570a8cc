"""How much of a feature map is fine detail: relative log amplitude by frequency, layer by layer (Park and Kim 2022, figure 2).

Beyond the paper. Attention averages over positions and so damps high frequencies; convolutions sharpen. Each channel of a
map is taken to frequencies, amplitudes are averaged over channels and images, and their logarithm is read along half of the
diagonal, from the mean of the map (frequency 0) to the pattern that changes sign from one position to the next (1, in units
of pi), relative to frequency 0. A class token has no place and is dropped.

    python -m vit_analysis.frequency
    python -m vit_analysis.frequency vit_base_patch16_224 resnet50 --images.source ~/imagenet/val --out figures/frequency
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("frequency")


from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from vit_analysis.images import AnyImages
from vit_analysis.models import Models
from vit_analysis.reading.intervals import jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading
from vit_analysis.spelling import Refusal
from vit_analysis.table import placed, with_provenance
from vit_analysis.tensors import similarity
from vit_analysis.tensors.tokens import on_grid


@dataclass(frozen=True)
class AmplitudeSums(Grouped):
    """The amplitudes of every layer by frequency, summed over images."""

    totals: Float64[Tensor, "group row"]
    """Summed over images: mean amplitude over channels."""
    places: list[list[str]]
    """[model, layer] of each row."""
    frequencies: list[float]
    """Frequency of each row, in units of pi."""


def measure(
    models: Models, images: AnyImages, *, layers: str | Sequence[str] = "blocks", state: Path | None = None
) -> pd.DataFrame:
    """Log amplitude of feature maps by frequency, relative to frequency 0.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own: Vision Transformers with a
            grid of tokens, or CNNs.
        images: which images: `Images`, a path, a torch data set or a tensor.
        layers: ``blocks``, ``paper``, or glob patterns over module paths.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, layer, depth, frequency (in units of pi, 0 to 1, as many as half the map's side and one more),
        log_amplitude with its 95 % interval low, high, and log_amplitude_without, its values without each group of images.

    >>> table = measure(["lab/vit", "lab/resnet"], Images(limit=256))    # doctest: +SKIP
    """
    return plan(models, images, layers=layers).table(state)


def plan(
    models: Models, images: AnyImages, *, layers: str | Sequence[str] = "blocks"
) -> Measurement[AmplitudeSums]:
    """Plan what `measure` computes without running it, so that one pass over the images can serve several analyses."""

    def finish(sums: AmplitudeSums) -> pd.DataFrame:
        return with_provenance(_rows(sums), "frequency", **reading.facts(), layers=layers)

    reading = Reading.of(models, images, layers, _reduce)
    return Measurement(reading, _fold, AmplitudeSums, finish)


def amplitudes(maps: Float[Tensor, "image row col channel"]) -> Float64[Tensor, "image frequency"]:
    """Mean amplitude over channels at the frequencies of the half diagonal, from 0 to 1 (in units of pi).

    Only these are computed, with products with cosines and sines, instead of all rows x columns of a Fourier transform.
    """
    rows, columns = maps.shape[1:3]
    count = min(rows, columns) // 2 + 1
    parts = (_of_square if rows == columns else _of_any)(
        maps, *(_waves(side, count, maps.device) for side in (rows, columns))
    )
    return torch.hypot(*parts).double().mean(1)


def _of_square(
    maps: Float[Tensor, "image side side channel"], waves: Float[Tensor, "2 side frequency"], _: Tensor
) -> tuple[Float[Tensor, "image channel frequency"], Float[Tensor, "image channel frequency"]]:
    """Real and imaginary part along the diagonal of a square map: a wave there is equal wherever row + column is.

    So positions are added up by that number first, and each is looked at but once.
    """
    side = maps.shape[1]
    sums = maps.new_zeros(len(maps), side, maps.shape[3], dtype=torch.float32)
    size = max(1, similarity.piece(maps.device) // sums[0].numel())
    for some, total in zip(maps.split(size), sums.split(size), strict=True):
        for row, values in enumerate(some.unbind(1)):
            total[:, row:] += values[:, : side - row]
            total[:, :row] += values[:, side - row :]
    cosine, sine = (sums.mT @ wave for wave in waves)
    return cosine, sine


def _of_any(
    maps: Float[Tensor, "image row col channel"],
    down: Float[Tensor, "2 row frequency"],
    across: Float[Tensor, "2 col frequency"],
) -> tuple[Float[Tensor, "image channel frequency"], Float[Tensor, "image channel frequency"]]:
    """Real and imaginary part: along rows, then along columns at equal frequencies, (a + ib)(c + id)."""
    partial = (maps.float().permute(0, 3, 1, 2) @ across.movedim(0, 1).flatten(1)).unflatten(-1, (2, -1))
    even, odd = partial.unbind(-2)
    cosine, sine = down
    real = torch.einsum("icrf,rf->icf", even, cosine) - torch.einsum("icrf,rf->icf", odd, sine)
    imaginary = torch.einsum("icrf,rf->icf", even, sine) + torch.einsum("icrf,rf->icf", odd, cosine)
    return real, imaginary


@lru_cache(maxsize=256)  # copying them to a GPU anew for each layer and batch would stall it
def _waves(side: int, count: int, device: torch.device) -> Float[Tensor, "2 place frequency"]:
    """Cosines and sines of the frequencies from 0 to that of the finest pattern, at every place of a side."""
    steps = _steps(side, count)
    angles = 2 * np.pi / side * np.outer(np.arange(side), steps)
    return torch.tensor(np.stack([np.cos(angles), np.sin(angles)]), dtype=torch.float32, device=device)


def _steps(side: int, count: int) -> np.ndarray:
    """How many periods each frequency has along a side; where sides differ, the nearest to the same share of the finest."""
    return np.rint(np.linspace(0, side // 2, count))


def _reduce(activation: Activation) -> Float64[Tensor, " frequency"] | None:
    if activation.values.ndim not in (3, 4):
        return None
    maps = on_grid(activation.values, activation.layout, str(activation))
    return amplitudes(maps).sum(0) if min(maps.shape[1:3]) > 1 else None


def _fold(batch: Pass) -> AmplitudeSums:
    kept = batch.kept()
    if not kept:
        raise Refusal(
            "none of these layers is a map of more than one position; choose others (layers), such as 'blocks'"
        )
    names = [f"{str(layer)!r} of {model}" for model, layer, _ in kept]
    batch.refuse_not_finite(torch.stack([own.sum() for *_, own in kept]), names)
    rows: list[Any] = [
        ([model, str(layer)], number / (len(own) - 1))
        for model, layer, own in kept
        for number in range(len(own))
    ]
    return AmplitudeSums.of_batch(
        batch.number,
        batch.size,
        totals=torch.cat([own for *_, own in kept]),
        places=[place for place, _ in rows],
        frequencies=[frequency for _, frequency in rows],
    )


def _rows(sums: AmplitudeSums) -> pd.DataFrame:
    starts, start = [], 0
    for number, frequency in enumerate(sums.frequencies):
        start = number if frequency == 0 else start
        starts.append(start)
    first = torch.tensor(starts)

    def relative(own: AmplitudeSums) -> Float64[Tensor, " row"]:
        whole = own.totals.sum(0).log()
        return whole - whole[first]

    interval = jackknife(relative, sums.to("cpu"))
    table = placed(sums.places).assign(frequency=sums.frequencies)
    return table.assign(**interval.columns("log_amplitude"))
