"""The one list of controls: under what other conditions a finding is measured, and whether it has to hold there.

A control changes the evidence: other tables, columns or models in the place of those that a claim is computed from, so that
value and interval change together. A sound finding holds under those that are `turning`; the others show what its number
would be without training, or without care.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from vit_analysis.study.evidence import Evidence
from vit_analysis.table import WITHOUT


@dataclass(frozen=True)
class Control:
    """A condition under which a finding is measured again.

    Attributes:
        name: its name in code and tables; for a control of similarity it is what `cka.plan_controls` measures.
        words: its name for readers.
        turning: whether a finding that is reversed under it is fragile.
        apply: function from the evidence to what takes its place; None where nothing was measured for it.
        measured: what `cka.plan_controls` has to measure for it; empty where other tables hold it already.
    """

    name: str
    words: str
    turning: bool
    apply: Callable[[Evidence], Evidence | None]
    measured: str = ""


def controlled(table: pd.DataFrame, control: str) -> pd.DataFrame:
    """The rows of a table of controls that were measured under one of them.

    Raises:
        ValueError: none was.
    """
    rows = table[table["control"] == control]
    if rows.empty:
        raise ValueError(
            f"nothing was measured under {control!r}, only under {list(table['control'].unique())}"
        )
    return rows


def _similarity(measured: str, suffix: str, evidence: Evidence) -> Evidence | None:
    """Replace CKA, and other tables that were measured under the control; remove those others that were not."""
    own = evidence.study.tables
    changed: dict[str, pd.DataFrame] = {}
    if "cka_controls" in own:
        rows = controlled(own["cka_controls"], measured).assign(control="all")
        changed |= {"cka": rows, "cka_controls": rows}
    others = {name: own.get(f"{name}_{suffix}") for name in ("localization", "soft_nearest_neighbor")}
    changed |= {name: other for name, other in others.items() if other is not None}
    kept = [name for name in own if name not in ("cka", "cka_controls", *others)]
    return evidence.changed(changed, tables=[*kept, *changed]) if changed else None


def _untrained(evidence: Evidence) -> Evidence | None:
    twins = evidence.parts.twins()
    vits, cnns = len(evidence.parts.vit[:1]), len(evidence.parts.cnn[:1])
    return evidence.changed({}, parts={"vit": tuple(twins[:vits]), "cnn": tuple(twins[vits:][:cnns])})


def _exchanged(
    name: str, column: str, other: Callable[[pd.DataFrame, str], Any], evidence: Evidence
) -> Evidence | None:
    """Replace a column, and its values without each group, by another."""
    if name not in evidence.study.tables:
        return None
    whole = evidence.study.tables[name]
    changed = whole.assign(**{column + ending: other(whole, ending) for ending in ("", WITHOUT)})
    changed.attrs = whole.attrs
    return evidence.changed({name: changed})


def _mean_norms(whole: pd.DataFrame, ending: str) -> Any:
    return whole[f"skip_norm{ending}"] / whole[f"long_norm{ending}"]


def _other_seed(evidence: Evidence) -> Evidence | None:
    seed = evidence.parts.other_seed
    return evidence.changed({}, parts={"less_data": (seed,)}) if seed else None


def _of_similarity(name: str, words: str, *, turning: bool = True) -> Control:
    measured = "all" if name == "blocks" else name
    return Control(name, words, turning, partial(_similarity, measured, name), measured)


BLOCKS = _of_similarity("blocks", "block outputs only")
SPATIAL = _of_similarity("spatial", "class token dropped")
NORMALIZED = _of_similarity("normalized", "every token normalised")
INLIERS = _of_similarity("inliers", "massive tokens replaced")
TYPICAL = _of_similarity("typical", "dominant images replaced")
BIASED = _of_similarity("biased", "biased estimator", turning=False)
SHUFFLED = _of_similarity("shuffled", "images shuffled", turning=False)
UNTRAINED = Control("untrained", "untrained twins", False, _untrained)
RAW = Control(
    "raw",
    "attention to prefix tokens left in",
    True,
    partial(
        _exchanged, "attention_distance", "distance_px", lambda whole, end: whole[f"raw_distance_px{end}"]
    ),
)
MEAN_NORMS = Control(
    "mean norms", "ratio of mean norms", True, partial(_exchanged, "skip", "norm_ratio", _mean_norms)
)
OTHER_SEED = Control("other seed", "other seed, all data", False, _other_seed)

CONTROLS = (
    *(BLOCKS, SPATIAL, NORMALIZED, INLIERS, TYPICAL, BIASED, SHUFFLED),
    *(UNTRAINED, RAW, MEAN_NORMS, OTHER_SEED),
)
OF_BLOCKS = (SPATIAL, NORMALIZED, INLIERS, TYPICAL, BIASED, SHUFFLED)
"""The controls of claims about the similarity of block outputs."""
OF_CKA = (BLOCKS, *OF_BLOCKS, UNTRAINED)
"""The controls of claims about the similarity of all sublayers: also block outputs alone, and untrained twins."""
SELECTIONS = tuple(dict.fromkeys(control.measured for control in CONTROLS if control.measured))
"""What `cka.plan_controls` has to measure, the paper's estimator first."""
