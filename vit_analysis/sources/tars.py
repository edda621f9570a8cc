"""Tars of images, one or many, read by number: their headers are walked once, and then each image is one seek.

An image's class is what a file of its name says beside it (WebDataset: ``000123.jpg``, ``000123.cls``, or a ``000123.json``
with ``label`` or ``cls``). Without such files it is the path of its folder below the one that holds all images, where a tar
within a tar is a folder.
"""

import json
import logging
from array import array
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import cached_property
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from posixpath import commonpath
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from vit_analysis.sources.decoded import Decoded, decoded
from vit_analysis.sources.identity import of_file
from vit_analysis.sources.labels import Labels, of_codes
from vit_analysis.sources.members import Member, members
from vit_analysis.sources.names import (
    Names,
    digest,
    ending,
    is_image,
    left_out,
    natural,
)
from vit_analysis.sources.shards import Shards
from vit_analysis.sources.splits import mixed
from vit_analysis.spelling import Refusal

logger = logging.getLogger(__name__)

KEYS = ("label", "cls")  # what says a class in a .json
SUPERFLUOUS = {".idx", ".json", ".cls"}  # no one misses them among the images


class Codes:
    """Different texts and a number for each, as many images have few classes."""

    def __init__(self) -> None:
        self.places: dict[str | int, int] = {}

    def number(self, value: str | int) -> int:
        """The number of a text, the next one if it is new."""
        return self.places.setdefault(value, len(self.places))

    @property
    def values(self) -> list[str | int]:
        """The different texts, in order of their numbers."""
        return list(self.places)


class Index:
    """Where in its shard each image lies, and what is known of its class."""

    def __init__(self, image: str | None, label: str | None) -> None:
        self.image, self.label = image, label
        self.names, self.offsets, self.sizes = Names(), array("q"), array("q")
        self.starts, self.folders, self.said = array("q"), array("q"), array("q")
        self.places, self.values = Codes(), Codes()
        self.others = Counter[str]()

    def add(self, path: Path) -> None:
        """Walk the headers of a tar.

        Raises:
            OSError: it is no tar, or not a whole one, or holds no images.
        """
        own, said = _Shard(), dict[str, list[Any]]()  # what is said, and of which image
        with path.open("rb") as file:
            for member in members(file, str(path)):
                self._note(member, own, said)
        if not len(own.names):
            raise FileNotFoundError(f"no images in {str(path)!r}: it holds {_told(self.others)}")
        self.starts.append(len(self.names))
        for number in own.order():
            name = own.names[number]
            self.names.append(name)
            self.offsets.append(own.offsets[number])
            self.sizes.append(own.sizes[number])
            self.folders.append(self.places.number(name.rpartition("/")[0]))
            self.said.append(self._said(name, said, path))

    def _said(self, name: str, said: dict[str, list[Any]], path: Path) -> int:
        """What is said of an image by the file of its name, up to its last dot or, as WebDataset has it, to its first.

        Raises:
            Refusal: the same is said of another image, as of a photograph and its segmentation.
        """
        last = name.rpartition(".")[0]
        own = said.get(last) or said.get(_stem(name))
        if own is None:
            return -1
        code, first = own
        if first is not None:
            raise Refusal(
                f"{first!r} and {name!r} in {str(path)!r} are several images of one sample; say which are meant, as in "
                f"--images.image-column {_kind(first)}"
            )
        own[1] = name
        return code

    def _note(self, member: Member, own: "_Shard", said: dict[str, list[Any]]) -> None:
        kind, last = _kind(member.name), ending(member.name)
        if is_image(member.name) and self.image in (None, kind):
            own.names.append(member.name)
            own.offsets.append(member.offset)
            own.sizes.append(member.size)
        elif last in (".cls", ".json", f".{self.label}"):
            value, stem = _class(member, self.label), member.name.rpartition(".")[0]
            if value is not None and (last != ".json" or stem not in said):
                said[stem] = [self.values.number(value), None]
        elif last not in SUPERFLUOUS:
            self.others[last] += 1


class _Shard:
    """The images of one shard, as they follow each other in it."""

    def __init__(self) -> None:
        self.names, self.offsets, self.sizes = Names(), array("q"), array("q")

    def order(self) -> Sequence[int]:
        """The natural order of their names, in which they mostly are."""
        numbers = range(len(self.names))
        if all(natural(one) <= natural(next_) for one, next_ in pairwise(self.names)):
            return numbers
        return sorted(numbers, key=lambda number: natural(self.names[number]))


class Tars(Decoded):
    """Images in the members of tars."""

    def __init__(self, shards: Shards, name: str, image: str | None = None, label: str | None = None) -> None:
        self.shards, self.source = shards, name
        self.index = index = Index(image, label)
        logger.info("%s: listing what is in %d tar%s", name, len(shards), "s" if len(shards) > 1 else "")
        for path in shards.paths:
            index.add(path)
        self._known = self._labelled(label)
        if index.others:
            logger.warning("%s: %s", name, left_out(index.others))

    def _labelled(self, label: str | None) -> Labels:
        said = np.array(self.index.said, dtype=np.int64)
        if (said >= 0).any():
            return of_codes(said, self.index.values.values, repr(self.source))
        if label is not None:
            raise Refusal(
                f"no file beside an image of {self.source!r} ends with .{label}, and no .json says {label!r}"
            )
        return self._of_folders([str(value) for value in self.index.places.values])

    def _of_folders(self, folders: list[str]) -> Labels:
        """Number the folders that hold images, below the one that holds them all."""
        common = commonpath(folders)
        names = [folder.removeprefix(common).removeprefix("/") for folder in folders]
        if len(names) == 1:
            return of_codes(np.full(len(self), -1), [], repr(self.source))
        if "" in names:
            number = self.index.folders.index(names.index(""))
            raise Refusal(
                f"{self.source!r} holds folders of images and images beside them, such as {self.index.names[number]!r}, whose "
                f"class is not known"
            )
        if tops := mixed(names):
            raise Refusal(
                f"{self.source!r} holds {' and '.join(map(repr, tops))}, which are different sets of images; pack each into "
                f"a tar of its own"
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
    def names(self) -> list[str]:
        """Names of the classes."""
        return self._known.names

    @property
    def labels(self) -> Int[Tensor, " image"]:
        """The class of every image."""
        return self._known.labels

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


def _class(member: Member, label: str | None) -> str | int | None:
    """What a file beside an image says of its class."""
    content = member.read()
    if ending(member.name) != ".json":
        return content.decode("utf-8", "replace").strip() or None
    try:
        said = json.loads(content)
    except ValueError:
        return None
    keys = [label] if label else KEYS
    values = [said[key] for key in keys if key in said] if isinstance(said, dict) else []
    return values[0] if values and type(values[0]) in (int, str) else None


def _stem(name: str) -> str:
    folder, slash, own = name.rpartition("/")
    return f"{folder}{slash}{own.partition('.')[0]}"


def _kind(name: str) -> str:
    """WebDataset's ending of a name: all that follows the first dot."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def _told(kinds: Counter[str]) -> str:
    told = ", ".join(f"{count:,} {kind or 'without an ending'}" for kind, count in kinds.most_common(4))
    return told or "nothing"
