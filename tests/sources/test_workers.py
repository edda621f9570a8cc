"""As many processes decode as there are cores for, however a machine says how many, and where their batches have room."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from vit_analysis.images import Images, Preprocessing, given
from vit_analysis.sources import workers

MEGABYTE = 2**20


@pytest.fixture(autouse=True)
def _sixteen_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


def machine(root, groups: str, **files: str):
    """A machine whose control groups say this; ``__`` is a slash."""
    for name, content in {"proc__self__cgroup": groups, **files}.items():
        path = root.joinpath(*name.replace("_DOT_", ".").replace("_AND_", ",").split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")
    return root


V1 = "sys__fs__cgroup__cpu_AND_cpuacct__docker__ab__cpu_DOT_cfs_"
MACHINES = {
    "nothing of cores": ("9:memory:/", {}, 16),
    "no quota": ("0::/", {"sys__fs__cgroup__cpu_DOT_max": "max 100000"}, 16),
    "in a container": ("0::/", {"sys__fs__cgroup__cpu_DOT_max": "400000 100000"}, 4),
    "a group within another": ("0::/a/b", {"sys__fs__cgroup__a__cpu_DOT_max": "250000 100000"}, 2),
    "the least of several": (
        "0::/a/b",
        {
            "sys__fs__cgroup__a__cpu_DOT_max": "500000 100000",
            "sys__fs__cgroup__a__b__cpu_DOT_max": "300000 100000",
        },
        3,
    ),
    "less than a core": ("0::/", {"sys__fs__cgroup__cpu_DOT_max": "50000 100000"}, 1),
    "more than there are": ("0::/", {"sys__fs__cgroup__cpu_DOT_max": "9900000 100000"}, 16),
    "version 1": (
        "9:memory:/docker/ab\n4:cpu,cpuacct:/docker/ab",
        {f"{V1}quota_us": "600000", f"{V1}period_us": "100000"},
        6,
    ),
    "version 1 without a quota": (
        "4:cpu,cpuacct:/docker/ab",
        {f"{V1}quota_us": "-1", f"{V1}period_us": "100000"},
        16,
    ),
    "version 1, its folder not seen from inside": (
        "4:cpu:/docker/ab",
        {
            "sys__fs__cgroup__cpu__cpu_DOT_cfs_quota_us": "200000",
            "sys__fs__cgroup__cpu__cpu_DOT_cfs_period_us": "100000",
        },
        2,
    ),
}


@pytest.mark.parametrize(("groups", "files", "expected"), MACHINES.values(), ids=MACHINES)
def test_no_more_cores_than_the_process_may_use(tmp_path, groups, files, expected):
    assert workers.cores(machine(tmp_path, groups, **files)) == expected


def test_without_control_groups_affinity_decides(tmp_path, monkeypatch):
    assert workers.cores(tmp_path) == 16
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert workers.cores(tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")  # on a Mac
    assert workers.cores(tmp_path) == (os.cpu_count() or 1)


def test_processes_of_torchrun_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert workers.cores(tmp_path) == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert workers.cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("cores", "free", "batches", "expected"),
    [
        (16, 10_000, 100, 15),
        (16, 10_000, 3, 3),
        (16, 10_000, 1, 0),
        (1, 10_000, 100, 1),
        (2, 10_000, 100, 1),
        (16, 64, 100, 1),  # what a container has unless it is told otherwise
        (16, 300, 100, 5),
        (16, 20, 100, 0),
    ],
)
def test_workers_are_as_many_as_there_are_cores_batches_and_room_for(
    monkeypatch, tmp_path, cores, free, batches, expected
):
    monkeypatch.setattr(workers, "cores", lambda: cores)
    monkeypatch.setattr(workers, "SHARED", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free * MEGABYTE))
    assert workers.chosen(batches, 9 * MEGABYTE) == expected


def test_where_memory_is_not_shared_as_files_there_is_room(monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "SHARED", tmp_path / "none")
    assert workers.chosen(100, 9 * MEGABYTE) == min(15, os.cpu_count() or 1)


def test_images_choose_their_workers_unless_they_are_told(tmp_path, monkeypatch):
    for number in range(12):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    asked = []
    monkeypatch.setattr(workers, "chosen", lambda *own: asked.append(own) or 0)
    wanted = [Preprocessing((3, 8, 8)), Preprocessing((3, 8, 8), mean=(0.5,) * 3), Preprocessing((3, 4, 4))]
    assert len(list(Images(str(tmp_path), batch=5).read(wanted))) == 3
    assert asked == [(3, 5 * 3 * (8 * 8 + 4 * 4))]
    list(Images(str(tmp_path), batch=5, workers=0).read(wanted))
    list(Images(limit=12, batch=5).read(wanted))
    list(given(torch.zeros(12, 3, 8, 8)).read(wanted))
    assert len(asked) == 1  # what is at hand, or told, is not asked for
