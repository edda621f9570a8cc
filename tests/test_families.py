"""Families of timm's that are built in other ways than a Vision Transformer or a ResNet: right tables, or a refusal."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from doubles import Given, cell, oracle_cka
from einops import rearrange
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from torch import Tensor, nn

from vit_analysis import attention_distance, cka, layers, lesions, localization, receptive_field, skip
from vit_analysis.layers import Branch, Tap
from vit_analysis.reading.capture import Capture
from vit_analysis.shell.analyses import ANALYSES
from vit_analysis.spelling import Refusal
from vit_analysis.tensors import tokens

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "families.py"
NARROW = {"embed_dim": 24, "depth": 2, "num_heads": 3}
STAGES = {"embed_dim": 24, "depths": (2, 1), "num_heads": (2, 2)}

MADE = {
    "registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 56, **NARROW, "init_values": 0.5}),
    "no class token": ("vit_base_patch16_siglip_gap_224", {"img_size": 64, **NARROW}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"img_size": 64, **NARROW}),
    "rotated": ("eva02_tiny_patch14_224", {"img_size": 56, **NARROW}),
    "rotated registers": ("vit_small_patch16_dinov3", {"img_size": 64, "depth": 2}),
    "relative positions": ("beit_base_patch16_224", {"img_size": 64, **NARROW, "init_values": 0.5}),
    "parallel": ("vit_tiny_patch16_224", {"img_size": 64, **NARROW, "block_fn": ParallelThingsBlock}),
    "parallel in one": ("vit_tiny_patch16_224", {"img_size": 64, **NARROW, "block_fn": ParallelScalingBlock}),
    "windows": ("swin_tiny_patch4_window7_224", {"img_size": 56, **STAGES}),
    "windows, norm after": ("swinv2_tiny_window8_256", {"img_size": 64, **STAGES}),
    "windows of a padded map": ("samvit_base_patch16_224", {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 2}),
    "windows, no word of it": ("gcvit_xxtiny", {"img_size": 64}),
    "across channels": ("xcit_nano_12_p16_224", {"img_size": 64, "depth": 2}),
    "pools": ("poolformer_s12", {}),
    "pyramid of tokens": ("pit_ti_224", {"img_size": 64}),
    "scaled units": ("convnext_atto", {"ls_init_value": 0.5}),
    "strided units": ("mobilenetv3_small_050", {}),
    "named units": ("regnety_002", {}),
}  # fmt: skip
SIZES = {"registers": 56, "rotated": 56, "windows": 56}


def made(kind: str) -> nn.Module:
    name, config = MADE[kind]
    return timm.create_model(name, **config).eval()


def images(kind: str, count: int = 10, batch: int = 5) -> Given:
    size = SIZES.get(kind, 64)
    return Given(batch=batch, pixels=torch.randn(count, 3, size, size))


def seen(module: nn.Module, taps: list[str], pixels: Tensor) -> dict[str, Tensor]:
    """What plain hooks see, in order of execution."""
    found: dict[str, Tensor] = {}
    handles = []
    for tap in taps:
        part = module.get_submodule(tap.removesuffix(":in"))
        if tap.endswith(":in"):
            handles.append(
                part.register_forward_pre_hook(lambda _, a, tap=tap: found.update({tap: a[0].clone()}))
            )
        else:
            handles.append(
                part.register_forward_hook(lambda _, __, o, tap=tap: found.update({tap: o.clone()}))
            )
    with torch.inference_mode():
        module(pixels)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    "kind", ["registers", "distilled", "parallel", "windows", "windows, norm after", "named units"]
)
def test_layers_are_compared_as_hooks_see_them_in_order_of_execution(kind):
    module, given = made(kind), images(kind)
    found = cka.measure({"m": module}, given)
    every = [path for path, part in module.named_modules() if not isinstance(part, nn.ModuleList)]
    parts = [
        seen(module, [*every, *(f"{unit}:in" for unit in every)], part) for part in given.pixels.split(5)
    ]
    names = list(dict.fromkeys(found["layer"]))
    places = [list(parts[0]).index(name) for name in names]
    assert places == sorted(places)
    assert set(names) >= set(layers.blocks(module))
    varying = [name for name in names if parts[0][name].std(0).max() > 1e-6]  # a norm may start at zero
    for one, other in zip(varying[:-1:3], varying[1::3], strict=False):
        expected = oracle_cka(*([part[name] for part in parts] for name in (one, other)))
        assert cell(found, one, other) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "kind", ["registers", "no class token", "distilled", "rotated", "rotated registers", "relative positions"]
)
def test_distances_are_those_of_the_attention_that_timm_spells_out(kind):
    module, given = made(kind), images(kind, 4, 4)
    found = attention_distance.measure({"m": module}, given)
    rows: dict[str, Tensor] = {}
    for block in layers.blocks(module):
        own = module.get_submodule(f"{block}.attn")
        own.fused_attn = False
        own.attn_drop.register_forward_hook(lambda _, __, output, block=block: rows.update({block: output}))
    with torch.inference_mode():
        module(given.pixels)
    prefix = {"registers": 5, "no class token": 0, "distilled": 2, "rotated registers": 5}.get(kind, 1)
    side, pixel = 4, SIZES.get(kind, 64) / 4
    place = torch.cartesian_prod(torch.arange(side), torch.arange(side)) * pixel
    apart = (place[:, None] - place).norm(dim=-1)
    for block, attention in rows.items():
        patches = attention[:, :, prefix:, prefix:]
        assert patches.shape[-1] == side**2
        expected = ((patches * apart).sum(-1) / patches.sum(-1)).mean((0, 2))
        mass = 1 - patches.sum(-1).mean((0, 2))
        own = found[found["block"] == block]
        np.testing.assert_allclose(own["distance_px"], expected, rtol=1e-4)
        np.testing.assert_allclose(own["prefix_mass"], mass, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        ("registers", "norm2"),
        ("distilled", "norm2"),
        ("rotated", "norm2"),
        ("windows", "norm2"),
        ("scaled units", None),
        ("parallel in one", None),  # attention and MLP side by side are one branch
    ],
)
def test_norm_ratios_are_of_what_goes_in_and_what_is_added(kind, norm):
    module, given = made(kind), images(kind, 4, 4)
    found = skip.measure({"m": module}, given).set_index(["block", "sublayer", "token"])
    blocks = layers.blocks(module)
    taps = [
        tap for block in blocks for tap in (f"{block}:in", f"{block}.{norm}:in" if norm else block, block)
    ]
    streams = seen(module, taps, given.pixels)
    prefix = getattr(module, "num_prefix_tokens", 0)

    def rows(value: Tensor) -> Tensor:
        if value.ndim == 4:
            axes = "image row col channel" if kind == "windows" else "image channel row col"
            return rearrange(value, f"{axes} -> image (row col) channel")
        return value

    for block in blocks:
        before, after = rows(streams[f"{block}:in"]), rows(streams[block])
        steps = {"unit": (before, after)}
        if norm:
            middle = rows(streams[f"{block}.{norm}:in"])
            steps = {"attention": (before, middle), "mlp": (middle, after)}
        for sublayer, (z, total) in steps.items():
            ratio = (z.norm(dim=-1) / (total - z).norm(dim=-1))[:, prefix:].mean().item()
            assert found.loc[(block, sublayer, "spatial"), "norm_ratio"] == pytest.approx(ratio, rel=2e-3)


@pytest.mark.parametrize(
    "kind", ["windows, norm after", "windows of a padded map", "across channels", "pools"]
)
def test_blocks_that_add_in_another_way_are_refused_by_all_that_need_the_sum(kind):
    module, given = made(kind), images(kind, 4, 4)
    for analysis in (skip.measure, lesions.measure):
        with pytest.raises(Refusal, match=r"is not z \+ f\(z\) with z from .* are not known"):
            analysis({"m": module}, given)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_parallel_branches_have_no_norm_ratio():
    with pytest.raises(Refusal, match="the skip connections of VisionTransformer are not known"):
        skip.measure({"m": made("parallel")}, images("parallel", 4, 4))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
def test_a_branch_that_hardly_adds_is_still_told_from_another_one(scale):
    branch = Branch("block", "mlp", Tap("block", "in"), Tap("block.mlp"), Tap("block"))
    z, f, other = torch.randn(1, 16, 64), scale * torch.randn(1, 16, 64), scale * torch.randn(1, 16, 64)
    assert branch.is_sum(nn.Module(), z, f, z + f)
    assert branch.is_sum(nn.Module(), z, f, (z + f).unflatten(1, (4, 4)))
    assert not branch.is_sum(nn.Module(), z, f, z + other)
    assert not branch.is_sum(nn.Module(), z, f, z + 2 * f)
    assert not branch.is_sum(nn.Module(), z, f[:, 1:], z + f)


def test_strided_units_have_no_skip_and_the_others_do():
    module = made("strided units")
    given = images("strided units", 4, 4)
    streams = seen(
        module, [tap for unit in layers.blocks(module) for tap in (f"{unit}:in", unit)], given.pixels
    )
    alike = [unit for unit in layers.blocks(module) if getattr(module.get_submodule(unit), "has_skip", False)]
    found = skip.measure({"m": module}, given)
    assert list(dict.fromkeys(found["block"])) == alike
    for unit in alike:
        z, total = (streams[tap].flatten(2) for tap in (f"{unit}:in", unit))
        ratio = (z.norm(dim=1) / (total - z).norm(dim=1)).mean().item()
        assert found.set_index("block").loc[unit, "norm_ratio"] == pytest.approx(ratio, rel=2e-3)


@pytest.mark.parametrize("kind", ["windows of a padded map", "windows, no word of it"])
def test_maps_that_end_with_channels_lie_where_they_are(kind):
    module, given = made(kind), images(kind, 8, 4)
    block = layers.blocks(module)[-1]
    found = localization.measure({"m": module}, given, layers=block)
    parts = [seen(module, [block], part)[block] for part in given.pixels.split(4)]
    side = parts[0].shape[1]
    assert found["token"].nunique() == side**2 == len(found) ** 0.5
    cells = [
        rearrange(
            part, "image c (row down) (col across) -> image row col (c down across)", row=side, col=side
        )
        for part in given.pixels.split(4)
    ]
    last = found[
        (found["token_row"] == 0) & (found["token_col"] == side - 1) & (found["patch_row"] == side - 1)
    ]
    for row in last.itertuples():
        expected = oracle_cka(
            [p[:, 0, side - 1] for p in parts], [c[:, side - 1, row.patch_col] for c in cells]
        )
        assert row.cka == pytest.approx(expected, abs=1e-4)
    assert not layers.layout(
        timm.create_model("resnet18")
    ).by_shape  # a map of as many channels as rows is no such map


def test_the_shape_decides_only_where_it_can():
    either = tokens.Layout(by_shape=True)
    assert [
        either.ends_with_channels(torch.zeros(shape)) for shape in [(2, 4, 4, 9), (2, 9, 4, 4), (2, 4, 4, 4)]
    ] == [
        True,
        False,
        False,
    ]
    assert tokens.Layout(by_shape=True, channels_last=True).ends_with_channels(torch.zeros(2, 3, 5, 7))
    assert not tokens.Layout().ends_with_channels(torch.zeros(2, 4, 4, 9))


@pytest.mark.parametrize(
    ("name", "tap", "shape", "spatial", "reads"),
    [
        ("xcit_nano_12_p16_224", "blocks.0", 16, 16, "cls"),
        ("xcit_nano_12_p16_224", "cls_attn_blocks.0", 17, 16, "cls"),
        ("pit_ti_224", "transformers.2.blocks.0", 5, 4, "cls"),
        ("pit_ti_distilled_224", "transformers.2.blocks.0", 6, 4, "cls"),
        ("cait_xxs24_224", "blocks_token_only.0", 1, 0, "cls"),
        ("vit_small_patch16_dinov3", "blocks.0", 21, 16, "mean_spatial"),
        ("vit_base_patch16_siglip_gap_224", "blocks.0", 16, 16, "mean"),
        ("beit_base_patch16_224", "blocks.0", 17, 16, "mean_spatial"),
    ],
)
def test_tokens_without_a_place_are_found(name, tap, shape, spatial, reads):
    config = {} if name.startswith("pit") else {"depth": 1}
    module = timm.create_model(name, img_size=64, **config).eval()
    activation = seen(module, [tap], torch.randn(2, 3, 64, 64))[tap]
    assert activation.shape[1] == shape
    chosen = tokens.spatial(activation, layers.layout(module))
    assert (0 if chosen is None else chosen.shape[1]) == spatial
    if chosen is not None:
        torch.testing.assert_close(chosen, activation[:, shape - spatial :])
    assert layers.representation(module) == reads


def test_windows_are_no_images():
    module, pixels = made("windows"), images("windows").pixels[:2]
    with (
        Capture(module, ["layers.0.blocks.0.attn"]) as run,
        pytest.raises(
            Refusal, match=r"'layers.0.blocks.0.attn' passes on 8 x 49 x 24 for 2 images, not one row per"
        ),
    ):
        run(pixels)
    taps = layers.paper(module)
    assert Tap("layers.0.blocks.0.drop_path1") in taps
    assert Tap("layers.0.blocks.0.attn") not in taps


def test_only_what_is_added_is_a_long_branch():
    steps = {}
    for kind in ("windows, norm after", "pools", "strided units", "scaled units"):
        found = receptive_field.measure({"m": made(kind)}, images(kind, 2, 2), channels=1)
        steps[kind] = found
    assert (steps["pools"]["branch"] == "residual").all()  # its last norm is not what it adds
    after = steps["windows, norm after"]
    assert (
        not after["step"].str.startswith("attention").any()
    )  # what its second norm is given is not the stream
    assert (after["branch"] == "residual").all()
    long = {kind: set(own[own["branch"] == "long"]["layer"]) for kind, own in steps.items()}
    assert len(long["scaled units"]) == 12
    module = made("strided units")
    alike = [unit for unit in layers.blocks(module) if getattr(module.get_submodule(unit), "has_skip", False)]
    assert long["strided units"] == {f"{unit}.drop_path" for unit in alike}


def test_the_benchmark_has_no_error_that_a_user_should_not_see():
    spec = importlib.util.spec_from_file_location("families", BENCHMARK)
    families = importlib.util.module_from_spec(spec)
    sys.modules["families"] = families
    spec.loader.exec_module(families)
    assert len(families.FAMILIES) >= 25
    for family in families.FAMILIES.values():
        assert timm.is_model(family.name) or family.name.startswith(("torchvision/", "transformers/"))
    refused: dict[str, set[str]] = {
        "vit, registers": set(),
        "xcit": {"attention_distance", "receptive_field", "skip", "lesions", "localization", "frequency"},
        "regnet": {"attention_distance"},
    }
    for family, expected in refused.items():
        answers = families.answer(families.FAMILIES[family])
        assert list(answers) == [analysis.name for analysis in ANALYSES]
        assert {name for name, said in answers.items() if said != "yes"} == expected, answers
        assert not any(said.partition(":")[0].isupper() for said in answers.values()), answers
    refusals = {
        family: {"cka": "yes", "skip": f"'a.b' of {families.FAMILIES[family].name} has 3 x 4"}
        for family in refused
    }
    table = families.markdown(refusals, 60)
    assert "| xcit | `xcit_nano_12_p16_224` | yes | [1] |" in table
    assert table.endswith("1. LAYER of MODEL has N\n")
