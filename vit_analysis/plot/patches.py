"""Which patches of the image a token is like (figures 9, 10 and D.1-D.3)."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vit_analysis.plot.axes import COLOURS, PANEL, draws, folded, literal, token_note

TOKENS = ((0, 0), (2, 1), (4, 2), (4, 4))  # of figure 9, on its grid of 7 x 7


@draws("localization")
def patch_map(table: pd.DataFrame, ax: Axes | None = None, *, least: float = 0, most: float = 1) -> Axes:
    """Similarity of one token with every patch of the image, the token's own patch outlined.

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
    own = Rectangle(
        (column - 0.5, row - 0.5), 1, 1, fill=False, color="#35d0ff", linewidth=1.6, clip_on=False
    )
    ax.add_patch(own)
    ax.set_title(f"token ({row}, {column})", fontsize=8)
    ax.set(xticks=[], yticks=[])
    return ax


@draws("localization")
@literal
def localization(table: pd.DataFrame) -> Figure:
    """Figures 9, 10 and D.1-D.3 of the paper: a row per layer, a corner token and three interior ones, one scale per row."""
    rows = list(table.groupby(["model", "layer"], sort=False))
    figure = Figure(figsize=(1.5 * len(TOKENS) + 1.1, 1.75 * len(rows) + 0.3), layout="constrained", dpi=200)
    axes = figure.subplots(len(rows), len(TOKENS), squeeze=False)
    for line, ((model, layer), own) in zip(axes, rows, strict=True):
        shown = [own[own["token"] == token] for token in _tokens_shown(own)]
        values = pd.concat(shown)["cka"]
        least, most = min(0.0, values.min()), max(1e-6, values.max())  # in this order min and max skip NaN
        for ax, token in zip(line, shown, strict=True):
            patch_map(token, ax, least=least, most=most)
        line[0].set_ylabel(f"{folded(str(model), 1.3, 8)}\n{folded(str(layer), 1.3, 8)}", fontsize=8)
        bar = figure.colorbar(line[0].images[0], ax=list(line), shrink=0.85, aspect=14, pad=0.02)
        bar.set_label("CKA", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    told = f"patches of the image; outlined: the token's own; a colour scale per row{token_note(table)}"
    figure.supxlabel(told, fontsize=8)
    return figure


def _tokens_shown(own: pd.DataFrame) -> list[int]:
    """Numbers of the paper's tokens, scaled to a grid of this size; all but the corner stay off the edge."""
    rows, columns = int(own["token_row"].max()) + 1, int(own["token_col"].max()) + 1
    places = [
        [min(max(int((place + 0.5) / 7 * size), 1), max(size - 2, 0)) if place else 0 for place, size in pair]
        for pair in (zip(token, (rows, columns), strict=True) for token in TOKENS)
    ]
    return [row * columns + column for row, column in places]
