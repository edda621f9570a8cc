import os
from dataclasses import fields
from typing import Annotated, Any

import pytest
import tyro

from vit_analysis.lab import zoo
from vit_analysis.study.parts import LAB_PARTS, Parts, parts_wanted

PARTS = Parts(
    vit=(("a", "a:1", "a:2"), "b"), cnn=(("r", "r:1"),), gap=("g", "h"), less_data=("s", "a"), mixer="x"
)


def read(*words: str) -> Parts:
    """The parts of a command line."""

    def main(*, parts: Annotated[Parts, tyro.conf.arg(name="")] = Parts()) -> Parts:  # noqa: B008  (frozen)
        return parts

    return tyro.cli(main, args=words)


def test_names_are_the_first_run_of_every_model_and_each_stands_once():
    assert PARTS.names("vit") == ["a", "b"]
    assert PARTS.names("gap", "mixer", "tuned") == ["g", "x"]
    assert PARTS.names() == ["a", "b", "r", "g", "s", "x"]  # a plays two parts
    assert Parts().names() == []


def test_runs_are_all_of_them_each_once():
    assert PARTS.runs("vit") == ["a", "a:1", "a:2", "b"]
    assert PARTS.runs("less_data", "vit") == ["s", "a", "a:1", "a:2", "b"]
    assert PARTS.runs() == ["a", "a:1", "a:2", "b", "r", "r:1", "g", "h", "s", "x"]


def test_members_are_models_with_their_runs_also_of_a_part_that_one_model_plays():
    assert PARTS.members("vit") == [("a", "a:1", "a:2"), ("b",)]
    assert PARTS.members("gap") == [("g", "h")]
    assert PARTS.members("mixer", "tuned") == [("x",)]
    assert PARTS.members() == [
        *[("a", "a:1", "a:2"), ("b",), ("r", "r:1"), ("g", "h"), ("s",), ("a",)],
        ("x",),
    ]


def test_parts_by_run_have_the_same_run_of_every_model_and_the_first_of_one_without_it():
    first, second, third = PARTS.each_run()
    assert first == Parts(vit=("a", "b"), cnn=("r",), gap="g", less_data=("s", "a"), mixer="x")
    assert second == Parts(vit=("a:1", "b"), cnn=("r:1",), gap="h", less_data=("s", "a"), mixer="x")
    assert third == Parts(vit=("a:2", "b"), cnn=("r",), gap="g", less_data=("s", "a"), mixer="x")
    single = Parts(vit=("a",), mixer="x")
    assert single.each_run() == [single]
    assert Parts().each_run() == [Parts()]


def test_other_names_leave_the_parts_and_their_runs_as_they_are():
    changed = PARTS.change(str.upper)
    for part in (field.name for field in fields(Parts)):
        assert changed.members(part) == [tuple(map(str.upper, runs)) for runs in PARTS.members(part)]


def test_a_run_without_a_name_ends_the_runs_of_its_model_and_a_model_without_a_first_run_is_left_out():
    left = PARTS.change(lambda name: None if name in ("a:1", "b", "g", "x") else name)
    assert left.members("vit") == [("a",)]
    assert left.gap is None
    assert left.mixer is None
    nothing = PARTS.change(lambda _: None)
    assert nothing == Parts()


def test_twins_are_of_the_first_run_of_the_first_transformer_and_cnn():
    assert PARTS.twins() == ["a@random", "r@random"]
    assert Parts(vit=("a", "b")).twins() == ["a@random"]
    assert Parts(cnn=(("r@random", "r"),), gap="g").twins() == ["r@random"]
    assert Parts(gap="g").twins() == []


def test_runs_stand_together_on_a_command_line():
    own = read("--vit", "a+a:1", "b", "--gap", "g+h", "--mixer", "x", "--less-data", "s+s:1+s:2")
    assert own == Parts(vit=(("a", "a:1"), "b"), gap=("g", "h"), mixer="x", less_data=(("s", "s:1", "s:2"),))
    assert read() == Parts()


def test_runs_may_be_checkpoints_of_the_same_model():
    assert read("--vit", "a@one.pt+a@two.pt").members("vit") == [("a@one.pt", "a@two.pt")]


def test_a_file_with_a_plus_sign_in_its_path_is_one_name(tmp_path):
    file = tmp_path / "one+two.safetensors"
    assert read("--gap", f"a@{file}").members("gap") != [(f"a@{file}",)]
    file.touch()
    own = read("--vit", f"a@{file}", "b+c", "--gap", f"a@{file}")
    assert own.members("vit") == [(f"a@{file}",), ("b", "c")]
    assert own.gap == f"a@{file}"


def test_a_file_at_home_with_a_plus_sign_in_its_path_is_one_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    (tmp_path / "one+two.pt").touch()
    assert read("--gap", "a@~/one+two.pt").gap == "a@~/one+two.pt"


def test_help_says_that_runs_stand_together(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    told = capsys.readouterr().out
    assert "--gap {None}|NAME[+NAME...]" in told
    assert "--vit [NAME[+NAME...]" in told


def test_every_part_is_told_with_its_flag():
    for part in (field.name for field in fields(Parts)):
        assert f"(--{part.replace('_', '-')})" in parts_wanted(part)


DIFFERENT = {
    "vit": [set()],
    "gap": [{"pool"}],
    "less_data": [{"distinct"}] * 2,
    "other_seed": [{"seed"}],
    "no_skip": [{"no_skip"}] * 3,
    "local": [{"reach"}],
    "cnn": [set()],
    "cnn_less_data": [{"distinct"}],
    "flat": [{"architecture"}],
}
"""By part of the lab's models: what its recipes do otherwise than that of the first Vision Transformer or CNN."""


def facts(name: str) -> dict[str, Any]:
    own = zoo.recipe(name)
    return {
        **{field.name: getattr(own, field.name) for field in fields(own) if field.name != "config"},
        **own.config,
    }


@pytest.mark.parametrize("part", DIFFERENT)
def test_a_model_of_the_lab_is_made_otherwise_only_in_what_its_part_says(part):
    first = facts("lab/resnet" if part in ("cnn", "cnn_less_data", "flat") else "lab/vit")
    found = [facts(name) for name in LAB_PARTS.names(part)]
    assert [{key for key in {*own, *first} if own.get(key) != first.get(key)} for own in found] == DIFFERENT[
        part
    ]


def test_parts_of_the_lab_stand_in_the_order_that_parts_are_told_in():
    """From the least data on, and from the first block without skip connections to the last."""
    scenes = [facts(name)["distinct"] for name in LAB_PARTS.names("less_data")]
    assert scenes == sorted(scenes)
    depth, missing = (
        facts("lab/vit")["depth"],
        [facts(name)["no_skip"] for name in LAB_PARTS.names("no_skip")],
    )
    assert missing == [0, depth // 2, depth - 1]


def test_in_no_run_of_the_lab_is_a_model_its_own_ceiling():
    for run in LAB_PARTS.each_run():
        assert run.names("vit")[0] not in run.names("other_seed")


@pytest.mark.parametrize("missing", ["lab/vit:1", "lab/vit:2"])
def test_nor_is_it_where_a_run_was_not_trained(missing):
    there = LAB_PARTS.change(lambda name: None if name == missing else name)
    for run in there.each_run():
        assert run.names("vit")[0] not in run.names("other_seed")
