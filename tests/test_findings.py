"""Verdicts from synthetic tables: clearly so, clearly not, undecided, and turned round by a control."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from vit_analysis import cka, findings
from vit_analysis.spelling import Refusal
from vit_analysis.study import plans, rules
from vit_analysis.study.claims import CLAIMS, Claim
from vit_analysis.study.controls import (
    BIASED,
    BLOCKS,
    CONTROLS,
    INLIERS,
    MEAN_NORMS,
    MEDIAN,
    NEAREST,
    NEAREST_NORMALIZED,
    NORMALIZED,
    PERMUTED,
    PIXELS,
    PIXELS_NORMALIZED,
    RANKS,
    RANKS_NORMALIZED,
    RAW,
    SHUFFLED,
    SPATIAL,
    TWINS,
    TYPICAL,
    UNTRAINED,
    VIEWS,
    controlled,
)
from vit_analysis.study.differences import DIFFERENCES
from vit_analysis.study.drawings import DRAWINGS
from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.parts import Parts
from vit_analysis.tensors import tokens

PARTS = Parts(vit=("v",), cnn=("r",), gap="g", less_data=("small", "medium"), other_seed="seed")
RUNS = Parts(vit=(("v", "v:1", "v:2"),), cnn=(("r", "r:1"),), gap=("g", "g:1"))
GROUPS = 8


def noisy(values: np.ndarray, spread: float, seed: int = 0) -> list[np.ndarray]:
    """Values without each of some groups, as means over images have them."""
    noise = np.random.default_rng(seed).normal(scale=spread, size=(len(values), GROUPS)) / (GROUPS - 1)
    return list(values[:, None] + noise - noise.mean(1, keepdims=True))


def similarities(pairs: dict[tuple[str, str], np.ndarray], spread: float = 0.01) -> pd.DataFrame:
    rows = []
    for (model, other), values in pairs.items():
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                place = (model, f"blocks.{i}", i / max(1, len(values) - 1))
                rows.append((*place, other, f"blocks.{j}", j / max(1, len(row) - 1), float(value)))
    names = ["model", "layer", "depth", "other_model", "other_layer", "other_depth", "cka"]
    return finished(pd.DataFrame(rows, columns=names), "cka", spread)


def finished(made: pd.DataFrame, column: str, spread: float) -> pd.DataFrame:
    made[f"{column}_without"] = noisy(made[column].to_numpy(dtype=float), spread)
    made.attrs = {
        "images": {"source": "x"},
        "models": dict.fromkeys(["v", "r", "g", "small", "medium", "seed"], "0"),
    }
    return made


def alike(mean: float, count: int = 6) -> np.ndarray:
    return np.where(np.eye(count, dtype=bool), 1, mean)


def under_every(table: pd.DataFrame, **others: pd.DataFrame) -> pd.DataFrame:
    """A table of controls: the same similarities under each, none where images are shuffled, other ones where said."""
    nothing = table.assign(cka=0.0, cka_without=noisy(np.zeros(len(table)), 0.01, 1))
    own = {name: table if view.order == "same" else nothing for name, view in VIEWS.items()} | others
    parts = [own[name].assign(control=name) for name in VIEWS]
    whole = pd.concat(parts, ignore_index=True)
    whole.attrs = table.attrs
    return whole


def claim(id: str) -> Claim:
    (own,) = [claim for claim in CLAIMS if claim.id == id]
    return own


def judged(claim: Claim, made: Study) -> dict:
    """Its row of the findings, without the rows of all others."""
    whole = Evidence(made)
    (own,) = findings.judged([findings.number(claim, whole, lambda control: control.apply(whole))]).to_dict(
        "records"
    )
    return own


def row(made: Study, id: str) -> dict:
    return judged(claim(id), made)


def uniform(v: float, r: float, spread: float = 0.01) -> pd.DataFrame:
    return similarities({("v", "v"): alike(v), ("r", "r"): alike(r)}, spread)


def uncontrolled(v: float, r: float, spread: float = 0.01) -> Study:
    """Two models of uniform similarity."""
    return Study(PARTS, {"cka": uniform(v, r, spread)}, {})


def uniformity(v: float, r: float, **others: tuple[float, float]) -> Study:
    """The same under every control, under some of them another."""
    under = under_every(uniform(v, r), **{name: uniform(*values) for name, values in others.items()})
    return Study(PARTS, {"cka": uniform(v, r), "cka_controls": under}, {})


@pytest.mark.parametrize(
    ("v", "r", "spread", "verdict"),
    [(0.8, 0.4, 0.01, "reproduced"), (0.4, 0.8, 0.01, "not reproduced"), (0.6, 0.6, 3.0, "inconclusive")],
)
def test_a_difference_of_uniformity_is_found_refuted_or_left_open(v, r, spread, verdict):
    found = row(uncontrolled(v, r, spread), "F1a")
    assert found["verdict"] == verdict
    assert found["low"] < found["value"] < found["high"]


def test_a_row_names_the_models_that_its_number_asks_for():
    found = findings.measure(uncontrolled(0.8, 0.4)).set_index("id")
    assert found.loc["F1a", "models"] == "v, r"
    assert found.loc["F1d", "models"] == "v"


def test_findings_say_who_plays_which_part():
    assert findings.measure(uncontrolled(0.8, 0.4)).attrs["parts"]["vit"] == [["v"]]
    assert findings.measure(uncontrolled(0.8, 0.4)).attrs["parts"]["less_data"] == [["small"], ["medium"]]


def test_the_size_of_an_effect_is_another_question_than_its_sign():
    assert row(uncontrolled(0.8, 0.4), "F1a")["in_size"]
    small = row(uncontrolled(0.61, 0.6), "F1a")
    assert (small["verdict"], small["in_size"]) == ("reproduced, smaller than claimed", False)


def test_what_is_not_there_is_not_measured_and_says_what_it_needs():
    made = Study(Parts(vit=("v",)), {}, {"probe": "'photographs' has no classes to probe"})
    found = findings.measure(made).set_index("id")
    assert len(found) == len(CLAIMS)
    assert set(found["verdict"]) == {"not measured"}
    assert found.loc["F1a", "reason"] == "needs the table 'cka'"
    assert found.loc["H1", "reason"] == "needs an MLP-Mixer (--mixer)"
    assert found.loc["F13b", "reason"] == "'photographs' has no classes to probe"
    assert found["p"].isna().all()


def heads(lowest: list[float], model: str = "v") -> pd.DataFrame:
    rows = [
        (model, f"blocks.{block}", head, 100 * value, 100.0)
        for block, values in enumerate([lowest, lowest, [0.9] * 3, [1.0] * 3])
        for head, value in enumerate(values)
    ]
    made = pd.DataFrame(rows, columns=["model", "block", "head", "distance_px", "uniform_px"])
    return finished(made.assign(raw_distance_px=0.4 * made["distance_px"]), "distance_px", 0.1)


def plain(made: pd.DataFrame) -> Study:
    """Attention of which nothing goes to prefix tokens."""
    attrs = made.attrs
    made = made.assign(
        raw_distance_px=made["distance_px"], raw_distance_px_without=made["distance_px_without"]
    )
    made.attrs = attrs
    return Study(PARTS, {"attention_distance": made}, {})


def with_raw(made: pd.DataFrame) -> Study:
    attrs = made.attrs
    made = made.assign(raw_distance_px_without=[0.4 * own for own in made["distance_px_without"]])
    made.attrs = attrs
    return Study(PARTS, {"attention_distance": made}, {})


def test_local_and_global_heads():
    both = plain(heads([0.2, 0.6, 1.0]))
    assert row(both, "F3a")["value"] == pytest.approx(0.2)
    found = findings.measure(both).set_index("id")
    assert [found.loc[name, "verdict"] for name in ("F3a", "F3b", "F3c")] == ["reproduced"] * 3
    neither = plain(heads([0.6, 0.65, 0.7]))
    assert [row(neither, name)["verdict"] for name in ("F3a", "F3b")] == ["not reproduced"] * 2


def test_that_all_heads_look_far_says_nothing_where_none_looks_near():
    found = findings.measure(plain(heads([0.85, 0.9, 1.0]))).set_index("id")
    assert found.loc["F3a", "verdict"] == "not reproduced"
    for name in ("F3b", "F3c"):
        assert found.loc[name, "low"] > found.loc[name, "tau"]
        assert (found.loc[name, "verdict"], found.loc[name, "because"]) == (
            "inconclusive",
            "says nothing without F3a",
        )


def test_a_verdict_that_rests_on_attention_to_prefix_tokens_is_fragile():
    found = row(with_raw(heads([0.6, 0.65, 0.7])), "F3a")
    assert found["controls"]["attention to prefix tokens counted as distance 0"]["value"] == pytest.approx(
        0.24
    )
    assert found["verdict"] == "fragile"
    assert (
        found["because"]
        == "not reproduced, but it is under: attention to prefix tokens counted as distance 0"
    )


def norms(first: float, second: float, of_means: float = 1.0, of_medians: float = 1.0) -> Study:
    """Log ratios of class token over spatial ones in either half of four blocks; of mean norms, or medians, times a factor."""
    rows = [
        (
            "v",
            f"blocks.{block}",
            sublayer,
            token,
            math.exp((first if block < 2 else second) if token == "cls" else 0),
        )
        for block in range(4)
        for sublayer in ("attention", "mlp")
        for token in ("cls", "spatial")
    ]
    made = pd.DataFrame(rows, columns=["model", "block", "sublayer", "token", "norm_ratio"])
    made = finished(made, "norm_ratio", 0.01)
    attrs = made.attrs
    made["skip_norm"] = made["norm_ratio"] ** of_means
    made["skip_norm_without"] = made["norm_ratio_without"].map(lambda own: own**of_means)
    made["median"] = made["norm_ratio"] ** of_medians
    made["median_without"] = made["norm_ratio_without"].map(lambda own: own**of_medians)
    made["long_norm"], made["long_norm_without"] = 1.0, [np.ones(GROUPS)] * len(made)
    made.attrs = attrs
    return Study(PARTS, {"skip": made}, {})


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (1.0, -1.0, "reproduced"),
        (-1.0, 1.0, "not reproduced"),
        (1.0, 1.0, "not reproduced"),
        (1.0, 0.0, "inconclusive"),
    ],
)
def test_the_transition_of_the_class_token_needs_both_signs(first, second, verdict):
    assert row(norms(first, second), "F7a")["verdict"] == verdict


def retrained(seed: list[float]) -> Study:
    """Similarity, block by block, of models of less data, and of another seed, with that of all data."""
    pairs = {
        ("v", "small"): np.diag([0.9, 0.8, 0.5, 0.4, 0.3, 0.2]),
        ("v", "medium"): np.diag([0.9, 0.9, 0.8, 0.8, 0.6, 0.6]),
        ("v", "seed"): np.diag(seed),
    }
    return Study(PARTS, {"cka_controls": under_every(similarities(pairs))}, {})


def test_lower_layers_need_less_data_only_by_what_they_lose_less_than_at_the_ceiling():
    assert row(retrained([0.95] * 6), "F12a")["value"] == pytest.approx(0.85 - 0.25)
    # Another seed alone falls with depth: then the same fall says nothing of data.
    assert row(retrained([0.9, 0.8, 0.5, 0.4, 0.3, 0.2]), "F12a")["value"] == pytest.approx(0)
    assert row(retrained([0.95] * 6), "F12c")["value"] == pytest.approx(0.6 - 0.25)


# Training runs -------------------------------------------------------------------------------------------------------


def in_runs(*means: float, r: tuple[float, ...] = (0.4, 0.4)) -> Study:
    """F1a in several training runs of V, of which R has two."""
    named = zip(("v", "v:1", "v:2"), means, strict=False)
    pairs = {(name, name): alike(mean) for name, mean in (*named, *zip(("r", "r:1"), r, strict=True))}
    return Study(RUNS, {"cka": similarities(pairs)}, {})


def test_the_number_of_every_training_run_is_told_and_one_that_does_not_agree_makes_it_fragile():
    agreed = row(in_runs(0.8, 0.9, 0.7), "F1a")
    assert np.divide(agreed["runs"], agreed["value"]) == pytest.approx([1, 1.25, 0.75])
    assert agreed["verdict"] == "reproduced"
    apart = row(in_runs(0.8, 0.2, 0.7), "F1a")
    assert (apart["verdict"], apart["because"]) == ("fragile", "reproduced, but not in every training run")


def test_an_effect_is_as_large_as_the_words_only_if_it_is_in_every_training_run():
    assert row(in_runs(0.8, 0.5, 0.7), "F1a")["verdict"] == "reproduced, smaller than claimed"


def test_the_second_run_of_one_part_is_compared_with_the_second_of_another_and_the_first_stands_in_for_none():
    found = row(in_runs(0.8, 0.8, 0.8, r=(0.4, 0.6)), "F1a")
    assert np.divide(found["runs"], found["value"]) == pytest.approx([1, 0.5, 1])
    assert row(in_runs(0.8), "F1a")["runs"] == []


def of_pooling(*gains: float) -> Study:
    """F10 in several training runs."""
    contrasts = {"v": 0.9, "g": 0.9 - gains[0]}
    if len(gains) > 1:
        contrasts |= {"v:1": 0.9, "g:1": 0.9 - gains[1]}
    return Study(RUNS, {"localization": located(contrasts)}, {})


@pytest.mark.parametrize(
    ("gains", "verdict", "because"),
    [
        ((0.5,), "inconclusive", "reproduced in one training run, which cannot tell"),
        ((0.5, 0.4), "reproduced", ""),
        ((0.5, -0.4), "inconclusive", "training runs do not agree"),
        ((-0.5, -0.4), "not reproduced", ""),
    ],
)
def test_a_claim_about_training_is_decided_by_several_runs_that_agree(gains, verdict, because):
    found = row(of_pooling(*gains), "F10")
    assert (found["verdict"], found["because"]) == (verdict, because)


def test_one_retrained_model_beside_another_that_is_not_is_no_second_run_of_a_claim_about_training():
    parts = replace(RUNS, gap="g")
    made = Study(parts, {"localization": located({"v": 0.9, "v:1": 0.8, "v:2": 0.7, "g": 0.3})}, {})
    found = row(made, "F10")
    assert (found["verdict"], found["because"]) == (
        "inconclusive",
        "reproduced in one training run, which cannot tell",
    )
    assert found["runs"] == []


def test_in_small_batches_there_are_no_neighbours_and_the_findings_do_without_them():
    made = uniformity(0.8, 0.4)
    whole = made.tables["cka_controls"]
    few = whole[~whole["control"].str.startswith("nearest")]
    few.attrs = whole.attrs | {"images": {"source": "x", "batch": 8}}
    cka = made.tables["cka"].copy()
    cka.attrs = made.tables["cka"].attrs | {"images": {"source": "x", "batch": 8}}
    found = row(made._replace(tables={"cka": cka, "cka_controls": few}), "F1a")
    assert found["verdict"] == "reproduced"
    assert "rank CKA" in found["controls"]
    assert "mutual nearest neighbours" not in found["controls"]


def test_twins_that_get_as_far_make_a_claim_one_of_the_architecture_and_their_number_is_told():
    assert row(untrained(0.7, 0.4), "F1a")["verdict"] == "architectural"
    found = row(untrained(0.5, 0.4), "F1a")  # on the same side, but a quarter as far
    assert found["verdict"] == "reproduced"
    assert found["because"] == "untrained twins have 0.0848"
    assert row(SIMILAR, "F1a")["because"] == "untrained twins could not be asked"


def without_skips(*drops: float) -> Study:
    """Accuracy lost by training without the skip connections of the middle block, in each run."""
    parts = replace(RUNS, no_skip=("first", tuple(f"m:{number}" for number in range(len(drops))), "last"))
    names = [*(f"m:{number}" for number in range(len(drops))), "first", "last"]
    made = pd.DataFrame({"model": names, "block": [*["blocks.4"] * len(drops), "blocks.0", "blocks.7"]})
    made = finished(made.assign(drop=[*drops, 0.5, 0.5], across_drop=0.3), "drop", 0.001)
    return Study(
        parts,
        {"lesions_trained": made.assign(across_drop_without=noisy(made["across_drop"].to_numpy(), 0.01))},
        {},
    )


def test_what_a_middle_block_costs_is_a_mean_over_training_runs_with_an_interval_over_them():
    found = row(without_skips(0.03, 0.05, 0.04), "F8b")
    assert found["value"] == pytest.approx(4)
    assert found["runs"] == pytest.approx([3, 5, 4])
    half = 4.303 / math.sqrt(3)  # t of 2 degrees of freedom; the runs have a standard deviation of 1
    assert [found["low"], found["high"]] == pytest.approx([4 - half, 4 + half], abs=0.01)
    assert found["verdict"] == "reproduced"
    one = row(without_skips(0.04), "F8b")
    assert (one["verdict"], one["because"]) == ("inconclusive", "one training run cannot tell")
    assert math.isnan(one["low"])


# Controls ------------------------------------------------------------------------------------------------------------


def entangled(v: float, r: float) -> pd.DataFrame:
    """The loss of three units, and how much it falls at the last one."""
    rows = [
        (model, unit, loss)
        for model, fall in (("v", v), ("r", r))
        for unit, loss in enumerate([2.0, 2.0, 2.0 - fall])
    ]
    made = finished(pd.DataFrame(rows, columns=["model", "layer", "loss"]), "loss", 0.01)
    return made.assign(chance=2.5, chance_without=[np.full(GROUPS, 2.5)] * len(made))


def located(contrasts: dict[str, float]) -> pd.DataFrame:
    """Tokens on a grid of 4 x 4, each like its own patch by so much."""
    token, patch = np.divmod(np.arange(256), 16)
    noise = np.random.default_rng(0).normal(size=256)
    parts = [
        pd.DataFrame(
            {
                **{"model": model, "token": token, "token_row": token // 4, "token_col": token % 4},
                **{"patch_row": patch // 4, "patch_col": patch % 4},
                "cka": np.where(token == patch, contrast, 0) + 0.1 * noise,
            }
        )
        for model, contrast in contrasts.items()
    ]
    return finished(pd.concat(parts, ignore_index=True), "cka", 0.01)


def lost(own: float, normalized: float) -> Study:
    tables = {"localization": {"v": own, "g": 0.3}, "localization_normalized": {"v": normalized, "g": 0.3}}
    return Study(PARTS, {name: located(contrasts) for name, contrasts in tables.items()}, {})


def falls(r: float, normalized: float) -> Study:
    tables = {"soft_nearest_neighbor": r, "soft_nearest_neighbor_normalized": normalized}
    return Study(PARTS, {name: entangled(0.1, fall) for name, fall in tables.items()}, {})


def untrained(v: float, r: float) -> Study:
    """F1a of trained models is 0.4; of their twins it is another."""
    pairs = {"v": 0.8, "r": 0.4, "v@random": v, "r@random": r}
    table = similarities({(name, name): alike(mean) for name, mean in pairs.items()})
    return Study(PARTS, {"cka": table}, {})


def paired(**others: np.ndarray) -> Study:
    """F2c of V and R is 0.7; under some controls V and R are alike in another way."""
    like = np.where(np.arange(6)[:, None] < 4, 0.8, 0.1) * np.ones((6, 6))
    table = similarities({("v", "r"): like})
    given = {name: similarities({("v", "r"): values}) for name, values in others.items()}
    return Study(PARTS, {"cka": table, "cka_controls": under_every(table, **given)}, {})


SIMILAR, PLACED, FALLING, PAIRED = uniformity(0.8, 0.4), lost(0.9, 0.9), falls(1.9, 1.9), paired()
LOOKING, CARRIED = plain(heads([0.2, 0.6, 1.0])), norms(1.0, -1.0)
OF_SIMILARITY = {
    control.name: control
    for control in (
        *(SPATIAL, NORMALIZED, INLIERS, TYPICAL, PIXELS, PIXELS_NORMALIZED),
        *(RANKS, RANKS_NORMALIZED, NEAREST, NEAREST_NORMALIZED),
    )
}
TURNED = {
    "blocks": (BLOCKS, "F1a", SIMILAR, uniformity(0.8, 0.4, all=(0.3, 0.5))),
    **{
        name: (control, "F1a", SIMILAR, uniformity(0.8, 0.4, **{name: (0.3, 0.5)}))
        for name, control in OF_SIMILARITY.items()
    },
    "normalized tokens": (NORMALIZED, "F9a", PLACED, lost(0.9, -0.1)),
    "normalized loss": (NORMALIZED, "S2", FALLING, falls(1.9, -0.1)),
    "raw": (RAW, "F3a", LOOKING, with_raw(heads([0.6, 0.65, 0.7]))),
    "mean norms": (MEAN_NORMS, "F7a", CARRIED, norms(1.0, -1.0, of_means=-1.0)),
    "median": (MEDIAN, "F7a", CARRIED, norms(1.0, -1.0, of_medians=-1.0)),
}
"""Controls that turn, of a claim: a study that turns nothing round, and one that does so under this control alone."""
TOLD = {
    "untrained": (UNTRAINED, "F1a", untrained(0.8, 0.4), untrained(0.3, 0.5)),
    "biased": (BIASED, "F1a", SIMILAR, uniformity(0.8, 0.4, biased=(0.3, 0.5))),
    "partial twins": (TWINS, "F1a", SIMILAR, uniformity(0.8, 0.4, **{"partial twins": (0.3, 0.5)})),
    "shuffled": (SHUFFLED, "F1a", SIMILAR, uniformity(0.8, 0.4, shuffled=(0.3, 0.5))),
    "permuted": (PERMUTED, "F2c", PAIRED, paired(permuted=np.linspace(0, 1, 6)[:, None] * np.ones((6, 6)))),
}
"""The others, likewise."""


@cache
def turned(name: str) -> dict:
    """The claim where the control turns it round."""
    _, id, _, made = (TURNED | TOLD)[name]
    return row(made, id)


@cache
def sound(id: str) -> dict:
    """The claim where no control turns it round."""
    made = next(made for _, own, made, _ in TURNED.values() if own == id)
    return row(made, id)


def test_a_control_that_turns_a_finding_round_makes_it_fragile_and_one_that_does_not_leaves_it():
    assert sound("F1a")["verdict"] == "reproduced"
    assert sound("F1a")["controls"]["every token normalised"]["verdict"] == "reproduced"
    found = turned("normalized")
    assert (found["verdict"], found["because"]) == (
        "fragile",
        "reproduced, but not under: every token normalised",
    )
    assert found["controls"]["every token normalised"]["verdict"] == "not reproduced"


def test_what_images_that_do_not_belong_together_give_is_no_finding():
    assert row(PAIRED, "F2c")["verdict"] == "reproduced"
    found = row(paired(permuted=np.where(np.arange(6)[:, None] < 4, 0.8, 0.1) * np.ones((6, 6))), "F2c")
    assert (found["verdict"], found["because"]) == (
        "inconclusive",
        "images that do not belong together give it as well",
    )


def test_there_is_one_list_of_controls():
    assert {control for claim in CLAIMS for control in claim.controls} == set(CONTROLS)
    for told in ("name", "words"):
        assert len({getattr(control, told) for control in CONTROLS}) == len(CONTROLS)
    for claim in CLAIMS:
        assert len(set(claim.controls)) == len(claim.controls), claim.id


def test_what_similarity_is_controlled_by_can_be_measured():
    assert next(iter(VIEWS.items())) == ("all", cka.View())  # the paper's own
    # Whatever a claim about similarity is controlled by is measured: nothing is asked for that no table holds.
    asked = {control.view for claim in CLAIMS for control in claim.controls if control.view}
    assert asked == set(VIEWS.values())
    for view in VIEWS.values():
        assert view.tokens in tokens.SELECTIONS
        assert view.measure in cka.VECTORS


def test_every_control_is_tried():
    assert ITSELF.keys() == {*TURNED, *TOLD}
    assert {control for control, *_ in TURNED.values()} == {one for one in CONTROLS if one.turning}
    assert {control for control, *_ in TOLD.values()} == {one for one in CONTROLS if not one.turning}


@pytest.mark.parametrize("name", TURNED)
def test_each_turning_control_alone_can_make_a_claim_fragile(name):
    control, found = TURNED[name][0], turned(name)
    side = found["because"].partition(",")[0]
    opposite = {"reproduced": "not reproduced", "not reproduced": "reproduced"}[side]
    words = [words for words, own in found["controls"].items() if own["verdict"] == opposite]
    assert words == [control.words]
    told = "but not under" if side == "reproduced" else "but it is under"
    assert (found["verdict"], found["because"]) == ("fragile", f"{side}, {told}: {control.words}")


@pytest.mark.parametrize("id", sorted({id for _, id, *_ in TURNED.values()}))
def test_a_claim_that_every_control_leaves_is_not_fragile(id):
    words = {control.words for control, own, *_ in TURNED.values() if own == id}
    assert words <= sound(id)["controls"].keys()
    assert sound(id)["verdict"] == "reproduced"


def test_where_block_outputs_alone_say_something_else_that_is_what_turned_it_and_no_control_of_them():
    other = dict.fromkeys(VIEWS, (0.3, 0.5))
    assert (
        row(uniformity(0.8, 0.4, **other), "F1a")["because"]
        == "reproduced, but not under: block outputs only"
    )


@pytest.mark.parametrize("name", TOLD)
def test_a_control_that_need_not_hold_is_told_and_turns_nothing(name):
    control, found = TOLD[name][0], turned(name)
    assert (found["verdict"], found["controls"][control.words]["verdict"]) == ("reproduced", "not reproduced")


def instead(name: str, **columns: str) -> Study:
    """The study in which a control turns a claim round, with columns in the place of others."""
    made = TURNED[name][-1]
    ((place, whole),) = made.tables.items()
    changed = whole.assign(
        **{old + end: whole[new + end] for old, new in columns.items() for end in ("", "_without")}
    )
    changed.attrs = whole.attrs
    return made._replace(tables={place: changed})


def played(name: str, **parts: tuple[str, ...]) -> Study:
    """The same with other models."""
    made = TOLD[name][-1]
    return made._replace(parts=replace(made.parts, **parts))


ITSELF = {
    **dict.fromkeys(
        ("blocks", *OF_SIMILARITY, "biased", "shuffled", "partial twins"), uncontrolled(0.3, 0.5)
    ),
    "permuted": Study(
        PARTS, {"cka": similarities({("v", "r"): np.linspace(0, 1, 6)[:, None] * np.ones((6, 6))})}, {}
    ),
    "normalized tokens": Study(PARTS, {"localization": located({"v": -0.1, "g": 0.3})}, {}),
    "normalized loss": Study(PARTS, {"soft_nearest_neighbor": entangled(0.1, -0.1)}, {}),
    "raw": instead("raw", distance_px="raw_distance_px"),
    "mean norms": instead("mean norms", norm_ratio="skip_norm"),  # the other is 1
    "median": instead("median", norm_ratio="median"),
    "untrained": played("untrained", vit=("v@random",), cnn=("r@random",)),
}
"""Studies of what each control puts in the place of something else."""


@pytest.mark.parametrize("name", ITSELF)
def test_number_and_interval_under_a_control_are_those_of_what_takes_the_place(name):
    control, id, *_ = (TURNED | TOLD)[name]
    own, expected = turned(name)["controls"][control.words], row(ITSELF[name], id)
    numbers = ("value", "low", "high")
    assert [own[name] for name in numbers] == pytest.approx([expected[name] for name in numbers])
    assert own["low"] < own["value"] < own["high"]
    assert own["verdict"] == claim(id).rule.side(own["value"], own["low"], own["high"])


def test_rows_under_a_control_are_those_or_an_error_that_says_what_there_is():
    table = under_every(uniform(0.8, 0.4), normalized=uniform(0.3, 0.5))
    rows = controlled(table, "normalized")
    np.testing.assert_array_equal(rows["cka"], uniform(0.3, 0.5)["cka"])
    left = table[table["control"].isin(["all", "spatial"])]
    with pytest.raises(
        ValueError, match=r"nothing was measured under 'typical', only under \['all', 'spatial'\]"
    ) as caught:
        controlled(left, "typical")
    assert not isinstance(caught.value, Refusal)  # no user can mend it


@pytest.mark.parametrize("name", VIEWS)
def test_a_control_that_should_have_been_measured_is_missed_loudly(name):
    made = PAIRED if name == "permuted" else uniformity(0.8, 0.4)
    whole = made.tables["cka_controls"]
    left = whole[whole["control"] != name]
    left.attrs = whole.attrs
    lacking = made._replace(tables=made.tables | {"cka_controls": left})
    with pytest.raises(ValueError, match=f"nothing was measured under '{name}'") as caught:
        findings.measure(lacking)
    assert not isinstance(caught.value, Refusal)


@pytest.mark.parametrize(
    ("made", "column"),
    [(LOOKING, "raw_distance_px"), (CARRIED, "long_norm"), (CARRIED, "median")],
    ids=["raw", "mean norms", "median"],
)
@pytest.mark.parametrize("ending", ["", "_without"])
def test_a_column_that_a_control_needs_is_missed_loudly(made, column, ending):
    ((name, whole),) = made.tables.items()
    left = whole.drop(columns=column + ending)
    left.attrs = whole.attrs
    with pytest.raises(KeyError, match=column + ending):
        findings.measure(made._replace(tables={name: left}))


def broken(_: Evidence) -> float:
    return float((np.zeros(2) + np.zeros(3)).sum())


def test_a_fault_in_a_number_is_no_missing_number_and_names_its_claim():
    with pytest.raises(ValueError, match="operands could not be broadcast") as caught:
        judged(replace(claim("F1a"), compute=broken), uniformity(0.8, 0.4))
    assert caught.value.__notes__ == ["in the number of claim F1a"]


def test_a_fault_under_a_control_is_no_missing_control_and_names_its_claim():
    made = uniformity(0.8, 0.4, normalized=(0.3, 0.5))

    def compute(e: Evidence) -> float:
        value = claim("F1a").compute(e)
        return value if value > 0 else broken(e)

    with pytest.raises(ValueError, match="operands could not be broadcast") as caught:
        judged(replace(claim("F1a"), compute=compute), made)
    assert any("F1a" in note for note in getattr(caught.value, "__notes__", []))


# The whole -----------------------------------------------------------------------------------------------------------


def test_p_values_are_adjusted_as_holm_did():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(findings.holm(p), [0.03, 0.06, np.nan, 0.06, 0.02])
    assert findings.holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    return findings.measure(SIMILAR)


def test_findings_are_a_verdict_on_every_claim_those_of_the_five_differences_first(whole):
    assert set(whole["id"]) == {claim.id for claim in CLAIMS}
    differences = whole["difference"].tolist()
    assert differences == [*sorted(number for number in differences if number), *[0] * differences.count(0)]
    own = sound("F1a")
    found = whole.set_index("id").loc["F1a"]
    known = [
        name for name in own if name not in ("id", "p", "paper_low", "paper_high")
    ]  # F1a has no printed number
    assert {name: found[name] for name in known} == {name: own[name] for name in known}
    assert found["p"] >= own["p"]  # of many tests


def test_a_p_is_never_printed_as_nothing(whole):
    told = whole.assign(p=[0.0, *whole["p"][1:]])
    text = findings.markdown(told)
    assert "| < 1e-6 |" in text
    assert "| 0 |" not in text


def test_every_threshold_says_where_it_is_from(whole):
    assert (whole["threshold_from"].str.len() > 0).all()
    for own in whole.itertuples():
        assert f"{own.threshold} ({own.threshold_from})" in findings.markdown(whole)


def test_the_five_differences_are_what_their_claims_add_up_to(whole):
    found = findings.differences(whole)
    assert [own.number for own in found] == [1, 2, 3, 4, 5]
    for own, before in zip(found, DIFFERENCES, strict=True):
        assert (own.title, own.text) == (before.title, before.text)
        assert own.findings == tuple(claim.id for claim in CLAIMS if claim.difference == own.number)
    measured = whole[(whole["difference"] == 1) & (whole["verdict"] != "not measured")]
    assert found[0].verdict == rules.together(list(measured["verdict"]))
    assert [own.verdict for own in found[1:]] == ["not measured"] * 4


def test_findings_come_back_from_their_file_and_from_text(whole, tmp_path):
    found = whole
    findings.write(found, tmp_path / "findings")
    back = findings.read(tmp_path / "findings.parquet")
    pd.testing.assert_frame_equal(back, found, check_dtype=False)
    text = (tmp_path / "findings.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| F1a "))
    assert f"**{sound('F1a')['verdict']}**" in line
    assert line.count("|") == text.splitlines()[text.splitlines().index("## Every claim") + 2].count("|")
    assert "1. **Layers of a Vision Transformer are more alike" in text
    assert all(f"* **{word}**: {meaning}." in text for word, meaning in rules.WORDS.items())
    assert rules.ADDING in text


def test_a_name_cannot_break_the_table_of_text(whole):
    found = whole.copy()
    found.loc[0, "claim"] = "a | b\nc"
    assert "a \\| b c" in findings.markdown(found)


def test_the_registry_is_whole():
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)
    assert [difference.number for difference in DIFFERENCES] == [1, 2, 3, 4, 5]
    assert {claim.difference for claim in CLAIMS} == {0, *(difference.number for difference in DIFFERENCES)}
    assert {claim.figure for claim in CLAIMS} <= {drawing.id for drawing in DRAWINGS}
    for claim in CLAIMS:
        assert set(claim.tables) <= set(plans.TABLES), claim.id


@pytest.mark.parametrize(
    ("groups", "said"), [(0, "from one batch"), (2, "over 2 groups"), (4, "over 4 groups"), (5, "")]
)
def test_too_few_groups_of_images_are_said_to_decide_little(groups, said):
    table = pd.DataFrame({"cka": [0.5], "cka_without": [np.zeros(groups)]})
    note = findings.few_groups(Study(PARTS, {"cka": table}, {}))
    assert said in note
    assert bool(note) == (groups < findings.ENOUGH)
    assert not note or "--images.limit" in note


def test_without_a_table_nothing_is_said_of_groups():
    assert findings.few_groups(Study(PARTS, {}, {})) == ""


def test_the_number_that_the_paper_prints_stands_beside_the_same_of_these_models(whole):
    own = whole.set_index("id")
    for claim in CLAIMS:
        row, one = own.loc[claim.id], claim.printed
        if one is None:
            assert np.isnan([row["paper_low"], row["paper_high"], row["here"]]).all()
            assert (row["paper_unit"], row["paper_of"]) == ("", "")
            continue
        assert (row["paper_low"], row["paper_high"], row["paper_unit"], row["paper_of"]) == (
            *(one.low, one.high),
            *(one.unit, one.of),
        )
        assert math.isnan(row["here"]) >= math.isnan(
            row["value"]
        )  # what is not measured has no number here either
        if one.here is None and not math.isnan(row["value"]):
            assert row["here"] == row["value"]


def test_a_number_in_the_papers_terms_is_there_where_the_claim_is_measured():
    line = np.interp(np.linspace(0, 1, 13), [0, 0.5, 1], [0, 0.25, 0.58])
    ridge = similarities({("v", "r"): 1 - np.abs(np.linspace(0, 1, 25)[:, None] - line)})
    own = findings.measure(Study(PARTS, {"cka": ridge}, {})).set_index("id")
    assert own.loc["F2a", "here"] == pytest.approx(0.25, abs=0.03)
    assert own.loc["F2b", "here"] == pytest.approx(0.58, abs=0.03)
    assert own.loc["SEED1", "here"] == own.loc["SEED1", "value"]
    assert math.isnan(own.loc["F3a", "here"])


def test_models_of_no_cast_stand_for_nobody(whole):
    assert set(whole["substitution"]) == {""}


def test_models_of_the_papers_cast_say_whom_they_stand_for_and_what_is_not_public():
    names = {"v": "vit_base_patch16_224.augreg_in21k", "r": "resnetv2_50x1_bit.goog_in21k"}
    table = SIMILAR.tables["cka"].replace({"model": names, "other_model": names})
    table.attrs = SIMILAR.tables["cka"].attrs | {"models": dict.fromkeys(names.values(), "0")}
    made = Study(Parts(vit=(names["v"],), cnn=(names["r"],)), {"cka": table}, {})
    found = findings.measure(made).set_index("id")
    assert found.loc["F1a", "models"] == ", ".join(names.values())
    assert found.loc["F1a", "substitution"] == (
        f"number comparable: {names['v']} for ViT-B/16 of JFT-300M, {names['r']} for ResNet50x1 of JFT-300M"
    )
    assert (
        found.loc["F1d", "models"] == names["v"]
    )  # of the models that a number asks for, and not of their part
    assert found.loc["F8a", "substitution"].startswith("nobody public: ")
    assert found.loc["F8a", "verdict"] == "not measured"


def test_a_fault_in_a_number_that_the_paper_prints_is_ours_and_names_its_claim(monkeypatch):
    def fails(_: Evidence) -> float:
        raise KeyError("layer")

    claim = next(one for one in CLAIMS if one.id == "F2a")
    broken = replace(claim, printed=replace(claim.printed, here=fails))
    monkeypatch.setattr(findings, "CLAIMS", tuple(broken if one is claim else one for one in CLAIMS))
    with pytest.raises(KeyError) as fault:
        findings.measure(PAIRED)
    assert any("F2a" in note for note in fault.value.__notes__)
