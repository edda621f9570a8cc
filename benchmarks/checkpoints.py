"""Which kinds of checkpoint are read: each is made here from random weights of a small network, and loaded.

    python benchmarks/checkpoints.py                    # all kinds, as a table in Markdown
    python benchmarks/checkpoints.py --only DINO MAE    # those whose name holds one of these

"yes" means that the loaded network computes what the network that was saved computes, to 1e-4 for every logit or feature; else
there is the sentence that refuses the file. Nothing is downloaded. Needs torchvision and transformers.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import safetensors.torch
import timm
import torch
import transformers
from timm.layers import LayerNorm
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from vit_analysis.loading.checkpoint import read
from vit_analysis.loading.conventions import renamed
from vit_analysis.loading.fitting import fit, shown
from vit_analysis.spelling import Refusal

State = dict[str, Any]
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}
WIDTHS = {"intermediate_size": 96}


def scattered(module: nn.Module) -> nn.Module:
    """The module with random weights, none of which is as initialised."""
    for value in (*module.parameters(), *module.buffers()):
        if value.is_floating_point():
            nn.init.uniform_(value, 0.05, 0.4)
            value.data.mul_(torch.randint(0, 2, value.shape) * 2 - 1 if value.ndim > 1 else 1)
    return module.eval()


def vit(name: str = "vit_base_patch16_224", **config: Any) -> nn.Module:
    """A small member of timm's Vision Transformers."""
    own = {"img_size": 32, "patch_size": 8, "depth": 2, "num_heads": 3, "embed_dim": 48, "mlp_ratio": 2}
    return scattered(timm.create_model(name, **own | {"num_classes": 5} | config))


def resnet() -> nn.Module:
    """A small residual network."""
    return scattered(timm.create_model("resnet10t", num_classes=5))


def tv_vit() -> nn.Module:
    """A small member of torchvision's, with timm's epsilon."""
    norm = partial(nn.LayerNorm, eps=1e-6)
    return scattered(VisionTransformer(32, 8, 2, 3, 48, 96, num_classes=5, norm_layer=norm))


def hf(kind: str, model: str, **config: Any) -> nn.Module:
    """A small member of transformers, with timm's epsilon."""
    own = {"mlp_ratio": 2} if kind.startswith("Dinov2") else WIDTHS
    settings = getattr(transformers, f"{kind}Config")(**SIZES | own | {"layer_norm_eps": 1e-6} | config)
    return scattered(getattr(transformers, kind + model)(settings))


hf_vit = partial(hf, "ViT", "ForImageClassification", num_labels=5)
reg = partial(vit, "vit_base_patch14_reg4_dinov2", num_classes=0)
bare = partial(vit, num_classes=0)


@dataclass(frozen=True)
class Kind:
    """A kind of checkpoint: the network that is saved, how, and the network that it is for."""

    make: Callable[[], nn.Module]
    state: Callable[[State], Any]
    target: Callable[[], nn.Module]
    save: Callable[[Any, Path], object] = torch.save
    ending: str = ".pth"


def under(prefix: str, state: State) -> State:
    """The weights with a prefix."""
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    """Weights of the same network that are not to be taken."""
    return {name: value + 1 if value.is_floating_point() else value for name, value in state.items()}


def infixed(infix: str, state: State) -> State:
    """The weights with an infix where blocks are wrapped."""
    return {name.replace("blocks.0.", f"blocks.0.{infix}"): value for name, value in state.items()}


def without(part: str, state: State) -> State:
    """The weights whose names do not hold a word."""
    return {name: value for name, value in state.items() if part not in name}


def halved(state: State) -> State:
    """The weights in half precision, and so exact in it."""
    return {name: value.half() for name, value in state.items()}


def safe(state: State, path: Path) -> None:
    """Save as safetensors."""
    safetensors.torch.save_file({name: value.contiguous() for name, value in state.items()}, path)


def in_parts(state: State, path: Path) -> None:
    """Save in two parts with an index."""
    path.mkdir()
    names = {f"model-0000{i + 1}-of-00002.safetensors": list(state)[i::2] for i in range(2)}
    for file, own in names.items():
        safe({name: state[name] for name in own}, path / file)
    index = {"weight_map": {name: file for file, own in names.items() for name in own}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def scripted(_: State, path: Path) -> None:
    """Save a program."""
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def bytes_of(content: bytes) -> Callable[[Any, Path], object]:
    """Save these bytes, whatever the weights are."""
    return lambda _, path: path.write_bytes(content)


class Payload:
    """Runs a command when it is unpickled freely."""

    def __reduce__(self) -> Any:
        return os.system, ("echo this must not be seen",)


MASK, HEAD = {"mask_token": torch.ones(1, 1, 48)}, {"head.mlp.0.weight": torch.ones(4, 48)}
ADAM = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
ARGS = argparse.Namespace(lr=0.1, out=Path("out"))
legacy = partial(torch.save, _use_new_zipfile_serialization=False)

KINDS: dict[str, Kind] = {
    "state_dict": Kind(vit, lambda s: s, vit),
    "state_dict before torch 1.6": Kind(vit, lambda s: s, vit, legacy),
    "safetensors": Kind(vit, lambda s: s, vit, safe, ".safetensors"),
    "safetensors in parts, a folder": Kind(vit, lambda s: s, vit, in_parts, ""),
    "half precision": Kind(lambda: vit().half().float(), halved, vit),
    "DistributedDataParallel": Kind(vit, lambda s: {"model": under("module.", s), "optimizer": ADAM}, vit),
    "torch.compile of DDP": Kind(vit, lambda s: under("_orig_mod.module.", s), vit),
    "FSDP": Kind(vit, lambda s: under("_fsdp_wrapped_module.", infixed("_fsdp_wrapped_module.", s)), vit),
    "activation checkpoints": Kind(vit, lambda s: infixed("_checkpoint_wrapped_module.", s), vit),
    "Lightning": Kind(
        vit,
        lambda s: {
            "state_dict": under("model.", s),
            "optimizer_states": [ADAM],
            "hyper_parameters": {"a": ARGS},
        },
        vit,
    ),
    "timm's train.py": Kind(
        vit,
        lambda s: {
            "arch": "vit",
            "state_dict": other(s),
            "state_dict_ema": s,
            "args": ARGS,
            "optimizer": ADAM,
        },
        vit,
    ),
    "ema_pytorch": Kind(vit, lambda s: under("online_model.", other(s)) | under("ema_model.", s), vit),
    "SWA": Kind(vit, lambda s: under("module.", s) | {"n_averaged": torch.tensor(3)}, vit),
    "DeepSpeed": Kind(vit, lambda s: {"module": s, "ds_version": "0.16", "lr_scheduler": None}, vit),
    "torch's ImageNet example": Kind(
        resnet, lambda s: {"arch": "r", "state_dict": under("module.", s)}, resnet
    ),
    "counters of batches missing": Kind(resnet, partial(without, "num_batches_tracked"), resnet),
    "MoCo v2": Kind(
        resnet,
        lambda s: {"state_dict": under("module.encoder_q.", s) | under("module.encoder_k.", other(s))},
        resnet,
    ),
    "MoCo v3": Kind(
        vit, lambda s: under("module.base_encoder.", s) | under("module.momentum_encoder.", other(s)), vit
    ),
    "BYOL": Kind(resnet, lambda s: under("online.", s) | under("target.", other(s)), resnet),
    "DINO": Kind(
        bare,
        lambda s: {
            "student": under("module.backbone.", other(s)),
            "teacher": under("backbone.", s) | HEAD,
            "args": ARGS,
        },
        vit,
    ),
    "I-JEPA": Kind(
        bare, lambda s: {"encoder": under("module.", other(s)), "target_encoder": under("module.", s)}, vit
    ),
    "MAE": Kind(bare, lambda s: {"model": s | MASK | {"decoder_pred.weight": torch.ones(9, 32)}}, vit),
    "a backbone without its head": Kind(bare, partial(under, "backbone."), vit),
    "another size, patch and number of classes": Kind(
        lambda: vit(img_size=48, patch_size=4, num_classes=9), lambda s: s, vit
    ),
    "registers": Kind(lambda: reg(reg_tokens=2), lambda s: s, reg),
    "open_clip with timm": Kind(
        vit, lambda s: under("visual.trunk.", s) | {"logit_scale": torch.ones(())}, vit
    ),
    "DeiT III's names": Kind(
        partial(vit, "deit3_base_patch16_224"),
        lambda s: {
            name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for name, v in s.items()
        },
        partial(vit, "deit3_base_patch16_224"),
    ),
    "transformers ViT for timm": Kind(hf_vit, lambda s: s, vit),
    "transformers ViT for torchvision": Kind(hf_vit, lambda s: s, tv_vit),
    "torchvision ViT for timm": Kind(tv_vit, lambda s: s, vit),
    "torchvision ViT for transformers": Kind(tv_vit, lambda s: s, hf_vit),
    "timm ViT for transformers": Kind(vit, lambda s: s, hf_vit),
    "timm ViT for torchvision": Kind(vit, lambda s: s, tv_vit),
    "Trainer's torchvision ViT, compiled, for timm": Kind(tv_vit, partial(under, "model._orig_mod."), vit),
    "transformers DINOv2 with registers for timm": Kind(
        partial(hf, "Dinov2WithRegisters", "Model", num_register_tokens=4), lambda s: s, reg
    ),
    "timm DINOv2 with registers for transformers": Kind(
        reg, lambda s: s, partial(hf, "Dinov2WithRegisters", "Model", num_register_tokens=4)
    ),
    "transformers DeiT, distilled, for timm": Kind(
        partial(hf, "DeiT", "ForImageClassificationWithTeacher", num_labels=5),
        lambda s: s,
        partial(vit, "deit_base_distilled_patch16_224"),
    ),
    "transformers SigLIP for timm": Kind(
        partial(hf, "SiglipVision", "Model", hidden_act="gelu"),
        lambda s: s,
        partial(vit, "vit_base_patch16_siglip_224", num_classes=0),
    ),
    "a block is missing": Kind(vit, partial(without, "blocks.1."), vit),
    "a norm is missing": Kind(vit, partial(without, "blocks.0.norm1"), vit),
    "a tensor is transposed": Kind(
        vit, lambda s: s | {"blocks.0.mlp.fc1.weight": s["blocks.0.mlp.fc1.weight"].T}, vit
    ),
    "deeper than the module": Kind(lambda: vit(depth=3), lambda s: s, vit),
    "wider than the module": Kind(lambda: vit(embed_dim=96), lambda s: s, vit),
    "a ResNet for a ViT": Kind(resnet, lambda s: s, vit),
    "two networks that nothing tells apart": Kind(
        vit, lambda s: under("left.", s) | under("right.", other(s)), vit
    ),
    "whole numbers": Kind(vit, lambda s: {name: value.to(torch.int8) for name, value in s.items()}, vit),
    "NaN": Kind(vit, lambda s: s | {"norm.weight": s["norm.weight"] * torch.nan}, vit),
    "code in the place of weights": Kind(vit, lambda _: {"state_dict": Payload()}, vit),
    "code beside the weights": Kind(vit, lambda s: {"state_dict": s, "args": Payload()}, vit),
    "a whole pickled module": Kind(vit, lambda _: LayerNorm(3), vit),
    "TorchScript": Kind(vit, lambda s: s, vit, scripted),
    "Keras": Kind(vit, lambda s: s, vit, bytes_of(b"\x89HDF\r\n\x1a\n"), ".h5"),
    "ONNX": Kind(vit, lambda s: s, vit, bytes_of(b"\x08\x07"), ".onnx"),
    "a pointer of Git LFS": Kind(
        vit, lambda s: s, vit, bytes_of(b"version https://git-lfs.github.com/spec/v1")
    ),
    "cut short": Kind(vit, lambda s: s, vit, bytes_of(b"PK\x03\x04 and no more")),
}


def rebuilt(target: nn.Module, tensors: dict[str, Tensor], make: Callable[..., nn.Module]) -> nn.Module:
    """The target as the file shows it, where it is timm's and so can be made again by its settings."""
    found = shown(tensors, target)
    if not type(target).__module__.startswith("timm.models.vision") or not found.patch or not found.grid:
        return target
    own: dict[str, Any] = {
        "num_classes": found.classes,
        "in_chans": found.channels,
        "patch_size": found.patch,
    }
    own["img_size"] = tuple(n * side for n, side in zip(found.grid, found.patch, strict=True))
    return make(**own | ({"reg_tokens": found.registers} if found.registers else {}))


def computed(module: nn.Module) -> Tensor:
    """What a module makes of images of the size that it was built for."""
    size = module.patch_embed.img_size if hasattr(module, "patch_embed") else (32, 32)
    with torch.no_grad():
        got = module(torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1)))
    if isinstance(got, Tensor):
        return got
    named = (getattr(got, kind, None) for kind in ("logits", "pooler_output", "last_hidden_state"))
    return next(value for value in named if value is not None)


def tried(kind: Kind, folder: Path) -> tuple[str, str]:
    """What is said of a kind, and whether it loads equal."""
    source, target = kind.make(), kind.target()
    path = folder / f"file{kind.ending}"
    kind.save(kind.state(source.state_dict()), path)
    try:
        tensors, said = read(path)
        found, how = renamed(tensors, target)
        target = rebuilt(target, found, kind.target)
        left = fit(target, found, path.name)
    except (Refusal, OSError) as error:
        return "", str(error).replace(f"{folder}{os.sep}", "")
    expected = computed(source)
    got = computed(target)
    is_equal = got.shape == expected.shape and torch.allclose(got, expected, atol=1e-4, rtol=1e-4)
    return "; ".join([*said, *how, *left]), "yes" if is_equal else "NO"


def rows(only: list[str]) -> Iterator[tuple[str, str, str]]:
    """Kind, what is said, and whether it loads equal."""
    for number, (name, kind) in enumerate(KINDS.items()):
        if not only or any(word.lower() in name.lower() for word in only):
            torch.manual_seed(number)
            with tempfile.TemporaryDirectory() as folder:
                yield name, *tried(kind, Path(folder))


def main() -> None:
    """Print the table; the status is 1 if a file was loaded that computes something else."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of kinds")
    warnings.simplefilter("ignore")
    wrong = 0
    print("| kind | said | loads equal |\n|---|---|---|")
    for name, said, equal in rows(parser.parse_args().only):
        print(f"| {name} | {said} | {equal} |")
        wrong += equal == "NO"
    raise SystemExit(int(wrong > 0))


if __name__ == "__main__":
    main()
