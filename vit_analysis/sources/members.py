"""The members of a tar, found by its headers, and the check that it is a whole one.

Python's own reader takes a damaged header, or a file that ends early, for the end of the tar, and images would be missing
without a word.
"""

import re
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from io import SEEK_END, BufferedIOBase
from posixpath import normpath
from typing import NamedTuple

from vit_analysis.sources.names import TAR, ending, is_hidden
from vit_analysis.spelling import Refusal

BLOCK = 512
OUTSIDE = re.compile(r"^(?:\.\./|/)+")  # how paths begin that lead out of the folder where a tar is unpacked
PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"PK\x03\x04")  # how compressed files begin


class Member(NamedTuple):
    """A file in a tar: its path, where its bytes begin and how many they are, and a function that reads them."""

    name: str
    offset: int
    size: int
    read: Callable[[], bytes]


def members(file: BufferedIOBase, path: str) -> Iterator[Member]:
    """Yield the files in a tar, and those in tars within it, but not hidden ones.

    Raises:
        Refusal: it is compressed.
        OSError: it is no tar, or not a whole one.
    """
    start = file.read(6)
    if start.startswith(PACKED):
        raise Refusal(f"{path!r} is compressed, and a part of it cannot be read alone; unpack it")
    file.seek(0)
    count = 0
    try:
        for member in _members(file, "", 0):
            count += 1
            if not any(is_hidden(part) for part in member.name.split("/")):
                yield member
    except tarfile.TarError as error:
        told = f"it is cut off or damaged after {count:,} files" if count else "not even its first file"
        raise OSError(f"{path!r} is no tar of images that can be read: {told} ({error})") from error


def _members(file: BufferedIOBase, inside: str, base: int) -> Iterator[Member]:
    whole = file.seek(0, SEEK_END)
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep them all
            if info.isreg() and not info.issparse() and info.offset_data + info.size > whole:
                raise tarfile.ReadError(f"{info.name!r} is cut off")
            name = OUTSIDE.sub("", normpath(f"{inside}{info.name}".replace("\\", "/")))
            if not info.isreg() or info.issparse():
                if not info.isdir():
                    yield Member(f"{name}.{'sparse' if info.issparse() else 'link'}", 0, 0, bytes)
            elif ending(name) == TAR:
                yield from _members(_opened(tar, info), f"{name[: -len(TAR)]}/", base + info.offset_data)
            else:
                yield Member(name, base + info.offset_data, info.size, partial(_read, tar, info))
        _refuse_cut_off(file, tar.offset)


def _opened(tar: tarfile.TarFile, info: tarfile.TarInfo) -> BufferedIOBase:
    file = tar.extractfile(info)
    assert isinstance(file, BufferedIOBase)  # of a regular file
    return file


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    return _opened(tar, info).read()


def _refuse_cut_off(file: BufferedIOBase, end: int) -> None:
    """Check that a tar ends with its mark, blocks of zeros, and nothing behind."""
    file.seek(end)
    rest = file.read(BLOCK)
    if len(rest) < BLOCK:
        raise tarfile.ReadError("the mark of its end is missing")
    if any(rest):
        raise tarfile.ReadError("what follows is no file")
    while rest := file.read(2**20):
        if any(rest):
            raise tarfile.ReadError("behind its end there is more; was another tar joined to it?")
