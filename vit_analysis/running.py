"""Statistics that stream: the state is a dataclass of sums, `+` merges batches, resumed runs and processes alike.

Batches are dealt into `GROUPS` groups by their number, so the sums of any run, of one process or many, are the same sums, and
the delete-one-group jackknife gives the interval of whatever is computed from them. Rows (images) are never resampled: a
duplicated image puts its own norm off the diagonal of a Gram matrix and turns a CKA of 0.00 into 0.94
(256 images, 4,000 independent features).
"""

import hashlib
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float64
from safetensors import SafetensorError, safe_open
from scipy.stats import t as student
from torch import Tensor

from vit_analysis.table import WITHOUT, write_whole

GROUPS = 20
CONFIDENCE = 0.95

SameName = TypeVar("SameName")
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


def over_processes(sums: SumsType | None, device: torch.device) -> SumsType | None:
    """The merge of every process's sums, in every process; the same sums outside `torch.distributed`.

    Args:
        sums: of this process; None if none of its batches counts.
        device: of the merged sums.

    Returns:
        None if no batch of any process counts.

    Raises:
        ValueError: the processes have sums of different things.
        ConnectionError: another process failed or died.
    """
    rank, of = processes()
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
    """What sums are, without their values."""

    kind: type[Any]
    tensors: dict[str, tuple[torch.Size, torch.dtype]]
    labels: dict[str, Any]


@contextmanager
def _heard() -> Iterator[None]:
    """A broken connection, in a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(company.trouble or f"another process ended ({error})") from error


def processes() -> tuple[int, int]:
    """(rank of this process, number of processes)."""
    return (
        (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    )


class Company:
    """The other processes of this run: signs of life, and a place to meet.

    A collective of torch has one timeout, for a process that is late and for one that is dead; sums are merged after hours in
    which processes went at their own speeds. Here each gives a sign of life every second, and whoever has to wait does so as
    long as all of the others live and none has failed.

    Attributes:
        trouble: why this process need not go on; None if it can.
    """

    def __init__(self) -> None:
        self.trouble: str | None = None
        self.store: Any = None
        self.meetings = 0

    def join(self, backend: str) -> None:
        """Begin, with the processes that torchrun, or whoever set its environment variables, started."""
        dist.init_process_group(backend)
        self.store = dist.distributed_c10d._get_default_store()
        self._beat(0)
        dist.barrier()
        threading.Thread(target=self._listen, daemon=True).start()

    def leave(self) -> None:
        """End, when all is done."""
        if not self.store:
            return
        self.store = None  # the listener ends before the store may
        with _heard():
            dist.barrier()
        dist.destroy_process_group()

    def fail(self, reason: str) -> None:
        """Have the others hear why this process does not go on."""
        if self.store and not self.trouble:
            with suppress(RuntimeError):  # nobody is left to hear it
                self.store.set("failed", f"process {processes()[0]} failed: {reason}")

    def heed(self) -> None:
        """Stop if another process did.

        Raises:
            ConnectionError: another process failed or died.
        """
        if self.trouble:
            raise ConnectionError(self.trouble)

    def meet(self) -> None:
        """Wait until all are here.

        Raises:
            ConnectionError: another process failed or died.
        """
        if not self.store:  # processes that others joined, and look after
            return
        self.meetings += 1
        place, pause = f"meeting {self.meetings}", 0.001
        try:
            self.store.add(place, 1)
            while self.store.add(place, 0) < processes()[1]:
                self.heed()
                time.sleep(pause)
                pause = min(2 * pause, BEAT)
        except RuntimeError as error:
            raise ConnectionError(self.trouble or GONE) from error

    def _beat(self, count: int) -> None:
        self.store.set(f"alive {processes()[0]}", str(count))

    def _listen(self) -> None:
        """Give signs of life, and look for those of the others."""
        store, others = self.store, [f"alive {rank}" for rank in range(processes()[1])]
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
            # In beats and not by the clock: who was stopped himself has heard nothing and knows nothing.
            silence = [
                past + BEAT if old == new else 0.0
                for past, old, new in zip(silence, before, heard, strict=True)
            ]
            if max(silence) > SILENCE:
                rank = silence.index(max(silence))
                self.trouble = f"no sign of life from process {rank} for {SILENCE:.0f} seconds"
                return


BEAT = 1.0  # seconds
SILENCE = 45.0
GONE = "the process that holds the others together is gone"
company = Company()


def in_group(value: Tensor, batch: int) -> Tensor:
    """``value`` as the contribution of batch number ``batch``: in its group's row, zeros in the others."""
    grouped = torch.zeros(GROUPS, *value.shape, dtype=value.dtype, device=value.device)
    grouped[batch % GROUPS] = value
    return grouped


def with_differences(values: Float64[Tensor, "model *statistic"]) -> Float64[Tensor, "row *statistic"]:
    """Every model's values, then those of every two: the first's less the second's. `pairs` names the rows.

    As one statistic of all sums, a difference has an interval in which errors that both share cancel.
    """
    first, second = torch.triu_indices(len(values), len(values), 1, device=values.device)
    return torch.cat([values, values[first] - values[second]])


def pairs(names: Sequence[SameName]) -> list[tuple[SameName, SameName | None]]:
    """Who is compared with whom in each row of `with_differences`; None where it is a value of its own."""
    return [*((name, None) for name in names), *combinations(names, 2)]


class Interval(NamedTuple):
    """A statistic and its 95 % interval; NaN bounds where fewer than two groups hold data.

    Attributes:
        value: of all sums.
        low: end of the interval.
        high: end of the interval.
        without: the statistic without each group that holds data: what the interval of anything computed from it needs.
    """

    value: Float64[Tensor, "*shape"]
    low: Float64[Tensor, "*shape"]
    high: Float64[Tensor, "*shape"]
    without: Float64[Tensor, "group *shape"]

    def of(self, column: int) -> "Interval":
        """One of several statistics in columns."""
        return Interval(*(part[..., column] for part in self))

    def columns(self, name: str, low: str = "low", high: str = "high") -> dict[str, Any]:
        """Of statistics in a row, the columns of a table: the value under this name, the interval, and `without` beside."""
        bounds = {name: self.value, low: self.low, high: self.high}
        rows = self.without.reshape(len(self.without), self.value.numel())
        columns: dict[str, Any] = {key: part.flatten().cpu().numpy() for key, part in bounds.items()}
        return columns | {f"{name}{WITHOUT}": list(rows.T.float().cpu().numpy())}


def jackknife(
    statistic: Callable[[Tensor], Tensor],
    groups: Float64[Tensor, "group *sums"],
    held: Bool[Tensor, " group"],
) -> Interval:
    """The statistic of all sums, and its delete-one-group jackknife interval (Efron and Stein 1981).

    For a ratio estimator such as minibatch CKA: theta_g is the statistic of all groups but g,
    variance = (G - 1) / G sum_g (theta_g - mean)^2, interval = theta +- t(G - 1) sd. A difference of two statistics is
    jackknifed as one statistic: errors that both share cancel as they should.

    Args:
        statistic: from summed sums to any tensor.
        groups: the sums of each group.
        held: which groups hold data.
    """
    total = groups.sum(0)
    value = statistic(total)
    count = int(held.sum())
    if count < 2:
        nothing = torch.full_like(value, torch.nan)
        return Interval(value, nothing, nothing, value[None][:0])
    without = torch.stack([statistic(total - group) for group in groups[held]])
    half = half_width(without)
    return Interval(value, value - half, value + half, without)


def half_width(without: Float64[Tensor, "group *shape"]) -> Float64[Tensor, "*shape"]:
    """Of the 95 % interval of a statistic, from its values without each of two or more groups."""
    count = len(without)
    variance = (count - 1) / count * (without - without.mean(0)).square().sum(0)
    return float(student.ppf((1 + CONFIDENCE) / 2, count - 1)) * variance.sqrt()
