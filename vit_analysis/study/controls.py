"""The one list of controls: under what other conditions a finding is measured, and whether it has to hold there.

A control changes the evidence: other tables, columns or models in the place of those that a claim is computed from, so that
value and interval change together. A sound finding holds under those that are `turning`; the others show what its number
would be without training, or without care.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd

from vit_analysis.cka import View
from vit_analysis.study.evidence import Evidence
from vit_analysis.table import WITHOUT
from vit_analysis.tensors.measures import NEAR


@dataclass(frozen=True)
class Control:
    """A condition under which a finding is measured again.

    Attributes:
        name: its name in code and tables; for a control of similarity it is what `cka.plan_controls` measures.
        words: its name for readers.
        turning: whether a finding that does not hold under it is fragile.
        apply: function from the evidence to what takes its place; None where nothing was measured for it.
        view: what `cka.plan_controls` has to measure for it; None where other tables hold it already.
        of_nothing: whether it compares what has nothing in common, so that no finding may hold under it.
    """

    name: str
    words: str
    turning: bool
    apply: Callable[[Evidence], Evidence | None]
    view: View | None = None
    of_nothing: bool = False


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
    if "cka_controls" in own and _measurable(measured, own["cka_controls"]):
        rows = controlled(own["cka_controls"], measured).assign(control=ALL)
        changed |= {"cka": rows, "cka_controls": rows}
    others = {name: own.get(f"{name}_{suffix}") for name in ("localization", "soft_nearest_neighbor")}
    changed |= {name: other for name, other in others.items() if other is not None}
    kept = [name for name in own if name not in ("cka", "cka_controls", *others)]
    return evidence.changed(changed, tables=[*kept, *changed]) if changed else None


def _measurable(name: str, table: pd.DataFrame) -> bool:
    """Return whether the batches of a table were large enough for a control; in small ones images have no neighbours."""
    batch = table.attrs.get("images", {}).get("batch", NEAR)
    return batch >= NEAR or VIEWS[name].measure != "mutual_knn"


def _untrained(evidence: Evidence) -> Evidence | None:
    twins = evidence.parts.twins()
    vits = len(evidence.parts.names("vit")[:1])
    return evidence.changed({}, parts={"vit": tuple(twins[:vits]), "cnn": tuple(twins[vits:])})


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


def _of_similarity(
    name: str, words: str, view: View, *, turning: bool = True, nothing: bool = False
) -> Control:
    return Control(name, words, turning, partial(_similarity, name, name), view, nothing)


ALL = "all"  # block outputs as the paper compares them
BLOCKS = Control("blocks", "block outputs only", True, partial(_similarity, ALL, "blocks"), View())
SPATIAL = _of_similarity("spatial", "class token dropped", View("spatial"))
NORMALIZED = _of_similarity("normalized", "every token normalised", View("normalized"))
INLIERS = _of_similarity("inliers", "massive tokens replaced", View("inliers"))
TYPICAL = _of_similarity("typical", "dominant images replaced", View("typical"))
BIASED = _of_similarity("biased", "biased estimator", View(measure="biased"), turning=False)
SHUFFLED = _of_similarity(
    "shuffled", "images of every layer shuffled", View(order="layer"), turning=False, nothing=True
)
PERMUTED = _of_similarity(
    "permuted", "images of every model shuffled", View(order="model"), turning=False, nothing=True
)
PIXELS = _of_similarity("partial", "given the pixels (partial CKA)", View(given="pixels"))
PIXELS_NORMALIZED = _of_similarity(
    "partial normalized", "given the pixels, tokens normalised", View("normalized", given="pixels")
)
# What layers share with untrained ones is what the word architectural is for: this shows how much, and turns nothing.
TWINS = _of_similarity(
    "partial twins", "given the pixels and untrained twins", View(given="pixels and twins"), turning=False
)
RANKS = _of_similarity("rank", "rank CKA", View(measure="rank_cka"))
RANKS_NORMALIZED = _of_similarity(
    "rank normalized", "rank CKA, tokens normalised", View("normalized", "rank_cka")
)
NEAREST = _of_similarity("nearest", "mutual nearest neighbours", View(measure="mutual_knn"))
NEAREST_NORMALIZED = _of_similarity(
    "nearest normalized", "mutual nearest neighbours, tokens normalised", View("normalized", "mutual_knn")
)
UNTRAINED = Control("untrained", "untrained twins", False, _untrained)
RAW = Control(
    "raw",
    "attention to prefix tokens counted as distance 0",
    True,
    partial(
        _exchanged, "attention_distance", "distance_px", lambda whole, end: whole[f"raw_distance_px{end}"]
    ),
)
MEDIAN = Control(
    "median",
    "median over tokens",
    True,
    partial(_exchanged, "skip", "norm_ratio", lambda whole, end: whole[f"median{end}"]),
)
MEAN_NORMS = Control(
    "mean norms", "ratio of mean norms", True, partial(_exchanged, "skip", "norm_ratio", _mean_norms)
)

MEASURES = (PIXELS, PIXELS_NORMALIZED, RANKS, RANKS_NORMALIZED, NEAREST, NEAREST_NORMALIZED, TWINS)
"""Second measures of similarity."""
CONTROLS = (
    *(BLOCKS, SPATIAL, NORMALIZED, INLIERS, TYPICAL, *MEASURES, BIASED, SHUFFLED, PERMUTED),
    *(UNTRAINED, RAW, MEAN_NORMS, MEDIAN),
)
OF_BLOCKS = (SPATIAL, NORMALIZED, INLIERS, TYPICAL, *MEASURES, BIASED, SHUFFLED)
"""The controls of claims about the similarity of block outputs."""
OF_CKA = (BLOCKS, *OF_BLOCKS, UNTRAINED)
"""The controls of claims about the similarity of all sublayers: also block outputs alone, and untrained twins."""
OF_PAIRED_TWINS = tuple(control for control in OF_CKA if control not in (UNTRAINED, TWINS))
"""The same where twins are what is compared with."""
OF_PAIRS = (BLOCKS, *OF_BLOCKS[:-1], PERMUTED, UNTRAINED)
"""The same for claims about two models: images of one model in another order, as such claims look for the best match."""
VIEWS: Mapping[str, View] = {
    ALL if control is BLOCKS else control.name: control.view for control in CONTROLS if control.view
}
"""What `cka.plan_controls` has to measure, the paper's estimator first."""
