"""What a file shows of its network, what is harmless in it, and that every real mistake is refused."""

import pytest
import timm
import torch
from small_networks import assert_same, hugging_face, loaded, resnet, scattered, torchvision_vit, vit

from vit_analysis.loading.conventions import renamed
from vit_analysis.loading.fitting import Shown, fit, shown
from vit_analysis.spelling import Refusal

# What a file shows ------------------------------------------------------------------------------------------------


def shown_of(tensors, module) -> Shown:
    return shown(renamed(tensors, module).tensors, module)


SETTINGS = {
    "classes": {"num_classes": 7},
    "no head": {"num_classes": 0},
    "channels": {"in_chans": 1},
    "patch": {"patch_size": 4},
    "size": {"img_size": 48},
    "size and patch": {"img_size": 96, "patch_size": 16},
    "mean of all tokens": {"class_token": False, "global_pool": "avg"},
    "mean beside a class token": {"global_pool": "avg"},
    "registers": {"reg_tokens": 4},
    "everything": {"img_size": 64, "patch_size": 4, "num_classes": 9, "in_chans": 1, "reg_tokens": 2},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_file_shows_how_its_network_was_built(kind):
    source = vit(**SETTINGS[kind])
    found = shown_of(source.state_dict(), vit())
    rows, columns = found.patch
    built = vit(
        img_size=(found.grid[0] * rows, found.grid[1] * columns),
        patch_size=found.patch,
        num_classes=found.classes,
        in_chans=found.channels,
        reg_tokens=found.registers,
        class_token=found.class_token,
        global_pool="avg" if found.average else "token",
    )
    fit(built, source.state_dict(), "file")
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in built.state_dict().items())


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (lambda **_: torchvision_vit(num_classes=7, image_size=48, patch_size=4), vit),
        (lambda **_: vit(num_classes=7, img_size=48, patch_size=4), torchvision_vit),
        (
            lambda **_: hugging_face(
                "ViT", "ForImageClassification", num_labels=7, image_size=48, patch_size=4
            ),
            torchvision_vit,
        ),
        (
            lambda **_: vit(num_classes=7, img_size=48, patch_size=4),
            lambda: hugging_face("ViT", "ForImageClassification", num_labels=5),
        ),
    ],
)
def test_a_file_of_another_codebase_shows_it_too(source, target):
    found = shown_of(source().state_dict(), target())
    assert (found.classes, found.patch, found.grid, found.channels) == (7, (4, 4), (12, 12), 3)
    assert (found.registers, found.class_token, found.blocks, found.width) == (0, True, 2, 48)


def test_registers_of_one_codebase_are_shown_for_another():
    source = hugging_face("Dinov2WithRegisters", "Model", num_register_tokens=3, image_size=48)
    target = vit("vit_base_patch14_reg4_dinov2", num_classes=0)
    found = shown_of(source.state_dict(), target)
    assert (found.registers, found.grid, found.classes) == (3, (6, 6), 0)
    built = vit("vit_base_patch14_reg4_dinov2", num_classes=0, reg_tokens=3, img_size=48)
    fit(built, renamed(source.state_dict(), target).tensors, "file")


def test_a_grid_is_the_modules_or_a_square_or_unknown():
    wide = vit(img_size=(16, 64))  # 2 x 8 patches, as many as 4 x 4
    assert shown_of(wide.state_dict(), wide).grid == (2, 8)
    other = vit(img_size=(16, 72))  # 2 x 9
    assert shown_of(other.state_dict(), vit()).grid is None
    assert shown_of(other.state_dict(), other).grid == (2, 9)


def test_a_resnet_shows_its_classes_and_channels():
    assert shown_of(resnet(num_classes=7, in_chans=1).state_dict(), resnet()) == Shown(classes=7, channels=1)
    assert shown_of(resnet(num_classes=0).state_dict(), resnet()).classes == 0
    for name, size in {
        "convnext_atto": None,
        "efficientnet_b0": None,
        "mobilenetv3_small_050": None,
        "swin_tiny_patch4_window7_224": 224,
    }.items():
        module = timm.create_model(name, num_classes=7, **({"img_size": size} if size else {}))
        assert shown(module.state_dict(), timm.create_model(name)).classes == 7


@pytest.mark.parametrize(
    "name", ["convnext_atto", "crossvit_tiny_240", "levit_128s", "repvit_m0_9", "caformer_s18", "volo_d1_224"]
)
def test_families_say_themselves_where_their_heads_are(name):
    source, other, bare = (timm.create_model(name, num_classes=number).eval() for number in (7, 5, 0))
    assert shown(source.state_dict(), other).classes == 7
    assert shown(bare.state_dict(), other).classes == 0
    told = fit(bare, source.state_dict(), "file")
    assert len(told) == 1
    assert told[0].endswith("left aside (a head)")


def test_a_hybrid_shows_the_images_channels_and_no_patch():
    module = timm.create_model("vit_tiny_r_s16_p8_224", img_size=64, in_chans=1)
    found = shown(module.state_dict(), module)
    assert (found.channels, found.patch) == (1, None)


def test_a_pooler_is_shown():
    module = hugging_face("ViT", "Model")
    assert shown_of(module.state_dict(), module).pooler
    assert not shown_of(vit().state_dict(), module).pooler


# What is harmless -------------------------------------------------------------------------------------------------


def test_missing_counters_keep_their_value():
    source, target = resnet(), resnet()
    state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    before = {name: value.clone() for name, value in target.state_dict().items() if "num_batches" in name}
    assert fit(target, state, "file") == ["counters of batches not in the file"]
    assert before
    assert all(torch.equal(target.state_dict()[name], value) for name, value in before.items())
    assert_same(source, target)


HARMLESS = {
    "a mask token": {"mask_token": torch.ones(1, 1, 48)},
    "a decoder": {"decoder_pos_embed": torch.ones(3), "decoder_blocks.0.norm1.weight": torch.ones(3)},
    "a projection head": {"head.mlp.0.weight": torch.ones(3, 48), "predictor.0.weight": torch.ones(3, 3)},
    "a queue": {"queue": torch.ones(3), "queue_ptr": torch.ones(1)},
    "counters": {"n_averaged": torch.ones(())},
    "indices": {"blocks.0.attn.relative_position_index": torch.ones(3, 3, dtype=torch.long)},
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_only_training_needs_is_left_aside_and_counted(kind):
    source, target = vit(), vit()
    number = len(HARMLESS[kind])
    said = fit(target, source.state_dict() | HARMLESS[kind], "file")
    assert said == [f"{number} tensor{'s' if number > 1 else ''} left aside ({kind})"]
    assert_same(source, target)


def test_a_head_is_left_aside_only_where_the_module_has_none():
    bare = vit(num_classes=0)
    assert fit(bare, vit().state_dict(), "file") == ["2 tensors left aside (a head)"]
    assert_same(vit_without_head(bare), bare)
    with pytest.raises(
        Refusal, match=r"2 missing \(head.weight, head.bias\); it has no head .*num_classes=0"
    ):
        fit(vit(), bare.state_dict(), "file")


def vit_without_head(bare):
    other = vit(num_classes=0)
    other.load_state_dict(bare.state_dict())
    return other


def test_indices_that_the_module_makes_itself_may_be_missing_or_there():
    def swin():
        torch.manual_seed(0)
        name = "swin_tiny_patch4_window7_224"
        return timm.create_model(name, img_size=56, depths=(1, 1, 1, 1), num_classes=5, window_size=7).eval()

    source = swin()
    index = {
        "layers.0.blocks.0.attn.relative_position_index": source.layers[0]
        .blocks[0]
        .attn.relative_position_index
    }
    assert fit(swin(), source.state_dict() | index, "file") == ["1 tensor left aside (indices)"]


def test_the_tensors_of_the_user_stay_as_they_are():
    state = vit().double().state_dict()
    before = {name: value.clone() for name, value in state.items()}
    target = vit()
    loaded(target, state)
    target.head.weight.data.zero_()
    assert all(
        torch.equal(value, before[name]) and value.dtype == torch.float64 for name, value in state.items()
    )


# What is a mistake ------------------------------------------------------------------------------------------------


def without(part, state):
    return {name: value for name, value in state.items() if part not in name}


MISTAKES = {
    "a block is missing": (
        lambda s: without("blocks.1.", s),
        r"12 missing \(blocks.1.norm1.weight, .*\.\.\.\); it has 1 block where the module has 2",
    ),
    "one tensor of a block is missing": (
        lambda s: without("blocks.1.mlp.fc1.bias", s),
        r"1 missing \(blocks.1.mlp.fc1.bias\)$",
    ),
    "a norm is missing": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("norm.")},
        r"2 missing \(norm.weight, norm.bias\)$",
    ),
    "the class token is missing": (lambda s: without("cls_token", s), r"1 missing \(cls_token\)$"),
    "the position embedding is missing": (lambda s: without("pos_embed", s), r"1 missing \(pos_embed\)$"),
    "a transposed tensor": (
        lambda s: s | {"blocks.0.mlp.fc1.weight": s["blocks.0.mlp.fc1.weight"].T},
        r"1 of another shape \(blocks.0.mlp.fc1.weight \(48, 96\) instead of \(96, 48\)\)$",
    ),
    "another width": (
        lambda _: vit(embed_dim=24).state_dict(),
        r"\d+ of another shape \(cls_token \(1, 1, 24\) instead of \(1, 1, 48\)",
    ),
    "deeper": (
        lambda _: vit(depth=3).state_dict(),
        r"12 unexpected \(blocks.2.norm1.weight, .*; it has 3 blocks where the module has 2",
    ),
    "shallower": (
        lambda _: vit(depth=1).state_dict(),
        r"12 missing .*; it has 1 block where the module has 2",
    ),
    "another size": (
        lambda _: vit(img_size=64).state_dict(),
        r"1 of another shape \(pos_embed \(1, 65, 48\) instead of \(1, 17, 48\)\)$",
    ),
    "other classes": (
        lambda _: vit(num_classes=7).state_dict(),
        r"2 of another shape \(head.weight \(7, 48\)",
    ),
    "layer scale": (lambda _: vit(init_values=1.0).state_dict(), r"4 unexpected \(blocks.0.ls1.gamma"),
    "something else": (lambda s: s | {"adapter.weight": torch.ones(1)}, r"1 unexpected \(adapter.weight\)$"),
    "no numbers": (
        lambda s: s | {"norm.bias": torch.full((48,), torch.nan)},
        r"1 not numbers \(norm.bias\)$",
    ),
    "whole numbers": (
        lambda s: s | {"blocks.0.attn.qkv.weight": torch.ones(144, 48, dtype=torch.int8)},
        r"1 quantised \(blocks.0.attn.qkv.weight\)$",
    ),
    "a ResNet": (
        lambda _: resnet().state_dict(),
        r"of 32 tensors: 32 missing .*; its names look like a ResNet",
    ),
    "nothing": (lambda _: {}, r"32 missing \(cls_token, pos_embed, patch_embed.proj.weight, \.\.\.\)"),
    "only a head": (lambda s: {"head.weight": s["head.weight"]}, r"31 missing"),
}


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_refused_and_nothing_is_loaded(kind, wrapper):
    change, told = MISTAKES[kind]
    target = vit()
    before = {name: value.clone() for name, value in target.state_dict().items()}
    state = {wrapper + name: value for name, value in change(vit().state_dict()).items()}
    if wrapper:
        told = told.split(r"\(")[0]
    with pytest.raises(Refusal, match=told) as refusal:
        loaded(target, state)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith("'file.pth' does not fit VisionTransformer of 32 tensors: ")
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


@pytest.mark.parametrize(
    ("part", "told"),
    {
        "encoder_layer_1.self_attention.in_proj_bias": "blocks.1.attn.qkv.bias",
        "encoder_layer_0.ln_2.weight": "blocks.0.norm2.weight",
        "encoder_layer_1.mlp.3.bias": "blocks.1.mlp.fc2.bias",
        "class_token": "cls_token",
        "encoder.pos_embedding": "pos_embed",
    }.items(),
)
def test_what_is_missing_in_another_codebase_is_missing(part, told):
    with pytest.raises(Refusal, match=rf"of 32 tensors: 1 missing \({told}\)"):
        loaded(vit(), without(part, torchvision_vit().state_dict()))


def test_half_of_queries_keys_and_values_is_not_made_up():
    state = hugging_face("ViT", "ForImageClassification", num_labels=5).state_dict()
    key = next(
        name for name in state if "k" in name.split(".")[-2] and "1" in name and name.endswith("weight")
    )
    with pytest.raises(Refusal, match=r"1 missing \(blocks.1.attn.qkv.weight\); 2 unexpected"):
        loaded(vit(), without(key, state))


def test_names_of_another_codebase_are_named():
    resnets = {
        f"resnet.encoder.stages.{i}.layers.0.layer.0.convolution.weight": torch.ones(1) for i in range(4)
    }
    with pytest.raises(Refusal, match="its names look like Hugging Face's ResNet"):
        loaded(resnet(), resnets)
    with pytest.raises(Refusal, match="its names look like torchvision's Vision Transformer"):
        loaded(resnet(), torchvision_vit().state_dict())
    parts = ("norm", "to_qkv", "to_out.0")
    lucid = {f"transformer.layers.{i}.0.{part}.weight": torch.ones(1) for i in range(4) for part in parts}
    with pytest.raises(Refusal, match="its names look like lucidrains' vit-pytorch"):
        loaded(vit(), lucid)


@pytest.mark.parametrize("odd", [torch.tensor(1.0), torch.ones(0), torch.ones(7)])
def test_a_tensor_of_any_shape_in_any_place_is_refused(odd):
    for source, target in ((torchvision_vit, vit), (vit, torchvision_vit)):
        state, module = source().state_dict(), target()
        for name in (
            name for name in state if name.endswith(("token", "pos_embedding", "pos_embed", "head.weight"))
        ):
            found = renamed(state | {name: odd}, module)
            shown(found.tensors, module)
            with pytest.raises(Refusal, match=r"does not fit"):
                fit(module, found.tensors, "file")


def test_a_pooler_is_not_made_up():
    with pytest.raises(Refusal, match=r"2 missing \(pooler.dense.weight, pooler.dense.bias\)"):
        loaded(hugging_face("ViT", "Model"), vit(num_classes=0).state_dict())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_quantised_tensor_is_refused():
    state = vit().state_dict()
    state["head.weight"] = torch.quantize_per_tensor(state["head.weight"], 0.1, 0, torch.qint8)
    with pytest.raises(Refusal, match=r"1 quantised \(head.weight\)"):
        loaded(scattered(vit()), state)
