"""A folder of images; the class of an image is the path of its folder below the root.

Folders and files that systems hide (``.git``, ``._photo.jpg``, Thumbs.db) are ignored. A link to an image is an image. A link
to a folder is followed, but no folder is visited twice: not by two links, and not by a link to a folder above itself.
"""

import logging
import os
from array import array
from collections import Counter, deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from vit_analysis.sources.decoded import Decoded, decoded
from vit_analysis.sources.identity import of_file
from vit_analysis.sources.labels import Labels
from vit_analysis.sources.names import (
    PARQUET,
    TAR,
    Names,
    digest,
    ending,
    is_hidden,
    left_out,
    natural,
    readable,
)
from vit_analysis.sources.pairs import Pairs, refuse_drawn
from vit_analysis.sources.splits import mixed
from vit_analysis.sources.stamp import refuse_changed, stamp
from vit_analysis.spelling import Refusal

logger = logging.getLogger(__name__)


@dataclass
class Listing:
    """What lies in a folder: its images, in natural order folder by folder, its shards, and how much else by ending.

    Attributes:
        root: the folder.
        folders: those below that hold images, as paths from the root with ``/``; "" is the root itself.
        starts: the number of the first image of each of them.
        names: the name of each image in its folder.
        sizes: the size of each image in bytes.
        times: when each was changed, in nanoseconds.
        shards: tars and parquet files, by their ending.
        others: the number of other files, by ending.
        twice: folders that are not read again, as another path leads to them.
    """

    root: Path
    folders: list[str] = field(default_factory=list)
    starts: array = field(default_factory=lambda: array("q"))
    names: Names = field(default_factory=Names)
    sizes: array = field(default_factory=lambda: array("q"))
    times: array = field(default_factory=lambda: array("q"))
    shards: dict[str, list[Path]] = field(default_factory=lambda: {TAR: [], PARQUET: []})
    others: Counter[str] = field(default_factory=Counter)
    twice: list[str] = field(default_factory=list)


def listed(root: Path) -> Listing:
    """List what lies in a folder and below.

    Raises:
        OSError: a folder cannot be read.
    """
    listing = Listing(root)
    for folder in sorted(_folders(root, listing.twice), key=_place):
        start = len(listing.names)
        _add(listing, root / folder)
        if len(listing.names) > start:
            listing.folders.append(folder)
            listing.starts.append(start)
    return listing


def _place(folder: str) -> tuple[bool, tuple[str, str]]:
    return folder != "", natural(f"{folder}/")


def _add(listing: Listing, folder: Path) -> None:
    """Add what lies in one folder, in natural order of the names."""
    place = str(folder)
    for name in sorted(_files(folder), key=natural):
        kind = ending(name)
        if kind in readable():
            size, time = stamp(f"{place}{os.sep}{name}")
            listing.names.append(name)
            listing.sizes.append(size)
            listing.times.append(time)
        elif kind in listing.shards:
            listing.shards[kind].append(folder / name)
        else:
            listing.others[kind] += 1


def _folders(root: Path, twice: list[str]) -> Iterator[str]:
    """Yield each folder once, as a path from the root: first the real ones, then what links lead to."""
    real, links, seen = deque([""]), deque[str](), set[str]()
    while real or links:
        linked = not real
        folder = (links if linked else real).popleft()
        place = os.path.realpath(root / folder)
        if linked and any(_holds(place, inner) for inner in (root, (root / folder).parent)):
            continue
        if place in seen:
            twice.append(folder)
            continue
        seen.add(place)
        yield folder
        for entry in _entries(root / folder):
            if not is_hidden(entry.name) and _is_folder(entry):
                own = f"{folder}/{entry.name}" if folder else entry.name
                (links if entry.is_symlink() else real).append(own)


def _holds(place: str, inner: Path) -> bool:
    return Path(os.path.realpath(inner)).is_relative_to(place)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise OSError(
            f"cannot read the folder {str(folder)!r} ({error.strerror}), nor what images it holds"
        ) from error


def _files(folder: Path) -> list[str]:
    """Names of files, and of links that lead nowhere: those are images that cannot be read, not images that are not there."""
    return [entry.name for entry in _entries(folder) if not is_hidden(entry.name) and _is_file(entry)]


def _is_file(entry: "os.DirEntry[str]") -> bool:
    return not _is_folder(entry) if entry.is_symlink() else entry.is_file()


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


class Folder(Decoded):
    """Images in a folder and below.

    Raises:
        Refusal: it is not known which images are meant, or of which class some are.
    """

    def __init__(self, listing: Listing, name: str) -> None:
        self.listing = listing
        _refuse_splits(listing, name)
        refuse_drawn(listing.folders, repr(name))
        _refuse_pairs(listing, name)
        if listing.folders[0] == "" and len(listing.folders) > 1:
            loose = listing.starts[1]
            raise Refusal(
                f"{name!r} holds folders of images ({_told(listing.folders[1:])}) and {loose:,} images beside them, such as "
                f"{listing.names[0]!r}, whose class is not known; move them into a folder of their class, or away"
            )
        others = listing.others + Counter({kind: len(own) for kind, own in listing.shards.items() if own})
        if others:
            logger.warning("%s: %s", name, left_out(others))
        if listing.twice:
            logger.warning("%s: links to folders that are read already: %s", name, _told(listing.twice))

    def __len__(self) -> int:
        return len(self.listing.names)

    def image(self, number: int) -> tuple[Image.Image | Tensor, int]:
        """Decode a file."""
        path, known = self._path(number), (self.listing.sizes[number], self.listing.times[number])
        with path.open("rb") as file:
            refuse_changed(file, known, str(path))
            return decoded(file), int(self.labels[number])

    def name(self, number: int) -> str:
        """Its path from the root."""
        folder = self.listing.folders[self._folder(number)]
        return f"{folder}/{self.listing.names[number]}" if folder else self.listing.names[number]

    @cached_property
    def _known(self) -> Labels:
        """The paths of the folders that hold images, in natural order, and the place of an image's folder among them."""
        own = self.listing.folders
        names = [] if own == [""] else sorted(own, key=natural)
        place = {name: number for number, name in enumerate(names)}
        counts = np.diff([*self.listing.starts, len(self)])
        labels = np.repeat(np.array([place.get(folder, -1) for folder in own]), counts)
        return Labels(names, torch.from_numpy(labels))

    def contents(self) -> dict[str, Any]:
        """A digest of names, sizes and times of change."""
        return {"files": self._digest}

    @cached_property
    def _digest(self) -> str:
        own = self.listing
        whole = (own.names.text, own.names.ends, own.starts, own.sizes, own.times)
        return digest("\0".join(own.folders), *whole)

    def origin(self) -> Hashable:
        """The folder, by whatever path it was named."""
        return os.path.realpath(self.listing.root)

    def identity(self, number: int) -> str:
        """A digest of its file."""
        return of_file(self._path(number).read_bytes())

    def _folder(self, number: int) -> int:
        return int(np.searchsorted(self._starts, number, side="right")) - 1

    @cached_property
    def _starts(self) -> Int[np.ndarray, " folder"]:
        return np.array(self.listing.starts, dtype=np.int64)

    def _path(self, number: int) -> Path:
        return self.listing.root / self.listing.folders[self._folder(number)] / self.listing.names[number]


def _refuse_splits(listing: Listing, name: str) -> None:
    if sets := mixed(listing.folders):
        raise Refusal(
            f"{name!r} holds {' and '.join(map(repr, sets.values()))}, which are different sets of images; choose one: "
            f"{' or '.join(str(listing.root / own) for own in sets.values())}"
        )


def _refuse_pairs(listing: Listing, name: str) -> None:
    pairs = Pairs()
    for start, end in pairwise([*listing.starts, len(listing.names)]):
        pairs.add([listing.names[number] for number in range(start, end)])
    pairs.refuse(repr(name), "move those that are meant into a folder of their own")


def _told(names: list[str]) -> str:
    return f"{', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}"
