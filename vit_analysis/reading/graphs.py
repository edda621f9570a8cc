"""A model's pass over a batch as a CUDA graph: recorded once, replayed for every further batch of that size.

A forward pass with its reductions is thousands of small kernels, which Python starts more slowly than a GPU runs them. A CUDA
graph starts them all at once. It does again what was done when it was recorded, so it is only for a pass that does the same to
every batch, and whether it does is seen on a batch other than the recorded one before any replay counts.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vit_analysis.reading.capture import Capture, Seen

logger = logging.getLogger(__name__)

WORTH = 6  # batches, at least: two are run twice, to record the graph and to check it
# Batches, counted from 1, for which this is done; the first finds out and caches what it needs.
RECORDED, CHECKED = 2, 3
# Replays may choose other kernels than a plain run, which add in another order.
CLOSE = 1e-3


class Recorded(Capture):
    """A `Capture` on a GPU that records itself; whatever cannot be recorded runs as ever."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._size: torch.Size | None = None
        self._calls = 0
        self._refused = False
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: Any = None  # what the graph reads
        self._kept: Any = None  # what it writes

    def __call__(self, pixels: Tensor) -> Seen:
        """Run the model on some images, see `Capture`."""
        self._size = self._size or pixels.shape
        if self._refused or pixels.shape != self._size:
            return super().__call__(pixels)
        self._calls += 1
        if self._calls < RECORDED:
            return super().__call__(pixels)
        if self._calls == RECORDED:
            return self._recorded(pixels)
        return self._checked(pixels) if self._calls == CHECKED else self._replayed(pixels)

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._graph = self._kept = self._given = None

    def _recorded(self, pixels: Tensor) -> Seen:
        try:
            # Sooner than by a recording, which would leave torch's allocator in the middle of it.
            with _waiting_refused():
                plain = super().__call__(pixels.clone())
            self._given, self._graph = pixels.clone(), torch.cuda.CUDAGraph()
            # Threads that load images may do what a recording may not.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._kept = super().__call__(self._given)
            return plain
        except Exception as reason:  # what models do is theirs, and a plain run shows whether it is wrong
            self._refuse(reason)
            return super().__call__(pixels)

    def _checked(self, pixels: Tensor) -> Seen:
        plain = super().__call__(pixels.clone())
        if not alike(self._replayed(pixels), plain):
            self._refuse("a replay does not do what a plain run does")
        return plain

    def _replayed(self, pixels: Tensor) -> Seen:
        assert self._graph
        self._given.copy_(pixels)
        self._graph.replay()
        return Seen(copied(self._kept))  # the next replay writes into the same memory

    def _refuse(self, reason: object) -> None:
        logger.debug("%s runs without a CUDA graph: %s", self.model._get_name(), reason)
        self._refused, self._graph, self._kept, self._given = True, None, None, None


@contextmanager
def _waiting_refused() -> Iterator[None]:
    """Have whatever waits for the GPU raise an error."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is called a prototype, which finds most of what waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def copied(kept: Any) -> Any:
    """A copy of all tensors in nested mappings, tuples and lists.

    Raises:
        TypeError: something else than tensors, numbers and words is in them.
    """
    if isinstance(kept, Tensor):
        return kept.clone()
    if isinstance(kept, Mapping):
        return {key: copied(value) for key, value in kept.items()}
    if isinstance(kept, tuple) and hasattr(kept, "_fields"):
        return type(kept)(*map(copied, kept))
    if isinstance(kept, tuple | list):
        return type(kept)(map(copied, kept))
    if kept is None or isinstance(kept, int | float | str):
        return kept
    raise TypeError(f"{type(kept).__name__} cannot be copied from a graph")


def alike(kept: Any, other: Any) -> bool:
    """Return whether two nests of tensors are the same but for rounding."""
    if isinstance(kept, Tensor):
        if kept.shape != other.shape or kept.dtype != other.dtype:
            return False
        size = CLOSE * float(other.abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0
        return torch.allclose(
            kept, other, rtol=CLOSE, atol=size if kept.is_floating_point() else 0, equal_nan=True
        )
    if isinstance(kept, Mapping):
        return list(kept) == list(other) and all(alike(kept[key], other[key]) for key in kept)
    if isinstance(kept, tuple | list):
        return len(kept) == len(other) and all(alike(*both) for both in zip(kept, other, strict=True))
    return bool(kept == other)
