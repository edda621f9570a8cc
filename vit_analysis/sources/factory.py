"""Data sets that torchvision knows, by timm's names for them: ``torch/cifar10``."""

from collections.abc import Hashable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import create_dataset
from torch import Tensor

from vit_analysis.sources.folder import listed
from vit_analysis.sources.given import Data
from vit_analysis.sources.names import digest
from vit_analysis.sources.source import Named
from vit_analysis.sources.stamp import stamp
from vit_analysis.spelling import Refusal, did_you_mean

PREFIX = "torch/"
# timm's names, and what has to lie in the folder.
HOLDS = {
    "cifar10": "the folder cifar-10-batches-py",
    "cifar100": "the folder cifar-100-python",
    "mnist": "the folder MNIST/raw",
    "kmnist": "the folder KMNIST/raw",
    "fashion_mnist": "the folder FashionMNIST/raw",
    "qmnist": "the folder QMNIST/raw",
    "imagenet": "the folders train and val, or ILSVRC2012's archives",
    "places365": "the folders and lists of Places365",
    "inaturalist": "the folder 2021_valid or 2021_train",
    "inat": "the folder 2021_valid or 2021_train",
    "image_folder": "a folder for each class",
    "folder": "a folder for each class",
}


class Factory(Data):
    """Images of a data set of torchvision's."""

    def __init__(self, named: Named) -> None:
        super().__init__(_made(named))
        self.named = named

    def contents(self) -> dict[str, Any]:
        """A digest of the images where they are in memory, otherwise of the names, sizes and times of their files."""
        return {"files": self._digest}

    @cached_property
    def _digest(self) -> str:
        labels, names = self.labels.contiguous().numpy().data, "\0".join(self.names)
        pixels = getattr(self.data, "data", None)
        if isinstance(pixels, np.ndarray | Tensor):
            return digest(np.ascontiguousarray(torch.as_tensor(pixels).numpy()).data, labels, names)
        files = [
            Path(path) for path, *_ in getattr(self.data, "samples", None) or getattr(self.data, "imgs", [])
        ]
        if not files:
            own = listed(Path(str(self.named.root)))
            files = [own.root / own.names[number] for number in range(len(own.names))]
            return digest(own.names.text, own.names.ends, own.sizes, own.times, labels, names)
        return digest("\0".join(f"{path} {stamp(path)}" for path in files), labels, names)

    def origin(self) -> Hashable:
        """The name, the folder and the split."""
        return self.named.source, str(self.named.root), self.named.split


def _made(named: Named) -> Any:
    name = named.source[len(PREFIX) :].lower()
    if name not in HOLDS:
        raise Refusal(
            f"no data set {named.source!r}; {did_you_mean(named.source, [PREFIX + own for own in HOLDS])}"
        )
    if named.image_column or named.label_column:
        raise Refusal(f"{named.source!r} has no columns")
    if named.root is None:
        raise Refusal(
            f"{named.source!r} needs the folder where it lies: --images.root FOLDER, which holds {HOLDS[name]}"
        )
    root = named.root.expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}; --images.root has to hold {HOLDS[name]}")
    try:
        return create_dataset(named.source, root=str(root), split=named.split)
    except Exception as error:  # of whatever kind: it is torchvision that speaks
        there = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
        raise FileNotFoundError(
            f"{named.source!r} (split {named.split!r}) cannot be read from {str(root)!r}: {' '.join(str(error).split())} "
            f"It has to hold {HOLDS[name]}; there is {there}"
        ) from error
