"""Streaming statistics: the state is a dataclass of sums, and `+` merges batches, resumed runs and processes alike.

Batches are dealt into `GROUPS` groups by their number, so the sums of any run, of one process or many, are the same sums, and
leaving out one group after another gives the interval of whatever is computed from them (`intervals`).
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import safetensors.torch
import torch
from jaxtyping import Float64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vit_analysis.table import write_whole

GROUPS = 20

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
        """The fields that are sums, by name."""
        return {
            field.name: value
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }

    def to(self: Same, device: torch.device | str) -> Same:
        """The same sums on another device."""
        return replace(self, **{name: value.to(device) for name, value in self.tensors().items()})

    def labels(self) -> dict[str, Any]:
        """The fields that are labels and say what is summed, by name; they are of types that JSON has."""
        return {
            field.name: value
            for field in fields(self)
            if not isinstance(value := getattr(self, field.name), Tensor)
        }


SumsType = TypeVar("SumsType", bound=Sums)
SameGrouped = TypeVar("SameGrouped", bound="Grouped")


@dataclass(frozen=True)
class Grouped(Sums):
    """Sums by group of images.

    A field is summed by group if ``group`` is the first axis of its annotation, and over all batches if not. A statistic is a
    function of such sums with any number of groups, which it begins by adding up.
    """

    images: Float64[Tensor, " group"]
    """How many images each group holds."""

    @classmethod
    def of_batch(cls: type[SameGrouped], number: int, images: int | Tensor, **parts: Any) -> SameGrouped:
        """Return the sums of one batch, in the group of its number; grouped fields are given without their group axis."""
        grouped = cls.grouped()
        first = next(parts[name] for name in grouped if name in parts)
        parts["images"] = torch.as_tensor(images, dtype=torch.float64, device=first.device)
        return cls(
            **{name: _in_group(value, number) if name in grouped else value for name, value in parts.items()}
        )

    @classmethod
    def grouped(cls) -> list[str]:
        """Names of the fields that are summed by group."""
        hints = get_type_hints(cls)
        shapes = {own.name: getattr(hints[own.name], "dim_str", "").split() for own in fields(cls)}
        return [name for name, shape in shapes.items() if shape[:1] == ["group"]]

    @cached_property
    def held(self) -> list[int]:
        """The groups that hold images."""
        return (self.images > 0).nonzero().flatten().tolist()

    @cached_property
    def total(self: SameGrouped) -> SameGrouped:
        """The sums of all groups together, as one group."""
        return replace(self, **{name: getattr(self, name).sum(0, keepdim=True) for name in self.grouped()})

    def without(self: SameGrouped, group: int) -> SameGrouped:
        """The sums of all groups but one, as one group."""
        left = {name: getattr(self.total, name) - getattr(self, name)[group] for name in self.grouped()}
        return replace(self.total, **left)


GroupedType = TypeVar("GroupedType", bound=Grouped)


def _in_group(value: Tensor, batch: int) -> Tensor:
    """Return what a batch contributes: its value in the row of its group, zeros in the others."""
    grouped = torch.zeros(GROUPS, *value.shape, dtype=value.dtype, device=value.device)
    grouped[batch % GROUPS] = value
    return grouped


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
        except SafetensorError as error:  # raised for a full disk, too, and no OSError
            raise RuntimeError(str(error)) from error

    write_whole(path, write)


def restore(path: Path, kinds: Mapping[str, type[Sums]], device: torch.device) -> tuple[dict[str, Sums], int]:
    """Read what `save` wrote: the sums, and the number of the batch to go on with.

    Raises:
        OSError: the file is not as `save` wrote it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    if facts.pop("digest", None) != _digest(tensors, facts):
        raise OSError("its contents are not those that were written")
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
    """Keep the sums of finished passes on disk until the block ends, when what is made of them has been written.

    So a kill between a pass and its table, or in a later pass, loses no finished pass. After an error in the block they stay.
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
