"""Receptive fields (figures 6 and C.1-C.4)."""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Circle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import FuncFormatter

from vit_analysis.plot import grid
from vit_analysis.plot.axes import COLOURS, PANEL, Undrawable, draws, legend_outside, literal
from vit_analysis.plot.fitting import caption, folded
from vit_analysis.plot.runs import THIN, first_runs, told
from vit_analysis.plot.style import display_name, look, page_width, points

BRANCHES = {"residual": "after the addition", "long": "long branch alone"}
SHARES = (20, 30, 50, 99)  # percent of the contribution scores, in published tables
SUBLAYERS = {"attention": "attention or unit", "MLP": "MLP"}
FIELDS = 5  # steps of a model, as in figure 6
ACROSS = 6  # most panels in a row where all steps are shown
STAGE = re.compile(r"[A-Za-z_]*\d+(?=\.\d)")  # of a layer's name: layer2 of layer2.0, stages.2 of stages.2.0
FAINTEST = 1e-3  # of the maximum: darker than that is black
EDGE = 1.35  # inches, of a panel
RADIUS = "#35d0ff"
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")  # of powers of ten, which are no formulas here
Row = tuple[str, Sequence[pd.Series | None]]  # what stands at its left, and its panels; None is left empty
Block = tuple[str, Sequence[Row]]  # a title and rows of panels


@draws("receptive_field")
def radius_over_depth(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Radius of the receptive field over depth: a line per model and branch, with its interval.

    Args:
        table: columns model, depth, branch, radius_px, low, high.
        ax: where to draw; None makes a figure.
    """
    return _branches(table, ("radius_px", "low", "high"), "radius of the receptive field (px)", ax)


@draws("receptive_field")
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
    ax = _branches(relative, columns, "share in the own patch (constant field = 1)", ax)
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(PLAIN)
    ax.set_ylim(bottom=bottom)
    ax.axhline(1, color="0.4", linestyle=":", linewidth=1)
    return ax


@draws("receptive_field")
@literal
def receptive_field(table: pd.DataFrame) -> Figure:
    """Draw the width of receptive fields, and the share of their own patch, over depth: a column per kind of layer."""
    kind = table["step"].str.startswith("MLP").map({True: "MLP", False: "attention"})
    columns = {"after the addition": table[table["branch"] == "residual"]}
    for name, words in SUBLAYERS.items():
        columns[f"{words} alone"] = table[(table["branch"] == "long") & (kind == name)]
    columns = {title: own for title, own in columns.items() if len(own)}
    wide = page_width((PANEL - 0.7) * max(len(columns), 2))
    figure = Figure(figsize=(wide, 2 * (PANEL - 0.8)), layout="constrained", dpi=200)
    axes = figure.subplots(2, len(columns), squeeze=False, sharex=True, sharey="row")
    for (title, own), (upper, lower) in zip(columns.items(), axes.T, strict=True):
        own.attrs = table.attrs
        radius_over_depth(own, upper)
        centre_over_depth(own, lower)
        upper.set_title(title, fontsize=points(9))
    axes[0][0].set_ylim(bottom=0)
    floor = 0.5 * np.nanmin([1.0, (table["centre_share"] / table["uniform_centre_share"]).min()])
    axes[1][0].set_ylim(bottom=floor)
    for ax in axes.flatten():
        ax.label_outer()
    legend_outside(figure, axes[0][0], "outside upper center")
    caption(
        figure, table,
        "Above: root mean square distance of the gradient from its position. Below, dotted: every pixel counts alike.",
        "Dashed: untrained twins." if table["model"].str.contains("@random").any() else "", told(table), bands="Bands",
    )  # fmt: skip
    return figure


@draws("receptive_field")
def side_over_depth(table: pd.DataFrame, share: int, ax: Axes | None = None) -> Axes:
    """Side of the smallest square that holds a share of the contribution scores, over depth.

    Args:
        table: columns model, depth, branch and, of the share, side_20_px, side_20_low, side_20_high.
        share: which, in %.
        ax: where to draw; None makes a figure.
    """
    columns = (f"side_{share}_px", f"side_{share}_low", f"side_{share}_high")
    return _branches(table, columns, "side of the square (px)", ax)


@draws("receptive_field")
@literal
def squares(table: pd.DataFrame) -> Figure:
    """Draw the sides of the squares that hold shares of the contribution scores, over depth: a panel per share.

    They are of the layers after the addition, or of whichever there are if none is.
    """
    residual = table[table["branch"] == "residual"]
    shown = residual if len(residual) else table
    shown.attrs = table.attrs
    figure, axes = grid.panels(len(SHARES), PANEL, PANEL - 0.8, most=2)
    for ax, share in zip(axes, SHARES, strict=True):
        side_over_depth(shown, share, ax)
        ax.set_ylim(bottom=0)
        ax.set_title(f"square that holds {share} %", fontsize=points(9))
    grid.outer_labels(axes)
    legend_outside(figure, axes[0], "outside upper center")
    caption(
        figure, table,
        "Of log10(x + 1) of the contribution scores x (Ding et al. 2022), around the position.",
        "Dashed: untrained twins." if table["model"].str.contains("@random").any() else "", told(table), bands="Bands",
    )  # fmt: skip
    return figure


def field(row: pd.Series, ax: Axes | None = None) -> Axes:
    """One receptive field, divided by its maximum, with its step and radius as the title and its radius as a circle.

    Args:
        row: of a table with columns step, radius_px, rows, columns, map.
        ax: where to draw; None makes a figure.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL, PANEL), layout="constrained").subplots()
    values = np.asarray(row["map"]).reshape(row["rows"], row["columns"])
    shown = values / max(values.max(), 1e-30)
    ax.imshow(np.maximum(shown, FAINTEST), cmap=COLOURS, norm=LogNorm(FAINTEST, 1), interpolation="nearest")
    if np.isfinite(row["radius_px"]):
        dark: list[AbstractPathEffect] = [withStroke(linewidth=2, foreground="black")]
        ring = Circle(_middle(shown), float(row["radius_px"]), fill=False, edgecolor=RADIUS, linewidth=0.9)
        ax.add_patch(ring).set_path_effects(dark)
    ax.set_title(f"{folded(str(row['step']), EDGE, 8)}\n{row['radius_px']:.1f} px", fontsize=points(8))
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


def _middle(shown: np.ndarray) -> tuple[float, float]:
    """Column and row that a field lies around: the mean place of what is at least half as bright as its brightest pixel."""
    rows, columns = np.nonzero(shown >= 0.5 * shown.max())
    return float(columns.mean()), float(rows.mean())


@draws("receptive_field_maps")
@literal
def fields(maps: pd.DataFrame, *, branch: str, steps: int | None = FIELDS) -> Figure:
    """Figures 6 and C.1-C.4 of the paper: a block of panels per model, each panel divided by its maximum.

    Args:
        maps: columns model, step, branch, radius_px, rows, columns, map; where there is a column layer, a CNN's stages are
            rows of their own if all steps are shown.
        branch: ``residual`` (after the addition) or ``long`` (the long branch alone). Of a Vision Transformer's steps the
            first chooses among attentions alone, as in figure 6, the second among attentions and MLPs in turn.
        steps: how many, spread from the first to the last; None shows all of them, attentions and MLPs in rows of their own.

    Raises:
        Undrawable: there are no maps of that branch.
    """
    held = maps[maps["branch"] == branch]
    if held.empty:
        raise Undrawable(f"no receptive fields of branch {branch!r}; there are {maps['branch'].unique()}")
    blocks: list[Block] = []
    for model, own in held.groupby("model", sort=False):
        if steps is None:
            rows = _all_rows(own)
        else:
            held_steps = {row["step"]: row for _, row in own.iterrows()}
            rows = [("", [held_steps[name] for name in _spread(list(own["step"]), steps, branch)])]
        blocks.append((f"{display_name(str(model))}, {BRANCHES[branch]}", rows))
    return _draw(maps, blocks)


def _all_rows(own: pd.DataFrame) -> list[Row]:
    """Every step of a model: a row per stage of a CNN, and rows of attentions above rows of MLPs, block under block."""
    panels = [row for _, row in own.iterrows()]
    if own["step"].str.startswith("MLP").any():
        kinds = [
            [row for row in panels if str(row["step"]).startswith("MLP") == mlp] for mlp in (False, True)
        ]
        across = _across(max(map(len, kinds)))
        cut = range(0, max(map(len, kinds)), across)
        names = ("attention", "MLP")
        return [
            (name, kind[start : start + across])
            for start in cut
            for name, kind in zip(names, kinds, strict=True)
            if kind[start : start + across]
        ]
    stages: dict[str, list[pd.Series]] = {}
    for row in panels:
        found = STAGE.match(str(row.get("layer", "")))
        # What comes before the first stage stands in its row.
        stages.setdefault(found.group() if found else next(reversed(stages), ""), []).append(row)
    if len(stages) > 1 and "" in stages:
        stem = stages.pop("")
        first = next(iter(stages))
        stages[first] = [*stem, *stages[first]]
    return [
        (name if not start else "", own_panels[start : start + across])
        for name, own_panels in stages.items()
        for across in [_across(len(own_panels))]
        for start in range(0, len(own_panels), across)
    ]


def _across(count: int) -> int:
    """Into how many columns panels are put, in rows as equal as can be."""
    lines = -(-count // ACROSS)
    return -(-count // lines)


@draws("receptive_field_maps")
@literal
def receptive_field_maps(table: pd.DataFrame) -> Figure:
    """Figure 6 of the paper, and C.4 below it: five steps of every model, after and before the residual addition."""
    blocks: list[Block] = []
    for model, branch, own in _by_branch(table[table["model"].isin(first_runs(table))]):
        names = _spread(list(table.loc[table["model"] == model, "step"].unique()), FIELDS, "residual")
        rows = {row["step"]: row for _, row in own.iterrows()}
        blocks.append(
            (f"{display_name(model)}, {BRANCHES[branch]}", [("", [rows.get(name) for name in names])])
        )
    return _draw(table, blocks)


def _draw(table: pd.DataFrame, blocks: Sequence[Block]) -> Figure:
    """Draw the title and the panels of every model, and below them the colour scale of all."""
    across = max(len(panels) for _, rows in blocks for _, panels in rows)
    width = page_width(max(EDGE * across + 0.5, 1.3 * PANEL))
    edge = min(EDGE, (width - 0.5) / across)
    heights = [*((edge + 0.33) * len(rows) + 0.27 for _, rows in blocks), 0.55]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained", dpi=200)
    *parts, foot = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (title, rows) in zip(parts, blocks, strict=True):
        _block(part, title, rows, across)
    ax = foot.subplots()
    ax.set_box_aspect(0.03)
    bar = foot.colorbar(
        ScalarMappable(LogNorm(FAINTEST, 1), COLOURS),
        cax=ax,
        orientation="horizontal",
        extend="min",
        format=PLAIN,
    )
    bar.set_label("mean |gradient| / maximum of the panel", fontsize=points(8))
    bar.ax.tick_params(labelsize=points(8))
    caption(figure, table, "Circle and number: radius, the root mean square distance from the position.")
    return figure


def _block(part: SubFigure, title: str, rows: Sequence[Row], across: int) -> None:
    part.suptitle(folded(title, EDGE * across), fontsize=points(9))
    axes = part.subplots(len(rows), across, squeeze=False)
    for line, (name, panels) in zip(axes, rows, strict=True):
        for ax in line:
            ax.set(xticks=[], yticks=[], frame_on=False)
        line[0].set_ylabel(name, fontsize=points(8))
        for ax, row in zip(line, panels, strict=False):
            if row is not None:
                ax.set_frame_on(True)
                field(row, ax)


def _branches(table: pd.DataFrame, columns: Sequence[str], label: str, ax: Axes | None) -> Axes:
    ax = ax if ax is not None else Figure(figsize=(PANEL + 1, PANEL), layout="constrained").subplots()
    firsts, several = first_runs(table), table["branch"].nunique() > 1
    for model, branch, own in _by_branch(table):
        drawn, own = look(model, table), own.sort_values("depth")
        value, low, high = (own[name] for name in columns)
        if model not in firsts:
            ax.plot(own["depth"], value, **THIN, color=drawn.colour)
            continue
        line = {**drawn.line(), "markersize": 3, "linewidth": 1.3}
        if several and branch == "long":
            line |= {"linestyle": ":", "marker": ""}
        name = display_name(model)
        ax.plot(own["depth"], value, **line, label=f"{name}, {BRANCHES[branch]}" if several else name)
        ax.fill_between(own["depth"], low, high, color=drawn.colour, alpha=0.15, linewidth=0)
    ax.set_xlabel("depth", fontsize=points(9))
    ax.set_ylabel(folded(label, PANEL - 1), fontsize=points(9))
    ax.tick_params(labelsize=points(8))
    return ax


def _by_branch(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    for model in table["model"].unique():
        for branch in BRANCHES:
            own = table[(table["model"] == model) & (table["branch"] == branch)]
            if len(own):
                yield model, branch, own


def _spread(steps: Sequence[str], count: int, branch: str) -> list[str]:
    """Choose steps of a model at even spacing from the first to the last; see `fields` for the kinds of steps."""
    kinds = [[step for step in steps if step.startswith("MLP") == mlp] for mlp in (False, True)]
    if branch == "residual" or not all(kinds):
        kinds = [kinds[0] or kinds[1]]
    picked = [kinds[place % len(kinds)] for place in range(count)]
    last = max(count - 1, 1)
    return list(dict.fromkeys(kind[place * (len(kind) - 1) // last] for place, kind in enumerate(picked)))
