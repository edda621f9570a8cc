"""Numbers computed from evidence, each with the 95 % interval that fits its kind.

    jackknife      a smooth number: delete-one-group, the variances of images and of drawn examples added
    smallest       the smallest of several smooth numbers, or the largest: each has its own interval, wide enough for all
                   together (Bonferroni), as the jackknife of an extreme is biased, and too narrow where several are near it
    bootstrap      a number that moves in steps (counts, ranks): percentiles over groups of images drawn again; no p
    correlation    a rank correlation over the units of a network: the units are the sample, the images only measure them
    over_runs      a number of training runs: the runs are the sample
    share          a share, which stays inside [0, 1] and is as uncertain near an end as so many images leave it

`benchmarks/coverage.py` measures how often each interval holds the truth.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
from scipy.stats import norm, rankdata, spearmanr
from scipy.stats import t as student

from vit_analysis.reading import intervals
from vit_analysis.spelling import Refusal
from vit_analysis.study.evidence import Evidence

DRAWS = 400  # of groups, in a bootstrap
ORDERS = 5040  # of units, in a permutation test, where there are more: all of seven


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: the number.
        low: lower end of the interval; NaN where nothing is known of its error.
        high: upper end of the interval.
        error: its standard error; NaN where it has none that a p could be computed from.
        freedom: degrees of freedom of the error.
        tests: how many numbers it is the extreme of.
        exact: a p of its own, such as of a permutation test.
        runs: the number in every training run, where runs are the sample.
    """

    value: float
    low: float
    high: float
    error: float = math.nan
    freedom: float = 0.0
    tests: int = 1
    exact: float | None = None
    runs: tuple[float, ...] = ()

    def p(self, threshold: float) -> float:
        """The two-sided p-value of the hypothesis that the true value is the threshold; NaN where there is none."""
        if self.exact is not None:
            return self.exact
        if (
            math.isnan(threshold) or math.isnan(self.error) or self.error <= 1e-6 * abs(self.value)
        ):  # rounding, and no error
            return math.nan
        plain = 2 * student.sf(abs(self.value - threshold) / self.error, self.freedom)
        return float(min(1.0, self.tests * plain))


Estimator = Callable[[Callable[[Evidence], Any], Collection[str], Evidence], Estimate]


def jackknife(compute: Callable[[Evidence], float], tables: Collection[str], evidence: Evidence) -> Estimate:
    """A smooth number; NaN bounds where there are no groups to leave out.

    Raises:
        Refusal: what it needs is not there.
    """
    value, error, freedom = _errors(compute, tables, evidence)
    half = intervals.quantile(freedom) * error if freedom else np.array(math.nan)
    return Estimate(float(value), float(value - half), float(value + half), float(error), freedom)


def _extreme(
    pick: Callable[[np.ndarray], int],
    compute: Callable[[Evidence], np.ndarray],
    tables: Collection[str],
    evidence: Evidence,
) -> Estimate:
    values, errors, freedom = _errors(compute, tables, evidence)
    at, count = pick(values), len(values)
    if not freedom:
        return Estimate(float(values[at]), math.nan, math.nan)
    half = student.ppf(1 - (1 - intervals.CONFIDENCE) / 2 / count, freedom) * errors
    low, high = values - half, values + half
    return Estimate(
        float(values[at]), float(low[pick(low)]), float(high[pick(high)]), float(errors[at]), freedom, count
    )


smallest: Estimator = partial(_extreme, np.argmin)
largest: Estimator = partial(_extreme, np.argmax)


def bootstrap(
    compute: Callable[[Evidence], float],
    tables: Collection[str],
    evidence: Evidence,
    *,
    step: float = 0.0,
) -> Estimate:
    """A number that moves in steps of the size ``step``, or of no certain size: percentiles over groups drawn again.

    Raises:
        Refusal: what it needs is not there.
    """
    value = float(compute(evidence))
    again = [float(compute(other)) for other in evidence.resampled(tables, DRAWS)]
    if not again:
        return Estimate(value, math.nan, math.nan)
    tail = (1 - intervals.CONFIDENCE) / 2
    low, high = np.quantile(again, [tail, 1 - tail])
    # So few groups spread too little when drawn again, and normal quantiles are too small: by what Student's t says of a mean.
    groups = min(len(others) for others in evidence.without(tables))
    wider = intervals.quantile(groups - 1) / norm.ppf(1 - tail) * math.sqrt(groups / (groups - 1))
    low, high = (value + wider * (min(low, value) - value), value + wider * (max(high, value) - value))
    return Estimate(value, float(low) - step / 2, float(high) + step / 2)


def correlation(
    compute: Callable[[Evidence], tuple[np.ndarray, np.ndarray]], tables: Collection[str], evidence: Evidence
) -> Estimate:
    """A rank correlation of two numbers over units, with the p of a permutation of the units.

    The interval is Bonett and Wright's (2000) for the units, widened by what the images leave uncertain.

    Raises:
        Refusal: what it needs is not there.
    """
    x, y = compute(evidence)
    rho = float(spearmanr(x, y).statistic)
    if len(x) < 4 or math.isnan(rho):
        return Estimate(rho, math.nan, math.nan)

    def fisher(e: Evidence) -> float:
        return float(np.arctanh(np.clip(spearmanr(*compute(e)).statistic, -0.999, 0.999)))

    _, images, _ = _errors(fisher, tables, evidence)
    units = math.sqrt((1 + rho**2 / 2) / (len(x) - 3))
    error = math.hypot(units, 0.0 if math.isnan(float(images)) else float(images))
    middle, half = np.arctanh(np.clip(rho, -0.999, 0.999)), norm.ppf((1 + intervals.CONFIDENCE) / 2) * error
    low, high = np.tanh([middle - half, middle + half])
    return Estimate(rho, min(float(low), rho), max(float(high), rho), exact=_permuted(x, y))


def _permuted(x: np.ndarray, y: np.ndarray) -> float:
    """The share of orders of the units that correlate as much, in either direction; exact where the orders are few."""
    ranks, others = (rankdata(values) - (len(x) + 1) / 2 for values in (x, y))
    exact = math.factorial(len(x)) <= ORDERS
    generator = np.random.default_rng(0)
    orders = (
        np.array(list(permutations(range(len(x)))))
        if exact
        else np.array([generator.permutation(len(x)) for _ in range(ORDERS)])
    )
    as_much = int((np.abs(ranks[orders] @ others) >= abs(ranks @ others) - 1e-9).sum())
    return as_much / len(orders) if exact else (1 + as_much) / (1 + len(orders))


def share(
    compute: Callable[[Evidence], tuple[float, float]], tables: Collection[str], evidence: Evidence
) -> Estimate:
    """A share, less a share that is known: Wilson's interval, of as many trials as give the jackknife's error.

    At most of as many as there are images: near 0 and 1 values without each group hardly move, and know too little.

    Raises:
        Refusal: what it needs is not there.
    """
    (value, known), (error, _), freedom = _errors(compute, tables, evidence)
    if not freedom:
        return Estimate(float(value - known), math.nan, math.nan)
    images = min(float(evidence.table(name).attrs["images"].get("count", math.inf)) for name in tables)
    spread, factor = value * (1 - value), intervals.quantile(freedom)
    trials = min(images, spread / error**2) if error > 0 and spread > 0 else images
    middle = (value + factor**2 / (2 * trials)) / (1 + factor**2 / trials)
    half = math.sqrt(factor**2 * spread / trials + factor**4 / (4 * trials**2)) / (1 + factor**2 / trials)
    low, high = max(0.0, min(middle - half, value)), min(1.0, max(middle + half, value))
    return Estimate(
        float(value - known), float(low - known), float(high - known), float(half / factor), freedom
    )


def over_runs(compute: Callable[[Evidence], float], tables: Collection[str], evidence: Evidence) -> Estimate:
    """The mean of a number over training runs, with the interval of Student's t for so few; NaN bounds for a single run.

    Raises:
        Refusal: what it needs is not there.
    """
    values, errors = zip(
        *(_errors(compute, tables, run)[:2] for run in _different(compute, evidence, all)), strict=True
    )
    mean, runs = float(np.mean(values)), len(values)
    if runs < 2:
        return Estimate(mean, math.nan, math.nan, runs=(mean,))
    # Runs differ by chance of training and of the images; where they happen to agree, the images alone leave this much open.
    error = max(float(np.std(values, ddof=1)) / math.sqrt(runs), float(np.nanmax([*errors, 0.0])))
    half = intervals.quantile(runs - 1) * error
    return Estimate(mean, mean - half, mean + half, error, runs - 1.0, runs=tuple(map(float, values)))


def further(
    estimator: Estimator,
    compute: Callable[[Evidence], Any],
    tables: Collection[str],
    evidence: Evidence,
    *,
    anew: bool = False,
) -> list[Estimate]:
    """The number in each further training run of any model that it is computed from, or, ``anew``, of all of them.

    Empty where runs are the sample of the number itself.
    """
    if estimator is over_runs:
        return []
    _, *others = _different(compute, evidence, any if not anew else all)
    return [estimator(compute, tables, run) for run in others]


def _different(
    compute: Callable[[Evidence], Any], evidence: Evidence, which: Callable[[Iterable[bool]], bool]
) -> list[Evidence]:
    """The evidence, and that of every further run in which any, or all, of the models that the number asks for are others."""
    found = [evidence]
    for run in evidence.further():
        try:
            compute(run)
        except Refusal:
            continue
        if run.asked and which(run.parts.names(part) != evidence.parts.names(part) for part in run.asked):
            found.append(run)
    return found


def _errors(
    compute: Callable[[Evidence], Any], tables: Collection[str], evidence: Evidence
) -> tuple[Any, Any, float]:
    """Value, standard error and degrees of freedom of one or several numbers; 0 degrees where there are no groups."""
    value = np.asarray(compute(evidence), dtype=float)
    total, freedom = np.zeros_like(value), math.inf
    for others in evidence.without(tables):
        if len(others) < 2:
            return value, np.full_like(value, math.nan), 0.0
        total = total + intervals.variance(np.array([compute(other) for other in others], dtype=float))
        freedom = min(freedom, len(others) - 1.0)
    if math.isinf(freedom):
        return value, np.full_like(value, math.nan), 0.0
    return value, np.sqrt(total), freedom
