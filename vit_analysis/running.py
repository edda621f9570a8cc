"""Statistics that stream: the state is a dataclass of sums, `+` merges batches, resumed runs and processes alike.

Batches are dealt into `GROUPS` groups by their number, so the sums of any run, of one process or many, are the same sums, and
the delete-one-group jackknife gives the interval of whatever is computed from them. Rows (images) are never resampled: a
duplicated image puts its own norm off the diagonal of a Gram matrix and turns a CKA of 0.00 into 0.94
(256 images, 4,000 independent features).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from jaxtyping import Bool, Float64
from safetensors import safe_open
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
    """Write sums, by name, of the first ``done`` batches of this process, whole or not at all."""
    tensors = {
        f"{name}/{field}": value.cpu().contiguous()
        for name, sums in parts.items()
        for field, value in sums.tensors().items()
    }
    labels = {name: sums.labels() for name, sums in parts.items()}
    facts = {"done": str(done), "labels": json.dumps(labels)}
    write_whole(path, lambda part: safetensors.torch.save_file(tensors, part, facts))


def restore(path: Path, kinds: Mapping[str, type[Sums]], device: torch.device) -> tuple[dict[str, Sums], int]:
    """Read what `save` wrote: the sums, and how many batches they hold."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        facts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    parts = {}
    for name, labels in json.loads(facts["labels"]).items():
        own = {
            key.removeprefix(f"{name}/"): value
            for key, value in tensors.items()
            if key.startswith(f"{name}/")
        }
        parts[name] = kinds[name](**own, **labels)
    return parts, int(facts["done"])


def over_processes(sums: SumsType) -> SumsType:
    """The merge of every process's sums, in every process; the same sums outside `torch.distributed`."""
    if processes()[1] == 1:
        return sums
    tensors = {name: value.clone() for name, value in sums.tensors().items()}
    for value in tensors.values():
        dist.all_reduce(value)
    return type(sums)(**tensors, **sums.labels())


def processes() -> tuple[int, int]:
    """(rank of this process, number of processes)."""
    return (
        (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    )


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
