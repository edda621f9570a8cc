import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float64
from torch import Tensor

from vit_analysis.reading.intervals import Interval, interval, jackknife, of_table, quantile
from vit_analysis.reading.state import Grouped
from vit_analysis.table import WITHOUT


@dataclass(frozen=True)
class Pairs(Grouped):
    x: Float64[Tensor, "group *place"]
    y: Float64[Tensor, "group *place"]


def pairs(x: Tensor, y: Tensor | None = None, images: Tensor | None = None) -> Pairs:
    """Groups of one image each, if nothing else is said."""
    one = torch.ones(len(x), dtype=torch.float64)
    return Pairs(one if images is None else images, x, torch.ones_like(x) if y is None else y)


def mean(sums: Pairs) -> Tensor:
    return sums.x.sum(0) / sums.images.sum()


def ratio(sums: Pairs) -> Tensor:
    return sums.x.sum(0) / sums.y.sum(0)


def test_the_jackknife_of_a_mean_is_its_textbook_interval():
    values = torch.randn(12, dtype=torch.float64)
    interval = jackknife(mean, pairs(values))
    assert float(interval.value) == pytest.approx(float(values.mean()))
    student = 2.2009851600829  # 97.5 % of Student's t with 11 degrees of freedom
    half = student * float(np.std(values.numpy(), ddof=1)) / math.sqrt(12)
    assert float(interval.high - interval.value) == pytest.approx(half)
    assert float(interval.value - interval.low) == pytest.approx(half)


def test_empty_groups_do_not_count():
    x, y = torch.randn(2, 12, dtype=torch.float64).abs()
    nothing = torch.zeros(8, dtype=torch.float64)
    short = jackknife(ratio, pairs(x, y))
    images = torch.cat([torch.ones_like(x), nothing])
    long = jackknife(ratio, pairs(torch.cat([x, nothing]), torch.cat([y, nothing]), images))
    torch.testing.assert_close(tuple(long), tuple(short))


def test_one_group_has_a_value_and_no_interval():
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    images = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    interval = jackknife(mean, pairs(x, images=images))
    assert interval.low.isnan().all()
    assert interval.high.isnan().all()
    assert interval.value.tolist() == [1, 2]
    assert interval.without.shape == (0, 2)


def test_the_interval_of_a_ratio_covers_the_truth():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x = generator.normal(2, 1, (20, 8))
        y = x + generator.normal(2, 1, (20, 8))
        interval = jackknife(ratio, pairs(torch.from_numpy(x.sum(1)), torch.from_numpy(y.sum(1))))
        covered += bool(interval.low <= 0.5 <= interval.high)
    assert 0.9 <= covered / 400 <= 0.99


def test_a_difference_is_jackknifed_as_a_difference():
    # Two statistics that share their noise: their intervals overlap, their difference is certain.
    noise = torch.randn(20, dtype=torch.float64)
    sums = pairs(noise + 1, noise + 1.1)
    one, other = jackknife(mean, sums), jackknife(lambda own: own.y.sum(0) / own.images.sum(), sums)
    assert one.high > other.low
    difference = jackknife(lambda own: (own.y.sum(0) - own.x.sum(0)) / own.images.sum(), sums)
    assert float(difference.value) == pytest.approx(0.1)
    assert float(difference.high - difference.low) < 1e-9


def measured(sums: Pairs) -> pd.DataFrame:
    """As analyses write them: a row for each place, two statistics with their intervals and values without each group."""
    first = jackknife(mean, sums).columns("mean")
    second = jackknife(ratio, sums).columns("ratio", "ratio_low", "ratio_high")
    return pd.DataFrame({"place": range(sums.x.shape[1]), **first, **second})


def spread(means: Tensor, ratios: Tensor) -> Tensor:
    """Of both columns at once, and linear in neither."""
    return torch.stack([means.max() / means.abs().sum(), (means * ratios).sum(), ratios.median()])


@pytest.mark.parametrize("groups", [2, 7, 20])
def test_the_interval_of_anything_made_of_a_table_is_that_of_the_same_made_of_its_sums(groups):
    x, y = torch.randn(2, groups, 5, dtype=torch.float64) + 3
    sums = pairs(x, y, images=torch.arange(groups, dtype=torch.float64) + 4)

    def of(table: pd.DataFrame) -> Tensor:
        assert not [name for name in table if str(name).endswith(WITHOUT)]
        return spread(*(torch.tensor(table[name].to_numpy(float)) for name in ("mean", "ratio")))

    found = of_table(of, measured(sums))
    expected = jackknife(lambda own: spread(mean(own), ratio(own)), sums)
    # Tables keep what is without a group in float32.
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-5, atol=1e-5)
    assert (found.low < found.value).all()


def test_some_rows_of_a_table_in_any_order_are_a_table():
    table = measured(pairs(torch.randn(9, 5, dtype=torch.float64)))

    def first(some: pd.DataFrame) -> Tensor:
        return torch.tensor(some["mean"].iloc[0], dtype=torch.float64)

    found = of_table(first, table[table["place"] > 1][::-1])
    row = table.iloc[-1]
    assert (float(found.value), len(found.without)) == (row["mean"], 9)
    np.testing.assert_allclose([found.low, found.high], [row["low"], row["high"]], rtol=1e-5, atol=1e-6)


def test_a_table_of_one_group_or_without_groups_has_values_and_no_interval():
    one = measured(pairs(torch.randn(1, 5, dtype=torch.float64)))
    for table in (one, one.drop(columns=[f"mean{WITHOUT}", f"ratio{WITHOUT}"])):
        found = of_table(lambda own: torch.tensor(own["mean"].to_numpy()), table)
        assert found.value.tolist() == one["mean"].tolist()
        assert found.low.isnan().all()
        assert found.high.isnan().all()


def test_one_of_several_statistics_has_its_own_interval():
    sums = pairs(torch.randn(6, 2, dtype=torch.float64))
    both = jackknife(mean, sums)
    for place in (0, 1):
        own = jackknife(lambda sums, place=place: mean(sums)[place], sums)
        torch.testing.assert_close(tuple(both.of(place)), tuple(own))
    assert isinstance(both.of(0), Interval)


# Shares and positive numbers ------------------------------------------------------------------------------------------


def test_a_share_whose_error_is_that_of_trials_has_wilsons_interval():
    generator = torch.Generator().manual_seed(0)
    right = (torch.rand(20, 50, generator=generator) < 0.8).double()
    own = interval(right.mean(), [right[torch.arange(20) != group].mean() for group in range(20)])
    found = own.of_share()
    p, error, t = own.value.item(), float(own.high - own.low) / 2 / quantile(19), quantile(19)
    n = p * (1 - p) / error**2
    root = t * np.sqrt(p * (1 - p) / n + t**2 / (4 * n**2)) / (1 + t**2 / n)
    middle = (p + t**2 / (2 * n)) / (1 + t**2 / n)
    assert [found.low.item(), found.high.item()] == pytest.approx([middle - root, middle + root])
    assert float(found.high - found.low) == pytest.approx(float(own.high - own.low), rel=0.02)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_where_all_or_none_are_right_the_interval_has_a_width_and_stays_inside(value):
    whole = torch.tensor(value).double()
    found = interval(whole, [whole] * 20).of_share(100.0)
    t = quantile(19)
    far = t**2 / (100 + t**2)
    assert [found.low.item(), found.high.item()] == pytest.approx([0, far] if value == 0 else [1 - far, 1])


def test_a_share_of_1_that_one_group_moves_has_an_interval_too():
    whole = torch.tensor(1.0).double()
    found = interval(whole, [torch.tensor(0.75).double(), *[whole] * 3]).of_share(16.0)
    assert 0 < found.low < 1
    assert found.high == 1


def test_one_group_leaves_the_bounds_unknown():
    found = interval(torch.tensor(0.5).double(), []).of_share(10.0)
    assert found.low.isnan()
    assert found.high.isnan()


def test_a_positive_number_has_an_interval_above_0_that_is_the_jackknifes_where_it_is_far_from_0():
    generator = torch.Generator().manual_seed(0)
    near, far = (offset + torch.rand(20, generator=generator).double() for offset in (0.0, 100.0))
    for values, alike in ((near * near, False), (far, True)):
        own = interval(values.mean(), [values[torch.arange(20) != group].mean() for group in range(20)])
        found = own.of_positive()
        assert 0 < found.low < own.value < found.high
        if alike:
            assert [float(found.low), float(found.high)] == pytest.approx(
                [float(own.low), float(own.high)], rel=1e-4
            )
