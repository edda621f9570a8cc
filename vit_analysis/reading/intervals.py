"""Intervals by the delete-one jackknife (Efron and Stein 1981): a statistic of all groups of images, and without each one.

Rows (images) are never resampled: a duplicated image puts its own norm off the diagonal of a Gram matrix and turns a CKA of
0.00 into 0.94 (256 images, 4,000 independent features).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from scipy.special import stdtrit
from torch import Tensor

from vit_analysis.reading.state import GroupedType
from vit_analysis.table import WITHOUT

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A statistic and its 95 % interval; NaN bounds where fewer than two groups hold data.

    Attributes:
        value: the statistic of all groups.
        low: lower end of the interval.
        high: upper end of the interval.
        without: the statistic without each group that holds data, which the interval of anything computed from it needs.
    """

    value: Float64[Tensor, "*shape"]
    low: Float64[Tensor, "*shape"]
    high: Float64[Tensor, "*shape"]
    without: Float64[Tensor, "group *shape"]

    def of(self, column: int) -> "Interval":
        """The interval of one column, where the last axis holds several statistics."""
        return Interval(*(part[..., column] for part in self))

    def of_share(self, count: float = math.inf) -> "Interval":
        """The interval of a share, inside [0, 1]: Wilson's (1927), of as many trials as would give the jackknife's error.

        Where that says nothing, as where all or none are right, of ``count`` trials.
        """
        if len(self.without) < 2:
            return self
        factor = quantile(len(self.without) - 1)
        error, spread = (self.high - self.low) / 2 / factor, self.value * (1 - self.value)
        trials = torch.where((error > 0) & (spread > 0), spread / error**2, count)
        middle = (self.value + factor**2 / (2 * trials)) / (1 + factor**2 / trials)
        root = (factor**2 * spread / trials + factor**4 / (4 * trials**2)).sqrt() / (1 + factor**2 / trials)
        # Rounding may put an end that is 0 or 1 beyond it.
        return self._replace(
            low=(middle - root).clamp(min=0).minimum(self.value),
            high=(middle + root).clamp(max=1).maximum(self.value),
        )

    def of_positive(self) -> "Interval":
        """The interval of a positive number, above 0: the jackknife's error is taken relative to the number."""
        factor = ((self.high - self.low) / 2 / self.value).exp()
        return self._replace(low=self.value / factor, high=self.value * factor)

    def columns(self, name: str, low: str = "low", high: str = "high") -> dict[str, Any]:
        """Return columns of a table, one row per statistic: the value under this name, its interval, and `without` beside."""
        bounds = {name: self.value, low: self.low, high: self.high}
        rows = self.without.reshape(len(self.without), self.value.numel())
        columns: dict[str, Any] = {key: part.flatten().cpu().numpy() for key, part in bounds.items()}
        return columns | {f"{name}{WITHOUT}": list(rows.T.float().cpu().numpy())}


def jackknife(statistic: Callable[[GroupedType], Tensor], sums: GroupedType) -> Interval:
    """A statistic of grouped sums, with its interval.

    For a ratio estimator such as minibatch CKA: theta_g is the statistic of all groups but g,
    variance = (G - 1) / G sum_g (theta_g - mean)^2, interval = theta +- t(G - 1) sd. A difference of two statistics is
    jackknifed as one statistic: errors that both share cancel as they should.

    Args:
        statistic: function from sums (of any number of groups) to any tensor.
        sums: the grouped sums; groups without images are ignored.
    """
    return interval(statistic(sums.total), [statistic(sums.without(group)) for group in sums.held])


def of_table(statistic: Callable[[pd.DataFrame], Tensor], table: pd.DataFrame) -> Interval:
    """A statistic of a measured table, with its interval, from the values without each group of images that the table holds.

    Args:
        statistic: function from the table, without its `WITHOUT` columns, to any tensor.
        table: the table of any analysis, or some of its rows.
    """
    columns = [str(name) for name in table if str(name).endswith(WITHOUT)]
    plain = table.drop(columns=columns)
    replicates = {name.removesuffix(WITHOUT): np.stack(table[name].to_list()) for name in columns}
    groups = min((own.shape[1] for own in replicates.values()), default=0)
    without = [
        statistic(plain.assign(**{name: own[:, group] for name, own in replicates.items()}))
        for group in range(groups)
    ]
    return interval(statistic(plain), without)


def interval(value: Tensor, without: Sequence[Tensor]) -> Interval:
    """The interval of a statistic, from its values without each group."""
    if len(without) < 2:
        nothing = torch.full_like(value, torch.nan)
        return Interval(value, nothing, nothing, value[None][:0])
    each = torch.stack(list(without))
    half = quantile(len(each) - 1) * variance(each).sqrt()
    return Interval(value, value - half, value + half, each)


def variance(without: Any) -> Any:
    """The variance of a statistic, from its values without each of two or more groups, one per row."""
    count = len(without)
    return (count - 1) / count * ((without - without.mean(0)) ** 2).sum(0)


def quantile(freedom: float | int) -> float:
    """The quantile of Student's t distribution for a 95 % interval."""
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
