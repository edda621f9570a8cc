import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vit_analysis.reading import processes, state
from vit_analysis.reading.intervals import GROUPS, in_group, jackknife
from vit_analysis.reading.state import Sums

finite = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3)


@dataclass(frozen=True)
class Moments(Sums):
    total: Tensor
    count: Tensor
    of: str = "x"


def moments(values: list[float], of: str = "x") -> Moments:
    return Moments(torch.tensor(values, dtype=torch.float64), torch.tensor(len(values)), of)


def same(a: Moments, b: Moments) -> bool:
    return torch.allclose(a.total, b.total, atol=1e-9) and a.count == b.count and a.of == b.of


@given(finite, finite, finite)
def test_merging_is_commutative_and_associative(a, b, c):
    a, b, c = moments(a), moments(b), moments(c)
    assert same(a + b, b + a)
    assert same((a + b) + c, a + (b + c))


def test_sums_of_different_things_do_not_merge():
    with pytest.raises(ValueError, match=r"sums are of different things: {'of': 'x'} and {'of': 'y'}"):
        moments([1, 2, 3]) + moments([1, 2, 3], "y")


def test_a_saved_state_comes_back_exactly(tmp_path):
    sums = moments([1 / 3, math.pi, 1e-300])
    state.save(tmp_path / "a.state", {"one": sums, "other": moments([1, 2, 3], "y")}, done=7)
    kinds = {"one": Moments, "other": Moments}
    restored, done = state.restore(tmp_path / "a.state", kinds, torch.device("cpu"))
    assert done == 7
    assert torch.equal(restored["one"].total, sums.total)
    assert (restored["one"].of, restored["other"].of) == ("x", "y")
    assert [file.name for file in tmp_path.iterdir()] == ["a.state"]


def test_a_batch_counts_in_its_group_only():
    grouped = in_group(torch.ones(2), GROUPS + 3)
    assert grouped.sum() == 2
    assert grouped[3].tolist() == [1, 1]


def test_the_jackknife_of_a_mean_is_its_textbook_interval():
    values = torch.randn(12, dtype=torch.float64)
    groups = torch.stack([values, torch.ones(12, dtype=torch.float64)], dim=1)
    mean = jackknife(lambda sums: sums[0] / sums[1], groups, torch.ones(12, dtype=torch.bool))
    assert float(mean.value) == pytest.approx(float(values.mean()))
    student = 2.2009851600829  # 97.5 % of Student's t with 11 degrees of freedom
    half = student * float(np.std(values.numpy(), ddof=1)) / math.sqrt(12)
    assert float(mean.high - mean.value) == pytest.approx(half)
    assert float(mean.value - mean.low) == pytest.approx(half)


def test_empty_groups_do_not_count():
    groups = torch.randn(12, 2, dtype=torch.float64).abs()
    padded = torch.cat([groups, torch.zeros(8, 2, dtype=torch.float64)])

    def ratio(sums: Tensor) -> Tensor:
        return sums[0] / sums[1]

    short = jackknife(ratio, groups, torch.ones(12, dtype=torch.bool))
    long = jackknife(ratio, padded, torch.arange(20) < 12)
    torch.testing.assert_close(tuple(long), tuple(short))


def test_one_group_has_a_value_and_no_interval():
    interval = jackknife(
        lambda sums: sums, torch.ones(3, 2, dtype=torch.float64), torch.tensor([True, False, False])
    )
    assert interval.low.isnan().all()
    assert interval.high.isnan().all()
    assert not interval.value.isnan().any()


def test_the_interval_of_a_ratio_covers_the_truth():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        x = generator.normal(2, 1, (20, 8))
        y = x + generator.normal(2, 1, (20, 8))
        groups = torch.from_numpy(np.stack([x.sum(1), y.sum(1)], axis=1))
        interval = jackknife(lambda sums: sums[0] / sums[1], groups, torch.ones(20, dtype=torch.bool))
        covered += bool(interval.low <= 0.5 <= interval.high)
    assert 0.9 <= covered / 400 <= 0.99


def test_a_difference_is_jackknifed_as_a_difference():
    # Two statistics that share their noise: their intervals overlap, their difference is certain.
    noise = torch.randn(20, dtype=torch.float64)
    groups = torch.stack([noise + 1, noise + 1.1], dim=1)
    held = torch.ones(20, dtype=torch.bool)
    one, other = (jackknife(lambda sums, i=i: sums[i] / 20, groups, held) for i in (0, 1))
    assert one.high > other.low
    difference = jackknife(lambda sums: (sums[1] - sums[0]) / 20, groups, held)
    assert float(difference.value) == pytest.approx(0.1)
    assert float(difference.high - difference.low) < 1e-9


@pytest.mark.parametrize("other", [moments([1, 2, 3], "y"), Moments(torch.ones(4), torch.tensor(3), "x")])
def test_processes_with_sums_of_other_things_are_refused_before_they_add_up(monkeypatch, other):
    # Two processes, of which the second is given.
    def gather(shapes: list, mine: state._Shape) -> None:
        tensors = {name: (value.shape, value.dtype) for name, value in other.tensors().items()}
        shapes[:] = [mine, state._Shape(Moments, tensors, other.labels())]

    monkeypatch.setattr(running, "processes", lambda: (0, 2))
    monkeypatch.setattr(state.dist, "all_gather_object", gather)
    monkeypatch.setattr(state.dist, "all_reduce", lambda _: pytest.fail("added up"))
    with pytest.raises(ValueError, match="process 0 has sums of other things than process 1"):
        processes.over_processes(moments([1, 2, 3]), torch.device("cpu"))
