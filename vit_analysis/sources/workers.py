"""How many processes decode: one for each core that this one may use beside its own, where their batches have room."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

SHARED = Path("/dev/shm")  # where worker processes hand over what they made; in a container often 64 MB
AHEAD = 3  # batches of a worker that are there at once: torch lets it work two ahead of the one that is read
UNLIMITED = ("max", "-1")  # what control groups of version 2 and 1 say where there is no quota


def chosen(batches: int, size: int) -> int:
    """The number of worker processes for so many batches of a size in bytes.

    Beside one batch there is nothing to do meanwhile, so it is made here.
    """
    return 0 if batches < 2 else min(batches, max(1, cores() - 1), room(size))


def cores(root: Path = Path("/")) -> int:
    """The number of cores that this process may use: by affinity and quotas, shared with what torchrun started beside it."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, int(min([own, *_quotas(root)]) / beside))


def room(size: int) -> int:
    """The number of worker processes whose batches take no more than half of what shared memory has free."""
    return (
        int(shutil.disk_usage(SHARED).free / 2 // (AHEAD * size)) if SHARED.is_dir() else os.cpu_count() or 1
    )


def _quotas(root: Path) -> Iterator[float]:
    """The number of cores that each control group around this process may use in all, where it has a quota."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        top = root / "sys/fs/cgroup" / controllers
        group = top / path.lstrip("/")
        for folder in (group, *(above for above in group.parents if above.is_relative_to(top))):
            yield from _quota(folder)


def _quota(folder: Path) -> Iterator[float]:
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((folder / name).read_text(encoding="utf-8") for name in names).split()
        except (OSError, ValueError):
            continue
        if quota not in UNLIMITED:
            yield float(quota) / float(period)
