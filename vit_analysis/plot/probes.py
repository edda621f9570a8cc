"""What probes read, and how entangled classes are (figures 11, 13, D.4 and the course notes)."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from vit_analysis.plot.axes import (
    COLOURS,
    LINES,
    PANEL,
    band,
    chance_line,
    dominated,
    legend_above,
    literal,
    token_note,
)

# How the representations that probes read are told apart; a model has one colour.
REPRESENTATIONS = {"mean": "--", "mean_spatial": ":", "first token": "-."}
MAPS = 5  # layers shown of each model, from the first to the last


def accuracies(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy of linear probes over depth: a line per model and representation, its band from the worst to the best draw.

    Args:
        table: columns model, depth, tokens, draw, accuracy, of one target.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    models = list(dict.fromkeys(table["model"]))
    several = table.groupby("model")["tokens"].nunique().max() > 1
    for (model, tokens), rows in table.groupby(["model", "tokens"], sort=False):
        draws = rows.assign(percent=100 * rows["accuracy"]).groupby("depth")["percent"]
        line = REPRESENTATIONS.get(str(tokens), "-") if several else "-"
        style = {"color": LINES[models.index(model) % len(LINES)], "linestyle": line}
        band(ax, draws.mean(), draws.min(), draws.max(), label=f"{model}; {tokens}", **style)
    ax.set_xlabel("depth", fontsize=9)
    ax.set_ylabel("accuracy (%)", fontsize=9)
    ax.set_ylim(0, 102)
    ax.tick_params(labelsize=8)
    return ax


def accuracy_map(table: pd.DataFrame, grid: Sequence[int], ax: Axes | None = None) -> Axes:
    """Mean accuracy of a probe on each single token, where the token lies, in percent.

    Args:
        table: columns tokens, draw, accuracy, of one layer and one target.
        grid: rows and columns of tokens.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL, PANEL), layout="constrained").subplots()
    single = table[table["tokens"].str.isdigit()]
    values = single.groupby(single["tokens"].astype(int))["accuracy"].mean()
    full = values.reindex(range(grid[0] * grid[1])).to_numpy()
    ax.imshow(100 * full.reshape(tuple(grid)), cmap=COLOURS, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    return ax


@literal
def probe(table: pd.DataFrame) -> Figure:
    """Figure 13 of the paper: one panel per target, of what each model's own head reads, on one scale; chance is dotted."""
    targets = list(dict.fromkeys(table["target"]))
    figure = Figure(figsize=(PANEL * max(len(targets), 1.4), PANEL + 0.4), layout="constrained", dpi=200)
    axes = figure.subplots(1, len(targets), squeeze=False, sharey=True).flatten()
    own = table[table["tokens"] == table["model"].map(table.attrs["native"])]
    for ax, target in zip(axes, targets, strict=True):
        accuracies(own[own["target"] == target], ax)
        chance_line(ax, 100 * table.attrs["chance"][target])
        ax.set_title(f"{target} ({table['shots'].iloc[0]} shots)", fontsize=9)
        ax.label_outer()
    legend_above(figure, axes[0])
    return figure


@literal
def probe_tokens(table: pd.DataFrame) -> Figure:
    """Figures 11 and D.4 of the paper, for the first target: representations of a layer, single tokens, and their places."""
    rows = table[table["target"] == table["target"].iloc[0]]
    single = rows[rows["tokens"].str.isdigit()]
    mapped = [model for model, own in single.groupby("model", sort=False) if own["tokens"].nunique() > 1]
    first = rows["tokens"].eq("0") & rows["model"].map(table.attrs["native"]).eq("mean")
    panels = {
        "representations": rows[~rows["tokens"].str.isdigit() | first].replace(
            {"tokens": {"0": "first token"}}
        )
    }
    if mapped:
        average = (
            single.groupby(["model", "layer", "depth", "draw"], sort=False)["accuracy"].mean().reset_index()
        )
        panels = {"single tokens, on average": average.assign(tokens="each"), **panels}
    heights = [PANEL + 0.4, *[1.7] * len(mapped)]
    figure = Figure(
        figsize=(2.5 * PANEL if mapped else 1.6 * PANEL, sum(heights)), layout="constrained", dpi=200
    )
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = parts[0].subplots(1, len(panels), squeeze=False, sharey=True).flatten()
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        accuracies(panel, ax)
        chance_line(ax, 100 * table.attrs["chance"][rows["target"].iloc[0]])
        ax.set_title(f"{rows['target'].iloc[0]}: {title} ({table['shots'].iloc[0]} shots)", fontsize=9)
        ax.label_outer()
        ax.legend(
            fontsize=7,
            frameon=False,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.13),
            ncols=2,
            handlelength=4,
        )
    top = 100 * single.groupby(["model", "layer", "tokens"])["accuracy"].mean().max() if mapped else 0
    for part, model in zip(parts[1:], mapped, strict=True):
        _maps(part, single[single["model"] == model], table.attrs["grids"][model], top)
    return figure


def _maps(figure: SubFigure, table: pd.DataFrame, grid: Sequence[int], top: float) -> None:
    """Accuracy by place in some layers of a model, on one colour scale up to ``top`` percent."""
    layers = list(dict.fromkeys(table["layer"]))
    shown = [layers[place] for place in np.unique(np.linspace(0, len(layers) - 1, MAPS).round().astype(int))]
    axes = figure.subplots(1, len(shown), squeeze=False).flatten()
    for ax, layer in zip(axes, shown, strict=True):
        accuracy_map(table[table["layer"] == layer], grid, ax)
        ax.images[0].set_clim(0, top)
        ax.set_title(layer, fontsize=8)
    bar = figure.colorbar(axes[-1].images[0], ax=list(axes), aspect=12, pad=0.01)
    bar.set_label("accuracy (%)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.supylabel(table["model"].iloc[0], fontsize=9)


def entanglement(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Soft nearest neighbour loss over depth, a line per model with its 95 % interval; what unrelated features have is dotted.

    Args:
        table: columns model, depth, loss, low, high, chance.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    for (model, rows), colour in zip(table.groupby("model", sort=False), cycle(LINES), strict=False):
        place = rows.set_index("depth")
        band(ax, place["loss"], place["low"], place["high"], color=colour, label=str(model))
    chance_line(ax, table["chance"].iloc[0])
    ax.set_xlabel("depth", fontsize=9)
    ax.set_ylabel("soft nearest neighbour loss (nats)", fontsize=9)
    ax.tick_params(labelsize=8)
    return ax


@literal
def soft_nearest_neighbor(table: pd.DataFrame) -> Figure:
    """The loss with the best temperature, and with one fixed in units of the layer's distances, over depth."""
    figure = Figure(figsize=(2 * PANEL, PANEL + 0.4), layout="constrained", dpi=200)
    axes = figure.subplots(1, 2, sharey=True)
    axes[0].set_ylim(min(0, 1.1 * table["low"].min()), 1.08 * table["chance"].max())
    entanglement(table, axes[0])
    entanglement(table.assign(loss=table["loss_fixed"], low=np.nan, high=np.nan), axes[1])
    for ax, title in zip(
        axes, (f"best temperature{token_note(table)}", "temperature = median squared distance"), strict=True
    ):
        ax.set_title(title, fontsize=9)
        ax.label_outer()
    legend_above(figure, axes[0])
    if told := dominated(table, "distances"):
        figure.supxlabel(told, fontsize=8, style="italic")
    return figure
