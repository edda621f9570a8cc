"""How far and how alike heads look, and what local heads resemble (figures 3, 4, 5, C.5 and C.6)."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_analysis.plot.axes import PANEL, draws, legend_outside, literal
from vit_analysis.plot.fitting import caption, folded
from vit_analysis.plot.grid import outer_labels, panels
from vit_analysis.plot.runs import THIN, first_runs, further_runs, told
from vit_analysis.plot.style import MARKERS, display_name, look, points

# The two lowest blocks in blue, the two highest in red; light and dark, and their markers, tell them apart without colours.
ENDS = (("#1f4e9c", "o"), ("#5fa8d3", "s"), ("#f2a33a", "^"), ("#b3261e", "D"))
PLACES = ("first block", "second block", "last block but one", "last block")
NEAR = 0.5  # of uniform attention's distance: nearer than that counts as looking near
NARROW = 0.1  # of the greatest distance: subsets whose distances differ by less tell nothing of distance
FEW = 8  # subsets, below which there is no rank correlation
SPREAD = {
    "distance_px": "mean distance\n/ that of uniform attention",
    "entropy": "entropy\n/ that of uniform attention",
    "nmi": "normalised mutual information\nof queries and keys",
}
OF_UNIFORM = {"distance_px": "uniform_px", "entropy": "uniform_entropy"}
BOUNDS = {"distance_px": ("low", "high")}  # of the others the name comes first
ASIDE = 0.008  # of the depth, from one model's heads to the next one's


@draws("attention_distance")
def head_distances(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Distance of the sorted heads of a model's two lowest and two highest blocks, in units of uniform attention's (dashed).

    The axis at the right has the same in pixels.

    Args:
        table: columns block, head, distance_px, low, high, uniform_px, of one model.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    for name, heads, (colour, marker) in _ends(table):
        place = np.arange(1, len(heads) + 1)
        part, look = heads["distance_px"] / heads["uniform_px"], f"{marker}-"
        ax.plot(place, part, look, color=colour, markersize=4, linewidth=1.3, label=name)
        low, high = heads["low"] / heads["uniform_px"], heads["high"] / heads["uniform_px"]
        ax.fill_between(place, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.axhline(1, color="0.4", linestyle="--", linewidth=1, label="uniform attention", zorder=1)
    ax.set_xlabel("head of the block, sorted", fontsize=points(9))
    ax.set_ylabel("mean distance / that of uniform attention", fontsize=points(9))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.tick_params(labelsize=points(8))
    if table["uniform_px"].nunique() == 1:
        _in_pixels(ax, float(table["uniform_px"].iloc[0]))
    return ax


def _ends(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame, tuple[str, str]]]:
    """Return (label, sorted heads, colour and marker) of the two lowest and the two highest blocks, each once."""
    names = list(dict.fromkeys(table["block"]))
    shown = dict(zip([*names[:2], *names[-2:]][: len(names)], zip(PLACES, ENDS, strict=True), strict=False))
    return [
        (f"{place} ({name})", table[table["block"] == name].sort_values("distance_px"), look)
        for name, (place, look) in shown.items()
    ]


def _in_pixels(ax: Axes, uniform: float) -> None:
    def there(part: Any) -> Any:
        return part * uniform

    def back(px: Any) -> Any:
        return px / uniform

    right = ax.secondary_yaxis("right", functions=(there, back))
    right.set_ylabel("px", fontsize=points(9))
    right.tick_params(labelsize=points(8))


@draws("attention_distance")
@literal
def attention_distance(table: pd.DataFrame) -> Figure:
    """Figures 3, 4, C.5 and C.6 of the paper: one panel per model, on one scale of uniform attention's distance."""
    models = first_runs(table)
    figure, axes = panels(len(models), PANEL + 0.2, PANEL + 0.1)
    shown = []
    for ax, model in zip(axes, models, strict=True):
        head_distances(table[table["model"] == model], ax)
        for run in (model, *further_runs(table, model)):
            ends = _ends(table[table["model"] == run])
            shown += [pd.concat(heads for _, heads, _ in ends)]
            for _, heads, (colour, _) in ends if run != model else ():
                place = np.arange(1, len(heads) + 1)
                ax.plot(place, heads["distance_px"] / heads["uniform_px"], **THIN, color=colour)
        ax.set_title(folded(display_name(model), PANEL), fontsize=points(9))
    rows = pd.concat(shown)
    part = pd.concat([rows[name] / rows["uniform_px"] for name in ("distance_px", "low", "high")])
    least, most = min(1.0, part.min()), max(1.0, part.max())
    if least < NEAR:
        least = 0.0
    margin = 0.08 * (most - least)
    for ax in axes:
        ax.set_ylim(least - margin if least else 0, most + margin)
    outer_labels(axes)
    legend_outside(figure, axes[0], "outside upper center")
    caption(
        figure, table,
        f"No head of these blocks looks nearer than {part.min():.2f} times as far as uniform attention." if least else "",
        "Blocks between the first two and the last two are not shown.", told(table), bands="Bands (many narrower than lines)",
    )  # fmt: skip
    return figure


@draws("attention_distance")
@literal
def attention_spread(table: pd.DataFrame) -> Figure:
    """Draw distance, entropy and mutual information of all heads over depth, a colour per model.

    Args:
        table: columns model, block, depth, distance_px, uniform_px, entropy, uniform_entropy, nmi, and their intervals.
    """
    figure, axes = panels(len(SPREAD), PANEL, 0.85 * PANEL)
    for ax, (name, label) in zip(axes, SPREAD.items(), strict=True):
        heads_over_depth(table, name, ax)
        ax.set_title(label, fontsize=points(9))
    legend_outside(figure, axes[0], "outside upper center")
    caption(figure, table, "Points: heads. Lines: their mean.", told(table), bands="Bars")
    return figure


@draws("attention_distance")
def heads_over_depth(table: pd.DataFrame, name: str, ax: Axes | None = None) -> Axes:
    """Draw one statistic of all heads over depth, a point with its interval each, and a line through the mean of each block.

    Distance and entropy are in units of those of uniform attention (dashed). Of further training runs only lines are drawn.

    Args:
        table: columns model, block, depth, the statistic with its interval, and that of uniform attention.
        name: ``distance_px``, ``entropy`` or ``nmi``.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    low, high = BOUNDS.get(name, (f"{name}_low", f"{name}_high"))
    unit = table[OF_UNIFORM[name]] if name in OF_UNIFORM else 1.0
    table = table.assign(**{one: table[one] / unit for one in (name, low, high)})
    models = first_runs(table)
    for number, model in enumerate(models):
        own, drawn = table[table["model"] == model], look(model, table)
        place = own["depth"] + ASIDE * (number - (len(models) - 1) / 2)
        bars = np.maximum([own[name] - own[low], own[high] - own[name]], 0)
        face = drawn.line()["markerfacecolor"]
        bare = {
            "linestyle": "",
            "marker": drawn.marker,
            "markersize": 2.5,
            "alpha": 0.5,
            "markerfacecolor": face,
        }
        ax.errorbar(place, own[name], bars, None, color=drawn.colour, elinewidth=0.7, **bare)
        for run in (model, *further_runs(table, model)):
            mean = table[table["model"] == run].groupby("block", sort=False)[["depth", name]].mean()
            line = drawn.line() | {"marker": "", "linewidth": 1.3} if run == model else THIN
            label = display_name(model) if run == model else None
            ax.plot(mean["depth"], mean[name], **({"color": drawn.colour} | line), label=label)
    if name in OF_UNIFORM:
        ax.axhline(1, color="0.4", linestyle="--", linewidth=1, zorder=1)
    ax.set_ylim(bottom=min(0, ax.get_ylim()[0]) if name == "nmi" else None)
    ax.set_xlabel("depth", fontsize=points(9))
    ax.tick_params(labelsize=points(8))
    return ax


@draws("head_subsets")
def subset_similarity(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Similarity of subsets of heads with a CNN's lower units (one line each) over the mean distance of the subset.

    Where the distances hardly differ or the subsets are few, the panel says that it tells nothing.

    Args:
        table: columns vit, cnn, layer, distance_px, cka, low, high, of one pair of models.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    units = list(dict.fromkeys(table["layer"]))
    colours = mpl.colormaps["viridis"](np.linspace(0, 0.85, len(units)))
    narrow, few = _tells_nothing(table)
    faint = 0.35 if narrow else 1.0
    for number, (unit, colour) in enumerate(zip(units, colours, strict=True)):
        rows = table[table["layer"] == unit].sort_values("distance_px")
        line = {"color": colour, "marker": MARKERS[number % len(MARKERS)], "alpha": faint}
        ax.plot(rows["distance_px"], rows["cka"], **line, markersize=4, linewidth=1.3, label=unit)
        place, low, high = (rows[name] for name in ("distance_px", "low", "high"))
        ax.fill_between(place, low, high, color=colour, alpha=0.15 * faint, linewidth=0)
    ax.set_xlabel("mean distance of the subset of heads (px)", fontsize=points(9))
    ax.set_ylabel("CKA", fontsize=points(9))
    ax.tick_params(labelsize=points(8))
    if narrow or few:
        told = folded(f"Not measured: {'; '.join(filter(None, (narrow, few)))}.", 0.85 * PANEL, 8)
        least, most = ax.get_ylim()
        ax.set_ylim(least, most + (0.08 + 0.06 * (1 + told.count("\n"))) * (most - least))
        box = {"boxstyle": "round", "facecolor": "#fff7d6", "edgecolor": "0.6"}
        ax.text(0.5, 0.97, told, fontsize=points(8), bbox=box, transform=ax.transAxes, ha="center", va="top")
    return ax


def _tells_nothing(table: pd.DataFrame) -> tuple[str, str]:
    """Say why a pair of models cannot tell whether similarity falls with distance: too narrow a range, too few subsets."""
    distance = table["distance_px"]
    spread, count = distance.max() - distance.min(), distance.nunique()
    part = 100 * spread / distance.max()
    narrow = (
        f"distances differ by {spread:.1f} px ({part:.0f}\N{NO-BREAK SPACE}%), too little to tell anything"
    )
    few = f"{count} subsets of heads, and a rank correlation needs {FEW}"
    return narrow if spread < NARROW * distance.max() else "", few if count < FEW else ""


@draws("head_subsets")
@literal
def head_subsets(table: pd.DataFrame) -> Figure:
    """Figure 5 of the paper: one panel per pair of a Vision Transformer and a CNN, similarity on one scale."""
    pairs = list(table[["vit", "cnn"]].drop_duplicates().itertuples(index=False, name=None))
    figure, axes = panels(len(pairs), PANEL + 0.6, PANEL)
    for ax, (vit, cnn) in zip(axes, pairs, strict=True):
        subset_similarity(table[(table["vit"] == vit) & (table["cnn"] == cnn)], ax)
        title = f"first block of {display_name(vit)} and units of {display_name(cnn)}"
        ax.set_title(folded(title, PANEL), fontsize=points(9))
    legend_outside(figure, axes[0], "outside upper center")
    caption(figure, table, bands="Bands")
    return figure
