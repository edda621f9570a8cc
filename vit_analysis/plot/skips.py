"""Skip connections: norm ratios, cosines (figures 7, E.1 and E.2)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vit_analysis.plot.axes import COLOURS, PANEL, Undrawable, draws, legend_outside, literal, plain_decades
from vit_analysis.plot.fitting import caption, folded
from vit_analysis.plot.runs import THIN, first_runs, told
from vit_analysis.plot.style import display_name, look, page_width, points

SUBLAYERS = {"mlp": "MLP", "attention": "attention"}  # in the order of figure E.1
KINDS = {"cls": "class token", "spatial": "spatial tokens"}
UNIT = "unit"  # the sublayer of a CNN
RATIO = "norm of skip / of long branch"
COSINE = "cosine of output and skip"
FIRST = 9  # tokens of figure 7
OUTLYING = 3  # a spatial token so many times above or below the median of its block does not stretch the colour scale


@draws("skip")
def token_ratios(table: pd.DataFrame, ax: Axes | None = None, *, norm: LogNorm | None = None) -> Axes:
    """Norm ratio of the first tokens (columns) of every block (rows), first block at the bottom; a dot where colours end.

    Args:
        table: columns block, token, norm_ratio, of one sublayer of one model. The class token
            is drawn wider among more than 30.
        ax: where to draw; None makes a figure.
        norm: scale of the colours; cells beyond it have a dot.
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
    middles = np.arange(cells.shape[1], dtype=float)
    if names[0] == "0" and "cls" in set(table["token"]):
        names[0] = "0 (cls)"
        if wide := cells.shape[1] // 30:  # a single column among many would be too narrow to see
            ax.imshow(cells.to_numpy()[:, :1], extent=(-0.5 - wide, -0.5, -0.5, len(cells) - 0.5), **style)
            ax.set_xlim(-0.5 - wide, cells.shape[1] - 0.5)
            places[0] = middles[0] = -wide / 2
    _mark_beyond(ax, cells.to_numpy(), middles, norm)
    ax.set_xticks(places, names)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("token", fontsize=points(9))
    ax.set_ylabel("block", fontsize=points(9))
    ax.tick_params(labelsize=points(8))
    return ax


def _mark_beyond(ax: Axes, cells: np.ndarray, middles: np.ndarray, norm: LogNorm | None) -> None:
    """Put a dot on each cell that is below or above the scale of colours."""
    if norm is None or norm.vmin is None or norm.vmax is None:
        return
    for beyond, colour in ((cells < norm.vmin, "white"), (cells > norm.vmax, "black")):
        block, token = np.nonzero(beyond)
        ax.plot(middles[token], block, ".", color=colour, markersize=4, linestyle="none")


@draws("skip")
def over_blocks(table: pd.DataFrame, value: str, ax: Axes | None = None) -> Axes:
    """A statistic of skip connections over the blocks, one line per model, sublayer and kind of token.

    A model has one colour; class tokens are stars, and of two sublayers MLPs are dash-dotted.

    Args:
        table: columns model, block, sublayer, token and ``value``; low and high where that is norm_ratio.
        value: norm_ratio (on a logarithmic axis) or cosine.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    summary = table[table["token"].isin(list(KINDS))]
    firsts = first_runs(table)
    several = len(set(summary["sublayer"]) - {UNIT}) > 1
    for (model, sublayer, token), rows in summary.groupby(["model", "sublayer", "token"], sort=False):
        drawn, place = look(str(model), table), np.arange(len(rows))
        if model not in firsts:
            ax.plot(place, rows[value], **THIN, color=drawn.colour)
            continue
        line = {**drawn.line(), "markersize": 3.5, "linewidth": 1.3}
        if token == "cls":
            line |= {"marker": "*", "markersize": 7}
        if several and sublayer == "mlp":
            line |= {"linestyle": "-."}
        ax.plot(place, rows[value], **line, label=_name(str(model), str(sublayer), str(token), several))
        if value == "norm_ratio":
            ax.fill_between(place, rows["low"], rows["high"], color=drawn.colour, alpha=0.2, linewidth=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("block", fontsize=points(9))
    ax.set_ylabel(RATIO if value == "norm_ratio" else COSINE, fontsize=points(9))
    if value == "norm_ratio":
        shown = np.concatenate([line.get_ydata() for line in ax.lines] or [[]])
        if not (np.isfinite(shown) & (shown > 0)).any():
            ax.set_ylim(
                0.1, 10
            )  # where every branch adds nothing there is no finite ratio to choose a scale by
        ax.set_yscale("log")
        plain_decades(ax.yaxis)
    ax.tick_params(labelsize=points(8))
    return ax


def _name(model: str, sublayer: str, token: str, several: bool) -> str:
    if sublayer == UNIT:
        return f"{display_name(model)}: residual units"
    told = f"{SUBLAYERS.get(sublayer, sublayer)}, " if several else ""
    return f"{display_name(model)}: {told}{KINDS.get(token, token)}"


@draws("skip")
@literal
def skip(table: pd.DataFrame) -> Figure:
    """Figures 7, E.1 and E.2: tokens of each Vision Transformer, then norm ratios and cosines of all models over blocks."""
    lines = len(_transformers(table)) + 2
    figure = Figure(figsize=(page_width(2.6 * PANEL), (PANEL - 0.3) * lines), layout="constrained", dpi=200)
    axes = figure.subplots(lines, 2, squeeze=False)
    beyond = _token_maps(figure, axes[:-2], table) if lines > 2 else ""
    _lines(table, "norm_ratio", axes[-2].tolist())
    _lines(table, "cosine", axes[-1].tolist())
    legend_outside(figure, axes[-2][0], "outside upper center")
    caption(figure, table, beyond, told(table), bands="Bands")
    return figure


@draws("skip")
@literal
def norm_ratios(table: pd.DataFrame) -> Figure:
    """Figure 7 of the paper: the first tokens of the first Vision Transformer, mean of both sublayers, and ratios over blocks.

    Args:
        table: columns model, block, sublayer, token, norm_ratio, low, high. Lines are drawn for the first Vision
            Transformer and its further training runs, and for all models of other kinds.
    """
    vits = _transformers(table)
    beyond, maps = "", int(bool(vits))
    wide = page_width(2.9 * PANEL)
    places = ["ma", "tma" if wide > 2 * PANEL else "tt;ma"][maps]  # of tokens, MLPs and attentions
    high = (PANEL - 0.2) * (1 + places.count(";"))
    figure = Figure(figsize=(wide, high), layout="constrained", dpi=200)
    axes = list(figure.subplot_mosaic(places).values())
    if vits:
        numbers = [*map(str, range(FIRST)), "cls"]
        own = table[table["model"] == vits[0]]
        tokens = own.groupby(["model", "block", "token"], sort=False)["norm_ratio"].mean().reset_index()
        norm = _colours(tokens.assign(sublayer="both"))
        token_ratios(tokens[tokens["token"].isin(numbers)], axes[0], norm=norm)
        axes[0].set_title(
            folded(f"{display_name(vits[0])}, mean of attention and MLP", PANEL), fontsize=points(9)
        )
        _ratio_bar(figure, [axes[0]], tokens)
        beyond = _beyond(tokens[tokens["token"].isin(numbers)], norm)
    kept = table[~table["model"].isin(set(vits[1:]))]
    kept.attrs = table.attrs
    _lines(kept, "norm_ratio", axes[maps:])
    legend_outside(figure, axes[-1], "outside upper center")
    caption(figure, table, beyond, told(kept), bands="Bands")
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
    size = (page_width(2.6 * PANEL), (PANEL - 0.2) * len(vits))
    figure = Figure(figsize=size, layout="constrained", dpi=200)
    caption(figure, table, _token_maps(figure, figure.subplots(len(vits), 2, squeeze=False), table))
    return figure


@draws("skip")
@literal
def cosines(table: pd.DataFrame) -> Figure:
    """Figure E.2 of the paper: cosine of the output of an addition with its skip branch, over blocks.

    Args:
        table: columns model, block, sublayer, token, cosine.
    """
    figure = Figure(figsize=(page_width(2.2 * PANEL), PANEL), layout="constrained", dpi=200)
    axes = figure.subplots(1, 2)
    _lines(table, "cosine", axes.tolist())
    legend_outside(figure, axes[0], "outside upper center")
    caption(figure, table, "1: the long branch changes only the length.", told(table))
    return figure


def _lines(table: pd.DataFrame, value: str, axes: Sequence[Axes]) -> None:
    """Draw a statistic over blocks in two panels of one scale, MLPs and attentions, each beside the units of CNNs."""
    ends: list[float] = []
    for ax, (sublayer, name) in zip(axes, SUBLAYERS.items(), strict=True):
        own = table[table["sublayer"].isin([sublayer, UNIT])]
        own.attrs = table.attrs
        over_blocks(own, value, ax)
        ax.set_title(name, fontsize=points(9))
        ends += ax.get_ylim()
    ends = [
        end for end in ends if end > 0 or value == "cosine"
    ]  # a logarithmic axis may have no finite ratio to show
    if len(set(ends)) > 1:
        for ax in axes:
            ax.set_ylim(min(ends), max(ends))
    axes[1].set_ylabel("")


def _transformers(table: pd.DataFrame) -> list[str]:
    """Models that have numbered tokens, which are the Vision Transformers, the first training run of each."""
    numbered = set(table.loc[table["token"].str.isdigit(), "model"])
    return [model for model in first_runs(table) if model in numbered]


def _token_maps(figure: Figure, axes: np.ndarray, table: pd.DataFrame) -> str:
    """Draw a row per Vision Transformer, MLP and attention side by side, and the colour scale; return what it cannot show."""
    vits = _transformers(table)
    shown = table[table["model"].isin(vits)]
    norm = _colours(shown)
    for line, model in zip(axes, vits, strict=True):
        for ax, (sublayer, name) in zip(line, SUBLAYERS.items(), strict=True):
            own = shown[(shown["model"] == model) & (shown["sublayer"] == sublayer)]
            token_ratios(own, ax, norm=norm)
            ax.set_title(folded(f"{display_name(model)}, {name}", PANEL), fontsize=points(9))
    _ratio_bar(figure, list(axes.flatten()), shown)
    return _beyond(shown, norm)


def _colours(table: pd.DataFrame) -> LogNorm | None:
    """The scale of colours: from the least to the greatest ratio but for tokens that stand out of their block (`OUTLYING`).

    A few massive tokens would take all of it otherwise. The class token counts in full: it is what the figure is about.
    """
    shown = table[table["token"].str.isdigit() & np.isfinite(table["norm_ratio"]) & (table["norm_ratio"] > 0)]
    if shown.empty:
        return None
    ratio = shown["norm_ratio"]
    usual = shown.groupby(["model", "sublayer", "block"])["norm_ratio"].transform("median")
    held = ratio.between(usual / OUTLYING, usual * OUTLYING)
    held |= shown["token"].eq("0") & shown["model"].isin(set(table.loc[table["token"] == "cls", "model"]))
    return LogNorm(ratio[held].min(), ratio[held].max())


def _beyond(table: pd.DataFrame, norm: LogNorm | None) -> str:
    """Name the tokens that are beyond the scale of colours, with their ratios; empty where there is none."""
    if norm is None:
        return ""
    shown = table[table["token"].str.isdigit()]
    out = shown[(shown["norm_ratio"] < norm.vmin) | (shown["norm_ratio"] > norm.vmax)]
    parts = []
    for model, own in out.groupby("model", sort=False):
        numbers = sorted(set(own["token"].astype(int)))
        names = f"token{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
        parts.append(
            f"{display_name(str(model))}, {names} ({own['norm_ratio'].min():.2g} to {own['norm_ratio'].max():.3g})"
        )
    return f"Dots: massive tokens, beyond the colour scale: {'; '.join(parts)}." if parts else ""


def _ratio_bar(figure: Figure, axes: Sequence[Axes], table: pd.DataFrame) -> None:
    image = axes[0].images[0]
    shown = table.loc[table["token"].str.isdigit(), "norm_ratio"]
    ends = (bool((shown < image.norm.vmin).any()), bool((shown > image.norm.vmax).any()))
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[
        ends
    ]
    bar = figure.colorbar(image, ax=list(axes), aspect=25, pad=0.01, extend=extend)
    bar.set_label(RATIO, fontsize=points(9))
    bar.ax.tick_params(labelsize=points(8), which="both")
    plain_decades(bar.ax.yaxis)
