"""Panels on a page: as many beside each other as its width has room for."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vit_analysis.plot.style import page_width

NARROWEST = 1.6  # inches, of a panel with its labels
MOST = 3  # panels in a row
ALONE = 1.3  # times as wide as beside others is a single panel


def panels(count: int, wide: float, high: float, most: int = MOST) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many panels, each so many inches wide and high with its labels, or narrower on a narrow page."""
    columns = min(count, most)
    width = page_width(max(columns, ALONE) * wide)
    columns = max(1, min(columns, int(width / NARROWEST)))
    lines = -(-count // columns)
    figure = Figure(
        figsize=(width, lines * min(high, max(width / columns, NARROWEST))), layout="constrained", dpi=200
    )
    axes = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def beside(axes: list[Axes]) -> float:
    """The inches that each of some panels has beside the others, with its labels."""
    place, figure = axes[0].get_subplotspec(), axes[0].get_figure(root=True)
    assert place is not None
    assert figure is not None
    return float(figure.get_figwidth()) / place.get_gridspec().ncols


def outer_labels(axes: list[Axes]) -> None:
    """Keep the vertical label of the first panel of each row alone, where all have the same."""
    for ax in axes:
        place = ax.get_subplotspec()
        if place is not None and not place.is_first_col():
            ax.set_ylabel("")
