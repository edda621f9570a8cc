"""What the pictures share: sizes, colours, ticks, legends."""

import re
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation

from vit_analysis.plot.fitting import BELOW, folded, grow, settled, width
from vit_analysis.plot.style import PALETTE, display_name, points

Given = ParamSpec("Given")
Drawn = TypeVar("Drawn")


class Undrawable(ValueError):  # noqa: N818  (it is no error of ours)
    """A table that a function does not draw; the message says which function does, or what is missing."""


FITTING: dict[str, list[str]] = {}
"""The functions that draw each kind of table."""

PANEL = 3.3  # inches
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
COLOURS = mpl.colormaps["magma"].with_extremes(bad="0.75")
LINES = PALETTE


def literal(picture: Callable[Given, Figure]) -> Callable[Given, Figure]:
    """Make a picture write names as they are, as matplotlib reads text between two dollars as a formula, and fit its texts."""

    @wraps(picture)
    def drawn(*args: Given.args, **kwargs: Given.kwargs) -> Figure:
        with mpl.rc_context({"text.parse_math": False}):
            return settled(picture(*args, **kwargs))

    return drawn


def draws(*kinds: str) -> Callable[[Callable[Given, Drawn]], Callable[Given, Drawn]]:
    """Make a function refuse tables that it cannot draw, with a sentence that names the function that can.

    Args:
        kinds: of table that it draws, as their ``attrs["analysis"]`` says.
    """

    def decorated(picture: Callable[Given, Drawn]) -> Callable[Given, Drawn]:
        for kind in kinds:
            FITTING.setdefault(kind, []).append(picture.__name__)

        @wraps(picture)
        def drawn(*args: Given.args, **kwargs: Given.kwargs) -> Drawn:
            table = args[0] if args else next(iter(kwargs.values()))
            if isinstance(table, pd.DataFrame):
                _refuse_others(table, picture.__name__, kinds)
            try:
                return picture(*args, **kwargs)
            except KeyError as missing:
                name = _column(str(missing.args[0]) if missing.args else "")
                if not isinstance(table, pd.DataFrame) or name in table:
                    raise
                raise Undrawable(
                    f"plot.{picture.__name__} needs the column {name!r}, which this table has not; it draws tables of "
                    f"{' or '.join(kinds)}"
                ) from missing

        return drawn

    return decorated


def _column(message: str) -> str:
    """The column that pandas misses: the message itself, or what it quotes first of ``['a', 'b'] not in index``."""
    quoted = re.search(r"['\"](.+?)['\"]", message)
    return quoted[1] if quoted and " " in message else message


def _refuse_others(table: pd.DataFrame, name: str, kinds: Sequence[str]) -> None:
    kind = table.attrs.get("analysis")
    if kind is None or kind in kinds:
        return
    fitting = FITTING.get(str(kind), [])
    told = (
        f"draw it with {' or '.join(f'plot.{own}' for own in fitting)}"
        if fitting
        else "there is no picture of it"
    )
    raise Undrawable(f"plot.{name} draws tables of {' or '.join(kinds)}, and this is one of {kind}; {told}")


def depth_ticks(depth: np.ndarray, marks: Sequence[float] = DEPTHS) -> tuple[list[float], list[str]]:
    """Return the positions of some depths among the layers, and their labels."""
    last = max(len(depth) - 1, 1)
    shown: Sequence[float] = marks if len(depth) > 1 else (0.0,)
    return [mark * last for mark in shown], [f"{mark:g}" for mark in shown]


def plain_decades(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers: 0.5, 1, 2, 3, 5, 10 ..."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_below(axes: Sequence[Axes], inches: float = PANEL) -> None:
    """Put a legend below each panel; the figure, of constrained layout, grows by what does not fit."""
    grown = 0.0
    for ax in axes:
        lines, labels = ax.get_legend_handles_labels()
        labels, columns, height = _entries(labels, min(inches, _slot(ax)), points(7))
        below = ax.transAxes + ScaledTranslation(0, -0.4, ax.figure.dpi_scale_trans)  # for ticks and label
        place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "bbox_transform": below}
        ax.legend(lines, labels, ncols=columns, fontsize=points(7), frameon=False, **place)
        grown = max(grown, height - 0.2)
    if figure := axes[0].get_figure(root=True):
        grow(figure, grown)


def _slot(ax: Axes) -> float:
    """The inches that a figure has for a panel and what belongs to it."""
    spec, figure = ax.get_subplotspec(), ax.get_figure(root=True)
    assert figure is not None
    return figure.get_figwidth() / (spec.get_gridspec().ncols if spec else 1)


def legend_outside(
    figure: Figure,
    ax: Axes,
    loc: Literal["outside lower center", "outside upper center"] = "outside lower center",
) -> None:
    """Put one legend of all panels below or above them, in as many columns as fit; the figure grows by what does not fit."""
    lines, labels = ax.get_legend_handles_labels()
    labels, columns, height = _entries(labels, figure.get_figwidth(), points(8))
    legend = figure.legend(lines, labels, loc=loc, ncols=columns, fontsize=points(8), frameon=False)
    legend.set_gid(BELOW if "lower" in loc else None)
    grow(figure, max(0.0, height - 0.2))


def _entries(labels: Sequence[str], inches: float | int, size: float) -> tuple[list[str], int, float]:
    """Return the labels, broken to fit, the number of columns, and the height of all in inches."""
    line = 6 * size / 72  # inches, for the sample of the line and the space around it
    written = [folded(label, inches - line, size) for label in labels]
    widest = max((width(label, size) for label in written), default=1.0)
    rows = -(-len(labels) // max(1, int(inches / (widest + line))))
    columns = -(-len(labels) // max(1, rows))
    tallest = max((label.count("\n") for label in written), default=0)
    return written, columns, rows * (1.7 + 1.2 * tallest) * size / 72


def band(ax: Axes, value: pd.Series, low: pd.Series, high: pd.Series, **style: Any) -> None:
    """Draw a line through values by depth, with an interval around it."""
    style = {"marker": "o", "markersize": 3, "linewidth": 1.3, **style}
    (line,) = ax.plot(value.index, value, **style)
    ax.fill_between(value.index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def chance_line(ax: Axes, level: float) -> None:
    """Draw a dotted line at the level that guessing would reach."""
    ax.axhline(level, color="0.4", linestyle=":", linewidth=1, label="chance")


def dominated(table: pd.DataFrame, share: str = "hsic") -> str:
    """Say which models have layers whose similarity or distances come mostly from a few massive tokens; empty if none has."""
    shares = pd.DataFrame(table.attrs.get("massive", []), columns=["model", "layer", share])
    plain = table.copy(deep=False)
    plain.attrs = {}  # which pandas would copy with every selection
    counted = {model: _count(plain, model) for model in shares["model"].unique()}
    dominated = shares[(shares[share] > 0.5) & (shares["model"].map(counted) > 0)]
    if table.attrs.get("tokens", "all") != "all" or dominated.empty:
        return ""
    counts = [
        f"{display_name(str(model))}: {len(rows)} of {counted[model]} layers"
        for model, rows in dominated.groupby("model")
    ]
    return f"Dominated by massive tokens, so compare with normalized tokens: {'; '.join(counts)}."


def _count(table: pd.DataFrame, model: object) -> int:
    """The number of a model's layers in a table, on either side of a comparison."""
    sides = (side for side in ("", "other_") if f"{side}model" in table)
    return max(table.loc[table[f"{side}model"] == model, f"{side}layer"].nunique() for side in sides)


def token_note(table: pd.DataFrame) -> str:
    """Say which tokens were compared; empty if it is all of them."""
    chosen = table.attrs.get("tokens", "all")
    return "" if chosen == "all" else f" ({chosen} tokens)"
