"""Every claim on tables made by hand: its number in its unit, what it says of that, and the same with V and R exchanged.

And what stands beside every claim: under which controls it is measured again, and where its threshold is from.

The tables are made so that another model, layer, block, head, token, depth, extreme, unit or sign is another number. A claim
without a case is an error, so that what is added is under this as well.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made import evidence, rows, similarities

from vit_analysis.spelling import Refusal
from vit_analysis.study.claims import CLAIMS, Claim
from vit_analysis.study.parts import Parts
from vit_analysis.study.rules import OPEN, REFUTED, REPRODUCED

PARTS = Parts(
    vit=("v",),
    cnn=("r",),
    gap="g",
    less_data=("small", "medium", "large"),
    other_seed="seed",
    no_skip=("without 7", "without 4", "without 0"),
    mixer="x",
    tuned="tuned",
    local="l",
    flat="f",
)
EXCHANGED = replace(PARTS, vit=("r",), cnn=("v",))


@dataclass(frozen=True)
class Case:
    """Tables, the number that a claim has of them, the words of its rule; and the number with V and R exchanged.

    None for the latter where the claim is not about both, so that R has not what it takes.
    """

    value: float
    rule: str
    tables: Callable[[], dict[str, pd.DataFrame]]
    exchanged: float | None = None
    within: float = 1e-9


# Similarities.


def both(**values: np.ndarray) -> dict[str, pd.DataFrame]:
    """Each model with itself."""
    return {"cka": similarities({(name, name): own for name, own in values.items()})}


def uniform(**means: float) -> dict[str, pd.DataFrame]:
    return both(**{name: np.full((5 + len(name), 5 + len(name)), mean) for name, mean in means.items()})


def cornered(**corners: float) -> dict[str, pd.DataFrame]:
    """Maps that differ where lowest thirds are rows and highest thirds columns, and nowhere else."""
    found = {}
    for name, corner in corners.items():
        found[name] = np.full((24, 24), 0.4)
        found[name][:8, 16:] = corner
    return both(**found)


def staged() -> dict[str, pd.DataFrame]:
    """A stage adds 0.25 to what is alike by nearness alone in R, a quarter 0.1 in V."""
    lag = np.abs(np.subtract.outer(np.arange(17), np.arange(17)))
    stage, quarter = np.repeat([0, 1, 2, 3, 4], [1, 3, 3, 3, 3]), np.repeat([0, 1, 2, 3], [4, 4, 4, 5])
    own = {
        name: 0.9 ** lag[: len(of), : len(of)] + more * (of[:, None] == of)
        for name, of, more in (("v", quarter, 0.1), ("r", stage, 0.25))
    }
    names = {"r": ["conv1", *(f"layer{number}.{unit}" for number in (1, 2, 3, 4) for unit in range(3))]}
    return {"cka": similarities({(name, name): values for name, values in own.items()}, names)}


def striped() -> dict[str, pd.DataFrame]:
    """A grid with the period of a block of four layers in V, nothing in R."""
    names = {
        "v": [f"blocks.{block}{part}" for block in range(6) for part in (".norm1", ".attn", ".norm2", "")]
    }
    place = np.arange(24) % 4
    pairs = {("v", "v"): (place[:, None] == place) * 1.0, ("r", "r"): np.full((5, 5), 0.5)}
    return {"cka": similarities(pairs, names)}


def crossed(values: np.ndarray) -> dict[str, pd.DataFrame]:
    """V (rows) with R (columns), and the other way round."""
    return {"cka": similarities({("v", "r"): values, ("r", "v"): values.T})}


def sloping() -> dict[str, pd.DataFrame]:
    """Falls by 0.8 along the depth of V, rises by 0.3 along that of R."""
    return crossed(-0.8 * np.linspace(0, 1, 13)[:, None] + 0.3 * np.linspace(0, 1, 9))


def blocks_alike(**diagonals: Sequence[float]) -> dict[str, pd.DataFrame]:
    """V with others block by block; off the diagonal, and under another control, it is something else."""
    pairs = {("v", name): np.diag(own) + 0.01 * (1 - np.eye(len(own))) for name, own in diagonals.items()}
    parts = [similarities(pairs, control="spatial").assign(cka=7.0), similarities(pairs, control="all")]
    table = pd.concat(parts, ignore_index=True)
    table.attrs = {"images": {"source": "a"}}
    return {"cka_controls": table}


OF_DATA = {
    "small": [0.95, 0.85, 0.5, 0.5, 0.25, 0.15],
    "medium": [0.9, 0.9, 0.5, 0.5, 0.45, 0.55],
    "large": [0.9, 0.9, 0.5, 0.5, 0.55, 0.65],
    "seed": [0.96, 0.94, 0.9, 0.9, 0.85, 0.85],
    "tuned": [1.0, 0.8, 0.0, 0.4, 0.5, 0.6],
}
MIXED = {
    ("x", "v"): np.array([[0.1, 0.9, 0.2], [0.7, 0.1, 0.3]]),
    ("x", "r"): np.array([[0.5, 0.1], [0.1, 0.3]]),
    ("v", "x"): np.full((3, 2), 0.99),
}

# Attention and receptive fields.


def heads() -> dict[str, pd.DataFrame]:
    """Distances of three heads in four blocks, as multiples of what uniform attention has, which is not the same for all."""
    own = {
        ("v", 16.0): [
            [0.1, 0.9, 0.2],
            [0.3, 0.4, 0.82],
            [0.01, 0.5, 0.99],
            [0.88, 0.97, 0.95],
            [0.86, 0.91, 0.8],
        ],
        ("small", 10.0): [[0.7, 0.9, 0.8], [0.6, 0.99, 0.45], [0.02, 0.5, 0.5]],
        ("medium", 10.0): [[0.03, 0.03, 0.03], [0.03, 0.03, 0.03]],
    }
    found = [
        (model, f"blocks.{block}", head, unit * value, unit)
        for (model, unit), blocks in own.items()
        for block, values in enumerate(blocks)
        for head, value in enumerate(values)
    ]
    return {"attention_distance": rows(("model", "block", "head", "distance_px", "uniform_px"), *found)}


def subsets() -> dict[str, pd.DataFrame]:
    """Two units that fall with every subset, and one whose first two subsets are exchanged."""
    columns = ("vit", "cnn", "layer", "subset", "distance_px", "cka")
    orders = {"unit 1": range(8), "unit 2": (1, 0, 2, 3, 4, 5, 6, 7), "unit 3": range(8)}
    found = [
        ("v", "r", layer, subset, 10.0 + subset, 1 - 0.1 * place)
        for layer, order in orders.items()
        for subset, place in enumerate(order)
    ]
    other = [("other", "r", "unit 1", subset, 10.0 + subset, 0.1 * subset) for subset in range(8)]
    return {"head_subsets": rows(columns, *found, *other)}


def fields() -> dict[str, pd.DataFrame]:
    """By step: radius, and share in the own patch after and before the addition."""
    own = {
        "v": [
            ("attention 1", 8.0, 0.9, 0.1),
            ("MLP 1", 9.0, 0.9, 0.2),
            ("attention 2", 10.0, 0.5, 0.3),
            ("MLP 2", 18.0, 0.4, 0.9),
            ("attention 3", 20.0, 0.3, 0.2),
        ],
        "r": [
            ("initial conv", 1.0, 0.9, 0.1),
            ("unit 1", 2.0, 0.9, 0.2),
            ("unit 2", 4.0, 0.2, 0.17),
            ("unit 3", 6.0, 0.3, 0.25),
            ("unit 4", 16.0, 0.4, 0.33),
        ],
    }
    found = [
        (model, step, place / 4, branch, radius if branch == "residual" else 77.0, share, 0.05)
        for model, steps in own.items()
        for place, (step, radius, after, before) in enumerate(steps)
        for branch, share in (("residual", after), ("long", before))
        if (step, branch) != ("initial conv", "long")
    ]
    columns = ("model", "step", "depth", "branch", "radius_px", "centre_share", "uniform_centre_share")
    return {"receptive_field": rows(columns, *found)}


# Skip connections.


def skips() -> dict[str, pd.DataFrame]:
    """Four blocks of V: by token, the ratios and what attention and MLP write; two units of R."""
    own = {
        "cls": ([8.0, 8.0, 0.5, 0.5], [(1.0, 9.0), (1.0, 9.0), (1.0, 4.0), (3.0, 7.0)]),
        "spatial": ([2.0, 2.0, 2.0, 4.0], [(1.0, 9.0), (1.0, 9.0), (1.0, 1.0), (3.0, 2.0)]),
    }
    found = [
        ("v", f"blocks.{block}", sublayer, token, ratio * spread, written)
        for token, (ratios, norms) in own.items()
        for block, (ratio, both) in enumerate(zip(ratios, norms, strict=True))
        for sublayer, spread, written in zip(("attention", "mlp"), (2.0, 0.5), both, strict=True)
    ]
    units = [
        ("r", f"layer1.{unit}", "unit", "spatial", ratio, 1.0) for unit, ratio in enumerate((0.25, 0.5, 8.0))
    ]
    columns = ("model", "block", "sublayer", "token", "norm_ratio", "long_norm")
    return {"skip": rows(columns, *found, *units)}


def trained() -> dict[str, pd.DataFrame]:
    columns = ("model", "block", "drop", "across_drop")
    of = [("without 0", 0, 0.5, 0.8), ("without 7", 7, 0.6, 0.9), ("without 4", 4, 0.05, 0.37)]
    return {
        "lesions_trained": rows(columns, *((name, f"blocks.{number}", *own) for name, number, *own in of))
    }


def lesioned() -> dict[str, pd.DataFrame]:
    found = [("v", "blocks.0", 0.5), ("v", "blocks.1", 0.1), ("r", "layer1.0", 0.3), ("r", "layer1.1", 0.1)]
    return {"lesions": rows(("model", "block", "drop"), *found)}


# Places.


def places() -> dict[str, pd.DataFrame]:
    """Inside the grid tokens are like their own patch and like others by so much; at the edge it is the same in all."""
    found = []
    row, column = np.divmod(np.arange(20), 5)
    edge = (row == 0) | (row == 3) | (column == 0) | (column == 4)
    for model, (own, others) in {
        "v": (0.7, 0.2),
        "r": (0.4, 0.3),
        "g": (0.3, 0.25),
        "f": (0.55, 0.15),
    }.items():
        for token in range(20):
            for patch in range(20):
                like = (0.9, 0.6, 0.25) if edge[token] else (own, others, others)
                value = like[0] if token == patch else like[1] if edge[patch] else like[2]
                found.append((model, token, row[token], column[token], row[patch], column[patch], value))
    columns = ("model", "token", "token_row", "token_col", "patch_row", "patch_col", "cka")
    return {"localization": rows(columns, *found)}


# Probes and losses.


def probes(
    table: str, own: dict[tuple[str, str, str], Sequence[float]], **native: str
) -> dict[str, pd.DataFrame]:
    """Accuracies by (model, tokens, target) at even depths, the mean of two draws."""
    found = [
        (model, place / (len(values) - 1), tokens, target, draw, value + shift)
        for (model, tokens, target), values in own.items()
        for place, value in enumerate(values)
        for draw, shift in ((0, -0.02), (1, 0.02))
    ]
    return {table: rows(("model", "depth", "tokens", "target", "draw", "accuracy"), *found, native=native)}


def by_depth() -> dict[str, pd.DataFrame]:
    own = {
        ("v", "cls", "shape"): [0.1, 0.2, 0.6, 0.7, 0.8, 0.9],
        ("v", "mean", "shape"): [0.99] * 6,
        ("v", "cls", "position"): [0.2, 0.2, 0.2, 0.2, 0.2, 0.75],
        ("small", "cls", "shape"): [0.1, 0.2, 0.2, 0.3, 0.1, 0.1],
        ("medium", "cls", "shape"): [0.1, 0.2, 0.6, 0.7, 0.8, 0.9],
        ("r", "mean", "shape"): [0.95, 0.3, 0.2, 0.97],
        ("r", "mean", "position"): [0.95, 0.9, 0.9, 0.3],
    }
    return probes("probe", own, v="cls", small="cls", medium="cls", r="mean")


def by_token() -> dict[str, pd.DataFrame]:
    own = {
        ("v", "cls", "shape"): [0.2, 0.2, 0.2, 0.5, 0.7, 0.9],
        ("v", "mean_spatial", "shape"): [0.2, 0.2, 0.2, 0.4, 0.5, 0.5],
        ("v", "mean", "shape"): [0.3] * 6,
        ("v", "0", "shape"): [0.99] * 5 + [0.2],
        ("v", "1", "shape"): [0.99] * 5 + [0.4],
        ("g", "mean", "shape"): [0.1, 0.1, 0.1, 0.1, 0.1, 0.89],
        ("g", "0", "shape"): [0.1, 0.1, 0.1, 0.1, 0.1, 0.87],
        ("g", "1", "shape"): [0.1, 0.1, 0.1, 0.1, 0.1, 0.73],
    }
    return probes("probe_tokens", own, v="cls", g="mean")


def entangled() -> dict[str, pd.DataFrame]:
    own = {("v", 5.0): [2.0, 1.5, 1.0], ("r", 4.0): [4.0, 3.0, 0.8]}
    found = [
        (model, f"l{i}", loss, chance)
        for (model, chance), losses in own.items()
        for i, loss in enumerate(losses)
    ]
    return {"soft_nearest_neighbor": rows(("model", "layer", "loss", "chance"), *found)}


def together() -> dict[str, pd.DataFrame]:
    """Gains of 20, 5, 55 points and falls of 0.2, 1.0, 1.3: ranks 2, 1, 3 and 1, 2, 3."""
    found = [("r", f"l{i}", loss, 4.0) for i, loss in enumerate((3.0, 2.8, 1.8, 0.5))]
    losses = {"soft_nearest_neighbor": rows(("model", "layer", "loss", "chance"), *found)}
    return probes("probe", {("r", "mean", "shape"): [0.1, 0.3, 0.35, 0.9]}, r="mean") | losses


# Beyond the paper.


def massive() -> dict[str, pd.DataFrame]:
    own = {"v": (0.01, 0.02, 0.03, 0.06), "r": (0.5, 0.0, 0.0, 0.0)}
    found = [(model, place / 3, share) for model, shares in own.items() for place, share in enumerate(shares)]
    return {"tokens": rows(("model", "depth", "massive_tokens"), *found)}


def frequencies() -> dict[str, pd.DataFrame]:
    own = {"v": (-1.0, -3.0, 50.0, -5.0, -6.0), "r": (-4.0, -3.0, 50.0, -2.0, -0.5)}
    places = (0.0, 1 / 3, 0.5, 2 / 3, 1.0)
    found = [
        (model, depth, frequency, value * frequency**4)
        for model, values in own.items()
        for depth, value in zip(places, values, strict=True)
        for frequency in (0.5, 1.0)
    ]
    return {"frequency": rows(("model", "depth", "frequency", "log_amplitude"), *found)}


LOWER, UPPER = np.linspace(0, 1, 24)[:12].mean() / 2, np.linspace(0, 1, 24)[12:].mean() / 2
LOCAL = {"v": 0.8, "r": 0.3, "l": 0.35}
TWINS = {"v": 0.8, "r": 0.3, "v@random": 0.6, "r@random": 0.4}
BEST = np.array([[0.9, 0.1, 0.1], [0.1, 0.1, 0.7], [0.1, 0.4, 0.1], [0.2, 0.1, 0.1]])
MIDDLE = np.array([[0.2, 0.1, 0.1], [0.3, 0.2, 0.1], [0.9, 0.95, 0.2], [0.1, 1.0, 0.1], [0.1, 0.3, 0.1]])
CASES = {
    "F1a": Case(0.5, "> 0 (in size: 0.1)", lambda: uniform(v=0.8, r=0.3), -0.5),
    "F1b": Case(0.7, "> 0 (in size: 0.1)", lambda: cornered(v=0.9, r=0.2), -0.7),
    "F1c": Case(0.15, "> 0 (in size: 0.05)", staged),
    # At the lag of a block it is what it was, 1; at lags 2 and 3 it is -1/3.
    "F1d": Case(4 / 3, "> 0", striped, within=0.06),
    "F1x": Case(0.3, "> 0", lambda: uniform(**TWINS), -0.3),
    "J1a": Case(0.2, "> 0", lambda: uniform(**LOCAL), 0.2),
    "J1b": Case(0.2, "> 0", lambda: cornered(**LOCAL), 0.2),
    "F2a": Case(0.8 * LOWER, "> 0 (in size: 0.05)", sloping, -0.3 * LOWER),
    "F2b": Case(0.8 * UPPER, "> 0 (in size: 0.05)", sloping, -0.3 * UPPER),
    "F2c": Case(0.8 - 0.3, "> 0 (in size: 0.05)", lambda: crossed(BEST), 0.65 - 0.7),
    "F3a": Case(0.1, "< 0.5", heads),
    "F3b": Case(0.9, "> 0.8", heads),
    "F3c": Case(0.8, "> 0.75", heads),
    "F4a": Case((0.45 + 0.6 + 0.7 + 0.8) / 4 - 0.25, "> 0 (in size: 0.15)", heads),
    "F4b": Case(0.45, "< 0.5", heads),
    "F5": Case(-1 + 6 * 2 / (8 * 63), "< 0 and <= -0.8", subsets),
    "F6a": Case(8 - 6, "> 0", fields),
    "F6i": Case(8 - 1, "> 0", fields),
    "F6b": Case(10 / 20 - 4 / 16, "> 0", fields, 4 / 16 - 10 / 20),
    "F6c": Case(0.3 / 0.05, "> 3", fields, 0.4 / 0.05),
    "C4": Case(0.15 - 0.05, "> 0 (in size: 0.1)", fields, 0.05 - 0.15),
    "F7a": Case(np.log(4), "> 0", skips),
    "F7b": Case(np.log(2 / 0.5), "> 0 (in size: 0.4)", skips, -np.log(2 / 0.5)),
    "F8a": Case(0.37, "> 0 (in size: 0.2)", trained),
    "F8b": Case(5.0, "> 0, meets [2, 6]", trained),
    "L8": Case(30 - 20, "> 0", lesioned, 20 - 30),
    "F9a": Case(0.5, "> 0 (in size: 0.05)", places, 0.1),
    "F9b": Case(0.5 - 0.1, "> 0 (in size: 0.05)", places, 0.1 - 0.5),
    "F9c": Case(0.6 - 0.25, "> 0", places, 0.6 - 0.25),
    "F10": Case(0.5 - 0.05, "> 0 (in size: 0.05)", places, 0.1 - 0.05),
    "J4a": Case(0.4 - 0.3, "> 0", places, 0.4 - 0.3),
    "J4b": Case(0.5 - 0.4, "> 0 (in size: 0.05)", places, 0.1 - 0.4),
    "F9p": Case(75 - 30, "> 0", by_depth, 30 - 75),
    "F11a": Case(80 - 30, "> 0 (in size: 47)", by_token),
    "F11b": Case(90 - 89, "within 3 of 0", by_token),
    "F11c": Case(40 - 10, "> 0 (in size: 5)", by_token),
    "F11d": Case(89 - 87, "< 3", by_token),
    "F12a": Case((0.9 - 0.2) - (0.95 - 0.85), "> 0 (in size: 0.15)", lambda: blocks_alike(**OF_DATA)),
    "F12c": Case(0.6 - 0.5, "> 0", lambda: blocks_alike(**OF_DATA)),
    "F13a": Case(40.0, "> 0 (in size: 30)", by_depth),
    "F13b": Case((60 + 70 + 80) / 3 - 20, "> 0 (in size: 5)", by_depth, 20 - (60 + 70 + 80) / 3),
    "E1": Case((4 / 5 + 7 / 10) / 2, "> 0.5", skips),
    "E1s": Case((4 / 5 + 7 / 10) / 2 - (1 / 2 + 2 / 5) / 2, "> 0", skips),
    "G1": Case(0.9 - 0.5, "> 0 (in size: 0.05)", lambda: blocks_alike(**OF_DATA)),
    "H1": Case(0.8 - 0.4, "> 0 (in size: 0.03)", lambda: {"cka": similarities(MIXED)}, 0.4 - 0.8),
    "S1": Case(2.2 / 3.2 - 1 / 2, "> 0 (in size: 0.5)", entangled, 0.5 / 4 - 1 / 2),
    "S2": Case(2.2 / 4 - 0.5 / 5, "> 0 (in size: 0.1)", entangled, 0.5 / 5 - 2.2 / 4),
    "S3": Case(0.5, "> 0", together),
    "B1": Case(4.5 - 1.5, "> 0", massive, -25.0),
    "B2": Case(-5.5 + 2, "< 0", frequencies, -1.25 + 3.5),
    "B3": Case(-1.25 + 3.5, "> 0", frequencies, -5.5 + 2),
    "SEED1": Case(1 - 3, "no threshold", lambda: crossed(MIDDLE), 3 - 1),
}
NEVER = {"F12b": "needs two sizes"}
"""Claims that no study can answer, and what they say."""

every_case = pytest.mark.parametrize("id", CASES)


def claim(id: str) -> Claim:
    return next(own for own in CLAIMS if own.id == id)


def number(id: str, parts: Parts) -> float:
    """What the findings would hold: the number by its own estimator, which picks the extreme of several."""
    own, tables = claim(id), CASES[id].tables()
    return own.interval(own.compute, own.tables, evidence(parts, **tables)).value


def side(id: str, value: float) -> str:
    return claim(id).rule.side(float(value), value - 1e-9, value + 1e-9)


def test_every_claim_has_a_case_or_says_that_nothing_can_answer_it():
    assert {*CASES, *NEVER} == {own.id for own in CLAIMS}
    for id, words in NEVER.items():
        with pytest.raises(Refusal, match=words):
            claim(id).compute(evidence(replace(PARTS, vit=("v", "w"))))


@every_case
def test_a_claim_has_the_number_that_a_hand_computes_and_it_is_for_it(id):
    case = CASES[id]
    assert number(id, PARTS) == pytest.approx(case.value, abs=case.within)
    assert str(claim(id).rule) == case.rule
    assert side(id, case.value) == (OPEN if id == "SEED1" else REPRODUCED)


@every_case
def test_a_claim_asks_for_the_tables_that_it_names(id):
    """A table that is not named would not lose its groups, and the interval would not know of it."""
    own, tables = claim(id), CASES[id].tables()
    assert set(own.tables) == set(tables)
    with pytest.raises(Refusal):
        own.compute(evidence(PARTS))


@pytest.mark.parametrize("id", [id for id, case in CASES.items() if case.exchanged is not None])
def test_with_v_and_r_exchanged_it_has_the_number_of_the_other(id):
    case = CASES[id]
    found = number(id, EXCHANGED)
    assert found == pytest.approx(case.exchanged, abs=case.within)
    if case.exchanged == pytest.approx(-case.value) and id != "SEED1":
        assert side(id, found) == REFUTED


def leads() -> list[Any]:
    """Claims that V has more of something than R, or R than V."""
    words = ("V - R", "R - V", ", R - the same of V")
    return [own.id for own in CLAIMS if own.statistic.rstrip(", pointsx").endswith(words)]


def test_every_lead_of_one_over_the_other_changes_its_sign_with_them():
    of_one_alone = {
        "F6a",
        "F6i",
        "F1c",
    }  # a ResNet has the steps or stages that are asked for, and nothing else has
    for id in {*leads()} - of_one_alone:
        assert CASES[id].exchanged == pytest.approx(-CASES[id].value), id


# What stands beside a claim ----------------------------------------------------------------------------------------------

SECOND = "partial|partial normalized|rank|rank normalized|nearest|nearest normalized"
OF_ONE = {*f"spatial|normalized|inliers|typical|biased|shuffled|partial twins|{SECOND}".split("|")}
OF_TWO = OF_ONE - {"shuffled"} | {"permuted"}  # a best match: the images of one model in another order
LAYERS = {"blocks", "untrained"}
CONTROLLED = {
    "F1a F1b F1c": OF_ONE | LAYERS,
    "F2a F2b F2c": OF_TWO | LAYERS,
    "F1x J1a J1b": OF_ONE - {"partial twins"} | {"blocks"},  # twins are compared already
    "H1": OF_TWO | {"blocks"},
    "F12a F12c G1": OF_ONE,
    "F3a F3b F3c": {"raw", "untrained"},
    "F4a F4b": {"raw"},
    "F7a F7b": {"median", "mean norms", "untrained"},
    "F9a F9b F9c": {"normalized", "untrained"},
    "F10 J4a J4b S1 S2 S3": {"normalized"},
    "F1d F6a F6i F6b F6c C4 E1 E1s B1 B2 B3": {"untrained"},
    "F5 F8a F8b L8 F9p F11a F11b F11c F11d F12b F13a F13b SEED1": set(),
}
"""By claims, the names of the controls under which they are measured again."""


def test_every_claim_is_measured_again_under_the_controls_of_its_kind():
    expected = {id: names for ids, names in CONTROLLED.items() for id in ids.split()}
    assert {own.id: {control.name for control in own.controls} for own in CLAIMS} == expected


def numbers(words: str) -> list[float]:
    return [float(word) for word in re.findall(r"[0-9.]*[0-9]", words)]


@pytest.mark.parametrize("own", CLAIMS, ids=lambda own: own.id)
def test_a_threshold_is_said_to_be_from_where_it_is_from(own):
    """A size is told where there is one, and it is the paper's number where the paper prints that number."""
    found = numbers(str(own.rule))
    printed = own.printed is not None and own.printed.low in {*found[1:], sum(found[-2:]) / 2}
    assert ("the paper's number" in own.origin) == printed
    if own.origin.startswith("0 is no difference"):
        assert found[0] == 0
        assert ("the size is" in own.origin) == (len(found) > 1)
        assert ("proposed" in own.origin) == (len(found) > 1 and not printed)
    elif not own.origin.startswith(("none", "mostly is", "a monotonic")):
        assert ("proposed here" in own.origin) != printed
