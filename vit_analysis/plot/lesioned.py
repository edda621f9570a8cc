"""Models without the skip connections of one block: what it costs, and what is alike across that block (figure 8)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_analysis.plot.axes import PANEL, draws, legend_outside, literal
from vit_analysis.plot.fitting import caption, folded
from vit_analysis.plot.heatmaps import between, heatmaps
from vit_analysis.plot.runs import THIN, first_runs, further_runs, told
from vit_analysis.plot.style import display_name, look, page_width, points

CHANGED = "#35d0ff"
PAPER = (
    4.0  # percentage points that the paper says training without the skip connections of a middle block costs
)
INTACT: dict[str, Any] = {"color": "0.45", "linestyle": "--", "linewidth": 1}


@draws("lesions", "lesions_trained")
@literal
def lesions(table: pd.DataFrame) -> Figure:
    """Draw what the skip connections of a block are worth to accuracy and to similarity across the block (figure 8)."""
    figure = Figure(figsize=(page_width(2.6 * PANEL), PANEL), layout="constrained", dpi=200)
    left, right = figure.subplots(1, 2)
    if table.attrs.get("analysis") == "lesions_trained":
        _costs(table, left)
        _across(table, right)
        legend_outside(figure, right, "outside upper center")
        notes = [f"Intact: {display_name(str(table.attrs.get('intact', '')))}.", _dots(table)]
        caption(figure, table, *notes, bands="Bars")
        return figure
    for model in first_runs(table):
        for value, ax in (("accuracy", left), ("across", right)):
            without_skip(table[table["model"] == model], value, ax)
            for run in further_runs(table, model):
                own = table[table["model"] == run]
                ax.plot(np.arange(len(own)), own[value], **THIN, color=look(run, table).colour)
    by_labels = set(table["reference"]) == {"labels"}
    left.set_ylabel("accuracy" if by_labels else "agreement with the intact model", fontsize=points(9))
    right.set_ylabel("mean CKA across the block", fontsize=points(9))
    left.set_ylim(-0.03, 1.03)
    right.set_ylim(bottom=min(0, right.get_ylim()[0]))
    for ax in (left, right):
        ax.set_xlabel("block run without its skip connections", fontsize=points(9))
    legend_outside(figure, left, "outside upper center")
    caption(figure, table, "Dashed: the intact models.", told(table), bands="Bands")
    return figure


@draws("lesions", "lesions_trained")
def without_skip(table: pd.DataFrame, value: str, ax: Axes | None = None) -> Axes:
    """Draw a value without each block's skip connections, and the intact model's (dashed); bands are 95 % intervals.

    The band of accuracy is its own, inside [0, 1]; that of similarity is of what it lost.

    Args:
        table: columns model, accuracy, accuracy_low, accuracy_high, drop, or across, across_drop, across_low, across_high; one
            row per block of one model.
        value: ``accuracy`` or ``across``.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    model = str(table["model"].iloc[0])
    drawn, place = look(model, table), np.arange(len(table))
    whole = table[value] + table["drop" if value == "accuracy" else f"{value}_drop"]
    low, high = table[f"{value}_low"], table[f"{value}_high"]
    if value != "accuracy":
        low, high = whole - high, whole - low
    ax.plot(place, whole, color=drawn.colour, linestyle="--", linewidth=1)
    ax.plot(place, table[value], **drawn.line(), markersize=4, label=display_name(model))
    ax.fill_between(place, low, high, color=drawn.colour, alpha=0.2, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=points(8))
    return ax


def _costs(table: pd.DataFrame, ax: Axes) -> None:
    """Percentage points of accuracy lost by training without the skip connections of a block."""
    for place, rows in enumerate(_by_block(table)):
        points_lost = 100 * rows[["drop", "low", "high"]].to_numpy(dtype=float)
        _bar(ax, place, *points_lost[0])
        ax.plot(
            np.full(len(rows) - 1, place + 0.12),
            points_lost[1:, 0],
            "o",
            color="0.2",
            markersize=3,
            fillstyle="none",
        )
    ax.axhline(0, **INTACT)
    ax.axhline(PAPER, color="0.45", linestyle=":", linewidth=1)
    right = ax.get_yaxis_transform()
    ax.text(
        0.99,
        PAPER,
        "the paper's 4",
        transform=right,
        ha="right",
        va="bottom",
        fontsize=points(7),
        color="0.3",
    )
    ax.text(0.99, 0, "intact", transform=right, ha="right", va="bottom", fontsize=points(7), color="0.3")
    by_labels = set(table["reference"]) == {"labels"}
    ax.set_ylabel(f"{'accuracy' if by_labels else 'agreement'} lost (percentage points)", fontsize=points(9))
    _blocks(table, ax)


def _across(table: pd.DataFrame, ax: Axes) -> None:
    """CKA of layers below with layers above the block, in the model without its skip connections and in the intact one."""
    for place, rows in enumerate(_by_block(table)):
        first = rows.iloc[0]
        labels = ("without the block's skip connections", "intact model") if not place else (None, None)
        own, whole = float(first["across"]), float(first["across_intact"])
        ax.plot([place, place], [own, whole], color="0.75", linewidth=2, zorder=1)
        _bar(
            ax, place, own, whole - float(first["across_high"]), whole - float(first["across_low"]), labels[0]
        )
        ax.plot(place, whole, "D", color="0.45", markerfacecolor="white", markersize=5, label=labels[1])
        further = rows["across"].iloc[1:]
        ax.plot(
            np.full(len(further), place + 0.12), further, "o", color="0.2", markersize=3, fillstyle="none"
        )
    ax.set_ylabel("mean CKA across the block", fontsize=points(9))
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    _blocks(table, ax)


def _bar(ax: Axes, place: int, value: float, low: float, high: float, label: str | None = None) -> None:
    away = [[max(value - low, 0.0)], [max(high - value, 0.0)]]
    ax.errorbar([place], [value], yerr=away, fmt="o", color="0.15", markersize=5, capsize=3, label=label)


def _by_block(table: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each block, from the lowest on: several are training runs, the first one first."""
    blocks = sorted(
        dict.fromkeys(table["block"]), key=lambda name: [int(n) for n in str(name).split(".") if n.isdigit()]
    )
    return [table[table["block"] == block] for block in blocks]


def _blocks(table: pd.DataFrame, ax: Axes) -> None:
    names = [str(rows["block"].iloc[0]) for rows in _by_block(table)]
    room = (page_width(2.6 * PANEL) / 2 - 0.7) / len(names)
    ax.set_xticks(range(len(names)), [folded(name, room, points(8)) for name in names])
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_xlabel("block trained without its skip connections", fontsize=points(9))
    ax.tick_params(labelsize=points(8))


def _dots(table: pd.DataFrame) -> str:
    return "Circles: further training runs." if table["block"].duplicated().any() else ""


@draws("cka", "cka_controls")
@literal
def without_skips(table: pd.DataFrame, *, intact: str, changed: Mapping[str, str]) -> Figure:
    """Figure 8 of the paper: similarity within the intact model, then within each model without the skips of a block.

    Args:
        table: columns of `heatmap`.
        intact: the model with all skip connections.
        changed: the block without skip connections by model; lines mark it. Empty where it is not known: no lines.

    Raises:
        Undrawable: the table does not compare one of the models with itself.
    """
    models = [intact, *changed]
    figure = heatmaps(table, panels=[(model, model) for model in models])
    axes = [ax for ax in figure.axes if ax.images]
    for ax, model in zip(axes, models, strict=True):
        layers = list(dict.fromkeys(between(table, model, model)["layer"]))
        if model == intact:
            ax.set_title("all skip connections", fontsize=points(9))
            continue
        if block := changed[model]:
            ax.set_title(f"none in {block}", fontsize=points(9))
            _mark(ax, layers, block)
    return figure


def _mark(ax: Axes, layers: list[str], block: str) -> None:
    """Draw lines at both ends of a block, along both axes, and brackets at the frame."""
    inside = [
        place
        for place, layer in enumerate(layers)
        if layer.partition(":")[0] == block or layer.startswith(f"{block}.")
    ]
    if not inside:
        return
    ends = [inside[0] - 0.5, inside[-1] + 0.5]
    for end in ends:
        ax.axvline(end, color=CHANGED, linewidth=1, linestyle="--")
        ax.axhline(end, color=CHANGED, linewidth=1, linestyle="--")
    frame: dict[str, Any] = {"color": CHANGED, "linewidth": 4, "clip_on": False, "solid_capstyle": "butt"}
    ax.plot(ends, [0, 0], transform=ax.get_xaxis_transform(), **frame)
    ax.plot([0, 0], ends, transform=ax.get_yaxis_transform(), **frame)
