"""What layers are like over depth: norms, cosines and ranks of tokens, and how fine feature maps are."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_analysis.plot.axes import PANEL, draws, legend_outside, literal, plain_decades
from vit_analysis.plot.fitting import caption
from vit_analysis.plot.grid import panels
from vit_analysis.plot.style import display_name, look, points

STATISTICS = {
    "norm": "norm of the median token (line)\nand of the largest (dotted)",
    "massive_tokens": "massive tokens (line) and tokens with\na massive activation (dotted), %",
    "patch_cosine": "cosine of two spatial tokens",
    "class_cosine": "cosine of the class token\nwith spatial tokens",
    "effective_rank": "effective rank of an image's tokens",
    "participation": "participation ratio of an image's tokens",
}
BESIDE = {"norm": "largest", "massive_tokens": "massive_activations"}  # drawn dotted in the same panel
PERCENT = ("massive_tokens", "massive_activations")
LEAST_SHARE = (
    5.0  # percent: where there are no massive tokens, their interval is not drawn as if it filled the panel
)


@draws("tokens")
@literal
def tokens(table: pd.DataFrame) -> Figure:
    """Draw each statistic of tokens over depth, a line per model.

    Args:
        table: columns model, depth and those of `STATISTICS` with their ``_low`` and ``_high``.
    """
    figure, axes = panels(len(STATISTICS), PANEL, 0.85 * PANEL)
    for ax, (name, label) in zip(axes, STATISTICS.items(), strict=True):
        over_depth(table, name, ax)
        ax.set_title(label, fontsize=points(9))
    legend_outside(figure, axes[0], "outside upper center")
    caption(figure, table, "Spatial tokens are compared within each image.", bands="Bands")
    return figure


@draws("tokens")
def over_depth(table: pd.DataFrame, name: str, ax: Axes | None = None) -> Axes:
    """Draw one statistic of tokens over depth, a line per model, with its interval.

    Args:
        table: columns model, depth, and the statistic with its ``_low`` and ``_high``.
        name: a column of the table.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    for model in dict.fromkeys(table["model"]):
        own, drawn = table[table["model"] == model], look(str(model), table)
        for column in (name, *([BESIDE[name]] if name in BESIDE else [])):
            value, low, high = (
                own[f"{column}{end}"] * (100 if column in PERCENT else 1) for end in ("", "_low", "_high")
            )
            if value.isna().all():
                continue
            line = drawn.line() | ({"linestyle": ":", "marker": ""} if column != name else {})
            label = display_name(str(model)) if column == name else None
            ax.plot(own["depth"], value, **line, markersize=3, linewidth=1.3, label=label)
            if column == name:
                ax.fill_between(own["depth"], low, high, color=drawn.colour, alpha=0.2, linewidth=0)
    if name in PERCENT:
        ax.set_ylim(0, max(LEAST_SHARE, ax.get_ylim()[1]))
    if name == "norm":
        ax.set_yscale("log")
        plain_decades(ax.yaxis)
    ax.set_xlabel("depth", fontsize=points(9))
    ax.tick_params(labelsize=points(8))
    return ax


@draws("frequency")
@literal
def frequency(table: pd.DataFrame) -> Figure:
    """Draw log amplitude by frequency, a panel per model and a line per layer, and that of the finest pattern over depth.

    Args:
        table: columns model, layer, depth, frequency, log_amplitude, low, high.
    """
    models = list(dict.fromkeys(table["model"]))
    figure, axes = panels(len(models) + 1, PANEL, PANEL)
    for ax, model in zip(axes, models, strict=False):
        by_frequency(table[table["model"] == model], ax)
        ax.set_title(display_name(str(model)), fontsize=points(9))
    low, high = (
        edge(ax.get_ylim()[side] for ax in axes[: len(models)]) for side, edge in ((0, min), (1, max))
    )
    for ax in axes[: len(models)]:
        ax.set_ylim(low, high)
    finest(table, axes[len(models)])
    axes[0].set_ylabel("log amplitude, relative to frequency 0", fontsize=points(9))
    shades = mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 1), "viridis_r")
    bar = figure.colorbar(shades, ax=list(axes[: len(models)]), aspect=30, pad=0.01)
    bar.set_label("depth of the layer", fontsize=points(8))
    bar.ax.tick_params(labelsize=points(7))
    legend_outside(figure, axes[len(models)], "outside upper center")
    caption(figure, table, "Frequency 1 is a pattern that changes sign at every position.", bands="Bands")
    return figure


@draws("frequency")
def by_frequency(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw log amplitude by frequency, a line per layer from light (first) to dark (last).

    Args:
        table: columns layer, depth, frequency, log_amplitude, of one model.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    for layer in dict.fromkeys(table["layer"]):
        own = table[table["layer"] == layer]
        colour = mpl.colormaps["viridis_r"](float(own["depth"].iloc[0]))
        ax.plot(own["frequency"], own["log_amplitude"], color=colour, linewidth=1.2)
    ax.set_xlabel("frequency (π)", fontsize=points(9))
    ax.tick_params(labelsize=points(8))
    return ax


@draws("frequency")
def finest(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the log amplitude of the finest pattern over depth, a line per model with its interval: falling is low-pass.

    Args:
        table: columns model, depth, frequency, log_amplitude, low, high.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    for model in dict.fromkeys(table["model"]):
        own = table[(table["model"] == model) & np.isclose(table["frequency"], 1)]
        drawn = look(str(model), table)
        ax.plot(
            own["depth"],
            own["log_amplitude"],
            **drawn.line(),
            markersize=3,
            linewidth=1.3,
            label=display_name(str(model)),
        )
        ax.fill_between(own["depth"], own["low"], own["high"], color=drawn.colour, alpha=0.2, linewidth=0)
    ax.set_title("the finest pattern (frequency 1)", fontsize=points(9))
    ax.set_xlabel("depth", fontsize=points(9))
    ax.tick_params(labelsize=points(8))
    return ax
