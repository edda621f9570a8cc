"""Verdicts from synthetic tables: clearly so, clearly not, undecided, and turned round by a control."""

import math

import numpy as np
import pandas as pd
import pytest

from vit_analysis import findings
from vit_analysis.study import passes
from vit_analysis.study.claims import CLAIMS, DIFFERENCES
from vit_analysis.study.drawings import DRAWINGS
from vit_analysis.study.parts import Parts
from vit_analysis.study.passes import Study

PARTS = Parts(vit=("v",), cnn=("r",), gap="g", less_data=("small", "medium"), other_seed="seed")
GROUPS = 12


def noisy(values: np.ndarray, spread: float, seed: int = 0) -> list[np.ndarray]:
    """Values without each of some groups, as means over images have them."""
    noise = np.random.default_rng(seed).normal(scale=spread, size=(len(values), GROUPS)) / (GROUPS - 1)
    return list(values[:, None] + noise - noise.mean(1, keepdims=True))


def similarities(pairs: dict[tuple[str, str], np.ndarray], spread: float = 0.01) -> pd.DataFrame:
    rows = []
    for (model, other), values in pairs.items():
        for i, row in enumerate(values):
            for j, cka in enumerate(row):
                place = (model, f"blocks.{i}", i / max(1, len(values) - 1))
                rows.append((*place, other, f"blocks.{j}", j / max(1, len(row) - 1), float(cka)))
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


def controls(v: float, r: float, **others: tuple[float, float]) -> pd.DataFrame:
    """The same two models under every control, with other values where said."""
    parts = []
    for control in ("all", "spatial", "normalized", "inliers", "typical", "biased", "shuffled"):
        one, two = others.get(control, (v, r))
        parts.append(similarities({("v", "v"): alike(one), ("r", "r"): alike(two)}).assign(control=control))
    whole = pd.concat(parts, ignore_index=True)
    whole.attrs = parts[0].attrs
    return whole


def row(made: Study, id: str) -> pd.Series:
    return findings.measure(made).set_index("id").loc[id]


def uniformity(v: float, r: float, spread: float = 0.01, **others: tuple[float, float]) -> Study:
    cka = similarities({("v", "v"): alike(v), ("r", "r"): alike(r)}, spread)
    return Study(PARTS, {"cka": cka, "cka_controls": controls(v, r, **others)}, {})


@pytest.mark.parametrize(
    ("v", "r", "spread", "verdict"),
    [(0.8, 0.4, 0.01, "reproduced"), (0.4, 0.8, 0.01, "not reproduced"), (0.6, 0.6, 3.0, "inconclusive")],
)
def test_a_difference_of_uniformity_is_found_refuted_or_left_open(v, r, spread, verdict):
    found = row(uniformity(v, r, spread), "F1a")
    assert found["verdict"] == verdict
    assert found["low"] < found["value"] < found["high"]
    assert found["models"] == "v, r, g, small, medium, seed"


def test_the_size_of_an_effect_is_another_question_than_its_sign():
    assert row(uniformity(0.8, 0.4), "F1a")["in_size"]
    small = row(uniformity(0.61, 0.6), "F1a")
    assert (small["verdict"], small["in_size"]) == ("reproduced", False)


def test_a_control_that_turns_a_finding_round_makes_it_fragile_and_one_that_does_not_leaves_it():
    sound = row(uniformity(0.8, 0.4), "F1a")
    assert not sound["fragile"]
    assert sound["controls"]["every token normalised"]["verdict"] == "reproduced"
    turned = row(uniformity(0.8, 0.4, normalized=(0.3, 0.5)), "F1a")
    assert turned["fragile"]
    assert turned["controls"]["every token normalised"]["verdict"] == "not reproduced"
    # What the biased estimator or shuffled images say is told, and turns nothing.
    told = row(uniformity(0.8, 0.4, biased=(0.3, 0.5), shuffled=(0.3, 0.5)), "F1a")
    assert not told["fragile"]
    assert told["controls"]["biased estimator"]["value"] < 0


def test_what_is_not_there_is_not_measured_and_says_what_it_needs():
    made = Study(Parts(vit=("v",)), {}, {"probe": "'photographs' has no classes to probe"})
    found = findings.measure(made).set_index("id")
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


def with_raw(made: pd.DataFrame) -> Study:
    attrs = made.attrs
    made = made.assign(raw_distance_px_without=[0.4 * own for own in made["distance_px_without"]])
    made.attrs = attrs
    return Study(PARTS, {"attention_distance": made}, {})


def test_local_and_global_heads():
    both = with_raw(heads([0.2, 0.6, 1.0]))
    assert row(both, "F3a")["value"] == pytest.approx(0.2)
    assert [row(both, name)["verdict"] for name in ("F3a", "F3b", "F3c")] == ["reproduced"] * 3
    neither = with_raw(heads([0.6, 0.65, 0.7]))
    assert [row(neither, name)["verdict"] for name in ("F3a", "F3b")] == ["not reproduced"] * 2


def test_a_verdict_that_rests_on_attention_to_prefix_tokens_is_fragile():
    found = row(with_raw(heads([0.6, 0.65, 0.7])), "F3a")
    assert found["controls"]["attention to prefix tokens left in"]["value"] == pytest.approx(0.24)
    assert found["fragile"]


def norms(first: float, second: float) -> Study:
    """Log ratios of the class token over spatial tokens in either half of four blocks."""
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
    made["skip_norm"], made["skip_norm_without"] = made["norm_ratio"], made["norm_ratio_without"]
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


def test_similarity_to_the_model_of_all_data_falls_with_depth_and_the_other_seed_is_the_ceiling():
    def block(values: list[float]) -> np.ndarray:
        return np.diag(values)

    pairs = {
        ("v", "small"): block([0.9, 0.8, 0.5, 0.4, 0.3, 0.2]),
        ("v", "medium"): block([0.9, 0.9, 0.8, 0.8, 0.6, 0.6]),
        ("v", "seed"): block([0.95] * 6),
    }
    table = similarities(pairs).assign(control="all")
    made = Study(PARTS, {"cka_controls": table}, {})
    found = row(made, "F12a")
    assert found["value"] == pytest.approx(0.85 - 0.25)
    assert found["controls"]["other seed, all data"]["value"] == pytest.approx(0)
    assert row(made, "F12c")["value"] == pytest.approx(0.6 - 0.25)


def test_p_values_are_adjusted_as_holm_did():
    p = np.array([0.01, 0.04, np.nan, 0.03, 0.005])
    np.testing.assert_allclose(findings.holm(p), [0.03, 0.06, np.nan, 0.06, 0.02])
    assert findings.holm(np.array([0.9, 0.8])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        (["reproduced", "reproduced", "not measured"], "reproduced"),
        (["reproduced", "not reproduced"], "partly reproduced"),
        (["not reproduced", "inconclusive"], "not reproduced"),
        (["inconclusive"], "inconclusive"),
        (["not measured"], "not measured"),
    ],
)
def test_what_several_claims_add_up_to(verdicts, whole):
    assert findings.together(verdicts) == whole


def test_findings_come_back_from_their_file_and_from_text(tmp_path):
    found = findings.measure(uniformity(0.8, 0.4))
    findings.write(found, tmp_path / "findings")
    back = findings.read(tmp_path / "findings.parquet")
    pd.testing.assert_frame_equal(back, found, check_dtype=False)
    text = (tmp_path / "findings.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| F1a "))
    assert "**reproduced**" in line
    assert line.count("|") == text.splitlines()[text.splitlines().index("## Every claim") + 2].count("|")
    assert "1. **Layers of a Vision Transformer are more alike" in text


def test_a_name_cannot_break_the_table_of_text():
    found = findings.measure(uniformity(0.8, 0.4))
    found.loc[0, "claim"] = "a | b\nc"
    assert "a \\| b c" in findings.markdown(found)


def test_the_registry_is_whole():
    ids = [claim.id for claim in CLAIMS]
    assert len(set(ids)) == len(ids)
    assert {claim.difference for claim in CLAIMS} == {0, *DIFFERENCES}
    assert {claim.figure for claim in CLAIMS} <= {drawing.id for drawing in DRAWINGS}
    known = {*passes.TABLES, "cka_blocks"}
    for claim in CLAIMS:
        assert set(claim.tables) <= known, claim.id
        assert set(claim.controls) <= findings.CONTROLS.keys() == findings.TOLD.keys(), claim.id
