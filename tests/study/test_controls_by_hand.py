"""Every control, table by table, against what it is said to put in the place of what; all else stays as it was.

Every table and control has values of its own, and other ones without each group, so that a column, a control, a table or an
order that is another one shows. A control without a case is an error.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from made import evidence

from vit_analysis.study.controls import CONTROLS, VIEWS, Control
from vit_analysis.study.evidence import Evidence
from vit_analysis.study.parts import Parts

PARTS = Parts(vit=("v", "w"), cnn=("r", "q"), gap="g", local="l")
# By control of similarity: the rows of the table of controls that are in the place of all others.
ROWS = {"blocks": "all"} | {name: name for name in VIEWS if name != "all"}
OTHERS = ("localization", "soft_nearest_neighbor")
# By other control: the table, the column, and what is in its place.
INSTEAD = {
    "raw": ("attention_distance", "distance_px", lambda own, end: own[f"raw_distance_px{end}"]),
    "median": ("skip", "norm_ratio", lambda own, end: own[f"median{end}"]),
    "mean norms": ("skip", "norm_ratio", lambda own, end: own[f"skip_norm{end}"] / own[f"long_norm{end}"]),
}


def table(seed: int, *columns: str, **more: object) -> pd.DataFrame:
    """Two rows of numbers that no other table has."""
    generator = np.random.default_rng(seed)
    made = pd.DataFrame({"model": ["v", "r"], **more})
    for name in columns:
        made[name] = 1 + generator.random(2)
        made[f"{name}_without"] = list(1 + generator.random((2, 3)))
    made.attrs = {"images": {"source": "a", "batch": 160}, "made": seed}
    return made


def controls() -> pd.DataFrame:
    parts = [table(100 + place, "cka", control=name) for place, name in enumerate(VIEWS)]
    whole = pd.concat(parts, ignore_index=True)
    whole.attrs = {"images": {"source": "a", "batch": 160}}
    return whole


def whole(**more: pd.DataFrame) -> Evidence:
    tables = {
        "cka": table(1, "cka"),
        "localization": table(2, "cka"),
        "skip": table(3, "norm_ratio", "median", "skip_norm", "long_norm"),
        "soft_nearest_neighbor": table(4, "loss"),
        "attention_distance": table(5, "distance_px", "raw_distance_px"),
        "probe": table(6, "accuracy"),
    }
    return evidence(PARTS, **tables, cka_controls=controls(), **more)


def same(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    return list(one) == list(other) and all(
        np.array_equal(np.stack(one[name].to_list()), np.stack(other[name].to_list())) for name in one
    )


def applied(control: Control, own: Evidence) -> dict[str, pd.DataFrame]:
    changed = control.apply(own)
    assert changed is not None
    return changed.study.tables


def test_every_control_has_a_case():
    assert {*ROWS, *INSTEAD, "untrained"} == {control.name for control in CONTROLS}


@pytest.mark.parametrize("control", [one for one in CONTROLS if one.name in ROWS], ids=lambda one: one.name)
def test_a_control_of_similarity_puts_its_rows_in_the_place_of_both_tables(control):
    own = whole()
    found, measured = applied(control, own), controls()
    expected = measured[measured["control"] == ROWS[control.name]].assign(control="all")
    for name in ("cka", "cka_controls"):
        assert same(found[name], expected)
        assert (
            found[name].attrs["images"] == own.study.tables["cka"].attrs["images"]
        )  # or it would lose no group
    assert set(found) == set(own.study.tables) - set(OTHERS)  # what was not measured under it is not there
    for name in set(found) - {"cka", "cka_controls"}:
        assert found[name] is own.study.tables[name]
    changed = control.apply(own)
    assert changed is not None
    assert changed.parts == PARTS


@pytest.mark.parametrize("control", [one for one in CONTROLS if one.name in ROWS], ids=lambda one: one.name)
@pytest.mark.parametrize("name", OTHERS)
def test_and_the_table_that_was_measured_under_it_in_the_place_of_that_of_the_same_kind(control, name):
    other = table(9, "cka" if name == "localization" else "loss")
    found = applied(control, whole(**{f"{name}_{control.name}": other}))
    assert found[name] is other
    assert not {*OTHERS} - {name} & set(found) or set(OTHERS) & set(found) == {name}


@pytest.mark.parametrize(
    "control", [one for one in CONTROLS if one.name in INSTEAD], ids=lambda one: one.name
)
def test_a_column_and_its_values_without_each_group_are_both_others_and_nothing_else_is(control):
    own = whole()
    kind, column, other = INSTEAD[control.name]
    before, found = own.study.tables[kind], applied(control, own)
    for ending in ("", "_without"):
        now, said = found[kind][column + ending], other(before, ending)
        np.testing.assert_allclose(np.stack(now.to_list()), np.stack(said.to_list()))
        assert not np.allclose(np.stack(now.to_list()), np.stack(before[column + ending].to_list()))
    rest = [name for name in before if not str(name).startswith(column)]
    assert same(found[kind][rest], before[rest])
    assert found[kind].attrs == before.attrs
    assert all(found[name] is own.study.tables[name] for name in own.study.tables if name != kind)


@pytest.mark.parametrize(
    ("vit", "cnn", "twins"),
    [
        (("v", "w"), ("r", "q"), (("v@random",), ("r@random",))),
        (("v", "w"), (), (("v@random",), ())),
        ((), ("r", "q"), ((), ("r@random",))),
    ],
)
def test_untrained_twins_play_the_parts_of_the_first_of_each_and_tables_stay(vit, cnn, twins):
    (control,) = (one for one in CONTROLS if one.name == "untrained")
    own = whole()
    own.parts = replace(PARTS, vit=vit, cnn=cnn)
    changed = control.apply(own)
    assert changed is not None
    assert (changed.parts.vit, changed.parts.cnn) == twins
    assert (changed.parts.gap, changed.parts.local) == ("g", "l")
    assert changed.study.tables == own.study.tables


@pytest.mark.parametrize(
    "control", [one for one in CONTROLS if one.name != "untrained"], ids=lambda one: one.name
)
def test_where_nothing_was_measured_for_it_there_is_nothing_in_its_place(control):
    assert control.apply(evidence(PARTS, probe=table(6, "accuracy"))) is None


@pytest.mark.parametrize(("batch", "there"), [(None, True), (10, False), (11, True), (12, True)])
def test_neighbours_are_asked_of_batches_that_have_as_many(batch, there, monkeypatch):
    from vit_analysis.study import controls as module

    monkeypatch.setattr(module, "NEAR", 11)
    made = controls()
    made.attrs = {"images": {"source": "a"} | ({"batch": batch} if batch else {})}
    own = evidence(PARTS, cka=table(1, "cka"), cka_controls=made)
    of = {one.name: one for one in CONTROLS}
    assert (of["nearest"].apply(own) is not None) == there
    assert (of["nearest normalized"].apply(own) is not None) == there
    assert of["rank"].apply(own) is not None
