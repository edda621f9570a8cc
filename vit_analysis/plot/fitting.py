"""Texts of pictures: measured, folded where they have no room, and never outside the figure, which grows by what they need."""

import re
import warnings
from collections.abc import Iterator
from pathlib import PurePath
from typing import cast
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.textpath import text_to_path
from matplotlib.transforms import BboxBase

from vit_analysis.plot.style import LEAST, points

CAPTION, BELOW = "caption", "below"  # marks of artists: the caption, and a legend below all panels
SPACING = 1.2  # of lines
EDGE = 0.04  # inches between a text and the edge of the figure
GAP = 0.08  # inches between the titles of two panels
PASSES = 4  # most layouts until nothing moves
WHOLE: WeakKeyDictionary[Text, tuple[str, str]] = WeakKeyDictionary()
"""Texts that were folded: as they were before, and after."""


def width(text: str, points: float | int) -> float:
    """The width of a text's widest line, in inches."""
    font = FontProperties(size=points)
    lines = text.splitlines() or [""]
    return max(text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] for line in lines) / 72


def folded(text: str, inches: float | int, points: float | int = 9) -> str:
    """Break a text into lines no wider than ``inches``, after blanks and the separators of names, or else anywhere."""
    lines = [""]
    for piece in re.findall(r"[^\s_./@:,-]+[\s_./@:,-]*|[\s_./@:,-]+", text):
        if lines[-1] and width(lines[-1] + piece.rstrip(), points) > inches:
            lines.append("")
        while len(piece.rstrip()) > 1 and width(piece.rstrip(), points) > inches:
            fits = sum(width(piece[:end], points) <= inches for end in range(1, len(piece))) or 1
            lines[-1], piece = piece[:fits], piece[fits:]
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.strip() for line in lines)


def caption(figure: Figure, table: pd.DataFrame, *notes: str, bands: str = "") -> None:
    """Write in small grey letters below a picture how many images of what it is of, what its bands are, and what else to know.

    To be called last, after the legends.

    Args:
        figure: of constrained layout, which grows by the height of the caption.
        table: with its provenance.
        notes: further sentences; empty ones are left out.
        bands: what has the bands, such as ``Bands`` or ``Bars``, where there are some.
    """
    told = [text for text in (_bands(table, bands), images(table), *notes) if text]
    if not told:
        return
    size = max(LEAST, points(7))
    # On screens small letters are a little wider than they are.
    room = 0.97 * figure.get_figwidth() - 2 * EDGE
    written = folded(" ".join(told), room, size)
    figure.text(0, 0, written, fontsize=size, color="0.35", gid=CAPTION, va="bottom", linespacing=SPACING)
    grow(figure, _strip(figure))


def images(table: pd.DataFrame) -> str:
    """Say how many images of what a table is of; empty where it does not know."""
    facts = table.attrs.get("images") or {}
    if not facts.get("count"):
        return ""
    source = str(facts.get("source", ""))
    name = "the lab" if source == "lab" else PurePath(source).name
    return f"{facts['count']:,} images" + (f" of {name}." if name else ".")


def _bands(table: pd.DataFrame, bands: str) -> str:
    if not bands:
        return ""
    groups = [column for column in table if str(column).endswith("_without") and len(table)]
    held = len(np.atleast_1d(table[groups[0]].iloc[0])) if groups else 0
    return f"{bands}: 95 % intervals" + (f" over {held} groups of images." if held > 1 else ".")


def grow(figure: Figure, inches: float | int) -> None:
    """Make a figure higher; what stands below its panels keeps its room there."""
    before = figure.get_figheight()
    high = before + inches
    figure.set_figheight(high)
    if figure.get_layout_engine() is None:  # panels stay as they are, above what is new
        for ax in figure.axes:
            left, bottom, wide, tall = ax.get_position().bounds
            ax.set_position((left, (bottom * before + inches) / high, wide, tall * before / high))
    if not (strip := _strip(figure)):
        return
    for text in figure.texts:
        if text.get_gid() == CAPTION:
            text.set_position((EDGE / figure.get_figwidth(), EDGE / high))
    for legend in figure.legends:
        if legend.get_gid() == BELOW:  # the layout leaves no room for a legend that is put somewhere
            legend.set_bbox_to_anchor((0, strip / high, 1, 1), figure.transFigure)
            strip += legend.get_window_extent().height / figure.dpi + 2 * EDGE
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(rect=(0, strip / high, 1, 1 - strip / high))


def squared(figure: Figure, axes: np.ndarray) -> None:
    """Make a figure so high that its panels, a grid of squares, are as high as they are wide."""
    for ax in axes.flat:
        ax.set_box_aspect(None)  # the layout would measure the texts of a smaller panel
    for _ in range(2):
        _lay_out(figure)
        slot = axes.flat[0].get_position()
        high = slot.height * figure.get_figheight()
        grow(figure, len(axes) * (slot.width * figure.get_figwidth() - high))
    for ax in axes.flat:
        ax.set_box_aspect(1)


def settled(figure: Figure) -> Figure:
    """Fold the titles and labels that are wider than their panels have room for; the figure grows by their lines."""
    for _ in range(PASSES):  # a folded label takes width from the panels, and so from the titles
        _lay_out(figure)
        if not _fold(figure):
            break
    return figure


def _fold(figure: Figure) -> bool:
    """Fold what is wider than its room, with the panels as they lie; the figure grows. Return whether anything changed."""
    changed, added = False, 0.0
    for row in _rows(figure):
        lines = [_refold(*one) for one in row]
        changed |= any(line is not None for line in lines)
        added += max([0.0, *(line for line in lines if line)])
    grow(figure, added)
    return changed


def _strip(figure: Figure) -> float:
    """The height of a figure's caption in inches."""
    held = [text for text in figure.texts if text.get_gid() == CAPTION]
    return sum(((text.get_text().count("\n") + 1) * _line(text) + 3 * EDGE for text in held), 0.0)


def _line(text: Text) -> float:
    """The height of a line in inches."""
    return SPACING * float(text.get_fontsize()) / 72


def _lay_out(figure: Figure) -> None:
    """Lay out until nothing moves: panels of a fixed shape change the room of their texts, which changes the panels.

    A figure that is too low for the words around its panels grows until they fit.
    """
    FigureCanvasAgg(figure)  # to measure with
    engine = figure.get_layout_engine()
    before = np.zeros(0)
    if engine is None:
        return
    for number in range(2 * PASSES):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "constrained_layout not applied", UserWarning)
                engine.execute(figure)
        except UserWarning:
            _fold(figure)
            grow(figure, 0.5)
            continue
        if all(ax.get_aspect() == "auto" and ax.get_box_aspect() is None for ax in figure.axes):
            break  # nothing but panels of a fixed shape moves when it is laid out again
        after = np.array([ax.get_position().bounds for ax in figure.axes])
        still = after.shape == before.shape and np.abs(after - before).max(initial=0) < 1e-3
        if still or number >= PASSES:
            break
        before = after


def _rows(figure: Figure) -> Iterator[list[tuple[Text, float]]]:
    """Titles and labels with the inches that each has room for: those whose lines add to the same height of the figure."""
    boxes = {ax: ax.get_window_extent() for ax in figure.axes if ax.axison}
    rows: dict[int, list[tuple[Text, float]]] = {}
    for ax, box in boxes.items():
        left, right = _free(box, list(boxes.values()), GAP * figure.dpi / 2, figure.bbox.width)
        room = 2 * min(box.x0 + box.width / 2 - left, right - box.x0 - box.width / 2) / figure.dpi
        rows.setdefault(round(box.y1), []).extend((text, room) for text in (ax.title, ax.xaxis.label))
        # Of the room that the layout gives: a square gets lower as its label takes width from it, and so on.
        high = ax.get_position(original=True).height * figure.get_figheight()
        yield [(ax.yaxis.label, max(high, box.height / figure.dpi))]
    yield from rows.values()
    for part in cast(list[Figure], [figure, *figure.subfigs]):
        wide = part.bbox.width / figure.dpi - 2 * EDGE
        yield [(text, wide) for text in part.texts if text.get_gid() != CAPTION and not text.get_rotation()]


def _free(box: BboxBase, boxes: list[BboxBase], gap: float, width: float) -> tuple[float, float]:
    """Where a panel's titles may begin and end: half way to the panels beside it, or at the edges of the figure."""
    beside = [other for other in boxes if other.y0 < box.y1 and other.y1 > box.y0]
    left = [(other.x1 + box.x0) / 2 + gap for other in beside if other.x1 <= box.x0]
    right = [(other.x0 + box.x1) / 2 - gap for other in beside if other.x0 >= box.x1]
    return max([0.0, *left]), min([width, *right])


def _refold(text: Text, room: float) -> float | None:
    """Fold a text that is wider than its room, as it was in the beginning; return the inches that it got higher, if it was."""
    size, before = float(text.get_fontsize()), text.get_text()
    if all(width(line, size) <= room for line in before.splitlines()):
        return None
    whole, folded_before = WHOLE.get(text, ("", ""))
    whole = whole if folded_before == before else before
    after = "\n".join(folded(line, room, size) for line in whole.splitlines())
    if after == before:
        return None
    text.set_text(after)
    WHOLE[text] = (whole, after)
    return 0.0 if text.get_rotation() else max(0, after.count("\n") - before.count("\n")) * _line(text)
