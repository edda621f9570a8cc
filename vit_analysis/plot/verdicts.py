"""Verdicts on the findings: values beside their thresholds."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_analysis.plot.axes import draws, folded, literal, width

DIFFERENCES = {
    1: "1. Layers are more alike, shallow to deep",
    2: "2. Global information from the first layers on",
    3: "3. Skip connections matter more",
    4: "4. Spatial location is kept better",
    5: "5. Better middle layers with much data",
}
# Colour, marker, and whether the marker is filled: a claim that stands as it is, and one with a reservation.
STYLES = {
    "reproduced": ("#1f4e9c", "o", True),
    "reproduced, smaller than claimed": ("#1f4e9c", "o", False),
    "architectural": ("#5b6bb5", "^", False),
    "fragile": ("#b07d12", "D", False),
    "not reproduced": ("#b3261e", "s", True),
    "inconclusive": ("0.4", "D", True),
}
OTHER = ("0.4", "D", True)
LEGEND = (
    "architectural: untrained twins get there as well.   "
    "fragile: a control, a second measure or a training run takes it away.\n"
    "inconclusive: the interval holds the threshold, or what the claim rests on is missing.   small dots: training runs."
)
CLAIM, AXIS, POINTS = 3.5, 2.2, 8  # width of claims and of the axis in inches, size of letters
LINE = 1.3 * POINTS / 72  # inches
SPACE = 0.7  # lines between rows


@draws("findings")
@literal
def verdicts(findings: pd.DataFrame) -> Figure:
    """A row per finding: its value and interval beside its threshold, and the verdict in words.

    Each row has a linear scale of its own, on which the threshold lies in the middle and whatever is farthest from it at an
    edge: a row shows on which side its value lies, and how wide the interval is beside that distance. Training runs
    are small dots. Findings that were not measured, or have no threshold (NaN), are left out.

    Args:
        findings: columns id, claim, value, low, high, tau, verdict, and runs (a list) if there were several, in groups of
            ``difference`` (1-5) where there is that column, else of verdict.
    """
    measured = findings[findings["value"].notna() & findings["tau"].notna()].reset_index(drop=True)
    if "runs" not in measured:
        measured["runs"] = measured["id"].map(lambda _: [])
    columns = {  # what stands at the right of the axis
        "verdict": [str(row["verdict"]) for _, row in measured.iterrows()],
        "value [95 % interval]": [_value(row) for _, row in measured.iterrows()],
        "threshold": [f"{row['tau']:.3g}" for _, row in measured.iterrows()],
    }
    widths = [max(width(text, POINTS) for text in [name, *texts]) + 0.2 for name, texts in columns.items()]
    indents = [0.1, *(0.1 + np.cumsum(widths)).tolist()]
    claims = [folded(f"{row['id']}  {row['claim']}", CLAIM, POINTS) for _, row in measured.iterrows()]
    measured = measured.assign(written=claims)
    places = list(_places(measured))
    bottom = places[-1][0] + 1.5 if places else 1.0
    height = LINE * (bottom + 8)
    figure = Figure(figsize=(CLAIM + AXIS + indents[-1] + 0.1, height), layout="constrained", dpi=200)
    ax = figure.subplots()
    ax.set(xlim=(-1.1, 1.1), ylim=(bottom, -0.7), yticks=[])
    ax.axvline(0, color="0.3", linewidth=1, linestyle="--", zorder=1)
    for place, what in places:
        if isinstance(what, str):
            _write(ax, what, place, -CLAIM, fontweight="bold")
            continue
        row = measured.iloc[what]
        _mark(ax, row, place)
        _write(ax, row["written"], place, -CLAIM)
        colours = (_style(row)[0], "black", "black")
        for texts, indent, colour in zip(columns.values(), indents[:-1], colours, strict=True):
            _write(ax, texts[what], place, indent, color=colour)
    for name, indent in zip(columns, indents[:-1], strict=True):
        _write(ax, name, -1.2, indent, fontstyle="italic")
    _write(ax, LEGEND, bottom + 5.5, -CLAIM, color="0.3")
    ax.set_xticks([-1, 0, 1], ["below", "threshold", "above"], fontsize=POINTS)
    ax.set_xlabel("distance from the threshold,\neach row to its own scale", fontsize=POINTS)
    ax.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _places(measured: pd.DataFrame) -> Iterator[tuple[float, str | int]]:
    """Yield (middle in lines from the top, title of a group or number of a row), from top to bottom."""
    place = 0.0
    for title, rows in _groups(measured):
        if rows.empty:
            continue
        yield place + 0.5, title
        place += 1 + SPACE / 2
        for number, text in zip(rows.index.tolist(), rows["written"], strict=True):
            lines = text.count("\n") + 1
            yield place + lines / 2, number
            place += lines + SPACE
        place += SPACE


def _groups(measured: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    if "difference" in measured:
        for number, title in DIFFERENCES.items():
            yield title, measured[measured["difference"] == number]
        yield "Others", measured[~measured["difference"].isin(list(DIFFERENCES))]
    else:
        for verdict in dict.fromkeys([*STYLES, *measured["verdict"]]):
            yield str(verdict).capitalize(), measured[measured["verdict"] == verdict]


def _mark(ax: Axes, row: pd.Series, place: float) -> None:
    """Draw value and interval on the row's own scale."""
    colour, marker, filled = _style(row)
    away = np.array([row["value"], row["low"], row["high"], *row["runs"]], dtype=float) - row["tau"]
    farthest = np.abs(away[np.isfinite(away)]).max(initial=0.0)
    # Infinite ends stop at the frame.
    value, low, high, *runs = np.clip(away / (farthest if farthest > 0 else 1.0), -1.1, 1.1)
    ax.axhline(place, color="0.92", linewidth=0.8, zorder=0)
    ax.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2)
    ax.plot(runs, [place] * len(runs), ".", color=colour, markersize=4, zorder=4)
    face = colour if filled else "white"
    ax.plot(value, place, marker, color=colour, markerfacecolor=face, markersize=6, zorder=3)


def _write(ax: Axes, text: str, place: float, inches: float, **style: Any) -> None:
    """Write a text at the height of a row, ``inches`` to the right of the axis, or to its left where negative."""
    ax.annotate(
        text,
        (float(inches > 0), place),
        (72 * inches, 0),
        xycoords=ax.get_yaxis_transform(),
        textcoords="offset points",
        verticalalignment="center",
        annotation_clip=False,
        fontsize=POINTS,
        **style,
    )


def _style(row: pd.Series) -> tuple[str, str, bool]:
    return STYLES.get(row["verdict"], OTHER)


def _value(row: pd.Series) -> str:
    known = row[["low", "high"]].notna().all()
    return f"{row['value']:.3g}" + (f" [{row['low']:.3g}, {row['high']:.3g}]" if known else "")
