"""How entangled classes are in each layer: the soft nearest neighbour loss (the course notes)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_analysis.plot.axes import (
    PANEL,
    band,
    chance_line,
    dominated,
    draws,
    legend_outside,
    literal,
    token_note,
)
from vit_analysis.plot.fitting import caption
from vit_analysis.plot.runs import THIN, first_runs, told
from vit_analysis.plot.style import display_name, look, page_width, points


@draws("soft_nearest_neighbor")
def entanglement(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Soft nearest neighbour loss over depth, a line per model with its 95 % interval; what unrelated features have is dotted.

    Args:
        table: columns model, depth, loss, low, high, chance. Of several training runs of a model the first has an interval,
            the others are thin lines.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    firsts = first_runs(table)
    for model, rows in table.groupby("model", sort=False):
        place, drawn = rows.set_index("depth"), look(str(model), table)
        if model in firsts:
            band(
                ax, place["loss"], place["low"], place["high"], label=display_name(str(model)), **drawn.line()
            )
        else:
            ax.plot(place.index, place["loss"], **THIN, color=drawn.colour)
    chance_line(ax, table["chance"].iloc[0])
    ax.set_xlabel("depth", fontsize=points(9))
    ax.set_ylabel("soft nearest neighbour loss (nats)", fontsize=points(9))
    ax.tick_params(labelsize=points(8))
    return ax


@draws("soft_nearest_neighbor")
@literal
def soft_nearest_neighbor(table: pd.DataFrame, normalized: pd.DataFrame | None = None) -> Figure:
    """Soft nearest neighbour loss over depth, with the best temperature and with one fixed by the layer's distances.

    Args:
        table: columns model, depth, loss, low, high, chance, loss_fixed.
        normalized: the same of normalized tokens, among which none is massive; a panel of its own.
    """
    shown = [(f"best temperature{token_note(table)}", table)]
    if normalized is not None:
        shown.append((f"best temperature{token_note(normalized)}", normalized))
    shown.append(
        (
            "temperature = median squared distance",
            table.assign(loss=table["loss_fixed"], low=np.nan, high=np.nan),
        )
    )
    figure = Figure(
        figsize=(page_width((PANEL - 0.5) * max(len(shown), 2.3)), PANEL - 0.2), layout="constrained", dpi=200
    )
    axes = figure.subplots(1, len(shown), sharey=True)
    axes[0].set_ylim(min(0, 1.1 * table["low"].min()), 1.08 * table["chance"].max())
    for ax, (title, rows) in zip(axes, shown, strict=True):
        rows.attrs = table.attrs
        entanglement(rows, ax)
        ax.set_title(title, fontsize=points(9))
        ax.label_outer()
    legend_outside(figure, axes[0], "outside upper center")
    caption(
        figure, table, "High: classes are entangled; low: apart. Chance: features that have nothing to do with classes.",
        told(table), dominated(table, "distances"), bands="Bands",
    )  # fmt: skip
    return figure
