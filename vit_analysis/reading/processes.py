"""Several processes of one run: how many there are, heartbeats, and the merging of their sums."""

import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from vit_analysis.reading.state import SumsType


def over_processes(sums: SumsType | None, device: torch.device) -> SumsType | None:
    """Merge the sums of all processes, in every process; outside `torch.distributed`, return them as they are.

    Args:
        sums: the sums of this process; None if none of its batches counts.
        device: where to put the merged sums.

    Returns:
        The merged sums; None if no batch of any process counts.

    Raises:
        ValueError: the processes have sums of different things.
        ConnectionError: another process failed or died.
    """
    rank, of = rank_and_size()
    if of == 1:
        return sums
    company.meet()
    mine = sums and _Shape(
        type(sums),
        {name: (value.shape, value.dtype) for name, value in sums.tensors().items()},
        sums.labels(),
    )
    shapes: list[Any] = [None] * of
    with _heard():
        dist.all_gather_object(shapes, mine)
    first = next((shape for shape in shapes if shape), None)
    if first is None:
        return None
    for other, shape in enumerate(shapes):
        if shape and shape != first:
            raise ValueError(f"process {rank} has sums of other things than process {other}")
    tensors = sums.tensors() if sums else {}
    merged = {}
    for name, (size, kind) in first.tensors.items():
        merged[name] = tensors[name].clone() if sums else torch.zeros(size, dtype=kind, device=device)
        with _heard():
            dist.all_reduce(merged[name])
    return first.kind(**merged, **first.labels)


class _Shape(NamedTuple):
    """Type, shapes and labels of sums, without their values."""

    kind: type[Any]
    tensors: dict[str, tuple[torch.Size, torch.dtype]]
    labels: dict[str, Any]


@contextmanager
def _heard() -> Iterator[None]:
    """Raise the error of a broken connection as a ConnectionError that says in a sentence what happened."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(company.trouble or f"another process ended ({error})") from error


def join() -> None:
    """Join the other processes of this run, on this process's own GPU where there are some."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    company.join("cpu:gloo,cuda:nccl" if cuda else "gloo")


def rank_and_size() -> tuple[int, int]:
    """Return (rank of this process, number of processes)."""
    return (
        (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    )


class Company:
    """The processes of this run: heartbeats, and a barrier that waits as long as all of them live.

    A collective operation of torch has the same timeout for a process that is late and for one that is dead, but sums are
    merged after hours in which processes went at their own speeds. So each sends a heartbeat every second, and whoever has to
    wait does so as long as all of the others live and none has failed.

    Attributes:
        trouble: why the run cannot go on, such as the failure of another process; None if it can.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.store: Any = None
        self.meetings = 0

    def join(self, backend: str) -> None:
        """Join the processes that torchrun, or whoever set its environment variables, started."""
        dist.init_process_group(backend)
        self.store = dist.distributed_c10d._get_default_store()
        self._beat(0)
        dist.barrier()
        threading.Thread(target=self._listen, daemon=True).start()

    def leave(self) -> None:
        """Leave the other processes, once all are done."""
        if not self.store:
            return
        self.store = None  # makes the listener end before the store does
        with _heard():
            dist.barrier()
        dist.destroy_process_group()

    def fail(self, reason: str) -> None:
        """Tell the others why this process does not go on."""
        if self.store and not self.trouble:
            with suppress(RuntimeError):  # nobody is left to hear it
                self.store.set("failed", f"process {rank_and_size()[0]} failed: {reason}")

    def heed(self) -> None:
        """Raise an error if the run cannot go on.

        Raises:
            ConnectionError: another process failed or died.
        """
        if self.trouble:
            raise ConnectionError(self.trouble)

    def meet(self) -> None:
        """Wait until every process has called this.

        Raises:
            ConnectionError: another process failed or died.
        """
        if not self.store:  # the caller joined the processes, and looks after them
            return
        self.meetings += 1
        place, pause = f"meeting {self.meetings}", 0.001
        try:
            self.store.add(place, 1)
            while self.store.add(place, 0) < rank_and_size()[1]:
                self.heed()
                time.sleep(pause)
                pause = min(2 * pause, BEAT)
        except RuntimeError as error:
            raise ConnectionError(self.trouble or GONE) from error

    def _beat(self, count: int) -> None:
        self.store.set(f"alive {rank_and_size()[0]}", str(count))

    def _listen(self) -> None:
        """Send heartbeats and look for those of the others, in a thread of its own."""
        store, others = self.store, [f"alive {rank}" for rank in range(rank_and_size()[1])]
        heard, silence = store.multi_get(others), [0.0] * len(others)
        for count in itertools.count(1):
            time.sleep(BEAT)
            if self.store is None:
                return
            try:
                self._beat(count)
                if store.check(["failed"]):
                    self.trouble = store.get("failed").decode()
                    return
                before, heard = heard, store.multi_get(others)
            except RuntimeError:
                self.trouble = GONE
                return
            # Count silence in our own beats: if this process was suspended it heard nobody, which says nothing of the others.
            silence = [
                past + BEAT if old == new else 0.0
                for past, old, new in zip(silence, before, heard, strict=True)
            ]
            if max(silence) > SILENCE:
                rank = silence.index(max(silence))
                self.trouble = f"no sign of life from process {rank} for {SILENCE:.0f} seconds"
                return


BEAT = 1.0  # seconds
SILENCE = 45.0  # seconds without a heartbeat after which a process counts as dead
GONE = "the process that holds the others together is gone"
company = Company()
