"""Numbers that the paper prints, as they are of tables made by hand."""

import math

import numpy as np
import pytest
from made import V_AND_R, evidence, rows, similarities

from vit_analysis.study import printed
from vit_analysis.study.claims import CLAIMS
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.parts import Parts


def crossed(matrix: np.ndarray) -> Evidence:
    return evidence(V_AND_R, cka=similarities({("v", "r"): matrix}))


def ridge(line: np.ndarray, down: int = 41) -> np.ndarray:
    """Similarity that falls with the distance from a line: the depth of V that each layer of R is like."""
    return 1 - np.abs(np.linspace(0, 1, down)[:, None] - line)


@pytest.mark.parametrize("count", [11, 41])
def test_the_depth_of_v_that_r_is_like_is_where_the_ridge_lies(count):
    depth = np.linspace(0, 1, count)
    paper = crossed(ridge(np.interp(depth, [0, 0.5, 1], [0, 0.25, 0.58])))
    assert printed.alike_at(0.5)(paper) == pytest.approx(0.25, abs=0.015)
    assert printed.alike_at(1.0)(paper) == pytest.approx(0.58, abs=0.015)
    equal = crossed(ridge(depth))
    assert printed.alike_at(0.5)(equal) == pytest.approx(0.5, abs=0.03)


def test_one_layer_that_is_like_nothing_near_moves_it_little():
    line = np.linspace(0, 0.5, 41)
    line[20] = 1.0  # half way: most like the last layer of V, for once
    assert printed.alike_at(0.5)(crossed(ridge(line))) == pytest.approx(0.25, abs=0.15)
    assert printed.alike_at(1.0)(crossed(ridge(line))) == pytest.approx(0.5, abs=0.03)


def test_a_layer_that_is_constant_over_images_has_no_part_in_it():
    matrix = ridge(np.linspace(0, 1, 41))
    matrix[7] = np.nan
    matrix[:, 3] = np.nan
    assert printed.alike_at(0.5)(crossed(matrix)) == pytest.approx(0.5, abs=0.03)


def test_the_nearest_and_the_farthest_head_are_those_of_the_two_lowest_blocks_in_pixels():
    columns = ("model", "block", "head", "distance_px", "uniform_px")
    own = [
        ("v", "blocks.0", 0, 31.0 / 7, 116.5 / 7),  # an image of 32 px
        ("v", "blocks.0", 1, 90.0, 116.5),
        ("v", "blocks.1", 0, 44.0, 116.5),
        ("v", "blocks.1", 1, 101.0, 116.5),
        ("v", "blocks.2", 0, 5.0, 116.5),
        ("v", "blocks.2", 1, 116.0, 116.5),
        ("w", "blocks.0", 0, 1.0, 116.5),
    ]
    e = evidence(V_AND_R, attention_distance=rows(columns, *own))
    # As on images of 224 px, where uniform attention looks 116.5 px.
    assert printed.nearest_head(e) == pytest.approx(31.0)
    assert printed.farthest_head(e) == pytest.approx(101.0)


@pytest.mark.parametrize(
    ("alike", "kept"),
    [([0.99, 0.95, 0.9, 0.7, 0.95], 3.0), ([0.8, 0.99], 0.0), ([0.95, 0.92], 2.0)],
)
def test_blocks_that_fine_tuning_kept_are_counted_from_the_first_on(alike, kept):
    table = similarities({("v", "tuned"): np.diag(alike)}).assign(control="all")
    e = evidence(Parts(vit=("v",), tuned="tuned"), cka_controls=table)
    assert printed.blocks_kept(e) == kept


def test_massive_tokens_are_there_from_the_first_layer_that_has_some():
    columns = ("model", "layer", "depth", "massive_tokens")
    own = [("v", "a", 0.0, 0.0), ("v", "b", 0.5, 0.02), ("v", "c", 1.0, 0.04), ("w", "a", 0.0, 1.0)]
    assert printed.massive_from(evidence(V_AND_R, tokens=rows(columns, *own))) == 0.5
    none = [(model, layer, depth, 0.0) for model, layer, depth, _ in own]
    assert math.isnan(printed.massive_from(evidence(V_AND_R, tokens=rows(columns, *none))))


# What the paper prints for each claim, as its text, its colour bars and its axes have it.
PAPER = {
    "F2a": (0.25, 0.25), "F2b": (0.58, 0.58), "F3a": (20, 40), "F3b": (100, 100), "F8b": (4, 4),
    "F11a": (57 - 10, 58 - 6), "F13a": (30, 30), "G1": (4, 5),
}  # fmt: skip
OTHERS = {"B1": (15 / 40, 15 / 40), "SEED1": (70 - 40, 70 - 40)}  # Darcet et al., and the notes


def test_every_number_that_is_printed_is_beside_its_claim():
    there = {claim.id: claim.printed for claim in CLAIMS if claim.printed}
    assert {name: (one.low, one.high) for name, one in there.items()} == PAPER | OTHERS
    for name, one in there.items():
        assert one.of.startswith("the paper: ") == (name in PAPER)
        assert one.unit


def test_a_number_that_rules_use_as_the_papers_is_the_one_that_is_printed():
    claims = {claim.id: claim for claim in CLAIMS}
    for name in ("F11a", "F13a"):
        assert claims[name].rule.size == claims[name].printed.low
    assert claims["F8b"].rule.low < claims["F8b"].printed.low < claims["F8b"].rule.high
