import numpy as np
import pandas as pd
import pytest
from made import evidence, means

from vit_analysis.spelling import Refusal
from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.parts import Parts


def drawn(own: Evidence, count: int = 50, seed: int = 0) -> list[Evidence]:
    return list(own.resampled(["t"], count, seed))


def test_the_evidence_without_a_group_holds_the_means_of_the_others():
    values = np.random.default_rng(0).normal(size=(3, 5))
    ((*others,),) = evidence(t=means(values)).without(["t"])
    assert len(others) == 5
    for group, other in enumerate(others):
        np.testing.assert_allclose(other.rows("t")["x"], np.delete(values, group, axis=1).mean(1))


def test_tables_of_the_same_images_lose_the_same_groups_at_once_and_those_of_others_nothing():
    values = np.random.default_rng(0).normal(size=(1, 5))
    own = evidence(t=means(values), u=means(values - 1), other=means(values, images="b"))
    (together,) = own.without(["t", "u"])
    for one in together:
        assert one.rows("t")["x"].iloc[0] - one.rows("u")["x"].iloc[0] == pytest.approx(1)
        assert one.rows("other")["x"].iloc[0] == values.mean()
    assert [len(each) for each in own.without(["t", "other"])] == [
        5,
        5,
    ]  # one source of variation after the other


def test_draws_of_examples_are_left_out_as_rows():
    made = means(np.array([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]), draw=[0, 1, 2])
    images, draws = evidence(t=made).without(["t"])
    assert [one.rows("t")["x"].tolist() for one in images] == [[1, 2, 4], [1, 2, 4]]
    assert [one.rows("t")["x"].tolist() for one in draws] == [[2, 4], [1, 4], [1, 2]]


def test_a_mean_of_groups_drawn_again_is_the_mean_of_the_groups_that_were_drawn():
    values = np.random.default_rng(0).normal(size=(3, 20))
    for other in drawn(evidence(t=means(values))):
        source, counts = other.weighted
        assert counts.sum() == 20
        assert "a" in source
        np.testing.assert_allclose(other.rows("t")["x"], values @ counts / 20, rtol=1e-12)


def test_over_many_draws_a_mean_stays_where_it_is_and_spreads_by_its_error():
    values = np.random.default_rng(1).normal(size=(2, 20))
    found = np.stack([other.rows("t")["x"] for other in drawn(evidence(t=means(values)), 500)])
    error = values.std(1) / 20**0.5
    assert (abs(found.mean(0) - values.mean(1)) < 4 * error / 500**0.5).all()
    np.testing.assert_allclose(found.std(0), error, rtol=0.1)


def test_the_same_seed_draws_the_same_groups_and_another_draws_others():
    own = evidence(t=means(np.random.default_rng(0).normal(size=(1, 20))))

    def found(seed: int) -> list[float]:
        return [other.rows("t")["x"].iloc[0] for other in drawn(own, 5, seed)]

    assert found(0) == found(0)
    assert len({*found(0), *found(1)}) == 10


def test_what_tables_of_the_same_images_share_is_drawn_together():
    values = np.random.default_rng(0).normal(size=(1, 20))
    own = evidence(t=means(values), u=means(values - 1))
    for other in drawn(own, 5):
        assert other.rows("t")["x"].iloc[0] - other.rows("u")["x"].iloc[0] == pytest.approx(1)


def test_draws_of_examples_are_not_drawn_again():
    values = np.random.default_rng(0).normal(size=(3, 4))
    own = evidence(t=means(values, draw=[0, 1, 2]))
    for other in drawn(own, 5):
        assert other.rows("t")["draw"].tolist() == [0, 1, 2]
        np.testing.assert_allclose(other.rows("t")["x"], values @ other.weighted[1] / 4)


def test_a_single_group_cannot_be_drawn_again():
    assert drawn(evidence(t=means(np.ones((1, 1))))) == []


def test_whole_evidence_is_as_it_was_after_draws_and_without_groups():
    values = np.random.default_rng(0).normal(size=(2, 5))
    own = evidence(t=means(values))
    for other in (*drawn(own, 3), *next(own.without(["t"]))):
        other.rows("t")
    assert own.rows("t")["x"].tolist() == values.mean(1).tolist()
    assert list(own.rows("t")) == ["model", "x"]


def test_further_evidence_is_of_the_second_run_of_every_model_then_of_the_third():
    parts = Parts(vit=(("a", "a:1", "a:2"), "b"), cnn=(("r", "r:1"),), mixer="x")
    own = evidence(parts, t=means(np.ones((1, 3))))
    names = [[run.one(part) for part in ("vit", "cnn", "mixer")] for run in own.further()]
    assert names == [["a:1", "r:1", "x"], ["a:2", "r", "x"]]
    assert [run.all("vit") for run in own.further()] == [["a:1", "b"], ["a:2", "b"]]
    assert own.one("vit") == "a"
    assert list(evidence().further()) == []


def test_changed_evidence_keeps_the_tables_that_are_named_and_has_other_parts():
    one, other = means(np.ones((1, 3))), means(np.zeros((1, 3)))
    own = evidence(t=one, u=one).changed({"t": other}, parts={"vit": ("n",)}, tables=["t"])
    assert own.rows("t")["x"].tolist() == [0]
    assert (own.one("vit"), list(own.study.tables)) == ("n", ["t"])


def test_what_is_not_there_is_said():
    own = evidence(t=means(np.ones((2, 3))))
    with pytest.raises(Refusal, match=r"needs an MLP-Mixer \(--mixer\)"):
        own.one("mixer")
    with pytest.raises(Refusal, match=r"needs 2 times a Vision Transformer \(--vit\)"):
        own.all("vit", 2)
    with pytest.raises(Refusal, match=r"needs an MLP-Mixer \(--mixer\)"):
        own.all("mixer")
    with pytest.raises(Refusal, match="needs labels"):
        own.rows("lost")
    with pytest.raises(Refusal, match="t holds nothing of other"):
        own.rows("t", model="other")


def test_what_pictures_are_made_of_is_everything_and_in_no_order():
    one, other = (means(np.ones((1, 3))) for _ in range(2))
    one.attrs["key"], other.attrs["key"] = "1", "2"
    parts, missing = Parts(vit=("m",)), {"lost": "needs labels", "gone": "needs images"}

    def made(
        tables: dict[str, pd.DataFrame], parts: Parts = parts, missing: dict[str, str] = missing
    ) -> Study:
        return Study(parts, tables, missing)

    tables = {"t": one, "u": other}
    first = made(tables).made_of("words")
    assert first == made(dict(reversed(tables.items()))).made_of("words")
    assert first == made(tables, missing=dict(reversed(missing.items()))).made_of("words")
    others = {
        made({"t": other, "u": one}).made_of("words"),
        made({"t": one}).made_of("words"),
        made({"t": one, "v": other}).made_of("words"),
        made(tables, Parts(vit=("n",))).made_of("words"),
        made(tables, missing={}).made_of("words"),
        made(tables, missing=missing | {"lost": "needs models"}).made_of("words"),
        made(tables).made_of("other words"),
        made(tables).made_of(),
    }
    assert len(others - {first, ""}) == 8
    del other.attrs["key"]
    assert made(tables).made_of("words") == ""


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
    for other in own.resampled(["cka"], 9):  # half of how much oftener than once the second group was drawn
        found = other.cka("m", "n").values
        np.testing.assert_allclose(found, matrix.values - (other.weighted[1][1] - 1) / 2)
