"""Every number on tables made by hand, beside what it has to be there."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made import V_AND_R, evidence, rows, similarities

from vit_analysis.spelling import Refusal
from vit_analysis.study import numbers as q
from vit_analysis.study.evidence import Evidence, Matrix
from vit_analysis.study.parts import Parts

FIRST, SECOND = slice(0, q.GRID // 2), slice(q.GRID // 2, None)
RETRAINED = Parts(vit=("v",), less_data=("small", "medium"), other_seed="seed", tuned="tuned")


def square(values: np.ndarray, layers: list[str] | None = None) -> Matrix:
    depth = np.linspace(0, 1, len(values))
    other = np.linspace(0, 1, values.shape[1])
    return Matrix(values, layers or [f"blocks.{i}" for i in range(len(values))], depth, other)


def plane(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], down: int = 13, across: int = 9
) -> Matrix:
    """The map of a function of the depths v of a row and r of a column."""
    return square(
        np.broadcast_to(function(*np.ogrid[0 : 1 : down * 1j, 0 : 1 : across * 1j]), (down, across)) * 1.0
    )


def smooth(count: int, length: float = 8.0) -> np.ndarray:
    """A map without stages: the nearer two layers are, the more alike."""
    place = np.arange(count)
    return np.exp(-np.abs(place[:, None] - place) / length)


def alike(mean: float, count: int = 6) -> np.ndarray:
    return np.where(np.eye(count, dtype=bool), 1, mean)


# Similarity of layers.


def test_a_map_on_the_common_grid_keeps_its_corners_and_a_plane_stays_a_plane():
    rows, columns = np.mgrid[0:5, 0:9]
    tilted = square(rows / 4 + 2 * columns / 8)
    grid = np.linspace(0, 1, 24)
    np.testing.assert_allclose(q.resampled(tilted), grid[:, None] + 2 * grid)


def test_uniformity_does_not_depend_on_how_many_layers_are_looked_at():
    def falling(count: int) -> Matrix:
        depth = np.linspace(0, 1, count)
        return square(np.exp(-np.abs(depth[:, None] - depth)))

    assert q.uniformity(falling(24)) == pytest.approx(q.uniformity(falling(139)), abs=0.002)
    assert q.uniformity(square(np.full((7, 7), 0.3))) == pytest.approx(0.3)
    assert q.uniformity(square(np.eye(24))) == 0


def test_the_far_corner_is_the_lowest_third_with_the_highest():
    values = np.zeros((24, 24))
    values[:8, 16:] = 1
    assert q.far(square(values)) == 1
    assert q.far(square(values.T)) == 0


def test_the_lead_in_uniformity_is_of_trained_models_less_that_of_their_twins():
    pairs = {"v": 0.8, "r": 0.3, "v@random": 0.6, "r@random": 0.5}
    own = evidence(V_AND_R, cka=similarities({(name, name): alike(mean) for name, mean in pairs.items()}))
    seen = q.uniformity(square(alike(0.8))) - q.uniformity(square(alike(0.3)))
    twins = q.uniformity(square(alike(0.6))) - q.uniformity(square(alike(0.5)))
    assert q.uniform(own) == pytest.approx(seen)
    assert q.trained_uniform(own) == pytest.approx(seen - twins)


@pytest.mark.parametrize(("local", "beyond"), [(0.3, 0.25), (0.55, 0.0), (0.9, -0.35)])
def test_attention_confined_is_asked_whether_it_comes_halfway_down_to_the_cnn(local, beyond):
    means = {"v": 0.8, "r": 0.3, "l": local}
    own = evidence(
        replace(V_AND_R, local="l"),
        cka=similarities({(name, name): np.full((7, 7), mean) for name, mean in means.items()}),
    )
    for statistic in (q.uniformity, q.far):
        assert q.halfway(own, statistic) == pytest.approx(beyond)


def test_without_a_model_of_near_attention_or_without_downsampling_that_is_what_is_needed():
    own = evidence(V_AND_R, cka=similarities({(name, name): alike(0.5) for name in "vr"}))
    with pytest.raises(Refusal, match="--local"):
        q.halfway(own, q.far)
    with pytest.raises(Refusal, match="--flat"):
        q.place_without_downsampling(evidence(V_AND_R, localization=located(v=gaussian(4), r=gaussian(4))))


def test_stages_are_read_from_names_and_what_comes_before_is_one_of_its_own():
    layers = ["conv1", "layer1.0.conv1", "layer1.0", "layer2.0", "layer2.1"]
    assert q.stages(square(np.eye(5), layers)).tolist() == [-1, 1, 1, 2, 2]
    with pytest.raises(Refusal, match="needs a CNN with stages"):
        q.stages(square(np.eye(3)))


def test_quarters_divide_the_depth():
    assert q.quarters(square(np.eye(9))).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), (3, 8, 36, 3), (1, 2, 9), (20, 2)])
def test_a_smooth_map_without_stages_has_no_contrast_whatever_the_stages(sizes):
    stages = np.repeat(np.arange(len(sizes)), sizes)
    assert q.stage_contrast_of(square(smooth(sum(sizes))), stages) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sizes", [(6, 6, 6, 6), (3, 8, 36, 3), (1, 2, 9)])
def test_the_contrast_of_blocks_on_such_a_map_is_their_height(sizes):
    stages = np.repeat(np.arange(len(sizes)), sizes)
    blocks = 0.25 * (stages[:, None] == stages)
    assert q.stage_contrast_of(square(smooth(sum(sizes)) + blocks), stages) == pytest.approx(0.25)


def test_the_contrast_compares_pairs_as_far_apart_weighted_by_the_rarer_kind():
    # Lag 1: 01, 12, 34 inside, 23 across; lag 2: 02 inside, 13, 24 across; lags 3 and 4 across alone.
    values = np.zeros((5, 5))
    for (i, j), value in {
        (0, 1): 0.9,
        (1, 2): 0.6,
        (3, 4): 0.3,
        (2, 3): 0.2,
        (0, 2): 0.8,
        (1, 3): 0.1,
    }.items():
        values[i, j] = values[j, i] = value
    values[0, 4] = values[4, 0] = 99
    stages = np.array([0, 0, 0, 1, 1])
    assert q.stage_contrast_of(square(values), stages) == pytest.approx(
        ((0.9 + 0.6 + 0.3) / 3 - 0.2 + 0.8 - (0.1 + 0.0) / 2) / 2
    )
    more = np.array(
        [0, 0, 0, 0, 1, 1, 1, 1]
    )  # lag 2: four pairs inside, two across; lag 3: two inside, three across
    values = np.diag([1.0] * 7, 1) * (more[:, None] == more) + np.diag([5.0] * 5, 3) * (more[:, None] == more)
    assert q.stage_contrast_of(square(values), more) == pytest.approx((1 * 1 + 2 * 0 + 2 * 5) / 5)


def test_layers_that_are_constant_over_images_count_for_nothing_in_the_contrast():
    stages = np.repeat([0, 1, 2], 4)
    values = smooth(12) + 0.25 * (stages[:, None] == stages)
    values[2] = values[:, 2] = np.nan
    assert q.stage_contrast_of(square(values), stages) == pytest.approx(0.25)


def test_without_two_layers_in_a_stage_there_is_no_contrast():
    with pytest.raises(Refusal, match="needs several layers in a stage"):
        q.stage_contrast_of(square(np.eye(4)), np.arange(4))


def test_the_contrast_of_a_claim_is_of_stages_less_that_of_quarters():
    names = {"r": ["conv1", *(f"layer{stage}.{unit}" for stage in (1, 2, 3, 4) for unit in range(3))]}
    stages = np.array([0, *np.repeat([1, 2, 3, 4], 3)])
    pairs = {("v", "v"): smooth(13), ("r", "r"): smooth(13) + 0.25 * (stages[:, None] == stages)}
    assert q.stage_contrast(evidence(V_AND_R, cka=similarities(pairs, names))) == pytest.approx(0.25)


def test_a_grid_with_the_period_of_a_block_is_found_and_a_smooth_map_has_none():
    layers = [f"blocks.{block}{part}" for block in range(6) for part in (".norm1", ".attn", ".norm2", "")]
    place = np.arange(24)
    grid = square((place[:, None] % 4 == place % 4).astype(float), layers)
    assert q.periodicity(grid) > 0.9
    trend = smooth(24)
    assert q.periodicity(square(grid.values + 3 * trend, layers)) > 0.5
    other = square(trend + 0.1 * (place[:, None] % 3 == place % 3), layers)  # a grid with another period
    assert q.periodicity(other) < 0
    with pytest.raises(Refusal, match="needs several layers of each block"):
        q.periodicity(square(np.eye(6)))


def test_a_ridge_at_half_the_depth_is_above_zero_and_one_at_equal_depths_below():
    for depths in (FIRST, SECOND):
        assert q.lower_line(plane(lambda v, r: np.exp(-((v - r / 2) ** 2) / 0.02), 49, 25), depths) > 0.05
        assert q.lower_line(plane(lambda v, r: np.exp(-((v - r) ** 2) / 0.02), 49, 25), depths) < -0.05


def test_models_with_nothing_in_common_and_models_alike_everywhere_lie_on_neither_line():
    for value in (0.0, 0.7):
        for depths in (FIRST, SECOND):
            assert q.lower_line(square(np.full((13, 9), value)), depths) == pytest.approx(0)
    assert q.lower_line(plane(lambda v, r: r + 0 * v), SECOND) == pytest.approx(
        0
    )  # R alone: the lines are at equal r


def test_on_a_plane_the_lower_line_gains_its_slope_times_half_the_depth():
    grid = np.linspace(0, 1, q.GRID)
    tilted = plane(lambda v, r: 0.3 * r - 0.8 * v)
    for depths in (FIRST, SECOND):
        assert q.lower_line(tilted, depths) == pytest.approx(0.8 * grid[depths].mean() / 2)


def test_the_two_halves_of_the_lower_line_are_of_the_depth_of_r():
    early = plane(lambda v, r: np.exp(-((v - r / 2) ** 2) / 0.02) * (r <= 0.5), 49, 49)
    assert q.lower_line(early, FIRST) > 0.05
    assert abs(q.lower_line(early, SECOND)) < 0.01


def test_the_top_is_unlike_where_its_best_match_is_worse():
    values = np.full((7, 5), 0.1)
    values[[0, 1, 2, 3], [0, 1, 2, 3]] = [0.9, 0.8, 0.7, 0.6]  # depths 0 to 1/2
    values[[4, 5, 6], [4, 4, 0]] = [0.4, 0.3, 0.2]  # 2/3 to 1
    own = evidence(V_AND_R, cka=similarities({("v", "r"): values}))
    assert q.top_unlike(own) == pytest.approx(0.75 - 0.3)


def test_layers_until_nearly_as_alike_as_ever():
    values = np.array([[0.1, 0.1, 0.1], [0.5, 0.85, 0.5], [0.5, 0.92, 0.5], [0.5, 1.0, 0.5]])
    assert q.layers_until(square(values)) == 3


def test_layers_needed_are_those_of_r_less_those_of_v():
    v, r = np.linspace(0, 1, 5), np.linspace(0, 1, 9)
    values = np.exp(
        -((v[:, None] - r / 2) ** 2) / 0.01
    )  # the middle of R is the second layer of V; R ends at V's third
    own = evidence(V_AND_R, cka=similarities({("v", "r"): values}))
    assert q.layers_needed(own) == 9 - 2


def test_thirds_of_blocks():
    falling = np.array([0.9, 0.9, 0.5, 0.5, 0.2, 0.2])
    assert q.third_down(falling) == pytest.approx(0.7)
    assert q.third_top(falling) == pytest.approx(0.2)
    assert q.third_down(np.array([0.9, 0.4])) == pytest.approx(0.5)


def by_block(**others: np.ndarray | list[float]) -> Evidence:
    """CKA of the blocks of V with the same blocks of others, and something else off the diagonal."""
    pairs = {
        ("v", name): np.diag(values) + 0.01 * (1 - np.eye(len(values))) for name, values in others.items()
    }
    controls = [similarities(pairs, control="all"), similarities(pairs, control="spatial").assign(cka=9.0)]
    table = pd.concat(controls, ignore_index=True)
    table.attrs = {"images": {"source": "a"}}
    return evidence(RETRAINED, cka_controls=table)


def test_little_data_below_is_nothing_where_another_seed_falls_as_much():
    falling = np.linspace(0.9, 0.3, 6)
    assert q.little_data_below(by_block(small=falling, seed=falling)) == pytest.approx(0)
    assert q.little_data_below(by_block(small=falling - 0.2, seed=falling)) == pytest.approx(
        0
    )  # less alike all over
    flat = np.full(6, 0.9)
    assert q.little_data_below(by_block(small=falling, seed=flat)) == pytest.approx(0.48)
    assert q.little_data_below(by_block(small=flat, seed=falling)) == pytest.approx(-0.48)
    with pytest.raises(Refusal, match="holds nothing of v, seed"):
        q.little_data_below(by_block(small=falling))


def test_more_data_gains_by_the_highest_third():
    own = by_block(small=[0.9, 0.9, 0.2], medium=[0.1, 0.1, 0.5])
    assert q.monotone(own) == pytest.approx([0.3])


def test_of_one_amount_of_data_there_is_no_gain():
    own = by_block(small=[0.9, 0.9, 0.2])
    alone = evidence(replace(RETRAINED, less_data=("small",)), **own.study.tables)
    with pytest.raises(Refusal, match="needs 2 times a Vision Transformer trained on less data"):
        q.monotone(alone)


def test_tuning_is_of_the_first_five_twelfths_less_the_second_half():
    values = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert q.tuned(by_block(tuned=values)) == pytest.approx(0.5)


def test_blocks_are_compared_with_as_many_blocks_only():
    table = similarities({("v", "tuned"): np.ones((4, 6))}, control="all")
    with pytest.raises(Refusal, match="tuned has 6, not 4"):
        q.tuned(evidence(RETRAINED, cka_controls=table))


def test_a_mixer_is_more_like_the_one_whose_layers_match_its_own_better():
    to_v, to_r = np.array([[0.1, 0.9], [0.7, 0.1]]), np.array([[0.5, 0.1, 0.1], [0.1, 0.1, 0.3]])
    table = similarities({("x", "v"): to_v, ("x", "r"): to_r})
    own = evidence(Parts(vit=("v",), cnn=("r",), mixer="x"), cka=table)
    assert q.mixer(own) == pytest.approx(0.8 - 0.4)


# Attention.


def heads(**distances: list[list[float]]) -> pd.DataFrame:
    """A table of distances in multiples of that of uniform attention, by model, block and head."""
    return rows(
        ("model", "block", "head", "distance_px", "uniform_px"),
        *(
            (model, f"blocks.{block}", head, 16 * value, 16.0)
            for model, blocks in distances.items()
            for block, own in enumerate(blocks)
            for head, value in enumerate(own)
        ),
    )


def test_reach_is_a_multiple_of_uniform_attention_of_the_lowest_or_highest_blocks():
    own = evidence(attention_distance=heads(m=[[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8], [0.9, 1.0]]))
    assert q.reach(own, "m", q.LOWEST) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert q.reach(own, "m", q.HIGHEST) == pytest.approx([0.7, 0.8, 0.9, 1.0])


def test_fewer_local_heads_are_of_the_four_nearest():
    table = heads(v=[[0.1, 0.9, 0.2], [0.3, 0.4, 0.8]], small=[[0.5, 0.9, 0.6], [0.7, 0.8, 0.9]])
    assert q.fewer_local(evidence(RETRAINED, attention_distance=table)) == pytest.approx(0.65 - 0.25)


def test_subsets_are_judged_by_the_unit_that_falls_least():
    subset = np.arange(8)
    parts = [
        pd.DataFrame(
            {"vit": "v", "cnn": "r", "layer": layer, "subset": subset, "distance_px": subset, "cka": cka}
        )
        for layer, cka in (("layer1.0", -subset), ("layer1.1", -subset[[1, 0, 2, 3, 4, 5, 6, 7]]))
    ]
    table = pd.concat(parts, ignore_index=True)
    table.attrs = {"images": {"source": "a"}}
    assert q.subsets(evidence(V_AND_R, head_subsets=table)) == pytest.approx(-1 + 6 * 2 / (8 * 63))
    few = table[table["subset"] < 7]
    with pytest.raises(Refusal, match=r"needs 8 subsets of heads .* has 7"):
        q.subsets(evidence(V_AND_R, head_subsets=few))


# Receptive fields.


FIELD = ("model", "step", "depth", "branch", "radius_px", "centre_share", "uniform_centre_share")


def fields(*extra: tuple) -> pd.DataFrame:
    """Fields of a ResNet whose steps have radii 1, 2, 4, 6, 9 and of a Vision Transformer with 8, 10, 10."""
    names = ("initial conv", "unit 1", "unit 2", "unit 3", "unit 4")
    cnn = [
        ("r", name, i / 4, "residual", radius, 0.1 * i, 0.05)
        for i, (name, radius) in enumerate(zip(names, (1.0, 2.0, 4.0, 6.0, 9.0), strict=True))
    ]
    vit = [
        ("v", name, i / 2, "residual", radius, 0.2, 0.05)
        for i, (name, radius) in enumerate(
            zip(("attention 1", "MLP 1", "attention 2"), (8.0, 10.0, 10.0), strict=True)
        )
    ]
    long = [(*row[:3], "long", 99.0, row[5] / 2, 0.05) for row in cnn[1:]]
    return rows(FIELD, *cnn, *long, *vit, *extra)


def test_the_first_attention_is_compared_with_the_step_of_r_that_is_asked_for():
    own = evidence(V_AND_R, receptive_field=fields())
    assert q.first_radius_less(own, 0) == pytest.approx(8 - 1)
    assert q.first_radius_less(own, 3) == pytest.approx(8 - 6)
    with pytest.raises(Refusal, match="needs a CNN with the step 'unit 5'"):
        q.first_radius_less(own, 5)


def test_fields_between_steps_are_interpolated():
    own = evidence(V_AND_R, receptive_field=fields())
    assert q.field(own, "cnn", "radius_px", 0.625) == pytest.approx(5)
    assert q.midway(own, "cnn") == pytest.approx(4 / 9)
    assert q.midway(own, "vit") == pytest.approx(1)


def test_the_centre_gained_is_of_late_attentions_or_units_and_not_of_mlps():
    extra = [
        ("v", "attention 2", 1.0, "long", 5.0, 0.05, 0.05),
        ("v", "MLP 1", 0.5, "long", 5.0, 0.7, 0.05),
        ("v", "attention 1", 0.0, "long", 5.0, 0.9, 0.05),
    ]
    own = evidence(V_AND_R, receptive_field=fields(*extra))
    assert q.centre_gained(own, "vit") == pytest.approx(0.2 - 0.05)
    assert q.centre_gained(own, "cnn") == pytest.approx(np.mean([0.1, 0.15, 0.2]))
    assert q.centred_by_skips(own) == pytest.approx(0.15 - 0.15)


def test_a_model_whose_long_branches_are_unknown_is_refused():
    with pytest.raises(Refusal):
        q.centre_gained(evidence(V_AND_R, receptive_field=fields()), "vit")


# Skip connections.


def skips(**ratios: list[tuple[str, str, str, float, float]]) -> pd.DataFrame:
    """A table from (block, sublayer, token, ratio of norms, norm of the long branch) by model."""
    columns = ("model", "block", "sublayer", "token", "norm_ratio", "long_norm")
    return rows(columns, *((model, *own) for model, found in ratios.items() for own in found))


def blocks(*ratios: tuple[float, float], token: str = "spatial") -> list[tuple[str, str, str, float, float]]:
    """Rows of blocks, with a ratio for the attention and one for the MLP of each."""
    return [
        (f"blocks.{number}", sublayer, token, ratio, 1 / ratio)
        for number, pair in enumerate(ratios)
        for sublayer, ratio in zip(("attention", "mlp"), pair, strict=True)
    ]


def test_the_transition_is_the_weaker_of_its_two_halves():
    spatial = blocks(*[(2.0, 2.0)] * 4)
    early = blocks((8.0, 8.0), (8.0, 8.0), (1.0, 1.0), (1.0, 1.0), token="cls")
    own = evidence(V_AND_R, skip=skips(v=[*early, *spatial]))
    assert q.transition(own) == pytest.approx(
        [np.log(4), np.log(2)]
    )  # a lead by log 4, then one behind by log 2
    flat = evidence(V_AND_R, skip=skips(v=[*blocks(*[(8.0, 8.0)] * 4, token="cls"), *spatial]))
    assert min(q.transition(flat)) == pytest.approx(-np.log(4))


def test_skips_carry_is_the_log_of_a_ratio_of_medians_over_blocks():
    v = blocks((2.0, 8.0), (4.0, 4.0), (64.0, 64.0))  # of each block the mean of logs
    r = [
        (f"layer1.{number}", "unit", "spatial", ratio, 1.0) for number, ratio in enumerate((1.0, 2.0, np.inf))
    ]
    own = evidence(V_AND_R, skip=skips(v=v, r=r))
    assert q.skips_carry(own) == pytest.approx(np.log(4) - np.log(2**0.5))
    nothing = [(*row[:3], np.inf, 0.0) for row in r]
    assert np.isnan(q.skips_carry(evidence(V_AND_R, skip=skips(v=v, r=nothing))))


def test_updates_by_mlps_are_their_share_in_what_later_blocks_write():
    written = (
        [(1.0, 9.0)] * 2 + [(3.0, 1.0)] * 8 + [(1.0, 3.0)] * 2
    )  # by attention and MLP of 12 blocks: 10 follows 9
    found = {
        token: [
            (f"blocks.{number}", sublayer, token, 1.0, norm)
            for number, pair in enumerate(own)
            for sublayer, norm in zip(("attention", "mlp"), pair, strict=True)
        ]
        for token, own in (("cls", written), ("spatial", [(1.0, 1.0)] * 12))
    }
    own = evidence(V_AND_R, skip=skips(v=[*found["cls"], *found["spatial"]]))
    assert q.updates_by_mlp(own, "cls") == pytest.approx((4 * 0.25 + 2 * 0.75) / 6)
    assert q.updates_by_mlp(own, "spatial") == pytest.approx(0.5)


NO_SKIP = (("middle", "middle:1", "middle:2"), "first", "last")


def trained(*drops: tuple[str, str, float]) -> pd.DataFrame:
    return rows(("model", "block", "drop"), *drops)


def test_the_middle_block_is_that_of_the_run_asked_for():
    table = trained(
        *[("middle", "blocks.4", 0.1), ("first", "blocks.0", 0.5), ("last", "blocks.7", 0.6)],
        *[("middle:1", "blocks.4", 0.2), ("middle:2", "blocks.4", 0.3)],
    )
    own = evidence(Parts(vit=(("v", "v:1", "v:2"),), no_skip=NO_SKIP), lesions_trained=table)
    assert q.middle_trained(own, "drop") == 0.1
    assert [q.middle_trained(run, "drop") for run in own.further()] == [0.2, 0.3]


def test_the_middle_is_found_by_number_and_not_by_order():
    table = trained(("b", "blocks.10", 0.2), ("c", "blocks.11", 0.3), ("a", "blocks.2", 0.1))
    own = evidence(Parts(vit=("v",), no_skip=("c", "a", "b")), lesions_trained=table)
    assert q.middle_trained(own, "drop") == 0.2


def test_another_block_is_not_taken_for_the_middle_of_a_run_that_was_not_measured():
    # V has one run: of the others only the first is measured.
    table = trained(("middle", "blocks.4", 0.1), ("first", "blocks.0", 0.5), ("last", "blocks.7", 0.6))
    own = evidence(Parts(vit=("v",), no_skip=NO_SKIP), lesions_trained=table)
    for run in own.further():
        with pytest.raises(Refusal):
            q.middle_trained(run, "drop")


def test_a_run_that_was_not_measured_is_refused():
    own = evidence(
        Parts(vit=("v",), no_skip=(("middle", "middle:1"),)),
        lesions_trained=trained(("middle", "blocks.4", 0.1)),
    )
    (run,) = own.further()
    with pytest.raises(Refusal):
        q.middle_trained(run, "drop")


def test_lesions_are_compared_by_the_mean_over_blocks_in_points():
    table = trained(("v", "blocks.0", 0.5), ("v", "blocks.1", 0.1), ("r", "layer1.0", 0.2))
    assert q.lesions(evidence(V_AND_R, lesions=table)) == pytest.approx(10)


# Localization.


def gaussian(side: int, width: float = 0.12, pixels: int = 32) -> np.ndarray:
    """The map of a grid on which tokens are as like a patch as the pixels of both are near, on average."""
    place = (np.arange(pixels) + 0.5) / pixels
    line = np.exp(-((place[:, None] - place) ** 2) / (2 * width**2))
    cells = line.reshape(side, pixels // side, side, pixels // side).mean((1, 3))
    return np.kron(cells, cells)


def located(**maps: np.ndarray) -> pd.DataFrame:
    """A table of localization from a map for each model, on square grids."""
    found = []
    for model, values in maps.items():
        token, _ = np.indices(values.shape)
        side = round(len(values) ** 0.5)
        places = {"token_row": token // side, "token_col": token % side, "token": token, "cka": values}
        found.append(pd.DataFrame({name: part.ravel() for name, part in places.items()}).assign(model=model))
    table = pd.concat(found, ignore_index=True)
    table.attrs = {"images": {"source": "a"}}
    return table


def test_own_less_others_is_of_interior_tokens():
    maps = np.full((16, 16), 0.1)
    maps[np.diag_indices(16)] = 7.0  # at the edge, which does not count
    for token, own in ((5, 0.4), (6, 0.3), (9, 0.2), (10, 0.9)):
        maps[token, token] = own
    maps[5, 0] = 0.1 + 15 * 0.2
    own = evidence(V_AND_R, localization=located(v=maps))
    assert q.own_less_others(own, "vit") == pytest.approx([(0.3 - 0.2 + 0.2 + 0.1 + 0.8) / 4])


def test_the_same_profile_stands_out_as_much_on_a_fine_grid_as_on_a_coarse_one():
    own = evidence(V_AND_R, localization=located(v=gaussian(8), r=gaussian(4)))
    fine, coarse = q.own_less_others(own, "vit", "cnn")
    assert fine == pytest.approx(coarse)
    assert q.own_less_others(own, "cnn", "vit") == pytest.approx([coarse, fine])
    assert q.own_less_others(own, "vit")[0] > coarse + 0.05  # alone it is asked on its own, finer grid


def test_without_downsampling_the_place_is_kept_halfway_on_one_grid():
    maps = {"v": gaussian(8), "r": np.full((16, 16), 0.3)}
    for flat, share in ((gaussian(8), 0.5), (np.full((64, 64), 0.4), -0.5)):
        own = evidence(replace(V_AND_R, flat="f"), localization=located(**maps, f=flat))
        lead = q.own_less_others(own, "vit", "cnn")[0]
        assert q.place_without_downsampling(own) == pytest.approx(share * lead)


def test_a_map_that_knows_no_place_stands_out_nowhere():
    maps = np.random.default_rng(0).normal(size=(64, 1)) * np.ones(
        64
    )  # some tokens are like the whole image, others not
    own = evidence(V_AND_R, localization=located(v=maps, r=np.full((16, 16), 0.3)))
    assert q.own_less_others(own, "vit", "cnn") == pytest.approx([0, 0], abs=1e-12)


def test_on_a_grid_without_an_interior_all_tokens_count():
    maps = np.where(np.eye(4, dtype=bool), 0.7, 0.2)
    own = evidence(V_AND_R, localization=located(v=gaussian(8), r=maps))
    assert q.own_less_others(own, "vit", "cnn")[1] == pytest.approx(0.5)


def test_a_constant_token_counts_for_nothing():
    maps = gaussian(4)
    spoilt = maps.copy()
    spoilt[5] = np.nan
    own = evidence(V_AND_R, localization=located(v=spoilt))
    out = maps.diagonal() - (maps.sum(1) - maps.diagonal()) / 15
    assert q.own_less_others(own, "vit") == pytest.approx([out[[6, 9, 10]].mean()])


# Probes and the soft nearest neighbour loss.


def probes(**accuracies: dict[str, list[float]]) -> pd.DataFrame:
    """Probes of each model and what is read, by depth; its head reads what comes first."""
    found = [
        (model, i / (len(own) - 1), tokens, "shape", draw, value + shift)
        for model, read in accuracies.items()
        for tokens, own in read.items()
        for i, value in enumerate(own)
        for draw, shift in ((0, -0.01), (1, 0.01))
    ]
    spare = [(model, 0.0, next(iter(read)), "texture", 0, 9.0) for model, read in accuracies.items()]
    columns = ("model", "depth", "tokens", "target", "draw", "accuracy")
    native = {model: next(iter(read)) for model, read in accuracies.items()}
    return rows(columns, *found, *spare, native=native)


GAP = Parts(vit=("v",), cnn=("r",), gap="g", less_data=("small",))


def test_probes_are_read_as_the_head_reads_them_in_percent_and_over_draws():
    own = evidence(GAP, probe=probes(v={"cls": [0.2, 0.4, 0.8], "mean": [0.1, 0.1, 0.1]}))
    found = q.probed(own, "probe", "v")
    assert (found.index.tolist(), found.tolist()) == ([0, 0.5, 1], pytest.approx([20, 40, 80]))
    assert q.at(found, 0.75) == pytest.approx(60)
    assert q.between(found, 0.4, 1.0).tolist() == pytest.approx([40, 80])
    with pytest.raises(Refusal, match="needs probes of 0 tokens of v"):
        q.probed(own, "probe", "v", "0")


def test_tokens_apart_and_heads_alike_are_of_the_last_block():
    table = probes(
        v={"cls": [0.1, 0.9], "0": [0.8, 0.2], "1": [0.8, 0.4]},
        g={"mean": [0.1, 0.85], "0": [0.8, 0.7], "1": [0.8, 0.8]},
    )
    own = evidence(GAP, probe_tokens=table)
    assert q.tokens_apart(own) == pytest.approx(75 - 30)
    assert q.heads_alike(own) == pytest.approx(5)
    assert q.first_token(own) == pytest.approx(15)


def test_average_pooling_ahead_by_as_much_is_as_different_with_the_other_sign():
    table = probes(v={"cls": [0.1, 0.80]}, g={"mean": [0.1, 0.85]})
    assert q.heads_alike(evidence(GAP, probe_tokens=table)) == pytest.approx(-5)


def test_pooled_tokens_fall_behind_by_more_at_the_end_than_at_depth_point_six():
    lead = {"cls": [0.2, 0.2, 0.2, 0.5, 0.7, 0.9], "mean_spatial": [0.2, 0.2, 0.2, 0.4, 0.5, 0.5]}
    assert q.pooled_falls_behind(evidence(GAP, probe_tokens=probes(v=lead))) == pytest.approx(40 - 10)


def test_more_data_in_the_middle_is_the_mean_and_not_the_best_depth():
    table = probes(v={"cls": [0.9, 0.9, 0.5, 0.6, 0.9, 0.9]}, small={"cls": [0.1, 0.1, 0.4, 0.3, 0.1, 0.1]})
    assert q.data_in_the_middle(evidence(GAP, probe=table)) == pytest.approx((10 + 30) / 2)


def test_better_in_the_middle_is_by_means_over_layers_of_either():
    table = probes(v={"cls": [0.1, 0.2, 0.6, 0.7, 0.8, 0.9]}, r={"mean": [0.9, 0.3, 0.9]})
    assert q.better_in_the_middle(evidence(GAP, probe=table)) == pytest.approx(70 - 30)


def entangled(chance: float = 3.0, **losses: list[float]) -> pd.DataFrame:
    found = [
        (model, f"layer{i}", loss, chance) for model, own in losses.items() for i, loss in enumerate(own)
    ]
    return rows(("model", "layer", "loss", "chance"), *found)


def last_falls(*losses: float) -> float:
    share, even = q.last_falls(evidence(V_AND_R, soft_nearest_neighbor=entangled(r=list(losses))))
    return share - even


def test_the_last_unit_takes_nothing_beyond_its_share_of_an_even_fall_and_all_of_one_at_the_end():
    assert last_falls(3.0, 2.5, 2.0, 1.5, 1.0) == pytest.approx(0)
    assert last_falls(3.0, 3.0, 3.0, 3.0, 1.0) == pytest.approx(1 - 1 / 4)
    assert last_falls(3.0, 1.0, 1.0, 1.0, 1.0) == pytest.approx(-1 / 4)
    assert last_falls(2.5, 2.5, 2.0) == pytest.approx(0)  # the fall is from chance, not from the first unit
    with pytest.raises(Refusal, match="needs a CNN with three units or more"):
        last_falls(3.0, 1.0)


def test_a_loss_that_was_low_before_does_not_fall_at_the_end():
    assert last_falls(2.22, 2.19, 2.16, 2.07, 1.83, 1.15, 0.03, 0.004) < -0.1


def test_the_loss_falls_more_as_a_share_of_chance():
    table = entangled(4.0, r=[4.0, 3.0, 1.0], v=[2.0, 1.0, 0.0])
    assert q.falls_more(evidence(V_AND_R, soft_nearest_neighbor=table)) == pytest.approx(0.5 - 0.25)
    equal = entangled(4.0, r=[1.0, 0.5], v=[4.0, 3.5])  # as shares of what is left they would differ
    assert q.falls_more(evidence(V_AND_R, soft_nearest_neighbor=equal)) == pytest.approx(0)


def test_gains_and_falls_go_together_unit_by_unit():
    table = entangled(r=[3.0, 2.0, 1.8, 0.5])
    own = evidence(GAP, probe=probes(r={"mean": [0.1, 0.3, 0.35, 0.9]}), soft_nearest_neighbor=table)
    gains, falls = q.together(own)
    assert gains == pytest.approx([20, 5, 55])
    assert falls == pytest.approx([1.0, 0.2, 1.3])
    fewer = evidence(GAP, probe=probes(r={"mean": [0.1, 0.9]}), soft_nearest_neighbor=table)
    with pytest.raises(Refusal, match="needs probes and losses of the same layers"):
        q.together(fewer)


# Beyond the paper.


def layered(**columns: list[float]) -> pd.DataFrame:
    """A table of V with a row per layer, at even depths."""
    count = len(next(iter(columns.values())))
    made = pd.DataFrame({"model": "v", "depth": np.linspace(0, 1, count), "frequency": 1.0, **columns})
    made.attrs = {"images": {"source": "a"}}
    return made


def test_massive_tokens_appear_by_their_share_in_layers_beyond_a_third_of_the_depth():
    own = evidence(V_AND_R, tokens=layered(massive_tokens=[0.01, 0.01, 0.03, 0.05]))  # depths 0, 1/3, 2/3, 1
    assert q.massive_appear(own) == pytest.approx(100 * (0.04 - 0.01))
    early = evidence(V_AND_R, tokens=layered(massive_tokens=[0.05, 0.05, 0.0, 0.0]))
    assert q.massive_appear(early) == pytest.approx(-5)


def test_a_model_without_massive_tokens_cannot_be_asked_when_they_appear():
    with pytest.raises(Refusal, match="has none in any layer"):
        q.massive_appear(evidence(V_AND_R, tokens=layered(massive_tokens=[0.0, 0.0, 0.0, 0.0])))


def test_what_is_fine_is_compared_at_the_finest_frequency_alone():
    table = layered(log_amplitude=[-1.0, -2.0, -7.0, -3.0, -4.0, -5.0, -6.0])
    own = evidence(V_AND_R, frequency=pd.concat([table, table.assign(frequency=0.5, log_amplitude=9.0)]))
    assert q.finer(own, "vit") == pytest.approx(-5 - (-10 / 3))
