"""With how many threads a command computes, and how they wait."""

import os
import subprocess
import sys

import pytest

from vit_analysis.shell import threads
from vit_analysis.sources.cores import cores

# What runs in the place of an analysis, once torch is there: its environment, and what torch made of it.
ASKED = """
import os, sys
if len(sys.argv) > 1:
    os.sched_setaffinity(0, [int(sys.argv.pop())])
from vit_analysis.shell import running

def main() -> None:
    import torch
    names = ("OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_WAIT_POLICY")
    print(torch.get_num_threads(), torch.get_num_interop_threads(), *(os.environ.get(name) for name in names))

running.run(main)
"""
OURS = [threads.SPIN, threads.BLOCK]
linux = pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere torch finds out how many cores there are"
)


def started(*arguments: str, **said: str) -> list[str]:
    """What a command says of its threads, in an environment that says this and nothing else of them."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "GOMP_", "MKL_", "KMP_", "LOCAL_"))
    }
    call = [sys.executable, "-c", ASKED, *arguments]
    ran = subprocess.run(call, env={**own, **said}, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


@linux
def test_a_command_has_a_thread_for_each_core_it_may_use_and_they_sleep_soon():
    count = str(cores())
    assert started() == [count, "1", count, *OURS, "None"]


@linux
def test_a_command_that_is_held_to_one_core_has_one_thread():
    assert started(str(min(os.sched_getaffinity(0)))) == ["1", "1", "1", *OURS, "None"]


@linux
def test_what_torchrun_starts_shares_the_cores():
    assert started(LOCAL_WORLD_SIZE=str(cores())) == ["1", "1", "1", *OURS, "None"]


def test_what_the_user_has_set_reaches_torch_as_it_is():
    assert started(OMP_NUM_THREADS="1", GOMP_SPINCOUNT="7") == ["1", "1", "1", "7", "None", "None"]


@pytest.mark.parametrize(
    ("said", "added"),
    [
        ({}, {"OMP_NUM_THREADS", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}),
        ({"OMP_NUM_THREADS": "5"}, {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}),
        (
            {"MKL_NUM_THREADS": "5"},
            {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"},
        ),  # of which torch takes its own number
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_NUM_THREADS"}),
        ({"GOMP_SPINCOUNT": "infinity"}, {"OMP_NUM_THREADS"}),
        ({"KMP_BLOCKTIME": "infinite"}, {"OMP_NUM_THREADS"}),
        ({"OMP_NUM_THREADS": "5", "OMP_WAIT_POLICY": "passive"}, set()),
    ],
)
def test_what_the_user_has_set_stays(said, added):
    chosen = threads.settings(said, 6)
    assert set(chosen) == added
    assert chosen.get("OMP_NUM_THREADS", "6") == "6"


def test_where_cores_are_not_known_torch_counts_them():
    assert set(threads.settings({}, None)) == {"GOMP_SPINCOUNT", "KMP_BLOCKTIME"}
