"""How many threads a command computes with, and how long they wait awake: said before torch is loaded, which asks only then.

torch has as many threads as the machine has cores, and its OpenMP lets a thread that is done spin for milliseconds, in case
there is more to do. Where other processes want the cores as well, that keeps the other threads from the very work that is
waited for, after each of thousands of small products: beside one busy process a command took five times as long. A thread
that sleeps takes nothing from anybody, but has to be woken. So they spin for about as long as waking takes, and then sleep
(benchmarks/busy.py).
"""

import os
import sys
from collections.abc import Mapping

from vit_analysis.sources.cores import cores

SPIN = "1000"
"""Rounds of waiting awake in GNU's OpenMP, which torch's wheels bring: 10 to 50 microseconds; 300,000 by default."""
BLOCK = "1"
"""Milliseconds of the same in LLVM's and Intel's OpenMP, which other builds of torch bring: 200 by default."""

NUMBER = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def settle() -> None:
    """Set what torch will read when it is loaded; what the user has set stays as it is."""
    os.environ.update(settings(os.environ, cores() if sys.platform == "linux" else None))


def settings(environment: Mapping[str, str], cores: int | None) -> dict[str, str]:
    """The variables to be added to an environment, for a process that may use so many cores; None if nobody knows."""
    chosen = {}
    if cores and not any(name in environment for name in NUMBER):
        chosen["OMP_NUM_THREADS"] = str(cores)
    if not any(name in environment for name in WAITING):
        chosen |= {"GOMP_SPINCOUNT": SPIN, "KMP_BLOCKTIME": BLOCK}
    return chosen


def between_operations() -> None:
    """Let torch keep no more threads for whole operations side by side than one: nothing here asks for two."""
    import torch

    if torch.get_num_interop_threads() != 1:
        torch.set_num_interop_threads(1)
