"""Every table of a study: which models, images, pairs and settings it is planned of; nothing is loaded, run or read here.

Models that play several parts, further training runs and untrained twins are all there, so that a part or a run that is
another one, or is left out, shows. A table without a case is an error.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pandas as pd
import pytest
from torch import nn

from vit_analysis.images import Images, Preprocessing
from vit_analysis.models import Model
from vit_analysis.probe import Shots
from vit_analysis.reading.measure import Measurement
from vit_analysis.spelling import Refusal
from vit_analysis.study import passes, plans
from vit_analysis.study.controls import VIEWS
from vit_analysis.study.evidence import Study
from vit_analysis.study.loaded import Cast
from vit_analysis.study.parts import Parts

PARTS = Parts(
    vit=(("v", "v:1"), "w"),
    cnn=(("r", "r:1"),),
    gap=("g", "g:1"),
    less_data=(("few", "few:1"), "more"),
    cnn_less_data=("r_few",),
    other_seed="seed",
    no_skip=("u", ("y", "y:1")),
    mixer="x",
    tuned="t",
    local=("l", "l:1"),
    flat=("f", "f:1"),
)
UNITS = ["a.0", "a.1", "a.2", "b.0", "b.1"]
UNCHOSEN, OWN, TRAIN, LABELLED = (Images(limit=40, batch=20, seed=seed) for seed in range(4))
V, R, TWINS = ["v", "v:1", "w"], ["r", "r:1"], ["v@random", "r@random"]
MAIN = [*V, *R]


class Planned(NamedTuple):
    """A function of an analysis, the names of models that it was given, the images, and how."""

    function: str
    models: list[str]
    images: Any
    how: dict[str, Any]


def of(function: str, models: list[str], images: Any = OWN, **how: Any) -> Planned:
    return Planned(function, models, images, how)


def itself(*names: str) -> set[tuple[str, str]]:
    return {(name, name) for name in names}


LAYERED = [*MAIN, "l", "l:1", "g", "u", "y", "x", *TWINS]
PAIRS = {
    *itself(*LAYERED),
    *{
        ("v", "r"),
        ("w", "r"),
        ("v:1", "r:1"),
        ("w", "r:1"),
    },  # the second run of one with the second of the other
    *{("v", "w"), ("v", "g"), ("w", "g"), ("v@random", "r@random")},
    *{("x", "v"), ("x", "w"), ("x", "r"), ("x", "v:1"), ("x", "r:1")},
}
COMPARED = {
    *itself("v", "w", "r", "l", *TWINS),
    *{("v", "r"), ("w", "r"), ("x", "v"), ("x", "w"), ("x", "r")},
    *{("v", "few"), ("v", "more"), ("v", "seed"), ("v", "t")},
}
AGAIN = {("v:1", "few:1"), ("v:1", "more"), ("v:1", "seed"), ("v:1", "t")}
SIMILAR = ["v", "w", "r", "few", "more", "seed", "x", "t", "l", *TWINS]
CASES: dict[str, list[Planned]] = {
    "cka": [of("cka.plan", LAYERED, pairs=PAIRS)],
    "cka_controls": [
        of("cka.plan_controls", SIMILAR, views={*VIEWS}, twins=TWINS, pairs=COMPARED),
        of("cka.plan_controls", ["v:1", "few:1", "more", "seed", "t"], views={"all"}, pairs=AGAIN),
    ],
    "attention_distance": [
        of("attention_distance.plan", [*V, "g", "g:1", "few", "few:1", "more", "t", "v@random"])
    ],
    "head_subsets": [of("attention_distance.plan_subsets", [vit, "r"]) for vit in ("v", "w")],
    "skip": [of("skip.plan", [*MAIN, *TWINS], first=50)],
    "receptive_field": [
        of("receptive_field.plan_with_maps", [*MAIN, *TWINS], "first 32 in eights", channels=4)
    ],
    "receptive_field_maps": [
        of("receptive_field.plan_with_maps", [*MAIN, *TWINS], "first 32 in eights", channels=4)
    ],
    "lesions": [of("lesions.plan", [name], "mixed") for name in MAIN],
    "lesions_trained": [
        of("lesions.plan_trained", ["v", "u", "y"]),
        of("lesions.plan_trained", ["v:1", "y:1"]),
    ],
    "localization": [of("localization.plan", [*V, "g", "g:1", *R, "f", "f:1", *TWINS])],
    "localization_penultimate": [of("localization.plan", ["v", "w", "g", "r"], layers="penultimate")],
    "localization_units": [of("localization.plan", ["r"], layers=["a.2", "b.0"])],
    "localization_normalized": [
        of("localization.plan", ["v", "w", "g", "r", "f", *TWINS], tokens="normalized")
    ],
    "probe": [
        of(
            "probe.plan",
            [*V, "g", "g:1", "few", "few:1", "more", *R, "r_few"],
            LABELLED,
            shots=Shots(TRAIN, 20, 5),
        )
    ],
    "probe_tokens": [
        of(
            "probe.plan",
            [*V, "g", "g:1", *R],
            LABELLED,
            shots=Shots(TRAIN, 10, 3),
            tokens=["cls", "mean", "mean_spatial", "each"],
        )
    ],
    "soft_nearest_neighbor": [of("soft_nearest_neighbor.plan", MAIN, LABELLED)],
    "soft_nearest_neighbor_normalized": [
        of("soft_nearest_neighbor.plan", MAIN, LABELLED, tokens="normalized")
    ],
    "tokens": [of("tokens.plan", [*V, "v@random"])],
    "frequency": [of("frequency.plan", [*MAIN, *TWINS])],
}
FUNCTIONS = sorted({one.function for own in CASES.values() for one in own})


def model(name: str) -> Model:
    return Model(name, nn.Identity(), Preprocessing(), name)


def cast(parts: Parts = PARTS) -> Cast:
    return Cast(parts, {name: model(name) for name in (*parts.runs(), *parts.twins())})


def recorder(function: str) -> Callable[..., Any]:
    """A function that returns what it was given, twice where it plans two tables of one pass."""

    def plan(*given: Any, **how: Any) -> Any:
        found: list[str] = []
        images: Any = None
        for one in given:
            if isinstance(one, Images):
                images = one
            elif isinstance(one, Shots):
                how["shots"] = one
            elif isinstance(one, dict):
                how["views"] = {*one}
            else:
                found += [own.name for own in (one if isinstance(one, list) else [one])]
        if "pairs" in how:
            assert len({*how["pairs"]}) == len(how["pairs"])
            how["pairs"] = {*how["pairs"]}
        if images not in (OWN, LABELLED, "mixed"):
            assert (images.order, images.batch) == (UNCHOSEN.order[:32], 8)
            images = "first 32 in eights"
        planned = Planned(function, found, images, how)
        return (planned, planned) if function.endswith("with_maps") else planned

    return plan


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in FUNCTIONS:
        analysis, name = function.split(".")
        monkeypatch.setattr(getattr(plans, analysis), name, recorder(function))
    monkeypatch.setattr(plans.lesions, "plan", lambda own, images: of("lesions.plan", [own.name], images))
    monkeypatch.setattr(plans.layers, "blocks", lambda _: UNITS)

    def mixed(images: Images, count: int) -> str:
        assert (images, count) == (OWN, plans.LESIONED)
        return "mixed"

    monkeypatch.setattr(plans, "mixed", mixed)


def planned(table: str, own: Cast, images: Images = OWN, train: Images = TRAIN) -> list[Planned]:
    return plans.by_table(own, UNCHOSEN, images, train, LABELLED)[table]()


def test_every_table_has_a_case():
    assert list(CASES) == list(plans.TABLES)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("table", CASES)
def test_a_table_is_planned_of_its_models_images_and_settings(table):
    assert planned(table, cast()) == CASES[table]


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(("batch", "asked"), [(15, False), (16, True)])
def test_neighbours_are_measured_where_a_batch_has_room_for_them(batch, asked, monkeypatch):
    monkeypatch.setattr(plans.cka, "plan_controls", lambda _models, _images, views, **_: {*views})
    first, _ = planned("cka_controls", cast(), Images(limit=40, batch=batch))
    assert ("nearest" in first, "nearest normalized" in first) == (asked, asked)
    assert "rank" in first


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize(
    ("table", "parts", "said"),
    [
        ("attention_distance", Parts(cnn=("r",)), "needs a Vision Transformer"),
        ("tokens", Parts(cnn=("r",)), "needs a Vision Transformer"),
        ("head_subsets", Parts(vit=("v",)), "needs a Vision Transformer .* and a CNN"),
        ("localization_units", Parts(vit=("v",)), "needs a CNN"),
        ("lesions_trained", Parts(vit=("v",)), "without the skip connections"),
        ("lesions_trained", Parts(no_skip=("u",)), "needs a Vision Transformer"),
        ("cka_controls", Parts(), "needs a model"),
        ("lesions", Parts(), "needs a model with a classifier"),
    ],
)
def test_what_a_table_needs_is_said(table, parts, said):
    with pytest.raises(Refusal, match=said):
        planned(table, cast(parts))


@pytest.mark.usefixtures("recorded")
def test_lesions_are_of_models_that_answer():
    silent = cast()
    silent.models["w"].module.num_classes = 0
    assert [own.models for own in planned("lesions", silent)] == [["v"], ["v:1"], ["r"], ["r:1"]]


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("table", ["probe", "probe_tokens"])
def test_probes_of_photographs_do_not_learn_from_scenes(table, monkeypatch):
    files = Images(source="nowhere", limit=40)
    monkeypatch.setattr(Images, "order", list(range(40)))
    assert planned(table, cast(), train=files)[0].how["shots"].count == 10
    with pytest.raises(Refusal, match="needs images to learn from"):
        plans.by_table(cast(), UNCHOSEN, OWN, TRAIN, files)[table]()


@pytest.mark.parametrize(
    ("units", "shown"),
    [
        (UNITS, ["a.2", "b.0"]),
        (["a.0", "b.0", "c.0", "c.1"], ["b.0", "c.0"]),  # of an even number the earlier of the middle two
        (["a.0", "a.1", "b.0"], ["a.1", "b.0"]),  # a last stage of one unit
        (["a.0", "a.1"], ["a.0"]),  # the middle one is the first of its stage
        (["stem"], ["stem"]),
    ],
)
def test_the_unit_in_the_middle_and_the_first_of_the_last_stage_are_shown(units, shown, monkeypatch):
    monkeypatch.setattr(plans.layers, "blocks", lambda _: units)
    assert plans._earlier_units(cast().models["r"]) == shown


def test_of_two_tables_of_the_same_sums_whoever_wants_one_gets_both(tmp_path):
    for wanted in (
        ["receptive_field"],
        ["receptive_field_maps"],
        ["receptive_field_maps", "receptive_field"],
    ):
        found = {path.stem for path in passes.files(tmp_path, wanted)}
        assert found == {"receptive_field", "receptive_field_maps"}
    assert [path.name for path in passes.files(tmp_path, ["skip"])] == ["skip.parquet"]
    assert [path.stem for path in passes.files(tmp_path)] == list(plans.TABLES)
    assert passes.files(tmp_path, []) == []


# Tables that are kept ----------------------------------------------------------------------------------------------------


class Plan(Measurement[Any]):
    """What is asked of a plan: its key, of which models and images it is, and whether it can share a pass."""

    def __init__(
        self, *names: str, key: str = "k", shared: str = "s", images: str = "x", alone: bool = False
    ) -> None:
        reading = SimpleNamespace(images=SimpleNamespace(facts=lambda: {"images": images}))
        vars(self).update(names=names, own=key, shared=shared, reading=reading, alone=alone)

    @property
    def sums(self) -> tuple[Any, ...]:
        return (vars(self)["own"],)

    def key(self) -> str:
        return vars(self)["own"]

    def identity(self) -> dict[str, Any]:
        names, shared = vars(self)["names"], vars(self)["shared"]
        return {"shared": shared, "models": dict.fromkeys(names, "1"), "pairs": None}

    def made(self) -> pd.DataFrame:
        names = vars(self)["names"]
        table = pd.DataFrame({"model": list(names), "x": 1.0})
        table.attrs = {"models": dict.fromkeys(names, self.key()), "images": {"source": "a"}}
        return table


def written(out: Path, plan: Plan) -> set[str]:
    passes._write(plan.made(), out, "t", [plan])
    return {path.name for path in out.iterdir()}


def kept(out: Path, plan: Plan, *, whole: bool) -> list[str] | None:
    """The models of the table that is kept; None where there is none."""
    found = passes._kept(out, "t", [plan], whole=whole)
    return None if found is None else found["model"].tolist()


def test_a_table_is_kept_by_its_key_and_one_of_more_models_serves_a_part_of_the_study(tmp_path):
    both, one, other = Plan("a", "b"), Plan("a", key="l"), Plan("a", key="m", shared="o")
    assert kept(tmp_path, both, whole=True) is None
    assert written(tmp_path, both) == {"t.parquet"}
    for plan, of_study, of_part in (
        (both, ["a", "b"], ["a", "b"]),
        (one, None, ["a", "b"]),
        (other, None, None),
        (Plan("a", "c", key="n"), None, None),
        (Plan("x", key="k"), ["a", "b"], ["a", "b"]),
    ):
        assert kept(tmp_path, plan, whole=True) == of_study
        assert kept(tmp_path, plan, whole=False) == of_part


def test_a_table_of_a_few_models_lies_beside_until_more_are_measured(tmp_path):
    written(tmp_path, Plan("a", "b"))
    few = Plan("a", key="m", shared="o")
    assert written(tmp_path, few) == {"t.parquet", "t_of_few.parquet"}
    assert kept(tmp_path, few, whole=False) == ["a"]
    assert kept(tmp_path, few, whole=True) is None
    assert kept(tmp_path, Plan("a", "b"), whole=True) == ["a", "b"]
    again = Plan("a", "b", key="n", shared="o")  # of the same models, which are no fewer
    assert written(tmp_path, again) == {"t.parquet"}
    assert kept(tmp_path, again, whole=True) == ["a", "b"]
    assert kept(tmp_path, Plan("a", "b"), whole=True) is None
    assert written(tmp_path, Plan("c", key="p")) == {"t.parquet"}
    assert kept(tmp_path, Plan("c", key="p"), whole=True) == ["c"]


def test_a_table_in_parts_has_the_rows_and_the_models_of_all_and_a_key_of_all():
    parts = [Plan("a", key="1").made(), Plan("b", "c", key="2").made()]
    whole = passes._joined(parts)
    assert whole["model"].tolist() == ["a", "b", "c"]
    assert whole.index.tolist() == [0, 1, 2]
    assert whole.attrs["models"] == {"a": "1", "b": "2", "c": "2"}
    assert whole.attrs["images"] == {"source": "a"}
    one, other = Plan("a", key="1"), Plan("b", key="2")
    keys = [passes._key(own) for own in ([one], [other], [one, other], [other, one])]
    assert len({*keys}) == 4


def test_tables_of_the_same_images_share_a_pass_but_for_those_that_cannot():
    def plan(key: str, images: str = "x", *, alone: bool = False) -> Plan:
        return Plan("a", key=key, images=images, alone=alone)

    todo = {
        "one": [plan("1")],
        "two": [plan("2"), plan("3")],
        "other": [plan("4", "y")],
        "alone": [plan("5", alone=True), plan("6", alone=True)],
        "same": [plan("5", alone=True), plan("6", alone=True)],
        "single": [plan("5", alone=True)],
    }
    groups = passes._passes(todo)
    assert [list(group) for group in groups] == [["one", "two"], ["other"], ["alone", "same"], ["single"]]
    split = [[list(one) for one in passes._split(group)] for group in groups]
    assert split == [
        [["one 0", "two 0", "two 1"]],
        [["other 0"]],
        [["alone 0", "same 0"], ["alone 1", "same 1"]],
        [["single 0"]],
    ]


@pytest.mark.parametrize("said", [{}, {"twins": True}, {"twins": False}])
def test_twins_are_loaded_of_the_first_models_and_of_no_other(said):
    parts = Parts(vit=("lab/vit", "lab/vit_gap"), cnn=("lab/resnet", "lab/resnet_flat"), gap="lab/vit_gap")
    loaded, twins = Cast.load(parts, **said).models, {"lab/vit@random", "lab/resnet@random"}
    assert set(loaded) - set(parts.runs()) == (twins if said.get("twins", True) else set())


@pytest.mark.parametrize("said", [{}, {"twins": True}, {"twins": False}])
def test_a_study_has_untrained_twins_unless_it_is_asked_for_none(said, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(Cast, "load", lambda *_, twins: asked.append(twins) or Cast(Parts(), {}))
    monkeypatch.setattr(passes, "run", lambda *_, **__: Study(Parts(), {}, {}))
    passes.of(Parts(), passes.TRAIN, passes.TRAIN, tmp_path, **said)
    assert asked == [said.get("twins", True)]
