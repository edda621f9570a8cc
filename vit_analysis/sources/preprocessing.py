"""From pixels to a model's input: sizes, colours and normalisation, and the batch that comes of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
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
        if not all(self.std):
            raise Refusal(f"images are divided by their standard deviation, and one of {self.std} is zero")

    @property
    def channels(self) -> int:
        """The number of channels of the input."""
        return self.input_size[0]

    @property
    def framing(self) -> "Preprocessing":
        """What it does to bytes: models that differ in their normalisation alone are shown the same ones."""
        mean = normalisation(self)[0] if self.crop_mode == "border" else IMAGENET_DEFAULT_MEAN  # its colour
        return replace(self, input_size=(3, *self.input_size[1:]), mean=mean, std=IMAGENET_DEFAULT_STD)


@dataclass(eq=False)
class Inputs:
    """The inputs of pictures, by the place of their preprocessing: bytes, made floats on the device that asks for them.

    Bytes are a quarter of the floats to hand over from a worker process and to send to a device, where normalising them costs
    nothing, and are sent there once for all models.

    Attributes:
        pixels: the bytes, resized and cropped, once for each framing of `wanted`.
        wanted: the preprocessings asked for.
    """

    pixels: list[UInt8[Tensor, "image 3 _ _"]]
    wanted: tuple[Preprocessing, ...]
    _sent: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, place: int) -> Float[Tensor, "image channel row col"]:
        return self.on(torch.device("cpu"), place)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[place] for place in range(len(self)))

    def on(self, device: torch.device, place: int) -> Float[Tensor, "image channel row col"]:
        """The input for one preprocessing, made on a device."""
        wanted = self.wanted[place]
        framing = framings(self.wanted).index(wanted.framing)
        if (framing, device) not in self._sent:
            self._sent[framing, device] = self.pixels[framing].to(device, non_blocking=True)
        return normalised(self._sent[framing, device], wanted)

    def pin_memory(self) -> "Inputs":
        """The same bytes where a GPU can fetch them while others work; torch's loader asks for it."""
        return Inputs([pixels.pin_memory() for pixels in self.pixels], self.wanted)


class Batch(NamedTuple):
    """One batch of images, preprocessed for every model.

    Attributes:
        number: which batch it is among all batches of the run, whichever process reads it.
        inputs: one input per preprocessing asked for, ``image channel row col``.
        labels: class of each image; -1 where there are no classes.
        images: number of each image in its source; the same images for every model by construction.
        unreadable: names of images that could not be decoded and are not in the batch.
    """

    number: int
    inputs: Inputs | list[Tensor]
    labels: Tensor
    images: list[int]
    unreadable: list[str]

    def on(self, device: torch.device, place: int) -> Tensor:
        """The input for one preprocessing on a device: where pixels are bytes, it is bytes that travel there."""
        if isinstance(self.inputs, Inputs):
            return self.inputs.on(device, place)
        return self.inputs[place].to(device, non_blocking=True)


def framings(wanted: Sequence[Preprocessing]) -> list[Preprocessing]:
    """The different ways in which pictures are resized and cropped for these."""
    return list(dict.fromkeys(one.framing for one in wanted))


def as_input(
    pixels: Float[Tensor, "image 3 row col"], wanted: Preprocessing
) -> Float[Tensor, "image channel height width"]:
    """Make a model's input of pixels in [0, 1]: resized and normalised, but not cropped, as scenes have no border."""
    size = wanted.input_size[1:]
    if pixels.shape[2:] != size:
        pixels = functional.interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (_each(values, pixels) for values in normalisation(wanted))
    return coloured((pixels - mean) / std, wanted)


def normalised(
    pixels: UInt8[Tensor, "*image 3 height width"], wanted: Preprocessing
) -> Float[Tensor, "*image channel height width"]:
    """Make a model's input of bytes: to the last bit what timm's transform makes of each image alone, on a GPU too."""
    floats = pixels.to(torch.get_default_dtype(), memory_format=torch.contiguous_format)
    mean, std = (_each(values, floats) for values in normalisation(wanted))
    white = floats.new_full((), 255)  # as a tensor, since a GPU multiplies by the reciprocal of a number
    return coloured(floats.div_(white).sub_(mean).div_(std), wanted)


def _each(values: Sequence[float], like: Tensor) -> Float[Tensor, "colour 1 1"]:
    """A number for each colour, filled in on the device: to copy it there would wait for all work of the device."""
    return torch.stack([like.new_full((1, 1), value) for value in values])


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
