"""Roles and places of known codebases, found without running them."""

import networks
import pytest
import timm
import torch
import torchvision
from torch import nn

from vit_analysis import layers
from vit_analysis.anatomy import cutting, describing, find
from vit_analysis.anatomy.probing import measured
from vit_analysis.layers import Anatomy, Tap
from vit_analysis.spelling import Refusal
from vit_analysis.tensors import tokens
from vit_analysis.tensors.tokens import Grid


def dino(**config):
    return networks.transformers_vit("dinov2_with_registers", num_register_tokens=4, **config)


KINDS = {
    "timm": (networks.timm_vit, 1, True),
    "torchvision": (networks.torchvision_vit, 1, True),
    "vit": (networks.transformers_vit, 1, True),
    "deit": (lambda: networks.transformers_vit("deit"), 2, True),
    "dinov2": (lambda: networks.transformers_vit("dinov2"), 1, True),
    "dinov2 with registers": (dino, 5, True),
    "clip": (lambda: networks.transformers_vit("clip_vision_model"), 1, True),
    "siglip": (lambda: networks.transformers_vit("siglip_vision_model"), 0, False),
    "i-jepa": (lambda: networks.transformers_vit("ijepa"), 0, False),
    "timm, registers": (lambda: networks.timm_vit(reg_tokens=4), 5, True),
    "timm, average": (lambda: networks.timm_vit(class_token=False, global_pool="avg"), 0, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_codebase_tells_its_tokens_and_a_run_of_it_says_the_same(kind):
    make, prefix, class_token = KINDS[kind]
    module = make()
    layout = layers.layout(module)
    assert (layout.prefix, layout.class_token, layout.grid) == (prefix, class_token, (4, 4))
    assert layers.grid(module) == Grid(4, 4, 8.0, 8.0)
    seen = measured(module, describing.of_network(module), (3, 32, 32))
    assert (seen.prefix, seen.tokens, seen.grid) == (prefix, (4, 4), layers.grid(module))
    activation = torch.randn(2, 16 + prefix, networks.WIDTH)
    assert torch.equal(tokens.spatial(activation, layout), activation[:, prefix:])


@pytest.mark.parametrize("kind", KINDS)
def test_every_codebase_has_six_layers_per_block_two_branches_and_heads(kind):
    module = KINDS[kind][0]()
    units = layers.blocks(module)
    assert len(units) == 2
    inside = [
        tap for tap in layers.paper(module) if tap.path.startswith(f"{units[1]}.") or tap == Tap(units[1])
    ]
    assert len(inside) == 6
    assert sum(tap.at == "in" for tap in inside) == 1
    assert [branch.sublayer for branch in layers.branches(module)] == ["attention", "mlp"] * 2
    assert list(layers.attentions(module)) == units
    assert [step.name for step in layers.sublayers(module)] == [
        "attention 1",
        "MLP 1",
        "attention 2",
        "MLP 2",
    ]


def test_a_vit_of_torchvision_keeps_its_patches_only():
    module = torchvision.models.VisionTransformer(224, 16, 2, 3, 48, 96)
    assert tokens.spatial(torch.randn(2, 197, 48), layers.layout(module)).shape == (2, 196, 48)


def test_a_network_inside_another_module_keeps_its_anatomy_below_its_path():
    class Tuned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.head = networks.timm_vit(), nn.Linear(10, 3)

    module, plain = Tuned(), networks.timm_vit()
    assert [f"net.{tap}" for tap in layers.paper(plain)] == [str(tap) for tap in layers.paper(module)]
    assert layers.layout(module) == layers.layout(plain)
    assert layers.grid(module) == layers.grid(plain)
    two = nn.ModuleList([networks.timm_vit(), networks.timm_vit()])
    assert find.inner(two) == ("", two)  # which of them is meant is not known


@pytest.mark.parametrize(
    ("names", "prefix", "class_token"),
    [
        ({"cls_token": (1, 1, 8), "register_tokens": (1, 4, 8), "pos_embed": (1, 21, 8)}, 5, True),
        ({"class_embedding": (8,), "positional_embedding": (17, 8)}, 1, True),
        ({"reg_token": (1, 3, 8)}, 3, False),
        ({"cls_token": (1, 1, 8), "mask_token": (1, 8)}, 1, True),
        ({"pos_embed": (1, 16, 8)}, 0, False),
        ({"prompts": (1, 10, 8)}, None, None),
        ({"cls_token": (1, 1, 8), "latents": (16, 8)}, None, None),
    ],
)
def test_tokens_are_counted_where_parameters_tell_and_not_known_elsewhere(names, prefix, class_token):
    module = nn.Module()
    module.fc = nn.Linear(8, 8)
    for name, shape in names.items():
        setattr(module, name, nn.Parameter(torch.zeros(shape)))
    layout = layers.layout(module)
    assert (layout.prefix, layout.class_token) == (prefix, class_token)
    activation = torch.zeros(2, 30, 8)
    if prefix is None:
        for choice in ("spatial", "cls"):
            with pytest.raises(
                Refusal, match=r"of these 30 tokens .* is not known; say it: models.own\(module"
            ):
                tokens.SELECTIONS[choice](activation, layout)
    else:
        assert tokens.spatial(activation, layout).shape[1] == 30 - prefix
        assert (tokens.class_token(activation, layout) is not None) == class_token


def test_what_is_told_goes_before_what_is_found():
    found = layers.known(networks.timm_vit())[1]
    assert found.with_told(Anatomy()) == found
    told = found.with_told(Anatomy(prefix=3, reads="mean"))
    assert (told.prefix, told.reads, told.grid) == (3, "mean", found.grid)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "size", "grid"),
    [
        (16, 16, 0, 224, Grid(14, 14, 16.0, 16.0)),
        (16, 16, 0, 230, Grid(14, 14, 16.0, 16.0)),
        (7, 4, 3, 32, Grid(8, 8, 4.0, 4.0, -1.5, -1.5)),
        (16, 12, 2, 224, Grid(18, 18, 12.0, 12.0, 0.0, 0.0)),
    ],
)
def test_patches_are_cut_as_the_convolution_cuts_them(kernel, stride, padding, size, grid):
    patches = nn.Conv2d(1, 1, kernel, stride, padding)
    assert cutting.cut(patches, (size, size)) == grid
    assert patches(torch.zeros(1, 1, size, size)).shape[2:] == (grid.rows, grid.columns)


def test_patches_that_do_not_divide_the_image_have_their_own_distance():
    module = timm.create_model("vit_tiny_patch16_224", img_size=230, depth=1)
    assert layers.grid(module).distances().mean().item() == pytest.approx(116.4922, abs=1e-3)
