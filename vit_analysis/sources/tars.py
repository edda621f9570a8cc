"""Tars of images, one or many, read by number: their headers are walked once, and then each image is one seek.

An image's class is what a file of its name says beside it (`sources.samples`). Without such files it is the path of its folder
below the one that holds all images, where a tar within a tar is a folder.
"""

import logging
from collections.abc import Hashable
from functools import cached_property
from io import BytesIO
from posixpath import commonpath
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from vit_analysis.sources.decoded import Decoded, decoded
from vit_analysis.sources.identity import of_file
from vit_analysis.sources.labels import Labels, of_codes
from vit_analysis.sources.names import digest, left_out, natural
from vit_analysis.sources.pairs import refuse_drawn
from vit_analysis.sources.samples import Index, kind
from vit_analysis.sources.shards import Shards
from vit_analysis.sources.splits import mixed
from vit_analysis.spelling import Refusal

logger = logging.getLogger(__name__)


class Tars(Decoded):
    """Images in the members of tars."""

    def __init__(self, shards: Shards, name: str, image: str | None = None, label: str | None = None) -> None:
        self.shards, self.source = shards, name
        self.index = index = Index(image, label)
        logger.info("%s: listing what is in %d tar%s", name, len(shards), "s" if len(shards) > 1 else "")
        for path in shards.paths:
            index.add(path)
        self._own = self._labelled(label)
        self._warn()

    def _warn(self) -> None:
        """Say what was left out."""
        index = self.index
        if index.others:
            logger.warning("%s: %s", self.source, left_out(index.others))
        if index.replaced:
            logger.warning(
                "%s: %d images are there twice, such as %r; the later ones are read",
                *(self.source, len(index.replaced), index.replaced[0]),
            )
        if index.odd and not self.names:
            logger.warning("%s: %s, which is not read as a class", self.source, index.odd[0])

    def _labelled(self, label: str | None) -> Labels:
        folders = [str(value) for value in self.index.places.values]
        common = commonpath(folders)
        folders = [folder.removeprefix(common).removeprefix("/") for folder in folders]
        self._refuse_several(folders)
        said = np.array(self.index.said, dtype=np.int64)
        if (said >= 0).any():
            return of_codes(said, self.index.values.values, repr(self.source))
        if label is not None and self.index.odd:
            raise Refusal(f"{self.index.odd[0]} in {self.source!r}, and no number or name of a class")
        if label is not None:
            raise Refusal(
                f"no file beside an image of {self.source!r} ends with .{self.index.label}, and no .json says {label!r}"
            )
        return self._of_folders(folders)

    def _refuse_several(self, folders: list[str]) -> None:
        """Check that the images are of one set, and photographs alone."""
        if sets := mixed(folders):
            raise Refusal(
                f"{self.source!r} holds {' and '.join(map(repr, sets.values()))}, which are different sets of images; pack "
                f"each into a tar of its own"
            )
        refuse_drawn(folders, repr(self.source))
        kinds = [kind(name) for name in self.index.pairs.first or ()]
        own = f"say which are meant, as in --images.image-column {kinds[0]}" if len(set(kinds)) > 1 else ""
        self.index.pairs.refuse(repr(self.source), own or "pack those that are meant into a tar of their own")

    def _of_folders(self, names: list[str]) -> Labels:
        """Number the folders that hold images, below the one that holds them all."""
        if len(names) == 1:
            return of_codes(np.full(len(self), -1), [], repr(self.source))
        if "" in names:
            number = self.index.folders.index(names.index(""))
            raise Refusal(
                f"{self.source!r} holds folders of images and images beside them, such as {self.index.names[number]!r}, whose "
                f"class is not known"
            )
        order = sorted(names, key=natural)
        place = {name: number for number, name in enumerate(order)}
        codes = np.array([place[name] for name in names])[np.array(self.index.folders, dtype=np.int64)]
        return of_codes(codes, range(len(order)), repr(self.source), order)

    def __len__(self) -> int:
        return len(self.index.names)

    def image(self, number: int) -> tuple[Image.Image | Tensor, int]:
        """Seek a member and decode it."""
        return decoded(BytesIO(self._content(number))), int(self.labels[number])

    def identity(self, number: int) -> str:
        """A digest of its file."""
        return of_file(self._content(number))

    def _content(self, number: int) -> bytes:
        with self.shards.open(self._shard(number)) as file:
            file.seek(self.index.offsets[number])
            return file.read(self.index.sizes[number])

    def name(self, number: int) -> str:
        """Its path in the tar, and the tar's name where there are several."""
        own = self.index.names[number]
        return own if len(self.shards) == 1 else f"{self.shards.paths[self._shard(number)].name}/{own}"

    @property
    def _known(self) -> Labels:
        return self._own

    def contents(self) -> dict[str, Any]:
        """A digest of the shards, of where the images lie in them, and of their classes."""
        return {"files": self._digest}

    @cached_property
    def _digest(self) -> str:
        whole = (self.index.names.text, self.index.names.ends, self.index.offsets, self.index.sizes)
        return digest(self.shards.digest, *self._known.facts, *whole)

    def origin(self) -> Hashable:
        """The shards, and which images of them."""
        return self.shards.origin(), self.index.image

    def _shard(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    @cached_property
    def _starts(self) -> Int[np.ndarray, " shard"]:
        return np.array(self.index.starts, dtype=np.int64)
