"""Findings for a paper and a spreadsheet: what is written can be read again, whatever names and claims hold."""

import io
import json
import re
import string
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vit_analysis import findings, table
from vit_analysis.study import casts, rules, written

WORDS = {  # what LaTeX prints for its commands
    "textbackslash": "\\",
    "textasciitilde": "~",
    "textasciicircum": "^",
    "textless": "<",
    "textgreater": ">",
    "textbar": "|",
    "textquotedbl": '"',
    "textasciigrave": "`",
}
SIGN = re.compile(r"\\([a-z]+)\{\}|\\([&%$#_{}])|\{\}|([^\\{}&%$#_~^<>|\"`])", re.DOTALL)


def printed(text: str) -> str:
    """What LaTeX with T1 fonts prints of a text: refuses what it would read as anything else than signs."""
    assert "--" not in text  # a dash
    assert not re.search(r"\s{2}", text.replace("{}", "x"))
    found, at = [], 0
    while at < len(text):
        match = SIGN.match(text, at)
        assert match, text[at:]
        word, special, plain = match.groups()
        found.append(WORDS[word] if word else special or plain or "")
        at = match.end()
    return "".join(found)


@given(st.text(st.sampled_from(string.printable + "äß漢\N{EN DASH}"), max_size=30))
def test_latex_prints_a_text_as_it_is(text):
    shown = re.sub(r"[\x00-\x1f\x7f]+", " ", text)
    if not re.search(r"  ", shown):  # it prints several blanks as one
        assert printed(written.escaped(text)) == shown


@pytest.mark.parametrize("sign", [*string.punctuation, "--", "---", "<<", ">>", "?`", "!`", "{}", "\\\\"])
def test_every_sign_is_printed_as_itself(sign):
    assert printed(written.escaped(f"a{sign}b")) == f"a{sign}b"


def claims() -> pd.DataFrame:
    rows = [
        (
            "F1a",
            r"50 % of a_b & {c} \ d -- e",
            0.1 + 0.2,
            1e-5,
            -2 / 3,
            1.0,
            1e-9,
            "reproduced",
            [1 / 3, 2.0],
        ),
        ("Z1", "not\nmeasured", np.nan, np.nan, np.nan, 0.0, np.nan, "not measured", []),
    ]
    names = ["id", "claim", "value", "low", "high", "tau", "p", "verdict", "runs"]
    found = pd.DataFrame(rows, columns=names)
    control = {"value": 1 / 7, "low": 0.0, "high": 1.0, "verdict": "reproduced"}
    found["controls"] = [{"untrained twins": control}, {}]
    found = found.assign(figure="1", paper="so", statistic="x", because="", threshold="> 0", reason="")
    found = found.assign(threshold_from="the paper", difference=[1, 0], in_size=True, models="lab/vit")
    found = found.assign(
        paper_low=[20.0, np.nan], paper_high=[40.0, np.nan], paper_unit="px", paper_of="the paper: ViT-L"
    )
    found = found.assign(here=[-31.41, np.nan], substitution=["direction only: a_b for ViT-L", ""])
    return table.with_provenance(found, "findings", models={"lab/vit_a": "1", "100%": "2"}, notes=[])


def test_the_table_of_latex_is_whole_and_says_what_it_needs():
    found = claims()
    text = written.latex(found, findings.differences(found))
    for package in ("booktabs", "longtable", "array"):
        assert package in text.split("\\begin")[0]
    assert text.count("\\begin{longtable}") == text.count("\\end{longtable}") == 1
    assert text.count("\\begingroup") == text.count("\\endgroup") == 1
    code = re.sub(r"(?<!\\)%.*", "", text)
    assert re.sub(r"\\[{}]", "", code).count("{") == re.sub(r"\\[{}]", "", code).count("}")
    rows = [line for line in text.splitlines() if line.startswith(("F1a", "Z1"))]
    assert len(rows) == 2
    for row in rows:
        assert row.endswith(r" \\")
        assert len(re.findall(r"(?<!\\)&", row)) == 5
    first = [
        printed(cell.replace("$-$", "-")) for cell in re.split(r" (?<!\\)& ", rows[0].removesuffix(r" \\"))
    ]
    assert first == [
        "F1a",
        r"50 % of a_b & {c} \ d -- e",
        "0.3 [1e-05, -0.667] (printed: 20 to 40 px; here -31.4)",
        "> 0",
        "< 1e-6",
        "reproduced (substitution: direction only)",
    ]
    assert "lab/vit\\_a, 100\\%" in text
    assert r"\textbf{1. Layers of a Vision Transformer" in text
    assert "nan" not in text


def test_the_flat_table_keeps_every_digit():
    found = claims()
    back = pd.read_csv(io.StringIO(written.flat(found)), keep_default_na=False, na_values={"value": [""]})
    assert len(back) == len(found)
    assert set(back) == set(found)
    assert back["value"][0] == 0.1 + 0.2
    assert np.isnan(back["value"][1])
    assert back["claim"].tolist() == found["claim"].tolist()
    assert json.loads(back["runs"][0]) == [1 / 3, 2.0]
    assert json.loads(back["controls"][0]) == found["controls"][0]


def test_all_files_of_findings_are_ours_and_those_of_others_are_not(tmp_path):
    out = tmp_path / "findings"
    for _ in range(2):  # the second replaces the first
        findings.write(claims(), out)
    files = findings.files(out)
    assert sorted(tmp_path.iterdir()) == sorted(files)
    assert {file.suffix for file in files} == {".parquet", ".md", ".tex", ".csv"}
    assert all(table.is_ours(file) for file in files)


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("paper.tex", "\\documentclass{article}\n% Findings, made by vit_analysis.\n"),
        ("findings.tex", "% Findings of mine, made with vit_analysis.\n"),
        ("a.csv", "id,figure,claim\n"),
        ("b.csv", "name\nid,figure,claim,paper,statistic,value,low,high,p,verdict,because,\n"),
    ],
)
def test_a_text_of_a_user_is_kept(tmp_path, name, contents):
    file = tmp_path / name
    file.write_text(contents)
    assert not table.is_ours(file)
    if file.stem == "findings":
        findings.write(claims(), Path(tmp_path / "findings"))
        assert (tmp_path / "findings.1.tex").read_text() == contents


def test_findings_begin_with_who_plays_v_and_r_and_not_with_every_model():
    found = pd.DataFrame()
    found.attrs = {"models": dict.fromkeys("abcde", "0"), "parts": {"vit": [["b", "c"]], "cnn": [["a"]]}}
    assert written._of_whom(found) == (
        "Of b (V) and a (R), with 3 more models, training runs and untrained twins included."
    )
    found.attrs["parts"] = {"vit": [], "cnn": [["a"]]}
    assert written._of_whom(found).startswith("Of a (R), with 4 more models")
    del found.attrs["parts"]
    assert written._of_whom(found) == "Of a, b, c, d, e."


def cells(text: str, name: str) -> dict[str, str]:
    """The row of a claim in a table of Markdown, by the heads of its columns."""
    lines = [
        re.split(r" (?<!\\)\| ", f" {line} ")[1:-1] for line in text.splitlines() if line.startswith("| ")
    ]
    heads = next(line for line in lines if line[0] == "id")
    return dict(zip(heads, next(line for line in lines if line[0] == name), strict=True))


def test_the_number_of_the_paper_stands_beside_the_same_of_these_models():
    found = claims()
    text = written.markdown(found, findings.differences(found))
    first, second = (cells(text, name) for name in ("F1a", "Z1"))
    assert first["its number"] == "20 to 40 px (the paper: ViT-L)"
    assert first["the same here"] == "-31.4"
    assert first["substitution"] == "direction only: a_b for ViT-L"
    assert (second["its number"], second["the same here"]) == ("", "")
    one = found.assign(paper_high=found["paper_low"], here=np.nan)
    first = cells(written.markdown(one, findings.differences(one)), "F1a")
    assert first["its number"] == "20 px (the paper: ViT-L)"
    assert first["the same here"] == "not measured"


def test_every_cell_of_a_claim_is_what_it_says():
    found = claims().assign(because=["b", ""], reason=["r", "no model"])
    text = written.markdown(found, findings.differences(found))
    shared = {"figure": "1", "the paper": "so", "statistic": "x", "wanted": "> 0 (the paper)"}
    assert cells(text, "F1a") == shared | {
        "id": "F1a",
        "claim": r"50 % of a_b & {c} \ d -- e",
        "its number": "20 to 40 px (the paper: ViT-L)",
        "the same here": "-31.4",
        "number": "0.3 [1e-05, -0.667]",
        "training runs": "0.333, 2",
        "p (Holm)": "< 1e-6",
        "verdict": "**reproduced**: b; r",
        "controls": "untrained twins 0.143",
        "substitution": "direction only: a_b for ViT-L",
    }
    empty = ("its number", "the same here", "number", "training runs", "p (Holm)", "controls", "substitution")
    assert cells(text, "Z1") == shared | dict.fromkeys(empty, "") | {
        "id": "Z1",
        "claim": "not measured",
        "verdict": "**not measured**: no model",
    }
    line = next(line for line in text.splitlines() if line.startswith("1. **"))
    assert line.endswith(": reproduced. F1a 0.3 [1e-05, -0.667] reproduced.")
    (under,) = (line for line in text.splitlines() if set(line) == {*"|-:"} and line.count("|") == 15)
    right = [number for number, own in enumerate(under.strip("|").split("|")) if own == "--:"]
    assert [list(cells(text, "F1a"))[number] for number in right] == [
        "the same here",
        "number",
        "training runs",
        "p (Holm)",
    ]


@pytest.mark.parametrize(
    ("p", "told"),
    [(np.nan, ""), (1e-7, "< 1e-6"), (1e-6, "1e-06"), (0.0234, "0.02"), (0.5, "0.5"), (1.0, "1")],
)
def test_a_p_has_one_digit(p, told):
    found = claims().assign(p=p)
    assert cells(written.markdown(found, findings.differences(found)), "F1a")["p (Holm)"] == told


def test_an_interval_is_told_where_it_is_known():
    found = claims().assign(value=[1.0, -2.5], low=np.nan, high=np.nan)
    text = written.markdown(found, findings.differences(found))
    assert [cells(text, name)["number"] for name in ("F1a", "Z1")] == ["1", "-2.5"]


@pytest.mark.parametrize(
    "verdicts", [["reproduced", "fragile"], ["fragile", "fragile"], ["not measured"] * 2]
)
def test_verdicts_are_counted_in_the_order_of_their_meanings(verdicts):
    order = list(rules.WORDS)
    expected = sorted({*verdicts}, key=order.index)
    told = "; ".join(f"{verdicts.count(word)} {word}" for word in expected)
    assert written.counts(claims().assign(verdict=verdicts)) == f"{told}."


def test_notes_are_paragraphs_of_their_own():
    found = claims()
    found.attrs["notes"] = ["few images", "old tables"]
    text = written.markdown(found, findings.differences(found))
    assert f"\n\n*few images.*\n\n*old tables.*\n\n{written.counts(found)}\n\n" in text


def test_claims_of_no_difference_stand_under_others_in_latex_and_nowhere_else():
    found = claims()
    before, others = written.latex(found, findings.differences(found)).split(r"\textbf{Others}")
    assert before.count("\nF1a & ") == others.count("\nZ1 & ") == 1
    assert "\nZ1 & " not in before
    assert "\nF1a & " not in others


def test_who_stands_for_whom_is_told_where_a_model_is_of_a_cast_only():
    found = claims()
    plain = found.assign(substitution="")
    text = written.markdown(plain, findings.differences(plain))
    assert "stands for whom" not in text
    assert "substitution" not in text
    assert "substitution" not in written.latex(plain, findings.differences(plain))
    member = casts.PAPER.members["vit"][0]
    found.attrs["models"] = {member.model: "1"}
    text = written.markdown(found, findings.differences(found))
    assert f"| {member.model} | {member.paper} | {member.instead} |" in text
    assert all(f"**{word}**: {meaning}" in text for word, meaning in casts.MEANINGS.items())
