"""Which models some figures need, and which tables of other models serve them."""

import pytest

from vit_analysis import figures, models, skip, table
from vit_analysis.images import Images
from vit_analysis.reading import measure
from vit_analysis.spelling import Refusal
from vit_analysis.study import needs, passes
from vit_analysis.study.drawings import DRAWINGS
from vit_analysis.study.loaded import Cast
from vit_analysis.study.parts import LAB_PARTS, Parts
from vit_analysis.typed import Machine

FEW = Images(limit=8, batch=4)
TRAIN = Images(limit=100, seed=1)
PARTS = Parts(vit=("lab/vit@random",), cnn=("lab/resnet@random",), gap="lab/vit_gap@random")


def asked(*names: str) -> tuple[list[str], bool]:
    found = needs.of(figures.choose(names), LAB_PARTS)
    return found.parts.runs(), found.twins


@pytest.mark.parametrize(
    ("names", "runs", "twins"),
    [
        (["1"], ["lab/vit", "lab/resnet"], False),
        (["1 untrained"], ["lab/vit", "lab/resnet"], True),
        (["3"], ["lab/vit"], False),
        (["4"], ["lab/vit_small_data", "lab/vit_medium_data"], False),
        (["5"], ["lab/vit", "lab/resnet"], False),
        (["H.1"], ["lab/mixer"], False),
        (["H.1", "D.2"], ["lab/vit", "lab/mixer"], False),
        (["10"], ["lab/vit", "lab/vit_gap"], False),
    ],
    ids=str,
)
def test_a_figure_is_measured_of_the_models_that_it_shows(names, runs, twins):
    assert asked(*names) == (runs, twins)


def test_a_trained_model_without_skip_connections_is_compared_with_the_intact_one():
    assert asked("8 accuracy")[0][0] == "lab/vit"


def test_what_depends_on_all_models_is_measured_of_all():
    assert asked("12") == (LAB_PARTS.runs(), True)
    assert asked("1", "12") == (LAB_PARTS.runs(), True)


def test_figures_of_models_that_are_not_there_ask_for_no_fewer():
    """What the figure would need is then said by the figure, and not hidden by leaving models out."""
    assert needs.of(figures.choose(["C.6"]), LAB_PARTS).parts == LAB_PARTS


# Kept tables -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cast() -> Cast:
    return Cast.load(PARTS, Machine("cpu"), twins=False)


def of(cast: Cast, *names: str) -> Cast:
    parts = cast.parts.change(lambda name: name if name in names else None)
    return Cast(parts, {name: cast.models[name] for name in names})


def test_a_table_of_more_models_serves_a_figure_of_fewer_and_is_not_lost_to_it(cast, tmp_path, monkeypatch):
    """The pass that would read images is forbidden where a kept table serves, and counted by its table where none does."""
    pair = of(cast, "lab/vit@random", "lab/resnet@random")
    passes.run(cast, FEW, TRAIN, tmp_path, {"skip"})
    passes.run(cast, FEW, TRAIN, tmp_path, {"localization"})
    whole = table.read(tmp_path / "localization.parquet")
    with monkeypatch.context() as patch:
        patch.setattr(measure, "stream", lambda *_, **__: pytest.fail("an image was read"))
        served = passes.run(pair, FEW, TRAIN, tmp_path, {"localization"}).tables["localization"]
        assert list(served["model"].unique()) == list(whole["model"].unique())
        with pytest.raises(
            pytest.fail.Exception, match="an image was read"
        ):  # the study itself takes its own only
            passes.run(pair, FEW, TRAIN, tmp_path / "other", {"localization"})
    other = Images(limit=8, batch=4, seed=5)
    fewer = passes.run(pair, other, TRAIN, tmp_path, {"localization"}).tables["localization"]
    assert set(fewer["model"]) == {"lab/vit@random", "lab/resnet@random"}
    assert table.read(tmp_path / "localization.parquet").equals(whole)
    assert table.read(tmp_path / "localization_of_few.parquet").attrs["images"]["seed"] == 5
    with monkeypatch.context() as patch:
        patch.setattr(measure, "stream", lambda *_, **__: pytest.fail("an image was read"))
        passes.run(pair, other, TRAIN, tmp_path, {"localization"})
    passes.run(cast, other, TRAIN, tmp_path, {"localization"})
    assert {path.name for path in tmp_path.iterdir()} == {"skip.parquet", "localization.parquet"}
    assert table.read(tmp_path / "localization.parquet").attrs["images"]["seed"] == 5


def test_a_table_covers_another_where_models_pairs_and_all_else_are_the_same():
    kept = {"shared": "s", "models": {"a": "1", "b": "2"}, "pairs": [["a", "a"], ["a", "b"]]}
    assert measure.covers(kept, kept)
    assert measure.covers(kept, {"shared": "s", "models": {"a": "1"}, "pairs": [["a", "a"]]})
    for change in (
        {"shared": "t"},
        {"models": {"a": "3"}},
        {"models": {"a": "1", "c": "2"}},
        {"pairs": [["b", "b"]]},
        {"pairs": None},
    ):
        assert not measure.covers(kept, {**kept, **change}), change
    assert measure.covers({**kept, "pairs": None}, kept)


def test_the_identity_of_a_measurement_is_that_of_each_model_and_of_all_else(cast):
    vit, cnn = cast.models["lab/vit@random"], cast.models["lab/resnet@random"]
    both, one = skip.plan([vit, cnn], FEW).identity(), skip.plan(vit, FEW).identity()
    assert measure.covers(both, one)
    assert not measure.covers(one, both)
    assert not measure.covers(both, skip.plan(vit, Images(limit=8, batch=2)).identity())
    assert not measure.covers(both, skip.plan(vit, FEW, first=3).identity())
    other = models.load("lab/vit@random:3", device="cpu")
    assert not measure.covers(both, skip.plan({vit.name: other.module}, FEW).identity())


def test_a_figure_does_not_bring_experiments_of_ours_with_it():
    assert [drawing.id for drawing in figures.choose(["1", "9"])] == ["1", "9"]
    for drawing in DRAWINGS:
        assert figures.choose([drawing.id])[0] is drawing or drawing.id == "8"
    with pytest.raises(Refusal, match=r"no figure '14'; there are 1, '1 untrained', .*13a, 13b, .*H\.2"):
        figures.choose(["14"])
