"""What lies in tars: their images, and what the files beside an image say of its class, as WebDataset has it.

These are ``000123.jpg`` with ``000123.cls``, or with a ``000123.json`` that has ``label`` or ``cls``. Where a label is named,
only ``000123.LABEL`` and that key of the .json say it.
"""

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from vit_analysis.sources.labels import said
from vit_analysis.sources.members import Member, members
from vit_analysis.sources.names import Names, ending, is_image, natural
from vit_analysis.sources.pairs import Pairs
from vit_analysis.spelling import Refusal

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


class Said:
    """What a file says of a class, how much it is to be preferred (less is more), and which image it was taken for."""

    def __init__(self, code: int, rank: int) -> None:
        self.code, self.rank, self.image = code, rank, ""


class Index:
    """The place of each image in its shard, and what is known of its class.

    Attributes:
        others: the number of files that are no images, by ending.
        replaced: images of which a later one of the same name is read, as ``tar -r`` leaves them.
        odd: what is said in place of a class and is none.
    """

    def __init__(self, image: str | None, label: str | None) -> None:
        self.image, self.label = image, label.removeprefix(".") if label else None
        self.names, self.offsets, self.sizes = Names(), array("q"), array("q")
        self.starts, self.folders, self.said = array("q"), array("q"), array("q")
        self.places, self.values = Codes(), Codes()
        self.others = Counter[str]()
        self.replaced, self.odd = list[str](), list[str]()
        self.pairs = Pairs()

    def add(self, path: Path) -> None:
        """Walk the headers of a tar.

        Raises:
            OSError: it is no tar, or not a whole one, or holds no images.
        """
        own, told = _Shard(), dict[str, Said]()
        with path.open("rb") as file:
            for member in members(file, str(path)):
                self._note(member, own, told)
        if not len(own.names):
            raise FileNotFoundError(f"no images in {str(path)!r}: it holds {_told(self.others)}")
        self.starts.append(len(self.names))
        order = own.order()
        for number, next_ in zip(order, [*order[1:], None], strict=True):
            name = own.names[number]
            if next_ is not None and own.names[next_] == name:
                self.replaced.append(name)
                continue
            self.names.append(name)
            self.offsets.append(own.offsets[number])
            self.sizes.append(own.sizes[number])
            self.folders.append(self.places.number(name.rpartition("/")[0]))
            self.said.append(self._said(name, told, path))
        if told and not self.odd and max(self.said[self.starts[-1] :]) < 0:
            self.odd.append(f"a class is said of {next(iter(told))!r}, which is no image")
        if self.image is None:
            self.pairs.add([self.names[number] for number in range(self.starts[-1], len(self.names))])

    def _said(self, name: str, told: dict[str, Said], path: Path) -> int:
        """What is said of an image by the file of its name, up to its last dot or, as WebDataset has it, to its first.

        Raises:
            Refusal: the same is said of another image, as of a photograph and its segmentation.
        """
        own = told.get(name.rpartition(".")[0]) or told.get(_stem(name))
        if own is None:
            return -1
        if own.image:
            raise Refusal(
                f"{own.image!r} and {name!r} in {str(path)!r} are several images of one sample; say which are meant, as in "
                f"--images.image-column {kind(own.image)}"
            )
        own.image = name
        return own.code

    def _note(self, member: Member, own: "_Shard", told: dict[str, Said]) -> None:
        last = ending(member.name)
        if is_image(member.name) and self.image in (None, kind(member.name)):
            own.names.append(member.name)
            own.offsets.append(member.offset)
            own.sizes.append(member.size)
            return
        says = f".{self.label or 'cls'}"
        if member.name.lower().endswith(says.lower()):
            self._tell(told, member.name[: -len(says)], member.read().decode("utf-8", "replace"), 0)
        elif last == ".json":
            self._tell(told, member.name.rpartition(".")[0], self._of_json(member), 1)
        elif last not in SUPERFLUOUS:
            self.others[last] += 1

    def _tell(self, told: dict[str, Said], stem: str, value: Any, rank: int) -> None:
        """Note what is said; of two files of one kind the later one is right."""
        own = said(value)
        if own is not None and (stem not in told or told[stem].rank >= rank):
            told[stem] = Said(self.values.number(own), rank)

    def _of_json(self, member: Member) -> Any:
        """The first of the keys of a class that says something."""
        try:
            content = json.loads(member.read())
        except ValueError:
            return None
        if not isinstance(content, dict):
            return None
        keys = [self.label] if self.label else KEYS
        value = next((content[key] for key in keys if content.get(key) is not None), None)
        if value not in (None, "") and said(value) is None and not self.odd:
            self.odd.append(f"{member.name!r} says {json.dumps(value)[:60]}")
        return value


class _Shard:
    """The images of one shard, as they follow each other in it."""

    def __init__(self) -> None:
        self.names, self.offsets, self.sizes = Names(), array("q"), array("q")

    def order(self) -> Sequence[int]:
        """The natural order of their names, in which they mostly are; of two that are equal, the later one is last."""
        numbers = range(len(self.names))
        if all(natural(one) <= natural(next_) for one, next_ in pairwise(self.names)):
            return numbers
        return sorted(numbers, key=lambda number: natural(self.names[number]))


def kind(name: str) -> str:
    """WebDataset's ending of a name: all that follows the first dot."""
    return name.rpartition("/")[2].partition(".")[2].lower()


def _stem(name: str) -> str:
    folder, slash, own = name.rpartition("/")
    return f"{folder}{slash}{own.partition('.')[0]}"


def _told(kinds: Counter[str]) -> str:
    told = ", ".join(f"{count:,} {what or 'without an ending'}" for what, count in kinds.most_common(4))
    return told or "nothing"
