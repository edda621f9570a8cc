"""How much of this machine a process may use: what affinity, control groups and its siblings leave it, not what there is."""

import os
from pathlib import Path

ROOT = Path("/")


def processors(root: Path = ROOT) -> int:
    """The number of processors that this process may keep busy, at least one.

    Fewer than the machine has where a scheduler, taskset or a container holds it to some of them (affinity) or to a share of
    their time (the CPU quota of a control group, version 1 or 2, its own or one around it), and where torchrun, or
    whoever sets LOCAL_WORLD_SIZE, has started several processes here, which get equal shares. What is left over in a division
    is not used.

    Args:
        root: the folder in which /proc and /sys lie.
    """
    return _share(quota(root), len(_allowed()))


def cores(root: Path = ROOT) -> int:
    """The same, counting two processors of one core (hyperthreads) once, as they share the units that multiply.

    Where the system does not say which processors share a core, each is one.
    """
    shared = set()
    for number in _allowed():
        place = root / "sys/devices/system/cpu" / f"cpu{number}" / "topology" / "thread_siblings_list"
        shared.add(_read(place) or str(number))
    return _share(quota(root), len(shared))


def quota(root: Path = ROOT) -> float | None:
    """The CPU quota of this process, in processors: the least of its control groups and those around them; None for none."""
    limits = [limit for folder in _groups(root) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _share(limit: float | None, count: int) -> int:
    """What this process gets of so many processors, of which a control group gives no more than its limit."""
    said = os.environ.get("LOCAL_WORLD_SIZE", "")
    siblings = max(1, int(said)) if said.isdecimal() else 1
    return max(1, int((count if limit is None else min(count, limit)) / siblings))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))  # macOS and Windows


def _groups(root: Path) -> list[Path]:
    """Folders of the control groups that may limit this process.

    Inside a container the path may be that of the host, while what is mounted begins at the container's own group: so all
    folders upwards are taken that are there.
    """
    folders = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2, or beside version 1
            mounts = ["", "unified"]
        elif "cpu" in controllers.split(","):
            mounts = [controllers, "cpu"]
        else:
            continue
        own = Path(path.lstrip("/"))
        folders += [
            root / "sys/fs/cgroup" / mount / group for mount in mounts for group in (own, *own.parents)
        ]
    return folders


def _limit(folder: Path) -> float | None:
    """The quota that one group sets: cpu.max of version 2, cpu.cfs_quota_us and cpu.cfs_period_us of version 1."""
    said = _read(folder / "cpu.max").split()
    if not said:
        said = [_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    time, period = said
    return int(time) / int(period) if time.isdigit() and period.isdigit() else None  # "max", "-1" or nothing


def _read(file: Path) -> str:
    """What a file of the system says; nothing where there is no such file, or it may not be read."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
