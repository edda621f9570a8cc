"""What figures are drawn of: the models that they are about, and no others."""

import pandas as pd

from vit_analysis.study.drawings import DRAWINGS
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


def lines(id: str, made: Study) -> list[str]:
    (drawing,) = [drawing for drawing in DRAWINGS if drawing.id == id]
    figure = drawing.draw(Evidence(made))
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()] or [
        text.get_text() for ax in figure.axes for text in ax.get_legend().get_texts()
    ]


def test_fine_tuning_is_drawn_of_the_fine_tuned_model_alone():
    parts = Parts(vit=("v",), cnn=("r",), tuned=("t", "t:1"))
    made = Study(parts, {"cka_controls": controls(("v", "v"), ("v", "r"), ("v", "t"), ("v", "t:1"))}, {})
    assert lines("G.1", made) == ["v and t"]


def test_less_data_is_drawn_beside_its_ceiling():
    parts = Parts(vit=("v",), less_data=("small", "medium"), other_seed="seed")
    made = Study(
        parts, {"cka_controls": controls(("v", "small"), ("v", "medium"), ("v", "seed"), ("v", "v"))}, {}
    )
    assert lines("12", made) == ["v and small", "v and medium", "v and seed (ceiling)"]
