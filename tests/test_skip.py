import logging
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import timm
import torch
from conftest import Given, Labelled, oracle_cka
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock
from torch import nn

from vit_analysis import cka, layers, models, plot, running, skip, zoo
from vit_analysis.capture import capture
from vit_analysis.images import Images
from vit_analysis.intervene import Branch, Repeated, without_skips
from vit_analysis.skip import (
    MEANS,
    RatioSums,
    lesions,
    medians,
    norm_ratios,
    partition,
    ratios,
    trained_without_skips,
)
from vit_analysis.tokens import Layout
from vit_analysis.vit import ViT

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
OWN = {"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 16, "depth": 3, "num_heads": 2}


def vit(**config) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", **SMALL | config).eval()


def resnet(name: str = "resnet18", **config) -> nn.Module:
    module = timm.create_model(name, zero_init_last=False, **config).eval()
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.bias, std=0.5)
    return module


def images(count: int = 8, batch: int = 4, size: int = 32) -> Given:
    return Given(batch=batch, pixels=torch.randn(count, 3, size, size))


def cosine(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.cosine_similarity(x, y, dim=-1)


def steps(
    module: nn.Module, pixels: torch.Tensor
) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """z and f(z) of every branch, computed block by block: image, token, channel."""
    found = {}
    with torch.no_grad():
        if hasattr(module, "layer1"):
            x = module.maxpool(module.act1(module.bn1(module.conv1(pixels))))
            for name in layers.blocks(module):
                unit = module.get_submodule(name)
                f = unit.bn2(unit.conv2(unit.act1(unit.bn1(unit.conv1(x)))))
                z = x if unit.downsample is None else unit.downsample(x)
                found[name, "unit"] = z.flatten(2).mT, f.flatten(2).mT
                x = torch.relu(z + f)
        else:
            x = module._pos_embed(module.patch_embed(pixels))
            for number, block in enumerate(module.blocks):
                f = block.ls1(block.attn(block.norm1(x)))
                found[f"blocks.{number}", "attention"] = x, f
                x = x + f
                f = block.ls2(block.mlp(block.norm2(x)))
                found[f"blocks.{number}", "mlp"] = x, f
                x = x + f
    return found


@pytest.mark.parametrize(
    "module",
    [vit(), vit(init_values=0.3), vit(reg_tokens=2), vit(class_token=False, global_pool="avg"), resnet()],
    ids=["plain", "LayerScale", "registers", "no class token", "ResNet with operations in place"],
)
def test_it_is_the_definition_block_by_block(module):
    given = images()
    table = norm_ratios({"m": module}, given, first=4).set_index(["block", "sublayer", "token"])
    expected = steps(module, given.pixels)
    assert list(dict.fromkeys((block, sublayer) for block, sublayer, _ in table.index)) == list(expected)
    prefix = getattr(module, "num_prefix_tokens", 0)
    for (block, sublayer), (z, f) in expected.items():
        ratio = z.norm(dim=-1) / f.norm(dim=-1)
        rows = {"spatial": slice(prefix, None)} | ({"cls": slice(0, 1), "3": slice(3, 4)} if prefix else {})
        for token, chosen in rows.items():
            row = table.loc[block, sublayer, token]
            assert row.norm_ratio == pytest.approx(ratio[:, chosen].mean().item(), rel=1e-4)
            ordered = ratio[:, chosen].flatten().sort().values
            middle = ordered[(len(ordered) - 1) // 2].item(), ordered[len(ordered) // 2].item()
            assert 0.98 * middle[0] < row["median"] < 1.02 * middle[1]
            for name, value in {
                "cosine": cosine(z + f, z),
                "cosine_branches": cosine(z, f),
                "cosine_long": cosine(z + f, f),
                "skip_norm": z.norm(dim=-1),
                "long_norm": f.norm(dim=-1),
            }.items():
                assert row[name] == pytest.approx(value[:, chosen].mean().item(), rel=1e-4, abs=1e-5)
    tokens = list(dict.fromkeys(token for _, _, token in table.index))
    assert tokens == (
        ["spatial"] if hasattr(module, "layer1") else [*["cls"] * bool(prefix), "spatial", *"0123"]
    )


@pytest.mark.parametrize(
    "name", ["resnet50", "resnetv2_50", "seresnet50", "convnext_atto", "vit_tiny", "deit_distilled"]
)
def test_what_goes_on_is_checked_to_be_the_sum_in_every_kind_of_block(name):
    names = {"vit_tiny": "vit_tiny_patch16_224", "deit_distilled": "deit_tiny_distilled_patch16_224"}
    module = timm.create_model(names.get(name, name), **(SMALL if name in names else {})).eval()
    table = norm_ratios({"m": module}, images(2, 2, 32))
    assert table["block"].nunique() == len(layers.blocks(module))


def test_swin_and_eva_add_in_the_same_way():
    config = {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **config).eval()
    table = norm_ratios({"m": swin}, images(2, 2, 224))
    assert set(table["sublayer"]) == {"attention", "mlp"}
    eva = timm.create_model("eva02_tiny_patch14_224", **SMALL).eval()
    assert set(norm_ratios({"m": eva}, images(2, 2))["sublayer"]) == {"attention", "mlp"}


def test_a_branch_that_adds_its_input_has_ratio_one_and_scale_does_not_matter():
    z, f = torch.randn(2, 4, 7, 8)
    names, totals, counts = ratios(z, z, Layout(spatial=6, prefix=1, class_token=True), 3)
    assert names == ["cls", "spatial", "0", "1", "2"]
    torch.testing.assert_close(totals[:, :4] / 4, torch.ones(5, 4).double())
    assert counts.sum(1).tolist() == [4, 24, 4, 4, 4]
    one, other = (ratios(scale * z, scale * f, Layout(), 0)[1] for scale in (1, 1000))
    torch.testing.assert_close(one[:, :4], other[:, :4])
    map_of_one = ratios(z.mT.unflatten(2, (7, 1)), f.mT.unflatten(2, (7, 1)), Layout(), 9)
    torch.testing.assert_close(map_of_one[1], one)  # a map's positions are tokens
    assert map_of_one[0] == ["spatial"]


@pytest.mark.parametrize("spread", [0.01, 0.5, 3.0])
def test_the_median_of_counts_is_right_to_half_a_bin(spread):
    ratio = torch.exp2(spread * torch.randn(1, 10_001).double() + 1.234)
    z = torch.nn.functional.pad(ratio[..., None], (0, 1)).float()
    f = torch.tensor([0.0, 1.0]).expand(1, 10_001, 2)
    _, _, counts = ratios(z, f, Layout(), 0)
    assert medians(counts).item() == pytest.approx(ratio.median().item(), rel=0.012)


def test_a_median_beyond_the_counts_is_said_to_be():
    counts = torch.zeros(3, 768).double()
    counts[0, 0] = counts[1, -1] = counts[2, 384] = 5
    assert medians(counts).tolist() == [0, torch.inf, pytest.approx(2 ** (0.5 / 32))]


def test_neither_order_nor_batches_of_images_matter_and_sums_merge():
    module, given = vit(depth=1), images(12, 4)
    table = norm_ratios({"m": module}, given)
    other = norm_ratios({"m": module}, Given(batch=5, pixels=given.pixels.flip(0)))
    for name in (*MEANS, "median"):
        np.testing.assert_allclose(other[name], table[name], rtol=1e-4, atol=1e-6)
    parts = [
        RatioSums(
            running.in_group(torch.rand(2, 6).double(), batch),
            torch.rand(2, 768).double(),
            running.in_group(torch.tensor(5.0).double(), batch),
            [["m", "b", "mlp", "cls"], ["m", "b", "mlp", "spatial"]],
        )
        for batch in range(3)
    ]
    one, other_way = parts[0] + parts[1] + parts[2], parts[2] + (parts[1] + parts[0])
    for name, value in one.tensors().items():
        torch.testing.assert_close(value, other_way.tensors()[name])


def test_a_branch_that_adds_nothing_has_an_infinite_ratio_and_is_named(caplog):
    module = timm.create_model("resnet18").eval()  # the last norm starts at zero
    table = norm_ratios({"m": module}, images(2, 2))
    assert np.isinf(table["norm_ratio"]).all()
    assert "so their norm ratio is infinite: layer1.0 of m, layer1.1 of m" in caplog.text
    plot.skip(table)


@pytest.mark.parametrize("kind", [ResPostBlock, ParallelThingsBlock])
def test_blocks_that_add_in_another_way_are_refused(kind):
    module = vit(depth=1, block_fn=kind, init_values=0.5)
    with pytest.raises(ValueError, match=r"is not z \+ f\(z\)|are not known"):
        norm_ratios({"m": module}, images(2, 2))


def test_a_model_without_known_skip_connections_says_so():
    with pytest.raises(ValueError, match="the skip connections of MlpMixer are not known"):
        norm_ratios({"m": zoo.build("mixer", zoo.MIXER)}, images(2, 2))


def test_values_that_are_not_finite_are_named():
    module = resnet()
    module.layer2[1].bn2.bias.data[0] = torch.nan
    module.layer2[1].skip = True
    with pytest.raises(
        ValueError, match=r"layer2.1 \(unit\) of m has values that are not finite in batch 0|is not z"
    ):
        norm_ratios({"m": module}, images(2, 2))


def of_block(module: nn.Module, block: str) -> list[Branch]:
    return [branch for branch in layers.branches(module) if branch.block == block]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_without_skips_a_block_is_the_one_that_was_built_without(number):
    whole, without = ViT(**OWN).eval(), ViT(**OWN, no_skip=number).eval()
    without.load_state_dict(whole.state_dict())
    x, taps = torch.randn(2, 3, 16, 16), [f"blocks.{number}.norm2:in", f"blocks.{number}", "norm"]
    with capture(whole, taps) as run, torch.no_grad():  # hooked before the change, and yet sees it
        intact, before = whole(x), run(x)
        with without_skips(whole, of_block(whole, f"blocks.{number}")):
            changed, seen = whole(x), run(x)
        torch.testing.assert_close(whole(x), intact, rtol=0, atol=0)
    with capture(without, taps) as run, torch.no_grad():
        expected = run(x)
    torch.testing.assert_close(changed, without(x), rtol=0, atol=0)
    for tap in taps:
        torch.testing.assert_close(seen[tap], expected[tap], rtol=0, atol=0)
    assert not torch.allclose(seen["norm"], before["norm"])
    assert layers.without_skips(without) == [f"blocks.{number}"]
    assert not layers.without_skips(whole)


@pytest.mark.parametrize(
    ("name", "unit"), [("resnet18", "layer1.1"), ("resnet18", "layer2.0"), ("resnet50", "layer3.0")]
)
def test_without_its_skip_a_residual_unit_is_its_long_branch(name, unit):
    module = resnet(name)
    block = module.get_submodule(unit)
    inner = [f"{unit}:in", unit]
    with (
        torch.no_grad(),
        capture(module, inner) as run,
        without_skips(module, of_block(module, unit)),
    ):
        seen = run(torch.randn(2, 3, 64, 64))
    x = seen[inner[0]]
    with torch.no_grad():
        for part in ("1", "2", "3") if name == "resnet50" else ("1", "2"):
            x = getattr(block, f"act{part}")(getattr(block, f"bn{part}")(getattr(block, f"conv{part}")(x)))
    torch.testing.assert_close(seen[unit], x)


def test_an_error_inside_leaves_the_model_as_it_was():
    module = vit(depth=1)
    with pytest.raises(KeyError), without_skips(module, of_block(module, "blocks.0")):
        raise KeyError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_a_repeated_model_numbers_what_it_saw_under_each_change():
    module, x = vit(depth=2), torch.randn(2, 3, 32, 32)
    repeated = Repeated(module, [nullcontext, partial(without_skips, branches=of_block(module, "blocks.1"))])
    with capture(repeated, ["model.blocks.1", "model"]) as run, torch.no_grad():
        seen = run(x)
    assert list(seen) == ["model.blocks.1", "model", "model.blocks.1#2", "model#2"]
    torch.testing.assert_close(seen["model"], module(x).detach())


def labelled(count: int = 24, batch: int = 8, classes: int = 10, size: int = 32) -> Labelled:
    return Labelled(
        batch=batch, pixels=torch.randn(count, 3, size, size), labels=torch.randint(classes, (count,))
    )


def test_lesions_are_accuracy_and_similarity_measured_one_at_a_time(monkeypatch):
    given = labelled(classes=5, size=16)
    module = ViT(**OWN).eval()
    monkeypatch.setattr(skip, "truth", lambda *_: list(range(5)))
    table = lesions({"m": module}, given).set_index("block")
    assert set(table["reference"]) == {"labels"}
    taps = ["blocks.0:in", "blocks.0", "blocks.1", "blocks.2"]

    def measured(model: nn.Module) -> tuple[float, dict[str, torch.Tensor]]:
        with capture(model, taps) as run, torch.no_grad():
            return (model(given.pixels).argmax(-1) == given.labels).double().mean().item(), run(given.pixels)

    def across(seen: dict[str, torch.Tensor], place: int) -> float:
        pairs = [(a, b) for a in taps[:place] for b in taps[place:]]
        return np.mean([oracle_cka(seen[a].split(8), seen[b].split(8)) for a, b in pairs])

    accuracy, whole = measured(module)
    for number in range(3):
        without = ViT(**OWN, no_skip=number).eval()
        without.load_state_dict(module.state_dict())
        changed, seen = measured(without)
        row = table.loc[f"blocks.{number}"]
        assert (row.accuracy, row["drop"]) == (pytest.approx(changed), pytest.approx(accuracy - changed))
        assert row.across == pytest.approx(across(seen, number + 1), abs=1e-4)
        assert row.across_intact == pytest.approx(across(whole, number + 1), abs=1e-4)
        assert row.across_drop == pytest.approx(row.across_intact - row.across)
        assert row.low <= row["drop"] <= row.high
        assert row.across_low < row.across_drop < row.across_high


def test_without_known_labels_lesions_are_agreement_with_the_intact_model():
    module = resnet(num_classes=7)
    table = lesions({"v": vit(num_classes=4), "r": module}, labelled(8, 4), state=None)
    assert set(table["reference"]) == {"intact model"}
    np.testing.assert_allclose(table["accuracy"] + table["drop"], 1)
    assert table["model"].tolist() == ["v"] * 3 + ["r"] * 8
    assert list(table.attrs["models"]) == ["v", "r"]


def test_labels_are_known_for_the_lab_and_for_wnids(tmp_path):
    lab = models.load("lab/vit@random", device="cpu")
    assert models.truth(lab, Images(limit=4)) == list(range(10))
    imagenet = models.named({"m": nn.Identity()})["m"]
    imagenet.module.num_classes = 1000
    assert models.truth(imagenet, Images(limit=4)) is None
    for wnid in ("n01443537", "n15075141", "n01440764"):
        (tmp_path / wnid).mkdir()
        torch.save({}, tmp_path / wnid / "a.jpg")
    folder = Images(source=str(tmp_path))
    assert models.truth(imagenet, folder) == [0, 1, 999]
    assert models.truth(lab, folder) is None


def test_models_trained_without_are_compared_with_the_intact_one_and_partition_the_map(monkeypatch):
    loaded = models.named(
        {"whole": ViT(**OWN), "first": ViT(**OWN, no_skip=0), "last": ViT(**OWN, no_skip=2)}
    )
    whole, first, last = loaded.values()
    given = labelled(classes=5, size=16)
    monkeypatch.setattr(skip, "truth", lambda *_: [4, 3, 2, 1, 0])
    table = trained_without_skips(whole, [first, last], given)
    assert table["model"].tolist() == ["first", "last"]
    assert table["block"].tolist() == ["blocks.0", "blocks.2"]
    with torch.no_grad():
        right = [
            (m.module.eval()(given.pixels).argmax(-1) == 4 - given.labels).double().mean()
            for m in (whole, last)
        ]
    assert table["accuracy"][1] == pytest.approx(right[1].item())
    assert table["drop"][1] == pytest.approx((right[0] - right[1]).item())
    maps = cka.compare(list(loaded.values()), given, layers=["blocks.0:in", "blocks.*"])
    assert partition(maps, "last", "blocks.2") == pytest.approx(table["across"][1], abs=1e-6)
    assert partition(maps, "whole", "blocks.2") == pytest.approx(table["across_intact"][1], abs=1e-6)
    rich = cka.compare(list(loaded.values()), given, layers="paper")
    assert abs(partition(rich, "last", "blocks.2")) < 1
    with pytest.raises(ValueError, match=r"no layer 'blocks.7' of last"):
        partition(maps, "last", "blocks.7")


def test_what_cannot_be_compared_says_why():
    whole, other, deep = models.named(
        {"whole": ViT(**OWN), "other": ViT(**OWN), "deep": ViT(**OWN | {"depth": 4}, no_skip=1)}
    ).values()
    with pytest.raises(
        ValueError, match="other has 3 blocks, and 0 without skip connections; wanted are 3, as whole"
    ):
        trained_without_skips(whole, [other], images(size=16))
    with pytest.raises(ValueError, match="deep has 4 blocks, and 1 without"):
        trained_without_skips(whole, [deep], images(size=16))


def test_weights_that_are_not_there_yet_are_named_and_left_out(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(zoo, "home", lambda name: tmp_path / name)
    with caplog.at_level(logging.WARNING):
        assert skip._trained("lab/vit", None, "cpu") == []
    assert "train it: python -m vit_analysis.train lab/vit_no_skip_middle" in caplog.text
    assert skip._trained("resnet18", None, "cpu") == []
    assert set(skip.TRAINED) <= {zoo.PREFIX + name for name in zoo.RECIPES}


def test_the_untrained_lab_pair_with_pictures_on_one_scale():
    loaded = [models.load(name, device="cpu") for name in ("lab/vit@random", "lab/resnet@random")]
    for norm in (m for m in loaded[1].module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.ones_(norm.weight)
    given = Images(limit=16, batch=8)
    table = norm_ratios(loaded, given)
    assert list(table.columns)[:9] == [
        *("model", "block", "sublayer", "token", "norm_ratio", "median", "cosine", "low", "high")
    ]
    assert len(table) == 8 * 2 * 11 + 8
    figure = plot.skip(table)
    attention, mlp, lines, cosines = figure.axes[:4]
    assert attention.images[0].norm is mlp.images[0].norm
    rows = table[(table["sublayer"] == "mlp") & table["token"].str.isdigit()]
    np.testing.assert_array_equal(mlp.images[0].get_array(), rows["norm_ratio"].to_numpy().reshape(8, 9))
    assert len(lines.lines) == len(cosines.lines) == 5
    removed = lesions(loaded, given)
    assert set(removed["reference"]) == {"labels"}
    left, right = plot.lesions(removed).axes
    assert (left.get_ylabel(), right.get_ylabel()) == ("accuracy", "mean CKA across the block")
    np.testing.assert_array_equal(left.lines[1].get_ydata(), removed["accuracy"][:8])
