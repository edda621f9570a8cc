"""Similarity of layers with layers (figures 1, 2 and B.1)."""

import re
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.figure import Figure

from vit_analysis.plot.axes import COLOURS, PANEL, depth_ticks, dominated, literal, token_note

STAGE = re.compile(r"(?:layer\d+|(?:stages|layers|blocks)\.\d+(?=\.(?:\d|blocks)))")


def heatmap(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Similarity of every layer (rows) with every layer (columns), first layer at the bottom left; undefined cells are grey.

    Args:
        table: columns model, layer, depth, other_model, other_layer, other_depth, cka. A table of several models is drawn
            as one square of all their layers, with lines between models.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    rows = _layers(table, "")
    columns = _layers(table, "other_")
    values = table["cka"].to_numpy().reshape(len(rows), len(columns))
    # Colours are clipped to [0, 1]; the table is not: the unbiased estimator may be slightly negative.
    ax.imshow(values, origin="lower", cmap=COLOURS, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    ax.set_box_aspect(1)
    _describe(ax.xaxis, columns)
    _describe(ax.yaxis, rows)
    for position in _boundaries(columns):
        ax.axvline(position, color="white", linewidth=0.6, alpha=0.8)
    for position in _boundaries(rows):
        ax.axhline(position, color="white", linewidth=0.6, alpha=0.8)
    return ax


@literal
def cka(table: pd.DataFrame) -> Figure:
    """Figures 1 and 2 of the paper: every model with itself, then every pair of models, on one colour scale."""
    models = list(dict.fromkeys(table["model"]))
    panels = [*((name, name) for name in models), *combinations(models, 2)]
    columns = min(len(panels), max(3, len(models)))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(PANEL * columns + 0.8, (PANEL + 0.35) * lines), layout="constrained", dpi=200)
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for ax, (model, other) in zip(axes, panels, strict=False):
        heatmap(table[(table["model"] == model) & (table["other_model"] == other)], ax)
        ax.set_title(model if model == other else f"{model} and {other}", fontsize=9)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    bar = figure.colorbar(axes[0].images[0], ax=list(axes), shrink=0.8, aspect=30, pad=0.01)
    bar.set_label(f"CKA{token_note(table)}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if told := dominated(table):
        figure.supxlabel(told, fontsize=8, style="italic")
    return figure


def _layers(table: pd.DataFrame, side: str) -> pd.DataFrame:
    names = {f"{side}{name}": name for name in ("model", "layer", "depth")}
    return table[list(names)].rename(columns=names).drop_duplicates(["model", "layer"]).reset_index(drop=True)


def _describe(axis: Axis, layers: pd.DataFrame) -> None:
    """Ticks at depths of one model, or at the middle of each of several."""
    models = list(dict.fromkeys(layers["model"]))
    if len(models) == 1:
        ticks, labels = depth_ticks(layers["depth"].to_numpy())
        axis.set_label_text(f"{models[0]}: depth ({len(layers)} layers)", fontsize=8)
    else:
        ticks = [float(np.mean(np.flatnonzero(layers["model"] == model))) for model in models]
        labels = models
    axis.set_ticks(ticks, labels, fontsize=8)
    if len(models) > 1 and isinstance(axis, YAxis):
        for label in axis.get_ticklabels():
            label.set(rotation=90, verticalalignment="center")


def _boundaries(layers: pd.DataFrame) -> list[float]:
    """Between models, and between the stages of a model that has some."""
    stages = [STAGE.match(layer) for layer in layers["layer"]]
    keys = [
        (model, stage.group() if stage else "") for model, stage in zip(layers["model"], stages, strict=True)
    ]
    return [place - 0.5 for place in range(1, len(keys)) if keys[place] != keys[place - 1]]
