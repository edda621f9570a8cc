"""Verdicts on the findings: how far each number lies on the side that its claim wants, and what was made of it."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vit_analysis.plot.axes import draws, literal
from vit_analysis.plot.rows import SIDE, STYLES, Line, Row, picture

DIFFERENCES = {
    1: "Layers are more alike, from shallow to deep",
    2: "Global information from the first layers on",
    3: "Skip connections matter more",
    4: "Spatial location is kept better",
    5: "Better middle layers with much data",
}
UNTRAINED = "untrained twins"  # a control of the claims
MEANINGS = (
    "Architectural: untrained twins get there as well. Fragile: a control, a second measure or a training run takes it away. "
    "Inconclusive: the interval holds the threshold, or what the claim rests on is missing."
)


@draws("findings")
@literal
def verdicts(findings: pd.DataFrame) -> Figure:
    """A row per finding, the wanted side to the right, with its number, interval, training runs and verdict in words.

    In units of the size of the paper's words, where these say how large; else each row has a scale of its own and is dotted.
    Findings that were not measured, or are not about one side of a threshold, are named below.

    Args:
        findings: columns id, claim, value, low, high, tau, verdict, and where they are there wanted, size, runs, controls; in
            groups of ``difference`` (1-5) where there is that column, else of verdict.
    """
    drawn = _drawable(findings)
    lines = []
    for title, rows in _groups(drawn):
        if len(rows):
            lines += [Line(title), *(_line(row) for _, row in rows.iterrows())]
    left_out = [str(name) for name in findings["id"] if name not in set(drawn["id"])]
    note = f"Not drawn: {', '.join(left_out)}." if left_out else ""
    return picture(findings, lines, "Every claim, measured", note)


@draws("findings")
@literal
def five_differences(findings: pd.DataFrame) -> Figure:
    """The course notes' five differences on one screen: the claims of each, the wanted side to the right, and the verdicts.

    Args:
        findings: columns of `verdicts`, and difference; verdicts on the differences in ``attrs["differences"]``, by number.
    """
    drawn = _drawable(findings)
    whole = findings.attrs.get("differences", {})
    lines = []
    for number, title in DIFFERENCES.items():
        rows = drawn[drawn["difference"] == number]
        if len(rows):
            lines += [Line(f"{number}. {title}", str(whole.get(str(number), "")))]
            lines += [_line(row, shortly=True) for _, row in rows.iterrows()]
    return picture(findings, lines, "Five differences of a ViT from a CNN", MEANINGS)


def _drawable(findings: pd.DataFrame) -> pd.DataFrame:
    """The findings that have a number and a side of a threshold that is wanted."""
    known = findings.assign(
        wanted=findings.get("wanted", 1.0), size=findings.get("size", math.nan), zero=findings["tau"]
    )
    # A finding that has to be near a number above 0 has no single threshold: 0 is its zero, and the number its size.
    known["zero"] = known["tau"].where(known["tau"].notna() | known["size"].isna(), 0.0)
    return known[known["value"].notna() & known["zero"].notna() & (known["wanted"] != 0)]


def _groups(drawn: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    if "difference" in drawn:
        for number, title in DIFFERENCES.items():
            yield f"{number}. {title}", drawn[drawn["difference"] == number]
        yield "Others", drawn[~drawn["difference"].isin(list(DIFFERENCES))]
    else:
        for verdict in dict.fromkeys([*STYLES, *drawn["verdict"]]):
            yield str(verdict).capitalize(), drawn[drawn["verdict"] == verdict]


def _line(row: pd.Series, *, shortly: bool = False) -> Line:
    text = str(row["claim"])
    if shortly:
        text = text.replace("Vision Transformer", "ViT").replace("ResNet", "CNN")
    else:
        known = not (math.isnan(row["low"]) or math.isnan(row["high"]))
        interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if known else ""
        text += (
            f"\n{row['value']:.3g}{interval}, wanted {'<' if row['wanted'] < 0 else '>'} {row['zero']:.3g}"
        )
        text += f", in size {row['size']:.3g}" if not math.isnan(row["size"]) else ""
    return Line(text, str(row["verdict"]), _scaled(row), str(row["id"]))


def _scaled(row: pd.Series) -> Row:
    runs, controls = list(row.get("runs", [])), row.get("controls", {})
    untrained = controls[UNTRAINED]["value"] if UNTRAINED in controls else math.nan
    numbers = np.array([row["value"], row["low"], row["high"], untrained, *runs], dtype=float)
    away = (numbers - row["zero"]) * row["wanted"]
    unit, sized = abs(row["size"] - row["zero"]), not math.isnan(row["size"])
    if not sized:
        unit = np.abs(away[np.isfinite(away)]).max(initial=0.0) / SIDE or 1.0
    value, *ends, twin = (away[:4] / unit).tolist()
    low, high = ends if row["wanted"] > 0 else ends[::-1]
    return Row(value, low, high, tuple((away[4:] / unit).tolist()), twin, sized)
