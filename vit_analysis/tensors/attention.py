"""How far, how spread and how alike for all queries attention is, from its scores."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

# Scores so far below the largest of their query count as just so far: their weight is e-37, and smaller numbers are slow.
LEAST = -85.0
NOTHING = 1e-30  # a sum of weights that is none: more than all keys have with the least of scores


class Scale(NamedTuple):
    """Where the tokens of an attention lie, and which of them have no place in the image.

    Attributes:
        pixels: distances between those with a place, in pixels of the model's input; of each window where windows differ.
        prefix: number of prefix tokens, which stand before them and are neither queries nor keys.
        windows: into how many windows an image is divided; 1 where each query may attend to the whole image.
        real: which tokens of each window lie in the image, where others pad it; None where all do.
        uniform: the distance of uniform attention to all tokens with a place.
        padding: how many tokens of an image's windows do not lie in the image.
    """

    pixels: Float64[Tensor, "*window query key"]
    prefix: int
    windows: int = 1
    real: Bool[Tensor, "window query"] | None = None
    uniform: float = math.nan
    padding: int = 0

    @property
    def places(self) -> int:
        """The number of an image's tokens that have a place in it."""
        return self.windows * self.pixels.shape[-1] - self.padding

    def to(self, device: torch.device) -> "Scale":
        """The same on another device."""
        real = None if self.real is None else self.real.to(device)
        return self._replace(pixels=self.pixels.to(device), real=real)


class Sums(NamedTuple):
    """What `statistics` is made of: sums over the keys of each query, of weights that are exp(score less the largest).

    Attributes:
        whole: of the weights of all keys.
        share: of the weights of keys with a place.
        surprise: of those times the scores less the largest.
        raw: of the weights times the distances.
        keys: of the weights of each key with a place, over the queries, each query's scaled to sum to 1.
    """

    whole: Float32[Tensor, "*head query"]
    share: Float32[Tensor, "*head query"]
    surprise: Float32[Tensor, "*head query"]
    raw: Float32[Tensor, "*head query"]
    keys: Float32[Tensor, "*head query"]


def add_up(
    scores: Float32[Tensor, "*head query key"],
    memory: Float32[Tensor, "*head query key"],
    scale: Scale,
    pixels: Float32[Tensor, "#window 1 query key"],
    real: Bool[Tensor, "window 1 query key"] | None,
) -> Sums:
    """Add up the weights of some heads, whose scores (in the end) and ``memory`` (for their exponentials) are overwritten.

    The weights are never divided by their sums, nor is their logarithm taken, so that this costs no more than a softmax.

    Args:
        scores: of queries with a place in the image, and all keys.
        memory: as large as the scores.
        scale: the tokens.
        pixels: its distances, 0 for prefix tokens.
        real: which pairs are of two tokens in the image; None if all are.
    """
    first = scale.prefix
    scores -= scores.amax(-1, keepdim=True)
    weights = torch.exp(scores.clamp_(min=LEAST), out=memory)
    if real is None:
        share = weights[..., first:].sum(-1)
        whole = share + weights[..., :first].sum(-1) if first else share
    else:
        whole = weights.sum(-1)
        share = weights.mul_(real)[..., first:].sum(-1)
    keys = (_inverse(share)[..., None, :] @ weights)[..., 0, first:]
    surprise = scores.mul_(weights)[..., first:].sum(-1)
    return Sums(whole, share, surprise, weights.mul_(pixels).sum(-1), keys)


def statistics(sums: Sums, places: int) -> Float64[Tensor, "image head statistic"]:
    """Average over the queries of an image: distance, attention to tokens without a place, unscaled distance, entropy, NMI.

    Of a query only the attention to tokens with a place counts, scaled to sum to 1; a query that attends to none is left out.
    With s the scores less the largest, its entropy is log sum exp(s) - sum s exp(s) / sum exp(s).

    Args:
        sums: image x window x head x query.
        places: the number of an image's tokens with a place.
    """
    here, inverse = sums.share > NOTHING, _inverse(sums.share)
    entropy = torch.where(here, sums.share.log() - sums.surprise * inverse, 0)
    parts = here, sums.raw * inverse, sums.share / sums.whole, sums.raw / sums.whole, entropy
    count, distance, share, raw, own = (part.double().sum((1, -1)) for part in parts)
    keys = sums.keys.double()
    of_keys, own = count.log() - torch.xlogy(keys, keys).sum((1, -1)) / count, own / count
    # What differs from 0 by rounding only is 0; where all queries attend to one key there is nothing to tell.
    size = (count.log() * of_keys.clamp(min=0)).sqrt()
    told = torch.where(size > 0, (of_keys - own).clamp(min=0) / size, size)
    return torch.stack([distance / count, 1 - share / places, raw / places, own.clamp(min=0), told], dim=-1)


def _inverse(share: Tensor) -> Tensor:
    """The inverse of sums of weights; 0 where a query attends to nothing that has a place."""
    return torch.where(share > NOTHING, share.reciprocal(), 0)
