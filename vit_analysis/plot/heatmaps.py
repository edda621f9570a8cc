"""Similarity of layers with layers (figures 1, 2, 8, 12, B.1, G.1, G.2, H.1 and H.2)."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from types import MappingProxyType

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from vit_analysis.plot.axes import (
    COLOURS,
    DEPTHS,
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
)
from vit_analysis.plot.fitting import caption, squared, width
from vit_analysis.plot.runs import THIN, TOLD
from vit_analysis.plot.style import MARKERS, display_name, page_width, points

STAGE = re.compile(r"(?:layer\d+|(?:stages|layers|blocks)\.\d+(?=\.(?:\d|blocks)))")
ACROSS, EDGE = 4, 2.7  # most squares in a row, and inches of a square with its labels
SMALLEST = 1.4  # inches of the same in a narrow picture
FEW = (0.0, 0.5, 1.0)  # depths of the ticks there
LONGEST = 2.2  # sides of a square that the name of a model may take beside it
HALF = 0.5  # where an axis of similarities starts if all are greater
MATCH = "#5ee7ff"  # on the colours of the heat maps


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
def heatmaps(table: pd.DataFrame, *, panels: Sequence[tuple[str, str]], note: str = "") -> Figure:
    """Figures 1, 2, 8, B.1, G.2, H.1 and H.2 of the paper: squares of similarity on one colour scale.

    Args:
        table: columns of `heatmap`; it need hold no other pairs than those shown, and a pair in one order only.
        panels: for each square a model (up) and another or the same one (to the right).
        note: a sentence for the caption.

    Raises:
        Undrawable: the table does not compare two of the models.
    """
    shown = [between(table, model, other) for model, other in panels]
    across = min(ACROSS, max(1, int(page_width(ACROSS * EDGE) / SMALLEST)))
    lines = -(-len(panels) // across)
    columns = -(-len(panels) // lines)
    wide = page_width(EDGE * columns + 0.7)
    size = (wide, wide * lines / columns)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.04), dpi=200)
    axes = figure.subplots(lines, columns, squeeze=False)
    for ax, (model, other), square in zip(axes.flat, panels, shown, strict=False):
        heatmap(square, ax)
        _inside(ax, square, itself=model == other)
        names = list(dict.fromkeys(map(display_name, (model, other))))
        ax.set_title(" and ".join(names), fontsize=points(9))
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    bar = figure.colorbar(axes[0, 0].images[0], ax=list(axes.flat), shrink=0.8, aspect=30, pad=0.01)
    bar.set_label(f"CKA{token_note(table)}", fontsize=points(9))
    bar.ax.tick_params(labelsize=points(8))
    rows = pd.concat(shown)
    rows.attrs = table.attrs
    caption(figure, rows, note, *_explained(rows, axes), dominated(rows))
    squared(figure, axes)
    return figure


def _inside(ax: Axes, square: pd.DataFrame, *, itself: bool) -> None:
    """Write the mean similarity into a square and, across models, draw the best match of each layer to the right."""
    different = square[square["layer"] != square["other_layer"]] if itself else square
    ground = {"boxstyle": "round,pad=0.25", "facecolor": "white", "alpha": 0.85, "linewidth": 0}
    size, mean = points(8), different["cka"].mean()
    ax.text(0.03, 0.97, f"mean {mean:.2f}", transform=ax.transAxes, va="top", fontsize=size, bbox=ground)
    if itself:
        size = int(square["layer"].nunique())
        ax.set_xlabel(f"depth ({size} layers)")
        ax.set_ylabel("depth")
        return
    room = LONGEST * ax.bbox.width / ax.figure.dpi
    for axis, which in ((ax.yaxis, "first"), (ax.xaxis, "second")):
        if width(told := axis.get_label_text(), size) > room:  # the title has the name
            axis.set_label_text(f"{which} model:{told.rpartition(':')[2]}")
    values: np.ndarray = np.ma.filled(np.ma.masked_invalid(np.ma.asarray(ax.images[0].get_array())), -np.inf)
    matched = np.where(np.isfinite(values).any(axis=0), values.argmax(axis=0), np.nan)
    ax.plot(range(len(matched)), matched, color=MATCH, linewidth=1, drawstyle="steps-mid", gid="match")


def _explained(rows: pd.DataFrame, axes: np.ndarray) -> list[str]:
    """What stands in the squares, in words."""
    drawn = [line for ax in axes.flat for line in ax.lines]
    told = ["Mean: of all pairs of layers, but not of a layer with itself."]
    if any(line.get_gid() == "match" for line in drawn):
        told.append("Blue line: for each layer to the right, the layer upwards that is most like it.")
    if any(line.get_gid() != "match" for line in drawn):
        told.append("White lines: between the stages of a model.")
    if rows["cka"].isna().any():
        told.append("Grey: undefined, as a layer there is constant over images.")
    return told


@draws("cka", "cka_controls")
def cka(table: pd.DataFrame) -> Figure:
    """Figures 1 and 2 of the paper: every model with itself, then every pair of models that the table compares."""
    models = list(dict.fromkeys([*table["model"], *table["other_model"]]))
    held = set(zip(table["model"], table["other_model"], strict=True))
    panels = [*((name, name) for name in models), *combinations(models, 2)]
    return heatmaps(table, panels=[pair for pair in panels if pair in held or pair[::-1] in held])


@draws("cka", "cka_controls")
@literal
def corresponding(
    table: pd.DataFrame,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    labels: Sequence[str] = (),
    ceiling: tuple[str, str] | None = None,
    further: Mapping[tuple[str, str], Sequence[tuple[str, str]]] = MappingProxyType({}),
) -> Figure:
    """Figures 12 and G.1 of the paper: similarity of each block of one model with the same block of another.

    Args:
        table: columns model, layer, other_model, other_layer, cka, low, high, of blocks alone.
        pairs: pairs of models, one line each, which ends where the shallower model does; in an order such as from little data
            to much, as colours go from light to dark. None is every pair of different models.
        labels: what the lines are called instead of the names of both models.
        ceiling: a pair that differs by nothing but chance, which stands apart: grey and dashed.
        further: of a pair, those of its further training runs: thin lines.

    Raises:
        Undrawable: the table does not compare the models of a pair, or labels and pairs differ in number.
    """
    if "control" in table:  # of the same pairs in several ways
        table = table[table["control"] == "all"]
    pairs = _of_different_models(table) if pairs is None else pairs
    if labels and len(labels) != len(pairs):
        raise Undrawable(f"{len(labels)} labels for {len(pairs)} pairs of models")
    wide = page_width(PANEL + 1)
    size = (wide, 0.8 * min(wide, PANEL + 1) + 0.3)
    figure = Figure(figsize=size, layout="constrained", dpi=200)
    ax = figure.subplots()
    drawn = [*pairs, *([ceiling] if ceiling else [])]
    one = len({model for model, _ in drawn}) == 1  # then lines need not name it
    called = [*(labels or (_called(pair, one) for pair in pairs))]
    called += [f"{_called(ceiling, one)} (ceiling)"] if ceiling else []
    colours = [*mpl.colormaps["viridis"](np.linspace(0.75, 0.1, len(pairs))), "0.45"]
    for number, (model, other) in enumerate(drawn):
        own = _same_blocks(table, model, other)
        look = {"color": colours[number], "marker": MARKERS[number % len(MARKERS)]}
        if (model, other) == ceiling:
            look |= {"linestyle": "--", "markerfacecolor": "white"}
        band(ax, own["cka"], own["low"], own["high"], label=called[number], **look)
        for run in further.get((model, other), ()):
            ax.plot(_same_blocks(table, *run)["cka"], **THIN, color=colours[number])
    whose = f" of {display_name(pairs[0][0])}" if one else ""
    _by_block(ax, f"CKA with the same block{whose}{token_note(table)}")
    legend_below([ax], figure.get_figwidth())
    apart = "Ceiling: models that differ by nothing but chance." if ceiling else ""
    caption(figure, table, apart, TOLD if any(further.values()) else "", bands="Bands")
    return figure


def _of_different_models(table: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs of different models that a table compares."""
    held = dict.fromkeys(zip(table["model"], table["other_model"], strict=True))
    return [pair for pair in held if pair[0] != pair[1]]


def _by_block(ax: Axes, what: str) -> None:
    """Label a panel of similarities by block; its scale begins at 0, or at one half where all that it shows lies above."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("block", fontsize=points(9))
    ax.set_ylabel(what, fontsize=points(9))
    least = float(ax.dataLim.y0)
    ax.set_ylim(HALF if least > HALF else min(0.0, 1.05 * least), 1.02)
    ax.tick_params(labelsize=points(8))


def _same_blocks(table: pd.DataFrame, model: str, other: str) -> pd.DataFrame:
    """The rows that compare a block of one model with the same block of another, by the block's number."""
    rows = between(table, model, other)
    place = rows["layer"].factorize()[0]
    return rows.assign(block=place)[place == rows["other_layer"].factorize()[0]].set_index("block")


def _called(pair: tuple[str, str], one: bool) -> str:
    return " and ".join(map(display_name, pair[one:]))


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
        narrow = axis.axes.bbox.width < SMALLEST * axis.axes.figure.dpi
        ticks, labels = depth_ticks(layers["depth"].to_numpy(), FEW if narrow else DEPTHS)
        told = f"{display_name(models[0])}: depth ({len(layers)} layers)"
        axis.set_label_text(told, fontsize=points(8))
    else:
        ticks = [float(np.mean(np.flatnonzero(layers["model"] == model))) for model in models]
        room = 0.7 * PANEL / len(models)
        labels = [folded(display_name(model), room, points(8)) for model in models]
    axis.set_ticks(ticks, labels, fontsize=points(8))
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
