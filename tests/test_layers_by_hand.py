"""Everything that `layers` tells of a network, for networks of several kinds, against what a hand finds in them."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import pytest
import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from vit_analysis import layers
from vit_analysis.lab.vit import ViT
from vit_analysis.layers import Anatomy, Grid
from vit_analysis.spelling import Refusal


@cache
def small(name: str, **config: Any) -> nn.Module:
    return timm.create_model(name, **config).eval()


@cache
def resnet(unit: type[nn.Module], counts: tuple[int, ...], widths: tuple[int, ...]) -> nn.Module:
    return ResNet(unit, counts, channels=widths).eval()


def names(places: Iterable[Any]) -> list[str]:
    """Of taps, as they are printed."""
    return [str(place) for place in places]


def of_vit(depth: int, ends: tuple[str, str], *, without: int | None = None) -> dict[str, Any]:
    """A Vision Transformer of so many blocks, whose branches end in these parts."""
    units = [f"blocks.{number}" for number in range(depth)]
    kept = [unit for unit in units if unit != f"blocks.{without}"]
    return {
        "blocks": units,
        "last": units[-1:],
        "penultimate": units[-2:-1],
        "last_block": units[-1:],
        "attentions": {unit: f"{unit}.attn:heads" for unit in units},
        "partitions": {},
        "without_skips": [unit for unit in units if unit not in kept],
        "branches": [
            branch
            for unit in kept
            for branch in (
                (unit, "attention", f"{unit}:in", f"{unit}.{ends[0]}", f"{unit}.norm2:in", None),
                (unit, "mlp", f"{unit}.norm2:in", f"{unit}.{ends[1]}", unit, None),
            )
        ],
        "steps": [
            step
            for number, unit in enumerate(units, 1)
            for step in (
                (f"attention {number}", f"{unit}.norm2:in", f"{unit}.attn", unit in kept, unit in kept),
                (f"MLP {number}", unit, f"{unit}.mlp", unit in kept, False),
            )
        ],
        "is_convolutional": False,
    }


def of_resnet(counts: tuple[int, ...], end: int, projected: tuple[int, ...]) -> dict[str, Any]:
    """A ResNet of so many units by stage, each of so many convolutions; these stages begin with a projection."""
    units = [f"layer{stage}.{unit}" for stage, count in enumerate(counts, 1) for unit in range(count)]
    shortcuts = {f"layer{stage}.0": f"layer{stage}.0.downsample" for stage in projected}
    return {
        "blocks": units,
        "last": units[-1:],
        "penultimate": units[-2:-1],
        "last_block": units[-1:],
        "attentions": {},
        "partitions": {},
        "without_skips": [],
        "lower_units": [f"layer1.{unit}" for unit in range(min(3, counts[0]))] + ["layer2.0", "layer2.1"],
        "branches": [
            (unit, "unit", shortcuts.get(unit, f"{unit}:in"), f"{unit}.bn{end}", unit, f"{unit}.act{end}")
            for unit in units
        ],
        "steps": [
            ("initial conv", "conv1", None, False, False),
            *(
                (f"unit {number}", unit, f"{unit}.bn{end}", True, False)
                for number, unit in enumerate(units, 1)
            ),
        ],
        "prefix": 0,
        "grid": Refused("has no fixed grid of patches"),
        "representation": "mean",
        "is_convolutional": True,
    }


def of_lab() -> nn.Module:
    with torch.device("meta"):
        return ViT(img_size=16, patch_size=8, num_classes=3, embed_dim=8, depth=3, num_heads=2, no_skip=1)


def of_swin() -> nn.Module:
    return small("swin_tiny_patch4_window7_224", depths=(1, 1), num_heads=(2, 2), embed_dim=24)


class Told(NamedTuple):
    """A module with what is known of it beside it."""

    module: nn.Module
    anatomy: Anatomy


def of_own(anatomy: Anatomy) -> Told:
    return Told(nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 4, 4), end=nn.Linear(4, 4))), anatomy)


class Refused(str):
    """What is said where it is not known."""


TWO = {"layers.0.blocks.0": "layers.0.blocks.0.attn", "layers.1.blocks.0": "layers.1.blocks.0.attn"}
FOUND: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "Vision Transformer": (
        lambda: small("vit_tiny_patch16_224", img_size=(32, 48), depth=3, reg_tokens=1),
        of_vit(3, ("drop_path1", "drop_path2"))
        | {
            "prefix": 2,
            "grid": Grid(2, 3, 16.0, 16.0),
            "tokens": (6, 2, True, (2, 3)),
            "representation": "cls",
        },
    ),
    "without the skip connections of a block": (
        of_lab,
        of_vit(3, ("attn", "mlp"), without=1)
        | {
            "prefix": 1,
            "grid": Grid(2, 2, 8.0, 8.0),
            "tokens": (4, 1, True, (2, 2)),
            "representation": "cls",
        },
    ),
    "ResNet of two convolutions": (
        lambda: resnet(BasicBlock, (2, 3, 1, 1), (64, 8, 8, 8)),
        of_resnet((2, 3, 1, 1), 2, (2, 3, 4)),
    ),
    "ResNet of three": (
        lambda: resnet(Bottleneck, (4, 3, 1, 1), (8, 8, 8, 8)),
        of_resnet((4, 3, 1, 1), 3, (1, 2, 3, 4)),
    ),
    "windows": (
        of_swin,
        {
            "partitions": {unit: (f"{unit}.norm1", windowed) for unit, windowed in TWO.items()},
            "attentions": {unit: f"{windowed}:heads" for unit, windowed in TWO.items()},
            "prefix": 0,
            "representation": "mean",
        },
    ),
    "nothing is known": (
        lambda: of_own(Anatomy()),
        {
            "prefix": Refused("how many tokens of Sequential stand before"),
            "grid": Refused("has no fixed grid of patches"),
            "representation": Refused("what the head of Sequential reads is not known"),
            "branches": Refused("no repeated blocks"),
            "last_block": [],
            "tokens": (None, None, None, None),
        },
    ),
    "one unit": (
        lambda: of_own(Anatomy(blocks=("end",), entrances=("conv1",))),
        {
            "last": ["end"],
            "penultimate": Refused("m has a single block, so there is none before its last; choose 'last'"),
            "last_block": ["end"],
            "lower_units": ["end"],
            "steps": [("initial conv", "conv1", None, False, False), ("unit 1", "end", None, False, False)],
        },
    ),
    "all is said": (
        lambda: of_own(
            Anatomy(
                blocks=("conv1", "end"),
                prefix=3,
                class_token=False,
                grid=Grid(3, 5, 2.0, 1.0),
                reads="mean_spatial",
            )
        ),
        {
            "blocks": ["conv1", "end"],
            "last": ["end"],
            "penultimate": ["conv1"],
            "prefix": 3,
            "grid": Grid(3, 5, 2.0, 1.0),
            "tokens": (15, 3, False, (3, 5)),
            "representation": "mean_spatial",
            "branches": Refused("the skip connections of Sequential are not known"),
        },
    ),
}
ASKED: dict[str, Callable[[Any], Any]] = {
    "blocks": layers.blocks,
    "last": lambda own: names(layers.choose({"m": own}, "last")["m"]),
    "penultimate": lambda own: names(layers.choose({"m": own}, "penultimate")["m"]),
    "last_block": layers.last_block,
    "attentions": lambda own: {unit: str(tap) for unit, tap in layers.attentions(own).items()},
    "partitions": lambda own: {
        unit: (one.norm, one.windowed) for unit, one in layers.partitions(own).items()
    },
    "without_skips": layers.without_skips,
    "lower_units": layers.lower_units,
    "branches": lambda own: [
        (one.block, one.sublayer, *names((one.skip, one.long, one.joined)), one.activation)
        for one in layers.branches(own)
    ],
    "steps": lambda own: [
        (
            *(one.name, str(one.residual), str(one.long) if one.long else None),
            *(one.branch is not None, one.needed),
        )
        for one in layers.sublayers(own)
    ],
    "prefix": layers.prefix,
    "grid": layers.grid,
    "tokens": lambda own: (
        (layout := layers.layout(own)).spatial,
        *(layout.prefix, layout.class_token, layout.grid),
    ),
    "representation": layers.representation,
    "is_convolutional": layers.is_convolutional,
}


@pytest.mark.parametrize(
    ("kind", "what"),
    [(kind, what) for kind, (_, told) in FOUND.items() for what in told],
    ids=lambda words: words.replace(" ", "_"),
)
def test_what_is_told_of_a_network_is_what_a_hand_finds_in_it(kind, what):
    make, told = FOUND[kind]
    if isinstance(told[what], Refused):
        with pytest.raises(Refusal, match=told[what]):
            ASKED[what](make())
    else:
        assert ASKED[what](make()) == told[what]


def of_parts(*units: str) -> Told:
    """Blocks of told parts, of which several fit and the first counts; those without an attention are of no known kind."""
    parts = ("norm1", "attn", "norm2", "hidden")
    network = nn.Sequential(
        OrderedDict(
            (
                unit,
                nn.Sequential(
                    OrderedDict((part, nn.ReLU()) for part in parts if (part, unit[0]) != ("attn", "u"))
                ),
            )
            for unit in units
        )
    )
    kind = layers.Block(
        ("attn",),
        mixing=("attn", "norm1"),
        mixing_added=("attn", "norm1"),
        hidden=("hidden", "attn"),
        mlp_added=("hidden",),
    )
    return Told(network, Anatomy(blocks=units, kinds=(kind,)))


def test_of_several_parts_that_fit_the_first_is_the_layer():
    of_block = ("norm1", "attn", "norm2:in", "norm2", "hidden")
    expected = [place for unit in "ab" for place in (*(f"{unit}.{part}" for part in of_block), unit)]
    assert names(layers.paper(of_parts("a", "b"))) == ["a:in", *expected]
    assert [str(one.long) for one in layers.branches(of_parts("a"))] == ["a.attn", "a.hidden"]


def test_blocks_of_an_unknown_kind_are_counted_and_named_in_order(caplog):
    found = layers.branches(of_parts("u3", "a", "u1", "u4", "u2"))
    assert {one.block for one in found} == {"a"}
    assert "4 of 5 blocks of Sequential are left out, as their skip" in caplog.text
    assert caplog.text.strip().endswith("are not known: u1, u2, u3, ...")
    caplog.clear()
    layers.branches(of_parts("u3", "a", "u1"))
    assert caplog.text.strip().endswith(
        "2 of 3 blocks of Sequential are left out, as their skip connections, if any, are not known: u1, u3"
    )


def test_whatever_can_be_asked_of_a_network_has_a_case():
    assert set(ASKED) == {what for _, told in FOUND.values() for what in told}
