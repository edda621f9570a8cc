"""From pixels to a model's input: sizes, colours and normalisation, and the batch that comes of it."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional

from vit_analysis.spelling import Refusal


@dataclass(frozen=True)
class Preprocessing:
    """The steps from an image to a model's input: timm's data configuration. The defaults are timm's for an unknown model.

    An input of one channel is the mean of the three colours, normalised by the averages of `mean` and of `std`.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        if self.input_size[0] not in (1, 3):
            raise Refusal(
                f"images have 3 channels, or 1 as shades of grey; the model takes {self.input_size[0]}"
            )

    @property
    def channels(self) -> int:
        """The number of channels of the input."""
        return self.input_size[0]


class Batch(NamedTuple):
    """One batch of images, preprocessed for every model.

    Attributes:
        number: which batch it is among all batches of the run, whichever process reads it.
        inputs: one tensor per preprocessing asked for, ``image channel row col``.
        labels: class of each image; -1 where there are no classes.
        images: number of each image in its source; the same images for every model by construction.
        unreadable: names of images that could not be decoded and are not in the batch.
    """

    number: int
    inputs: list[Tensor]
    labels: Tensor
    images: list[int]
    unreadable: list[str]


def as_input(
    pixels: Float[Tensor, "image 3 row col"], wanted: Preprocessing
) -> Float[Tensor, "image channel height width"]:
    """Make a model's input of pixels in [0, 1]: resized and normalised, but not cropped, as scenes have no border."""
    size = wanted.input_size[1:]
    if pixels.shape[2:] != size:
        pixels = functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in normalisation(wanted))
    return coloured((pixels - mean) / std, wanted)


def normalisation(wanted: Preprocessing) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each of three colours; for an input of one channel the same for all three."""
    mean, std = (tuple(float(value) for value in values) for values in (wanted.mean, wanted.std))
    if wanted.channels == 1:
        mean, std = ((sum(values) / len(values),) * 3 for values in (mean, std))
    return mean, std


def coloured(
    pixels: Float[Tensor, "*image 3 height width"], wanted: Preprocessing
) -> Float[Tensor, "*image channel height width"]:
    """Give pixels as many channels as the model takes: three, or their mean as one."""
    return pixels if wanted.channels == 3 else pixels.mean(-3, keepdim=True)
