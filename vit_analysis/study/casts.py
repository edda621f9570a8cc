"""The casts that a study can be given by one word: which public model plays which part, and what the paper had in its place.

Data only, of which nothing is looked up in a network. The paper's models learned from JFT-300M; neither those images nor those
weights are public, so every member of `PAPER` is a substitute and says what for.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from vit_analysis.spelling import Refusal, did_you_mean
from vit_analysis.study.parts import LAB_PARTS, Parts, several

BYTES = 4  # of a parameter, as timm's checkpoints of these models hold them


@dataclass(frozen=True)
class Member:
    """A public model in the place of one of the paper's.

    Attributes:
        model: its name.
        paper: what the paper has in its place.
        instead: what is substituted, and why.
        parameters: how many it has, in millions, its classifier included.
        gflop: floating-point operations of one image's forward pass, in units of 10^9; a product and a sum are two.
        blocks: how many blocks or units it has.
        same_size: whether it is of the family and the size of the paper's.
    """

    model: str
    paper: str
    instead: str
    parameters: float
    gflop: float
    blocks: int
    same_size: bool = True

    @property
    def megabytes(self) -> float:
        """The size of its checkpoint, by its number of parameters."""
        return self.parameters * BYTES


@dataclass(frozen=True)
class Casting:
    """Names for the parts of a study, and what is known of those models before any is loaded.

    Attributes:
        name: the word that asks for it.
        what: what it is, in some words.
        parts: the models by the part they play.
        members: by part, what is known of them; nothing of the lab's, which come with this program.
        absent: by part that nobody plays, why.
    """

    name: str
    what: str
    parts: Parts
    members: Mapping[str, tuple[Member, ...]] = field(default_factory=dict)
    absent: Mapping[str, str] = field(default_factory=dict)


def _of(
    name: str, what: str, members: Mapping[str, tuple[Member, ...]], absent: Mapping[str, str]
) -> Casting:
    """A cast whose parts are played by these members."""
    names: dict[str, Any] = {
        part: tuple(member.model for member in own) if several(part) else own[0].model
        for part, own in members.items()
    }
    return Casting(
        name, what, Parts(**names), MappingProxyType(dict(members)), MappingProxyType(dict(absent))
    )


AUGREG = (
    "ImageNet-21k by the recipe of AugReg (Steiner et al. 2021) in place of JFT-300M, which is not public"
)
BIT = "ImageNet-21k (BiT-M) in place of JFT-300M; its units are pre-activation, where the paper's code adds before it activates"

PAPER = _of(
    "paper",
    "for each model of the paper the nearest public checkpoint of timm",
    {
        "vit": (
            Member("vit_base_patch16_224.augreg_in21k", "ViT-B/16 of JFT-300M",
                   f"{AUGREG}; it is the first, the subject of most claims, because the model with average pooling has its patches of 16 px",
                   102.6, 35.2, 12),
            Member("vit_base_patch32_224.augreg_in21k", "ViT-B/32 of JFT-300M", AUGREG, 104.3, 8.85, 12),
            Member("vit_large_patch16_224.augreg_in21k", "ViT-L/16 of JFT-300M", AUGREG, 325.7, 123.0, 24),
            Member("vit_huge_patch14_224.orig_in21k", "ViT-H/14 of JFT-300M",
                   "ImageNet-21k by the recipe of Dosovitskiy et al. in place of JFT-300M; without a classifier", 630.8, 335.0, 32),
        ),
        "cnn": (
            Member("resnetv2_50x1_bit.goog_in21k", "ResNet50x1 of JFT-300M", BIT, 68.3, 8.26, 16),
            Member("resnetv2_152x2_bit.goog_in21k", "ResNet152x2 of JFT-300M", BIT, 321.7, 91.8, 50),
        ),
        "gap": (
            Member("vit_medium_patch16_gap_240.sw_in12k,img_size=224", "ViT-B/32 with average pooling of JFT-300M",
                   "a plain ViT-M/16 (512 wide, LayerScale) of 240 px, read at 224 px, on 12k classes of ImageNet: the only one of timm "
                   "without class token, registers and relative positions that learned to tell more classes than ImageNet's",
                   44.4, 15.9, 12, same_size=False),
        ),
        "less_data": (
            Member("vit_base_patch16_224.augreg_in1k", "ViT-L/16, ViT-H/14 and ViT-B/32 of ImageNet alone, and of 3, 10 and 30 % of JFT-300M",
                   "ViT-B/16 of ImageNet alone by AugReg, whose stronger augmentation does part of what data does; one amount of data, 1.3 "
                   "million images against 14", 86.6, 35.1, 12, same_size=False),
        ),
        "other_seed": (
            Member("vit_base_patch16_224.orig_in21k", "nothing: the paper has no ceiling",
                   "ViT-B/16 of ImageNet-21k from other initial weights and by another recipe (Dosovitskiy et al.), so that this ceiling "
                   "is too low rather than too high", 85.8, 35.1, 12),
        ),
        "mixer": (
            Member("mixer_b16_224.goog_in21k", "MLP-Mixer of four sizes of JFT-300M, figure H.2 of L/16",
                   "Mixer-B/16 of ImageNet-21k, the size of the first Vision Transformer", 75.9, 25.2, 12),
        ),
        "tuned": (
            Member("vit_base_patch16_224.augreg_in21k_ft_in1k", "ViT-B/16, L/16, H/14 and B/32 of JFT-300M, tuned to ImageNet and others",
                   "the first Vision Transformer tuned to ImageNet at 224 px", 86.6, 35.1, 12),
        ),
    },
    {
        "cnn_less_data": "timm has no BiT ResNet that learned from ImageNet alone without a teacher",
        "no_skip": "nobody has published a Vision Transformer trained without the skip connections of one block",
        "local": "it is an experiment of this project, which only the lab has",
        "flat": "it is an experiment of this project, which only the lab has",
    },
)  # fmt: skip
SMALL = _of(
    "small",
    "a pair for a laptop",
    {
        "vit": (
            Member("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "ViT-L/16 and larger of JFT-300M",
                   "ViT-Ti/16 of ImageNet-21k, tuned to ImageNet (AugReg)", 5.7, 2.51, 12, same_size=False),
        ),
        "cnn": (
            Member("resnet50.tv_in1k", "ResNet50x1 of JFT-300M", "ResNet-50 of ImageNet alone, with batch norm (torchvision)",
                   25.6, 8.18, 16),
        ),
    },
    {},
)  # fmt: skip
LAB = Casting("lab", "the small networks that come with this program", LAB_PARTS)
CASTS: Mapping[str, Casting] = {cast.name: cast for cast in (LAB, SMALL, PAPER)}


@dataclass(frozen=True)
class Named:
    """The cast that a command line asks for.

    Attributes:
        cast: models for all parts by one word: paper, the public checkpoints nearest to the paper's; small, a pair for a laptop;
            lab. Parts that are named take the place of the cast's. Without it, the parts that are named, or the lab's.
    """

    cast: str = ""

    def __post_init__(self) -> None:
        named(self.cast)


def named(name: str) -> Casting:
    """The cast of this name; the lab's for an empty one.

    Raises:
        Refusal: there is none.
    """
    if name and name not in CASTS:
        raise Refusal(f"--cast {name!r}: no such cast; {did_you_mean(name.lower(), CASTS)}")
    return CASTS[name or LAB.name]


def parts(name: str, own: Parts) -> Parts:
    """The models of a cast, with those that the user names in their places; without a name the user's alone, if there are any.

    Raises:
        Refusal: there is no such cast.
    """
    cast = named(name)
    if not name and own.names():
        return own
    return replace(
        cast.parts, **{one.name: getattr(own, one.name) for one in fields(own) if own.names(one.name)}
    )


def members(models: Iterable[str]) -> dict[str, Member]:
    """What is known of those of these models that are in a cast; an untrained twin is in none."""
    known = {one.model: one for cast in CASTS.values() for own in cast.members.values() for one in own}
    return {model: known[model] for model in models if model in known}


def absent(models: Iterable[str], played: Collection[str]) -> dict[str, str]:
    """Why no public model plays the parts that are not played; nothing of a study in which no model is of a cast."""
    return {part: why for part, why in PAPER.absent.items() if part not in played} if members(models) else {}


NOBODY = "nobody public"
COMPARABLE = "number comparable"
DIRECTION = "direction only"
MEANINGS: Mapping[str, str] = {
    COMPARABLE: "these models are of the families and sizes that the paper has for this part of the study, and learned from other "
    "images: number and direction may be set beside the paper's",
    DIRECTION: "the claim compares models by how they were trained, or a model is of another size: the direction may be set beside "
    "the paper's, the number may not",
    NOBODY: "no public model plays a part that the claim needs",
}
"""What each verdict on a substitution means."""


def substitution(used: Sequence[str], lacking: Iterable[str], *, of_training: bool) -> str:
    """Say whom the models of a claim stand for, and what of its number may be compared with the paper's.

    Nothing where none of the models is of a cast.

    Args:
        used: the models that the claim is measured of.
        lacking: why models that it needs are not public.
        of_training: whether it compares models by how they were trained. Then the number goes with the amount of data, and
            other data give the direction only.
    """
    if lacking := list(lacking):
        return f"{NOBODY}: {'; '.join(lacking)}"
    known = members(used)
    if not known:
        return ""
    alike = not of_training and len(known) == len(used) and all(one.same_size for one in known.values())
    told = [f"{name} for {known[name].paper}" if name in known else f"{name}, of no cast" for name in used]
    return f"{COMPARABLE if alike else DIRECTION}: {', '.join(told)}"
