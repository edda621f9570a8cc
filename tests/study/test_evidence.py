from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float64
from scipy.stats import t as student
from torch import Tensor

from vit_analysis.reading import intervals
from vit_analysis.reading.state import Grouped
from vit_analysis.spelling import Refusal
from vit_analysis.study.evidence import Evidence, Study, estimate
from vit_analysis.study.parts import Parts


@dataclass(frozen=True)
class Totals(Grouped):
    totals: Float64[Tensor, "group 2"]


def table(without: np.ndarray, images: str = "a", **columns) -> pd.DataFrame:
    """Rows whose values are the mean over groups; ``without`` is [row, group]."""
    made = pd.DataFrame({**columns, "model": "m", "x": without.mean(1), "x_without": list(without)})
    made.attrs = {"images": {"source": images}, "models": {"m": "0"}}
    return made


def evidence(**tables: pd.DataFrame) -> Evidence:
    return Evidence(Study(Parts(vit=("m",)), tables, {"lost": "needs labels"}))


def test_the_interval_of_anything_computed_from_a_table_is_the_jackknife_of_its_sums():
    # Sums of 20 groups, and a table of the two means that they give, with the means without each group.
    sums = Totals(torch.ones(20, dtype=torch.float64), torch.rand(20, 2, dtype=torch.float64))
    interval = intervals.jackknife(lambda own: own.totals.sum(0) / 20, sums)
    made = pd.DataFrame({"model": ["m", "m"], **interval.columns("x")})
    made.attrs = {"images": 1}
    found = estimate(lambda e: np.prod(e.rows("t", model="m")["x"]), ("t",), evidence(t=made))
    expected = intervals.jackknife(lambda own: (own.totals.sum(0) / 20).prod(), sums)
    assert found.value == pytest.approx(float(expected.value))
    assert (found.low, found.high) == pytest.approx((float(expected.low), float(expected.high)), abs=1e-6)
    directly = intervals.of_table(lambda rows: torch.tensor(rows["x"].to_numpy()).prod(), made)
    assert (found.low, found.high) == pytest.approx((float(directly.low), float(directly.high)), abs=1e-6)


def test_tables_of_the_same_images_lose_the_same_groups_at_once():
    shared = np.random.default_rng(0).normal(size=(1, 20))

    def difference(e: Evidence) -> float:
        return float(e.rows("a")["x"].iloc[0] - e.rows("b")["x"].iloc[0])

    same = estimate(difference, ("a", "b"), evidence(a=table(shared), b=table(shared - 1)))
    assert same.value == pytest.approx(1)
    assert same.high - same.low < 1e-9
    apart = estimate(difference, ("a", "b"), evidence(a=table(shared), b=table(shared - 1, images="b")))
    single = estimate(lambda e: e.rows("a")["x"].iloc[0], ("a",), evidence(a=table(shared)))
    assert apart.high - apart.low == pytest.approx(2**0.5 * (single.high - single.low))


def test_draws_of_examples_are_groups_of_their_own():
    # Images do not matter, three draws differ: the interval is that of a mean of three.
    values = np.array([1.0, 2.0, 4.0])
    made = table(np.repeat(values[:, None], 20, axis=1), draw=[0, 1, 2])
    found = estimate(lambda e: e.rows("t")["x"].mean(), ("t",), evidence(t=made))
    half = student.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    assert (found.value, found.high - found.value) == pytest.approx((values.mean(), half))
    assert found.freedom == 2


def test_one_group_has_a_value_and_no_interval():
    found = estimate(lambda e: e.rows("t")["x"].iloc[0], ("t",), evidence(t=table(np.ones((1, 1)))))
    assert found.value == 1
    assert np.isnan([found.low, found.high, found.p(0.0)]).all()


def test_p_is_that_of_a_t_test():
    values = np.random.default_rng(1).normal(size=12)
    without = (values.sum() - values) / 11
    made = table(without[None])
    made["x"] = values.mean()
    found = estimate(lambda e: e.rows("t")["x"].iloc[0], ("t",), evidence(t=made))
    from scipy.stats import ttest_1samp

    assert found.p(0.3) == pytest.approx(ttest_1samp(values, 0.3).pvalue)


def test_what_is_not_there_is_said():
    own = evidence(t=table(np.ones((2, 3))))
    with pytest.raises(Refusal, match=r"needs an MLP-Mixer \(--mixer\)"):
        own.one("mixer")
    with pytest.raises(Refusal, match=r"needs 2 times a Vision Transformer \(--vit\)"):
        own.all("vit", 2)
    with pytest.raises(Refusal, match="needs labels"):
        own.rows("lost")
    with pytest.raises(Refusal, match="t holds nothing of other"):
        own.rows("t", model="other")


def test_cka_is_a_matrix_of_layers_by_layers():
    rows = [("m", f"l{i}", i / 2, "n", f"k{j}", j / 1.0, 10 * i + j) for i in range(3) for j in range(2)]
    names = ["model", "layer", "depth", "other_model", "other_layer", "other_depth", "cka"]
    made = pd.DataFrame(rows, columns=names)
    made["cka_without"] = [np.array([value, value + 1.0]) for value in made["cka"]]
    made.attrs = {"images": 0}
    own = evidence(cka=made)
    matrix = own.cka("m", "n")
    np.testing.assert_array_equal(matrix.values, [[0, 1], [10, 11], [20, 21]])
    assert (matrix.layers, matrix.depth.tolist(), matrix.other_depth.tolist()) == (
        ["l0", "l1", "l2"],
        [0, 0.5, 1],
        [0, 1],
    )
    spoilt = made.copy()
    spoilt.loc[spoilt["layer"] == "l1", "cka"] = np.nan
    spoilt.attrs = made.attrs
    left = evidence(cka=spoilt).cka("m", "n")
    assert (left.layers, left.values.tolist(), left.depth.tolist()) == (
        ["l0", "l2"],
        [[0, 1], [20, 21]],
        [0, 1],
    )
    ((_, second),) = own.without(["cka"])
    np.testing.assert_array_equal(second.cka("m", "n").values, matrix.values + 1)
