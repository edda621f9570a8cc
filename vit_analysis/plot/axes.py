"""What the pictures share: sizes, colours, ticks, legends."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

PANEL = 3.3  # inches
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
COLOURS = mpl.colormaps["magma"].with_extremes(bad="0.75")
LINES = ("#1f4e9c", "#b3261e", "#2e7d32", "#8e44ad", "#e67e22", "#555555")  # a model's colour


def literal(picture: Callable[[pd.DataFrame], Figure]) -> Callable[[pd.DataFrame], Figure]:
    """Names are written as they are: to matplotlib what stands between two dollars is a formula."""

    @wraps(picture)
    def drawn(table: pd.DataFrame) -> Figure:
        with mpl.rc_context({"text.parse_math": False}):
            return picture(table)

    return drawn


def depth_ticks(depth: np.ndarray) -> tuple[list[float], list[str]]:
    """Places of some depths among layers, and what to write there."""
    last = max(len(depth) - 1, 1)
    shown: Sequence[float] = DEPTHS if len(depth) > 1 else (0.0,)
    return [mark * last for mark in shown], [f"{mark:g}" for mark in shown]


def plain_decades(axis: Axis) -> None:
    """0.5, 1, 2, 3, 5, 10 ... on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(ax: Axes) -> None:
    """Where no line can run through it."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, fontsize=7, frameon=False)


def legend_above(figure: Figure, ax: Axes) -> None:
    """What the lines of all panels are, above them."""
    lines, labels = ax.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(labels), fontsize=8, frameon=False)


def band(ax: Axes, value: pd.Series, low: pd.Series, high: pd.Series, **style: Any) -> None:
    """A line through values by depth, with an interval around it."""
    (line,) = ax.plot(value.index, value, marker="o", markersize=3, linewidth=1.3, **style)
    ax.fill_between(value.index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def chance_line(ax: Axes, level: float) -> None:
    """What guessing would reach."""
    ax.axhline(level, color="0.4", linestyle=":", linewidth=1, label="chance")


def dominated(table: pd.DataFrame, share: str = "hsic") -> str:
    """Which models have layers whose similarity or distances are mostly about a few massive tokens."""
    shares = pd.DataFrame(table.attrs.get("massive", []), columns=["model", "layer", share])
    dominated = shares[shares[share] > 0.5]
    if table.attrs.get("tokens", "all") != "all" or dominated.empty:
        return ""
    counts = [
        f"{model}: {len(rows)} of {_count(table, model)} layers" for model, rows in dominated.groupby("model")
    ]
    return f"Dominated by massive tokens, so compare with normalized tokens: {'; '.join(counts)}"


def _count(table: pd.DataFrame, model: object) -> int:
    return table.loc[table["model"] == model, "layer"].nunique()


def token_note(table: pd.DataFrame) -> str:
    """Which tokens were compared, where it is not all of them."""
    chosen = table.attrs.get("tokens", "all")
    return "" if chosen == "all" else f" ({chosen} tokens)"
