"""What probes read, and how entangled classes are (figures 11, 13, D.4 and the course notes)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_analysis.plot.axes import (
    COLOURS,
    PANEL,
    Undrawable,
    band,
    chance_line,
    draws,
    legend_below,
    legend_outside,
    literal,
)
from vit_analysis.plot.fitting import caption, folded
from vit_analysis.plot.grid import beside, outer_labels, panels
from vit_analysis.plot.runs import THIN, first_runs, further_runs, told
from vit_analysis.plot.style import display_name, look, page_width, points

# How the representations that probes read are told apart, and what they are called; a model has one colour.
REPRESENTATIONS = {
    "cls": ("-", "*", "class token"),
    "mean": ("--", "s", "mean of all tokens"),
    "mean_spatial": (":", "^", "mean without the class token"),
    "first token": ("-.", "v", "first token"),
}
MAPS = 5  # layers shown of each model, from the first to the last
DRAWS = "Bands: from the worst to the best draw of examples."


@draws("probe")
def accuracies(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy of linear probes over depth: a line per model and representation, its band from the worst to the best draw.

    Args:
        table: columns model, depth, tokens, draw, accuracy, of one target. Of several training runs of a model the first has
            a band, the others are thin lines.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    firsts = first_runs(table)
    several = table.groupby("model")["tokens"].nunique().max() > 1
    for (model, tokens), rows in table.groupby(["model", "tokens"], sort=False):
        percents = rows.assign(percent=100 * rows["accuracy"]).groupby("depth")["percent"]
        drawn = look(str(model), table)
        if model not in firsts:
            mean = percents.mean()
            ax.plot(mean.index, mean, **THIN, color=drawn.colour)
            continue
        line, label = drawn.line(), display_name(str(model))
        if several:
            dashes, marker, name = REPRESENTATIONS.get(str(tokens), ("-", "o", str(tokens)))
            line |= {"linestyle": dashes, "marker": marker}
            label = name if len(firsts) == 1 else f"{label}: {name}"
        band(ax, percents.mean(), percents.min(), percents.max(), label=label, **line)
    ax.set_xlabel("depth", fontsize=points(9))
    ax.set_ylabel("accuracy (%)", fontsize=points(9))
    ax.set_ylim(0, _top(100 * table["accuracy"]))
    ax.tick_params(labelsize=points(8))
    return ax


def _top(percents: pd.Series) -> float:
    """The end of an axis of accuracies: room above the best, and no more than there is."""
    return float(min(102.0, max(1.15 * percents.max(), 5.0)))


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
def probe(table: pd.DataFrame, *, groups: Sequence[Sequence[str]] = (), note: str = "") -> Figure:
    """Figures 13 and F of the paper: accuracy of probes of what each model's own head reads; chance is dotted.

    Panels of one target have one scale; another target, with another chance level, has its own.

    Args:
        table: columns model, depth, tokens, target, shots, draw, accuracy, with attrs ``native`` and ``chance``.
        groups: models that are compared with each other, a panel for each group and target; below it stands how much
            better the first of the group is than each other, draw by draw. By default all models are in one panel per
            target, and nothing below.
        note: a sentence for the caption.
    """
    own = table[table["tokens"] == table["model"].map(table.attrs["native"])]
    own.attrs = table.attrs
    places = [
        (target, list(group))
        for target in dict.fromkeys(table["target"])
        for group in groups or [list(dict.fromkeys(own["model"]))]
    ]
    lines = 2 if groups else 1
    wide = page_width((PANEL - 0.4) * max(len(places), 1.5))
    figure = Figure(figsize=(wide, (PANEL - 0.4) * (1.55 if groups else 1)), layout="constrained", dpi=200)
    axes = figure.subplots(lines, len(places), squeeze=False, sharex=True, height_ratios=[1.6, 1][:lines])
    for column, (target, group) in zip(axes.T, places, strict=True):
        members = [run for model in group for run in (model, *further_runs(own, model))]
        rows = own[(own["target"] == target) & own["model"].isin(members)]
        rows.attrs = table.attrs
        accuracies(rows, column[0])
        chance_line(column[0], 100 * table.attrs["chance"][target])
        column[0].set_title(f"{target} ({table['shots'].iloc[0]} shots)", fontsize=points(9))
        column[0].set_ylim(0, _top(100 * own.loc[own["target"] == target, "accuracy"]))
        column[0].set_xlabel("" if groups else "depth")
        if groups:
            _better(rows, group, column[1])
    outer_labels(axes.flatten().tolist())
    _one_scale(axes[1:].flatten().tolist())
    if groups:
        legend_below(axes[1].tolist(), wide / len(places) - 0.4)
    _one_legend(figure, axes[0].tolist())
    caption(figure, table, DRAWS, told(own), note)
    return figure


def _one_scale(axes: Sequence[Axes]) -> None:
    """Give some panels the widest of their scales."""
    ends = [end for ax in axes for end in ax.get_ylim()]
    for ax in axes:
        ax.set_ylim(min(ends), max(ends))


def _better(rows: pd.DataFrame, group: Sequence[str], ax: Axes) -> None:
    """By how many points the first model of a group is better than each other over depth, from draw to draw."""
    first, *others = [name for name in group if name in set(rows["model"])]
    for other in others:
        left, right = (
            rows[rows["model"] == name].pivot_table(index="depth", columns="draw", values="accuracy")
            for name in (first, other)
        )
        paired = left.columns.intersection(right.columns)
        there = {draw: np.interp(left.index, right.index, right[draw]) for draw in paired}
        gap = 100 * (left[paired] - pd.DataFrame(there, index=left.index))
        label = f"{display_name(first)} \N{MINUS SIGN} {display_name(other)}"
        band(ax, gap.mean(axis=1), gap.min(axis=1), gap.max(axis=1), label=label, **look(other, rows).line())
    ax.axhline(0, color="0.4", linewidth=0.8)
    ax.set_xlabel("depth", fontsize=points(9))
    ax.set_ylabel("points better", fontsize=points(9))
    ax.tick_params(labelsize=points(8))


def _one_legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Put one legend of all that any of some panels shows above them."""
    held = {label: line for ax in axes for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    for label in [label for label in held if label not in axes[0].get_legend_handles_labels()[1]]:
        axes[0].plot([], [], label=label)[0].update_from(held[label])  # an empty line of the same look
    legend_outside(figure, axes[0], "outside upper center")


@draws("probe")
@literal
def probe_tokens(table: pd.DataFrame) -> Figure:
    """Figure 11 of the paper, for the first target: single tokens on average, and the representations of each model.

    What a model's own head reads is drawn thick.
    """
    rows = table[table["target"] == table["target"].iloc[0]]
    single = rows[rows["tokens"].str.isdigit()]
    first = rows["tokens"].eq("0") & rows["model"].map(table.attrs["native"]).eq("mean")
    whole = rows[~rows["tokens"].str.isdigit() | first].replace({"tokens": {"0": "first token"}})
    models = first_runs(rows)
    shown: list[tuple[str, pd.DataFrame]] = [
        (display_name(model), whole[whole["model"] == model]) for model in models
    ]
    if _mapped(single):
        average = (
            single.groupby(["model", "layer", "depth", "draw"], sort=False)["accuracy"].mean().reset_index()
        )
        shown = [("single tokens, on average", average.assign(tokens="each")), *shown]
    figure, axes = panels(len(shown), PANEL, PANEL - 0.4, most=2 if len(shown) == 4 else 3)
    for ax, (title, panel) in zip(axes, shown, strict=True):
        panel.attrs = table.attrs
        accuracies(panel, ax)
        chance_line(ax, 100 * table.attrs["chance"][rows["target"].iloc[0]])
        ax.set_ylim(0, _top(100 * rows["accuracy"]))
        ax.set_title(title, fontsize=points(9))
        native = table.attrs["native"].get(panel["model"].iloc[0]) if panel["model"].nunique() == 1 else None
        for line in ax.lines:
            if native and line.get_label() == REPRESENTATIONS.get(native, ("", "", ""))[2]:
                line.set_linewidth(2.4)
    outer_labels(axes)
    legend_below(axes, beside(axes) - 0.3)
    task = f"{rows['target'].iloc[0]}, {table['shots'].iloc[0]} shots"
    thick = "Thick: what the model's own head reads."
    caption(figure, table, f"Task: {task}.", DRAWS, thick, told(average if _mapped(single) else whole[:0]))
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
    models = [model for model in _mapped(rows) if model in first_runs(rows)]
    if not models:
        raise Undrawable("no single tokens in this table: they are measured with tokens 'each'")
    rows = rows[rows["model"].isin(models)]
    top = 100 * rows.groupby(["model", "layer", "tokens"])["accuracy"].mean().max()
    wide = page_width(1.5 * MAPS + 0.8)
    size = (wide, ((wide - 0.8) / MAPS + 0.35) * len(models) + 0.2)
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
            ax.set_title(f"{folded(layer, 1.4, 8)}\n{_percents(least, most)}", fontsize=points(8))
        line[0].set_ylabel(folded(display_name(model), 1.4, 8), fontsize=points(8))
    bar = figure.colorbar(axes[0][0].images[0], ax=list(axes.flatten()), aspect=30, shrink=0.8, pad=0.01)
    bar.set_label(f"{rows['target'].iloc[0]}: accuracy of single tokens (%)", fontsize=points(8))
    bar.ax.tick_params(labelsize=points(8))
    caption(
        figure,
        table,
        "Above each panel: accuracy of its worst and of its best token. One colour scale for all.",
    )
    return figure


def _mapped(single: pd.DataFrame) -> list[str]:
    """Models that have probes on more than one single token."""
    return [str(model) for model, own in single.groupby("model", sort=False) if own["tokens"].nunique() > 1]


def _percents(least: float, most: float) -> str:
    """Write a range of percentages, with a decimal where it is narrower than 5 points."""
    digits = 0 if most - least >= 5 else 1
    return f"{least:.{digits}f}\N{EN DASH}{most:.{digits}f} %"
