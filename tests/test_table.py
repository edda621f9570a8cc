import json
import os

import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin

from vit_analysis import table
from vit_analysis.spelling import Refusal


def test_provenance_travels_with_the_table(tmp_path):
    result = table.with_provenance(
        pd.DataFrame({"cka": [0.5]}), "cka", models={"lab/vit": "abc"}, images={"count": 3}
    )
    table.write(result, tmp_path / "new" / "a.parquet")
    back = table.read(tmp_path / "new" / "a.parquet")
    pd.testing.assert_frame_equal(back, result)
    assert back.attrs == result.attrs
    assert back.attrs["analysis"] == "cka"
    assert {"torch", "torchvision", "timm", "numpy", "pillow", "vit-analysis"} == set(back.attrs["versions"])


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def half_way(part):
        part.write_text("half of")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        table.write_whole(path, half_way)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "name", [".part-of-my-thesis", f"{table.PART}of-my-thesis", f"{table.PART}notes.txt"]
)
def test_folders_and_files_of_a_user_stay_whatever_their_name_and_age(tmp_path, name):
    """A folder with our prefix but without our sign, one with the prefix of earlier versions, a file."""
    own = tmp_path / name
    if own.suffix:
        own.write_text("chapter 1")
    else:
        (own / "chapters").mkdir(parents=True)
        (own / "chapters" / "1.txt").write_text("chapter 1")
    for path in (*own.rglob("*"), own):
        os.utime(path, (0, 0))
    table.write_whole(tmp_path / "a.txt", lambda part: part.write_text("whole"))
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, "a.txt"])
    assert [file.read_text() for file in (own, *own.rglob("*")) if file.is_file()] == ["chapter 1"]


def test_what_is_written_with_has_our_sign(tmp_path):
    def look(part):
        assert part.parent.name.startswith(table.PART)
        assert (part.parent / table.SIGN).is_file()
        part.write_text("whole")

    table.write_whole(tmp_path / "a.txt", look)
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_a_misspelt_column_or_file_names_the_nearest_right_one(tmp_path):
    with pytest.raises(Refusal, match="no column 'ckaa'; did you mean 'cka'"):
        table.column(pd.DataFrame({"cka": [1.0]}), "ckaa")
    table.write(pd.DataFrame({"cka": [0.5]}), tmp_path / "cka.parquet")
    with pytest.raises(FileNotFoundError, match=r"no table .*ckq.parquet; did you mean 'cka.parquet'"):
        table.read(tmp_path / "ckq.parquet")


def test_the_digest_of_the_code_changes_with_any_file_that_tables_come_from(tmp_path, monkeypatch):
    for name in ("table.py", "cka.py", "reading/stream.py", "plot/axes.py", "study/claims.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(table, "__file__", str(tmp_path / "table.py"))
    plain = table.code.__wrapped__()
    for name, changes in {
        "cka.py": True,
        "reading/stream.py": True,
        "plot/axes.py": False,
        "study/claims.py": False,
    }.items():
        (tmp_path / name).write_text("2")
        assert (table.code.__wrapped__() != plain) is changes, name
        (tmp_path / name).write_text("1")


def test_rows_of_one_layer_share_its_depth():
    places = [
        ["a", "x", "cls"],
        ["a", "x", "spatial"],
        ["a", "y", "cls"],
        ["a", "z", "cls"],
        ["b", "x", "cls"],
    ]
    placed = table.placed(places, "token")
    assert list(placed.columns) == ["model", "layer", "depth", "token"]
    assert placed["depth"].tolist() == [0, 0, 0.5, 1, 0]


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg", ".PNG"])
def test_pictures_are_known_again(tmp_path, ending):
    figure = Figure()
    figure.subplots().plot([1, 2])
    table.write_picture(figure, tmp_path / f"ours{ending}")
    figure.savefig(tmp_path / f"theirs{ending}")
    assert table.is_ours(tmp_path / f"ours{ending}")
    assert not table.is_ours(tmp_path / f"theirs{ending}")


@pytest.mark.parametrize("software", ["vit_analysis_of_mine", "my vit_analysis", "Matplotlib"])
def test_a_picture_of_another_program_is_not_ours(tmp_path, software):
    said = PngImagePlugin.PngInfo()
    said.add_text("Software", software)
    said.add_text("Title", "a picture of vit_analysis")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", pnginfo=said)
    assert not table.is_ours(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("findings.md", "# Findings\n\nOf my walk through vit_analysis.\n"),
        ("notes.md", "Read the report of vit_analysis.\n"),
        ("report.html", "<!DOCTYPE html>\n<title>My vit_analysis report</title>\n"),
        ("skip.parquet", "no table"),
        ("a.txt", "vit_analysis"),
        ("a", ""),
    ],
)
def test_a_text_of_a_user_is_not_ours(tmp_path, name, contents):
    (tmp_path / name).write_text(contents)
    assert not table.is_ours(tmp_path / name)
    assert not table.is_ours(tmp_path)


def test_facts_cost_nothing_to_copy_and_are_what_they_were():
    """Pandas copies ``attrs`` in depth at every step, and a study's facts are thousands of numbers."""
    rows = table.with_provenance(
        pd.DataFrame({"a": [1, 2]}), "cka", models={"m": "1"}, massive=[{"layer": "x"}]
    )
    part = rows[rows["a"] > 1].reset_index(drop=True)
    assert part.attrs == rows.attrs
    assert part.attrs["models"] is rows.attrs["models"]
    assert part.attrs["massive"] is rows.attrs["massive"]
    assert json.loads(json.dumps(part.attrs))["models"] == {"m": "1"}


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
def test_a_picture_knows_what_it_was_drawn_from(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    figure = Figure()
    figure.subplots().plot([1, 2])
    table.write_picture(figure, path, "drawn from 0123456789abcdef")
    assert table.is_ours(path)
    assert table.is_stamped(path, "drawn from 0123456789abcdef")
    assert not table.is_stamped(path, "drawn from 0123456789abcdee")
    assert not table.is_stamped(path, "")  # what has no key is drawn again
    path.write_bytes(b"drawn from 0123456789abcdef")
    assert not table.is_stamped(path, "drawn from 0123456789abcdef")  # a user's own file
