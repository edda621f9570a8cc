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

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from vit_analysis.spelling import Refusal
from vit_analysis.tensors import similarity

# Nearest neighbours of an image are one in so many of the batch. The measure depends on both numbers, so both are fixed.
NEAR = 16


def ranked(gram: Float64[Tensor, "image image"]) -> Float32[Tensor, " pair"]:
    """Turn a Gram matrix into the ranks of its U-centred entries, with mean 0 and a size that does not depend on the batch's.

    Equal entries have the mean of their ranks, so a constant layer gives zeros.

    Raises:
        Refusal: fewer than 4 images.
    """
    entries = similarity.centred(gram)
    ordered = entries.sort().values
    below, up_to = (torch.searchsorted(ordered, entries, right=right) for right in (False, True))
    ranks = (below + up_to).double() / 2
    return ((ranks - ranks.mean()) / len(entries) ** 1.5).float()


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
    above = torch.triu_indices(n, n, 1, device=gram.device)
    cosines = torch.full_like(gram, -torch.inf)
    cosines[above[0], above[1]] = cosines[above[1], above[0]] = similarity.u_centre(gram)
    chosen = (cosines / norms[:, None] / norms).topk(nearest, dim=1).indices
    found = torch.zeros_like(gram).scatter_(1, chosen, 1.0)
    found = (found - nearest / (n - 1)).fill_diagonal_(0) / (n * nearest) ** 0.5
    return torch.where((norms > 0).all(), found, torch.zeros_like(found)).flatten().float()


def given(
    products: Float64[Tensor, "*selection layer layer"], others: Sequence[int]
) -> Float64[Tensor, "*selection left left"]:
    """Take away what layers share with others: H_ab - H_aZ H_ZZ^-1 H_Zb of all layers a, b that are not among Z.

    Args:
        products: inner products of all layers, summed over batches.
        others: the numbers of the layers in Z; those that are constant over images (0 everywhere) take nothing away.
    """
    left = [place for place in range(products.shape[-1]) if place not in set(others)]
    across, within = products[..., left, :][..., others], products[..., others, :][..., others]
    taken = across @ torch.linalg.pinv(within, hermitian=True) @ across.mT
    return products[..., left, :][..., left] - taken


Measure = Literal["cka", "rank_cka", "mutual_knn"]
MEASURES: Mapping[str, Callable[[Float64[Tensor, "image image"]], Float32[Tensor, " entry"]]] = {
    "cka": similarity.centred,
    "rank_cka": ranked,
    "mutual_knn": neighbours,
}
