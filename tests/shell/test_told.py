"""What commands say in the end."""

import numpy as np
import pandas as pd
import pytest

from vit_analysis.shell import told, verdicts


def similar(values: dict[tuple[str, str], list[list[float]]]) -> pd.DataFrame:
    rows = [
        {
            "model": model,
            "layer": f"{model}{i}",
            "other_model": other,
            "other_layer": f"{other}{j}",
            "cka": value,
        }
        for (model, other), matrix in values.items()
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
    ]
    table = pd.DataFrame(rows)
    table.attrs["measure"] = "cka"
    return table


def test_similarity_is_told_by_its_mean_off_the_diagonal_and_its_best_match():
    table = similar(
        {
            ("v", "v"): [[1.0, 0.5], [0.5, 1.0]],
            ("v", "r"): [[0.1, 0.2], [0.3, np.nan]],
            ("r", "v"): [[0.1, 0.3], [0.2, np.nan]],
            ("r", "r"): [[1.0, 0.25], [0.25, 1.0]],
        }
    )
    assert told.cka(table) == [
        "mean CKA of different layers: v 0.50; r 0.25",
        "most alike of v and r: v1 and r0, CKA 0.30",
    ]


def test_models_beyond_the_first_few_are_counted():
    table = similar({(name, name): [[1.0, 0.5], [0.5, 1.0]] for name in "abcdef"})
    assert told.cka(table) == [
        "mean CKA of different layers: a 0.50; b 0.50; c 0.50; d 0.50; 2 more in the table"
    ]


def test_layers_without_similarity_are_not_told_as_nan():
    table = similar(
        {("v", "v"): [[1.0, np.nan], [np.nan, np.nan]], ("v", "r"): [[np.nan]], ("r", "r"): [[1.0]]}
    )
    assert len(told.cka(table)) == 1


def test_the_block_that_is_needed_most_is_told():
    table = pd.DataFrame(
        {"model": "v", "block": ["b0", "b1", "b2"], "drop": [0.1, 0.4, 0.2], "reference": "labels"}
    )
    assert told.lesions(table) == [
        "accuracy lost without the skip connections of one block: v 40.0% at b1, 20.0% at the median block"
    ]


FOUND = pd.DataFrame(
    {
        "id": ["F1a", "L10"],
        "claim": ["Layers of a Vision Transformer are more alike than those of a ResNet, all along", "Short"],
        "value": [0.0774, np.nan],
        "low": [0.0706, np.nan],
        "high": [0.0841, np.nan],
        "verdict": ["reproduced", "not measured"],
        "difference": [1, 0],
    }
)


@pytest.mark.parametrize("columns", [40, 60, 80, 200])
def test_verdicts_fit_the_terminal(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = verdicts.table(FOUND)
    assert all(len(verdicts.MARGIN) + len(line) <= columns for line in lines)
    assert [line.split()[0] for line in lines] == ["F1a", "L10"]
    if columns >= 60:
        assert "0.0774 [0.0706, 0.0841]  reproduced" in lines[0]
    assert (FOUND["claim"][0] in lines[0]) == (columns == 200)
    if columns == 80:
        assert lines[0].endswith("...")


def test_what_was_drawn_is_told_with_where_it_lies_and_what_could_not_be(tmp_path):
    one = {"1": tmp_path / "figure_1.png"}
    assert verdicts.drawn(one) == [f"1 picture: {tmp_path / 'figure_1.png'}"]
    several = {
        **one,
        "2": tmp_path / "figure_2.png",
        "G.1": "needs a fine-tuned Vision Transformer (--tuned)",
    }
    assert verdicts.drawn(several) == [f"2 pictures in {tmp_path}; not drawn, as said above: G.1"]


def test_of_heads_distance_entropy_and_information_are_told():
    rows = [
        ("vit", "blocks.0", 20.0, 1.0, 0.25),
        ("vit", "blocks.0", 40.0, 1.5, 0.35),
        ("vit", "blocks.1", 50.0, 2.5, 0.0),
    ]
    table = pd.DataFrame(rows, columns=["model", "block", "distance_px", "entropy", "nmi"]).assign(
        uniform_entropy=5.0
    )
    assert told.attention_distance(table) == [
        "heads look, on average over images, vit 20.0 to 40.0 px in blocks.0 and 50.0 to 50.0 px in blocks.1",
        "heads of the first and the last block have vit 25 % and 50 % of the entropy of uniform attention, mutual information "
        "0.30 and 0.00",
    ]
