"""Gradients of features with respect to the images of a batch, in no more backward passes than they need.

A residual stream is what it was before plus what a branch adds, and so is its gradient: of stream, branch and their sum only
two cost backward passes. Where a ReLU follows the addition, the gradient of the sum goes on where the sum is above 0. Whether
layers are such sums is not taken from their names: their values and a gradient of them show it (`learning`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vit_analysis.reading.capture import Layer

# Of one feature, both ways: the two sum up in another order, so they differ by rounding alone.
ROUNDING = 1e-4

Features = Mapping[Layer, Float[Tensor, "image channel"]]
Choice = Int[Tensor, " image"]
"""One channel for each image."""


class Sum(NamedTuple):
    """A layer that is the sum of two others, which run before it."""

    stream: Layer
    long: Layer
    relu: bool
    """Whether a ReLU follows the addition."""


def gradient(
    pixels: Tensor, values: Float[Tensor, "image channel"], channel: Choice
) -> Float[Tensor, "image colour row col"]:
    """Return the gradient of one channel of each image; zeros where the values do not depend on the images."""
    if not values.requires_grad:
        return torch.zeros_like(pixels)
    one = torch.zeros_like(values).scatter_(1, channel[:, None], 1)
    # No image depends on another, so the gradient of the sum over images holds that of each.
    (found,) = torch.autograd.grad(values, pixels, one, retain_graph=True, materialize_grads=True)
    return found


def positive_gradient(
    pixels: Tensor, values: Float[Tensor, "image channel"]
) -> Float[Tensor, "image row col"] | None:
    """Return the positive part of the gradient of the sum of all positive features, summed over colours; None for no gradient.

    These are the contribution scores of Ding et al. (2022), as their released script computes them.
    """
    if not values.requires_grad:
        return None
    (found,) = torch.autograd.grad(values.relu().sum(), pixels, retain_graph=True, allow_unused=True)
    return None if found is None else found.relu().sum(1)


def along(
    pixels: Tensor, features: Features, chain: Sequence[Layer], known: Mapping[Layer, Sum], channel: Choice
) -> Iterator[tuple[Layer, Float[Tensor, "image colour row col"]]]:
    """Yield the gradient of one channel of each image for one layer of a chain after the other, sums from their two parts."""
    stream = long = None
    for layer in chain:
        own = known.get(layer)
        if own is None:
            long = gradient(pixels, features[layer], channel)
            stream = long if stream is None else stream
            yield layer, long
        else:
            assert stream is not None
            assert long is not None
            stream = _added(stream, long, own, features[layer], channel)
            yield layer, stream


def chains(layers: Sequence[Layer], known: Mapping[Layer, Sum]) -> list[list[Layer]]:
    """Put layers into chains: one that is no sum, then branches, each followed by the sum of it and of the sum before."""
    used = {own.long for own in known.values()}
    found: dict[Layer, list[Layer]] = {}
    for layer in layers:
        if layer in known:
            own = known[layer]
            found[layer] = found.pop(own.stream)
            found[layer] += [own.long, layer]
        elif layer not in used:
            found[layer] = [layer]
    return list(found.values())


def learning(
    pixels: Tensor,
    features: Features,
    branches: Mapping[Layer, str],
    channels: Mapping[Layer, Choice],
    known: dict[Layer, Sum],
) -> Iterator[tuple[Layer, Float[Tensor, "image colour row col"]]]:
    """Yield the gradient of a channel of each layer from a backward pass of its own, and put into ``known`` what are sums.

    Args:
        pixels: the images.
        features: of each layer, in order of execution.
        branches: ``residual`` or ``long``, of the layers of the stream; other layers are no sums.
        channels: a channel of each layer for each image.
        known: the sums that are found, by their values and these gradients.
    """
    before: list[tuple[Layer, Tensor]] = []  # the stream, and the branch since
    for layer, values in features.items():
        here = layer, gradient(pixels, values, channels[layer])
        yield here
        if branches.get(layer) == "long":
            before = [*before[:1], here]
        elif branches.get(layer) == "residual":
            if len(before) == 2 and (own := _sum(features, (*before, here), channels[layer])):
                known[layer] = own
            before = [here]


def _sum(features: Features, three: Sequence[tuple[Layer, Tensor]], channel: Choice) -> Sum | None:
    """Return the sum that the third of three layers with their gradients is; None if it is none."""
    (stream, before), (long, added), (whole, direct) = three
    if not features[stream].shape == features[long].shape == features[whole].shape:
        return None
    total = features[stream] + features[long]
    plain, cut = torch.equal(total, features[whole]), torch.equal(total.relu(), features[whole])
    if plain == cut:  # neither, or nothing in them tells which
        return None
    own = Sum(stream, long, relu=cut)
    far = (_added(before, added, own, features[whole], channel) - direct).abs().max()
    return own if far <= ROUNDING * direct.abs().max() else None


def _added(
    stream: Tensor, long: Tensor, own: Sum, whole: Float[Tensor, "image channel"], channel: Choice
) -> Float[Tensor, "image colour row col"]:
    """Return the gradient of a sum from those of its parts."""
    total = stream + long
    if own.relu:
        total *= (whole.detach().gather(1, channel[:, None]) > 0)[..., None, None]
    return total
