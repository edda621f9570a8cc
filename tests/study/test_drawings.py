"""What figures are drawn of: the models that they are about, and no others."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes

from vit_analysis import plot
from vit_analysis.spelling import Refusal
from vit_analysis.study.draw import with_runs
from vit_analysis.study.drawings import DRAWINGS, Drawing
from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.parts import Parts


def controls(*pairs: tuple[str, str], blocks: int = 4) -> pd.DataFrame:
    """CKA of block outputs of pairs of models."""
    rows = [
        ("all", *place, other, f"blocks.{j}", j / (blocks - 1), 0.5, 0.4, 0.6)
        for model, other in pairs
        for i in range(blocks)
        for place in [(model, f"blocks.{i}", i / (blocks - 1))]
        for j in range(blocks)
    ]
    names = [
        "control",
        "model",
        "layer",
        "depth",
        "other_model",
        "other_layer",
        "other_depth",
        "cka",
        "low",
        "high",
    ]
    table = pd.DataFrame(rows, columns=names)
    table.attrs = {"analysis": "cka_controls", "images": {}, "models": {}}
    return table


def drawing(id: str) -> Drawing:
    (found,) = [own for own in DRAWINGS if own.id == id]
    return found


def said(figure: Any) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


def thin(ax: Axes) -> int:
    return len([line for line in ax.lines if line.get_linewidth() == 0.7])


def squares(*models: str) -> pd.DataFrame:
    """CKA of the blocks of models, all with all."""
    return controls(*((model, other) for model in models for other in models))


def probed(*models: str, targets: tuple[str, ...] = ("shape", "texture", "position")) -> pd.DataFrame:
    rows = [
        (model, f"blocks.{layer}", layer / 2, "mean", target, 5, draw, 0.5 + draw / 100)
        for model in models
        for layer in range(3)
        for target in targets
        for draw in range(2)
    ]
    names = ["model", "layer", "depth", "tokens", "target", "shots", "draw", "accuracy"]
    table = pd.DataFrame(rows, columns=names)
    table.attrs = {
        "analysis": "probe",
        "native": dict.fromkeys(models, "mean"),
        "chance": dict.fromkeys(targets, 0.1),
    }
    return table


def lines(id: str, made: Study) -> list[str]:
    figure = drawing(id).draw(Evidence(made))
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()] or [
        text.get_text() for ax in figure.axes for text in ax.get_legend().get_texts()
    ]


def test_fine_tuning_is_drawn_of_the_fine_tuned_model_alone():
    parts = Parts(vit=("v",), cnn=("r",), tuned=("t", "t:1"))
    made = Study(parts, {"cka_controls": controls(("v", "v"), ("v", "r"), ("v", "t"), ("v", "t:1"))}, {})
    assert lines("G.1", made) == ["t"]


def test_less_data_is_drawn_beside_its_ceiling():
    parts = Parts(vit=("v",), less_data=("small", "medium"), other_seed="seed")
    made = Study(
        parts, {"cka_controls": controls(("v", "small"), ("v", "medium"), ("v", "seed"), ("v", "v"))}, {}
    )
    assert lines("12", made) == ["small", "medium", "seed (ceiling)"]


def test_training_runs_of_any_name_are_runs_of_the_first_in_pictures():
    table = probed("b", "once_more", "a")
    parts = Parts(vit=(("a", "once_more", "missing"),), cnn=("b",))
    rows = with_runs(Evidence(Study(parts, {"probe": table}, {})), "probe", "vit", "cnn")
    assert list(dict.fromkeys(rows["model"])) == ["a", "a:1", "b"]
    assert set(rows.attrs["native"]) == {"a", "a:1", "b"}
    assert set(table["model"]) == {"a", "b", "once_more"}  # the table itself is as it was
    with pytest.raises(Refusal, match="needs a model that this was measured of"):
        with_runs(Evidence(Study(Parts(vit=("nobody",)), {"probe": table}, {})), "probe", "vit")


def test_further_runs_of_less_data_are_thin_lines():
    parts = Parts(vit=(("v", "v:1"),), less_data=(("small", "small:1"),), other_seed="seed")
    pairs = [("v", "v"), ("v", "small"), ("v", "seed"), ("v:1", "small:1")]
    (ax,) = drawing("12").draw(Evidence(Study(parts, {"cka_controls": controls(*pairs)}, {}))).axes
    assert thin(ax) == 1


def test_amounts_of_data_go_from_light_to_dark_and_the_ceiling_is_grey_and_dashed():
    parts = Parts(vit=("v",), less_data=("small", "medium", "large"), other_seed="seed")
    pairs = [("v", name) for name in ("v", "small", "medium", "large", "seed")]
    (ax,) = drawing("12").draw(Evidence(Study(parts, {"cka_controls": controls(*pairs)}, {}))).axes
    *ordered, ceiling = ax.lines
    light = [float(np.dot(line.get_color()[:3], (0.299, 0.587, 0.114))) for line in ordered]
    assert light == sorted(light, reverse=True)
    assert len(set(light)) == 3
    assert (ceiling.get_linestyle(), ceiling.get_color()) == ("--", "0.45")


def test_figure_8_has_the_intact_model_first_and_knows_the_changed_block():
    parts = Parts(vit=("v",), no_skip=("w", "u"))
    lesions = pd.DataFrame({"model": ["w", "u"], "block": ["blocks.2", "blocks.0"]})
    made = Study(parts, {"cka": squares("v", "w", "u"), "lesions_trained": lesions}, {})
    figure = drawing("8").draw(Evidence(made))
    assert [ax.get_title() for ax in figure.axes if ax.images] == [
        *("all skip connections", "none in blocks.2", "none in blocks.0"),
    ]
    assert drawing("8").panels is not None
    assert drawing("8").panels(Evidence(made)) == [("v", "v"), ("w", "w"), ("u", "u")]
    del made.tables["lesions_trained"]  # then it is not known which block it is
    figure = drawing("8").draw(Evidence(made))
    assert [ax.get_title() for ax in figure.axes if ax.images] == ["all skip connections", "w", "u"]
    with pytest.raises(Refusal, match="without the skip connections of one block"):
        drawing("8").draw(Evidence(Study(Parts(vit=("v",)), made.tables, {})))


def test_what_stands_in_the_place_of_other_models_or_data_is_said_in_the_picture():
    parts = Parts(vit=("v",), cnn=("r",), gap="g")
    made = Study(parts, {"cka": squares("v", "g"), "probe": probed("v", "r")}, {})
    assert "In the place of the paper's model sizes: one size" in said(drawing("G.2").draw(Evidence(made)))
    told = said(drawing("F").draw(Evidence(made)))
    assert "In the place of the paper's CIFAR-10 and CIFAR-100: texture and position" in told
    assert "CIFAR" in drawing("F").title
    two = Study(Parts(vit=("v", "g")), made.tables, {})
    assert "place" not in said(drawing("G.2").draw(Evidence(two)))
    with pytest.raises(Refusal, match="there is one task"):
        drawing("F").draw(Evidence(Study(parts, {"probe": probed("v", "r", targets=("class",))}, {})))


def test_figure_13a_has_a_panel_for_each_kind_of_model_that_was_trained_on_less_data():
    parts = Parts(vit=("v",), cnn=("r",), less_data=("few", "more"), cnn_less_data=("r_few",))
    made = Study(parts, {"probe": probed("v", "r", "few", "more", "r_few")}, {})
    figure = drawing("13a").draw(Evidence(made))
    vit, cnn, better, cnn_better = figure.axes
    drawn = [[line.get_label() for line in ax.lines if len(line.get_xdata()) == 3] for ax in (vit, cnn)]
    assert drawn == [["v", "few", "more"], ["r", "r_few"]]
    assert [len(ax.get_legend().get_texts()) for ax in (better, cnn_better)] == [2, 1]
    without = Study(Parts(vit=("v",), cnn=("r",), less_data=("few",)), made.tables, {})
    assert len(drawing("13a").draw(Evidence(without)).axes) == 2
    with pytest.raises(Refusal, match="trained on less data"):
        drawing("13a").draw(Evidence(Study(Parts(vit=("v",), cnn=("r",)), made.tables, {})))


def test_figure_13b_compares_the_first_transformer_with_every_other_model():
    parts = Parts(vit=(("v", "v:1"), "w"), cnn=("r",))
    figure = drawing("13b").draw(Evidence(Study(parts, {"probe": probed("v", "v:1", "w", "r")}, {})))
    upper, lower = figure.axes
    minus = "\N{MINUS SIGN}"
    assert [text.get_text() for text in lower.get_legend().get_texts()] == [f"v {minus} r", f"v {minus} w"]
    assert thin(upper) == 1


def test_the_loss_of_normalized_tokens_is_drawn_where_it_was_measured():
    rows = [(model, depth / 2, 2.0, 1.9, 2.1, 2.3, 2.2) for model in ("v", "r") for depth in range(3)]
    table = pd.DataFrame(rows, columns=["model", "depth", "loss", "low", "high", "chance", "loss_fixed"])
    table.attrs = {"analysis": "soft_nearest_neighbor", "tokens": "all"}
    parts, tables = Parts(vit=("v",), cnn=("r",)), {"soft_nearest_neighbor": table}
    assert len(drawing("notes").draw(Evidence(Study(parts, tables, {}))).axes) == 2
    normalized = table.copy()
    normalized.attrs = table.attrs | {"tokens": "normalized"}
    tables["soft_nearest_neighbor_normalized"] = normalized
    assert len(drawing("notes").draw(Evidence(Study(parts, tables, {}))).axes) == 3
    missing = Study(parts, {}, {"soft_nearest_neighbor": "needs images with labels"})
    with pytest.raises(Refusal, match="needs images with labels"):
        drawing("notes").draw(Evidence(missing))


def test_every_drawing_is_of_what_plot_draws():
    assert len({own.id for own in DRAWINGS}) == len(DRAWINGS)
    for own in DRAWINGS:
        assert own.alternative.endswith(".")
        assert own.claim.endswith(".")
        assert set(own.tables) & set(plot.PICTURES) or own.tables[0].startswith(
            ("cka", "probe", "localization")
        )
