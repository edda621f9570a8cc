"""Skip connections: norm ratios, cosines, lesions (figures 7, 8, E.1 and E.2)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_analysis.plot.axes import (
    COLOURS,
    LINES,
    PANEL,
    Undrawable,
    draws,
    folded,
    legend_outside,
    literal,
    plain_decades,
)

SKIPPED = {
    ("attention", "spatial"): ("#5fa8d3", "attention, spatial tokens"),
    ("mlp", "spatial"): ("#1f4e9c", "MLP, spatial tokens"),
    ("attention", "cls"): ("#f2a33a", "attention, class token"),
    ("mlp", "cls"): ("#b3261e", "MLP, class token"),
    ("unit", "spatial"): ("0.35", "residual units"),
}
SUBLAYERS = {"mlp": "MLP", "attention": "attention"}  # in the order of figure E.1
RATIO = "norm of skip / norm of long branch"
COSINE = "cosine of output and skip"
FIRST = 9  # tokens of figure 7
MASSIVE = 30  # colours end at the median times or divided by this


@draws("skip")
def token_ratios(table: pd.DataFrame, ax: Axes | None = None, *, norm: LogNorm | None = None) -> Axes:
    """Norm ratio of the first tokens (columns) of every block (rows), first block at the bottom.

    Args:
        table: columns block, token, norm_ratio, of one sublayer of one model. The class token
            is drawn wider among more than 30.
        ax: where to draw; None makes a figure.
        norm: scale of the colours.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    own = table[table["token"].str.isdigit()]
    cells = own.pivot(index="block", columns="token", values="norm_ratio")
    cells = cells.loc[own["block"].unique(), own["token"].unique()]
    style: dict[str, Any] = {
        "origin": "lower",
        "cmap": COLOURS,
        "norm": norm,
        "interpolation": "nearest",
        "aspect": "auto",
    }
    ax.imshow(cells.to_numpy(), **style)
    marks = MaxNLocator(9, integer=True, steps=[1, 2, 5, 10]).tick_values(0, cells.shape[1] - 1)
    shown = [int(mark) for mark in marks if 0 <= mark < cells.shape[1]]
    names = [str(cells.columns[place]) for place in shown]
    places = [float(place) for place in shown]
    if names[0] == "0" and "cls" in set(table["token"]):
        names[0] = "0 (cls)"
        if wide := cells.shape[1] // 30:  # a single column among many would be too narrow to see
            ax.imshow(cells.to_numpy()[:, :1], extent=(-0.5 - wide, -0.5, -0.5, len(cells) - 0.5), **style)
            ax.set_xlim(-0.5 - wide, cells.shape[1] - 0.5)
            places[0] = -wide / 2
    ax.set_xticks(places, names)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("token", fontsize=9)
    ax.set_ylabel("block", fontsize=9)
    ax.tick_params(labelsize=8)
    return ax


@draws("skip")
def over_blocks(table: pd.DataFrame, value: str, ax: Axes | None = None) -> Axes:
    """A statistic of skip connections over the blocks, one line per model, sublayer and kind of token.

    Args:
        table: columns model, block, sublayer, token and ``value``; low and high where that is norm_ratio.
        value: norm_ratio (on a logarithmic axis) or cosine.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    dashes = dict(zip(dict.fromkeys(table["model"]), ("-", "--", ":", "-."), strict=False))
    summary = table[table["token"].isin(["cls", "spatial"])]
    for (model, sublayer, token), rows in summary.groupby(["model", "sublayer", "token"], sort=False):
        colour, kind = SKIPPED.get((str(sublayer), str(token)), ("0.6", f"{sublayer}, {token}"))
        label = f"{model!s}: {kind}"
        place = np.arange(len(rows))
        ax.plot(
            place, rows[value], "o", linestyle=dashes.get(model, "-"), color=colour, markersize=3, label=label
        )
        if value == "norm_ratio":
            ax.fill_between(place, rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("block", fontsize=9)
    ax.set_ylabel(RATIO if value == "norm_ratio" else COSINE, fontsize=9)
    if value == "norm_ratio":
        ax.set_yscale("log")
        plain_decades(ax.yaxis)
    ax.tick_params(labelsize=8)
    return ax


@draws("skip")
@literal
def skip(table: pd.DataFrame) -> Figure:
    """Figures 7, E.1 and E.2: tokens of each Vision Transformer, then norm ratios and cosines of all models over blocks."""
    lines = len(_transformers(table)) + 1
    figure = Figure(figsize=(2.6 * PANEL, (PANEL + 0.2) * lines + 0.5), layout="constrained", dpi=200)
    axes = figure.subplots(lines, 2, squeeze=False)
    if lines > 1:
        _token_maps(figure, axes[:-1], table)
    over_blocks(table, "norm_ratio", axes[-1][0])
    over_blocks(table, "cosine", axes[-1][1])
    legend_outside(figure, axes[-1][0])
    return figure


@draws("skip")
@literal
def norm_ratios(table: pd.DataFrame) -> Figure:
    """Figure 7 of the paper: the first tokens of the first Vision Transformer, mean of both sublayers, and ratios over blocks.

    Args:
        table: columns model, block, sublayer, token, norm_ratio, low, high. Lines are drawn for the first Vision
            Transformer and for all models of other kinds.
    """
    vits = _transformers(table)
    figure = Figure(figsize=(2.6 * PANEL, PANEL + 0.8), layout="constrained", dpi=200)
    axes = figure.subplots(1, 2 if vits else 1, squeeze=False)[0]
    if vits:
        numbers = [*map(str, range(FIRST)), "cls"]
        tokens = table[(table["model"] == vits[0]) & table["token"].isin(numbers)]
        tokens = tokens.groupby(["block", "token"], sort=False)["norm_ratio"].mean().reset_index()
        norm = _colours(tokens.loc[tokens["token"].str.isdigit(), "norm_ratio"])
        token_ratios(tokens, axes[0], norm=norm)
        axes[0].set_title(folded(f"{vits[0]}, mean of attention and MLP", PANEL), fontsize=9)
        _ratio_bar(figure, [axes[0]], tokens)
    over_blocks(table[~table["model"].isin(vits[1:])], "norm_ratio", axes[-1])
    legend_outside(figure, axes[-1])
    return figure


@draws("skip")
@literal
def token_norm_ratios(table: pd.DataFrame) -> Figure:
    """Figure E.1 of the paper: all numbered tokens of each Vision Transformer (a row), by MLP and attention, on one scale.

    Args:
        table: columns model, block, sublayer, token, norm_ratio.

    Raises:
        Undrawable: the table has no numbered tokens.
    """
    vits = _transformers(table)
    if not vits:
        raise Undrawable(
            "no numbered tokens in this table: a model that has tokens, and how many are kept (first)"
        )
    size = (2.6 * PANEL, (PANEL + 0.2) * len(vits))
    figure = Figure(figsize=size, layout="constrained", dpi=200)
    _token_maps(figure, figure.subplots(len(vits), 2, squeeze=False), table)
    return figure


@draws("skip")
@literal
def cosines(table: pd.DataFrame) -> Figure:
    """Figure E.2 of the paper: cosine of the output of an addition with its skip branch, over blocks.

    Args:
        table: columns model, block, sublayer, token, cosine.
    """
    figure = Figure(figsize=(1.6 * PANEL, PANEL + 0.8), layout="constrained", dpi=200)
    ax = over_blocks(table, "cosine", figure.subplots())
    legend_outside(figure, ax)
    return figure


def _transformers(table: pd.DataFrame) -> list[str]:
    """Models that have numbered tokens, which are the Vision Transformers."""
    return list(dict.fromkeys(table.loc[table["token"].str.isdigit(), "model"]))


def _token_maps(figure: Figure, axes: np.ndarray, table: pd.DataFrame) -> None:
    """Draw a row per Vision Transformer, with MLP and attention side by side, and the colour scale of all."""
    norm = _colours(table.loc[table["token"].str.isdigit(), "norm_ratio"])
    for line, model in zip(axes, _transformers(table), strict=True):
        for ax, (sublayer, name) in zip(line, SUBLAYERS.items(), strict=True):
            own = table[(table["model"] == model) & (table["sublayer"] == sublayer)]
            token_ratios(own, ax, norm=norm)
            ax.set_title(folded(f"{model}, {name}", PANEL), fontsize=9)
    _ratio_bar(figure, list(axes.flatten()), table)


def _colours(ratios: pd.Series) -> LogNorm | None:
    """The scale of colours from the least to the greatest ratio, but no farther from the median than `MASSIVE` allows."""
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    if ratios.empty:
        return None
    middle = ratios.median()
    return LogNorm(max(ratios.min(), middle / MASSIVE), min(ratios.max(), middle * MASSIVE))


def _ratio_bar(figure: Figure, axes: Sequence[Axes], table: pd.DataFrame) -> None:
    image = axes[0].images[0]
    shown = table.loc[table["token"].str.isdigit(), "norm_ratio"]
    ends = (bool((shown < image.norm.vmin).any()), bool((shown > image.norm.vmax).any()))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[
        ends
    ]
    bar = figure.colorbar(image, ax=list(axes), aspect=25, pad=0.01, extend=extend)
    bar.set_label(RATIO, fontsize=9)
    bar.ax.tick_params(labelsize=8, which="both")
    plain_decades(bar.ax.yaxis)


@draws("lesions", "lesions_trained")
@literal
def lesions(table: pd.DataFrame) -> Figure:
    """Draw accuracy, and similarity across a block, without that block's skip connections (figure 8)."""
    figure = Figure(figsize=(2.6 * PANEL, PANEL + 0.6), layout="constrained", dpi=200)
    left, right = figure.subplots(1, 2)
    trained = table.attrs.get("analysis") == "lesions_trained"
    by_labels = set(table["reference"]) == {"labels"}
    groups = [table] if trained else [rows for _, rows in table.groupby("model", sort=False)]
    for rows, colour in zip(groups, LINES, strict=False):
        name = table.attrs.get("intact", "") if trained else rows["model"].iloc[0]
        without_skip(rows, "accuracy", left, colour=colour, name=name)
        without_skip(rows, "across", right, colour=colour, name=name)
    left.set_ylabel("accuracy" if by_labels else "agreement with the intact model", fontsize=9)
    right.set_ylabel("mean CKA across the block", fontsize=9)
    left.set_ylim(0, 1.02)
    right.set_ylim(bottom=min(0, right.get_ylim()[0]))
    told = "trained" if trained else "run"
    for ax in (left, right):
        ax.set_xlabel(f"block {told} without its skip connections", fontsize=9)
        if trained:
            ax.set_xticks(range(len(table)), list(table["block"]))
        else:
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.tick_params(labelsize=8)
    legend_outside(figure, left)
    return figure


@draws("lesions", "lesions_trained")
def without_skip(
    table: pd.DataFrame, value: str, ax: Axes | None = None, *, colour: str = LINES[0], name: str = ""
) -> Axes:
    """Draw a value without each block's skip connections, and the intact model's (dashed); bands are 95 % intervals.

    The band of accuracy is its own, inside [0, 1]; that of similarity is of what it lost.

    Args:
        table: columns accuracy, accuracy_low, accuracy_high, drop, or across, across_drop, across_low, across_high; one row
            per block.
        value: ``accuracy`` or ``across``.
        ax: where to draw; None makes a figure.
        colour: of the lines.
        name: of the model, for the legend.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    place, whole = (
        np.arange(len(table)),
        table[value] + table["drop" if value == "accuracy" else f"{value}_drop"],
    )
    low, high = table[f"{value}_low"], table[f"{value}_high"]
    if value != "accuracy":
        low, high = whole - high, whole - low
    ax.plot(place, whole, "_--", color=colour, linewidth=1, markersize=10, label=f"{name} with all".strip())
    ax.plot(place, table[value], "o-", color=colour, markersize=4, label=f"{name} without".strip())
    ax.fill_between(place, low, high, color=colour, alpha=0.2, linewidth=0)
    return ax
