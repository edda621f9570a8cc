"""Which patches of the image a token is like (figures 9, 10 and D.1-D.3)."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit_analysis.plot.axes import COLOURS, PANEL, draws, literal, token_note
from vit_analysis.plot.fitting import caption, folded
from vit_analysis.plot.runs import first_runs, further_runs, told
from vit_analysis.plot.style import display_name, page_width, points

TOKENS = ((0, 0), (2, 1), (4, 2), (4, 4))  # of figure 9, on its grid of 7 x 7
OWN = "#35d0ff"


@draws("localization")
def patch_map(table: pd.DataFrame, ax: Axes | None = None, *, least: float = 0, most: float = 1) -> Axes:
    """Similarity of one token with every patch of the image, the token's own patch outlined.

    Below it stands which token it is and how far its own patch stands out: its CKA less the mean of the others, and that in
    standard deviations of the others.

    Args:
        table: columns token_row, token_col, patch_row, patch_col, cka, of one token.
        ax: where to draw; None makes a figure.
        least: value of the darkest colour.
        most: value of the brightest colour.
    """
    ax = ax if ax is not None else Figure(figsize=(PANEL, PANEL), layout="constrained").subplots()
    values = table.pivot(index="patch_row", columns="patch_col", values="cka").to_numpy()
    ax.imshow(values, cmap=COLOURS, vmin=least, vmax=most, interpolation="nearest")
    row, column = table[["token_row", "token_col"]].iloc[0]
    own = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, color=OWN, linewidth=1.6, clip_on=False)
    ax.add_patch(own)
    ax.set_xlabel(f"token ({row}, {column})\n{_contrast(table)}", fontsize=points(8), labelpad=2)
    ax.set(xticks=[], yticks=[])
    return ax


def _contrast(table: pd.DataFrame) -> str:
    """Write CKA of a token with its own patch less the mean of the others, and that in standard deviations of the others."""
    own, others = _own_and_others(table)
    if not len(own) or not len(others) or not np.isfinite(own.iloc[0]):
        return "undefined"
    stands_out, spread = own.iloc[0] - others.mean(), others.std()
    return f"{stands_out:+.3f}" + (f" (z = {stands_out / spread:.1f})" if spread > 1e-9 else "")


def _own_and_others(table: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """CKA of tokens with their own patches, and with all others."""
    own = (table["token_row"] == table["patch_row"]) & (table["token_col"] == table["patch_col"])
    return table.loc[own, "cka"], table.loc[~own, "cka"]


@draws("localization")
@literal
def localization(table: pd.DataFrame) -> Figure:
    """Figures 9, 10 and D.1-D.3 of the paper: a row per layer, a corner token and three interior ones, on one colour scale.

    Rows are of one training run of each model; how far the own patch stands out in the others is told beside it.
    """
    rows = [
        (layer, own)
        for model in first_runs(table)
        for layer, own in table[table["model"] == model].groupby("layer", sort=False)
    ]
    shown = [[own[own["token"] == token] for token in _tokens_shown(own)] for _, own in rows]
    values = pd.concat([token for line in shown for token in line])["cka"]
    least, most = min(0.0, values.min()), max(1e-6, values.max())  # in this order min and max skip NaN
    wide = page_width(1.5 * len(TOKENS) + 1.1)
    edge = (wide - 0.9) / len(TOKENS)  # beside the colour scale
    figure = Figure(figsize=(wide, (edge + 0.6) * len(rows) + 0.1), layout="constrained", dpi=200)
    axes = figure.subplots(len(rows), len(TOKENS), squeeze=False)
    for line, tokens, (layer, own) in zip(axes, shown, rows, strict=True):
        for ax, token in zip(line, tokens, strict=True):
            patch_map(token, ax, least=least, most=most)
        name = f"{display_name(str(own['model'].iloc[0]))}, {layer}: {_overall(table, own)}"
        _head(line[0], folded(name, wide - 1, 8))
    bar = figure.colorbar(axes[0][0].images[0], ax=list(axes.flatten()), shrink=0.7, aspect=25, pad=0.02)
    bar.set_label(f"CKA of token and patch{token_note(table)}", fontsize=points(8))
    bar.ax.tick_params(labelsize=points(7))
    caption(
        figure, table,
        "A panel is the image, patch by patch; outlined: the token's own. One colour scale for all panels.",
        "Below each: CKA with the own patch less the mean of the others, and in standard deviations of the others (z).",
        "Above each row: its mean over all tokens.", told(table, "In brackets: further training runs."),
    )  # fmt: skip
    return figure


def _head(ax: Axes, text: str) -> None:
    """Write a text above a row of panels, from the left of the first one; it takes no room from the next."""
    ax.set_title("\n".join(" " * len(text.splitlines())), fontsize=points(8))  # keeps the height
    above: dict[str, Any] = {"xytext": (0, 4), "textcoords": "offset points", "xycoords": "axes fraction"}
    ax.annotate(text, (0, 1), **above, va="bottom", fontsize=points(8)).set_in_layout(False)


def _overall(table: pd.DataFrame, own: pd.DataFrame) -> str:
    """Write how far the own patch stands out on average over all tokens of a layer, and in further training runs."""
    runs = further_runs(table, str(own["model"].iloc[0]))
    layers = [
        own,
        *(table[(table["model"] == run) & (table["layer"] == own["layer"].iloc[0])] for run in runs),
    ]
    means = [f"{own_patch.mean() - others.mean():+.3f}" for own_patch, others in map(_own_and_others, layers)]
    return means[0] + (f" ({', '.join(means[1:])})" if runs else "")


def _tokens_shown(own: pd.DataFrame) -> list[int]:
    """Numbers of the paper's tokens, scaled to a grid of this size; all but the corner stay off the edge."""
    rows, columns = int(own["token_row"].max()) + 1, int(own["token_col"].max()) + 1
    places = [
        [min(max(int((place + 0.5) / 7 * size), 1), max(size - 2, 0)) if place else 0 for place, size in pair]
        for pair in (zip(token, (rows, columns), strict=True) for token in TOKENS)
    ]
    return [row * columns + column for row, column in places]
