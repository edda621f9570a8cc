"""Statistics that stream: the state is a dataclass of sums, `+` merges batches, resumed runs and processes alike.

Batches are dealt into `GROUPS` groups by their number, so the sums of any run, of one process or many, are the same sums, and
the delete-one-group jackknife gives the interval of whatever is computed from them. Rows (images) are never resampled: a
duplicated image puts its own norm off the diagonal of a Gram matrix and turns a CKA of 0.00 into 0.94
(256 images, 4,000 independent features).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_analysis.table import write_whole

Same = TypeVar("Same", bound="Sums")  # typing.Self cannot be checked at run time


@dataclass(frozen=True)
class Sums:
    """Base of every streaming state: a field is a tensor, which is a sum over batches, or a label that all batches share.

    The laws, tested: ``a + b == b + a`` and ``(a + b) + c == a + (b + c)`` up to float64 rounding. There is no empty value:
    a stream without a batch has no result.
    """

    def __add__(self: Same, other: Same) -> Same:
        """Merge two disjoint sets of batches.

        Raises:
            ValueError: they are sums of different things.
        """
        if self.labels() != other.labels():
            raise ValueError(f"these sums are of different things: {self.labels()} and {other.labels()}")
        merged = {name: value + getattr(other, name) for name, value in self.tensors().items()}
        return type(self)(**merged, **self.labels())

    def tensors(self) -> dict[str, Tensor]:
        """The sums, by name."""
        return {
            field.name: value
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }

    def labels(self) -> dict[str, Any]:
        """What they are sums of, by name; JSON's types."""
        return {
            field.name: value
            for field in fields(self)
            if not isinstance(value := getattr(self, field.name), Tensor)
        }


SumsType = TypeVar("SumsType", bound=Sums)


def save(path: Path, parts: Mapping[str, Sums], done: int) -> None:
    """Write sums, by name, of this process's batches before number ``done``, whole or not at all."""
    tensors = {
        f"{name}/{field}": value.cpu().contiguous()
        for name, sums in parts.items()
        for field, value in sums.tensors().items()
    }
    facts = {
        "done": str(done),
        "labels": json.dumps({name: sums.labels() for name, sums in parts.items()}),
    }
    facts["digest"] = _digest(tensors, facts)

    def write(part: Path) -> None:
        try:
            safetensors.torch.save_file(tensors, part, facts)
        except SafetensorError as error:  # also of a full disk, and no OSError
            raise RuntimeError(str(error)) from error

    write_whole(path, write)


def restore(path: Path, kinds: Mapping[str, type[Sums]], device: torch.device) -> tuple[dict[str, Sums], int]:
    """Read what `save` wrote: the sums, and the number of the batch to go on with.

    Raises:
        ValueError: the file is not as `save` wrote it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if facts.pop("digest", None) != _digest(tensors, facts):
        raise ValueError("its contents are not those that were written")
    parts = {}
    for name, labels in json.loads(facts["labels"]).items():
        own = {
            key.removeprefix(f"{name}/"): value.to(device)
            for key, value in tensors.items()
            if key.startswith(f"{name}/")
        }
        parts[name] = kinds[name](**own, **labels)
    return parts, int(facts["done"])


def _digest(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


_finished: ContextVar[list[Path] | None] = ContextVar("finished", default=None)


@contextmanager
def keeping() -> Iterator[None]:
    """Within, the sums of a finished pass stay on disk until the end, when what is made of them has been written.

    So a kill between a pass and its table, or in a later pass, loses neither. Left by an error, they stay.
    """
    finished: list[Path] = []
    before = _finished.set(finished)
    try:
        yield
    finally:
        _finished.reset(before)
    for path in finished:
        path.unlink(missing_ok=True)


def finish(path: Path) -> None:
    """Remove the sums of a finished pass, now or at the end of `keeping`."""
    finished = _finished.get()
    if finished is None:
        path.unlink(missing_ok=True)
    else:
        finished.append(path)
