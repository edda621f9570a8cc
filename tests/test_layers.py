from functools import cache

import pytest
import timm
import torch
from torch import nn

from vit_analysis import layers
from vit_analysis.layers import Tap
from vit_analysis.reading.capture import Capture
from vit_analysis.spelling import Refusal


@cache
def small(name: str, **kwargs) -> nn.Module:
    """Without values, which take long and say nothing about places; models of older timm need them while they are made."""
    try:
        with torch.device("meta"):
            return timm.create_model(name, **kwargs).eval()
    except (RuntimeError, NotImplementedError):
        return timm.create_model(name, **kwargs).eval()


def executed(model: nn.Module, taps: list[Tap], size: int) -> list[str]:
    with Capture(model, taps, lambda _, x: len(x)) as run, torch.inference_mode():
        return names(run(torch.empty(1, 3, size, size, device=next(model.parameters()).device)))


def names(places) -> list[str]:
    """Of taps or layers, as they are printed."""
    return [str(place) for place in places]


def chosen(models: dict[str, nn.Module], patterns) -> dict[str, list[str]]:
    return {name: names(taps) for name, taps in layers.choose(models, patterns).items()}


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("blocks.3.attn", Tap("blocks.3.attn")),
        ("blocks.3.norm2:in", Tap("blocks.3.norm2", "in")),
        ("blocks.3.attn:heads", Tap("blocks.3.attn", "heads")),
        (":in", Tap("", "in")),
        ("", Tap("")),
        ("odd:name", Tap("odd:name")),
        ("odd:name:in", Tap("odd:name", "in")),
    ],
)
def test_a_tap_and_its_name_say_the_same(name, tap):
    assert Tap.of(name) == tap
    assert str(tap) == name


def test_a_tap_finds_its_module_or_names_the_nearest_right_ones():
    model = small("vit_tiny_patch16_224", img_size=32, depth=2)
    assert Tap("blocks.1.attn", "heads").module(model) is model.blocks[1].attn
    assert Tap("", "in").module(model) is model
    message = r"no layer 'blocks.1.atn' in VisionTransformer; did you mean 'blocks.1.attn'"
    with pytest.raises(Refusal, match=message):
        Tap("blocks.1.atn", "in").module(model)


def test_every_attention_is_read_at_its_heads_and_a_cnn_has_none():
    model = small("vit_tiny_patch16_224", img_size=32, depth=2)
    assert layers.attentions(model) == {
        unit: Tap(f"{unit}.attn", "heads") for unit in ("blocks.0", "blocks.1")
    }
    assert layers.attentions(small("resnet18")) == {}


def test_a_vit_has_six_layers_per_block_an_entrance_and_an_exit():
    model = small("vit_tiny_patch16_224", img_size=32, depth=3)
    found = layers.paper(model)
    assert found[4] == Tap("blocks.0.norm2", "in")
    taps = names(found)
    block = ["norm1", "attn", "norm2:in", "norm2", "mlp.act"]
    assert taps[2:8] == [*(f"blocks.0.{name}" for name in block), "blocks.0"]
    assert [*taps[:2], taps[-1]] == ["patch_embed", "blocks.0:in", "norm"]
    assert len(taps) == 6 * 3 + 3
    assert executed(model, found, 32) == taps


def test_a_resnet_50_has_seven_layers_per_unit_and_two_per_projection():
    model = small("resnet50")
    taps = layers.paper(model)
    assert len(taps) == 7 * 16 + 2 * 4 + 2
    order = executed(model, taps, 32)
    assert sorted(order) == sorted(names(taps))
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
    assert executed(model, [Tap(unit) for unit in units], size) == units
    paper = layers.paper(model)
    assert set(executed(model, paper, size)) == set(names(paper)) >= set(units)


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
    assert chosen(models, "blocks.*") == {"vit": ["blocks.0", "blocks.1"]}
    assert chosen(models, "blocks.*.attn") == {"vit": ["blocks.0.attn", "blocks.1.attn"]}
    assert chosen(models, "**.fc?") == {"vit": [f"blocks.{b}.mlp.fc{n}" for b in (0, 1) for n in (1, 2)]}
    inputs = chosen(models, ["blocks.1", "blocks.*.norm2:in"])["vit"]
    assert sorted(inputs) == ["blocks.0.norm2:in", "blocks.1", "blocks.1.norm2:in"]


def test_each_pattern_must_match_somewhere_and_each_model_something():
    models = {"vit": small("vit_tiny_patch16_224", depth=2), "cnn": small("resnet18")}
    assert chosen(models, ["blocks.*", "layer1.*"]) == {
        "vit": ["blocks.0", "blocks.1"],
        "cnn": ["layer1.0", "layer1.1"],
    }
    with pytest.raises(Refusal, match=r"no layer of vit, cnn matches 'block.\*'; did you mean 'blocks.\*'"):
        layers.choose(models, "block.*")
    with pytest.raises(Refusal, match=r"no layer of cnn matches 'blocks.\*'; add a pattern that does"):
        layers.choose(models, "blocks.*")
    with pytest.raises(Refusal, match="did you mean 'paper'"):
        layers.choose(models, "papr")


def test_a_model_without_repeated_blocks_says_so():
    with pytest.raises(
        Refusal,
        match="Sequential has no repeated blocks that could be found by structure; name its layers",
    ):
        layers.blocks(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))


def test_convolutional_models_are_told_apart():
    assert layers.is_convolutional(small("resnet18"))
    assert not layers.is_convolutional(small("vit_tiny_patch16_224"))
