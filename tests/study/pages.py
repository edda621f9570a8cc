"""A small report of everything that a report may hold, with names that would be markup if anything let them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from vit_analysis.study.differences import Difference, Reason
from vit_analysis.study.report import Panel, Place

EVIL = "<script>alert(1)</script> \"quoted\" 'it' & ../../x \u2028 ${style}"
LAYERS = {
    "vit": ["patch_embed", "blocks.0.attn", EVIL, "blocks.1"],
    "resnet": ["conv1", "layer1.0", "layer2.0"],
}


def similarities(model: str, other: str) -> pd.DataFrame:
    """Rows upwards, columns to the right: 0.1 per row, 0.01 per column, less than nothing at the start."""
    rows, columns = LAYERS[model], LAYERS[other]
    table = pd.DataFrame(
        [
            (model, a, i / (len(rows) - 1), other, b, j / (len(columns) - 1), 0.3 * i + 0.01 * j - 0.004)
            for i, a in enumerate(rows)
            for j, b in enumerate(columns)
        ],
        columns=["model", "layer", "depth", "other_model", "other_layer", "other_depth", "cka"],
    )
    table.loc[(table["layer"] == rows[1]) & (table["other_layer"] == columns[2]), "cka"] = np.nan
    return table.assign(low=table["cka"] - 0.02, high=table["cka"] + 0.2)


def coarse(model: str, other: str) -> pd.DataFrame:
    """Another view of the same two: the last layers of each alone, by another measure."""
    table = similarities(model, other)
    ends = [table[side].isin({layers[0], layers[-1]}) for side, layers in
            (("layer", LAYERS[model]), ("other_layer", LAYERS[other]))]  # fmt: skip
    return table[ends[0] & ends[1]].assign(cka=[0.11, 0.12, 0.21, 0.22], measure="rank_cka")


TAGS = {  # how each verdict is shown: its mark, and its class in the style sheet
    "reproduced": ("✓", "reproduced"),
    "reproduced, smaller than claimed": ("✓", "reproduced-smaller-than-claimed"),
    "architectural": ("⌂", "architectural"),
    "fragile": ("≈", "fragile"),
    "not reproduced": ("✗", "not-reproduced"),
    "inconclusive": ("?", "inconclusive"),
    "not measured": ("–", "not-measured"),  # noqa: RUF001
    "partly reproduced": ("◐", "partly-reproduced"),
}


def tagged(verdict: str) -> str:
    return f"{TAGS[verdict][0]} {verdict}"


def findings() -> pd.DataFrame:
    """A row of each verdict that a finding can have."""
    nan = float("nan")
    twin = {"value": 0.01, "low": -0.02, "high": 0.04, "verdict": "inconclusive"}
    usual = {"paper": "", "statistic": "a - b", "threshold": "> 0", "threshold_from": "0 is no difference",
             "because": "", "controls": {}, "runs": [], "models": "vit", "reason": "",
             "tau": 0.0, "difference": 0, "paper_low": nan, "paper_high": nan, "paper_unit": "", "paper_of": "",
             "here": nan, "substitution": ""}  # fmt: skip
    rows = [
        {"id": "F1a", "figure": "1", "claim": EVIL, "value": 0.2345, "low": 0.21, "high": 0.2599,
         "verdict": "reproduced", "p": 0.0, "paper": 0.5, "controls": {"untrained twin": twin},
         "runs": [0.2345, 0.3, -0.05]},
        {"id": "F1b", "figure": "1", "claim": "b", "value": 0.05, "low": 0.04, "high": 0.06,
         "verdict": "reproduced, smaller than claimed", "p": 9e-7, "threshold": "> 0 (in size: 0.1)",
         "threshold_from": f"from {EVIL}"},
        {"id": "F2", "figure": "2", "claim": "c", "value": -12.34, "low": -13.1, "high": -11.2,
         "verdict": "not reproduced", "p": 0.04, "threshold": "> 5", "controls": {EVIL: twin}, "tau": 5.0,
         "paper_low": 20.0, "paper_high": 40.0, "paper_unit": EVIL, "paper_of": EVIL, "here": 31.41,
         "substitution": f"direction only: {EVIL}"},
        {"id": "F2b", "figure": "2", "claim": "d", "value": 0.5, "low": 0.4, "high": 0.6,
         "verdict": "fragile", "p": 0.0002, "because": f"reproduced, but not with {EVIL}"},
        {"id": "F3", "figure": "notes", "claim": "e", "value": 0.0, "low": -0.01, "high": 0.01,
         "verdict": "inconclusive", "p": 1.0, "paper": "x", "because": "p is 1 after adjusting"},
        {"id": "F3b", "figure": "notes", "claim": "f", "value": 1.5, "low": 1.4, "high": 1.6,
         "verdict": "architectural", "p": 1e-6},
        {"id": "F 4/<b>", "figure": "12", "claim": "g", "value": nan, "low": nan, "high": nan,
         "verdict": "not measured", "p": nan, "paper": nan, "threshold": "< 1",
         "reason": "needs <b>data</b>"},
    ]  # fmt: skip
    table = pd.DataFrame([usual | row for row in rows])
    runs = {"vit": [[EVIL, "vit:1", "vit:2"]], "cnn": [["resnet"]], "mixer": [[EVIL + " 2"]]}
    table.attrs = {"parts": runs, "models": {EVIL: "38a303d68e47a22a", "resnet": "baff424265921f78"}}
    return table


def picture(folder: Path, name: str = "a.png") -> Path:
    Image.new("RGB", (60, 40), "navy").save(folder / name)
    return folder / name


def places(folder: Path) -> list[Place]:
    maps = [
        Panel((model, other), {EVIL: similarities(model, other), "coarse": coarse(model, other)})
        for model, other in (("vit", "vit"), ("vit", "resnet"))
    ]
    drawn = Place(
        "1", EVIL, EVIL, f"shows {EVIL}", picture(folder), EVIL, command="python -m a '<b>'", panels=maps,
        images=f"8 images of {EVIL}", warnings=[f"beware of {EVIL}"],
    )  # fmt: skip
    bare = Place("2", "two", "claim", "shows", picture(folder, "../b.png"), "two bars")
    absent = Place(
        "12", "twelve", "claim", "shows", None, "", missing="Needs <b>JFT-300M</b>, which nobody has."
    )
    return [drawn, bare, absent, replace(bare, id="notes")]


DIFFERENCES = [
    Difference(
        1,
        "Layers are alike",
        EVIL,
        "1",
        (Reason("They see all", "the notes", "a <i>", ("F1b",), "reproduced"),),
        ("F1a", "F2"),
        "reproduced",
    ),
    Difference(2, "Global from the start", "text", "1", (), ("F 4/<b>",), "partly <b>"),
    Difference(3, "Skips matter", "text", "1", (), ("F1b", "F2b", "F3", "F3b"), "partly reproduced"),
]
PROVENANCE = {
    "command": "python -m vit_analysis.figures --out '<b>'",
    "models": {EVIL: "38a303d68e47a22a", "resnet": "baff424265921f78"},
    "images": {"source": "lab", "root": None, "count": 128},
    "versions": {"torch": "2.6"},
}
