"""Images, decoded once and given to every model in the same order, with that model's own resize, crop and normalisation.

Where they come from is the matter of `vit_analysis.sources`. Pixels are taken as they are stored: a turn that a camera noted
beside them (EXIF orientation) is not made, as timm and torchvision do not make it, with which published accuracies are
measured.
"""

import hashlib
import logging
import uuid
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vit_analysis.sources import identity, opening, workers
from vit_analysis.sources.decoded import as_rgb
from vit_analysis.sources.given import Data
from vit_analysis.sources.items import refuse_no_input
from vit_analysis.sources.lab import UNSEEN
from vit_analysis.sources.preprocessing import Batch, Inputs, Preprocessing, as_input, framings
from vit_analysis.sources.source import Named, Source
from vit_analysis.spelling import Refusal
from vit_analysis.typed import Choice

__all__ = [
    "UNSEEN",
    "AnyImages",
    "Batch",
    "Given",
    "Images",
    "Inputs",
    "Listed",
    "Preprocessing",
    "as_input",
    "as_rgb",
    "given",
]

logger = logging.getLogger(__name__)

UNREADABLE = 0.01  # largest share of images that may be unreadable


@dataclass(frozen=True)
class Images(Choice):
    """Images as they were chosen, with all that reads them; what can be chosen is told in `typed.Choice`."""

    @classmethod
    def of(cls, choice: Choice) -> "Images":
        """The images that were chosen."""
        return choice if isinstance(choice, Images) else Images(**vars(choice))

    @cached_property
    def order(self) -> list[int]:
        """The images of this run in their order, by their numbers in the source."""
        return self._source.order(self.limit, self.seed)

    @property
    def batches(self) -> int:
        """The number of batches, the last one perhaps smaller."""
        return -(-len(self.order) // self.batch)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in order of their labels; empty where the source has none."""
        return next(iter(self.targets.values()), [])

    @property
    def targets(self) -> dict[str, list[str]]:
        """The targets that images have labels for, with the names of their answers; empty where the source has no classes."""
        return self._source.targets()

    def truth(self, numbers: Sequence[int]) -> dict[str, Int[Tensor, " image"]]:
        """The right answers for each of `targets`, of images by number; no image is read if the source lists its labels."""
        return self._source.truth(numbers)

    def name(self, number: int) -> str:
        """The name of an image, as it is found again in its source."""
        return self._source.name(number)

    def origin(self) -> Hashable:
        """A key that is equal for images of which the same number is the same image."""
        return self._source.origin()

    def without(self, others: "Images") -> list[int]:
        """The images of this run, by number, that are none of the others, whatever their sources are called.

        Raises:
            Refusal: that cannot be known.
        """
        if self.origin() == others.origin():
            known = set(others.order)
            return [number for number in self.order if number not in known]
        return identity.others(self.order, self._source, others.order, others._source)

    def only(self, numbers: Sequence[int], batch: int | None = None) -> "Images":
        """Choose images of the same source by their numbers, in that order."""
        own = {field.name: getattr(self, field.name) for field in fields(Images)}
        listed = Listed(**own | {"batch": batch or self.batch}, numbers=tuple(numbers))
        vars(listed)["_source"] = self._source  # a large folder is not searched again
        return listed

    def read(
        self, wanted: Sequence[Preprocessing], *, rank: int = 0, of: int = 1, start: int = 0
    ) -> Iterator[Batch]:
        """Yield batches number rank, rank + of, rank + 2 of ... from ``start`` on, with one input per preprocessing wanted.

        Whole batches are dealt to processes, as torch's DistributedSampler would repeat images to make their shares equal.

        Raises:
            OSError: more than 1 % of the images cannot be decoded, or one where ``strict``.
            RuntimeError: images came in another order than asked for.
        """
        numbers = [number for number in range(rank, self.batches, of) if number >= start]
        parts = [self.order[number * self.batch : (number + 1) * self.batch] for number in numbers]
        unreadable = 0
        for number, part, batch in zip(numbers, parts, self.made(parts, wanted), strict=True):
            unreadable += len(batch.unreadable)
            self.refuse_unreadable(batch.unreadable, unreadable)
            if [image for image in part if image in set(batch.images)] != batch.images:
                raise RuntimeError(
                    f"batch {number} came in another order than asked for: layers would be compared across images"
                )
            if batch.images:  # all images of a small batch may be unreadable
                yield batch._replace(number=number)

    def made(self, parts: Sequence[list[int]], wanted: Sequence[Preprocessing]) -> Iterator[Batch]:
        """Yield a batch of each of these lists of images by number, made in worker processes ahead of time.

        Raises:
            Refusal: as it was raised in a worker process, which hands it over as a batch.
        """
        loader: DataLoader[Any] = DataLoader(
            self._source.batches(wanted),
            batch_sampler=parts,
            collate_fn=_as_is,
            num_workers=self._workers(parts, wanted),
            worker_init_fn=workers.leaving,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # or it would draw from the user's random numbers
        )
        for batch in loader:
            if isinstance(batch, Refusal):
                raise batch
            yield batch

    def refuse_unreadable(self, names: list[str], unreadable: int) -> None:
        """Name images that cannot be read.

        Args:
            names: the images.
            unreadable: how many there are by now, these included.

        Raises:
            OSError: they are more than 1 % of all images, or there is one where ``strict``.
        """
        for name in names:
            logger.warning("cannot read %s: left out", name)
        if unreadable > (0 if self.strict else UNREADABLE * len(self.order)):
            raise OSError(
                f"{unreadable} of {len(self.order)} images cannot be read"
                f"{'' if self.strict else f', more than {UNREADABLE:.0%}'}; the last is {names[-1]}"
            )

    def facts(self) -> dict[str, Any]:
        """Return what a table's provenance says of its images: with the seed, the source's digest tells which they are."""
        root = str(self.root) if self.root else None
        facts = {
            "source": self.source,
            "root": root,
            "split": self.split,
            "seed": self.seed,
            "batch": self.batch,
        }
        return {**facts, **self.contents(), "count": len(self.order)}

    def contents(self) -> dict[str, Any]:
        """Facts that change whenever a file, a label or the order of the source does."""
        return self._source.contents()

    def _workers(self, parts: Sequence[list[int]], wanted: Sequence[Preprocessing]) -> int:
        if self.workers is not None:
            return self.workers
        if self._source.at_hand:
            return 0
        bytes_of_image = sum(prod(one.input_size) for one in framings(wanted))
        return workers.chosen(len(parts), max(map(len, parts), default=0) * bytes_of_image)

    @cached_property
    def _source(self) -> Source:
        if self.endless:
            return opening.DRAWN[self.source](self.seed)
        own = (self.source, self.root, self.split, self.image_column, self.label_column)
        return opening.opened(Named(*own))


@dataclass(frozen=True)
class Listed(Images):
    """Images by their numbers in the source, in that order."""

    numbers: tuple[int, ...] = ()

    @cached_property
    def order(self) -> list[int]:
        """The numbers, as they were given."""
        return list(self.numbers)

    def facts(self) -> dict[str, Any]:
        """Return what a table's provenance says of its images, with a digest of their numbers."""
        digest = hashlib.sha256(np.array(self.numbers, dtype=np.int64).tobytes()).hexdigest()[:16]
        return {**super().facts(), "numbers": digest}


@dataclass(frozen=True)
class Given(Images):
    """Images that are in memory already, or behind a torch data set; see `given`."""

    data: Any = None

    @cached_property
    def _source(self) -> Source:
        return Data(self.data)


AnyImages = Choice | str | Path | Dataset[Any] | Tensor
"""What every analysis takes as its images, see `given`."""


def given(images: AnyImages) -> Images:
    """Make `Images` from whatever holds the images.

    Args:
        images: `Images`, or a choice of them; the name of a source, or its path; a torch data set of images, with labels or
            without; or a tensor ``image channel row col``. Tensors go into a model as they are: they are its input, of
            normalised floats, and bytes are refused. Images of PIL, and arrays of bytes, get each model's own resize, crop and
            normalisation. All images are used, in a random order by seed 0.

    Raises:
        Refusal: it is none of these.
    """
    if isinstance(images, Choice):
        return Images.of(images)
    if isinstance(images, str | Path):
        return Images(str(images))
    if isinstance(images, Dataset | Tensor) and hasattr(images, "__len__") and not len(images):
        raise Refusal(f"there are no images in this {type(images).__name__}")
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise Refusal(f"images in a tensor are image x channel x row x col, got {tuple(images.shape)}")
        refuse_no_input(images)
        pixels = images.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{tuple(pixels.shape)}{pixels.dtype}".encode())
        digest.update(pixels.flatten().view(torch.uint8).numpy().data)
        return Given(f"tensor {digest.hexdigest()[:16]}", limit=None, data=pixels)
    _refuse_no_data_set(images)
    if isinstance(images, DataLoader):
        raise Refusal(
            "a DataLoader may shuffle and drop images, and every model has to see the same ones: give its data set, as in "
            "measure(models, loader.dataset)"
        )
    if hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, Mapping):
        # What a data set holds cannot be known, so a name of its own keeps runs from going on with the sums of another.
        return Given(f"{type(images).__name__} {uuid.uuid4().hex}", limit=None, data=images)
    raise Refusal(
        f"images are Images(...), a path, a torch data set or a tensor, got {type(images).__name__}. "
        f"Write measure(models, Images('FOLDER', limit=1024))"
    )


def _refuse_no_data_set(images: Any) -> None:
    """Check that what has items and a length is not of one of the kinds whose items are no images.

    Raises:
        Refusal: it is.
    """
    if isinstance(images, list | tuple) and isinstance(images[0], str | bytes | Path):
        raise Refusal(
            f"images are not read from a {type(images).__name__} of {type(images[0]).__name__}; name their folder, as in "
            f"measure(models, Images('FOLDER')), or give a data set that opens them"
        )
    if isinstance(images, np.ndarray) and (images.dtype != np.uint8 or images.ndim not in (3, 4)):
        raise Refusal(
            f"images in an array are pictures of uint8, image x row x col x channel, got {images.dtype}, {images.shape}; a "
            f"model's input is a tensor image x channel x row x col, as in torch.from_numpy(images).float()"
        )
    if isinstance(images, pd.DataFrame | pd.Series):
        raise Refusal(
            f"a {type(images).__name__} is no data set of images; write it as a parquet file with the bytes of images in a "
            f"column, or give a data set whose items are (image, class)"
        )


def _as_is(batch: Any) -> Any:
    """Return the batch: data sets here make whole batches (and a function, unlike a lambda, reaches worker processes)."""
    return batch
