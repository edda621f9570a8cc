"""Every drawing: which picture it is, of which models and tables, in which order; nothing is drawn here.

Every table has rows of every model, so that a part, a table, a branch or a picture that is another one shows. A drawing
without a case is an error.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import fields
from types import ModuleType
from typing import Any, NamedTuple

import pandas as pd
import pytest
from made import rows

from vit_analysis import plot
from vit_analysis.spelling import Refusal
from vit_analysis.study import draw, drawings, needs
from vit_analysis.study.evidence import Evidence, Study
from vit_analysis.study.parts import Parts

PARTS = Parts(
    vit=(("v", "again"), "w"),
    cnn=("r", "s"),
    gap="g",
    less_data=("few", "more"),
    cnn_less_data=("r_few",),
    other_seed="seed",
    no_skip=("u", "y"),
    mixer="x",
    tuned="t",
    local="l",
    flat="f",
)
PARTED = [field.name for field in fields(Parts)]
MODELS = ["nobody", *reversed(PARTS.runs()), *PARTS.twins()]
TABLES = sorted({name for one in drawings.DRAWINGS for name in one.tables})
MINUS = "soft_nearest_neighbor_normalized"
V, R = ["v", "v:1", "w"], ["r", "s"]


class Drawn(NamedTuple):
    """A picture, the tables that it was given, and the models in each of them, in order; and how."""

    picture: str
    tables: list[str]
    models: list[str]
    how: dict[str, Any]


def squares(*names: str) -> dict[str, Any]:
    """Each with itself."""
    return {"panels": [(name, name) for name in names]}


def of_cka(**how: Any) -> Drawn:
    return Drawn("heatmaps", ["cka"], MODELS, how)


def of(picture: str, models: list[str], table: str = "", **how: Any) -> Drawn:
    return Drawn(picture, [table or picture], models, how)


def of_fields(models: list[str], branch: str, steps: int | None) -> Drawn:
    return of("fields", models, "receptive_field_maps", branch=branch, steps=steps)


def of_blocks(*names: str, ceiling: str = "") -> Drawn:
    """Of runs of these models there is the second of v with the first of them."""
    pairs, top = [("v", name) for name in names], ("v", ceiling) if ceiling else None
    further = {pair: [("again", pair[1])] for pair in (*pairs, *([top] if top else []))}
    return of("corresponding", MODELS, "cka_controls", pairs=pairs, ceiling=top, further=further)


CASES = {
    "1": of_cka(**squares("v", "w", "r", "s")),
    "1 untrained": of_cka(**squares("v@random", "r@random")),
    "1 local": of_cka(**squares("v", "l", "r")),
    "2": of_cka(panels=[("v", "r")]),
    "3": of("attention_distance", V),
    "4": of("attention_distance", ["few", "more"]),
    "5": of("head_subsets", MODELS),
    "6": of_fields(["v", "w", "r", "s"], "residual", 5),
    "7": of("norm_ratios", [*V, *R], "skip"),
    "8": of("without_skips", MODELS, "cka", intact="v", changed={"u": "block of u", "y": "block of y"}),
    "8 accuracy": of("lesions", ["u", "y"], "lesions_trained"),
    "8 lesions": of("lesions", [*V, *R]),
    "9": of("localization", [*V, *R]),
    "9 flat": of("localization", [*V, *R, "f"]),
    "10": of("localization", [*V, "g"]),
    "11": of("probe_tokens", [*V, "g", *R]),
    "12": of_blocks("few", "more", ceiling="seed"),
    "13a": of("probe", [*V, "few", "more", *R, "r_few"], groups=[["v", "few", "more"], ["r", "r_few"]]),
    "13b": of("probe", [*V, *R], groups=[["v", "r", "s", "w"]]),
    "notes": Drawn("soft_nearest_neighbor", ["soft_nearest_neighbor", MINUS], [*V, *R], {}),
    "B.1": of_cka(panels=[("w", "w"), ("v", "s"), ("w", "r"), ("w", "s")]),
    "C.1": of_fields(["v"], "residual", None),
    "C.2": of_fields(["r"], "residual", None),
    "C.3": of_fields(["w"], "residual", None),
    "C.4": of_fields(["v", "w", "r", "s"], "long", None),
    "C.5": of("attention_distance", [*V, "few", "more"]),
    "C.6": of("attention_distance", [*V, "t"]),
    "D.1": Drawn("localization", ["localization", "localization_penultimate"], ["w"], {}),
    "D.2": of("localization", V, "localization_penultimate"),
    "D.3": of("localization", R, "localization_units"),
    "D.4": of("accuracy_maps", [*V, "g", *R], "probe_tokens"),
    "E.1": of("token_norm_ratios", V, "skip"),
    "E.2": of("cosines", [*V, *R], "skip"),
    "F": of("probe", [*V, *R], note="texture and position"),
    "G.1": of_blocks("t"),
    "G.2": of_cka(panels=[("v", "w")], note=""),
    "H.1": of_cka(**squares("x")),
    "H.2": of_cka(panels=[("x", "v"), ("x", "r")]),
    "tokens": of("tokens", ["v", "v@random"]),
    "frequency": of("frequency", ["v", "w", "r", "s", "v@random", "r@random"]),
    "entropy": of("attention_spread", ["v", "v@random"], "attention_distance"),
    "squares": of("squares", ["v", "w", "r", "s"], "receptive_field"),
}
TASKS = {"13a": ["shape"], "13b": ["shape"], "F": ["texture", "position"]}
STEPS = {"C.4": ["attention 1", "unit 1"]}


def table(name: str) -> pd.DataFrame:
    """Rows of every model; a column says which table it is."""
    if name == "cka_controls":
        pairs = [(model, other) for model in MODELS for other in MODELS]
        return rows(("control", "model", "other_model", "of"), *(("all", *pair, name) for pair in pairs))
    found = [
        (model, target, step, f"block of {model}", name)
        for model in MODELS
        for target, step in (("shape", "attention 1"), ("texture", "MLP 1"), ("position", "unit 1"))
    ]
    return rows(("model", "target", "step", "block", "of"), *found)


def recorder(name: str) -> Callable[..., tuple[Drawn, pd.DataFrame]]:
    def picture(*tables: pd.DataFrame, **how: Any) -> tuple[Drawn, pd.DataFrame]:
        whole = pd.concat(tables)
        models = [list(dict.fromkeys(own["model"])) for own in tables]
        assert all(own == models[0] for own in models)
        if "note" in how:
            how["note"] = how["note"].rpartition(": ")[2].removesuffix(" of the images of figure 13.")
        return Drawn(name, list(dict.fromkeys(whole["of"])), models[0], how), whole

    return picture


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The list of drawings, made anew of pictures that only say what they were given."""
    for name in {case.picture for case in CASES.values()}:
        monkeypatch.setattr(plot, name, recorder(name))
    spec = importlib.util.spec_from_file_location("recorded_drawings", drawings.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "recorded_drawings", module)
    spec.loader.exec_module(module)
    return module


def test_every_drawing_has_a_case():
    assert list(CASES) == [own.id for own in drawings.DRAWINGS]


@pytest.mark.parametrize("id", CASES)
def test_a_drawing_is_its_picture_of_its_models(id, recorded):
    (own,) = (one for one in recorded.DRAWINGS if one.id == id)
    tables = {name: table(name) for name in (*TABLES, MINUS)}
    evidence = Evidence(Study(PARTS, tables, {}))
    found, whole = own.draw(evidence)
    assert found == CASES[id]
    assert {*found.tables} - {*own.tables} <= {MINUS}
    if id in TASKS:
        assert list(dict.fromkeys(whole["target"])) == TASKS[id]
    elif "step" in whole:
        assert set(whole["step"]) == {*STEPS.get(id, ("attention 1", "MLP 1", "unit 1"))}
    if own.panels is not None and id != "8":
        assert own.panels(evidence) == found.how["panels"]


@pytest.mark.parametrize("id", CASES)
def test_a_drawing_needs_the_parts_that_it_shows_and_no_others(id):
    (own,) = (one for one in drawings.DRAWINGS if one.id == id)
    needed, case = needs.of([own], PARTS), CASES[id]
    shown = (
        {*case.models}
        if case.models != MODELS
        else {name for pair in case.how.get("panels", ()) for name in pair}
    )
    asked = {part for part in PARTED if {name.partition("@")[0] for name in shown} & {*PARTS.names(part)}}
    twins = any(name.endswith("@random") for name in shown)
    asked |= {"vit", "cnn"} if twins or id == "5" else set()  # twins are of the first of both
    asked |= {"vit", "no_skip"} if id in ("8", "8 accuracy") else set()  # beside the intact one
    everything = "cka_controls" in own.tables  # depends on which models there are
    assert {*needed.parts.names()} == {*(PARTS.names() if everything else PARTS.names(*asked))}
    assert needed.twins == (everything or twins)


def test_drawings_together_need_what_each_needs():
    chosen = [one for one in drawings.DRAWINGS if one.id in ("1 untrained", "10", "H.1")]
    assert needs.of(chosen, PARTS).parts.names() == ["v", "w", "r", "s", "g", "x"]
    assert needs.of(chosen, PARTS).twins
    assert not needs.of(chosen[1:], PARTS).twins
    all_and_one = [one for one in drawings.DRAWINGS if one.id in ("12", "H.1")]
    assert needs.of(all_and_one, PARTS) == needs.Needed(PARTS, twins=True)
    assert needs.of(chosen[1:], PARTS).parts.members("gap", "vit") == [
        ("g",),
        ("v",),
        ("w",),
    ]  # first runs alone


def test_pairs_of_one_transformer_are_those_with_average_pooling_instead():
    one = Evidence(Study(Parts(vit=("v",), cnn=("r",), gap=("g", "h")), {}, {}))
    assert draw.two_vits(one) == [("v", "g")]
    three = Evidence(Study(Parts(vit=("a", "b", "c")), {}, {}))
    assert draw.two_vits(three) == [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize("made", [draw.reach, lambda *parts: draw.places("localization", *parts)])
def test_what_a_drawing_is_about_has_to_be_there(made):
    of_vit = Evidence(Study(Parts(vit=("v",)), {name: table(name) for name in TABLES}, {}))
    for last, said in (("gap", "average pooling"), ("tuned", "fine-tuned"), ("less_data", "less data")):
        with pytest.raises(Refusal, match=said):
            made("vit", last)(of_vit)
