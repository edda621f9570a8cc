"""The whole study on untrained models of the lab and few scenes: tables, passes, pictures, report, and faults in each."""

import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from vit_analysis import (
    command,
    figures,
    findings,
    localization,
    plot,
    probe,
    skip,
    soft_nearest_neighbor,
    table,
)
from vit_analysis.images import Images, Preprocessing, given
from vit_analysis.models import Model
from vit_analysis.plot import fitting
from vit_analysis.reading import measure
from vit_analysis.reading.state import Sums
from vit_analysis.reading.stream import Pass
from vit_analysis.shell import figures as figures_command
from vit_analysis.shell import findings as findings_command
from vit_analysis.shell.analyses import ANALYSES, Analysis
from vit_analysis.spelling import Refusal
from vit_analysis.study import passes, plans
from vit_analysis.study.drawings import DRAWINGS
from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.loaded import Cast
from vit_analysis.study.parts import Parts
from vit_analysis.typed import Machine, Pictures

IMAGES = Images(limit=40, batch=20)
FEW = Images(limit=8, batch=4)
TRAIN = Images(limit=1000, seed=1)
UNTRAINED = Parts(
    vit=("lab/vit@random",),
    cnn=("lab/resnet@random",),
    gap="lab/vit_gap@random",
    no_skip=("lab/vit_no_skip_middle@random",),
    mixer="lab/mixer@random",
    local="lab/vit_local@random",
    flat="lab/resnet_flat@random",
)
QUICK = {"cka", "cka_controls", "attention_distance", "skip", "localization"}


@pytest.fixture(scope="module")
def cast() -> Cast:
    return Cast.load(UNTRAINED, Machine("cpu"))


@pytest.fixture
def small(monkeypatch) -> None:
    """As few images, channels and examples as there can be."""
    shrink(monkeypatch)


def shrink(patch: pytest.MonkeyPatch) -> None:
    for name, value in {"FIELDS": 2, "CHANNELS": 1, "LESIONED": 8, "SHOTS": 2, "SINGLE": 1}.items():
        patch.setattr(plans, name, value)
    patch.setattr(soft_nearest_neighbor, "MATES", 2)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """The folder of one run of the command, from which all else is read."""
    folder = tmp_path_factory.mktemp("study")
    coarse = mpl.rc_context({"savefig.dpi": 50})  # most of the time goes into drawing
    with pytest.MonkeyPatch.context() as patch, coarse:
        shrink(patch)
        patch.setattr(fitting, "_lay_out", lambda _: None)  # how texts find room is tried with the pictures
        figures_command.main(parts=UNTRAINED, images=IMAGES, train=TRAIN, out=folder, machine=Machine("cpu"))
    return folder


@pytest.fixture(scope="module")
def made(cast, out) -> Study:
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        patch.setattr(measure, "stream", lambda *_, **__: pytest.fail("an image was read"))
        return passes.run(cast, IMAGES, TRAIN, out)


def test_parts_name_models_once_and_in_order():
    parts = Parts(vit=("a", "b"), cnn=("c",), gap="a", no_skip=("d",))
    assert parts.names() == ["a", "b", "c", "d"]
    assert parts.names("gap", "cnn") == ["a", "c"]
    assert parts.twins() == ["a@random", "c@random"]
    assert parts.change(lambda name: None if name == "a" else name.upper()) == Parts(
        vit=("B",), cnn=("C",), no_skip=("D",)
    )


def test_models_of_the_lab_that_are_not_there_are_left_out_with_the_command_that_makes_them(
    monkeypatch, tmp_path, caplog
):
    monkeypatch.setattr("vit_analysis.lab.zoo.home", lambda name: tmp_path / name)
    with caplog.at_level(logging.WARNING):
        cast = Cast.load(Parts(vit=("lab/vit@random",), mixer="lab/mixer"), Machine("cpu"))
    assert cast.parts == Parts(vit=("lab/vit@random",))
    assert (
        "no weights of 'lab/mixer' yet: train it with python -m vit_analysis.train lab/mixer" in caplog.text
    )


def test_every_table_is_there_and_lies_beside(made, out):
    assert list(made.tables) == list(plans.TABLES)
    assert {path.stem for path in out.glob("*.parquet")} == {*plans.TABLES, "findings"}
    assert made.missing == {}
    kept = table.read(out / "cka.parquet")
    assert kept.attrs["models"].keys() == {*UNTRAINED.names()} - {
        UNTRAINED.flat
    }  # its layers are compared with none
    assert not list(out.glob("*.state"))


def test_all_that_a_study_writes_may_be_replaced_by_the_next(out):
    endings = {path.suffix for path in out.iterdir() if table.is_ours(path)}
    assert endings == {".parquet", ".png", ".md", ".tex", ".csv", ".html"}
    assert not [path.name for path in out.iterdir() if not table.is_ours(path)]


FIGURES = partial(figures_command.main, only=("7",)), figures_command.main


@pytest.mark.parametrize(
    ("name", "main"),
    [
        *(("skip.parquet", main) for main in FIGURES),
        *(
            (name, figures_command.main)
            for name in ("findings.md", "report.html", "verdicts.png", "cka.parquet")
        ),
    ],
)
def test_nothing_of_a_users_own_is_replaced_by_the_figures(tmp_path, monkeypatch, name, main):
    monkeypatch.setattr(passes, "of", lambda *_, **__: pytest.fail("it began"))
    own(tmp_path / name)
    with pytest.raises(Refusal, match=rf"{name}' is there and was not made by vit_analysis; choose another"):
        main(out=tmp_path)
    main_of_findings = partial(findings_command.main, out=tmp_path / "findings")
    if name not in ("report.html", "verdicts.png"):
        with pytest.raises(Refusal, match=rf"{name}' is there and was not made by vit_analysis"):
            main_of_findings()
    assert own(tmp_path / name, write=False)


def test_what_a_part_of_the_figures_does_not_write_does_not_matter(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "of", lambda *_, **__: pytest.fail("it began"))
    for name in ("findings.md", "report.html", "verdicts.png", "probe.parquet"):
        own(tmp_path / name)
    with pytest.raises(pytest.fail.Exception, match="it began"):
        figures_command.main(only=("7",), out=tmp_path)


def test_findings_replace_no_notes_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "of", lambda *_, **__: pytest.fail("it began"))
    own(tmp_path / "notes.md")
    with pytest.raises(Refusal, match=r"notes.md' is there and was not made by vit_analysis"):
        findings_command.main(out=tmp_path / "notes")
    assert own(tmp_path / "notes.md", write=False)


def own(path: Path, write: bool = True) -> bool:
    """Write a user's own file, or tell whether it is still there."""
    rows = pd.DataFrame({"day": [1, 2]})
    if write:
        rows.to_parquet(path) if path.suffix == ".parquet" else path.write_text("# Findings\n\nmy own")
        return True
    return pd.read_parquet(path).equals(rows) if path.suffix == ".parquet" else "my own" in path.read_text()


def test_the_table_of_a_single_command_is_put_aside_and_a_studys_own_replaced(cast, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["localization.py", "lab/resnet@random"])
    single = localization.measure([cast.models["lab/resnet@random"]], FEW)
    command.write(single, tmp_path / "localization")
    monkeypatch.setattr(sys, "argv", ["figures.py"])
    for images in (FEW, replace(FEW, limit=4)):
        passes.run(cast, images, TRAIN, tmp_path, {"localization"})
    assert {path.name for path in tmp_path.iterdir()} == {"localization.parquet", "localization.1.parquet"}
    pd.testing.assert_frame_equal(table.read(tmp_path / "localization.1.parquet"), single)
    assert table.read(tmp_path / "localization.parquet").attrs["images"]["count"] == 4


def test_findings_put_aside_what_they_did_not_write(tmp_path, out):
    other = table.with_provenance(pd.DataFrame({"cka": [0.5]}), "cka")
    table.write(other, tmp_path / "a.parquet")
    own(tmp_path / "a.md")
    found = findings.read(out / "findings.parquet")
    for _ in range(2):
        findings.write(found, tmp_path / "a")
    assert {path.name for path in tmp_path.iterdir()} == {
        *("a.parquet", "a.md", "a.tex", "a.csv", "a.1.parquet", "a.1.md")
    }
    pd.testing.assert_frame_equal(table.read(tmp_path / "a.1.parquet"), other)
    assert own(tmp_path / "a.1.md", write=False)


def test_the_kinds_of_tables_are_those_that_the_analyses_name(made):
    kinds = {own.attrs["analysis"] for own in made.tables.values()}
    assert kinds == {"cka_controls", *(kind for analysis in ANALYSES for kind in analysis.tables)}


def test_each_image_goes_once_through_each_model_and_only_what_was_asked_for_is_measured(cast, tmp_path):
    counts = dict.fromkeys(cast.models, 0)
    handles = [
        model.module.register_forward_hook(
            lambda _, args, __, name=name: counts.__setitem__(
                name, counts[name] + (len(args[0]) if len(args[0]) > 3 else 0)
            )  # a few tell the axis of images and the places of positions
        )
        for name, model in cast.models.items()
    ]
    done = passes.run(cast, FEW, TRAIN, tmp_path, QUICK)
    for handle in handles:
        handle.remove()
    assert counts == dict.fromkeys(cast.models, len(plans.balanced(FEW).order))
    assert done.tables.keys() == QUICK
    assert {path.stem for path in tmp_path.iterdir()} == QUICK


@pytest.mark.usefixtures("small")
def test_a_table_of_the_shared_pass_is_the_table_of_the_analysis_alone(cast, made):
    images = plans.balanced(IMAGES)
    (alone,) = plans.by_table(cast, IMAGES, images, TRAIN, images)["skip"]()
    shared = made.tables["skip"]
    own = alone.table()
    columns = [name for name in own if not name.endswith("_without")]
    assert own[columns].equals(shared[columns])


def test_a_model_may_play_several_parts():
    parts = Parts(
        vit=("lab/vit@random", "lab/vit_gap@random"), gap="lab/vit_gap@random", tuned="lab/vit_gap@random"
    )
    several = Cast.load(parts, Machine("cpu"))
    planned = plans.by_table(several, FEW, FEW, TRAIN, FEW)
    for name in ("cka", "attention_distance", "cka_controls"):
        models = planned[name]()[0].reading.models
        assert len(models) == len(set(models)), name


def test_the_twin_whose_attention_is_measured_is_that_of_the_transformer():
    mixed = Cast.load(Parts(vit=("lab/vit@random",), cnn=("lab/resnet",)), Machine("cpu"))
    (plan,) = plans.by_table(mixed, FEW, FEW, TRAIN, FEW)["attention_distance"]()
    assert list(plan.reading.models) == ["lab/vit@random"]


def test_a_model_without_a_classifier_gives_no_answers_that_lesions_could_change():
    tiny = "vit_tiny_patch16_224,img_size=32,depth=2,embed_dim=24,num_heads=3"
    both = Cast.load(
        Parts(vit=(f"{tiny},num_classes=0@random", f"{tiny},num_classes=5@random")), Machine("cpu")
    )
    several = plans.by_table(both, FEW, FEW, TRAIN, FEW)["lesions"]()
    assert [name for plan in several for name in plan.reading.models] == [f"{tiny},num_classes=5@random"]
    alone = Cast.load(Parts(vit=(f"{tiny},num_classes=0@random",)), Machine("cpu"))
    with pytest.raises(Refusal, match="needs a model with a classifier"):
        plans.by_table(alone, FEW, FEW, TRAIN, FEW)["lesions"]()


def test_tables_are_kept_until_a_model_or_the_images_change(cast, tmp_path, monkeypatch):
    wanted = {"cka_controls", "attention_distance", "skip"}
    passes.run(cast, FEW, TRAIN, tmp_path, wanted)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(measure, "stream", lambda *_, **__: pytest.fail("an image was read"))
        again = passes.run(cast, FEW, TRAIN, tmp_path, wanted)
    assert again.tables.keys() == wanted
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    model = cast.models["lab/vit@random"]
    other = replace(model, digest="changed")
    changed = Cast(cast.parts, {**cast.models, model.name: other})
    passes.run(changed, FEW, TRAIN, tmp_path, {"skip"})
    assert (tmp_path / "skip.parquet").stat().st_mtime_ns != before["skip.parquet"]
    assert (tmp_path / "cka_controls.parquet").stat().st_mtime_ns == before["cka_controls.parquet"]
    passes.run(cast, replace(FEW, seed=1), TRAIN, tmp_path, {"attention_distance"})
    assert (tmp_path / "attention_distance.parquet").stat().st_mtime_ns != before[
        "attention_distance.parquet"
    ]
    (tmp_path / "attention_distance.parquet").unlink()  # measured or kept, tables come in the same order
    assert list(passes.run(cast, FEW, TRAIN, tmp_path, wanted).tables) == [
        n for n in plans.TABLES if n in wanted
    ]


def test_an_analysis_that_does_not_apply_is_missing_with_its_reason(tmp_path):
    alone = Cast.load(Parts(cnn=("lab/resnet@random",)), Machine("cpu"))
    done = passes.run(
        alone, FEW, TRAIN, tmp_path, {"attention_distance", "head_subsets", "lesions_trained", "skip"}
    )
    assert done.tables.keys() == {"skip"}
    assert done.missing.keys() == {"attention_distance", "head_subsets", "lesions_trained"}
    assert done.missing["attention_distance"] == "needs a Vision Transformer (--vit)"
    assert done.missing["lesions_trained"] == "needs a Vision Transformer (--vit)"
    assert done.missing["head_subsets"] == "needs a Vision Transformer (--vit) and a CNN (--cnn)"


@pytest.mark.usefixtures("small")
def test_receptive_fields_and_their_sizes_come_of_one_pass_whichever_is_wanted(cast, tmp_path, monkeypatch):
    fields = {"receptive_field", "receptive_field_maps"}
    assert passes.run(cast, IMAGES, TRAIN, tmp_path, {"receptive_field_maps"}).tables.keys() == fields
    read = []
    monkeypatch.setattr(measure, "_read", lambda *what, read_=measure._read: read.append(1) or read_(*what))
    assert passes.run(cast, IMAGES, TRAIN, tmp_path, {"receptive_field"}).tables.keys() == fields
    assert not read
    (tmp_path / "receptive_field.parquet").unlink()  # as of a run that was killed between the two
    assert passes.run(cast, IMAGES, TRAIN, tmp_path, {"receptive_field_maps"}).tables.keys() == fields
    assert len(read) == 1
    assert {path.stem for path in tmp_path.iterdir()} == fields


def classes_in(images, numbers) -> int:
    return len(images.truth(numbers)[next(iter(images.targets))].unique())


def batches_of(images) -> list[list[int]]:
    return [images.order[start:][: images.batch] for start in range(0, len(images.order), images.batch)]


@pytest.mark.parametrize("count", [40, 60, 320])
def test_a_subset_of_ordered_images_has_several_classes_in_every_batch(count):
    """Balanced images go by class: the first of them are all of one, and their similarity is that within a class."""
    ordered = Images(limit=700, batch=160)
    by_class = ordered.only(sorted(ordered.order, key=lambda number: int(ordered.truth([number])["shape"])))
    for images in (by_class, plans.balanced(ordered), ordered):
        few = plans.mixed(images, count)
        assert len(few.order) == len(set(few.order)) == count
        assert set(few.order) <= set(images.order)
        assert all(classes_in(few, batch) >= min(4, len(batch)) for batch in batches_of(few))
        assert few.order == plans.mixed(images, count).order
        assert few.batch == max(4, count // 20)  # as many batches as an interval has groups
    assert plans.mixed(replace(ordered, seed=1), count).order != plans.mixed(ordered, count).order


def test_a_quarter_of_a_balanced_batch_has_as_many_classes_as_it_has_room_for():
    """Massive tokens are looked for in the first images of a batch alone."""
    images = plans.balanced(Images(limit=700, batch=160))
    for batch in batches_of(images):
        for part in (batch[:16], batch[: len(batch) // 4]):
            assert classes_in(images, part) == 10


def test_images_without_classes_are_chosen_at_random_and_not_cut():
    images = given(torch.randn(200, 3, 4, 4))
    few = plans.mixed(images, 60)
    assert len(set(few.order)) == 60
    assert few.order != images.order[:60]


def test_batches_are_balanced_where_they_have_room_for_all_classes():
    wide = plans.balanced(Images(limit=700, batch=160))
    labels = wide.truth(wide.order)["shape"]
    for batch in labels.split(160):
        assert batch.bincount(minlength=10).tolist() == [16] * 10
    narrow = Images(limit=700, batch=64)
    assert plans.balanced(narrow) is narrow


def test_figures_are_chosen_by_number():
    assert [drawing.id for drawing in figures.choose(["8"])] == ["8", "8 accuracy", "8 lesions"]
    assert [drawing.id for drawing in figures.choose(["13", "B.1"])] == ["13a", "13b", "B.1"]
    assert figures.choose([]) == list(DRAWINGS)
    with pytest.raises(Refusal, match=r"no figure 'B1'.*B\.1"):
        figures.choose(["B1"])


MISSING = {
    "4": "needs a Vision Transformer trained on less data (--less-data)",
    "12": "needs a Vision Transformer trained on less data (--less-data)",
    "13a": "needs a Vision Transformer trained on less data (--less-data)",
    "B.1": "needs a second Vision Transformer or CNN (--vit A B --cnn C D)",
    "C.3": "needs a second model: a Vision Transformer (--vit)",
    "C.5": "needs a Vision Transformer trained on less data (--less-data)",
    "C.6": "needs a fine-tuned Vision Transformer (--tuned)",
    "D.1": "needs a second model: a Vision Transformer (--vit)",
    "G.1": "needs a fine-tuned Vision Transformer (--tuned)",
}


def test_every_figure_is_a_picture_or_says_what_it_needs(out):
    pictures = {f"figure_{one.id.replace(' ', '_')}" for one in DRAWINGS if one.id not in MISSING}
    assert {path.stem for path in out.glob("figure_*.png")} == pictures
    assert all((out / f"{name}.png").stat().st_size > 1000 for name in pictures)
    page = (out / "report.html").read_text()
    for needed in MISSING.values():
        assert f"This figure: {needed}." in page


def test_what_a_figure_needs_is_said_in_its_place(made, tmp_path):
    chosen = [drawing for drawing in DRAWINGS if drawing.id in MISSING]
    assert figures.draw(Evidence(made), tmp_path, chosen) == MISSING
    bare = Evidence(Study(UNTRAINED, {}, {"probe": "'photographs' has no classes to probe"}))
    drawn = figures.draw(bare, tmp_path)
    assert drawn["13b"] == "'photographs' has no classes to probe"
    assert drawn["1"] == "needs the table 'cka'"
    assert all(isinstance(needed, str) for needed in drawn.values())
    assert list(tmp_path.iterdir()) == []


def test_one_command_makes_pictures_verdicts_and_a_report(out):
    found = findings.read(out / "findings.parquet").set_index("id")
    assert found.loc["F1a", "verdict"] != "not measured"
    assert found.loc["F12a", "reason"] == "needs a Vision Transformer trained on less data (--less-data)"
    page = (out / "report.html").read_text()
    for drawing in DRAWINGS:
        assert drawing.title in page
    assert "needs a fine-tuned Vision Transformer (--tuned)" in page
    assert "mean over blocks of accuracy lost without their skip connections, " in page
    assert '<b class="letter">V</b>' in page
    assert (out / "findings.md").stat().st_size > 1000
    assert (out / "verdicts.png").stat().st_size > 1000
    assert torch.is_grad_enabled()


# Faults --------------------------------------------------------------------------------------------------------------

# A numpy error, as a slip of ours makes one: a ValueError that is no Refusal.
FAULT = "operands could not be broadcast"
every_analysis = pytest.mark.parametrize("analysis", ANALYSES, ids=lambda one: one.name)


def broken(*_: object, **__: object) -> np.ndarray:
    return np.zeros(2) + np.zeros(3)


def planning(analysis: Analysis) -> list[str]:
    """The functions of its module that plan a table."""
    own = vars(analysis.module)
    return [name for name in own if name.startswith("plan") and inspect.isfunction(own[name])]


def everyone() -> Cast:
    """A model for every part, with nothing in it."""
    parts = Parts(*(("v",), ("r",), "g", ("small",), ("few",), "seed", ("no",), "mixer", "tuned"))
    names = [*parts.names(), *parts.twins()]
    return Cast(parts, {name: Model(name, nn.Identity(), Preprocessing(), "0") for name in names})


@cache
def planned() -> dict[str, str]:
    """By name of each table of the study, the analysis that plans it."""
    asked: list[str] = []
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        for analysis in ANALYSES:
            for name in planning(analysis):
                plan = lambda *_, own=analysis.name, **__: asked.append(own) or (None, None)  # noqa: E731
                patch.setattr(analysis.module, name, plan)
        patch.setattr(plans, "_earlier_units", lambda _: ["*"])
        for place in plans.TABLES:
            asked.clear()
            plans.by_table(everyone(), FEW, FEW, TRAIN, FEW)[place]()
            assert len(set(asked)) == 1, place
            found[place] = asked[0]
    return found


def tables_of(analysis: Analysis) -> list[str]:
    return [name for name, own in planned().items() if own == analysis.name]


def changed(patch: pytest.MonkeyPatch, analysis: Analysis, **parts: Callable) -> None:
    """All that an analysis plans has other parts."""

    def other(plan: Callable) -> Callable:
        def changing(*models: object, **settings: object) -> object:
            found = plan(*models, **settings)
            several = found if isinstance(found, tuple) else (found,)
            made = tuple(replace(one, **parts) for one in several)
            return made if isinstance(found, tuple) else made[0]

        return changing

    for name in planning(analysis):
        patch.setattr(analysis.module, name, other(getattr(analysis.module, name)))


def unread(reading: object, start: int = 0) -> Iterator[Pass]:
    """One batch of which nothing was kept."""
    yield Pass(start, 4, {name: {} for name in reading.models}, torch.zeros(4), [0, 1, 2, 3])


def is_told(caught: pytest.ExceptionInfo, place: str) -> bool:
    """Whether an error came out as itself, with a note that names the place."""
    own = caught.value
    return not isinstance(own, Refusal) and any(place in note for note in getattr(own, "__notes__", []))


def test_every_analysis_is_in_the_study():
    assert set(planned().values()) == {analysis.name for analysis in ANALYSES}


@every_analysis
def test_a_fault_in_a_plan_names_the_table_and_is_no_missing_one(analysis, tmp_path, monkeypatch):
    for name in planning(analysis):
        monkeypatch.setattr(analysis.module, name, broken)
    monkeypatch.setattr(plans, "_earlier_units", lambda _: ["*"])
    for name in tables_of(analysis):
        with pytest.raises(ValueError, match=FAULT) as caught:
            passes.run(everyone(), FEW, TRAIN, tmp_path, {name})
        shared = plans.TWO_OF_ONE.get(name, ())
        assert any(is_told(caught, f"in the plan of the table '{own}'") for own in (name, *shared))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("part", ["fold", "finish"])
@every_analysis
def test_a_fault_in_sums_or_in_a_table_names_it_and_is_no_missing_one(
    analysis, part, cast, tmp_path, monkeypatch
):
    monkeypatch.setattr(measure, "stream", unread)
    changed(monkeypatch, analysis, **{"prepare": lambda: None, "fold": lambda _: Sums()} | {part: broken})
    place = {"fold": "in the sums of", "finish": "in the table of"}[part]
    for name in tables_of(analysis):
        with pytest.raises(ValueError, match=FAULT) as caught:
            passes.run(cast, IMAGES, TRAIN, tmp_path / name, {name})
        shared = plans.TWO_OF_ONE.get(name, ())
        assert any(is_told(caught, f"{place} {own} ") for own in (name, *shared))
        assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize(
    ("table", "module", "function"), [("probe", probe, "_learn"), ("skip", skip, "ratios")]
)
def test_a_fault_before_a_pass_or_in_a_hook_names_the_table_and_is_no_missing_one(
    table, module, function, cast, tmp_path, monkeypatch
):
    shrink(monkeypatch)
    monkeypatch.setattr(module, function, broken)
    with pytest.raises(ValueError, match=FAULT) as caught:
        passes.run(cast, FEW, TRAIN, tmp_path, {table, "attention_distance"})
    assert is_told(caught, table)


def drawings_of(analysis: Analysis, made: Study) -> list:
    """The figures that are drawn from its tables."""
    own = {name for name, table in made.tables.items() if planned()[name] == analysis.name}
    return [drawing for drawing in DRAWINGS if own & set(drawing.tables) and drawing.id not in MISSING]


@every_analysis
def test_a_fault_in_a_picture_names_the_figure_and_is_no_missing_one(analysis, made, tmp_path, monkeypatch):
    for name, module in list(sys.modules.items()):
        if name.startswith("vit_analysis.plot.") and hasattr(module, "Figure"):
            monkeypatch.setattr(module, "Figure", broken)
    chosen = drawings_of(analysis, made)
    assert chosen
    for drawing in chosen:
        with pytest.raises(ValueError, match=FAULT) as caught:
            figures.draw(Evidence(made), tmp_path, [drawing])
        assert is_told(caught, f"in figure {drawing.id}")
    assert list(tmp_path.iterdir()) == []


def test_a_fault_that_shows_only_when_a_picture_is_written_names_the_figure(made, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[plot.skip.__module__].Figure, "savefig", broken)
    (drawing,) = figures.choose(["E.2"])
    with pytest.raises(ValueError, match=FAULT) as caught:
        figures.draw(Evidence(made), tmp_path, [drawing])
    assert is_told(caught, "in figure E.2")
    assert list(tmp_path.iterdir()) == []


def test_pictures_and_verdicts_are_kept_until_a_table_the_style_or_the_code_changes(
    made, tmp_path, monkeypatch
):
    drawn = []
    chosen = [replace(own, draw=partial(noted, drawn, own.draw)) for own in figures.choose(["E.2", "C.3"])]

    def again(study: Study, **style) -> list[str]:
        drawn.clear()
        found = figures.draw(Evidence(study), tmp_path, chosen, Pictures(**style))
        assert [found[own.id] == tmp_path / f"figure_{own.id}.png" for own in chosen] == [True, False]
        return list(drawn)

    assert again(made) == ["drawn", "refused"]
    assert again(made) == ["refused"]  # what lacks a model has no picture that could be kept
    assert again(made, width=4.0) == ["drawn", "refused"]
    assert again(made, width=4.0, names=("lab/vit@random=ViT",)) == ["drawn", "refused"]
    assert again(made) == ["drawn", "refused"]
    with monkeypatch.context() as patched:
        patched.setattr("vit_analysis.study.evidence.code_of_pictures", lambda: "other code")
        assert again(made) == ["drawn", "refused"]
    other = made.tables["skip"].copy()
    other.attrs = {**other.attrs, "key": "other"}
    assert again(made._replace(tables={**made.tables, "skip": other})) == ["drawn", "refused"]
    other.attrs = {name: fact for name, fact in other.attrs.items() if name != "key"}
    unknown = made._replace(tables={**made.tables, "skip": other})
    assert again(unknown) == again(unknown) == ["drawn", "refused"]


def noted(drawn: list[str], draw, evidence: Evidence):
    try:
        figure = draw(evidence)
    except Refusal:
        drawn.append("refused")
        raise
    drawn.append("drawn")
    return figure


def test_verdicts_are_computed_again_only_for_other_tables_or_another_note(made, tmp_path, monkeypatch):
    out = tmp_path / "findings"
    found = findings.of(made, out, "of this")
    findings.write(found, out)
    with monkeypatch.context() as patched:
        patched.setattr(findings, "number", lambda *_: pytest.fail("a claim was measured"))
        again = findings.of(made, out, "of this")
        with pytest.raises(pytest.fail.Exception, match="a claim was measured"):
            findings.of(made, out, "of that")
    pd.testing.assert_frame_equal(again, found, check_dtype=False)
    assert findings.markdown(again) == findings.markdown(found)


def test_the_report_is_written_again_only_where_something_changed(made, tmp_path):
    evidence, page = Evidence(made), tmp_path / "report.html"
    drawn = dict.fromkeys((own.id for own in DRAWINGS), "nothing is drawn here")

    def written(note: str, **style) -> int:
        figures.judge(evidence, tmp_path, drawn, note, Pictures(**style))
        return page.stat().st_ino  # a file that is written is another one, renamed

    first = written("of this")
    assert written("of this") == first
    assert (second := written("of that")) != first
    assert written("of that", names=("lab/vit@random=ViT",)) != second
    page.write_text("my own")
    written("of that")
    assert (tmp_path / "report.1.html").read_text() == "my own"
