"""How many processes decode: one for each processor that this one may use beside its own, where their batches have room."""

import os
import shutil
import signal
from pathlib import Path

from vit_analysis.sources.cores import processors

SHARED = Path("/dev/shm")  # where worker processes hand over what they made; in a container often 64 MB
AHEAD = 3  # batches of a worker that are there at once: torch lets it work two ahead of the one that is read


def chosen(batches: int, size: int) -> int:
    """The number of worker processes for so many batches of a size in bytes.

    Beside one batch there is nothing to do meanwhile, so it is made here.
    """
    return 0 if batches < 2 else min(batches, max(1, processors() - 1), room(size))


def room(size: int) -> int:
    """The number of worker processes whose batches take no more than half of what shared memory has free."""
    return int(shutil.disk_usage(SHARED).free / 2 // (AHEAD * size)) if SHARED.is_dir() else processors()


def leaving(_: int) -> None:
    """Have a worker process end without an error when it is told to, as all processes of a job are when a cluster stops it.

    Else torch would raise an error for it in the process that it works for, which is just about to say how to go on.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
