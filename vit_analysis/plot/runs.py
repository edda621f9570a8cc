"""Which models of a table are further training runs of one of them: a figure shows the first, and the others as thin lines."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from vit_analysis.plot.style import family

THIN: dict[str, Any] = {"linewidth": 0.7, "alpha": 0.55, "marker": "", "linestyle": "-"}
TOLD = "Thin lines: further training runs."


def first_runs(table: pd.DataFrame) -> list[str]:
    """The models of a table, and of several training runs of one the first; an untrained twin is a model of its own."""
    return list(_runs(table))


def further_runs(table: pd.DataFrame, model: str) -> list[str]:
    """The training runs in a table of a model of `first_runs` after the first; none of any other model."""
    return list(_runs(table).get(model, ())[1:])


def told(table: pd.DataFrame, words: str = TOLD) -> str:
    """The sentence that explains how further training runs are drawn; empty where there are none."""
    return words if any(len(runs) > 1 for runs in _runs(table).values()) else ""


def _runs(table: pd.DataFrame) -> dict[str, Sequence[str]]:
    runs: dict[tuple[str, bool], list[str]] = {}
    for model in dict.fromkeys(table["model"]):
        base, words = family(str(model), table)
        runs.setdefault((base, "untrained" in words), []).append(str(model))
    return {own[0]: own for own in runs.values()}
