"""Skip connections: norm ratios, cosines, lesions (figures 7, 8, E.1 and E.2)."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_analysis.plot.axes import COLOURS, LINES, PANEL, literal, plain_decades

SKIPPED = {
    ("attention", "spatial"): ("#5fa8d3", "attention, spatial tokens"),
    ("mlp", "spatial"): ("#1f4e9c", "MLP, spatial tokens"),
    ("attention", "cls"): ("#f2a33a", "attention, class token"),
    ("mlp", "cls"): ("#b3261e", "MLP, class token"),
    ("unit", "spatial"): ("0.35", "residual units"),
}
SUBLAYERS = {"attention": "attention", "mlp": "MLP"}


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


@literal
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
        plain_decades(bar.ax.yaxis)
    for ax, value in zip(axes[-1], ("norm_ratio", "cosine"), strict=True):
        over_blocks(table, value, ax)
        ax.set_ylabel(
            {"norm_ratio": "norm of skip / norm of long branch", "cosine": "cosine of output and skip"}[value]
        )
        ax.yaxis.label.set_fontsize(9)
    axes[-1][0].set_yscale("log")
    plain_decades(axes[-1][0].yaxis)
    handles, labels = axes[-1][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


@literal
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
