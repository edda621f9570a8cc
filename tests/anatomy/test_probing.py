"""What is measured of networks that do not tell."""

import networks
import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from vit_analysis.anatomy import describing
from vit_analysis.anatomy.positions import position, positions
from vit_analysis.anatomy.probing import measured
from vit_analysis.layers import Anatomy
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.tokens import Grid


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_tokens_that_no_image_changes_are_counted(count, batch_first):
    module = networks.Own(tokens=count, batch_first=batch_first)
    found = measured(module, describing.of_network(module), (3, 224, 224))  # it takes 32 x 32
    assert (found.prefix, found.class_token, found.tokens, found.spatial) == (
        count,
        None if count else False,
        (4, 4),
        16,
    )
    assert found.grid == Grid(4, 4, 8.0, 8.0)
    assert found.counted


def test_tokens_behind_the_patches_are_not_taken_for_others():
    found = measured(networks.Own(last=2), Anatomy(prefix=1, class_token=True), (3, 32, 32))
    assert (found.prefix, found.class_token, found.grid) == (None, None, None)  # whatever its names tell
    told = Anatomy(prefix=0)
    assert measured(nn.Sequential(nn.Linear(3, 3)), told, (3, 32, 32)) == told


def test_a_network_is_as_it_was_after_it_was_measured():
    module = networks.Own().train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    measured(module, Anatomy(), (3, 32, 32))
    assert all(part.training for part in module.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in state.items())


def reach(module: nn.Module, path: str, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The mean row that each row of positions sees, from gradients through convolutions whose weights are all 1."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.ones_(part.weight)
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_hook(lambda _, args, __: args[0])
        if isinstance(part, nn.ReLU | nn.MaxPool2d):
            part.inplace = False
    pixels = torch.ones(1, 3, size, size, requires_grad=True)
    kept = []
    module.get_submodule(path).register_forward_hook(lambda *args: kept.append(args[2]))
    module(pixels)
    seen = []
    for row in range(kept[0].shape[2]):
        (gradient,) = torch.autograd.grad(kept[0][0, 0, row].sum(), pixels, retain_graph=True)
        weight = gradient[0].abs().sum((0, 2)).double()
        seen.append((weight * torch.arange(size)).sum() / weight.sum())
    return np.array(seen), tuple(kept[0].shape[2:])


@pytest.mark.parametrize(
    ("stem", "size"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 7, 2, 3), nn.AvgPool2d(3, 2, 1), nn.Conv2d(2, 2, 3, 2, 1)), 64),
        (nn.Sequential(nn.Conv2d(3, 2, 4, 4), nn.Conv2d(2, 2, 2, 2)), 67),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 3, 2), nn.Conv2d(2, 2, 3, 1, 2, dilation=2)), 63),
    ],
)
def test_a_position_lies_in_the_middle_of_what_it_sees(stem, size):
    """An independent way: the weight that gradients give to each pixel, of positions that see no edge."""
    seen, shape = reach(stem, str(len(stem) - 1), size)
    grid = position(positions(stem, torch.zeros(1, 3, size, size)), *shape)
    expected = grid.top + (grid.height - 1) / 2 + grid.height * np.arange(shape[0])
    inside = slice(2, shape[0] - 2)
    np.testing.assert_allclose(seen[inside], expected[inside], atol=1e-6)


@pytest.mark.parametrize(("size", "strides"), [(224, 32), (230, 32), (100, 32)])
def test_a_resnets_positions_lie_at_its_strides_whatever_the_size(size, strides):
    found = positions(torchvision.models.resnet18(), torch.zeros(1, 3, size, size))
    last = -(-size // strides)
    grid = found[last, last]
    assert (grid.height, grid.width) == (strides, strides)
    assert grid.top + (grid.height - 1) / 2 == 0  # position i lies at pixel 32 i


def test_merged_patches_hold_whole_ones_and_what_does_not_divide_is_refused():
    swin = timm.create_model("swin_tiny_patch4_window7_224", img_size=56)
    found = positions(swin, torch.zeros(1, 3, 56, 56))
    assert found[14, 14] == Grid(14, 14, 4.0, 4.0)
    assert position(found, 7, 7) == Grid(7, 7, 8.0, 8.0)
    assert position(found, 4, 4) == Grid(4, 4, 16.0, 16.0)  # 7 patches merged two by two, with one of padding
    with pytest.raises(Refusal, match="an input of 56 x 56 px does not divide into 3 x 5 patches"):
        position(found, 3, 5)


def test_padding_as_tensorflow_does_it_is_followed():
    module = timm.create_model("tf_efficientnet_b0", num_classes=0)
    found = positions(module, torch.zeros(1, 3, 64, 64))
    assert {grid.height for grid in found.values()} == {1, 2, 4, 8, 16, 32}
