import math
from contextlib import suppress
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float64
from torch import Tensor

from vit_analysis.reading import state
from vit_analysis.reading.state import GROUPS, Grouped, Sums

finite = st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3)
numbers = st.integers(0, 3 * GROUPS)


@dataclass(frozen=True)
class Moments(Sums):
    total: Tensor
    count: Tensor
    of: str = "x"


@dataclass(frozen=True)
class Scores(Grouped):
    score: Float64[Tensor, "group layer"]
    """By group, as its annotation says; the next two are not."""
    counted: Float64[Tensor, " layer"]
    widths: Float64[Tensor, "layer group"]
    layers: list[str]


def moments(values: list[float], of: str = "x") -> Moments:
    return Moments(torch.tensor(values, dtype=torch.float64), torch.tensor(len(values)), of)


def scores(number: int, values: list[float], images: float = 4.0) -> Scores:
    """Of one batch."""
    score = torch.tensor(values, dtype=torch.float64)
    images_in_batch = torch.tensor(images, dtype=torch.float64)
    places = [f"layer {place}" for place in range(len(values))]
    widths = score[:, None].expand(-1, 2).clone()
    return Scores.of_batch(
        number, images=images_in_batch, score=score, counted=score.abs(), widths=widths, layers=places
    )


def same(a: Sums, b: Sums) -> bool:
    alike = [torch.allclose(value, b.tensors()[name], atol=1e-9) for name, value in a.tensors().items()]
    return all(alike) and a.labels() == b.labels()


@given(finite, finite, finite)
def test_merging_is_commutative_and_associative(a, b, c):
    a, b, c = moments(a), moments(b), moments(c)
    assert same(a + b, b + a)
    assert same((a + b) + c, a + (b + c))


@given(st.lists(st.tuples(numbers, finite), min_size=3, max_size=3))
def test_merging_grouped_sums_is_commutative_and_associative_and_keeps_what_they_say(batches):
    a, b, c = (scores(*batch) for batch in batches)
    assert same(a + b, b + a)
    assert same((a + b) + c, a + (b + c))
    whole = a + b + c
    assert whole.held == sorted({number % GROUPS for number, _ in batches})
    assert same(whole.total, a.total + b.total + c.total)


def test_sums_of_different_things_do_not_merge():
    with pytest.raises(ValueError, match=r"sums are of different things: {'of': 'x'} and {'of': 'y'}"):
        moments([1, 2, 3]) + moments([1, 2, 3], "y")
    with pytest.raises(ValueError, match=r"sums are of different things: {'layers': \['layer 0'\]} and"):
        scores(0, [1.0]) + scores(1, [1.0, 2.0])


def test_a_saved_state_comes_back_exactly(tmp_path):
    sums, grouped = moments([1 / 3, math.pi, 1e-300]), scores(7, [1 / 3, math.e])
    parts = {"one": sums, "other": moments([1, 2, 3], "y"), "grouped": grouped}
    state.save(tmp_path / "a.state", parts, done=7)
    kinds = {"one": Moments, "other": Moments, "grouped": Scores}
    restored, done = state.restore(tmp_path / "a.state", kinds, torch.device("cpu"))
    assert done == 7
    assert torch.equal(restored["one"].total, sums.total)
    assert (restored["one"].of, restored["other"].of) == ("x", "y")
    assert restored["grouped"].layers == grouped.layers
    for name, value in grouped.tensors().items():
        assert torch.equal(restored["grouped"].tensors()[name], value)
    assert [file.name for file in tmp_path.iterdir()] == ["a.state"]


@pytest.mark.parametrize("contents", [b"", b"no state", bytes(100)], ids=["empty", "text", "zeros"])
def test_a_file_that_is_no_state_is_an_error_of_the_disk(tmp_path, contents):
    (tmp_path / "a.state").write_bytes(contents)
    with pytest.raises(OSError, match=r"\w+"):
        state.restore(tmp_path / "a.state", {"one": Moments}, torch.device("cpu"))


def test_a_batch_counts_in_its_group_only():
    own = scores(GROUPS + 3, [1.0, -2.0])
    assert Scores.grouped() == ["images", "score"]
    assert own.score.shape == (GROUPS, 2)
    assert own.score[3].tolist() == [1, -2]
    assert own.score.abs().sum() == 3
    assert own.images.tolist() == [0, 0, 0, 4] + [0] * (GROUPS - 4)
    assert own.held == [3]


def test_what_is_not_summed_by_group_is_taken_as_it_is():
    own = scores(5, [1.0, -2.0])
    assert own.counted.tolist() == [1, 2]
    assert own.widths.tolist() == [[1, 1], [-2, -2]]
    assert own.layers == ["layer 0", "layer 1"]


@given(st.lists(st.tuples(numbers, finite), min_size=1, max_size=30), st.data())
def test_without_a_group_there_is_the_sum_of_the_other_groups(batches, data):
    first, *rest = (scores(*batch) for batch in batches)
    whole = sum(rest, first)
    group = data.draw(st.sampled_from(whole.held))
    left = whole.without(group)
    others = [own for own in (first, *rest) if own.held != [group]]
    expected = sum((own.score.sum(0) for own in others), torch.zeros(3, dtype=torch.float64))
    assert left.score.shape == (1, 3)
    torch.testing.assert_close(left.score[0], expected, atol=1e-9, rtol=0)
    assert left.images.tolist() == [4.0 * len(others)]
    # What is not by group stays whole, and the sums themselves are as they were.
    assert torch.equal(left.counted, whole.counted)
    assert left.layers == whole.layers
    assert float(whole.images.sum()) == 4 * len(batches)


def test_the_total_is_all_groups_as_one():
    whole = scores(0, [1.0, 2.0]) + scores(1, [10.0, 20.0], images=3.0) + scores(GROUPS, [100.0, 200.0])
    assert whole.held == [0, 1]
    assert whole.total.score.tolist() == [[111, 222]]
    assert whole.total.images.tolist() == [11]
    assert whole.total.held == [0]
    assert torch.equal(whole.total.counted, whole.counted)
    assert same(whole.total.total, whole.total)


def test_sums_of_an_odd_type_are_moved_as_they_are():
    own = scores(2, [1.0]).to("meta")
    assert {value.device.type for value in own.tensors().values()} == {"meta"}
    assert own.layers == ["layer 0"]


def test_a_digest_is_of_every_name_and_number_and_of_no_order():
    tensors, facts = {"a/x": torch.ones(2), "b/x": torch.zeros(3)}, {"done": "7", "labels": "{}"}
    first = state._digest(tensors, facts)
    assert state._digest(dict(reversed(tensors.items())), dict(reversed(facts.items()))) == first
    others = [
        state._digest({"a/y": tensors["a/x"], "b/x": tensors["b/x"]}, facts),
        state._digest({"a/x": tensors["b/x"], "b/x": tensors["a/x"]}, facts),
        state._digest(tensors | {"b/x": torch.tensor([0.0, 0.0, 1e-40])}, facts),
        state._digest(tensors, facts | {"done": "8"}),
        state._digest(tensors, facts | {"labels": "[]"}),
    ]
    assert len({first, *others}) == 6


def test_sums_of_a_finished_pass_go_at_once_or_when_all_that_is_made_of_them_is_written(tmp_path):
    first, second, never = (tmp_path / name for name in ("first", "second", "never"))
    for path in (first, second):
        path.touch()
    state.finish(first)
    assert not first.exists()
    with state.keeping():
        for path in (second, never):
            state.finish(path)
        assert second.exists()
    assert not second.exists()
    state.finish(never)  # a process that had no batch wrote none
    second.touch()
    with suppress(KeyError), state.keeping():
        state.finish(second)
        raise KeyError
    assert second.exists()
    state.finish(second)  # and the block that failed keeps nothing any longer
    assert not second.exists()
