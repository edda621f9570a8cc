"""Every interval, and every value without a group, of every kind of table: those of runs without each batch of images.

The last batch is smaller than the others, and batches differ in brightness and contrast, so that a weight, a group or a column
that is another one shows. A kind of table without a case, or a bound that no case tries, is an error.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest
import tiny
from scipy.stats import t as student

from vit_analysis.shell.analyses import ANALYSES

IMAGES, BATCH, GROUPS = 44, 12, 4
# Receptive fields are of few images, each of which is a group.
FIELDS, OF_FIELDS = 7, 3
# The sides of squares of receptive fields move in steps; their intervals are of numbers between those, which no table tells.
STEPPED = "side_"
COUNT = float(IMAGES)
ANY = float("inf")

OF_LESIONS: dict[str, tuple[str, str, str | float]] = {
    "accuracy": ("accuracy_low", "accuracy_high", COUNT),
    "drop": ("low", "high", "jackknife"),
    "across_drop": ("across_low", "across_high", "jackknife"),
}

# By kind of table: value, its bounds, and how they are found: by the jackknife, relative to the value, or, with a number of
# trials, as those of a share.
BOUNDS: dict[str, dict[str, tuple[str, str, str | float]]] = {
    "cka": {"cka": ("low", "high", "jackknife")},
    "attention_distance": {
        "distance_px": ("low", "high", "jackknife"),
        "raw_distance_px": ("raw_low", "raw_high", "jackknife"),
        "entropy": ("entropy_low", "entropy_high", "jackknife"),
        "nmi": ("nmi_low", "nmi_high", "jackknife"),
    },
    "head_subsets": {"cka": ("low", "high", "jackknife")},
    "receptive_field": {
        "radius_px": ("low", "high", "jackknife"),
        "centre_share": ("centre_low", "centre_high", ANY),
    },
    "receptive_field_maps": {},
    "skip": {"norm_ratio": ("low", "high", "jackknife")},
    "lesions": OF_LESIONS,
    "lesions_trained": OF_LESIONS,
    "localization": {"cka": ("low", "high", "jackknife")},
    "probe": {},
    "soft_nearest_neighbor": {"loss": ("low", "high", "relative")},
    "tokens": {
        **{
            name: (f"{name}_low", f"{name}_high", "jackknife")
            for name in ("norm", "largest", "patch_cosine", "class_cosine", "effective_rank", "participation")
        },
        **{
            name: (f"{name}_low", f"{name}_high", COUNT) for name in ("massive_tokens", "massive_activations")
        },
    },
    "frequency": {"log_amplitude": ("low", "high", "jackknife")},
}


@cache
def table(kind: str, left_out: int | None = None) -> pd.DataFrame:
    """The table of all images or, if one is given, of those without a group; in an order that no image decides."""
    if kind.startswith("receptive_field"):
        own = tiny.made(FIELDS, OF_FIELDS)
        left = [image for image in range(FIELDS) if image != left_out]
        own = replace(own, images=replace(own.images, pixels=own.images.pixels[left]))
    else:
        own = tiny.made(IMAGES, BATCH)
        own = own if left_out is None else own.without(left_out)
    made = tiny.TABLES[kind](own)
    return made.sort_values(["layer", "heads"]) if kind == "head_subsets" else made


def groups(kind: str) -> int:
    return FIELDS if kind.startswith("receptive_field") else GROUPS


@cache
def runs(kind: str, column: str) -> np.ndarray:
    """The column in runs without each group, [group, row]."""
    return np.stack([table(kind, group)[column].to_numpy(dtype=float) for group in range(groups(kind))])


def half(kind: str, column: str) -> np.ndarray:
    """Half of the jackknife's interval."""
    without, count = runs(kind, column), groups(kind)
    error = ((count - 1) / count * ((without - without.mean(0)) ** 2).sum(0)) ** 0.5
    return student.ppf(0.975, count - 1) * error


def of_share(value: float, half: float, trials: float, factor: float) -> tuple[float, float]:
    """Where (bound - share)^2 is t^2 times the variance of a share as large as the bound, of so many trials."""
    trials = value * (1 - value) / (half / factor) ** 2 if half > 0 and 0 < value < 1 else trials
    c = factor**2 / trials
    low, high = sorted(np.roots([1 + c, -(2 * value + c), value**2]).real)
    return max(0.0, low), min(1.0, high)


def bounds_of(kind: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper bounds that the column has to have."""
    value, wide, how = table(kind)[column].to_numpy(dtype=float), half(kind, column), BOUNDS[kind][column][2]
    if isinstance(how, float):
        factor = student.ppf(0.975, groups(kind) - 1)
        both = [of_share(*pair, how, factor) for pair in zip(value, wide, strict=True)]
        return np.array([low for low, _ in both]), np.array([high for _, high in both])
    if how == "relative":
        return value * np.exp(-wide / value), value * np.exp(wide / value)
    return value - wide, value + wide


def test_every_kind_of_table_has_a_case():
    kinds = {kind for analysis in ANALYSES for kind in analysis.tables}
    assert kinds == set(BOUNDS) == set(tiny.TABLES)


@pytest.mark.parametrize("kind", BOUNDS)
def test_values_without_each_group_and_intervals_are_those_of_runs_without_it(kind):
    whole, bounds = table(kind), BOUNDS[kind]
    names = [str(name) for name in whole if not str(name).startswith(STEPPED)]
    told = [name for name in names if name.endswith(("low", "high"))]
    assert sorted(told) == sorted(name for low, high, _ in bounds.values() for name in (low, high))
    for name in (name for name in names if name.endswith("_without")):
        column = name.removesuffix("_without")
        own, expected = tiny.replicates(whole, column), runs(kind, column).T
        if (kind, column) == ("skip", "median"):  # kept for class token and spatial tokens alone
            rows = ~whole["token"].str.isdigit().to_numpy()
            own, expected = own[rows], expected[rows]
        scale = np.nanmax(np.abs(expected))
        np.testing.assert_allclose(own, expected, rtol=2e-4, atol=2e-4 * scale, err_msg=name)
        assert (
            column.startswith(("accuracy", "massive", "drop")) or np.nanmax(own.std(1)) > 0
        )  # it tries something
    for column, (low, high, _) in bounds.items():
        scale = np.nanmax(np.abs(whole[column])) + np.nanmax(half(kind, column))
        for name, said in zip((low, high), bounds_of(kind, column), strict=True):
            np.testing.assert_allclose(whole[name], said, rtol=1e-3, atol=1e-3 * scale, err_msg=name)
