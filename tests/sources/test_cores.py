"""How much of a machine a process may use, on machines that are folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_analysis.sources import cores


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, said in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(said)
    return root


@pytest.fixture(autouse=True)
def eight_processors(monkeypatch):
    monkeypatch.setattr(cores, "_allowed", lambda: set(range(8)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)


V1 = "9:name=systemd:/\n3:cpuset:/a\n2:cpuacct,cpu:/a/b\n0::/\n"


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),  # the root has no cpu.max
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2.5),
        ({"proc/self/cgroup": "0::/user/run\n", "sys/fs/cgroup/user/run/cpu.max": "50000 100000\n"}, 0.5),
        (  # of a group around it
            {
                "proc/self/cgroup": "0::/user/run\n",
                "sys/fs/cgroup/user/run/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/user/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/other/cpu.max": "100000 100000\n",
            },
            2.0,
        ),
        (  # a container that sees the host's path, but only its own files
            {"proc/self/cgroup": "0::/docker/0123\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"},
            4.0,
        ),
        (  # version 2 beside version 1
            {"proc/self/cgroup": "1:pids:/\n0::/x\n", "sys/fs/cgroup/unified/x/cpu.max": "100000 50000\n"},
            2.0,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/a/b/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/a/b/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpuacct,cpu/a/cpu.cfs_quota_us": "150000\n",
                "sys/fs/cgroup/cpuacct,cpu/a/cpu.cfs_period_us": "50000\n",
            },
            3.0,
        ),
        (  # of another controller's hierarchy
            {
                "proc/self/cgroup": "3:cpuset:/a\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_the_least_quota_of_all_control_groups_around_a_process_counts(tmp_path, files, limit):
    root = machine(tmp_path, files)
    assert cores.quota(root) == limit
    expected = 8 if limit is None else max(1, int(limit))
    assert cores.processors(root) == cores.cores(root) == expected


def test_a_quota_above_what_affinity_gives_changes_nothing(tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "6400000 100000\n"}
    assert cores.processors(machine(tmp_path, files)) == 8


def test_processors_that_share_a_core_count_as_one_core(tmp_path):
    siblings = {
        f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list": f"{number % 4},{number % 4 + 4}\n"
        for number in range(8)
    }
    root = machine(tmp_path, siblings)
    assert (cores.cores(root), cores.processors(root)) == (4, 8)


@pytest.mark.parametrize(
    ("processes", "expected"), [("1", 8), ("3", 2), ("8", 1), ("64", 1), ("0", 8), ("", 8)]
)
def test_processes_of_one_run_share_the_cores(tmp_path, monkeypatch, processes, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert cores.processors(tmp_path) == cores.cores(tmp_path) == expected


def test_a_quota_is_shared_before_what_is_left_over_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "650000 100000\n"}
    assert cores.processors(machine(tmp_path, files)) == 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system with affinity")
def test_a_process_held_to_one_processor_has_one():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); from vit_analysis.sources import cores; "
    asked = f"{code} print(cores.processors(), cores.cores())"
    ran = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "1"]
