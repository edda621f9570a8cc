"""Gradients of layers against one backward pass for each image, and which layers are sums of others."""

import pytest
import torch
from torch import Tensor

from vit_analysis.layers import Tap
from vit_analysis.reading import gradients
from vit_analysis.reading.capture import Layer
from vit_analysis.reading.gradients import Sum, along, chains, gradient, learning, positive_gradient

IMAGES, CHANNELS = 3, 4


def pixels() -> Tensor:
    return torch.randn(IMAGES, 2, 3, 5, requires_grad=True)


def feature(x: Tensor, seed: int, width: int = CHANNELS) -> Tensor:
    """Some function of each image by itself."""
    weight = torch.randn(x[0].numel(), width, generator=torch.Generator().manual_seed(seed))
    return (x.flatten(1) @ weight + x.flatten(1).square() @ weight.flip(0)) / 3


def one_by_one(x: Tensor, values: Tensor, channel: Tensor) -> Tensor:
    """The gradient of each image's channel, from a backward pass of its own."""
    rows = []
    for image, own in enumerate(channel.tolist()):
        (found,) = torch.autograd.grad(values[image, own], x, retain_graph=True)
        assert not torch.cat([found[:image], found[image + 1 :]]).any()
        rows.append(found[image])
    return torch.stack(rows)


def constants(x: Tensor) -> dict[str, Tensor]:
    """Features that do not depend on the images, one of which has another gradient."""
    weight = torch.ones(IMAGES, CHANNELS, requires_grad=True)
    return {
        "nothing": torch.ones(IMAGES, CHANNELS),
        "a weight": 2 * weight,
        "of no image": x.detach().mean() * weight,
    }


def test_the_gradient_is_of_one_channel_of_each_image_and_can_be_taken_again():
    x, channel = pixels(), torch.tensor([2, 0, 3])
    values = feature(x, 1)
    for _ in range(2):
        torch.testing.assert_close(gradient(x, values, channel), one_by_one(x, values, channel))
    for name, own in constants(x).items():
        assert torch.equal(gradient(x, own, channel), torch.zeros_like(x)), name


def test_the_positive_gradient_is_of_all_positive_features_and_summed_over_colours():
    x = pixels()
    values = feature(x, 1)
    expected = torch.zeros(IMAGES, 3, 5)
    for image in range(IMAGES):
        whole = torch.zeros_like(x[0])
        for channel in range(CHANNELS):
            if values[image, channel] > 0:
                whole += torch.autograd.grad(values[image, channel], x, retain_graph=True)[0][image]
        for colour in range(2):
            expected[image] += torch.where(whole[colour] > 0, whole[colour], 0)
    assert (values > 0).any()
    assert (values < 0).any()
    for _ in range(2):
        found = positive_gradient(x, values)
        assert found is not None
        torch.testing.assert_close(found, expected)
    for name, own in constants(x).items():
        assert positive_gradient(x, own) is None, name


def named(*names: str) -> list[Layer]:
    return [Layer(Tap(name)) for name in names]


STEM, LONG, ADDED, OTHER_LONG, LATER_LONG, CUT, ALONE, LAST_LONG, SCALED, AWAY = named(
    *("stem", "long", "added", "other long", "later long", "cut", "alone", "last long", "scaled", "away")
)
BRANCHES = {
    **dict.fromkeys((STEM, ADDED, CUT, ALONE, SCALED), "residual"),
    **dict.fromkeys((LONG, OTHER_LONG, LATER_LONG, LAST_LONG), "long"),
}
SUMS = {ADDED: Sum(STEM, LONG, relu=False), CUT: Sum(ADDED, LATER_LONG, relu=True)}


def stream(x: Tensor) -> dict[Layer, Tensor]:
    """A stream in which two layers are sums, one of them behind a ReLU, and three are not."""
    found = {STEM: feature(x, 0), LONG: feature(x, 1)}
    found[ADDED] = found[STEM] + found[LONG]
    found |= {OTHER_LONG: feature(x, 2), LATER_LONG: feature(x, 3)}  # of two branches the later is added
    found[CUT] = (found[ADDED] + found[LATER_LONG]).relu()
    found |= {ALONE: feature(x, 4), LAST_LONG: feature(x, 5)}  # no branch is before one, and none is added to
    found[SCALED] = 2 * found[ALONE] + found[LAST_LONG]
    return found | {AWAY: feature(x, 6, 7)}


def choices(features: dict[Layer, Tensor]) -> dict[Layer, Tensor]:
    """Channels that are other ones for each image and layer; those of sums are the same as those of their parts."""
    own = {layer: torch.arange(IMAGES) * (number + 2) % CHANNELS for number, layer in enumerate(features)}
    for whole in (ADDED, CUT):
        own[whole] = own[SUMS[whole].long] = own[STEM]
    return own


def test_sums_are_found_by_their_values_and_gradients_and_nothing_else_is_one():
    x, known = pixels(), {}
    features = stream(x)
    channels = choices(features)
    for layer, found in learning(x, features, BRANCHES, channels, known):
        torch.testing.assert_close(found, one_by_one(x, features[layer], channels[layer]))
    assert known == SUMS


@pytest.mark.parametrize("seed", range(3))
def test_along_a_chain_gradients_of_sums_are_those_of_backward_passes_without_any(seed, monkeypatch):
    torch.manual_seed(seed)
    x = pixels()
    features = stream(x)
    passes, true = [], gradients.gradient
    monkeypatch.setattr(gradients, "gradient", lambda *given: passes.append(1) or true(*given))
    channel = torch.tensor([seed, 1, 3 - seed])
    found = {}
    for chain in chains(list(features), SUMS):
        found |= along(x, features, chain, SUMS, channel)
    assert found.keys() == features.keys()
    assert len(passes) == len(features) - len(SUMS)
    for layer, own in found.items():
        torch.testing.assert_close(own, one_by_one(x, features[layer], channel), msg=str(layer))
    cut = features[CUT].gather(1, channel[:, None]) == 0
    assert not found[CUT][cut[:, 0]].any()  # a ReLU lets nothing through


def test_a_chain_begins_where_no_sum_is_and_goes_on_with_a_branch_and_its_sum():
    assert chains([STEM, LONG, ADDED, OTHER_LONG, LATER_LONG, CUT, ALONE], SUMS) == [
        [OTHER_LONG],
        [STEM, LONG, ADDED, LATER_LONG, CUT],
        [ALONE],
    ]


def test_where_nothing_is_below_zero_or_the_shapes_differ_no_sum_is_known():
    """Nothing tells whether a ReLU follows; and what is of other channels is added in a way that values do not show."""
    x = pixels()
    positive = {STEM: feature(x, 0).exp(), LONG: feature(x, 1).exp()}
    wider = {STEM: feature(x, 0), LONG: feature(x, 1, 1)}
    for own in (positive, wider):
        features, known = own | {ADDED: own[STEM] + own[LONG]}, {}
        channels = dict.fromkeys(features, torch.zeros(IMAGES, dtype=torch.int64))
        assert len(list(learning(x, features, BRANCHES, channels, known))) == 3
        assert known == {}


def test_a_sum_is_one_however_unequal_its_parts_are():
    """Rounding of a gradient is relative to the largest of its pixels, of which others have none."""
    x, known = pixels(), {}
    near = torch.zeros(1, 1, 3, 5)
    near[..., 1, 2] = 1e4
    features = {STEM: feature(x * near, 0), LONG: 1e-3 * feature(x * near, 1)}
    features[ADDED] = features[STEM] + features[LONG]
    channels = dict.fromkeys(features, torch.zeros(IMAGES, dtype=torch.int64))
    assert len(list(learning(x, features, BRANCHES, channels, known))) == 3
    assert known == {ADDED: Sum(STEM, LONG, relu=False)}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(("way", "is_sum"), [("whole", True), ("detached", False), ("of one image", False)])
def test_what_has_the_values_of_a_sum_is_one_only_if_all_gradients_say_so(scale, sign, way, is_sum):
    """All gradients are of one sign; of one image alone, or of all, the branch does not lead to its pixels."""
    x, known = pixels(), {}
    stem = sign * scale * (3 * x).mean((2, 3)).repeat(1, 2)
    long = sign * scale * x.exp().mean((2, 3)).repeat(1, 2)
    cut = {
        "whole": long,
        "detached": long.detach(),
        "of one image": torch.cat([long[:1].detach(), long[1:]]),
    }[way]
    features = {STEM: stem, LONG: long, ADDED: stem - scale + cut}
    features[STEM] = features[STEM] - scale  # some are negative, or nothing tells whether a ReLU follows
    channels = dict.fromkeys(features, torch.zeros(IMAGES, dtype=torch.int64))
    assert (features[ADDED] < 0).any()
    assert torch.equal(features[STEM] + features[LONG], features[ADDED])
    assert len(list(learning(x, features, BRANCHES, channels, known))) == 3
    assert (ADDED in known) == is_sum
