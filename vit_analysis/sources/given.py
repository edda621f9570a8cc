"""Images that are given: a tensor, or a data set of torch's kind."""

import logging
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from vit_analysis.sources.decoded import Decoded, decoded
from vit_analysis.sources.identity import of_file, of_pixels
from vit_analysis.sources.items import UNKNOWN, taken
from vit_analysis.sources.labels import Labels, of_codes, said
from vit_analysis.spelling import Refusal

logger = logging.getLogger(__name__)

# ImageNet's class_to_idx has several names for a class. The last is an attribute of timm's readers of tars.
NAMES = ("wnid_to_idx", "class_to_idx", "class_name_to_idx")


class Data(Decoded):
    """A tensor of images, or a data set of torch's, torchvision's or timm's.

    timm's own ``__getitem__`` replaces an unreadable image by the next one; here it is an OSError.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self.at_hand = isinstance(data, Tensor)

    def __len__(self) -> int:
        return len(self.data)

    def image(self, number: int) -> tuple[Image.Image | Tensor, int]:
        """Take an item of the data set; until the classes are numbered, a number that it gives is its label."""
        image, label = self._item(number)
        if "_known" in vars(self):
            return image, int(self._known.labels[number])
        own = _whole(label)
        return image, own if 0 <= own < 2**63 else -1

    def identity(self, number: int) -> str:
        """A digest of its file where the data set names it, otherwise of the pixels that it gives."""
        data, place = _inner(self.data, number)
        if hasattr(data, "reader"):
            file, *_ = data.reader[place]
            with file:
                return of_file(file.read())
        if _is_torchvisions(data) and len(files := _files(data)) == len(data):
            return of_file(Path(files[place][0]).read_bytes())
        return of_pixels(self._item(number)[0])

    def _item(self, number: int) -> tuple[Image.Image | Tensor, Any]:
        """The image and what is said of its class; None where there is no place for one."""
        if not hasattr(self.data, "reader"):
            return taken(self.data, number)
        file, label, *_ = self.data.reader[number]
        with file:
            image = decoded(file)
        change = getattr(self.data, "target_transform", None)
        return image, UNKNOWN if label is None else change(label) if change else label

    @cached_property
    def _known(self) -> Labels:
        labels, names = self._listed(), self._named()
        if labels is None:
            labels = self._read()
        elif any(_whole(self._item(number)[1]) != labels[number] for number in self._some()):
            labels, names = self._read(), {}  # what is listed is not what the items say
        whole = [own if own in names or own < 0 else -1 for own in labels] if names else labels
        if whole != labels:
            other = next(own for own in labels if own >= 0 and own not in names)
            raise Refusal(
                f"the data set has an image of class {other}, and its class_to_idx names "
                f"{', '.join(map(str, list(names)[:8]))}{', ...' if len(names) > 8 else ''}"
            )
        order = {own: place for place, own in enumerate(names)} or {own: own for own in labels}
        values, codes = np.unique(
            np.array([order.get(own, -1) for own in labels], dtype=object), return_inverse=True
        )
        return of_codes(codes, values.tolist(), "the data set", list(names.values()) or None)

    def _read(self) -> list[int]:
        """The class of every image by its item, -1 where it has none."""
        first = [self._item(number)[1] for number in self._some()]
        if all(label is None for label in first):
            return [-1] * len(self)
        if (label := first[0]) is not None and not isinstance(said(label), int):
            logger.warning(
                "the data set gives %s beside an image, which is not read as its class: a class is a whole number",
                repr(label) if isinstance(label, str | float) else f"a {type(label).__name__}",
            )
            return [-1] * len(self)
        return [_whole(self._item(number)[1]) for number in range(len(self))]

    def _some(self) -> list[int]:
        """The first image, one in the middle and the last."""
        return sorted({0, len(self) // 2, len(self) - 1})

    def _listed(self) -> list[int] | None:
        """The classes as a data set of a known kind lists them, if it does."""
        data, _ = _inner(self.data, 0)
        try:
            values = np.asarray(_values(data))
        except ValueError:  # lists of different lengths
            return None
        if values.shape != (len(data),) or values.dtype.kind not in "iu":
            return None
        return [int(values[_inner(self.data, number)[1]]) for number in range(len(self))]

    def _named(self) -> dict[int, str]:
        """The name of each class by its number in the data set, in order, where it names them."""
        data, _ = _inner(self.data, 0)
        if getattr(data, "target_transform", None) is not None:
            return {}
        reader = getattr(data, "reader", data)
        for attribute in NAMES:
            places = getattr(reader, attribute, None)
            if isinstance(places, Mapping) and places:
                whole = {int(place): str(name) for name, place in reversed(list(places.items()))}
                return dict(sorted(whole.items()))
        return {}

    def name(self, number: int) -> str:
        """Its name if the data set knows one, otherwise its number."""
        return str(self.data.filename(number)) if hasattr(self.data, "filename") else f"image {number}"

    def contents(self) -> dict[str, Any]:
        """Nothing: what a data set holds cannot be known, so its name is its own."""
        return {}

    def origin(self) -> Hashable:
        """The data set itself."""
        return "data", id(self.data)


def _whole(label: Any) -> int:
    """The number of a class, -1 where there is none."""
    own = said(label)
    return own if isinstance(own, int) else -1


def _inner(data: Any, number: int) -> tuple[Any, int]:
    """The data set that a part of a data set was chosen from, and the image's number there."""
    while type(data) is Subset:
        data, number = data.dataset, int(data.indices[number])
    return data, number


def _is_torchvisions(data: Any) -> bool:
    """Return whether it is known what the attributes of a data set mean; a class derived from torchvision's may change it."""
    return type(data).__module__.startswith("torchvision.datasets")


def _files(data: Any) -> Sequence[Any]:
    return getattr(data, "samples", None) or getattr(data, "imgs", None) or []


def _values(data: Any) -> Any:
    """The classes that a data set of a known kind lists."""
    if getattr(data, "target_transform", None) is not None:
        return None
    if (reader := getattr(data, "reader", None)) is not None:
        if hasattr(reader, "label_key"):  # timm's reader of Hugging Face's data sets
            return reader.dataset[reader.label_key]
        targets = getattr(reader, "targets", None)
        return [label for _, label, *_ in getattr(reader, "samples", [])] if targets is None else targets
    if type(data) is TensorDataset:
        return data.tensors[1] if len(data.tensors) > 1 else None
    if not _is_torchvisions(data):
        return None
    targets = getattr(data, "targets", None)
    return [label for _, label, *_ in _files(data)] if targets is None else targets
