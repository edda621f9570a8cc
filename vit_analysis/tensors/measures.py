"""Measures of similarity beside CKA, from the same Gram matrix of a batch: a vector per layer, all pairs one product.

Every measure here turns a Gram matrix K into a vector v, such that v @ w of two layers, summed over batches and divided by the
root of v @ v and w @ w, is their similarity: 0 on average for independent features, 1 for the same layer.

    cka         U-centred entries (`similarity.centred`): linear CKA, unbiased
    rank_cka    their ranks: no few images or directions can make it up (Davari et al. 2023 move plain CKA so)
    mutual_knn  which images are each image's nearest neighbours, less chance: local structure, where CKA sees the global one
                (Huh et al. 2024; Groeger, Wen and Brbic 2026 find that agreement among networks is mostly of this kind)

`given` takes away what layers share with others, such as the pixels of the images: the partial correlation of U-centred Gram
matrices (Szekely and Rizzo 2014; "deconfounded" in Cui et al. 2022).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from vit_analysis.spelling import Refusal
from vit_analysis.tensors import similarity

# Nearest neighbours of an image are one in so many of the batch. The measure depends on both numbers, so their ratio is.
NEAR = 16
# Of a layer's variation, what is less than this share after taking others away is rounding.
LEAST = 1e-10


def ranked(gram: Float64[Tensor, "image image"]) -> Float32[Tensor, " pair"]:
    """Turn a Gram matrix into the ranks of its U-centred entries, with mean 0 and a size that does not depend on the batch's.

    Equal entries have the mean of their ranks, so a constant layer gives zeros.

    Raises:
        Refusal: fewer than 4 images.
    """
    entries = similarity.centred(gram)
    order = _order(entries)
    ordered = entries[order]
    place = torch.arange(len(ordered), device=gram.device)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(new, place, 0).cummax(0).values
    last = torch.where(new.roll(-1), place, len(place)).flip(0).cummin(0).values.flip(0)
    middle = (first + last - len(place) + 1).double() / 2
    return _finite(gram, torch.empty_like(ordered).scatter_(0, order, (middle / len(place) ** 1.5).float()))


def _finite(
    gram: Float64[Tensor, "image image"], vector: Float32[Tensor, " entry"]
) -> Float32[Tensor, " entry"]:
    """The vector, or NaN where the Gram matrix is not finite: order would hide it."""
    return torch.where(gram.isfinite().all(), vector, torch.nan)


def _order(entries: Float32[Tensor, " pair"]) -> Int64[Tensor, " pair"]:
    """The order in which entries ascend; numpy's sorting is several times faster than torch's on a CPU."""
    return entries.argsort() if entries.is_cuda else torch.from_numpy(np.argsort(entries.numpy()))


def neighbours(gram: Float64[Tensor, "image image"]) -> Float32[Tensor, " entry"]:
    """Turn a Gram matrix into which images are the nearest neighbours of each, less the share that chance gives.

    Near is the cosine of features less their mean over the batch, with U-centred inner products. (Plain ones hold the squared
    norm of the batch's mean, which is the same for all pairs: it makes neighbours of all images that are small, in any layer
    in which the same images are small.) A constant layer gives zeros.

    Raises:
        Refusal: too few images for one neighbour in `NEAR`.
    """
    n = len(gram)
    nearest = n // NEAR
    if nearest < 1:
        raise Refusal(f"mutual nearest neighbours need at least {NEAR} images in a batch, got {n}")
    means = gram.mean(0)
    norms = (gram.diagonal() - 2 * means + means.mean()).clamp(min=0).sqrt()
    offsets = similarity.u_means(gram)
    cosines = (gram - offsets - offsets[:, None]) / norms / norms[:, None]
    chosen = cosines.fill_diagonal_(-torch.inf).topk(nearest, dim=1).indices
    found = torch.zeros_like(gram).scatter_(1, chosen, 1.0)
    found = (found - nearest / (n - 1)).fill_diagonal_(0) / (n * nearest) ** 0.5
    varies = (norms > 0).all()
    return _finite(gram, torch.where(varies, found, torch.zeros_like(found)).flatten().float())


def given(
    products: Float64[Tensor, "*selection layer layer"], others: Sequence[int]
) -> Float64[Tensor, "*selection left left"]:
    """Take away what layers share with others: H_ab - H_aZ H_ZZ^-1 H_Zb of all layers a, b that are not among Z.

    A layer of which nothing but rounding is left gives zeros.

    Args:
        products: inner products of all layers, summed over batches.
        others: the numbers of the layers in Z; those that are constant over images (0 everywhere) take nothing away.
    """
    left = [place for place in range(products.shape[-1]) if place not in set(others)]
    own = products[..., left, :][..., left]
    sizes = products.diagonal(dim1=-2, dim2=-1)[..., others].clamp(min=0).sqrt()
    scale = torch.where(sizes > 0, 1 / sizes, 0.0)  # so that a layer in small units is not taken for rounding
    across = products[..., left, :][..., others] * scale[..., None, :]
    within = products[..., others, :][..., others] * scale[..., None, :] * scale[..., :, None]
    rest = own - across @ torch.linalg.pinv(within, hermitian=True) @ across.mT
    whole, kept = own.diagonal(dim1=-2, dim2=-1), rest.diagonal(dim1=-2, dim2=-1)
    there = (kept > LEAST * whole).to(rest.dtype)
    return rest * there[..., None, :] * there[..., :, None]


Measure = Literal["cka", "rank_cka", "mutual_knn"]
MEASURES: Mapping[str, Callable[[Float64[Tensor, "image image"]], Float32[Tensor, " entry"]]] = {
    "cka": similarity.centred,
    "rank_cka": ranked,
    "mutual_knn": neighbours,
}
