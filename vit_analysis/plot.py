"""Pictures: a table and an Axes in, the Axes out. Nothing is computed, shown or saved here but by the command itself.

python -m vit_analysis.plot figures/cka.parquet figures/cka.png
"""

import re
from collections.abc import Iterator, Sequence
from itertools import combinations, cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis, YAxis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

PANEL = 3.3  # inches
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SKIPPED = {
    ("attention", "spatial"): ("#5fa8d3", "attention, spatial tokens"),
    ("mlp", "spatial"): ("#1f4e9c", "MLP, spatial tokens"),
    ("attention", "cls"): ("#f2a33a", "attention, class token"),
    ("mlp", "cls"): ("#b3261e", "MLP, class token"),
    ("unit", "spatial"): ("0.35", "residual units"),
}
SUBLAYERS = {"attention": "attention", "mlp": "MLP"}
ENDS = ("#1f4e9c", "#5fa8d3", "#f2a33a", "#b3261e")  # two lowest blocks (blue), two highest (red)
# How the representations that probes read are told apart; a model has one colour.
REPRESENTATIONS = {"mean": "--", "mean_spatial": ":", "first token": "-."}
MAPS = 5  # layers shown of each model, from the first to the last
COLOURS = mpl.colormaps["magma"].with_extremes(bad="0.75")
LINES = ("#1f4e9c", "#b3261e", "#2e7d32", "#8e44ad", "#e67e22", "#555555")  # a model's colour
BRANCHES = {"residual": "after the addition", "long": "long branch alone"}
FIELDS = 5  # panels in a row, as in figure 6
TOKENS = ((0, 0), (2, 1), (4, 2), (4, 4))  # of figure 9, on its grid of 7 x 7
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
    bar.set_label(f"CKA{_tokens(table)}", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if told := _dominated(table):
        figure.supxlabel(told, fontsize=8, style="italic")
    return figure


def head_distances(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Mean distance of the sorted heads of a model's two lowest and two highest blocks, and of uniform attention (dashed).

    Args:
        table: columns block, head, distance_px, low, high, uniform_px, of one model.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    names = list(dict.fromkeys(table["block"]))
    shown = list(dict.fromkeys([*names[:2], *names[-2:]]))
    for block, colour in zip(shown, ENDS, strict=False):
        heads = table[table["block"] == block].sort_values("distance_px")
        place = np.arange(len(heads))
        ax.plot(place, heads["distance_px"], "o-", color=colour, markersize=3.5, linewidth=1.3, label=block)
        ax.fill_between(place, heads["low"], heads["high"], color=colour, alpha=0.2, linewidth=0)
    ax.axhline(
        table["uniform_px"].iloc[0], color="0.4", linestyle="--", linewidth=1, label="uniform attention"
    )
    ax.set_xlabel("head, sorted", fontsize=9)
    ax.set_ylabel("mean distance (px)", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=8)
    return ax


def attention_distance(table: pd.DataFrame) -> Figure:
    """Figures 3, 4, C.5 and C.6 of the paper: one panel per model, from 0 on one scale."""
    models = list(dict.fromkeys(table["model"]))
    figure = Figure(figsize=((PANEL + 0.6) * len(models), PANEL + 0.4), layout="constrained", dpi=200)
    axes = figure.subplots(1, len(models), squeeze=False).flatten()
    for ax, model in zip(axes, models, strict=True):
        own = table[table["model"] == model]
        head_distances(own, ax)
        ax.set_title(model, fontsize=9)
        ax.set_ylim(0, 1.12 * max(own["uniform_px"].max(), own["distance_px"].max()))
        _legend_below(ax)
    if table["uniform_px"].nunique() == 1:  # models of one input size
        top = max(ax.get_ylim()[1] for ax in axes)
        for ax in axes:
            ax.set_ylim(0, top)
    return figure


def subset_similarity(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Similarity of subsets of heads with a CNN's lower units (one line each) over the mean distance of the subset.

    Args:
        table: columns vit, cnn, layer, distance_px, cka, low, high, of one pair of models.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    units = list(dict.fromkeys(table["layer"]))
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(units)))
    for unit, colour in zip(units, colours, strict=True):
        rows = table[table["layer"] == unit].sort_values("distance_px")
        ax.plot(
            rows["distance_px"], rows["cka"], "o-", color=colour, markersize=3.5, linewidth=1.3, label=unit
        )
        ax.fill_between(rows["distance_px"], rows["low"], rows["high"], color=colour, alpha=0.15, linewidth=0)
    ax.set_xlabel("mean distance of the subset of heads (px)", fontsize=9)
    ax.set_ylabel("CKA", fontsize=9)
    ax.tick_params(labelsize=8)
    return ax


def head_subsets(table: pd.DataFrame) -> Figure:
    """Figure 5 of the paper: one panel per pair of a Vision Transformer and a CNN, similarity on one scale."""
    pairs = list(table[["vit", "cnn"]].drop_duplicates().itertuples(index=False, name=None))
    figure = Figure(figsize=((PANEL + 0.6) * len(pairs), PANEL + 0.4), layout="constrained", dpi=200)
    axes = figure.subplots(1, len(pairs), squeeze=False, sharey=True).flatten()
    for ax, (vit, cnn) in zip(axes, pairs, strict=True):
        subset_similarity(table[(table["vit"] == vit) & (table["cnn"] == cnn)], ax)
        ax.set_title(f"first block of {vit} and {cnn}", fontsize=9)
        _legend_below(ax)
    return figure


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


def token_ratios(table: pd.DataFrame, ax: Axes | None = None, *, norm: LogNorm | None = None) -> Axes:
    """Norm ratio of the first tokens (columns) of every block (rows), first block at the bottom.

    Args:
        table: columns block, token, norm_ratio, of one sublayer of one model.
        ax: where to draw; None makes a figure.
        norm: of the colours.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    own = table[table["token"].str.isdigit()]
    cells = own.pivot(index="block", columns="token", values="norm_ratio")
    cells = cells.loc[own["block"].unique(), own["token"].unique()]
    ax.imshow(
        cells.to_numpy(), origin="lower", cmap=COLOURS, norm=norm, interpolation="nearest", aspect="auto"
    )
    labels = ["0 (cls)" if name == "0" and "cls" in set(table["token"]) else name for name in cells.columns]
    ax.set_xticks(range(len(labels)), labels, fontsize=8)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("token", fontsize=9)
    ax.set_ylabel("block", fontsize=9)
    ax.tick_params(labelsize=8)
    return ax


def over_blocks(table: pd.DataFrame, value: str, ax: Axes | None = None) -> Axes:
    """A statistic of skip connections over the blocks, one line per model, sublayer and kind of token.

    Args:
        table: columns model, block, sublayer, token and ``value``; low and high where that is norm_ratio.
        value: which column.
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
    ax.tick_params(labelsize=8)
    return ax


def skip(table: pd.DataFrame) -> Figure:
    """Figures 7, E.1 and E.2: tokens of each Vision Transformer, then norm ratios and cosines of all models over blocks."""
    branches = table[table["token"].str.isdigit()][["model", "sublayer"]].drop_duplicates()
    maps = list(branches.itertuples(index=False, name=None))
    lines = -(-len(maps) // 2) + 1
    figure = Figure(figsize=(2.6 * PANEL, (PANEL + 0.2) * lines + 0.5), layout="constrained", dpi=200)
    axes = figure.subplots(lines, 2, squeeze=False)
    shown = table.loc[table["token"].str.isdigit(), "norm_ratio"]
    shown = shown[np.isfinite(shown) & (shown > 0)]
    # A few massive tokens are a hundred times the others: colours end at the 5th and 95th percentile.
    norm = LogNorm(*np.quantile(shown, (0.05, 0.95))) if len(shown) else None
    upper = axes[:-1].flatten()
    for ax, (model, sublayer) in zip(upper, maps, strict=False):
        token_ratios(table[(table["model"] == model) & (table["sublayer"] == sublayer)], ax, norm=norm)
        ax.set_title(f"{model}, {SUBLAYERS.get(sublayer, sublayer)}", fontsize=9)
    for ax in upper[len(maps) :]:
        ax.set_axis_off()
    if maps:
        bar = figure.colorbar(upper[0].images[0], ax=list(upper), aspect=25, pad=0.01, extend="both")
        bar.set_label("norm of skip / norm of long branch", fontsize=9)
        bar.ax.tick_params(labelsize=8, which="both")
        _plain_decades(bar.ax.yaxis)
    for ax, value in zip(axes[-1], ("norm_ratio", "cosine"), strict=True):
        over_blocks(table, value, ax)
        ax.set_ylabel(
            {"norm_ratio": "norm of skip / norm of long branch", "cosine": "cosine of output and skip"}[value]
        )
        ax.yaxis.label.set_fontsize(9)
    axes[-1][0].set_yscale("log")
    _plain_decades(axes[-1][0].yaxis)
    handles, labels = axes[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def lesions(table: pd.DataFrame) -> Figure:
    """What becomes of accuracy, and of similarity across a block, without that block's skip connections (figure 8)."""
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
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    return figure


def without_skip(
    table: pd.DataFrame, value: str, ax: Axes | None = None, *, colour: str = LINES[0], name: str = ""
) -> Axes:
    """A value without each block's skip connections, and of the intact model (dashed); the band is that of the difference.

    Args:
        table: columns accuracy, drop, low, high, or across, across_drop, across_low, across_high; one row per block.
        value: ``accuracy`` or ``across``.
        ax: where to draw; None makes a figure.
        colour: of the lines.
        name: of the model, for the legend.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    drop, low, high = (
        ("drop", "low", "high") if value == "accuracy" else (f"{value}_{x}" for x in ("drop", "low", "high"))
    )
    place, whole = np.arange(len(table)), table[value] + table[drop]
    ax.plot(place, whole, linestyle="--", color=colour, linewidth=1, label=f"{name} with all".strip())
    ax.plot(place, table[value], "o-", color=colour, markersize=4, label=f"{name} without".strip())
    ax.fill_between(place, whole - table[high], whole - table[low], color=colour, alpha=0.2, linewidth=0)
    return ax


def patch_map(table: pd.DataFrame, ax: Axes | None = None, *, least: float = 0, most: float = 1) -> Axes:
    """Similarity of one token with every patch of the image, the token's own patch outlined.

    Args:
        table: columns token_row, token_col, patch_row, patch_col, cka, of one token.
        ax: where to draw; None makes a figure.
        least: value of the darkest colour.
        most: value of the brightest.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL, PANEL), layout="constrained").subplots()
    values = table.pivot(index="patch_row", columns="patch_col", values="cka").to_numpy()
    ax.imshow(values, cmap=COLOURS, vmin=least, vmax=most, interpolation="nearest")
    row, column = table[["token_row", "token_col"]].iloc[0]
    own = Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fill=False, color="#35d0ff", linewidth=1.6, clip_on=False
    )
    ax.add_patch(own)
    ax.set_title(f"token ({row}, {column})", fontsize=8)
    ax.set(xticks=[], yticks=[])
    return ax


def localization(table: pd.DataFrame) -> Figure:
    """Figures 9, 10 and D.1-D.3 of the paper: a row per layer, a corner token and three interior ones, one scale per row."""
    rows = list(table.groupby(["model", "layer"], sort=False))
    figure = Figure(figsize=(1.5 * len(TOKENS) + 1.1, 1.75 * len(rows) + 0.3), layout="constrained", dpi=200)
    axes = figure.subplots(len(rows), len(TOKENS), squeeze=False)
    for line, ((model, layer), own) in zip(axes, rows, strict=True):
        shown = [own[own["token"] == token] for token in _tokens_shown(own)]
        values = pd.concat(shown)["cka"]
        least, most = min(0.0, values.min()), max(values.max(), 1e-6)
        for ax, token in zip(line, shown, strict=True):
            patch_map(token, ax, least=least, most=most)
        line[0].set_ylabel(f"{model}\n{layer}", fontsize=8)
        bar = figure.colorbar(line[0].images[0], ax=list(line), shrink=0.85, aspect=14, pad=0.02)
        bar.set_label("CKA", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    told = "" if table.attrs.get("tokens", "all") == "all" else f", {table.attrs['tokens']} tokens"
    figure.supxlabel(
        f"patches of the image; outlined: the token's own; a colour scale per row{told}", fontsize=8
    )
    return figure


PICTURES = {"cka": cka}
PICTURES |= {"localization": localization}
PICTURES |= {"receptive_field": receptive_field, "receptive_field_maps": receptive_field_maps}
PICTURES |= {"skip": skip, "lesions": lesions, "lesions_trained": lesions}
PICTURES |= {"attention_distance": attention_distance, "head_subsets": head_subsets}


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
        _band(ax, draws.mean(), draws.min(), draws.max(), label=f"{model}; {tokens}", **style)
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


def probe(table: pd.DataFrame) -> Figure:
    """Figure 13 of the paper: one panel per target, of what each model's own head reads, on one scale; chance is dotted."""
    targets = list(dict.fromkeys(table["target"]))
    figure = Figure(figsize=(PANEL * max(len(targets), 1.4), PANEL + 0.4), layout="constrained", dpi=200)
    axes = figure.subplots(1, len(targets), squeeze=False, sharey=True).flatten()
    own = table[table["tokens"] == table["model"].map(table.attrs["native"])]
    for ax, target in zip(axes, targets, strict=True):
        accuracies(own[own["target"] == target], ax)
        _chance(ax, 100 * table.attrs["chance"][target])
        ax.set_title(f"{target} ({table['shots'].iloc[0]} shots)", fontsize=9)
        ax.label_outer()
    _legend(figure, axes[0])
    return figure


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
    figure = Figure(figsize=(2.5 * PANEL, sum(heights)), layout="constrained", dpi=200)
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = parts[0].subplots(1, len(panels), squeeze=False, sharey=True).flatten()
    for ax, (title, panel) in zip(axes, panels.items(), strict=True):
        accuracies(panel, ax)
        _chance(ax, 100 * table.attrs["chance"][rows["target"].iloc[0]])
        ax.set_title(f"{rows['target'].iloc[0]}: {title} ({table['shots'].iloc[0]} shots)", fontsize=9)
        ax.label_outer()
        ax.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    top = 100 * single.groupby(["model", "layer", "tokens"])["accuracy"].mean().max() if mapped else 0
    for part, model in zip(parts[1:], mapped, strict=True):
        _maps(part, single[single["model"] == model], table.attrs["grids"][model], top)
    return figure


def entanglement(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Soft nearest neighbour loss over depth, a line per model with its 95 % interval; what unrelated features have is dotted.

    Args:
        table: columns model, depth, loss, low, high, chance.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    for (model, rows), colour in zip(table.groupby("model", sort=False), cycle(LINES), strict=False):
        place = rows.set_index("depth")
        _band(ax, place["loss"], place["low"], place["high"], color=colour, label=str(model))
    _chance(ax, table["chance"].iloc[0])
    ax.set_xlabel("depth", fontsize=9)
    ax.set_ylabel("soft nearest neighbour loss (nats)", fontsize=9)
    ax.tick_params(labelsize=8)
    return ax


def soft_nearest_neighbor(table: pd.DataFrame) -> Figure:
    """The loss with the best temperature, and with one fixed in units of the layer's distances, over depth."""
    figure = Figure(figsize=(2 * PANEL, PANEL + 0.4), layout="constrained", dpi=200)
    axes = figure.subplots(1, 2, sharey=True)
    axes[0].set_ylim(min(0, 1.1 * table["low"].min()), 1.08 * table["chance"].max())
    entanglement(table, axes[0])
    entanglement(table.assign(loss=table["loss_fixed"], low=np.nan, high=np.nan), axes[1])
    for ax, title in zip(axes, (f"best temperature{_tokens(table)}", "temperature = median squared distance"), strict=True):
        ax.set_title(title, fontsize=9)
        ax.label_outer()
    _legend(figure, axes[0])
    if told := _dominated(table, "distances"):
        figure.supxlabel(told, fontsize=8, style="italic")
    return figure


PICTURES |= {"probe": probe, "soft_nearest_neighbor": soft_nearest_neighbor}


def main(table: Path, picture: Path, /) -> None:
    """Draw a table again without computing it again.

    Args:
        table: a .parquet file that a command of this package wrote.
        picture: .png, .pdf or .svg.
    """
    if not table.is_file():
        raise SystemExit(f"error: no table {str(table)!r}")
    rows = pd.read_parquet(table)
    analysis = rows.attrs.get("analysis")
    if analysis not in PICTURES:
        raise SystemExit(
            f"error: {str(table)!r} is a table of {analysis!r}; there are pictures for {', '.join(PICTURES)}"
        )
    picture.parent.mkdir(parents=True, exist_ok=True)
    PICTURES[analysis](rows).savefig(picture)


def _plain_decades(axis: Axis) -> None:
    """0.5, 1, 2, 3, 5, 10 ... on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend_below(ax: Axes) -> None:
    """Where no line can run through it."""
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, fontsize=7, frameon=False)


def _band(ax: Axes, value: pd.Series, low: pd.Series, high: pd.Series, **style: Any) -> None:
    """A line through values by depth, with an interval around it."""
    (line,) = ax.plot(value.index, value, marker="o", markersize=3, linewidth=1.3, **style)
    ax.fill_between(value.index, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _chance(ax: Axes, level: float) -> None:
    ax.axhline(level, color="0.4", linestyle=":", linewidth=1, label="chance")


def _legend(figure: Figure, ax: Axes) -> None:
    """What the lines of all panels are, above them."""
    lines, labels = ax.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=len(labels), fontsize=8, frameon=False)


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


def _tokens_shown(own: pd.DataFrame) -> list[int]:
    """Numbers of the paper's tokens, moved to a grid of this size; all but the corner stay off the edge."""
    rows, columns = int(own["token_row"].max()) + 1, int(own["token_col"].max()) + 1
    places = [
        [min(max(int((place + 0.5) / 7 * size), 1), max(size - 2, 0)) if place else 0 for place, size in pair]
        for pair in (zip(token, (rows, columns), strict=True) for token in TOKENS)
    ]
    return [row * columns + column for row, column in places]


def _layers(table: pd.DataFrame, side: str) -> pd.DataFrame:
    names = {f"{side}{name}": name for name in ("model", "layer", "depth")}
    return table[list(names)].rename(columns=names).drop_duplicates(["model", "layer"]).reset_index(drop=True)


def _describe(axis: Axis, layers: pd.DataFrame) -> None:
    """Ticks at depths of one model, or at the middle of each of several."""
    models = list(dict.fromkeys(layers["model"]))
    if len(models) == 1:
        ticks, labels = _depth_ticks(layers["depth"].to_numpy())
        axis.set_label_text(f"{models[0]}: depth ({len(layers)} layers)", fontsize=8)
    else:
        ticks = [float(np.mean(np.flatnonzero(layers["model"] == model))) for model in models]
        labels = models
    axis.set_ticks(ticks, labels, fontsize=8)
    if len(models) > 1 and isinstance(axis, YAxis):
        for label in axis.get_ticklabels():
            label.set(rotation=90, verticalalignment="center")


def _depth_ticks(depth: np.ndarray) -> tuple[list[float], list[str]]:
    last = max(len(depth) - 1, 1)
    shown: Sequence[float] = DEPTHS if len(depth) > 1 else (0.0,)
    return [mark * last for mark in shown], [f"{mark:g}" for mark in shown]


def _boundaries(layers: pd.DataFrame) -> list[float]:
    """Between models, and between the stages of a model that has some."""
    stages = [STAGE.match(layer) for layer in layers["layer"]]
    keys = [
        (model, stage.group() if stage else "") for model, stage in zip(layers["model"], stages, strict=True)
    ]
    return [place - 0.5 for place in range(1, len(keys)) if keys[place] != keys[place - 1]]


def _dominated(table: pd.DataFrame, share: str = "hsic") -> str:
    """Which models have layers whose similarity or distances are mostly about a few massive tokens."""
    shares = pd.DataFrame(table.attrs.get("massive", []), columns=["model", "layer", share])
    dominated = shares[shares[share] > 0.5]
    if table.attrs.get("tokens", "all") != "all" or dominated.empty:
        return ""
    counts = [
        f"{model}: {len(rows)} of {_count(table, model)} layers" for model, rows in dominated.groupby("model")
    ]
    return f"Dominated by massive tokens, so compare with normalized tokens: {'; '.join(counts)}"


def _count(table: pd.DataFrame, model: object) -> int:
    return table.loc[table["model"] == model, "layer"].nunique()


def _tokens(table: pd.DataFrame) -> str:
    chosen = table.attrs.get("tokens", "all")
    return "" if chosen == "all" else f" ({chosen} tokens)"


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
