"""Receptive fields (figures 6 and C.1-C.4)."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure, SubFigure

from vit_analysis.plot.axes import COLOURS, LINES, PANEL, Undrawable, draws, folded, legend_outside, literal

BRANCHES = {"residual": "after the addition", "long": "long branch alone"}
FIELDS = 5  # steps of a model, as in figure 6
ACROSS = 8  # panels in a row where all steps are shown
TICKS = (0, 0.1, 0.25, 0.5, 1)  # of the scale
Block = tuple[str, Sequence[pd.Series | None]]  # a title and its panels; None is left empty
EDGE = 1.35  # inches, of a panel


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
    ax = _branches(relative, columns, "share in the centre patch / constant field", ax)
    ax.set_yscale("log")
    ax.set_ylim(bottom=bottom)
    ax.axhline(1, color="0.4", linestyle=":", linewidth=1)
    return ax


@draws("receptive_field")
@literal
def receptive_field(table: pd.DataFrame) -> Figure:
    """Draw the width of receptive fields and the share of their own patch over depth (figures 6 and C.1-C.4 in numbers)."""
    figure = Figure(figsize=(2 * (PANEL + 0.6), PANEL + 0.5), layout="constrained", dpi=200)
    left, right = figure.subplots(1, 2)
    radius_over_depth(table, left)
    centre_over_depth(table, right)
    legend_outside(figure, left)
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
    ax.set_title(f"{folded(str(row['step']), EDGE, 8)}\n{row['radius_px']:.1f} px", fontsize=8)
    ax.set_xticks([])
    ax.set_yticks([])
    return ax


@draws("receptive_field_maps")
@literal
def fields(maps: pd.DataFrame, *, branch: str, steps: int | None = FIELDS) -> Figure:
    """Figures 6 and C.1-C.4 of the paper: a block of panels per model, each panel divided by its maximum.

    Args:
        maps: columns model, step, branch, radius_px, rows, columns, map.
        branch: ``residual`` (after the addition) or ``long`` (the long branch alone). Of a Vision Transformer's steps the
            first chooses among attentions alone, as in figure 6, the second among attentions and MLPs in turn.
        steps: how many, spread from the first to the last; None shows all of them.

    Raises:
        Undrawable: there are no maps of that branch.
    """
    held = maps[maps["branch"] == branch]
    if held.empty:
        raise Undrawable(f"no receptive fields of branch {branch!r}; there are {maps['branch'].unique()}")
    blocks: list[Block] = []
    for model, own in held.groupby("model", sort=False):
        names = list(own["step"]) if steps is None else _spread(list(own["step"]), steps, branch)
        rows = {row["step"]: row for _, row in own.iterrows()}
        blocks.append((f"{model}, {BRANCHES[branch]}", [rows[name] for name in names]))
    return _draw(blocks, ACROSS if steps is None else steps)


@draws("receptive_field_maps")
@literal
def receptive_field_maps(table: pd.DataFrame) -> Figure:
    """Figure 6 of the paper, and C.4 below it: five steps of every model, after and before the residual addition."""
    blocks: list[Block] = []
    for model, branch, own in _by_branch(table):
        names = _spread(list(table.loc[table["model"] == model, "step"].unique()), FIELDS, "residual")
        rows = {row["step"]: row for _, row in own.iterrows()}
        blocks.append((f"{model}, {BRANCHES[branch]}", [rows.get(name) for name in names]))
    return _draw(blocks, FIELDS)


def _draw(blocks: Sequence[Block], across: int) -> Figure:
    """Draw the title and the panels of every model, and below them the colour scale of all."""
    across = min(across, max(len(rows) for _, rows in blocks))
    lines = [-(-len(rows) // across) for _, rows in blocks]
    heights = [*((EDGE + 0.33) * count + 0.27 for count in lines), 0.55]
    width = max(EDGE * across + 0.2, 2 * PANEL)
    figure = Figure(figsize=(width, sum(heights)), layout="constrained", dpi=200)
    *parts, foot = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, count, (title, rows) in zip(parts, lines, blocks, strict=True):
        _block(part, title, rows, (count, across))
    ax = foot.subplots()
    ax.set_box_aspect(0.03)
    bar = foot.colorbar(
        ScalarMappable(PowerNorm(0.5, 0, 1), COLOURS), cax=ax, orientation="horizontal", ticks=TICKS
    )
    bar.set_label("mean |gradient| / maximum of the panel (square-root scale)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def _block(part: SubFigure, title: str, rows: Sequence[pd.Series | None], shape: tuple[int, int]) -> None:
    part.suptitle(folded(title, EDGE * shape[1]), fontsize=9)
    axes = part.subplots(*shape, squeeze=False).flatten()
    for ax in axes:
        ax.set_axis_off()
    for ax, row in zip(axes, rows, strict=False):
        if row is not None:
            ax.set_axis_on()
            field(row, ax)


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


def _spread(steps: Sequence[str], count: int, branch: str) -> list[str]:
    """Choose steps of a model at even spacing from the first to the last; see `fields` for the kinds of steps."""
    kinds = [[step for step in steps if step.startswith("MLP") == mlp] for mlp in (False, True)]
    if branch == "residual" or not all(kinds):
        kinds = [kinds[0] or kinds[1]]
    picked = [kinds[place % len(kinds)] for place in range(count)]
    last = max(count - 1, 1)
    return list(dict.fromkeys(kind[place * (len(kind) - 1) // last] for place, kind in enumerate(picked)))
