import pytest
import timm
import torch
from torch import nn

from vit_analysis import layers
from vit_analysis.reading.capture import capture


def small(name: str, **kwargs) -> nn.Module:
    return timm.create_model(name, **kwargs).eval()


def executed(model: nn.Module, taps: list[str], size: int) -> list[str]:
    with capture(model, taps, lambda _, x: len(x)) as run, torch.inference_mode():
        return list(run(torch.randn(1, 3, size, size)))


def test_a_vit_has_six_layers_per_block_an_entrance_and_an_exit():
    model = small("vit_tiny_patch16_224", img_size=32, depth=3)
    taps = layers.paper(model)
    block = ["norm1", "attn", "norm2:in", "norm2", "mlp.act"]
    assert taps[2:8] == [*(f"blocks.0.{name}" for name in block), "blocks.0"]
    assert [*taps[:2], taps[-1]] == ["patch_embed", "blocks.0:in", "norm"]
    assert len(taps) == 6 * 3 + 3
    assert executed(model, taps, 32) == taps


def test_a_resnet_50_has_seven_layers_per_unit_and_two_per_projection():
    model = small("resnet50")
    taps = layers.paper(model)
    assert len(taps) == 7 * 16 + 2 * 4 + 2
    order = executed(model, taps, 32)
    assert sorted(order) == sorted(taps)
    assert order[:2] == ["conv1", "bn1"]
    unit = ["conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1"]
    assert order[2:11] == [*(f"layer1.0.{name}" for name in unit), "layer1.0"]
    assert layers.blocks(model) == [f"layer{s}.{u}" for s, n in enumerate((3, 4, 6, 3), 1) for u in range(n)]


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("vit_tiny_patch16_224", 12, "blocks.0", "blocks.11"),
        ("deit_tiny_distilled_patch16_224", 12, "blocks.0", "blocks.11"),
        ("vit_small_patch14_reg4_dinov2", 12, "blocks.0", "blocks.11"),
        ("swin_tiny_patch4_window7_224", 12, "layers.0.blocks.0", "layers.3.blocks.1"),
        ("convnext_atto", 12, "stages.0.blocks.0", "stages.3.blocks.1"),
        ("mixer_s32_224", 8, "blocks.0", "blocks.7"),
        ("efficientnet_b0", 16, "blocks.0.0", "blocks.6.0"),
        ("resnetv2_50", 16, "stages.0.blocks.0", "stages.3.blocks.2"),
    ],
)
def test_blocks_are_found_by_structure(name, count, first, last):
    model = small(name)
    units = layers.blocks(model)
    assert (len(units), units[0], units[-1]) == (count, first, last)
    size = model.pretrained_cfg["input_size"][1] if "patch" in name or "mixer" in name else 64
    assert executed(model, units, size) == units
    assert set(executed(model, layers.paper(model), size)) == set(layers.paper(model)) >= set(units)


@pytest.mark.parametrize(
    ("name", "prefix", "spatial", "class_token"),
    [
        ("vit_tiny_patch16_224", 1, 196, True),
        ("deit_tiny_distilled_patch16_224", 2, 196, True),
        ("vit_small_patch14_reg4_dinov2", 5, 1369, True),
        ("vit_base_patch16_siglip_gap_224", 0, 196, False),
        ("resnet18", 0, None, False),
    ],
)
def test_prefix_tokens_are_read_from_the_model(name, prefix, spatial, class_token):
    layout = layers.layout(small(name))
    assert (layout.prefix, layout.spatial, layout.class_token) == (prefix, spatial, class_token)


def test_swin_keeps_its_channels_last():
    assert layers.layout(small("swin_tiny_patch4_window7_224")).channels_last
    assert not layers.layout(small("resnet18")).channels_last


def test_a_star_stays_within_a_component_and_two_stars_cross_them():
    models = {"vit": small("vit_tiny_patch16_224", depth=2)}
    assert layers.choose(models, "blocks.*") == {"vit": ["blocks.0", "blocks.1"]}
    assert layers.choose(models, "blocks.*.attn") == {"vit": ["blocks.0.attn", "blocks.1.attn"]}
    assert layers.choose(models, "**.fc?") == {
        "vit": [f"blocks.{b}.mlp.fc{n}" for b in (0, 1) for n in (1, 2)]
    }
    inputs = layers.choose(models, ["blocks.1", "blocks.*.norm2:in"])["vit"]
    assert sorted(inputs) == ["blocks.0.norm2:in", "blocks.1", "blocks.1.norm2:in"]


def test_each_pattern_must_match_somewhere_and_each_model_something():
    models = {"vit": small("vit_tiny_patch16_224", depth=2), "cnn": small("resnet18")}
    chosen = layers.choose(models, ["blocks.*", "layer1.*"])
    assert chosen == {"vit": ["blocks.0", "blocks.1"], "cnn": ["layer1.0", "layer1.1"]}
    with pytest.raises(ValueError, match=r"no layer of vit, cnn matches 'block.\*'; did you mean 'blocks.1'"):
        layers.choose(models, "block.*")
    with pytest.raises(ValueError, match=r"no layer of cnn matches 'blocks.\*'; add a pattern that does"):
        layers.choose(models, "blocks.*")
    with pytest.raises(ValueError, match="did you mean 'paper'"):
        layers.choose(models, "papr")


def test_a_model_without_repeated_blocks_says_so():
    with pytest.raises(
        ValueError,
        match="Sequential has no repeated blocks that could be found by structure; name its layers",
    ):
        layers.blocks(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_convolutional_models_are_told_apart():
    assert layers.is_convolutional(small("resnet18"))
    assert not layers.is_convolutional(small("vit_tiny_patch16_224"))
