"""Tiny networks on images that are not square, and how every kind of table is made of them: for properties of all tables.

The Vision Transformer has four blocks, a class token and a register, and 2 x 3 patches of 16 x 8 pixels; the CNN five units,
the last of which have maps of 4 x 3. Turned networks are the same for images whose rows and columns are exchanged.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from doubles import Labelled
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vit_analysis import (
    attention_distance,
    cka,
    frequency,
    lesions,
    localization,
    models,
    probe,
    receptive_field,
    skip,
    soft_nearest_neighbor,
    tokens,
)
from vit_analysis.images import Preprocessing
from vit_analysis.lab.vit import ViT
from vit_analysis.models import Model

SIDES, PATCH, PREFIX, KINDS = (32, 24), (16, 8), 2, 3
GRID = SIDES[0] // PATCH[0], SIDES[1] // PATCH[1]
LAB_SIDES = (16, 16)


@dataclass(frozen=True)
class Tiny:
    """A Vision Transformer, a CNN, images, and examples to learn from; and models trained without skip connections."""

    vit: Model
    cnn: Model
    images: Labelled
    examples: Labelled
    lab: tuple[Model, ...]
    lab_images: Labelled

    @property
    def pair(self) -> list[Model]:
        """The Vision Transformer and the CNN."""
        return [self.vit, self.cnn]

    def without(self, batch: int) -> "Tiny":
        """The same without one batch of images."""
        return replace(self, images=_without(self.images, batch), lab_images=_without(self.lab_images, batch))


TABLES: Mapping[str, Callable[[Tiny], pd.DataFrame]] = {
    "cka": lambda own: cka.measure(own.pair, own.images),
    "attention_distance": lambda own: attention_distance.measure(own.vit, own.images),
    "head_subsets": lambda own: attention_distance.head_subsets(own.vit, own.cnn, own.images),
    "receptive_field": lambda own: receptive_field.measure(
        own.pair, own.images, layers="blocks", channels=None
    ),
    "receptive_field_maps": lambda own: receptive_field.with_maps(
        own.pair, own.images, layers="blocks", channels=None
    )[1],
    "skip": lambda own: skip.measure(own.pair, own.images),
    "lesions": lambda own: lesions.measure(own.pair, own.images),
    "lesions_trained": lambda own: lesions.trained_without_skips(own.lab[0], own.lab[1:], own.lab_images),
    "localization": lambda own: localization.measure(own.pair, own.images),
    "probe": lambda own: probe.measure(
        own.pair, own.images, probe.Shots(own.examples, 5, 2), tokens=("cls", "mean", "mean_spatial", "each")
    ),
    "soft_nearest_neighbor": lambda own: _entangled(own),
    "tokens": lambda own: tokens.measure(own.pair, own.images),
    "frequency": lambda own: frequency.measure(own.pair, own.images),
}
"""How a table of each kind is made."""


def _entangled(own: Tiny) -> pd.DataFrame:
    """Of the batches as they are: all have images of every class, and a choice of others would follow from all of them."""
    with patch.object(soft_nearest_neighbor, "balanced", lambda given, _: given):
        return soft_nearest_neighbor.measure(own.pair, own.images)


def images(count: int, batch: int, *, seed: int = 0, sides: tuple[int, int] = SIDES) -> Labelled:
    """Images of three classes; those of one batch are brighter and of more contrast than those of another."""
    labels = torch.arange(count) % KINDS
    kinds = torch.randn(KINDS, 3, *sides, generator=torch.Generator().manual_seed(99))
    pixels = (
        torch.randn(count, 3, *sides, generator=torch.Generator().manual_seed(seed)) + 0.5 * kinds[labels]
    )
    scale = torch.tensor([1.0, 0.6, 1.8, 1.3, 0.8])[torch.arange(count) // batch % 5]
    return Labelled(batch=batch, seed=seed, pixels=scale[:, None, None, None] * (pixels + 0.3), labels=labels)


def made(count: int, batch: int, *, turned: bool = False) -> Tiny:
    """The networks, with so many images in batches of so many."""
    own, lab = images(count, batch), images(count, batch, sides=LAB_SIDES)
    given = [_turned(one) if turned else one for one in (own, images(120, 40, seed=1), lab)]
    vit, cnn, *of_lab = _networks(turned)
    known = Preprocessing()
    named = [models.own(one, f"lab {number}", preprocessing=known) for number, one in enumerate(of_lab)]
    pair = (models.own(one, name, preprocessing=known) for one, name in ((vit, "v"), (cnn, "r")))
    return Tiny(*pair, given[0], given[1], tuple(named), given[2])


def _without(own: Labelled, batch: int) -> Labelled:
    left = torch.arange(len(own.pixels)) // own.batch != batch
    return replace(own, pixels=own.pixels[left], labels=own.labels[left])


def _turned(own: Labelled) -> Labelled:
    return replace(own, pixels=own.pixels.mT.contiguous())


@cache
def _networks(turned: bool) -> list[nn.Module]:
    torch.manual_seed(0)
    order = slice(None, None, -1 if turned else 1)
    size = {"embed_dim": 12, "depth": 4, "num_heads": 3, "num_classes": KINDS}
    vit = VisionTransformer(img_size=SIDES[order], patch_size=PATCH[order], reg_tokens=PREFIX - 1, **size)
    cnn = ResNet(BasicBlock, (1, 1, 1, 2), num_classes=KINDS, channels=(8, 8, 8, 8), output_stride=8)
    small = {"img_size": LAB_SIDES[0], "patch_size": 8, "num_classes": KINDS, "embed_dim": 8, "depth": 3}
    lab = [ViT(**small, num_heads=2, no_skip=number) for number in (None, 1, 2)]
    made = [vit, cnn, *lab]
    for module in made:
        generator = torch.Generator().manual_seed(1)
        for name, parameter in module.named_parameters():
            # Queries and keys are large, so that heads look somewhere.
            noise = torch.randn(parameter.shape, generator=generator) * (0.8 if "qkv" in name else 0.15)
            with torch.no_grad():
                parameter.copy_(noise + float(("norm" in name or "bn" in name) and "weight" in name))
    if turned:
        for module, upright in zip(made, _networks(False), strict=True):
            state = {name: own.mT if own.ndim == 4 else own for name, own in upright.state_dict().items()}
            if module is vit:
                state["pos_embed"] = _of_turned_grid(state["pos_embed"])
            if module in (vit, cnn):
                module.load_state_dict(state)
    return [module.eval() for module in made]


def _of_turned_grid(places: Tensor) -> Tensor:
    spatial = places[:, PREFIX:].unflatten(1, GRID).transpose(1, 2).flatten(1, 2)
    return torch.cat([places[:, :PREFIX], spatial], 1)


def turned_number(number: int, grid: tuple[int, int]) -> int:
    """The number of the same token where rows and columns are exchanged; ``grid`` is the upright one."""
    row, column = divmod(number, grid[1])
    return column * grid[0] + row


def replicates(table: pd.DataFrame, column: str) -> np.ndarray:
    """The values of a column without each group, [row, group]."""
    return np.stack([np.asarray(own, dtype=float) for own in table[f"{column}_without"]])
