"""One network in several codebases: whichever wrote the file, each computes what the file's own network computes."""

import re

import numpy as np
import pytest
import timm
import torch
import transformers
from small_networks import (
    TIMM,
    assert_same,
    computed,
    hugging_face,
    loaded,
    resnet,
    scattered,
    torchvision_vit,
    vit,
)
from timm.models.vision_transformer import checkpoint_filter_fn

from vit_analysis.lab.vit import ViT
from vit_analysis.loading.checkpoint import read
from vit_analysis.loading.conventions import renamed
from vit_analysis.loading.fitting import fit, shown
from vit_analysis.loading.translation import looks_like

CLASSIFIERS = {
    "timm": vit,
    "torchvision": torchvision_vit,
    "transformers": lambda: hugging_face("ViT", "ForImageClassification", num_labels=5),
    "lab": lambda: scattered(
        ViT(img_size=32, patch_size=8, num_classes=5, embed_dim=48, depth=2, num_heads=3, mlp_ratio=2)
    ),
}
DINOV2 = {
    "timm": lambda: vit("vit_base_patch14_dinov2", num_classes=0),
    "transformers": lambda: hugging_face("Dinov2", "Model"),
}
REGISTERS = {
    "timm": lambda: vit("vit_base_patch14_reg4_dinov2", num_classes=0),
    "transformers": lambda: hugging_face("Dinov2WithRegisters", "Model", num_register_tokens=4),
}
DISTILLED = {
    "timm": lambda: vit("deit_base_distilled_patch16_224"),
    "transformers": lambda: hugging_face("DeiT", "ForImageClassificationWithTeacher", num_labels=5),
}
CLIP = {
    "timm": lambda: without_bias(vit("vit_base_patch16_clip_224", num_classes=20)),
    "transformers": lambda: hugging_face(
        "CLIPVision", "ModelWithProjection", projection_dim=20, hidden_act="gelu", layer_norm_eps=1e-5
    ),
}
SIGLIP = {
    "timm": lambda: vit("vit_base_patch16_siglip_224", num_classes=0),
    "transformers": lambda: hugging_face("SiglipVision", "Model", hidden_act="gelu"),
}


def without_bias(module):
    """CLIP's projection has none."""
    torch.nn.init.zeros_(module.head.bias)
    return module


# transformers calls the class with a projection otherwise than its settings.
def hugging_face_clip():
    config = transformers.CLIPVisionConfig(
        image_size=32,
        patch_size=8,
        num_hidden_layers=2,
        num_attention_heads=3,
        hidden_size=48,
        intermediate_size=96,
        projection_dim=20,
        hidden_act="gelu",
    )
    return scattered(transformers.CLIPVisionModelWithProjection(config))


CLIP["transformers"] = hugging_face_clip
PAIRS = [
    pytest.param(codebases[one], codebases[other], id=f"{kind}: {one} to {other}")
    for kind, codebases in {
        "ViT": CLASSIFIERS,
        "DINOv2": DINOV2,
        "DINOv2 with registers": REGISTERS,
        "DeiT, distilled": DISTILLED,
        "CLIP": CLIP,
        "SigLIP": SIGLIP,
    }.items()
    for one in codebases
    for other in codebases
    if (one, other) not in {("lab", "timm"), ("lab", "torchvision"), ("lab", "transformers")}
]


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_network_computes_the_same_in_another_codebase(source, target):
    source, target = source(), target()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    assert_same(source, loaded(target, source.state_dict())[0])
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_a_translation_is_said_with_what_a_file_cannot_say():
    _, said = loaded(vit(), torchvision_vit().state_dict())
    assert said == [
        "names of torchvision's Vision Transformer turned into those of timm's Vision Transformer "
        "(activations and epsilons: the module's)"
    ]


def test_the_labs_linear_patches_are_not_taken_for_a_convolution():
    with pytest.raises(ValueError, match=r"1 of another shape \(patch_embed.proj.weight \(48, 192\) instead"):
        loaded(vit(), CLASSIFIERS["lab"]().state_dict())


# Names of transformers before 5, made from today's by hand -----------------------------------------------------------

BEFORE_5 = {
    "ViT": {
        r"vit\.layers\.(\d+)\.": r"vit.encoder.layer.\1.",
        r"attention\.q_proj": "attention.attention.query",
        r"attention\.k_proj": "attention.attention.key",
        r"attention\.v_proj": "attention.attention.value",
        r"attention\.o_proj": "attention.output.dense",
        r"mlp\.fc1": "intermediate.dense",
        r"mlp\.fc2": "output.dense",
    },
    "Dinov2": {
        r"attention\.q_proj": "attention.attention.query",
        r"attention\.k_proj": "attention.attention.key",
        r"attention\.v_proj": "attention.attention.value",
        r"attention\.o_proj": "attention.output.dense",
    },
    "CLIP": {r"^(?!visual_projection)(vision_model\.)?": "vision_model."},
}


def before_5(kind, tensors):
    renamed = {}
    for name, value in tensors.items():
        for new, old in BEFORE_5[kind].items():
            name = re.sub(new, old, name, count=1)
        renamed[name] = value
    return renamed


@pytest.mark.parametrize("target", ["timm", "torchvision", "transformers"])
def test_names_of_transformers_before_5(target):
    source = CLASSIFIERS["transformers"]()
    old = before_5("ViT", source.state_dict())
    assert "vit.encoder.layer.1.attention.attention.key.bias" in old
    assert_same(source, loaded(CLASSIFIERS[target](), old)[0])


def test_names_before_5_are_those_that_transformers_itself_reads(tmp_path):
    source = CLASSIFIERS["transformers"]()
    source.config.save_pretrained(tmp_path)
    torch.save(before_5("ViT", source.state_dict()), tmp_path / "pytorch_model.bin")
    theirs = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(computed(theirs), computed(source))


@pytest.mark.parametrize("target", ["timm", "transformers"])
@pytest.mark.parametrize(("kind", "codebases"), [("Dinov2", REGISTERS), ("Dinov2", DINOV2), ("CLIP", CLIP)])
def test_names_of_other_models_before_5(kind, codebases, target):
    source = codebases["transformers"]()
    assert_same(source, loaded(codebases[target](), before_5(kind, source.state_dict()))[0])


def test_a_model_without_a_head_and_one_with_it_take_each_others_files():
    base = hugging_face("ViT", "Model")
    whole = hugging_face("ViT", "ForImageClassification", num_labels=0)
    _, said = loaded(whole, base.state_dict())
    assert said == ["prefix 'vit.' put on", "2 tensors left aside (a pooler)"]
    torch.testing.assert_close(
        whole.vit(torch.ones(1, 3, 32, 32)).last_hidden_state,
        base(torch.ones(1, 3, 32, 32)).last_hidden_state,
    )
    whole = hugging_face("ViT", "ForImageClassification", num_labels=5)
    config = transformers.ViTConfig(**whole.config.to_dict())
    bare, said = loaded(transformers.ViTModel(config, add_pooling_layer=False).eval(), whole.state_dict())
    assert said == [
        "prefix 'vit.' taken off",
        "2 tensors outside of it left aside (classifier.weight, classifier.bias)",
    ]
    assert torch.equal(bare.layernorm.weight, whole.vit.layernorm.weight)


# Originals, with timm's own conversions as the oracle ---------------------------------------------------------------


def clip_of_openai():
    """A file with both towers, the text's as large as the images'."""
    made = {
        "visual.class_embedding": torch.randn(48),
        "visual.positional_embedding": torch.randn(17, 48),
        "visual.proj": torch.randn(48, 20),
        "visual.conv1.weight": torch.randn(48, 3, 8, 8),
        "positional_embedding": torch.randn(77, 48),
        "text_projection": torch.randn(48, 20),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": torch.randn(100, 48),
        "ln_final.weight": torch.randn(48),
        "ln_final.bias": torch.randn(48),
    }
    for norm in ("ln_pre", "ln_post"):
        made |= {f"visual.{norm}.{kind}": torch.randn(48) for kind in ("weight", "bias")}
    for tower in ("visual.", ""):
        for i in range(2):
            block = f"{tower}transformer.resblocks.{i}"
            shapes = {
                "attn.in_proj_weight": (144, 48),
                "attn.in_proj_bias": (144,),
                "attn.out_proj.weight": (48, 48),
                "attn.out_proj.bias": (48,),
                "ln_1.weight": (48,),
                "ln_1.bias": (48,),
                "mlp.c_fc.weight": (96, 48),
                "mlp.c_fc.bias": (96,),
                "mlp.c_proj.weight": (48, 96),
                "mlp.c_proj.bias": (48,),
                "ln_2.weight": (48,),
                "ln_2.bias": (48,),
            }
            made |= {f"{block}.{name}": torch.randn(shape) for name, shape in shapes.items()}
    return made


def same_as_timm(target, tensors):
    found = renamed(tensors, target)
    fit(target, found.tensors, "file")
    theirs = checkpoint_filter_fn(dict(tensors), target)
    expected = {name: value for name, value in theirs.items() if name in target.state_dict()}
    assert expected.keys() == target.state_dict().keys()
    assert all(torch.equal(value, expected[name]) for name, value in target.state_dict().items())
    return found


def test_openais_clip():
    target = vit("vit_base_patch16_clip_224", num_classes=20)
    found = same_as_timm(target, clip_of_openai())
    assert shown(found.tensors, target).classes == 20
    assert any("outside of 'visual.' left aside" in said for said in found.said)


@pytest.mark.parametrize("registers", [0, 4])
def test_metas_dinov2(registers):
    name = "vit_base_patch14_reg4_dinov2" if registers else "vit_base_patch14_dinov2"
    target = vit(name, num_classes=0)
    file = {
        name: torch.randn_like(value) for name, value in target.state_dict().items() if name != "reg_token"
    }
    file |= {"mask_token": torch.randn(1, 48), "pos_embed": torch.randn(1, 17, 48)}
    if registers:
        file["register_tokens"] = torch.randn(1, registers, 48)
    found = same_as_timm(target, file)
    assert shown(found.tensors, target).registers == registers


def test_metas_giant_with_a_gated_layer():
    target = vit("vit_giant_patch14_dinov2", num_classes=0, mlp_ratio=2)
    named = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    file = {"mask_token": torch.randn(1, 48)}
    for name, value in target.state_dict().items():
        for own, theirs in named.items():
            name = name.replace(own, theirs)
        file[name] = torch.randn_like(value)
    found = same_as_timm(target, file)
    assert found.tensors.keys() - {"mask_token"} == target.state_dict().keys()


def test_deit_iii():
    target = vit("deit3_base_patch16_224")
    file = {
        re.sub(r"ls(\d)\.gamma", r"gamma_\1", k): torch.randn_like(v) for k, v in target.state_dict().items()
    }
    loaded(target, file)
    assert torch.equal(target.blocks[1].ls2.gamma, file["blocks.1.gamma_2"])


def test_arrays_of_jax(tmp_path):
    source = vit()
    arrays = {
        "cls": source.cls_token,
        "embedding/kernel": source.patch_embed.proj.weight.permute(2, 3, 1, 0),
        "embedding/bias": source.patch_embed.proj.bias,
        "Transformer/posembed_input/pos_embedding": source.pos_embed,
        "Transformer/encoder_norm/scale": source.norm.weight,
        "Transformer/encoder_norm/bias": source.norm.bias,
        "head/kernel": source.head.weight.T,
        "head/bias": source.head.bias,
    }
    for i, block in enumerate(source.blocks):
        root, attention = f"Transformer/encoderblock_{i}", "MultiHeadDotProductAttention_1"
        for part, weight, bias in zip(
            ("query", "key", "value"),
            block.attn.qkv.weight.chunk(3),
            block.attn.qkv.bias.chunk(3),
            strict=True,
        ):
            arrays[f"{root}/{attention}/{part}/kernel"] = weight.T.reshape(48, 3, 16)
            arrays[f"{root}/{attention}/{part}/bias"] = bias.reshape(3, 16)
        arrays[f"{root}/{attention}/out/kernel"] = block.attn.proj.weight.T.reshape(3, 16, 48)
        arrays[f"{root}/{attention}/out/bias"] = block.attn.proj.bias
        for number, norm in ((0, block.norm1), (2, block.norm2)):
            arrays[f"{root}/LayerNorm_{number}/scale"], arrays[f"{root}/LayerNorm_{number}/bias"] = (
                norm.weight,
                norm.bias,
            )
        for number, layer in enumerate((block.mlp.fc1, block.mlp.fc2)):
            arrays[f"{root}/MlpBlock_3/Dense_{number}/kernel"] = layer.weight.T
            arrays[f"{root}/MlpBlock_3/Dense_{number}/bias"] = layer.bias
    np.savez(tmp_path / "jax.npz", **{name: value.detach().numpy() for name, value in arrays.items()})
    tensors, said = read(tmp_path / "jax.npz")
    assert said == ("JAX's arrays turned into timm's names and layouts",)
    assert_same(source, loaded(vit(), tensors)[0])
    theirs = timm.create_model("vit_base_patch16_224", **TIMM).eval()
    theirs.load_pretrained(str(tmp_path / "jax.npz"))
    torch.testing.assert_close(computed(theirs), computed(source))


def test_timms_own_filter_renames_but_never_resizes():
    target = scattered(timm.create_model("convnext_atto", num_classes=5))
    name = {
        r"^stem\.": "downsample_layers.0.",
        r"\.blocks\.": ".",
        r"stages\.(\d)\.downsample": r"downsample_layers.\1",
    }
    name |= {"conv_dw": "dwconv", r"mlp\.fc": "pwconv", r"head\.norm": "norm", r"head\.fc": "head"}
    file = {}
    for own, value in target.state_dict().items():
        for new, old in name.items():
            own = re.sub(new, old, own)
        file[own] = torch.randn_like(value)
    found = renamed(file, target)
    fit(target, found.tensors, "file")
    assert torch.equal(target.stages[1].downsample[1].weight, file["downsample_layers.1.1.weight"])
    smaller = scattered(
        timm.create_model("swin_tiny_patch4_window7_224", img_size=64, window_size=4, depths=(1, 1, 1, 1))
    )
    larger = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=128, window_size=8, depths=(1, 1, 1, 1)
    )
    with pytest.raises(
        ValueError, match=r"of another shape \(layers.0.blocks.0.attn.relative_position_bias_table"
    ):
        fit(larger, renamed(smaller.state_dict(), larger).tensors, "file")


def test_networks_are_known_by_their_names():
    assert looks_like(vit().state_dict()) == "timm's Vision Transformer"
    assert looks_like(torchvision_vit().state_dict()) == "torchvision's Vision Transformer"
    assert looks_like(resnet().state_dict()) == "a ResNet"
    assert looks_like(["features.0.weight", "features.3.bias"]) == "a VGG"
    assert looks_like(["a", "b"]) is None
