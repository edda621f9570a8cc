"""Similarity of layers with layers (figures 1, 2, 8, 12, B.1, G.1, G.2, H.1 and H.2)."""

import re
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from vit_analysis.plot.axes import (
    COLOURS,
    LINES,
    PANEL,
    Undrawable,
    band,
    depth_ticks,
    dominated,
    draws,
    folded,
    legend_below,
    literal,
    token_note,
    width,
)

STAGE = re.compile(r"(?:layer\d+|(?:stages|layers|blocks)\.\d+(?=\.(?:\d|blocks)))")
ACROSS, EDGE = 4, 2.7  # most squares in a row, and inches of a square with its labels
WITHIN = 2.05  # inches of the square alone, which texts are folded to
MARKERS, DASHES = ("o", "s", "^", "D", "v", "P"), ("-", "--", ":", "-.")


@draws("cka", "cka_controls")
def heatmap(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Similarity of every layer (rows) with every layer (columns), first layer at the bottom left; undefined cells are grey.

    Args:
        table: columns model, layer, depth, other_model, other_layer, other_depth, cka. A table of several models is drawn
            as one square of all their layers, with lines between models; pairs that it does not hold are grey.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    rows, columns = _layers(table, ""), _layers(table, "other_")
    values = np.full((len(rows), len(columns)), np.nan)
    values[_places(table, rows, ""), _places(table, columns, "other_")] = table["cka"]
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


@draws("cka", "cka_controls")
@literal
def heatmaps(table: pd.DataFrame, *, panels: Sequence[tuple[str, str]]) -> Figure:
    """Figures 1, 2, 8, B.1, G.2, H.1 and H.2 of the paper: squares of similarity on one colour scale.

    Args:
        table: columns of `heatmap`; it need hold no other pairs than those shown, and a pair in one order only.
        panels: for each square a model (up) and another or the same one (to the right).

    Raises:
        Undrawable: the table does not compare two of the models.
    """
    shown = [between(table, model, other) for model, other in panels]
    titles = [model if model == other else f"{model} and {other}" for model, other in panels]
    titles = [folded(title, WITHIN) for title in titles]
    lines = -(-len(panels) // ACROSS)
    columns = -(-len(panels) // lines)
    figure = Figure(
        figsize=(EDGE * columns + 0.7, (EDGE + 0.15) * lines),
        layout=ConstrainedLayoutEngine(wspace=0.04),
        dpi=200,
    )
    axes = figure.subplots(lines, columns, squeeze=False).flatten()
    for ax, title, square in zip(axes, titles, shown, strict=False):
        heatmap(square, ax)
        ax.set_title(title, fontsize=9)
    # The figure grows by the room that long names take, so that squares keep theirs.
    high = max(ax.get_title().count("\n") + ax.get_xlabel().count("\n") for ax in axes)
    wide = max(ax.get_ylabel().count("\n") for ax in axes)
    size = figure.get_size_inches()
    figure.set_size_inches(size[0] + 0.14 * wide * columns, size[1] + 0.16 * high * lines)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    bar = figure.colorbar(axes[0].images[0], ax=list(axes), shrink=0.8, aspect=30, pad=0.01)
    bar.set_label(f"CKA{token_note(table)}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if told := dominated(pd.concat(shown)):
        figure.supxlabel(folded(told, figure.get_figwidth() - 0.2, 8), fontsize=8, style="italic")
    return figure


@draws("cka", "cka_controls")
@literal
def cka(table: pd.DataFrame) -> Figure:
    """Figures 1 and 2 of the paper: every model with itself, then every pair of models that the table compares."""
    models = list(dict.fromkeys([*table["model"], *table["other_model"]]))
    held = set(zip(table["model"], table["other_model"], strict=True))
    panels = [*((name, name) for name in models), *combinations(models, 2)]
    return heatmaps(table, panels=[pair for pair in panels if pair in held or pair[::-1] in held])


@draws("cka", "cka_controls")
@literal
def corresponding(
    table: pd.DataFrame, *, pairs: Sequence[tuple[str, str]], labels: Sequence[str] = ()
) -> Figure:
    """Figures 12 and G.1 of the paper: similarity of each block of one model with the same block of another.

    Args:
        table: columns model, layer, other_model, other_layer, cka, low, high, of blocks alone.
        pairs: pairs of models, one line each, which ends where the shallower model does.
        labels: what the lines are called instead of the names of both models.

    Raises:
        Undrawable: the table does not compare the models of a pair, or labels and pairs differ in number.
    """
    if labels and len(labels) != len(pairs):
        raise Undrawable(f"{len(labels)} labels for {len(pairs)} pairs of models")
    figure = Figure(figsize=(PANEL + 1, PANEL + 0.4), layout="constrained", dpi=200)
    ax = figure.subplots()
    for number, (model, other) in enumerate(pairs):
        rows = between(table, model, other)
        place = rows["layer"].factorize()[0]
        own = rows.assign(block=place)[place == rows["other_layer"].factorize()[0]].set_index("block")
        label = labels[number] if labels else f"{model} and {other}"
        turn, colour = divmod(number, len(LINES))
        style = {"color": LINES[colour], "marker": MARKERS[colour], "linestyle": DASHES[turn % len(DASHES)]}
        band(ax, own["cka"], own["low"], own["high"], label=label, **style)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("block", fontsize=9)
    ax.set_ylabel(f"CKA with the same block{token_note(table)}", fontsize=9)
    ax.set_ylim(min(0, 1.05 * ax.dataLim.y0), 1.02)
    ax.tick_params(labelsize=8)
    legend_below([ax], figure.get_figwidth())
    return figure


def between(table: pd.DataFrame, model: str, other: str) -> pd.DataFrame:
    """Return the rows that compare two models, the first one as ``model``, whichever way the table holds them.

    Raises:
        Undrawable: there are none.
    """
    held = (table["model"] == model) & (table["other_model"] == other)
    if held.any():
        return table[held]
    turned = table[(table["model"] == other) & (table["other_model"] == model)]
    if turned.empty:
        pairs = table[["model", "other_model"]].drop_duplicates().itertuples(index=False, name=None)
        told = ", ".join(" and ".join(pair) for pair in pairs)
        raise Undrawable(f"the table does not compare {model!r} with {other!r}; it has {told}")
    swapped = {f"other_{name}": name for name in ("model", "layer", "depth")}
    return turned.rename(columns=swapped | {name: side for side, name in swapped.items()})


def _layers(table: pd.DataFrame, side: str) -> pd.DataFrame:
    names = {f"{side}{name}": name for name in ("model", "layer", "depth")}
    return table[list(names)].rename(columns=names).drop_duplicates(["model", "layer"]).reset_index(drop=True)


def _places(table: pd.DataFrame, layers: pd.DataFrame, side: str) -> np.ndarray:
    """The index, among the layers, of the layer that each row is about."""
    return pd.MultiIndex.from_frame(layers[["model", "layer"]]).get_indexer(
        pd.MultiIndex.from_frame(table[[f"{side}model", f"{side}layer"]])
    )


def _describe(axis: Axis, layers: pd.DataFrame) -> None:
    """Put ticks on an axis: at some depths of one model, or at the middle of each of several models."""
    models = list(dict.fromkeys(layers["model"]))
    if len(models) == 1:
        ticks, labels = depth_ticks(layers["depth"].to_numpy())
        name, told = f"{models[0]}:", f"depth ({len(layers)} layers)"
        fits = width(f"{name} {told}", 8) < WITHIN
        axis.set_label_text(f"{name} {told}" if fits else f"{folded(name, WITHIN, 8)}\n{told}", fontsize=8)
    else:
        ticks = [float(np.mean(np.flatnonzero(layers["model"] == model))) for model in models]
        labels = [folded(model, 0.7 * PANEL / len(models), 8) for model in models]
    axis.set_ticks(ticks, labels, fontsize=8)
    if len(models) > 1 and isinstance(axis, YAxis):
        for label in axis.get_ticklabels():
            label.set(rotation=90, verticalalignment="center")


def _boundaries(layers: pd.DataFrame) -> list[float]:
    """Positions of the lines between models, and between the stages of a model that has some."""
    stages = [STAGE.match(layer) for layer in layers["layer"]]
    keys = [
        (model, stage.group() if stage else "") for model, stage in zip(layers["model"], stages, strict=True)
    ]
    return [place - 0.5 for place in range(1, len(keys)) if keys[place] != keys[place - 1]]
