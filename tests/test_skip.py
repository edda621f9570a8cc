import numpy as np
import pytest
import timm
import torch
from doubles import Given, Layers
from timm.models.vision_transformer import ParallelThingsBlock, ResPostBlock
from torch import nn

from vit_analysis import layers, models, plot
from vit_analysis.images import Images
from vit_analysis.lab import zoo
from vit_analysis.reading.intervals import of_table
from vit_analysis.skip import MEANS, RatioSums, inner_products, measure, medians, ratios
from vit_analysis.spelling import Refusal
from vit_analysis.tensors import similarity
from vit_analysis.tensors.tokens import Layout

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
    table = measure({"m": module}, given, first=4).set_index(["block", "sublayer", "token"])
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
    table = measure({"m": module}, images(2, 2, 32))
    assert table["block"].nunique() == len(layers.blocks(module))


def test_swin_and_eva_add_in_the_same_way():
    config = {"depths": (1, 1), "embed_dim": 24, "num_heads": (2, 2)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **config).eval()
    table = measure({"m": swin}, images(2, 2, 224))
    assert set(table["sublayer"]) == {"attention", "mlp"}
    eva = timm.create_model("eva02_tiny_patch14_224", **SMALL).eval()
    assert set(measure({"m": eva}, images(2, 2))["sublayer"]) == {"attention", "mlp"}


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


def test_medians_without_each_batch_are_medians_of_the_ratios_of_all_others():
    module, given = vit(depth=1), images(12, 4)
    table = measure({"m": module}, given, first=2).set_index(["sublayer", "token"])
    for (_, sublayer), (z, f) in steps(module, given.pixels).items():
        ratio = z.norm(dim=-1) / f.norm(dim=-1)
        for token, chosen in {"cls": slice(0, 1), "spatial": slice(1, None)}.items():
            found = table.loc[(sublayer, token), "median_without"]
            assert len(found) == 3
            for batch, own in enumerate(found):
                left = np.delete(ratio[:, chosen].reshape(3, -1).numpy(), batch, axis=0)
                ordered = np.sort(left.flatten())
                assert 0.98 * ordered[(len(ordered) - 1) // 2] < own < 1.02 * ordered[len(ordered) // 2]
        # Of a numbered token the batches are not kept apart.
        for token in "01":
            row = table.loc[(sublayer, token)]
            assert row["median_without"] == pytest.approx([row["median"]] * 3)


def test_a_median_has_the_interval_of_its_values_without_each_batch():
    table = measure({"m": vit(depth=1)}, images(40, 4), first=0)
    _, low, high, without = of_table(lambda rows: torch.tensor(rows["median"].to_numpy()), table)
    np.testing.assert_allclose(without.T, np.stack(table["median_without"]))
    assert (low < torch.tensor(table["median"])).all()
    assert (high > torch.tensor(table["median"])).all()


@pytest.mark.parametrize("first", [0, 3])
def test_one_batch_has_no_values_without_it_in_any_column(first):
    table = measure({"m": vit(depth=1)}, images(4, 4), first=first)
    of_table(lambda rows: torch.tensor(rows["norm_ratio"].to_numpy()), table)  # stacks every column
    for column in (name for name in table if name.endswith("_without")):
        assert [len(own) for own in table[column]] == [0] * len(table)


def test_neither_order_nor_batches_of_images_matter_and_sums_merge():
    module, given = vit(depth=1), images(12, 4)
    table = measure({"m": module}, given)
    other = measure({"m": module}, Given(batch=5, pixels=given.pixels.flip(0)))
    for name in (*MEANS, "median"):
        np.testing.assert_allclose(other[name], table[name], rtol=1e-4, atol=1e-6)
    parts = [
        RatioSums.of_batch(
            batch,
            images=torch.tensor(5.0).double(),
            totals=torch.rand(2, 6).double(),
            counts=torch.rand(2, 768).double(),
            named=torch.rand(2, 768).double(),
            places=[["m", "b", "mlp", "cls"], ["m", "b", "mlp", "spatial"]],
        )
        for batch in range(3)
    ]
    one, other_way = parts[0] + parts[1] + parts[2], parts[2] + (parts[1] + parts[0])
    for name, value in one.tensors().items():
        torch.testing.assert_close(value, other_way.tensors()[name])


def test_a_branch_that_adds_nothing_has_an_infinite_ratio_and_is_named(caplog):
    module = timm.create_model("resnet18").eval()  # the last norm starts at zero
    table = measure({"m": module}, images(2, 2))
    assert np.isinf(table["norm_ratio"]).all()
    assert "so their norm ratio is infinite: layer1.0 of m, layer1.1 of m" in caplog.text
    plot.skip(table)


@pytest.mark.parametrize("kind", [ResPostBlock, ParallelThingsBlock])
def test_blocks_that_add_in_another_way_are_refused(kind):
    module = vit(depth=1, block_fn=kind, init_values=0.5)
    with pytest.raises(Refusal, match=r"is not z \+ f\(z\)|are not known"):
        measure({"m": module}, images(2, 2))


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_a_branch_of_another_size_than_what_it_is_added_to_is_refused(tokens, monkeypatch):
    net = layers.Branch("b", "unit", layers.Tap("z"), layers.Tap("f"), layers.Tap("sum"))
    monkeypatch.setattr(layers, "branches", lambda _: [net])
    given = Given(batch=2, pixels=torch.randn(4, 3, 4, 4))
    module = Layers(
        z=lambda x: x.flatten(1, 2), f=lambda x: x.flatten(1, 2)[:, :tokens], sum=lambda x: x.flatten(1, 2)
    )
    with pytest.raises(Refusal, match=r"what goes on after 'f' is not z \+ f\(z\) with z from 'z'"):
        measure({"m": module}, given)


def test_a_model_without_known_skip_connections_says_so():
    with pytest.raises(Refusal, match="the skip connections of MlpMixer are not known"):
        measure({"m": zoo.build("mixer", zoo.MIXER)}, images(2, 2))


def test_values_that_are_not_finite_are_named():
    module = resnet()
    module.layer2[1].bn2.bias.data[0] = torch.nan
    with pytest.raises(Refusal, match=r"layer2.1 \(unit\) of m has values that are not finite in batch 0"):
        measure({"m": module}, images(2, 2))


def test_the_untrained_lab_pair_with_pictures_on_one_scale():
    loaded = [models.load(name, device="cpu") for name in ("lab/vit@random", "lab/resnet@random")]
    for norm in (m for m in loaded[1].module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.ones_(norm.weight)
    given = Images(limit=16, batch=8)
    table = measure(loaded, given)
    assert list(table.columns)[:9] == [
        *("model", "block", "sublayer", "token", "norm_ratio", "median", "cosine", "low", "high")
    ]
    assert len(table) == 8 * 2 * 11 + 8
    figure = plot.skip(table)
    mlp, attention, *lines = figure.axes[:6]
    assert attention.images[0].norm is mlp.images[0].norm
    rows = table[(table["sublayer"] == "mlp") & table["token"].str.isdigit()]
    np.testing.assert_array_equal(mlp.images[0].get_array(), rows["norm_ratio"].to_numpy().reshape(8, 9))
    assert [len(ax.lines) for ax in lines] == [
        3
    ] * 4  # class token and spatial tokens, and the units of the CNN


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_multiplied_in_float32(dtype):
    # 400 squared is more than half precision holds.
    z, f = 400 + torch.randn(2, 5, 8), 400 + torch.randn(2, 5, 8)
    z, f = z.to(dtype), f.to(dtype)
    layout = Layout(spatial=4, prefix=1, class_token=True)
    own, expected = ratios(z, f, layout, 2), ratios(z.float(), f.float(), layout, 2)
    assert own[0] == expected[0]
    torch.testing.assert_close(own[1], expected[1], rtol=1e-5, atol=1e-5)
    assert (own[1][:, 1] / 2).min() > 0.99  # the cosine of z + f(z) and z


@pytest.mark.parametrize("piece", [1, 12, 24, 29, 1000])
def test_inner_products_are_the_same_in_pieces_of_any_size(piece, monkeypatch):
    """An image may be larger than a piece, and the last piece smaller than the others."""
    monkeypatch.setattr(similarity, "piece", lambda _: piece)
    x, y = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(inner_products(x, y), (x * y).sum(-1).double(), rtol=1e-5, atol=1e-6)
