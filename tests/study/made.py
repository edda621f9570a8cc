"""Tables made by hand, and evidence of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.parts import Parts
from vit_analysis.table import WITHOUT

V_AND_R = Parts(vit=("v",), cnn=("r",))


def without_each(values: np.ndarray) -> np.ndarray:
    """Means over all groups but one; ``values`` is [row, group]."""
    return (values.sum(1, keepdims=True) - values) / max(1, values.shape[1] - 1)


def means(values: np.ndarray, images: str = "a", **columns: Any) -> pd.DataFrame:
    """Rows whose x is a mean over groups of images; ``values`` is [row, group]."""
    made = pd.DataFrame({"model": "m", **columns, "x": values.mean(1)})
    made[f"x{WITHOUT}"] = list(without_each(values))
    made.attrs = {"images": {"source": images}, "models": {"m": "0"}}
    return made


def evidence(parts: Parts = Parts(vit=("m",)), **tables: pd.DataFrame) -> Evidence:  # noqa: B008  (frozen)
    """Evidence of some tables, of which ``lost`` is missing."""
    return Evidence(Study(parts, tables, {"lost": "needs labels"}))


def rows(columns: Sequence[str], *rows: Sequence[Any], **attrs: Any) -> pd.DataFrame:
    """A table row by row."""
    made = pd.DataFrame(rows, columns=list(columns))
    made.attrs = {"images": {"source": "a"}, **attrs}
    return made


def similarities(
    pairs: Mapping[tuple[str, str], np.ndarray], names: Mapping[str, Sequence[str]] | None = None, **more: Any
) -> pd.DataFrame:
    """A table of CKA from a matrix for each pair of models, whose layers are blocks unless they are named."""
    made = []
    for (model, other), values in pairs.items():
        down, across = (
            (names or {}).get(name) or [f"blocks.{i}" for i in range(count)]
            for name, count in zip((model, other), values.shape, strict=True)
        )
        made += [
            (
                model,
                layer,
                i / max(1, len(down) - 1),
                other,
                beside,
                j / max(1, len(across) - 1),
                values[i, j],
            )
            for i, layer in enumerate(down)
            for j, beside in enumerate(across)
        ]
    columns = ("model", "layer", "depth", "other_model", "other_layer", "other_depth", "cka")
    return rows(columns, *made).assign(**more)
