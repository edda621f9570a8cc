"""Files as trainers and wrappers leave them: the module computes what the network that was trained computes."""

import argparse
import collections
import copy
import dataclasses
import pathlib
import re
from functools import partial

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from small_networks import assert_same, hugging_face, resnet, scattered, vit
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.optim.swa_utils import AveragedModel

from vit_analysis.loading.checkpoint import read
from vit_analysis.loading.conventions import renamed
from vit_analysis.loading.fitting import fit, shown
from vit_analysis.spelling import Refusal


class AttributeDict(dict):
    """As Lightning keeps hyperparameters in."""


@dataclasses.dataclass
class Settings:
    lr: float
    out: pathlib.Path


def under(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


def other(tensors):
    """Weights of the same network that are not to be taken."""
    return {name: value + 1 if value.is_floating_point() else value for name, value in tensors.items()}


def lightning(state):
    return {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": under("model.", state),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.1)}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [],
        "hyper_parameters": AttributeDict(name="vit", out=pathlib.Path("runs")),
        "hparams_name": "kwargs",
    }


def timms(state):
    args = argparse.Namespace(model="vit", lr=np.float64(0.1), out=pathlib.Path("out"))
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {
        "epoch": 9,
        "arch": "vit_base_patch16_224",
        "state_dict": other(state),
        "optimizer": optimizer,
        "version": 2,
        "args": args,
        "amp_scaler": {"scale": 65536.0},
        "state_dict_ema": state,
        "metric": 71.2,
    }


def averaged(network):
    """As torch averages weights: with a counter."""
    return AveragedModel(network).state_dict()


def checkpointed(network):
    apply_activation_checkpointing(network, check_fn=lambda part: type(part).__name__ == "Block")
    return network.state_dict()


def everywhere(infix, state):
    return {
        name.replace("blocks.0.", f"blocks.0.{infix}").replace("attn.", f"attn.{infix}"): v
        for name, v in state.items()
    }


VIT_FILES = {
    "the state_dict itself": lambda s: s,
    "DataParallel": lambda s: under("module.", s),
    "compiled": lambda s: under("_orig_mod.", s),
    "DataParallel, compiled": lambda s: {"model": under("_orig_mod.module.", s)},
    "compiled, DataParallel": lambda s: {"model": under("module._orig_mod.", s)},
    "blocks compiled": lambda s: everywhere("_orig_mod.", s),
    "Lightning": lightning,
    "Lightning, compiled": lambda s: lightning(under("_orig_mod.", s)),
    "Lightning with net": lambda s: {"state_dict": under("net.", s), "hyper_parameters": {"a": 1}},
    "Lightning with a loss": lambda s: {
        "state_dict": {**under("model.", s), "criterion.weight": torch.ones(5)}
    },
    "timm's train.py": timms,
    "an average under model_ema": lambda s: {"model": other(s), "model_ema": under("module.", s)},
    "an average under ema": lambda s: {"net": other(s), "ema": s, "step": 4},
    "ema_pytorch": lambda s: (
        under("ema_model.", s) | under("online_model.", other(s)) | {"step": torch.tensor(3)}
    ),
    "an average inside of Lightning": lambda s: {
        "state_dict": under("net.", other(s)) | under("ema.module.", s)
    },
    "SWA": lambda s: {"swa_model": {**under("module.", s), "n_averaged": torch.tensor(3)}},
    "FSDP": lambda s: under("_fsdp_wrapped_module.", everywhere("_fsdp_wrapped_module.", s)),
    "activation checkpoints": lambda s: everywhere("_checkpoint_wrapped_module.", s),
    "Fabric": lambda s: {"model": under("_forward_module.", s)},
    "DeepSpeed": lambda s: {"module": s, "ds_config": {"a": 1}, "lr_scheduler": None, "buffer_names": []},
    "a wrapper of one's own": lambda s: under("classifier_under_test.timm_model.", s),
    "open_clip": lambda s: (
        under("visual.trunk.", s)
        | {"text.token_embedding.weight": torch.ones(9, 8), "logit_scale": torch.ones(())}
    ),
    "five dictionaries deep": lambda s: {"a": {"b": {"c": {"state": {"weights": s}}}}},
    "numbers beside the weights": lambda s: s | {"epoch": 3, "name": "vit", "args": argparse.Namespace(a=1)},
    "a loss beside": lambda s: {"loss": torch.tensor(0.3), "rng_state": torch.ones(8), "model_state": s},
    "MAE": lambda s: {
        "model": s
        | {
            "mask_token": torch.ones(1, 1, 48),
            "decoder_pos_embed": torch.ones(1, 17, 32),
            "decoder_blocks.0.norm1.weight": torch.ones(32),
            "decoder_pred.bias": torch.ones(9),
        }
    },
    "DINO": lambda s: {
        "student": under("module.backbone.", other(s)),
        "teacher": under("backbone.", s)
        | {"head.mlp.0.weight": torch.ones(4, 48), "head.last_layer.weight_g": torch.ones(4, 1)},
        "dino_loss": {"center": torch.ones(1, 4)},
        "args": argparse.Namespace(arch="vit"),
    },
    "DINOv2's own, in parts": lambda s: {
        "teacher": under(
            "backbone.", {name.replace("blocks.", "blocks.0."): value for name, value in s.items()}
        )
    },
    "DINOv2's own": lambda s: {"model": under("teacher.backbone.", s) | under("student.backbone.", other(s))},
    "BYOL": lambda s: (
        under("online_encoder.net.", s)
        | under("target_encoder.net.", other(s))
        | {"online_predictor.net.0.weight": torch.ones(4, 4)}
    ),
    "I-JEPA": lambda s: {
        "encoder": under("module.", other(s)),
        "predictor": {"module.mask_token": torch.ones(1, 1, 8)},
        "target_encoder": under("module.", s),
        "opt": {"state": {}, "param_groups": []},
    },
    "MoCo v3": lambda s: {
        "state_dict": under("module.base_encoder.", s)
        | under("module.momentum_encoder.", other(s))
        | {"module.predictor.0.weight": torch.ones(4, 4)}
    },
    "defaultdict": lambda s: {"state_dict": collections.defaultdict(partial(int), s)},
    "a subclass of dict": lambda s: AttributeDict(model=AttributeDict(s)),
    "objects": lambda s: {
        "model": s,
        "cfg": Settings(0.1, pathlib.Path("a")),
        "kind": Settings,
        "deque": collections.deque([1, 2]),
        "dtype": np.dtype("float32"),
        "set": {1, 2},
        "when": np.datetime64(0, "s"),
    },
    "parameters": lambda s: {"model": {name: nn.Parameter(value) for name, value in s.items()}},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("kind", VIT_FILES)
def test_a_vision_transformers_file(tmp_path, kind, legacy):
    source, target = vit(), vit()
    file = tmp_path / "checkpoint.pth.tar"
    torch.save(VIT_FILES[kind](source.state_dict()), file, _use_new_zipfile_serialization=not legacy)
    tensors, _ = read(file)
    found = renamed(tensors, target)
    assert shown(found.tensors, target).classes == 5
    fit(target, found.tensors, "checkpoint")
    assert_same(source, target)


RESNET_FILES = {
    "torchvision": lambda s: s,
    "torch's ImageNet example": lambda s: {
        "epoch": 3,
        "arch": "resnet",
        "state_dict": under("module.", s),
        "best_acc1": torch.tensor(71.0),
        "optimizer": {"state": {}, "param_groups": []},
    },
    "MoCo v2": lambda s: {
        "arch": "resnet",
        "state_dict": under("module.encoder_q.", s)
        | under("module.encoder_k.", other(s))
        | {"module.queue": torch.ones(8, 9), "module.queue_ptr": torch.zeros(1, dtype=torch.long)},
    },
    "SimSiam": lambda s: {
        "state_dict": under("module.encoder.", s) | {"module.predictor.0.weight": torch.ones(4, 4)}
    },
    "BYOL": lambda s: under("online_network.", s) | under("target_network.", other(s)),
    "Barlow Twins": lambda s: {
        "model": under("module.backbone.", s) | {"module.projector.0.weight": torch.ones(4, 4)}
    },
    "counters of profiling": lambda s: (
        s | {"total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)}
    ),
}


@pytest.mark.parametrize("kind", RESNET_FILES)
def test_a_resnets_file(tmp_path, kind):
    source, target = resnet(), resnet()
    torch.save(RESNET_FILES[kind](source.state_dict()), tmp_path / "checkpoint.pth")
    found = renamed(read(tmp_path / "checkpoint.pth").tensors, target)
    assert shown(found.tensors, target).classes == 5
    fit(target, found.tensors, "checkpoint")
    assert_same(source, target)


def test_wrappers_of_torch_itself(tmp_path):
    for kind, wrapped in {
        "average": averaged,
        "data parallel": lambda network: nn.DataParallel(network).state_dict(),
        "compiled": lambda network: torch.compile(network).state_dict(),
        "activation checkpoints": checkpointed,
    }.items():
        source, target = vit(), vit()
        torch.save({"model": wrapped(copy.deepcopy(source))}, tmp_path / f"{kind}.pt")
        found = renamed(read(tmp_path / f"{kind}.pt").tensors, target)
        fit(target, found.tensors, kind)
        assert_same(source, target)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_the_modules(tmp_path, dtype):
    source, target = vit(), vit()
    half = {name: value.to(dtype) for name, value in source.state_dict().items()}
    safetensors.torch.save_file(half, tmp_path / "half.safetensors")
    fit(target, renamed(read(tmp_path / "half.safetensors").tensors, target).tensors, "half")
    assert all(torch.equal(value, half[name].float()) for name, value in target.state_dict().items())


def test_a_folder_of_hugging_faces_trainer_in_parts(tmp_path):
    source = hugging_face("ViT", "ForImageClassification", num_labels=5)
    source.save_pretrained(tmp_path / "whole")
    source.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    for place in ("whole", "whole/model.safetensors", "parts", "parts/model.safetensors.index.json"):
        target = vit()
        fit(target, renamed(read(tmp_path / place).tensors, target).tensors, place)
        assert_same(source, target)


def test_what_is_taken_and_what_is_left_is_said(tmp_path):
    source = vit()
    torch.save(timms(source.state_dict()), tmp_path / "timm.pth.tar")
    taken, unread = read(tmp_path / "timm.pth.tar").said
    assert taken == "weights under 'state_dict_ema', not under 'state_dict'"
    assert re.fullmatch(r"\d kinds of objects \(argparse.Namespace, .*\) were left unread", unread)
    torch.save({"state_dict": source.state_dict(), "args": argparse.Namespace(a=1)}, tmp_path / "one.pth")
    assert read(tmp_path / "one.pth").said == (
        "weights under 'state_dict'",
        "an argparse.Namespace was left unread",
    )
    state = (
        under("encoder_q.", source.state_dict())
        | under("encoder_k.", source.state_dict())
        | {"queue": torch.ones(3)}
    )
    assert renamed(state, vit()).said == (
        "prefix 'encoder_q.' taken off",
        "33 tensors outside of it left aside "
        "(encoder_k.cls_token, encoder_k.pos_embed, encoder_k.patch_embed.proj.weight, ...)",
    )


def test_weights_at_two_places_that_nothing_tells_apart_are_refused(tmp_path):
    state = vit().state_dict()
    with pytest.raises(
        Refusal, match="weights under 'left' and under 'right' fit equally well; keep one of them"
    ):
        renamed(under("left.", state) | under("right.", other(state)), vit())
    torch.save({"left": state, "right": other(state)}, tmp_path / "two.pth")
    with pytest.raises(Refusal, match="weights under 'left' and under 'right' fit equally well"):
        renamed(read(tmp_path / "two.pth").tensors, vit())
    hf = hugging_face("ViT", "Model", num_hidden_layers=2).state_dict()
    with pytest.raises(Refusal, match="'left' and under 'right'"):
        renamed(under("left.", hf) | under("right.", other(hf)), vit())
    renamed(under("left.", state) | under("right.", state), vit())  # the same twice is one


def test_a_network_inside_of_another_is_found_whatever_stands_around_it():
    detector = under("detector.backbone.body.", resnet(num_classes=0).state_dict())
    detector |= {f"detector.rpn.{i}.weight": torch.ones(3, 3) for i in range(30)}
    target = scattered(timm.create_model("resnet10t", num_classes=0))
    found = renamed(detector, target)
    assert found.said[0] == "prefix 'detector.backbone.body.' taken off"
    assert shown(found.tensors, target).classes == 0
    fit(target, found.tensors, "detector")
