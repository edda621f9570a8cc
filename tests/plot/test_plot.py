import inspect
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from plot_tables import findings

from vit_analysis import plot, table
from vit_analysis.plot import axes
from vit_analysis.plot.__main__ import main

MODELS = {
    "vit": [f"blocks.{n}{part}" for n in range(4) for part in (".attn", "")],
    "resnet": [f"layer{stage}.{unit}" for stage in (1, 2, 3) for unit in (0, 1)],
    "mixer": ["blocks.0", "blocks.1", "blocks.2"],
}


def similarities(*models: str) -> pd.DataFrame:
    places = [
        (model, layer, i / (len(MODELS[model]) - 1))
        for model in models
        for i, layer in enumerate(MODELS[model])
    ]
    rows = [
        (*place, *other, 1.0 if place == other else (10 * i + j) % 97 / 100)
        for i, place in enumerate(places)
        for j, other in enumerate(places)
    ]
    columns = ["model", "layer", "depth", "other_model", "other_layer", "other_depth", "cka"]
    made = pd.DataFrame(rows, columns=columns)
    return table.with_provenance(
        made.assign(low=made["cka"] - 0.01, high=made["cka"] + 0.01), "cka", tokens="all", massive=[]
    )


def test_the_first_layer_is_at_the_bottom_left_and_every_cell_where_it_belongs():
    rows = similarities("resnet")
    ax = plot.heatmap(rows)
    (image,) = ax.images
    assert image.origin == "lower"
    np.testing.assert_array_equal(image.get_array(), rows["cka"].to_numpy().reshape(6, 6))
    assert (image.norm.vmin, image.norm.vmax) == (0, 1)


def test_axes_name_the_model_and_tick_its_depth():
    ax = plot.heatmap(similarities("resnet"))
    assert ax.get_xlabel() == ax.get_ylabel() == "resnet: depth (6 layers)"
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "0.25", "0.5", "0.75", "1"]
    assert ax.get_xticks().tolist() == [0, 1.25, 2.5, 3.75, 5]


def test_stages_are_marked_where_there_are_some():
    assert [
        line.get_xdata()[0] for line in plot.heatmap(similarities("resnet")).lines if line.get_xdata()[0] != 0
    ] == [1.5, 3.5]
    assert not plot.heatmap(similarities("vit")).lines


def test_several_models_in_one_square_are_separated_and_named():
    ax = plot.heatmap(similarities("vit", "mixer"))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["vit", "mixer"]
    assert 7.5 in [line.get_xdata()[0] for line in ax.lines]


@pytest.mark.parametrize("models", [("vit",), ("vit", "resnet"), ("vit", "resnet", "mixer")])
def test_one_panel_per_model_and_per_pair_on_one_colour_scale(models):
    figure = plot.cka(similarities(*models))
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == len(models) + len(models) * (len(models) - 1) // 2
    assert {(ax.images[0].norm.vmin, ax.images[0].norm.vmax) for ax in panels} == {(0, 1)}
    assert [ax.get_title() for ax in panels[: len(models)]] == list(models)
    if len(models) > 1:
        across = panels[
            len(models)
        ]  # the first model up, the second to the right, as in the paper's figure 2
        assert (across.get_ylabel(), across.get_xlabel()) == (
            "vit: depth (8 layers)",
            "resnet: depth (6 layers)",
        )
        assert across.images[0].get_array().shape == (8, 6)


def test_undefined_cells_are_not_drawn_as_zero():
    rows = similarities("resnet")
    rows.loc[0, "cka"] = np.nan
    image = plot.heatmap(rows).images[0]
    grey = image.to_rgba(image.get_array())[0, 0]
    assert grey[0] == grey[1] == grey[2] == 0.75


def test_dominated_layers_are_said_in_the_picture():
    rows = similarities("vit")
    rows.attrs["massive"] = [{"model": "vit", "layer": "blocks.3", "tokens": 0.02, "hsic": 0.99}]
    (told,) = [text.get_text().replace("\n", " ") for text in plot.cka(rows).texts]
    assert "vit: 1 of 8 layers" in told


def test_a_table_is_redrawn_without_computing(tmp_path):
    table.write(similarities("vit", "resnet"), tmp_path / "cka.parquet")
    main(tmp_path / "cka.parquet", tmp_path / "new" / "cka.png")
    assert (tmp_path / "new" / "cka.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_says_why(tmp_path):
    with pytest.raises(SystemExit, match="no table"):
        main(tmp_path / "nothing.parquet", tmp_path / "a.png")
    table.write(table.with_provenance(pd.DataFrame({"a": [1]}), "weather"), tmp_path / "a.parquet")
    with pytest.raises(SystemExit, match=r"is a table of 'weather'; there are pictures for cka"):
        main(tmp_path / "a.parquet", tmp_path / "a.png")
    table.write(similarities("vit"), tmp_path / "cka.parquet")
    with pytest.raises(SystemExit, match=r"error: .*a.xyz' is none of \*.png, \*.pdf, \*.svg"):
        main(tmp_path / "cka.parquet", tmp_path / "a.xyz")


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
def test_a_picture_drawn_again_is_ours_and_may_be_replaced(tmp_path, ending):
    table.write(similarities("vit"), tmp_path / "cka.parquet")
    for _ in range(2):
        main(tmp_path / "cka.parquet", tmp_path / f"cka{ending}")
        assert table.is_ours(tmp_path / f"cka{ending}")
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["holiday.png", "holiday.PNG", "thesis.pdf", "logo.svg"])
def test_a_picture_of_the_user_is_not_replaced(tmp_path, name):
    table.write(similarities("vit"), tmp_path / "cka.parquet")
    (tmp_path / name).write_bytes(b"years ago, before vit_analysis")
    with pytest.raises(SystemExit, match=rf"error: '.*{name}' is there and was not made by vit_analysis"):
        main(tmp_path / "cka.parquet", tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"years ago, before vit_analysis"


def test_files_that_cannot_be_read_or_written_are_sentences(tmp_path):
    whole, cut = tmp_path / "cka.parquet", tmp_path / "cut.parquet"
    table.write(similarities("vit"), whole)
    cut.write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "empty.parquet").touch()
    for name in ("cut", "empty"):
        with pytest.raises(SystemExit, match=rf"^error: .*{name}.parquet is no table that can be read: \S"):
            main(tmp_path / f"{name}.parquet", tmp_path / "a.png")
    with pytest.raises(SystemExit, match=r"^error: no table .*cka.parket; did you mean 'cka.parquet'"):
        main(tmp_path / "cka.parket", tmp_path / "a.png")
    with pytest.raises(SystemExit, match=r"^error: cannot write .*a.png: (File exists|Not a directory)"):
        main(whole, cut / "a.png")
    with pytest.raises(SystemExit, match=r"^error: .*File name too long"):
        main(whole, tmp_path / f"{'a' * 300}.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SystemExit, match=r"^error: .*folder.png' is there and was not made by vit_analysis"):
        main(whole, tmp_path / "folder.png")
    assert not list(tmp_path.glob("a*"))


def test_a_fault_in_a_picture_is_no_sentence(tmp_path, monkeypatch):
    table.write(similarities("vit"), tmp_path / "cka.parquet")
    monkeypatch.setattr(sys.modules[plot.cka.__module__], "Figure", lambda **_: np.zeros(2) + np.zeros(3))
    with pytest.raises(ValueError, match="operands could not be broadcast"):
        main(tmp_path / "cka.parquet", tmp_path / "a.png")


# Functions of a table.
DRAWING = [
    name
    for name in plot.__all__
    if name not in ("LAYOUTS", "PICTURES")
    and "table" in [next(iter(inspect.signature(getattr(plot, name)).parameters))]
]


def test_every_kind_of_table_is_drawn_by_its_picture():
    for kind, picture in plot.PICTURES.items():
        assert picture.__name__ in axes.FITTING[kind]
    assert {name for own in axes.FITTING.values() for name in own} <= set(plot.__all__)
    assert set(DRAWING) <= {name for own in axes.FITTING.values() for name in own}


@pytest.mark.parametrize("name", DRAWING)
def test_a_table_of_another_analysis_is_refused_with_what_draws_it(name):
    other = next(kind for kind in plot.PICTURES if name not in axes.FITTING[kind])
    rows = pd.DataFrame({"model": ["vit"]})
    rows.attrs["analysis"] = other
    with pytest.raises(
        ValueError,
        match=rf"plot\.{name} draws tables of \w+.*, and this is one of {other}; draw it with plot\.\w+",
    ):
        getattr(plot, name)(rows)


@pytest.mark.parametrize("column", ["cka", "depth", "layer"])
def test_a_column_that_a_picture_needs_is_named(column):
    with pytest.raises(
        ValueError,
        match=rf"plot\.heatmap needs the column '{column}', which this table has not; it draws tables of cka",
    ):
        plot.heatmap(similarities("vit").drop(columns=column))


def test_plot_imports_nothing_of_ours():
    code = "import sys, vit_analysis.plot; print(*(m for m in sys.modules if m.startswith(('vit_analysis.', 'torch'))))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(module.startswith("vit_analysis.plot") for module in ran.stdout.split())


def test_drawing_again_loads_no_torch(tmp_path):
    table.write(similarities("vit"), tmp_path / "cka.parquet")
    code = """
import runpy, sys
runpy.run_module("vit_analysis.plot", run_name="__main__", alter_sys=True)
print(*(m for m in ("torch", "timm", "tqdm", "scipy") if m in sys.modules))
"""
    call = [sys.executable, "-c", code, str(tmp_path / "cka.parquet"), str(tmp_path / "cka.png")]
    ran = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout.split()) == (0, []), ran.stderr
    assert (tmp_path / "cka.png").exists()


def again(folder, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "vit_analysis.plot",
        str(folder / "cka.parquet"),
        str(folder / "a.svg"),
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_table_is_drawn_again_for_a_paper(tmp_path):
    table.write(similarities("vit", "resnet", "mixer"), tmp_path / "cka.parquet")
    options = ("--width", "3.25", "--models", "resnet", "vit", "--names", "vit=ViT-B/16", "resnet=ResNet")
    ran = again(tmp_path, *options)
    assert ran.returncode == 0, ran.stderr
    svg = (tmp_path / "a.svg").read_text()
    assert ">ViT-B/16</text>" in svg
    assert svg.index(">ResNet</text>") < svg.index(">ViT-B/16</text>")
    assert "mixer" not in svg
    assert 'width="234pt"' in svg


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layout": "ckka"}, r"no layout 'ckka' of a table of cka; did you mean 'cka'\?"),
        ({"models": ("vti",)}, r"no model 'vti' in the table; did you mean 'vit'\?"),
        ({"names": ("vti=ViT",)}, r"--names: no model is called 'vti'; did you mean 'vit'\?"),
        ({"names": ("vit",)}, r"--names takes MODEL=NAME"),
        ({"width": 0.0}, r"--width is in inches, from 1 to 100"),
    ],
)
def test_a_mistake_in_how_to_draw_again_is_a_sentence_with_the_nearest_right(tmp_path, options, told):
    table.write(similarities("vit", "resnet"), tmp_path / "cka.parquet")
    with pytest.raises(SystemExit, match=f"^error: {told}"):
        main(tmp_path / "cka.parquet", tmp_path / "a.png", **options)
    assert not (tmp_path / "a.png").exists()


def test_an_ending_nearly_right_is_told(tmp_path):
    with pytest.raises(SystemExit, match=r"is none of \*.png, \*.pdf, \*.svg; did you mean '.svg'\?"):
        main(tmp_path / "cka.parquet", tmp_path / "a.svgz")


def test_findings_are_drawn_again_from_their_file(tmp_path):
    found = findings()
    nested = {name: found[name].map(json.dumps) for name in table.NESTED}
    table.write(found.assign(**nested), tmp_path / "findings.parquet")
    for layout in plot.LAYOUTS["findings"]:
        main(tmp_path / "findings.parquet", tmp_path / f"{layout}.png", layout=layout)
        assert table.is_ours(tmp_path / f"{layout}.png")
    with pytest.raises(SystemExit, match="error: --models: a table of findings has no rows by model"):
        main(tmp_path / "findings.parquet", tmp_path / "a.png", models=("vit",))


def test_a_square_of_a_model_has_its_mean_off_the_diagonal_and_one_of_two_the_best_match():
    rows = similarities("vit", "resnet")
    own, _, across = [ax for ax in plot.cka(rows).axes if ax.images]
    held = rows[
        (rows["model"] == "vit") & (rows["other_model"] == "vit") & (rows["layer"] != rows["other_layer"])
    ]
    assert [text.get_text() for text in own.texts] == [f"mean {held['cka'].mean():.2f}"]
    pair = rows[(rows["model"] == "vit") & (rows["other_model"] == "resnet")]
    best = pair.pivot(index="depth", columns="other_depth", values="cka").to_numpy().argmax(axis=0)
    (match,) = [line for line in across.lines if line.get_gid() == "match"]
    np.testing.assert_array_equal(match.get_ydata(), best)
    assert not [line for line in own.lines if line.get_gid() == "match"]
