"""What probes read, and how entangled classes are (figures 11, 13, D.4 and the course notes)."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_analysis.plot.axes import (
    COLOURS,
    LINES,
    PANEL,
    Undrawable,
    band,
    chance_line,
    dominated,
    draws,
    folded,
    legend_below,
    legend_outside,
    literal,
    token_note,
)

# How the representations that probes read are told apart; a model has one colour.
REPRESENTATIONS = {"mean": "--", "mean_spatial": ":", "first token": "-."}
MAPS = 5  # layers shown of each model, from the first to the last


@draws("probe")
def accuracies(table: pd.DataFrame, ax: Axes | None = None, *, models: Sequence[str] = ()) -> Axes:
    """Accuracy of linear probes over depth: a line per model and representation, its band from the worst to the best draw.

    Args:
        table: columns model, depth, tokens, draw, accuracy, of one target.
        ax: where to draw; None makes a figure.
        models: all models in the order of their colours, if panels hold different ones; by default those of the table.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    models = list(models or dict.fromkeys(table["model"]))
    several = table.groupby("model")["tokens"].nunique().max() > 1
    for (model, tokens), rows in table.groupby(["model", "tokens"], sort=False):
        draws = rows.assign(percent=100 * rows["accuracy"]).groupby("depth")["percent"]
        line = REPRESENTATIONS.get(str(tokens), "-") if several else "-"
        style = {"color": LINES[models.index(str(model)) % len(LINES)], "linestyle": line}
        band(ax, draws.mean(), draws.min(), draws.max(), label=f"{model}; {tokens}", **style)
    ax.set_xlabel("depth", fontsize=9)
    ax.set_ylabel("accuracy (%)", fontsize=9)
    ax.set_ylim(0, 102)
    ax.tick_params(labelsize=8)
    return ax


@draws("probe")
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


@draws("probe")
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
    legend_outside(figure, axes[0], "outside upper center")
    return figure


@draws("probe")
@literal
def probe_tokens(table: pd.DataFrame) -> Figure:
    """Figure 11 of the paper, for the first target: single tokens on average, and representations of a layer."""
    rows = table[table["target"] == table["target"].iloc[0]]
    single = rows[rows["tokens"].str.isdigit()]
    first = rows["tokens"].eq("0") & rows["model"].map(table.attrs["native"]).eq("mean")
    panels = {
        "representations": rows[~rows["tokens"].str.isdigit() | first].replace(
            {"tokens": {"0": "first token"}}
        )
    }
    if _mapped(single):
        average = (
            single.groupby(["model", "layer", "depth", "draw"], sort=False)["accuracy"].mean().reset_index()
        )
        panels = {"single tokens, on average": average.assign(tokens="each"), **panels}
    width = 1.25 * PANEL if len(panels) > 1 else 1.6 * PANEL
    figure = Figure(figsize=(width * len(panels), PANEL + 0.4), layout="constrained", dpi=200)
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0].tolist()
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        accuracies(panel, ax, models=list(dict.fromkeys(rows["model"])))
        chance_line(ax, 100 * table.attrs["chance"][rows["target"].iloc[0]])
        ax.set_title(f"{rows['target'].iloc[0]}: {title} ({table['shots'].iloc[0]} shots)", fontsize=9)
        ax.label_outer()
    legend_below(axes, width)
    return figure


@draws("probe")
@literal
def accuracy_maps(table: pd.DataFrame) -> Figure:
    """Figure D.4 of the paper, for the first target: accuracy of a probe on each token, in five layers of each model.

    One colour scale for all; a panel's title has the accuracy of its worst and of its best token, so that what differs within
    a layer can be read where the scale is too wide to show it.

    Args:
        table: columns model, layer, target, tokens, draw, accuracy, with attrs ``grids``.

    Raises:
        Undrawable: the table has no single tokens.
    """
    rows = table[(table["target"] == table["target"].iloc[0]) & table["tokens"].str.isdigit()]
    models = _mapped(rows)
    if not models:
        raise Undrawable("no single tokens in this table: they are measured with tokens 'each'")
    rows = rows[rows["model"].isin(models)]
    top = 100 * rows.groupby(["model", "layer", "tokens"])["accuracy"].mean().max()
    size = (1.5 * MAPS + 0.8, 1.85 * len(models) + 0.2)
    figure = Figure(figsize=size, layout="constrained", dpi=200)
    axes = figure.subplots(len(models), MAPS, squeeze=False)
    for ax in axes.flatten():
        ax.set(xticks=[], yticks=[], frame_on=False)
    for line, model in zip(axes, models, strict=True):
        own = rows[rows["model"] == model]
        names = list(dict.fromkeys(own["layer"]))
        shown = dict.fromkeys(names[place * (len(names) - 1) // (MAPS - 1)] for place in range(MAPS))
        for ax, layer in zip(line, shown, strict=False):
            ax.set_frame_on(True)
            accuracy_map(own[own["layer"] == layer], table.attrs["grids"][model], ax)
            (image,) = ax.images
            image.set_clim(0, top)
            least, most = np.nanmin(image.get_array()), np.nanmax(image.get_array())
            ax.set_title(f"{folded(layer, 1.4, 8)}\n{_percents(least, most)}", fontsize=8)
        line[0].set_ylabel(folded(model, 1.4, 8), fontsize=8)
    bar = figure.colorbar(axes[0][0].images[0], ax=list(axes.flatten()), aspect=30, shrink=0.8, pad=0.01)
    bar.set_label(f"{rows['target'].iloc[0]}: accuracy of single tokens (%)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _mapped(single: pd.DataFrame) -> list[str]:
    """Models that have probes on more than one single token."""
    return [str(model) for model, own in single.groupby("model", sort=False) if own["tokens"].nunique() > 1]


def _percents(least: float, most: float) -> str:
    """Write a range of percentages, with a decimal where it is narrower than 5 points."""
    digits = 0 if most - least >= 5 else 1
    return f"{least:.{digits}f}\N{EN DASH}{most:.{digits}f} %"


@draws("soft_nearest_neighbor")
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


@draws("soft_nearest_neighbor")
@literal
def soft_nearest_neighbor(table: pd.DataFrame) -> Figure:
    """Soft nearest neighbour loss over depth, with the best temperature and with one fixed by the layer's distances."""
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
    legend_outside(figure, axes[0], "outside upper center")
    if told := dominated(table, "distances"):
        figure.supxlabel(told, fontsize=8, style="italic")
    return figure
