"""Images, decoded once and given to every model in the same order, with that model's own resize, crop and normalisation."""

import hashlib
import logging
import os
import tarfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from timm.data import create_dataset, create_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from vit_analysis.lab import scenes
from vit_analysis.spelling import Refusal, did_you_mean

logger = logging.getLogger(__name__)

LAB = "lab"
# No lab model was trained on scenes of this seed or a higher one.
UNSEEN = 1_000_000
UNREADABLE = 0.01  # largest share of images that may be unreadable
SIXTEEN_BITS = 2**16 - 1
FACTORY_PREFIXES = ("torch/", "hfds/", "wds/", "tfds/", "hfids/")


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


@dataclass(frozen=True)
class Images:
    """The choice of images, and the way they are read.

    Attributes:
        source: ``lab`` (procedural scenes), a folder or a tar of images, or a name timm's dataset factory knows, such as
            torch/cifar10 or hfds/NAME.
        root: folder of the data, for a factory name.
        split: which split to read, for a factory name.
        limit: how many images; a random choice by `seed` where there are more. None takes all.
        batch: images per batch; the unbiased estimator gives the same answer for any size, and large ones cost more per image.
        seed: random seed of the choice and order of images, and of the scenes.
        workers: number of processes that decode; None chooses it by the number of cores.
        strict: fail at the first unreadable image instead of when more than 1 % are.
    """

    source: str = LAB
    root: Path | None = None
    split: str = "validation"
    limit: int | None = 1024
    batch: int = 64
    seed: int = 0
    workers: int | None = None
    strict: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", str(self.source))  # a path is as good as its name
        for name, least in (("limit", 1), ("batch", 1), ("seed", 0), ("workers", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise Refusal(f"images.{name} must be at least {least}, got {value}")
        if self.source == LAB and self.limit is None:
            raise Refusal("the lab draws as many scenes as asked for: say images.limit")

    @cached_property
    def order(self) -> list[int]:
        """The images of this run in their order, by their numbers in the source."""
        if self.source == LAB:
            assert self.limit is not None
            return list(range(self.limit))
        # Folders are sorted by class: the first images would all be of one class, so a random choice is taken.
        everything = np.random.default_rng(self.seed).permutation(len(self._files))
        return everything[: self.limit].tolist()

    @property
    def batches(self) -> int:
        """The number of batches, the last one perhaps smaller."""
        return -(-len(self.order) // self.batch)

    @property
    def classes(self) -> list[str]:
        """Names of the classes, in order of their labels; empty where the source has none."""
        if self.source == LAB:
            return list(scenes.SHAPES)
        return self._files.classes

    @property
    def targets(self) -> dict[str, list[str]]:
        """The targets that images have labels for, with the names of their answers; empty where the source has no classes."""
        if self.source == LAB:
            return {name: list(answers) for name, answers in scenes.TARGETS.items()}
        return {"class": self.classes} if self.classes else {}

    def truth(self, numbers: Sequence[int]) -> dict[str, Int[Tensor, " image"]]:
        """The right answers for each of `targets`, of images by number; no image is read if the source lists its labels."""
        if self.source == LAB:
            return scenes.truth(numbers, seed=UNSEEN + self.seed)
        return {name: self._files.labels[list(numbers)] for name in self.targets}

    def only(self, numbers: Sequence[int], batch: int | None = None) -> "Images":
        """Choose images of the same source by their numbers, in that order."""
        own = {field.name: getattr(self, field.name) for field in fields(Images)}
        listed = Listed(**own | {"batch": batch or self.batch}, numbers=tuple(numbers))
        if self.source != LAB:
            vars(listed)["_files"] = self._files  # a large folder is not searched again
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
        parts = [self.order[number * self.batch :][: self.batch] for number in numbers]
        loader: DataLoader[Any] = DataLoader(
            self._dataset(tuple(wanted)),
            batch_sampler=parts,
            collate_fn=_as_is,
            num_workers=self._workers,
            pin_memory=torch.cuda.is_available(),
        )
        unreadable = 0
        for number, part, batch in zip(numbers, parts, batches_of(loader), strict=True):
            unreadable += len(batch.unreadable)
            self._refuse_unreadable(batch.unreadable, unreadable)
            if [image for image in part if image in set(batch.images)] != batch.images:
                raise RuntimeError(
                    f"batch {number} came in another order than asked for: layers would be compared across images"
                )
            if batch.images:  # all images of a small batch may be unreadable
                yield batch._replace(number=number)

    def facts(self) -> dict[str, Any]:
        """Return what a table's provenance says of its images."""
        root = str(self.root) if self.root else None
        facts = {
            "source": self.source,
            "root": root,
            "split": self.split,
            "seed": self.seed,
            "batch": self.batch,
        }
        return {**facts, "count": len(self.order)}

    @property
    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        at_hand = self.source == LAB or isinstance(self._files.data, Tensor)
        return 0 if at_hand else min(8, max(1, (os.cpu_count() or 1) - 1))

    @cached_property
    def _files(self) -> "_Files":
        return _Files(open_source(self))

    def _dataset(self, wanted: tuple[Preprocessing, ...]) -> Dataset[Batch]:
        return _Scenes(wanted, UNSEEN + self.seed) if self.source == LAB else _Decoder(wanted, self._files)

    def _refuse_unreadable(self, names: list[str], unreadable: int) -> None:
        for name in names:
            logger.warning("cannot read %s: left out", name)
        if unreadable > (0 if self.strict else UNREADABLE * len(self.order)):
            raise OSError(
                f"{unreadable} of {len(self.order)} images cannot be read"
                f"{'' if self.strict else f', more than {UNREADABLE:.0%}'}; the last is {names[-1]}"
            )


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
    def _files(self) -> "_Files":
        return _Files(self.data)


AnyImages = Images | str | Path | Dataset[Any] | Tensor
"""What every analysis takes as its images, see `given`."""


def given(images: AnyImages) -> Images:
    """Make `Images` from whatever holds the images.

    Args:
        images: `Images`; the name of a source, or its path; a torch data set of images, with labels or without; or a tensor
            ``image channel row col``. Tensors go into a model as they are: they are taken to be its input. Images of PIL get
            each model's own resize, crop and normalisation. All images are used, in a random order by seed 0.

    Raises:
        Refusal: it is none of these.
    """
    if isinstance(images, Images):
        return images
    if isinstance(images, str | Path):
        return Images(str(images))
    if isinstance(images, Dataset | Tensor) and hasattr(images, "__len__") and not len(images):
        raise Refusal(f"there are no images in this {type(images).__name__}")
    if isinstance(images, Tensor):
        if images.ndim != 4:
            raise Refusal(f"images in a tensor are image x channel x row x col, got {tuple(images.shape)}")
        pixels = images.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{tuple(pixels.shape)}{pixels.dtype}".encode())
        digest.update(pixels.flatten().view(torch.uint8).numpy().data)
        return Given(f"tensor {digest.hexdigest()[:16]}", limit=None, data=pixels)
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


def open_source(images: Images) -> Any:
    """Open a folder, a tar or a factory name as a timm data set.

    Raises:
        FileNotFoundError: there is no such folder or file, or there are no images in it.
        OSError: it, or a folder in it, cannot be read.
        Refusal: the name is of a kind that cannot be read by number.
    """
    name = images.source
    if not name.startswith(FACTORY_PREFIXES):
        path = existing(name)
        for _ in os.walk(path, onerror=_refuse_folder, followlinks=True):
            pass  # timm silently skips folders that it cannot read, and with them whole classes
        try:
            return create_dataset("", root=str(path), search_split=False)
        except (RuntimeError, AssertionError) as error:
            raise FileNotFoundError(f"no images in {name!r}: {error}") from error
        except tarfile.TarError as error:
            raise OSError(f"{name!r} is no tar of images that can be read: {error}") from error
    data = create_dataset(name, root=str(images.root) if images.root else None, split=images.split)
    if not hasattr(data, "__getitem__"):
        raise Refusal(f"{name!r} can only be streamed; unpack it to a folder, or use a tar or an hfds/ name")
    return data


def existing(name: str) -> Path:
    """The folder or file of this name.

    Raises:
        FileNotFoundError: there is none; it names what lies beside.
    """
    try:
        path = Path(name).expanduser()
        siblings = [str(path.parent / file.name) for file in path.parent.iterdir() if not path.exists()]
    except FileNotFoundError:
        siblings = []
    except (RuntimeError, ValueError) as error:  # the home of an unknown user, or an impossible file name
        raise FileNotFoundError(f"no images at {name!r}: {error}") from error
    if not path.exists():
        raise FileNotFoundError(f"no images at {name!r}; {did_you_mean(name, [LAB, *siblings])}")
    return path


def _refuse_folder(error: OSError) -> None:
    if not isinstance(error, NotADirectoryError):  # os.walk reports it for a tar
        raise OSError(
            f"cannot read the folder {error.filename!r} ({error.strerror}), nor what images it holds"
        )


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert any image to 8 bits and three colours; transparency and all frames of an animation but the first are dropped.

    PIL itself converts 16 bits to 8 by clipping at 255 of 65,535, which would make most grey images of 16 bits white.

    Raises:
        OSError: the pixels are numbers of which it is not known which one is white.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        pixels = np.asarray(image)
        if image.mode == "F" or pixels.min() < 0 or pixels.max() > SIXTEEN_BITS:
            raise OSError(
                f"pixels are numbers from {pixels.min():g} to {pixels.max():g} (mode {image.mode}), and what is white is not "
                f"known; save it with 8 or 16 bits"
            )
        return Image.fromarray((pixels / SIXTEEN_BITS * 255).round().astype(np.uint8)).convert("RGB")
    return image.convert("RGBA" if "transparency" in image.info else "RGB").convert("RGB")


class _Files:
    """A timm or torchvision data set, image by image, with names.

    timm's own ``__getitem__`` replaces an unreadable image by the next one; here it is an OSError.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def image(self, number: int) -> tuple[Image.Image | Tensor, int]:
        """Return an image, in three colours, and its class (-1 if it has none); a tensor is returned as it is."""
        if not hasattr(self.data, "reader"):
            return _image_and_label(self.data[number])
        file, label, *_ = self.data.reader[number]
        try:
            with file:
                return as_rgb(Image.open(file)), -1 if label is None else int(label)
        except (SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PIL, for some broken files
            raise OSError(str(error)) from error

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes, in order of their labels, or their numbers where a data set gives nothing else."""
        reader = getattr(self.data, "reader", self.data)
        # The first is an attribute of readers of folders, the second of readers of tars.
        names = list(getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", {}))
        if not names and reader is self.data and self.image(0)[1] >= 0:
            names = [str(number) for number in range(int(self.labels.max()) + 1)]
        return names if len(names) > 1 else []

    @cached_property
    def labels(self) -> Int[Tensor, " image"]:
        """The class of every image, from the reader if it lists them; otherwise every image is read."""
        reader = getattr(self.data, "reader", self.data)
        if hasattr(reader, "label_key"):  # Hugging Face
            return torch.tensor(reader.dataset[reader.label_key])
        if hasattr(reader, "targets"):
            return torch.as_tensor(reader.targets)
        if hasattr(reader, "samples"):
            return torch.tensor([label for _, label, *_ in reader.samples])
        if isinstance(reader, Tensor):
            return torch.full((len(reader),), -1)
        return torch.tensor([self.image(number)[1] for number in range(len(self))])

    def name(self, number: int) -> str:
        return str(self.data.filename(number)) if hasattr(self.data, "filename") else f"image {number}"


def _image_and_label(item: Any) -> tuple[Image.Image | Tensor, int]:
    """Return image and class (-1 if unknown) of a data set's item: an image, an image and its class, or a mapping of both.

    Raises:
        Refusal: it gives something else.
    """
    label: Any = -1
    if isinstance(item, Mapping) and "image" in item:
        item, label = item["image"], item.get("label", -1)
    elif isinstance(item, tuple | list) and item:
        item, label = item[0], item[1] if len(item) > 1 else -1
    if isinstance(item, np.ndarray) and item.dtype == np.uint8:
        item = Image.fromarray(item)
    if not isinstance(item, Image.Image | Tensor):
        raise Refusal(
            f"the data set gives {type(item).__name__} where an image is expected: an image of PIL or a tensor, alone or with "
            f"its class"
        )
    whole = isinstance(label, Tensor) and label.numel() == 1 and not label.is_floating_point()
    known = isinstance(label, int | np.integer) or whole
    return as_rgb(item) if isinstance(item, Image.Image) else item, int(label) if known else -1


class _Decoder(Dataset[Any]):
    """Files as batches: one decoding per image, one transform per preprocessing."""

    def __init__(self, wanted: tuple[Preprocessing, ...], files: _Files) -> None:
        self.wanted = wanted
        # Images keep three colours until they are normalised; only then are they averaged to grey.
        self.transforms = [
            create_transform(
                **vars(one) | {"input_size": (3, *one.input_size[1:]), "mean": mean, "std": std},
                is_training=False,
            )
            for one in wanted
            for mean, std in [normalisation(one)]
        ]
        self.files = files

    def __getitems__(self, numbers: list[int]) -> Batch | Refusal:
        try:
            return self._batch(numbers)
        except Refusal as refusal:  # a worker process would wrap it into its traceback
            return refusal

    def _batch(self, numbers: list[int]) -> Batch:
        rows: list[list[Tensor]] = []
        labels, read, unreadable = [], [], []
        for number in numbers:
            try:
                image, label = self.files.image(number)
            except OSError as error:
                unreadable.append(f"{self.files.name(number)} ({error})")
                continue
            made = zip(self.wanted, self.transforms, strict=True)
            if isinstance(image, Tensor):
                rows.append([image for _ in made])
            else:
                rows.append([coloured(transform(image), one) for one, transform in made])
            labels.append(label)
            read.append(number)
        shapes = {" x ".join(map(str, row.shape)): None for row, *_ in rows}
        if len(shapes) > 1:
            raise Refusal(f"the data set gives tensors of {' and '.join(shapes)}; all have to be of one size")
        inputs = [torch.stack(column) for column in zip(*rows, strict=True)]
        return Batch(-1, inputs, torch.tensor(labels, dtype=torch.long), read, unreadable)


class _Scenes(Dataset[Batch]):
    """The lab's scenes as batches, drawn at the largest size wanted."""

    def __init__(self, wanted: tuple[Preprocessing, ...], seed: int) -> None:
        self.wanted = wanted
        self.seed = seed

    def __getitems__(self, numbers: list[int]) -> Batch:
        size = max(max(one.input_size[1:]) for one in self.wanted)
        drawn = scenes.draw(numbers, seed=self.seed, size=size)
        inputs = [as_input(drawn.image, one) for one in self.wanted]
        return Batch(-1, inputs, drawn.shape.long(), list(numbers), [])


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


def batches_of(loader: DataLoader[Any]) -> Iterator[Batch]:
    """Yield what a loader reads.

    Raises:
        Refusal: as it was raised in a worker process, which hands it over as a batch.
    """
    for batch in loader:
        if isinstance(batch, Refusal):
            raise batch
        yield batch


def _as_is(batch: Any) -> Any:
    """Return the batch: data sets here make whole batches (and a function, unlike a lambda, reaches worker processes)."""
    return batch
