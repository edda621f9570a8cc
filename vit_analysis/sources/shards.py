"""Files that hold many images each: which ones a name means, and whether they are still those that were listed.

Shards are taken in natural order of their names, so that train-2.tar comes before train-10.tar, and an image has the same
number however the shards were named.
"""

import glob
import os
import re
from collections.abc import Hashable, Iterator, Sequence
from functools import cached_property
from io import BufferedIOBase
from itertools import product
from pathlib import Path

from vit_analysis.sources.names import digest, natural
from vit_analysis.sources.splits import refuse_mixed_shards
from vit_analysis.sources.stamp import refuse_changed, stamp
from vit_analysis.spelling import Refusal

RANGE = re.compile(r"([0-9]+)\.\.([0-9]+)")
BRACES = re.compile(r"\{([^{}]*(?:\.\.|,)[^{}]*)\}")


class Shards:
    """Some files, as they were when they were listed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = sorted(paths, key=lambda path: natural(path.as_posix()))
        self.stamps = [stamp(path) for path in self.paths]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, number: int) -> BufferedIOBase:
        """Open a shard; the caller closes it.

        It is opened for each image: that costs little beside decoding, and no file is shared with other processes.

        Raises:
            Refusal: it is not the file that was listed.
        """
        file = self.paths[number].open("rb")
        try:
            refuse_changed(file, self.stamps[number], str(self.paths[number]))
        except Refusal:
            file.close()
            raise
        return file

    @cached_property
    def digest(self) -> str:
        """A digest of names, sizes and times of change."""
        below = common(self.paths)
        names = [path.relative_to(below).as_posix() for path in self.paths]
        return digest("\0".join(names), str(self.stamps))

    def origin(self) -> Hashable:
        """The files, by whatever path they were named."""
        return tuple(os.path.realpath(path) for path in self.paths)


def is_pattern(name: str) -> bool:
    """Return whether a name is of several files: it has braces as in ``train-{000..063}.tar``, or ``*``, ``?``, ``[...]``."""
    return bool(BRACES.search(name)) or glob.has_magic(name)


def matching(pattern: str) -> list[Path]:
    """The files that a pattern means.

    Raises:
        FileNotFoundError: some of those that braces list are not there.
        Refusal: the pattern mixes sets such as train and val.
    """
    found, missing = list[str](), list[str]()
    try:
        pattern = str(Path(pattern).expanduser())
    except RuntimeError as error:  # the home of an unknown user
        raise FileNotFoundError(f"no images at {pattern!r}: {error}") from error
    for name in expanded(pattern):
        own = glob.glob(name, recursive=True)  # noqa: PTH207  (it may be absolute)
        found += own
        missing += [name] if not own else []
    if found and missing:
        raise FileNotFoundError(
            f"{len(missing)} of the shards {pattern!r} are not there, such as {missing[0]!r}; name those that are"
        )
    paths = [Path(name) for name in dict.fromkeys(found)]
    if paths and glob.has_magic(pattern):
        refuse_mixed_shards(paths, common(paths), pattern)
    return paths


def common(paths: Sequence[Path]) -> Path:
    """The folder below which all of these files lie."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def expanded(pattern: str) -> Iterator[str]:
    """Yield what braces stand for, as a shell does: numbers from .. to, or names between commas.

    Examples:
        >>> list(expanded("{a,b}-{08..10}.tar"))[:4]
        ['a-08.tar', 'a-09.tar', 'a-10.tar', 'b-08.tar']
    """
    parts = BRACES.split(pattern)
    choices = [list(_choices(part)) if place % 2 else [part] for place, part in enumerate(parts)]
    yield from ("".join(chosen) for chosen in product(*choices))


def _choices(inside: str) -> Iterator[str]:
    span = RANGE.fullmatch(inside)
    if span is None:
        yield from inside.split(",")
        return
    first, last = (int(end) for end in span.groups())
    padded = any(end.startswith("0") and len(end) > 1 for end in span.groups())
    width = max(map(len, span.groups())) if padded else 0
    for number in range(first, last + 1) if first <= last else range(first, last - 1, -1):
        yield f"{number:0{width}}"
