"""Size and time of change of a file: what tells, without reading it, whether it is still the one that was listed."""

import os
from io import BufferedIOBase
from pathlib import Path

from vit_analysis.spelling import Refusal

MISSING = (-1, -1)  # of a link that leads nowhere, for instance


def stamp(path: Path | str) -> tuple[int, int]:
    """Size in bytes, and when the file was changed, in nanoseconds."""
    try:
        found = os.stat(path)  # noqa: PTH116  (a Path for each of a million files takes seconds)
    except OSError:
        return MISSING
    return found.st_size, found.st_mtime_ns


def refuse_changed(file: BufferedIOBase, known: tuple[int, int], name: str) -> None:
    """Check that an open file is the one that was listed.

    Raises:
        Refusal: it is not, so that results would be of other images than their key says.
    """
    found = os.fstat(file.fileno())
    if (found.st_size, found.st_mtime_ns) != known:
        raise Refusal(f"{name!r} was changed after its folder was listed; start again")
