"""What tokens are like, layer by layer: how large, how alike, over how many directions they spread.

Beyond the paper, since its similarities are of tokens: a few tokens of large Vision Transformers have norms far above all
others and hold global information (Darcet et al. 2024, section 2), through a few channels of enormous value (Sun et al.
2024, section 2), and what is measured of such layers is measured of those. Tokens that all point the same way, or in few
directions, have collapsed (Dong et al. 2021).

    python -m vit_analysis.tokens
    python -m vit_analysis.tokens vit_base_patch16_224 resnet50 --images.source ~/imagenet/val --out figures/tokens
"""

if __name__ == "__main__":  # before anything heavy is imported
    from vit_analysis.shell import running

    running.begin("tokens")


from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from vit_analysis.images import AnyImages
from vit_analysis.models import Models
from vit_analysis.reading.intervals import jackknife
from vit_analysis.reading.measure import Measurement
from vit_analysis.reading.state import Grouped
from vit_analysis.reading.stream import Activation, Pass, Reading
from vit_analysis.spelling import Refusal
from vit_analysis.table import placed, with_provenance
from vit_analysis.tensors.tokens import TINY, as_tokens, massive, norms, spatial

# A massive activation is above 100, and 1,000 times its layer's median (Sun et al. 2024).
LARGE, TIMES = 100.0, 1000.0
MEANS = ("norm", "largest", "patch_cosine", "class_cosine", "effective_rank", "participation")
SHARES = ("massive_tokens", "massive_activations")


@dataclass(frozen=True)
class TokenSums(Grouped):
    """The sums over images of the statistics of every layer."""

    totals: Float64[Tensor, "group place statistic"]
    """Summed over images: `MEANS`, then `SHARES`, each a mean over the image's tokens."""
    places: list[list[str]]
    """[model, layer] of each row."""


def measure(
    models: Models, images: AnyImages, *, layers: str | Sequence[str] = "blocks", state: Path | None = None
) -> pd.DataFrame:
    """Norms, massive tokens, cosines and ranks of the tokens of every layer, averaged over images.

    Args:
        models: loaded models or names, one or several, or any modules under names of your own: Vision Transformers, or CNNs,
            whose positions are tokens.
        images: which images: `Images`, a path, a torch data set or a tensor.
        layers: ``blocks``, ``paper``, or glob patterns over module paths.
        state: where the run saves its sums, so that a killed run can go on from there; None saves nothing.

    Returns:
        Columns model, layer, depth; and, of each of the following, its mean over images, its 95 % interval (``_low``,
        ``_high``) and its values without each group of images (``_without``): norm (of the median spatial token), largest
        (norm of the largest); massive_tokens (share of spatial tokens whose norm is above five times the batch's median:
        Darcet et al. 2024 cut at a norm where the histogram of their model parts) and massive_activations (share of spatial
        tokens with a channel that is above 100 and above 1,000 times the median magnitude of the image's layer: Sun et al.
        2024); patch_cosine (mean cosine of two spatial tokens of an image) and class_cosine (of the class token with the
        spatial ones; NaN where there is none); effective_rank (Roy and Vetterli 2007: exp of the entropy of the singular
        values) and participation (squared sum of the variances over the sum of their squares), both of an image's spatial
        tokens less their mean, and at least 1.

    >>> table = measure(["lab/vit", "lab/resnet"], Images(limit=256))    # doctest: +SKIP
    """
    return plan(models, images, layers=layers).table(state)


def plan(
    models: Models, images: AnyImages, *, layers: str | Sequence[str] = "blocks"
) -> Measurement[TokenSums]:
    """Plan what `measure` computes without running it, so that one pass over the images can serve several analyses."""

    def finish(sums: TokenSums) -> pd.DataFrame:
        return with_provenance(_rows(sums), "tokens", **reading.facts(), layers=layers)

    reading = Reading.of(models, images, layers, _reduce)
    return Measurement(reading, _fold, TokenSums, finish)


def statistics(
    tokens: Float[Tensor, "image token channel"], first: Float[Tensor, "image channel"] | None
) -> Float64[Tensor, "image statistic"]:
    """The statistics of `MEANS` and `SHARES` of each image.

    Args:
        tokens: the spatial tokens.
        first: the class token; None where there is none.
    """
    tokens = tokens.float()
    size, found = norms(tokens), massive_activations(tokens)
    unit = tokens / size.clamp(min=TINY)[..., None]
    beside = torch.full_like(size[:, 0], torch.nan)
    if first is not None:
        beside = (unit @ torch.nn.functional.normalize(first.float(), dim=-1, eps=TINY)[..., None]).mean(
            (1, 2)
        )
    whole = massive(size).double().mean(1), found.double().mean(1)
    means = size.median(1).values, size.amax(1), mean_cosine(unit), beside, *ranks(tokens)
    return torch.stack([one.double() for one in (*means, *whole)], dim=1)


def mean_cosine(unit: Float[Tensor, "image token channel"]) -> Float64[Tensor, " image"]:
    """Mean inner product of two different tokens of an image, from the sum of all: no pair is looked at."""
    count = unit.shape[1]
    whole, own = unit.sum(1, dtype=torch.float64).square().sum(1), unit.double().square().sum((1, 2))
    return (whole - own) / (count * (count - 1)) if count > 1 else torch.full_like(whole, torch.nan)


def massive_activations(tokens: Float[Tensor, "image token channel"]) -> Bool[Tensor, "image token"]:
    """Return which tokens have a channel above 100 and above 1,000 times the image's median magnitude (Sun et al. 2024).

    A median takes as long as all else, so on a CPU it is taken of images alone in which a channel is above 100.
    """
    largest = torch.linalg.vector_norm(tokens, torch.inf, dim=2)
    found = largest > LARGE
    some = slice(None) if tokens.is_cuda else found.any(1)
    median = tokens[some].abs().flatten(1).median(1).values
    found[some] &= largest[some] > TIMES * median[:, None]
    return found


def ranks(
    tokens: Float[Tensor, "image token channel"],
) -> tuple[Float64[Tensor, " image"], Float64[Tensor, " image"]]:
    """The effective rank and the participation ratio of each image's tokens less their mean; 1 where all tokens are equal."""
    own = (tokens - tokens.mean(1, keepdim=True)).double()
    gram = own @ own.mT if own.shape[1] <= own.shape[2] else own.mT @ own
    # What is not finite would end LAPACK with an error of its own; it is refused afterwards, by its norms.
    variances = torch.linalg.eigvalsh(gram.nan_to_num(0, 0, 0)).clamp(min=0)
    widths = variances.sqrt()
    shares = widths / widths.sum(1, keepdim=True).clamp(min=TINY)
    effective = torch.special.entr(shares).sum(1).exp()
    participation = variances.sum(1).square() / variances.square().sum(1).clamp(min=TINY)
    return effective, participation.clamp(min=1)


def _reduce(activation: Activation) -> Float64[Tensor, " statistic"] | None:
    values, layout = activation.values, activation.layout
    own = spatial(values, layout)
    if own is None or values.ndim not in (3, 4):
        return None  # a vector has no tokens
    first = values[:, 0] if values.ndim == 3 and layout.has_class_token(values) else None
    return statistics(as_tokens(own, layout), first).sum(0)


def _fold(batch: Pass) -> TokenSums:
    kept = batch.kept()
    if not kept:
        raise Refusal("none of these layers has tokens; choose others (layers), such as 'blocks'")
    totals = torch.stack([own for *_, own in kept])
    batch.refuse_not_finite(totals[:, :2], [f"{str(layer)!r} of {model}" for model, layer, _ in kept])
    places = [[model, str(layer)] for model, layer, _ in kept]
    return TokenSums.of_batch(batch.number, batch.size, totals=totals, places=places)


def _rows(sums: TokenSums) -> pd.DataFrame:
    interval = jackknife(lambda own: own.totals.sum(0) / own.images.sum(), sums)
    table = placed(sums.places)
    for place, name in enumerate((*MEANS, *SHARES)):
        own = interval.of(place)
        own = own.of_share(float(sums.images.sum())) if name in SHARES else own
        table = table.assign(**own.columns(name, f"{name}_low", f"{name}_high"))
    return table
