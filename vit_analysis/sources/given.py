"""Images that are given: a tensor, or a data set of torch's kind."""

from collections.abc import Hashable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from vit_analysis.sources.columns import CLASSES, IMAGES
from vit_analysis.sources.decoded import Decoded, as_rgb, decoded
from vit_analysis.spelling import Refusal


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
        """Take an item of the data set."""
        if not hasattr(self.data, "reader"):
            return _image_and_label(self.data[number])
        file, label, *_ = self.data.reader[number]
        with file:
            return decoded(file), -1 if label is None else int(label)

    @cached_property
    def names(self) -> list[str]:
        """Names of the classes, in order of their labels, or their numbers where a data set gives nothing else."""
        reader = getattr(self.data, "reader", self.data)
        # ImageNet's class_to_idx has several names for a class. The last is an attribute of timm's readers of tars.
        for attribute in ("wnid_to_idx", "class_to_idx", "class_name_to_idx"):
            if places := dict(getattr(reader, attribute, None) or {}):
                return sorted(places, key=lambda name: places[name])
        if reader is self.data and self.image(0)[1] >= 0:
            return [str(number) for number in range(int(self.labels.max()) + 1)]
        return []

    @cached_property
    def labels(self) -> Int[Tensor, " image"]:
        """The class of every image, from the data set if it lists them; otherwise every image is read."""
        reader = getattr(self.data, "reader", self.data)
        if hasattr(reader, "label_key"):  # timm's reader of Hugging Face's data sets
            return torch.tensor(reader.dataset[reader.label_key])
        if hasattr(reader, "targets"):
            return torch.as_tensor(reader.targets)
        if hasattr(reader, "samples"):
            return torch.tensor([label for _, label, *_ in reader.samples])
        if isinstance(reader, Tensor):
            return torch.full((len(reader),), -1)
        return torch.tensor([self.image(number)[1] for number in range(len(self))])

    def name(self, number: int) -> str:
        """Its name if the data set knows one, otherwise its number."""
        return str(self.data.filename(number)) if hasattr(self.data, "filename") else f"image {number}"

    def contents(self) -> dict[str, Any]:
        """Nothing: what a data set holds cannot be known, so its name is its own."""
        return {}

    def origin(self) -> Hashable:
        """The data set itself."""
        return "data", id(self.data)


def _image_and_label(item: Any) -> tuple[Image.Image | Tensor, int]:
    """Return image and class (-1 if unknown) of a data set's item: an image, an image and its class, or a mapping of both.

    Raises:
        Refusal: it gives something else.
    """
    label: Any = -1
    if isinstance(item, Mapping) and (image := next((name for name in IMAGES if name in item), None)):
        known = next((name for name in CLASSES if name in item), None)
        item, label = item[image], item.get(known, -1)
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
    is_class = isinstance(label, int | np.integer) or whole
    return as_rgb(item) if isinstance(item, Image.Image) else item, int(label) if is_class else -1
