"""A picture of rows, each a statement, what was measured of it beside its threshold, and a verdict in words."""

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.transforms import blended_transform_factory

from vit_analysis.plot.fitting import EDGE, SPACING, caption, folded
from vit_analysis.plot.style import NARROW, page_width, points

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
WORDS = {"partly reproduced": STYLES["reproduced"][0]}  # of differences alone
LEAST, MOST = -1.5, 3.5  # units that are drawn; an arrow stands for what is farther
SPACE, HEAD = 0.45, 3.6  # lines of text between rows, and above them
FOOT = 1.8  # lines below them, beside a second one of the legend
INDENT = 4.2  # sizes of a letter that claims stand to the right of their ids
SIDE = 0.5  # units to the farthest mark of a row that has no size
SCALE = (
    "0 is the threshold of a claim, 1\N{MULTIPLICATION SIGN} an effect as large as the paper says; on dotted rows, where it "
    "does not say how large, only the side counts."
)


class Row(NamedTuple):
    """What is drawn of a finding: numbers in units of its size, so that 0 is the threshold and the wanted side is above.

    Attributes:
        value: the finding; ``low`` and ``high`` are the ends of its interval.
        low: see there.
        high: see there.
        runs: the same in every training run.
        untrained: the same of untrained twins; NaN where they were not asked.
        sized: whether 1 is the size of the paper's words; else whatever lies farthest is at `SIDE`.
    """

    value: float
    low: float
    high: float
    runs: tuple[float, ...]
    untrained: float
    sized: bool


class Line(NamedTuple):
    """A line of the picture: a finding, or the title of a group where ``row`` is None."""

    text: str
    verdict: str = ""
    row: Row | None = None
    id: str = ""


class Page(NamedTuple):
    """Sizes of a picture in inches, and of its letters in points.

    Attributes:
        wide: of all.
        left: of what stands left of the axis.
        axis: of the axis.
        size: of the letters.
    """

    wide: float
    left: float
    axis: float
    size: float

    @property
    def indent(self) -> float:
        """How far claims stand to the right of their ids."""
        return INDENT * self.size / 72

    def folded(self, line: Line) -> Line:
        """The line with its words broken to fit."""
        bold = 1.0 if line.row else 1.1  # wider
        room = self.left - self.indent if line.row else self.left + self.axis
        text = [folded(own, room - 3 * EDGE, bold * self.size) for own in line.text.splitlines()]
        verdict = folded(line.verdict, self.wide - self.left - self.axis - 3 * EDGE, bold * self.size)
        return line._replace(text="\n".join(text), verdict=verdict)


def picture(findings: pd.DataFrame, lines: list[Line], title: str, note: str) -> Figure:
    """Draw lines from top to bottom: their words at the left, what was measured, and the verdict at the right."""
    wide, size = page_width(7.5), points(7)
    left, axis = (0.42 * wide, 0.32 * wide) if wide < NARROW else (0.505 * wide, 0.26 * wide)
    page = Page(wide, left, axis, size)
    lines = [page.folded(line) for line in lines]
    tall = [max(line.text.count("\n"), line.verdict.count("\n")) + 1 + SPACE for line in lines]
    step = SPACING * size / 72  # inches of a line
    head, foot, rows = HEAD * step, (FOOT + 1.4 * (wide < NARROW)) * step, step * max(1.0, sum(tall))
    high = head + rows + foot
    figure = Figure(figsize=(wide, high), dpi=200)
    ax = figure.add_axes((left / wide, foot / high, axis / wide, rows / high))
    ax.set(xlim=(LEAST - 0.2, MOST + 0.2), ylim=(max(sum(tall), 1.0), 0), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    _scale(ax, size, wide < NARROW)
    _write(ax, title, 0.9 - HEAD, EDGE - left, 1.25 * size, fontweight="bold")
    told = "effect" if wide < NARROW else "effect, as a multiple of the paper's"
    _write(ax, told, -0.95, -2 * EDGE, size, color="0.35", horizontalalignment="right")
    _write(ax, "verdict", -0.95, 2 * EDGE, size, color="0.35")
    for line, top, count in zip(lines, np.cumsum([0.0, *tall]).tolist(), tall, strict=False):
        _draw(ax, line, top, count, page)
    _legend(figure, ax, size)
    caption(figure, findings, SCALE, note)
    return figure


def _draw(ax: Axes, line: Line, top: float, count: float, page: Page) -> None:
    """Draw a line that is ``count`` lines of text high."""
    middle, indent, weight = top + count / 2, EDGE - page.left, "normal" if line.row else "bold"
    if line.row is None:
        place = (-page.left / page.axis, top)
        ground = Rectangle(place, page.wide / page.axis, count, facecolor="0.93", clip_on=False)
        ax.add_patch(ground).set_transform(ax.get_yaxis_transform())
    else:
        _mark(ax, line, middle)
        _write(ax, line.id, middle, indent, page.size, color="0.5")
        indent += page.indent
    _write(ax, line.text, middle, indent, page.size, fontweight=weight)
    colour = WORDS.get(_unfolded(line.verdict), _style(line.verdict)[0])
    _write(ax, line.verdict, middle, 2 * EDGE, page.size, fontweight=weight, color=colour)


def _scale(ax: Axes, size: float, narrow: bool) -> None:
    """Draw what all rows share: the threshold, the size of the paper's words, and the side that is wanted."""
    ax.axvspan(0, ax.get_xlim()[1], color="#eef3fa", zorder=0, linewidth=0)
    ax.axvline(0, color="0.25", linewidth=1, zorder=1)
    ax.axvline(1, color="0.55", linewidth=0.8, linestyle=(0, (4, 2)), zorder=1)
    at_top = blended_transform_factory(ax.transData, ax.transAxes)
    told = ("against", "as claimed") if narrow else ("against the claim", "as claimed")

    def above(text: str, place: int, right: int, lines: float, **style: Any) -> None:
        away = (right, lines * size)
        ax.annotate(text, (place, 1), away, at_top, textcoords="offset points", fontsize=size, **style)

    above(f"\N{LEFTWARDS ARROW} {told[0]}", 0, -3, 2.1, ha="right")
    above(f"{told[1]} \N{RIGHTWARDS ARROW}", 0, 3, 2.1)
    for place in range(math.ceil(LEAST), math.floor(MOST) + 1):
        sign = "\N{MINUS SIGN}" if place < 0 else ""
        number = f"{sign}{abs(place)}\N{MULTIPLICATION SIGN}" if place else "0"
        above(number, place, 0, 0.5, ha="center", color="0.35")


def _mark(ax: Axes, line: Line, place: float) -> None:
    """Draw what was measured of a finding; what lies outside the picture is an arrow at its edge."""
    assert line.row is not None
    row, (colour, marker, filled) = line.row, _style(line.verdict)
    ax.axhline(place, color="0.82", linewidth=0.6, linestyle="-" if row.sized else ":", zorder=1)
    twin, value = (float(np.clip(number, LEAST, MOST)) for number in (row.untrained, row.value))
    ends = np.clip([row.low, row.high], LEAST, MOST)
    ax.plot(ends, [place, place], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2)
    runs = np.clip(row.runs, LEAST, MOST)
    ax.plot(runs, [place] * len(runs), ".", color=colour, markersize=3.5, zorder=3)
    ax.plot(
        twin, place, "o", color="0.3", markerfacecolor="none", markersize=7.5, markeredgewidth=0.7, zorder=4
    )
    face = colour if filled else "white"
    outside = row.value != value
    shape = (">" if row.value > 0 else "<") if outside else marker
    ax.plot(value, place, shape, color=colour, markerfacecolor=face, markersize=5, zorder=5)


def _legend(figure: Figure, ax: Axes, size: float) -> None:
    """Explain the marks, below the rows."""
    ring = {"markersize": 7.5, "markerfacecolor": "none", "markeredgewidth": 0.7}
    marks: dict[str, dict[str, Any]] = {
        "measured, 95 % interval": {"marker": "o", "markersize": 5, "linestyle": "-", "linewidth": 2.2},
        "each training run": {"marker": ".", "markersize": 3.5},
        "untrained": {"marker": "o", **ring},
        "farther than drawn": {"marker": ">", "markersize": 5},
    }
    shown = [Line2D([], [], **{"color": "0.3", "linestyle": "", **mark}) for mark in marks.values()]
    place: dict[str, Any] = {
        "bbox_to_anchor": (0.5, 0),
        "bbox_transform": blended_transform_factory(figure.transFigure, ax.transAxes),
    }
    columns = len(marks) if figure.get_figwidth() >= NARROW else 2
    ax.legend(shown, list(marks), loc="upper center", ncols=columns, fontsize=size, frameon=False, **place)


def _write(ax: Axes, text: str, place: float, inches: float, size: float, **style: Any) -> None:
    """Write a text at the height of a row, ``inches`` to the right of the axis, or from its left where negative."""
    ax.annotate(
        text,
        (float(inches > 0), place),
        (72 * inches, 0),
        xycoords=ax.get_yaxis_transform(),
        textcoords="offset points",
        verticalalignment="center",
        annotation_clip=False,
        fontsize=size,
        **style,
    )


def _style(verdict: str) -> tuple[str, str, bool]:
    return STYLES.get(_unfolded(verdict), OTHER)


def _unfolded(text: str) -> str:
    return text.replace("\n", " ")
