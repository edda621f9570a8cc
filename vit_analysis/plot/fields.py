"""Receptive fields (figures 6 and C.1-C.4)."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from vit_analysis.plot.axes import COLOURS, LINES, PANEL, literal

BRANCHES = {"residual": "after the addition", "long": "long branch alone"}
FIELDS = 5  # panels in a row, as in figure 6


def radius_over_depth(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Radius of the receptive field over depth: a line per model and branch, with its interval.

    Args:
        table: columns model, depth, branch, radius_px, low, high.
        ax: where to draw; None makes a figure.
    """
    return _branches(table, ("radius_px", "low", "high"), "radius of the receptive field (px)", ax)


def centre_over_depth(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of the receptive field in the position's own patch, as a multiple of a constant field's, over depth.

    Args:
        table: columns model, depth, branch, centre_share, centre_low, centre_high, uniform_centre_share.
        ax: where to draw; None makes a figure.
    """
    columns = ("centre_share", "centre_low", "centre_high")
    relative = table.assign(**{name: table[name] / table["uniform_centre_share"] for name in columns})
    # A logarithmic axis has no place for the lower end of an interval that reaches 0: it ends at the frame.
    bottom = 0.5 * np.nanmin([1.0, relative["centre_share"].min()])
    relative["centre_low"] = relative["centre_low"].clip(lower=bottom)
    ax = _branches(relative, columns, "share in the centre patch / constant field", ax)
    ax.set_yscale("log")
    ax.set_ylim(bottom=bottom)
    ax.axhline(1, color="0.4", linestyle=":", linewidth=1)
    return ax


@literal
def receptive_field(table: pd.DataFrame) -> Figure:
    """How wide receptive fields are and how much of them is their own patch, over depth (figures 6 and C.1-C.4 in numbers)."""
    figure = Figure(figsize=(2 * (PANEL + 0.6), PANEL + 0.5), layout="constrained", dpi=200)
    left, right = figure.subplots(1, 2)
    radius_over_depth(table, left)
    centre_over_depth(table, right)
    lines, labels = left.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def field(row: pd.Series, ax: Axes | None = None) -> Axes:
    """One receptive field, divided by its maximum, with its step and radius as the title.

    Args:
        row: of a table with columns step, radius_px, rows, columns, map.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL, PANEL), layout="constrained").subplots()
    values = np.asarray(row["map"]).reshape(row["rows"], row["columns"])
    shown = values / max(values.max(), 1e-30)
    ax.imshow(shown, cmap=COLOURS, norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    ax.set_title(f"{row['step']}\n{row['radius_px']:.3g} px", fontsize=8)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


@literal
def receptive_field_maps(table: pd.DataFrame) -> Figure:
    """Figure 6 of the paper, and C.4 below it: five steps of every model, after and before the residual addition."""
    rows = list(_by_branch(table))
    figure = Figure(figsize=(1.35 * FIELDS + 1.2, 1.7 * len(rows) + 0.3), layout="constrained", dpi=200)
    axes = figure.subplots(len(rows), FIELDS, squeeze=False)
    for line, (model, branch, own) in zip(axes, rows, strict=True):
        for ax, step in zip(line, _spread(table[table["model"] == model]), strict=False):
            for _, row in own[own["step"] == step].iterrows():
                field(row, ax)
        for ax in line:
            ax.set(xticks=[], yticks=[], frame_on=bool(ax.images))
        line[0].set_ylabel(f"{model}\n{BRANCHES[branch]}", fontsize=8)
    shades = ScalarMappable(PowerNorm(0.5, 0, 1), COLOURS)
    bar = figure.colorbar(shades, ax=axes, shrink=0.6, aspect=30, pad=0.01, ticks=[0, 0.1, 0.5, 1])
    bar.set_label("mean |gradient| / maximum of the panel (square-root scale)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _branches(table: pd.DataFrame, columns: Sequence[str], label: str, ax: Axes | None) -> Axes:
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    colours = dict(zip(table["model"].unique(), LINES, strict=False))
    for model, branch, own in _by_branch(table):
        style = {"color": colours.get(model, "0.5"), "linestyle": "-" if branch == "residual" else "--"}
        own = own.sort_values("depth")
        value, low, high = (own[name] for name in columns)
        ax.plot(own["depth"], value, **style, linewidth=1.3, label=f"{model}, {BRANCHES[branch]}")
        ax.fill_between(own["depth"], low, high, color=style["color"], alpha=0.15, linewidth=0)
    ax.set_xlabel("depth", fontsize=9)
    ax.set_ylabel(label, fontsize=9)
    ax.tick_params(labelsize=8)
    return ax


def _by_branch(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for model in table["model"].unique():
        for branch in BRANCHES:
            own = table[(table["model"] == model) & (table["branch"] == branch)]
            if len(own):
                yield model, branch, own


def _spread(own: pd.DataFrame) -> list[str]:
    """Five steps of a model from the first to the last; of a transformer, attentions, as in the paper."""
    steps = own.loc[~own["step"].str.startswith("MLP"), "step"].unique()
    steps = steps if len(steps) else own["step"].unique()
    return [steps[place] for place in np.unique(np.linspace(0, len(steps) - 1, FIELDS).round().astype(int))]
