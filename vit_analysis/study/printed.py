"""Numbers that the paper prints, each with the function that gives the same number of these models.

They are no thresholds: a verdict is about a claim's own number, which has an interval, and these stand beside it, so that a
reader who knows the paper's number finds it again. The numbers are those of the text and of colour bars and axes, not read off
curves.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from vit_analysis.study import numbers as q
from vit_analysis.study.evidence import Evidence

# Pixels that uniform attention looks on the paper's images, 14 x 14 patches of 16 px: images of another size are scaled by it.
UNIFORM = 116.5
KEPT = 0.9  # of CKA before and after: what is still the same layer; the paper prints no number for it


@dataclass(frozen=True)
class Printed:
    """A number, or the range of several, as a source prints it.

    Attributes:
        low: the number, or the least of them.
        high: the number, or the largest of them.
        unit: what it counts or measures, as it stands after the number.
        of: who says it, and of which models.
        here: function from the evidence to the same number of these models; None where it is the claim's own number.
    """

    low: float
    high: float
    unit: str
    of: str
    here: Callable[[Evidence], float] | None = None


def alike_at(depth: float) -> Callable[[Evidence], float]:
    """Return a function to the depth of V whose layer is most like that of R at a depth, both from 0 to 1.

    The deepest match never moves back as R gets deeper: it is fitted so (isotonic regression), as single cells are noisy.
    """

    def of(e: Evidence) -> float:
        matrix = q.crossed(e)
        best = matrix.depth[np.nan_to_num(matrix.values, nan=-np.inf).argmax(axis=0)]
        return float(np.interp(depth, matrix.other_depth, isotonic_regression(best).x))

    return of


def nearest_head(e: Evidence) -> float:
    """The mean distance that the most local head of the two lowest blocks of V looks, in pixels of an image of 224 px."""
    return float(_distances(e).min())


def farthest_head(e: Evidence) -> float:
    """The mean distance that the most global head of the two lowest blocks of V looks, in pixels of an image of 224 px."""
    return float(_distances(e).max())


def _distances(e: Evidence) -> np.ndarray:
    rows = q.of_blocks(e, e.one("vit"), q.LOWEST)
    return UNIFORM * (rows["distance_px"] / rows["uniform_px"]).to_numpy()


def blocks_kept(e: Evidence) -> float:
    """How many blocks from the first on have a CKA of at least `KEPT` before and after fine-tuning."""
    alike = q.blocks_alike(e, e.one("tuned")) >= KEPT
    return float(len(alike) if alike.all() else alike.argmin())


def massive_from(e: Evidence) -> float:
    """The depth, from 0 to 1, of the first layer of V in which there are massive tokens; NaN where there are none."""
    rows = e.rows("tokens", model=e.one("vit"))
    return float(rows.loc[rows["massive_tokens"] > 0, "depth"].min())
