"""Interactive heat maps: tables of CKA as the data that `heatmaps.js` draws."""

import base64
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from vit_analysis.plot.heatmaps import STAGE
from vit_analysis.plot.style import display_name
from vit_analysis.study.report.sections import Panel
from vit_analysis.table import column

UNIT = 1000  # values are sent in thousandths, the three digits that are shown
UNDEFINED = -(2**15)
MEASURES: Mapping[str, str] = {
    "cka": "CKA",
    "partial_cka": "partial CKA",
    "rank_cka": "rank CKA",
    "mutual_knn": "mutual nearest neighbours",
    "biased": "CKA, biased",
}
BLOCK = re.compile(r".*?\d+(?:\.\d+)*")  # a layer's name up to the number of its block


def heatmap(panel: Panel) -> dict[str, Any]:
    """What the page shows of a panel: caption, names of axes, a text in place of the picture, and data for the script.

    Raises:
        ValueError: a table is not of one model with one model, or its rows are not in order of execution.
        Refusal: a column is missing.
    """
    caption = " and ".join(dict.fromkeys(map(display_name, panel.models)))
    views = [_view(caption, words, table) for words, table in panel.views.items()]
    first = next(iter(panel.views.values()))
    up, right = (
        f"{views[0][side]['name']}, {len(views[0][side]['layer'])} layers" for side in ("rows", "columns")
    )
    told = f"{views[0]['measure']} of {up}, upwards, with {right}, to the right: {_range(first)}."
    return {
        "caption": caption,
        "up": up,
        "right": right,
        "width": len(views[0]["columns"]["layer"]),
        "height": len(views[0]["rows"]["layer"]),
        "alternative": f"{caption}. {told}",
        "data": {"caption": caption, "views": views},
    }  # fmt: skip


def _range(table: pd.DataFrame) -> str:
    values = table["cka"].describe()
    return (
        "{min:z.2f} to {max:z.2f}, {mean:z.2f} on average".format(**values)
        if values["count"]
        else "undefined"
    )


def _view(caption: str, words: str, table: pd.DataFrame) -> dict[str, Any]:
    rows, columns = _axes(caption, table)
    measure = str(table["measure"].iloc[0]) if "measure" in table else "cka"
    view: dict[str, Any] = {"words": words, "measure": MEASURES.get(measure, measure)}
    view |= {"rows": _axis(rows), "columns": _axis(columns)}
    return view | {side: thousandths(table[side].to_numpy(float)) for side in ("cka", "low", "high")}


def _axes(caption: str, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the layers of rows (upwards) and columns (to the right) of a table that has every pair, in that order."""
    rows, columns = _layers(table, ""), _layers(table, "other_")
    pairs = pd.MultiIndex.from_product([rows["layer"], columns["layer"]])
    if rows["model"].nunique() != 1 or columns["model"].nunique() != 1 or len(pairs) != len(table):
        raise ValueError(f"heat map {caption!r} must be one model with one model, every pair of layers once")
    if not pairs.equals(pd.MultiIndex.from_frame(table[["layer", "other_layer"]], names=pairs.names)):
        raise ValueError(
            f"rows of heat map {caption!r} must stand as `cka.measure` makes them, in order of execution"
        )
    return rows, columns


def _layers(table: pd.DataFrame, side: str) -> pd.DataFrame:
    names = {f"{side}{name}": name for name in ("model", "layer", "depth")}
    layers = pd.DataFrame({short: column(table, name) for name, short in names.items()})
    return layers.drop_duplicates(["model", "layer"]).round(3)


def _axis(layers: pd.DataFrame) -> dict[str, Any]:
    """One model's layers with their depths, and where its blocks and its stages begin."""
    model, names = str(layers["model"].iloc[0]), [str(name) for name in layers["layer"]]
    return {
        "model": model,
        "name": display_name(model),
        "layer": names,
        "depth": layers["depth"].tolist(),
        "blocks": _beginnings(BLOCK, names),
        "stages": _beginnings(STAGE, names),
    }


def _beginnings(part: re.Pattern[str], names: list[str]) -> list[int]:
    """The places at which another part of the network begins than that of the layer before."""
    found = [part.match(name) for name in names]
    keys = [match.group() if match else "" for match in found]
    return [place for place in range(1, len(keys)) if keys[place] != keys[place - 1]]


def thousandths(values: np.ndarray) -> str:
    """Encode values in thousandths as 16-bit integers, little-endian in base64; bounds beyond +- 32.767 are clipped."""
    whole = np.rint(np.clip(np.nan_to_num(values), -32.767, 32.767) * UNIT)
    return base64.b64encode(np.where(np.isnan(values), UNDEFINED, whole).astype("<i2").tobytes()).decode()
