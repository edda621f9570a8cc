"""Pictures as files: fonts whole, text as text, the same bytes each time, the letters' size that of the page."""

import re
import zlib

import pytest
from matplotlib.figure import Figure
from PIL import Image
from plot_tables import findings

from vit_analysis import plot, table


def written(path, **style) -> bytes:
    with plot.style(**style):
        table.write_picture(plot.five_differences(findings()), path)
    return path.read_bytes()


def objects(pdf: bytes) -> bytes:
    """A PDF with its streams of data expanded."""
    found = [pdf]
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            found.append(zlib.decompress(stream))
        except zlib.error:
            continue
    return b"\n".join(found)


@pytest.mark.parametrize("ending", [".png", ".pdf", ".svg"])
def test_the_same_table_gives_the_same_bytes(tmp_path, ending):
    first, second = (written(tmp_path / f"{name}{ending}") for name in "ab")
    assert first == second
    assert table.is_ours(tmp_path / f"a{ending}")


def test_a_pdf_has_its_fonts_whole_and_no_type_3(tmp_path):
    pdf = objects(written(tmp_path / "a.pdf"))
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf  # TrueType
    assert b"/CIDFontType2" in pdf
    assert b"CreationDate" not in pdf


def test_an_svg_has_its_text_as_text(tmp_path):
    svg = written(tmp_path / "a.svg", names={"a": "A"}).decode()
    assert "<text" in svg
    assert ">verdict</text>" in svg
    assert "<dc:date>" not in svg


@pytest.mark.parametrize("wide", [3.25, 6.75])
def test_a_file_is_as_wide_as_asked_for(tmp_path, wide):
    written(tmp_path / "a.png", width=wide)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width == int(200 * wide)
        assert picture.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    (box,) = re.findall(rb"/MediaBox \[ 0 0 ([0-9.]+) ", objects(written(tmp_path / "a.pdf", width=wide)))
    assert float(box) == pytest.approx(72 * wide, abs=1e-3)


def test_settings_of_the_user_stay_as_they_are(tmp_path):
    import matplotlib as mpl

    with mpl.rc_context({"pdf.fonttype": 3, "svg.fonttype": "path"}):
        table.write_picture(Figure(), tmp_path / "a.pdf")
        assert (mpl.rcParams["pdf.fonttype"], mpl.rcParams["svg.fonttype"]) == (3, "path")
