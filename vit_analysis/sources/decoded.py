"""Images that are decoded one by one: once each, then resized, cropped and normalised for every model."""

import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from io import BufferedIOBase
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

from vit_analysis.sources.labels import Labels
from vit_analysis.sources.preprocessing import Batch, Inputs, Preprocessing, framings, normalised
from vit_analysis.spelling import Refusal

SIXTEEN_BITS = 2**16 - 1
# Formats of which PIL, in some versions, opens 16 bits as numbers of 32, and which have no others.
OF_SIXTEEN_BITS = ("PNG", "PPM")
# What PIL raises for some broken files, beside OSError.
BROKEN = (
    *(SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error),
    Image.DecompressionBombError,
)


class Decoded(ABC):
    """A source whose images are decoded: what folders, tars, parquet files and data sets have in common.

    Attributes:
        at_hand: whether there is nothing to decode.
    """

    at_hand: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """The number of images."""

    @abstractmethod
    def image(self, number: int) -> tuple[Image.Image | Tensor, int]:
        """Return an image, in three colours, and its class (-1 if it has none); a tensor is returned as it is.

        Raises:
            OSError: it cannot be read.
        """

    @abstractmethod
    def name(self, number: int) -> str:
        """The name of an image, as a user finds it again."""

    @abstractmethod
    def identity(self, number: int) -> str:
        """A text that is equal for the same image in any source, see `sources.identity`."""

    @property
    @abstractmethod
    def _known(self) -> Labels:
        """The class of every image, -1 where there is none, and the names of the classes in order of their labels."""

    @property
    def names(self) -> list[str]:
        """Names of the classes, in order of their labels."""
        return self._known.names

    @property
    def labels(self) -> Int[Tensor, " image"]:
        """The class of every image, -1 where there is none."""
        return self._known.labels

    @abstractmethod
    def contents(self) -> dict[str, Any]:
        """Facts, in types of JSON, that change whenever the images, their order or their labels do."""

    @abstractmethod
    def origin(self) -> Hashable:
        """A key that is equal for two sources in which the same number is the same image."""

    def order(self, limit: int | None, seed: int) -> list[int]:
        """A random choice, in random order: sorted by class, the first ones would all be of one class."""
        return np.random.default_rng(seed).permutation(len(self))[:limit].tolist()

    def targets(self) -> dict[str, list[str]]:
        """The classes, if there are several."""
        return {"class": self.names} if len(self.names) > 1 else {}

    def truth(self, numbers: Sequence[int]) -> dict[str, Int[Tensor, " image"]]:
        """The class of each image; none is decoded where the source lists them."""
        return {name: self.labels[list(numbers)] for name in self.targets()}

    def batches(self, wanted: Sequence[Preprocessing]) -> Dataset[Batch]:
        """A data set of whole batches."""
        return Decoder(tuple(wanted), self)


class Decoder(Dataset[Any]):
    """Images as batches of bytes: one decoding per image, one resize and crop for all models that want the same.

    Tensors are a model's input, and stay as they are.
    """

    def __init__(self, wanted: tuple[Preprocessing, ...], source: Decoded) -> None:
        self.wanted = wanted
        self.framings = framings(wanted)
        self.transforms = [
            create_transform(**vars(one), is_training=False, normalize=False) for one in self.framings
        ]
        self.source = source

    def __getitems__(self, numbers: list[int]) -> Batch | Refusal:
        try:
            return self._batch(numbers)
        except Refusal as refusal:  # a worker process would wrap it into its traceback
            return refusal

    def _batch(self, numbers: list[int]) -> Batch:
        rows: dict[int, list[Tensor]] = {}
        labels, unreadable = {}, {}
        for number in sorted(set(numbers)):  # neighbours lie together in tars and parquet files
            try:
                rows[number], labels[number] = self._row(number)
            except OSError as error:
                unreadable[number] = f"{self.source.name(number)} ({error})"
        read = [number for number in numbers if number in rows]
        shapes = {" x ".join(map(str, rows[number][0].shape)): None for number in read}
        if len(shapes) > 1:
            raise Refusal(f"the data set gives tensors of {' and '.join(shapes)}; all have to be of one size")
        inputs = self._inputs([rows[number] for number in read])
        classes = torch.tensor([labels[number] for number in read], dtype=torch.long)
        return Batch(-1, inputs, classes, read, [unreadable[one] for one in numbers if one in unreadable])

    def _row(self, number: int) -> tuple[list[Tensor], int]:
        """The bytes of an image for each framing, or a tensor as it is."""
        image, label = self.source.image(number)
        if isinstance(image, Tensor):
            return [image], label
        return [transform(image) for transform in self.transforms], label

    def _inputs(self, rows: list[list[Tensor]]) -> Inputs | list[Tensor]:
        pictures = [row[0].dtype == torch.uint8 for row in rows]
        if not any(pictures):
            return [torch.stack([row[0] for row in rows])] * len(self.wanted) if rows else []
        if all(pictures):
            # In the order in which they lie in memory, colours innermost, each is copied as a whole.
            stacked = (
                torch.stack([pixels.permute(1, 2, 0) for pixels in own]) for own in zip(*rows, strict=True)
            )
            return Inputs([pixels.permute(0, 3, 1, 2) for pixels in stacked], self.wanted)
        places = [(one, self.framings.index(one.framing)) for one in self.wanted]
        return [
            torch.stack(
                [
                    normalised(row[place], one) if picture else row[0]
                    for row, picture in zip(rows, pictures, strict=True)
                ]
            )
            for one, place in places
        ]


def decoded(file: BufferedIOBase) -> Image.Image:
    """Decode the file of one image, in three colours.

    Raises:
        OSError: it cannot be read.
    """
    try:
        with Image.open(file) as image:  # type: ignore[arg-type]  # BytesIO, or a file on disk
            return as_rgb(image)
    except BROKEN as error:
        raise OSError(str(error) or type(error).__name__) from error


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to 8 bits and three colours; transparency and all frames of an animation but the first are dropped.

    PIL itself converts 16 bits to 8 by clipping at 255 of 65,535, which would make most grey images of 16 bits white.

    Raises:
        OSError: the pixels are numbers of which it is not known which one is white.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        pixels = np.asarray(image)
        sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in OF_SIXTEEN_BITS)
        if not sixteen or pixels.min() < 0 or pixels.max() > SIXTEEN_BITS:
            raise OSError(
                f"pixels are numbers from {pixels.min():g} to {pixels.max():g} (mode {image.mode}), and what is white is not "
                f"known; save it with 8 or 16 bits"
            )
        return Image.fromarray((pixels / SIXTEEN_BITS * 255).round().astype(np.uint8)).convert("RGB")
    return (image.convert("RGBA") if "transparency" in image.info else image).convert("RGB")
