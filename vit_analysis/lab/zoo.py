"""The lab's models: what each is made of, how much data it saw, and where its weights lie.

A file of weights is a safetensors file whose metadata (all of them texts) say all that is needed to use it:
`architecture` and `config` to `build` the model, `mean`, `std` and `input_size` of its images, the names of its
`classes`; and where it comes from: `data`, `seed`, `steps`, `images_seen`, `accuracy`, `versions`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from vit_analysis.lab import vit
from vit_analysis.spelling import Refusal, did_you_mean

PREFIX = "lab/"
RESNET: dict[str, Any] = {"num_classes": 10, "layers": (2, 2, 2, 2), "channels": (16, 32, 64, 128)}
MIXER: dict[str, Any] = {"img_size": 32, "patch_size": 4, "num_classes": 10, "embed_dim": 96, "num_blocks": 8}
SMALL, MEDIUM = 4096, 32_768  # distinct images


def resnet(**config: Any) -> nn.Module:
    """Build timm's ResNet of basic blocks with the stem for 32 px of He et al. (2016, 4.2): no stride, no pooling."""
    create: Any = ResNet
    model = create(BasicBlock, **config)
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def flat_resnet(**config: Any) -> nn.Module:
    """Build `resnet` on the grid of a Vision Transformer: its stem embeds patches of 4 px, and nothing else downsamples."""
    model: Any = resnet(**config)
    model.conv1 = nn.Conv2d(3, model.conv1.out_channels, kernel_size=4, stride=4, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module is not model.conv1:
            module.stride = (1, 1)
    return model


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "vit": vit.ViT,
    "resnet": resnet,
    "flat_resnet": flat_resnet,
    "mixer": MlpMixer,
}


@dataclass(frozen=True)
class Recipe:
    """The parts of a lab model and what it learns from.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        config: its arguments.
        distinct: how many distinct images it learns from; None: it sees none twice.
        seed: of its initial weights.
        images: seed of the images that it learns from.
    """

    architecture: str
    config: Mapping[str, Any]
    distinct: int | None = None
    seed: int = 0
    images: int = 0


RECIPES: dict[str, Recipe] = {
    "vit": Recipe("vit", vit.LAB),
    "vit_gap": Recipe("vit", vit.LAB | {"pool": "avg"}),
    "vit_other_seed": Recipe("vit", vit.LAB, seed=1),
    "vit_small_data": Recipe("vit", vit.LAB, SMALL),
    "vit_medium_data": Recipe("vit", vit.LAB, MEDIUM),
    "vit_no_skip_first": Recipe("vit", vit.LAB | {"no_skip": 0}),
    "vit_no_skip_middle": Recipe("vit", vit.LAB | {"no_skip": vit.LAB["depth"] // 2}),
    "vit_no_skip_last": Recipe("vit", vit.LAB | {"no_skip": vit.LAB["depth"] - 1}),
    "vit_local": Recipe("vit", vit.LAB | {"reach": 1}),
    "resnet": Recipe("resnet", RESNET),
    "resnet_flat": Recipe("flat_resnet", RESNET),
    "resnet_small_data": Recipe("resnet", RESNET, SMALL),
    "mixer": Recipe("mixer", MIXER),
}


def build(architecture: str, config: Mapping[str, Any]) -> nn.Module:
    """Build an untrained model.

    Raises:
        Refusal: there is no such architecture in the lab.
    """
    if architecture not in ARCHITECTURES:
        raise Refusal(
            f"no architecture {architecture!r} in the lab; {did_you_mean(architecture, ARCHITECTURES)}"
        )
    return ARCHITECTURES[architecture](**config)


def names() -> list[str]:
    """The models whose weights are shipped, without `lab/`; further training runs of one follow it as `NAME:SEED`."""
    runs = {name: sorted(_path(name).parent.glob(f"{name}.seed*.safetensors")) for name in RECIPES}
    return [
        own
        for name, files in runs.items()
        for own in (name, *(f"{name}:{file.stem.removeprefix(f'{name}.seed')}" for file in files))
        if _path(own).exists()
    ]


def recipe(name: str) -> Recipe:
    """Return the recipe of `lab/NAME`, or of another training run of it: `lab/NAME:SEED` has other weights and other images.

    Raises:
        Refusal: there is no such model; the message has the nearest names.
    """
    base, colon, seed = name.removeprefix(PREFIX).partition(":")
    if not name.startswith(PREFIX) or base not in RECIPES:
        raise Refusal(f"no lab model {name!r}; {did_you_mean(name, [PREFIX + known for known in RECIPES])}")
    if colon and not (seed.isascii() and seed.isdigit()):
        raise Refusal(
            f"{name!r} names a training run by its seed, a whole number, as in '{PREFIX}{base}:1'; got {seed!r}"
        )
    return replace(RECIPES[base], seed=int(seed), images=int(seed)) if seed and int(seed) else RECIPES[base]


def home(name: str) -> Path:
    """Return the path where the weights of `lab/...` belong, whether or not they are there.

    Raises:
        Refusal: there is no such model.
    """
    recipe(name)
    return _path(name.removeprefix(PREFIX))


def lab_file(name: str) -> Path:
    """Return the file with the shipped weights of `lab/...`.

    Raises:
        Refusal: there is no such model.
        FileNotFoundError: it is not shipped; the message has the command that trains it.
    """
    file = home(name)
    if not file.exists():
        raise FileNotFoundError(f"no weights of {name!r} yet; train it: python -m vit_analysis.train {name}")
    return file


def _path(name: str) -> Path:
    base, _, seed = name.partition(":")
    run = f".seed{int(seed)}" if seed and int(seed) else ""
    return Path(__file__).parent / "weights" / f"{base}{run}.safetensors"
