"""The whole study on untrained models of the lab and few scenes: tables, passes, pictures, report."""

import logging
from dataclasses import replace

import pytest
import torch

from vit_analysis import figures, findings, table
from vit_analysis.images import Images
from vit_analysis.reading import measure
from vit_analysis.study import passes
from vit_analysis.study.drawings import DRAWINGS
from vit_analysis.study.parts import Parts
from vit_analysis.study.passes import Cast

IMAGES = Images(limit=40, batch=20)
TRAIN = Images(limit=400, seed=1)
UNTRAINED = Parts(
    vit=("lab/vit@random",),
    cnn=("lab/resnet@random",),
    gap="lab/vit_gap@random",
    no_skip=("lab/vit_no_skip_middle@random",),
    mixer="lab/mixer@random",
)
QUICK = {"cka", "cka_controls", "attention_distance", "skip", "localization"}


@pytest.fixture(scope="module")
def cast() -> Cast:
    return Cast.load(UNTRAINED, "cpu")


@pytest.fixture(scope="module")
def made(cast, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return passes.run(cast, IMAGES, TRAIN, out, QUICK), out


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
        cast = Cast.load(Parts(vit=("lab/vit@random",), mixer="lab/mixer"), "cpu")
    assert cast.parts == Parts(vit=("lab/vit@random",))
    assert (
        "no weights of 'lab/mixer' yet: train it with python -m vit_analysis.train lab/mixer" in caplog.text
    )


def test_every_table_that_was_asked_for_is_there_and_lies_beside(made):
    done, out = made
    assert done.tables.keys() == QUICK
    assert {path.stem for path in out.iterdir()} == QUICK
    assert done.missing == {}
    kept = table.read(out / "cka.parquet")
    assert kept.attrs["models"].keys() == {*UNTRAINED.names()}


def test_each_image_goes_once_through_each_model(cast, tmp_path):
    counts = dict.fromkeys(cast.models, 0)
    handles = [
        model.module.register_forward_hook(
            lambda _, args, __, name=name: counts.__setitem__(name, counts[name] + len(args[0]))
        )
        for name, model in cast.models.items()
    ]
    passes.run(cast, IMAGES, TRAIN, tmp_path, QUICK)
    for handle in handles:
        handle.remove()
    assert counts == dict.fromkeys(cast.models, len(passes.balanced(IMAGES).order))


def test_a_table_of_the_shared_pass_is_the_table_of_the_analysis_alone(cast, made):
    alone = measure.table(passes.plans(cast, IMAGES, passes.balanced(IMAGES), TRAIN)["skip"]()[0])
    shared = made[0].tables["skip"]
    columns = [name for name in alone if not name.endswith("_without")]
    assert alone[columns].equals(shared[columns])


def test_tables_are_kept_until_a_model_or_the_images_change(cast, made, monkeypatch):
    _, out = made
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(measure, "stream", lambda *_, **__: pytest.fail("an image was read"))
        again = passes.run(cast, IMAGES, TRAIN, out, QUICK)
    assert again.tables.keys() == QUICK
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    model = cast.models["lab/vit@random"]
    other = replace(model, digest="changed")
    changed = Cast(cast.parts, {**cast.models, model.name: other})
    passes.run(changed, IMAGES, TRAIN, out, {"skip"})
    assert (out / "skip.parquet").stat().st_mtime_ns != before["skip.parquet"]
    assert (out / "cka.parquet").stat().st_mtime_ns == before["cka.parquet"]
    (out / "attention_distance.parquet").unlink()  # measured or kept, tables come in the same order
    assert list(passes.run(cast, IMAGES, TRAIN, out, QUICK).tables) == [
        n for n in passes.TABLES if n in QUICK
    ]


def test_an_analysis_that_does_not_apply_is_missing_with_its_reason(tmp_path):
    alone = Cast.load(Parts(cnn=("lab/resnet@random",)), "cpu")
    done = passes.run(
        alone, IMAGES, TRAIN, tmp_path, {"attention_distance", "head_subsets", "lesions_trained", "skip"}
    )
    assert done.tables.keys() == {"skip"}
    assert done.missing["attention_distance"] == "needs a Vision Transformer (--vit)"
    assert done.missing["lesions_trained"] == "needs a Vision Transformer (--vit)"
    assert done.missing["head_subsets"] == "needs a Vision Transformer (--vit) and a CNN (--cnn)"


def test_receptive_fields_and_their_sizes_come_of_one_pass_whichever_is_wanted(cast, tmp_path, monkeypatch):
    monkeypatch.setattr(study, "FIELDS", 8)
    monkeypatch.setattr(study, "CHANNELS", 1)
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


def test_batches_are_balanced_where_they_have_room_for_all_classes():
    wide = passes.balanced(Images(limit=700, batch=160))
    labels = wide.truth(wide.order)["shape"]
    for batch in labels.split(160):
        assert batch.bincount(minlength=10).tolist() == [16] * 10
    narrow = Images(limit=700, batch=64)
    assert passes.balanced(narrow) is narrow


def test_figures_are_chosen_by_number():
    assert [drawing.id for drawing in figures.choose(["8"])] == ["8", "8 accuracy", "8 lesions"]
    assert [drawing.id for drawing in figures.choose(["13", "B.1"])] == ["13a", "13b", "B.1"]
    assert figures.choose([]) == list(DRAWINGS)
    with pytest.raises(ValueError, match=r"no figure 'B1'.*B\.1"):
        figures.choose(["B1"])


def test_every_figure_is_a_picture_or_says_what_it_needs(made, tmp_path):
    done, _ = made
    drawn = figures.draw(findings.evidence(done), tmp_path)
    assert drawn.keys() == {drawing.id for drawing in DRAWINGS}
    pictures = {name for name, own in drawn.items() if not isinstance(own, str)}
    assert pictures == {
        "1",
        "1 untrained",
        "2",
        "3",
        "7",
        "8",
        "9",
        "10",
        "E.1",
        "E.2",
        "G.2",
        "H.1",
        "H.2",
    }
    assert drawn["12"] == "needs a Vision Transformer trained on less data (--less-data)"
    assert drawn["13b"] == "needs the table 'probe'"
    assert {path.stem for path in tmp_path.iterdir()} == {
        f"figure_{name.replace(' ', '_')}" for name in pictures
    }


def test_one_command_makes_pictures_verdicts_and_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "LAB_PARTS", Parts(vit=("lab/vit@random",), cnn=("lab/resnet@random",)))
    monkeypatch.setattr(study, "FIELDS", 2)
    monkeypatch.setattr(study, "CHANNELS", 1)
    monkeypatch.setattr(study, "SHOTS", 2)
    monkeypatch.setattr(study, "SINGLE", 2)
    figures.main(images=IMAGES, train=replace(TRAIN, limit=1000), out=tmp_path, device="cpu")
    found = findings.read(tmp_path / "findings.parquet").set_index("id")
    assert found.loc["F1a", "verdict"] != "not measured"
    assert found.loc["F10", "reason"] == "needs a Vision Transformer trained with average pooling (--gap)"
    page = (tmp_path / "report.html").read_text()
    for drawing in DRAWINGS:
        assert drawing.title in page
    assert "needs an MLP-Mixer (--mixer)" in page
    assert "mean over blocks of accuracy lost without their skip connections, V - R, points: " in page
    assert (tmp_path / "findings.md").stat().st_size > 1000
    assert (tmp_path / "figure_1.png").stat().st_size > 1000
    assert torch.is_grad_enabled()
