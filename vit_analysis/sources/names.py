"""Names of files: which are images, their natural order, and what is said of those that are left out."""

import hashlib
import posixpath
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from PIL import EpsImagePlugin, Image, ImageFile

TAR, PARQUET = ".tar", ".parquet"
ARCHIVES = {".zip", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".lz4", ".7z", ".rar"}
OF_THE_SYSTEM = {"thumbs.db", "desktop.ini", "__macosx"}
NUMBER = re.compile("[0-9]+")
NAMED_AT_MOST = 6  # endings of files that are left out


class Names:
    """Many names in one block of memory, where a list of strings takes three times as much."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.text, self.ends = bytearray(), array("q", [0])
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a name at the end."""
        self.text += name.encode("utf-8", "surrogatepass")  # a name that is no UTF-8 holds surrogates
        self.ends.append(len(self.text))

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(number)
        own = self.text[self.ends[number] : self.ends[number + 1]]
        return own.decode("utf-8", "surrogatepass")


@cache
def readable() -> frozenset[str]:
    """Endings, in small letters, of the files whose pixels this PIL can read."""
    Image.init()
    broken = {"MPEG"} | (set() if EpsImagePlugin.has_ghostscript() else {"EPS"})
    return frozenset(
        ending.lower()
        for ending, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in broken and not _only_known_by_name(Image.OPEN[kind][0])
    )


def _only_known_by_name(opener: object) -> bool:
    """Return whether PIL tells the format of a file and cannot read it."""
    return isinstance(opener, type) and issubclass(opener, ImageFile.StubImageFile)


def ending(name: str) -> str:
    """The ending of a file's name in small letters, ``.tar.gz`` as one."""
    base, last = posixpath.splitext(name.lower())
    return TAR + last if last in ARCHIVES and base.endswith(TAR) else last


def is_image(name: str) -> bool:
    """Return whether PIL reads files of this name."""
    return ending(name) in readable()


def is_packed(name: str) -> bool:
    """Return whether a file of this name has to be unpacked before its images can be read by number."""
    return posixpath.splitext(name.lower())[1] in ARCHIVES


def is_hidden(name: str) -> bool:
    """Return whether a name in a path is one that systems hide, such as macOS's ``._photo.jpg`` beside each photo.jpg."""
    return name.startswith(".") or name.lower() in OF_THE_SYSTEM


def natural(name: str) -> tuple[str, str]:
    """A key that sorts names without regard to case and their numbers by value, as timm does: 2.png before 10.png."""
    return NUMBER.sub(lambda found: _by_value(found[0].lstrip("0")), name.lower()), name


def _by_value(digits: str) -> str:
    return f"\0{chr(len(digits))}{digits}"


def left_out(endings: Counter[str]) -> str:
    """A sentence that counts what is no image by its ending.

    Examples:
        >>> left_out(Counter({".txt": 3, ".zip": 1}))
        'left out: 3 .txt, 1 .zip (unpack it)'
    """
    told = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
    parts = [
        f"{count:,} {what or 'without an ending'}{' (unpack it)' if is_packed(f'x{what}') or what == TAR else ''}"
        for what, count in told[:NAMED_AT_MOST]
    ]
    rest = sum(count for _, count in told[NAMED_AT_MOST:])
    return f"left out: {', '.join(parts)}{f' and {rest:,} others' if rest else ''}"


def digest(*parts: Any) -> str:
    """Sixteen hexadecimal digits that change with any of the parts: texts, or anything whose memory is bytes or numbers."""
    total = hashlib.sha256()
    for part in parts:
        own = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else memoryview(part).cast("B")
        total.update(len(own).to_bytes(8, "little"))
        total.update(own)
    return total.hexdigest()[:16]
