import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import permutations, product

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float64
from made import evidence, means
from scipy.stats import norm, spearmanr, ttest_1samp
from scipy.stats import t as student
from torch import Tensor

from vit_analysis.reading import intervals
from vit_analysis.reading.state import Grouped
from vit_analysis.spelling import Refusal
from vit_analysis.study import estimates
from vit_analysis.study.estimates import (
    Estimate,
    bootstrap,
    correlation,
    further,
    jackknife,
    largest,
    over_runs,
    share,
    smallest,
)
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.parts import Parts

GROUPS = 20
RUNS = Parts(vit=(("m", "m:1", "m:2"),))


@dataclass(frozen=True)
class Totals(Grouped):
    totals: Float64[Tensor, "group 2"]


class Means(Evidence):
    """Means over groups with no table around them, for experiments that need thousands."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__(evidence().study)
        self.values = values  # [group, number]

    def without(self, tables) -> Iterator[list[Evidence]]:
        del tables
        yield [self._of(np.delete(self.values, group, axis=0)) for group in range(len(self.values))]

    def resampled(self, tables, draws: int, seed: int = 0) -> Iterator[Evidence]:
        del tables
        for drawn in np.random.default_rng(seed).integers(GROUPS, size=(draws, GROUPS)):
            yield self._of(self.values[drawn])

    def _of(self, values: np.ndarray) -> "Means":
        other = copy(self)
        other.values = values
        return other


def samples(truth: np.ndarray, runs: int, spread: float = 1.0) -> Iterator[Means]:
    """Evidence of noisy groups around the truth, run after run."""
    generator = np.random.default_rng(0)
    for _ in range(runs):
        yield Means(truth + spread * generator.normal(size=(GROUPS, len(truth))))


def coverage(found: list[Estimate], truth: float) -> float:
    return float(np.mean([own.low <= truth <= own.high for own in found]))


def x(e: Evidence, model: str | None = None) -> np.ndarray:
    return e.rows("t", model=model or e.one("vit"))["x"].to_numpy()


def first(e: Evidence) -> float:
    return float(x(e)[0])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def half(values: np.ndarray) -> np.ndarray:
    """Half the width of the interval of a mean over the last axis."""
    count = values.shape[-1]
    return student.ppf(0.975, count - 1) * values.std(axis=-1, ddof=1) / count**0.5


# A smooth number.


def test_the_interval_of_anything_computed_from_a_table_is_the_jackknife_of_its_sums():
    # Sums of 20 groups, and a table of the two means that they give, with the means without each group.
    sums = Totals(torch.ones(20, dtype=torch.float64), torch.rand(20, 2, dtype=torch.float64))
    interval = intervals.jackknife(lambda own: own.totals.sum(0) / 20, sums)
    made = pd.DataFrame({"model": ["m", "m"], **interval.columns("x")})
    made.attrs = {"images": 1}
    found = jackknife(lambda e: float(np.prod(x(e))), ("t",), evidence(t=made))
    expected = intervals.jackknife(lambda own: (own.totals.sum(0) / 20).prod(), sums)
    assert found.value == pytest.approx(float(expected.value))
    assert (found.low, found.high) == pytest.approx((float(expected.low), float(expected.high)), abs=1e-6)
    directly = intervals.of_table(lambda rows: torch.tensor(rows["x"].to_numpy()).prod(), made)
    assert (found.low, found.high) == pytest.approx((float(directly.low), float(directly.high)), abs=1e-6)


def test_the_jackknife_is_the_textbooks():
    values = 3 + normal(2, 12)
    found = jackknife(lambda e: float(x(e)[0] / x(e)[1]), ("t",), evidence(t=means(values)))
    left = np.array([np.divide(*np.delete(values, group, axis=1).mean(1)) for group in range(12)])
    error = (11 / 12 * ((left - left.mean()) ** 2).sum()) ** 0.5
    middle, quantile = np.divide(*values.mean(1)), student.ppf(0.975, 11)
    assert (found.value, found.error, found.freedom) == pytest.approx((middle, error, 11))
    assert (found.low, found.high) == pytest.approx((middle - quantile * error, middle + quantile * error))


def test_errors_that_two_tables_of_the_same_images_share_cancel():
    shared = normal(1, 20)

    def difference(e: Evidence) -> float:
        return float(e.rows("t")["x"].iloc[0] - e.rows("u")["x"].iloc[0])

    same = jackknife(difference, ("t", "u"), evidence(t=means(shared), u=means(shared - 1)))
    assert same.value == pytest.approx(1)
    assert same.high - same.low < 1e-9
    apart = jackknife(difference, ("t", "u"), evidence(t=means(shared), u=means(shared - 1, images="b")))
    assert apart.high - apart.value == pytest.approx(2**0.5 * half(shared)[0])


def test_the_variances_of_images_and_of_draws_of_examples_add_up_and_the_fewer_degrees_count():
    # Three draws differ, and all move with the images.
    draws, noise = np.array([1.0, 2.0, 4.0]), normal(20)
    made = means(draws[:, None] + noise, draw=[0, 1, 2])
    found = jackknife(lambda e: float(x(e).mean()), ("t",), evidence(t=made))
    error = (draws.var(ddof=1) / 3 + noise.var(ddof=1) / 20) ** 0.5
    assert (found.error, found.freedom) == pytest.approx((error, 2))
    assert found.high - found.value == pytest.approx(student.ppf(0.975, 2) * error)


def test_one_group_has_a_value_and_no_interval():
    single = evidence(t=means(np.ones((1, 1))))
    for found in (
        jackknife(first, ("t",), single),
        bootstrap(first, ("t",), single),
        bootstrap(first, ("t",), single, step=1.0),
        smallest(x, ("t",), single),
        largest(x, ("t",), single),
    ):
        assert found.value == 1
        assert np.isnan([found.low, found.high, found.p(0.0)]).all()


# p.


OF_GROUPS = (jackknife, smallest, largest, share, over_runs)


@pytest.mark.parametrize(
    ("estimator", "groups"),
    [*product(OF_GROUPS, (None, 0, 1)), (bootstrap, 0), (bootstrap, 1)],  # None: of no table at all
)
def test_without_two_groups_nothing_but_the_value_is_known(estimator, groups):
    made = means(np.full((1, 3), 0.5))
    made["x_without"] = [own[:groups] for own in made["x_without"]]

    def compute(e: Evidence) -> tuple[float, float] | np.ndarray | float:
        value = float(e.rows("t")["x"].iloc[0])
        return (value, 0.125) if estimator is share else np.array([value]) if ends else value

    ends = estimator in (smallest, largest)
    found = estimator(compute, () if groups is None else ("t",), evidence(t=made))
    assert found.value == (0.375 if estimator is share else 0.5)
    assert [math.isnan(own) for own in (found.low, found.high, found.error, found.p(0.0))] == [True] * 4
    assert found.freedom == 0


def test_p_is_that_of_a_t_test():
    values = normal(1, 12, seed=1)
    found = jackknife(first, ("t",), evidence(t=means(values)))
    assert found.p(0.3) == pytest.approx(ttest_1samp(values[0], 0.3).pvalue)


def test_there_is_no_p_where_the_error_is_rounding_or_nothing_decides():
    assert math.isnan(Estimate(0.41, 0.41, 0.41, 6e-17, 19.0).p(0.25))
    assert math.isnan(Estimate(-2.0, -2.0, -2.0, 2e-6, 19.0).p(0.0))
    assert Estimate(2.0, 1.9, 2.1, 3e-6, 19.0).p(0.0) < 1e-6
    assert math.isnan(Estimate(0.0, 0.0, 0.0, 0.0, 19.0).p(0.0))
    assert math.isnan(Estimate(1.0, 0.0, 2.0, 0.5, 19.0).p(math.nan))
    assert math.isnan(Estimate(1.0, 0.0, 2.0).p(0.0))


def test_the_p_of_an_extreme_is_multiplied_by_how_many_there_are_and_never_above_one():
    single = Estimate(1.0, 0.0, 2.0, 0.5, 19.0)
    several = Estimate(1.0, 0.0, 2.0, 0.5, 19.0, tests=3)
    assert several.p(0.0) == pytest.approx(3 * single.p(0.0))
    assert several.p(0.9) == 1


def test_a_p_of_its_own_is_the_p():
    assert Estimate(0.9, 0.1, 1.0, exact=0.04).p(0.0) == 0.04


# The smallest and the largest.


def test_the_smallest_has_the_lowest_low_and_the_lowest_high_of_intervals_that_hold_together():
    values = np.array([1.0, 1.5, 3.0])[:, None] + np.array([0.2, 4.0, 0.1])[:, None] * normal(3, 20)
    found = smallest(x, ("t",), evidence(t=means(values)))
    wide = student.ppf(1 - 0.025 / 3, 19) * values.std(axis=1, ddof=1) / 20**0.5
    lows, highs = values.mean(1) - wide, values.mean(1) + wide
    assert lows.argmin() == 1  # not where the smallest is: another may be it
    assert (found.value, found.low, found.high) == pytest.approx(
        (values.mean(1)[0], lows[1], min(highs)), rel=1e-6
    )
    assert found.tests == 3
    assert found.p(0.9) == pytest.approx(min(1, 3 * ttest_1samp(values[0], 0.9).pvalue))


def test_the_largest_is_the_smallest_turned_round():
    values = normal(5, 20)
    low, high = smallest(x, ("t",), evidence(t=means(-values))), largest(x, ("t",), evidence(t=means(values)))
    assert (high.value, high.low, high.high) == pytest.approx((-low.value, -low.high, -low.low))
    assert high.p(0.1) == pytest.approx(low.p(-0.1))


def test_the_smallest_of_one_is_the_number_itself():
    own = evidence(t=means(normal(1, 20)))
    plain = jackknife(first, ("t",), own)
    for estimator in (smallest, largest):
        found = estimator(x, ("t",), own)
        assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high))
        assert (found.error, found.freedom, found.tests) == pytest.approx((plain.error, plain.freedom, 1))


@pytest.mark.parametrize("estimator", [smallest, largest])
def test_the_interval_of_an_extreme_holds_the_truth_where_heads_are_tied(estimator):
    runs = list(samples(np.zeros(12), 300))
    found = [estimator(lambda e: e.values.mean(0), (), run) for run in runs]
    assert coverage(found, 0.0) >= 0.93


def test_which_the_jackknife_of_an_extreme_does_not():
    runs = list(samples(np.zeros(12), 300))
    found = [jackknife(lambda e: float(e.values.mean(0).min()), (), run) for run in runs]
    assert coverage(found, 0.0) < 0.8


# A number that moves in steps.


def test_the_bootstrap_of_a_mean_is_that_of_its_groups():
    values = normal(1, 20)
    found = bootstrap(first, ("t",), evidence(t=means(values)))
    drawn = np.random.default_rng(7).integers(20, size=(20_000, 20))
    low, high = np.quantile(values[0][drawn].mean(1), [0.025, 0.975])
    assert found.value == pytest.approx(values.mean())
    # Of 400 draws the quantiles are right to a few hundredths of the spread.
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_the_bootstrap_of_a_mean_is_exactly_that_of_its_draws_widened_as_student_does_for_so_few():
    own = evidence(t=means(normal(1, 20)))
    counts = [other.weighted[1] for other in own.resampled(["t"], estimates.DRAWS)]
    ends = np.quantile(normal(1, 20)[0] @ np.transpose(counts) / 20, [0.025, 0.975])
    found = bootstrap(first, ("t",), own)
    wider = 2.0930 / 1.9600 * (20 / 19) ** 0.5
    assert (found.low, found.high) == pytest.approx(found.value + wider * (ends - found.value), rel=1e-3)


def test_a_number_that_never_moves_is_as_uncertain_as_its_step():
    own = evidence(t=means(normal(1, 20)))
    assert bootstrap(lambda _: 3.0, ("t",), own, step=1.0) == Estimate(3.0, 2.5, 3.5)
    moving = bootstrap(lambda e: float(first(e) > 0), ("t",), own, step=1.0)
    assert moving.low <= moving.value - 0.5 < moving.value + 0.5 <= moving.high


def test_the_bootstrap_holds_its_value_and_has_no_p():
    values = normal(4, 20)
    found = bootstrap(lambda e: float(x(e).max()), ("t",), evidence(t=means(values)))
    assert found.low <= found.value <= found.high
    assert math.isnan(found.p(0.0))


def test_the_interval_of_a_number_that_moves_in_steps_holds_the_truth(monkeypatch):
    monkeypatch.setattr(estimates, "DRAWS", 100)
    truth = np.array(
        [0.0, 0.4, 0.7, 0.85, 0.93, 1.0, 0.95]
    )  # the fifth is the first within a tenth of the best

    def until(e: Evidence) -> float:
        own = e.values.mean(0)
        return float((own >= 0.9 * own.max()).argmax()) + 1

    found = [bootstrap(until, (), run, step=1.0) for run in samples(truth, 120, spread=0.2)]
    assert len({own.value for own in found}) > 2  # it does move
    assert coverage(found, 5.0) >= 0.93


# A rank correlation over units.


def paired(xs: np.ndarray, ys: np.ndarray, groups: int = 4, spread: float = 0.0) -> Evidence:
    """Evidence of two numbers for each unit, one in each half of the rows; noise averages out."""
    values = np.concatenate([xs, ys])[:, None]
    noise = normal(len(values), groups)
    return evidence(t=means(values + spread * (noise - noise.mean(1, keepdims=True))))


def both(e: Evidence) -> tuple[np.ndarray, np.ndarray]:
    own = x(e)
    return own[: len(own) // 2], own[len(own) // 2 :]


FIVE = np.array([0.1, 0.5, 0.2, 0.9, 0.7]), np.array([1.0, 3.0, 4.0, 5.0, 2.0])


def brute(xs: np.ndarray, ys: np.ndarray) -> float:
    """The share of all orders that correlate as much, from ranks and the formula with squared differences."""
    ranks, others = xs.argsort().argsort(), ys.argsort().argsort()
    count = len(xs)

    def rho(order: tuple[int, ...]) -> float:
        return 1 - 6 * ((ranks[list(order)] - others) ** 2).sum() / (count * (count**2 - 1))

    own = abs(rho(tuple(range(count))))
    return float(np.mean([abs(rho(order)) >= own - 1e-9 for order in permutations(range(count))]))


def test_a_rank_correlation_is_spearmans_with_the_p_of_all_orders_of_the_units():
    found = correlation(both, ("t",), paired(*FIVE))
    assert found.value == pytest.approx(spearmanr(*FIVE).statistic)
    assert found.p(0.0) == pytest.approx(brute(*FIVE))
    turned = correlation(both, ("t",), paired(FIVE[0], -FIVE[1]))
    assert turned.p(0.0) == pytest.approx(found.p(0.0))  # in either direction


def test_the_p_of_drawn_orders_is_about_that_of_all(monkeypatch):
    monkeypatch.setattr(estimates, "ORDERS", 119)  # of 120
    found = correlation(both, ("t",), paired(*FIVE))
    assert found.p(0.0) == pytest.approx(brute(*FIVE), abs=0.15)


def test_the_p_of_drawn_orders_is_never_zero(monkeypatch):
    monkeypatch.setattr(estimates, "ORDERS", 100)
    found = correlation(both, ("t",), paired(np.arange(12.0), np.arange(12.0) ** 2))
    assert found.p(0.0) > 0


def test_the_interval_of_a_rank_correlation_is_that_of_so_many_units():
    found = correlation(both, ("t",), paired(*FIVE))
    rho = spearmanr(*FIVE).statistic
    wide = norm.ppf(0.975) * ((1 + rho**2 / 2) / 2) ** 0.5  # Bonett and Wright (2000)
    assert (found.low, found.high) == pytest.approx(
        tuple(np.tanh([np.arctanh(rho) - wide, np.arctanh(rho) + wide]))
    )


def test_what_the_images_leave_uncertain_widens_it():
    exact, noisy = (correlation(both, ("t",), paired(*FIVE, spread=spread)) for spread in (0.0, 0.6))
    assert noisy.value == pytest.approx(exact.value)
    assert noisy.low < exact.low < exact.high < noisy.high


@pytest.mark.parametrize("ys", [np.arange(6.0), -np.arange(6.0), np.array([1.0, 2, 3, 4, 6, 5])])
def test_the_interval_of_a_rank_correlation_lies_within_one_of_zero(ys):
    found = correlation(both, ("t",), paired(np.arange(6.0), ys))
    assert -1 <= found.low < found.high <= 1


def test_and_holds_its_value_where_that_is_one():
    found = correlation(both, ("t",), paired(np.arange(6.0), np.arange(6.0)))
    assert found.low <= found.value <= found.high


def test_three_units_have_a_rank_correlation_and_nothing_else():
    found = correlation(both, ("t",), paired(np.arange(3.0), np.array([1.0, 3.0, 2.0])))
    assert found.value == pytest.approx(0.5)
    assert np.isnan([found.low, found.high, found.p(0.0)]).all()


# Training runs.


def of_runs(values: np.ndarray, noise: np.ndarray | float = 0.0) -> Evidence:
    """Evidence of a number in up to three training runs, measured with the same noise over images."""
    made = means(np.asarray(values)[:, None] + noise * np.ones((len(values), GROUPS)))
    return evidence(RUNS, t=made.assign(model=["m", "m:1", "m:2"][: len(values)]))


def test_the_interval_over_runs_is_students_of_so_few():
    values = np.array([1.0, 2.0, 4.5])
    found = over_runs(first, ("t",), of_runs(values))
    wide = student.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - wide, 2.5 + wide))
    assert found.runs == pytest.approx((1.0, 2.0, 4.5))
    assert found.p(0.5) == pytest.approx(ttest_1samp(values, 0.5).pvalue)


def test_one_run_has_a_value_and_no_interval():
    found = over_runs(first, ("t",), of_runs(np.array([1.0]), normal(1, GROUPS)))
    assert (found.value, found.runs) == (pytest.approx(1 + normal(1, GROUPS).mean()), (found.value,))
    assert np.isnan([found.low, found.high, found.p(0.0)]).all()


def test_runs_that_happen_to_agree_are_as_uncertain_as_the_images_leave_them():
    noise = normal(1, GROUPS)
    found = over_runs(first, ("t",), of_runs(np.array([1.0, 1.001, 1.002]), noise))
    error = noise.std(ddof=1) / GROUPS**0.5
    assert error > 0.001
    assert (found.error, found.freedom) == pytest.approx((error, 2))


def test_a_run_with_the_same_number_as_the_first_is_a_run_as_well():
    found = over_runs(first, ("t",), of_runs(np.array([1.0, 1.0, 4.0])))
    assert found.value == pytest.approx(2)
    assert found.runs == pytest.approx((1.0, 1.0, 4.0))


def test_further_runs_come_in_order_each_with_its_own_interval():
    values = np.array([1.0, 2.0, 4.5])
    noise = normal(1, GROUPS)
    own = of_runs(values, noise)
    found = further(jackknife, first, ("t",), own)
    assert [one.value for one in found] == pytest.approx(values[1:] + noise.mean())
    assert [one.high - one.value for one in found] == pytest.approx(2 * [half(noise)[0]])
    two = further(smallest, x, ("t",), own)
    assert [one.value for one in two] == pytest.approx(values[1:] + noise.mean())


def test_runs_of_what_does_not_change_the_number_are_none():
    own = of_runs(np.array([1.0, 2.0, 4.5]))
    assert further(jackknife, lambda _: 3.0, ("t",), own) == []
    assert further(jackknife, lambda e: float(x(e, "m")[0]), ("t",), own) == []
    assert further(jackknife, first, ("t",), evidence(t=means(normal(1, 5)))) == []


def test_a_run_in_which_something_is_missing_is_left_out():
    own = evidence(RUNS, t=means(np.array([[1.0, 1.0], [4.0, 4.0]])).assign(model=["m", "m:2"]))
    assert [one.value for one in further(jackknife, first, ("t",), own)] == [4.0]
    assert over_runs(first, ("t",), own).runs == (1.0, 4.0)
    with pytest.raises(Refusal, match="t holds nothing of m"):
        over_runs(first, ("t",), evidence(RUNS, t=means(np.ones((1, 2))).assign(model="m:1")))


def test_runs_that_are_the_sample_have_no_further_ones():
    assert further(over_runs, first, ("t",), of_runs(np.array([1.0, 2.0]))) == []


def test_a_second_run_of_one_part_is_compared_with_the_second_of_another():
    parts = Parts(vit=(("v", "v:1"),), cnn=(("r", "r:1"),))
    made = means(np.array([1.0, 10.0, 0.5, 3.0])[:, None] * np.ones((4, 3)))
    own = evidence(parts, t=made.assign(model=["v", "v:1", "r", "r:1"]))

    def lead(e: Evidence) -> float:
        return float(x(e)[0] - x(e, e.one("cnn"))[0])

    assert [one.value for one in further(jackknife, lead, ("t",), own)] == [7.0]


def test_further_runs_have_intervals_of_any_kind(monkeypatch):
    monkeypatch.setattr(estimates, "DRAWS", 20)
    own = of_runs(np.array([1.0, 2.0, 4.5]))
    found = further(partial(bootstrap, step=1.0), lambda e: round(first(e)), ("t",), own)
    assert [(one.value, one.low, one.high) for one in found] == [(2, 1.5, 2.5), (4, 3.5, 4.5)]


def of_share(values: np.ndarray, images: int) -> Estimate:
    """A share of as many images, less a quarter."""
    table = means(values)
    table.attrs = table.attrs | {"images": {"source": "a", "count": images}}
    return share(lambda e: (first(e), 0.25), ("t",), evidence(t=table))


def test_a_share_has_wilsons_interval_less_what_is_known():
    values = 0.4 + 0.1 * normal(1, 20)
    found, plain = of_share(values, 10**9), jackknife(first, ("t",), evidence(t=means(values)))
    p, t = plain.value, 2.0930
    n = p * (1 - p) / plain.error**2
    middle, half = (
        (p + t**2 / 2 / n) / (1 + t**2 / n),
        (t**2 * p * (1 - p) / n + t**4 / 4 / n**2) ** 0.5 / (1 + t**2 / n),
    )
    assert (found.value, found.low, found.high) == pytest.approx(
        (p - 0.25, middle - half - 0.25, middle + half - 0.25), rel=1e-3
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_share_that_never_moves_is_as_uncertain_as_so_many_images(value):
    found = of_share(np.full((1, 20), value), 640)
    far = 2.0930**2 / (640 + 2.0930**2)
    ends = (0, far) if value == 0 else (1 - far, 1)
    assert (found.low + 0.25, found.high + 0.25) == pytest.approx(ends, rel=1e-3)
    assert found.p(0.0) < 0.05 or value == 0


def test_one_group_leaves_the_bounds_of_a_share_unknown():
    assert math.isnan(of_share(np.full((1, 1), 0.5), 10).low)
