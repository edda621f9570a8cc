"""How far heads look, and what local heads resemble (figures 3, 4, 5, C.5 and C.6)."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_analysis.plot.axes import PANEL, draws, folded, legend_below, literal

ENDS = ("#1f4e9c", "#5fa8d3", "#f2a33a", "#b3261e")  # two lowest blocks (blue), two highest (red)


@draws("attention_distance")
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


@draws("attention_distance")
@literal
def attention_distance(table: pd.DataFrame) -> Figure:
    """Figures 3, 4, C.5 and C.6 of the paper: one panel per model, from 0 on one scale."""
    models = list(dict.fromkeys(table["model"]))
    figure = Figure(figsize=((PANEL + 0.6) * len(models), PANEL + 0.4), layout="constrained", dpi=200)
    axes = figure.subplots(1, len(models), squeeze=False)[0].tolist()
    for ax, model in zip(axes, models, strict=True):
        own = table[table["model"] == model]
        head_distances(own, ax)
        ax.set_title(folded(model, PANEL), fontsize=9)
        ax.set_ylim(0, 1.12 * max(own["uniform_px"].max(), own["distance_px"].max()))
    legend_below(axes)
    if table["uniform_px"].nunique() == 1:  # models of one input size
        top = max(ax.get_ylim()[1] for ax in axes)
        for ax in axes:
            ax.set_ylim(0, top)
    return figure


@draws("head_subsets")
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


@draws("head_subsets")
@literal
def head_subsets(table: pd.DataFrame) -> Figure:
    """Figure 5 of the paper: one panel per pair of a Vision Transformer and a CNN, similarity on one scale."""
    pairs = list(table[["vit", "cnn"]].drop_duplicates().itertuples(index=False, name=None))
    figure = Figure(figsize=((PANEL + 0.6) * len(pairs), PANEL + 0.4), layout="constrained", dpi=200)
    axes = figure.subplots(1, len(pairs), squeeze=False, sharey=True)[0].tolist()
    for ax, (vit, cnn) in zip(axes, pairs, strict=True):
        subset_similarity(table[(table["vit"] == vit) & (table["cnn"] == cnn)], ax)
        ax.set_title(folded(f"first block of {vit} and {cnn}", PANEL), fontsize=9)
    legend_below(axes)
    return figure
