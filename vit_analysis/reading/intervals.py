"""Intervals: the delete-one-group jackknife over batches."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float64
from scipy.stats import t as student
from torch import Tensor

from vit_analysis.table import WITHOUT

GROUPS = 20
CONFIDENCE = 0.95

SameName = TypeVar("SameName")


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
