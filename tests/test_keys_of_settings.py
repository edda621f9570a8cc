"""Whatever a measurement depends on is in its key: every setting of every plan, every choice of images, models and versions.

A setting without a case here is an error, so that one that is added cannot be forgotten in the key either.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from vit_analysis import attention_distance, cka, lesions, receptive_field, table
from vit_analysis.images import Images, Preprocessing
from vit_analysis.models import Model
from vit_analysis.probe import Shots
from vit_analysis.reading import measure, processes
from vit_analysis.reading.measure import Measurement
from vit_analysis.shell.analyses import ANALYSES
from vit_analysis.study import passes

VIEWS = {"a": cka.View(), "b": cka.View("spatial")}


@cache
def own() -> tiny.Tiny:
    return tiny.made(48, 16)


def plans() -> dict[str, Callable[..., Any]]:
    """Every function that plans a measurement, by its name."""
    found: dict[str, Callable[..., Any]] = {}
    for analysis in ANALYSES:
        for name, function in vars(analysis.module).items():
            if name.startswith("plan") and inspect.isfunction(function):
                found[f"{analysis.name}.{name}"] = function
    return found


def given() -> dict[str, dict[str, Any]]:
    """By plan: what it is given first, for a key to compare with."""
    pair = {"models": own().pair, "images": own().images}
    one = {"model": own().vit, "images": own().images}
    trained = {"intact": own().lab[0], "trained": own().lab[1:], "images": own().lab_images}
    named = {
        "cka.plan_controls": pair | {"views": VIEWS},
        "attention_distance.plan": pair | {"models": own().vit},
        "attention_distance.plan_subsets": {"vit": own().vit, "cnn": own().cnn, "images": own().images},
        "lesions.plan": one,
        "lesions.plan_trained": trained,
        "probe.plan": pair | {"shots": Shots(own().examples, 5, 2)},
        "soft_nearest_neighbor.plan": pair | {"images": replace(own().images, batch=48)},
    }
    return {name: named.get(name, pair) for name in plans()}


def other() -> dict[str, list[Any]]:
    """By plan and setting: other values of it."""
    examples = own().examples
    return {
        "cka.plan.layers": ["blocks"],
        "cka.plan.tokens": ["spatial", "normalized"],
        "cka.plan.measure": ["partial_cka", "rank_cka", "mutual_knn"],
        "cka.plan.pairs": [[("v", "v")], [("v", "r")]],
        "cka.plan_controls.views": [{"a": cka.View()}, VIEWS | {"b": cka.View("normalized")}],
        "cka.plan_controls.layers": ["paper"],
        "cka.plan_controls.twins": [["r"]],
        "cka.plan_controls.pairs": [[("v", "v")]],
        "attention_distance.plan.blocks": [[0], [1]],
        "receptive_field.plan_with_maps.layers": ["blocks"],
        "receptive_field.plan_with_maps.channels": [3, None],
        "skip.plan.first": [3],
        "localization.plan.layers": ["penultimate"],
        "localization.plan.tokens": ["normalized"],
        "probe.plan.shots": [
            Shots(examples, 4, 2),
            Shots(examples, 5, 1),
            Shots(replace(examples, seed=7), 5, 2),
        ],
        "probe.plan.layers": ["paper"],
        "probe.plan.tokens": [("mean",), ("mean", "cls")],
        "soft_nearest_neighbor.plan.layers": ["paper"],
        "soft_nearest_neighbor.plan.tokens": ["normalized"],
        "soft_nearest_neighbor.plan.target": [],  # these images have one; another is of the next test
        "tokens.plan.layers": ["paper"],
        "frequency.plan.layers": ["paper"],
    }


def keys(planned: Measurement[Any] | tuple[Measurement[Any], ...]) -> tuple[str, ...]:
    several = planned if isinstance(planned, tuple) else (planned,)
    return tuple(one.key() for one in several)


def settings() -> list[tuple[str, str]]:
    """Every plan with every setting of it, but for models and images."""
    material = ("models", "images", "model", "vit", "cnn", "intact", "trained")
    return [
        (name, setting)
        for name, plan in plans().items()
        for setting in inspect.signature(plan).parameters
        if setting not in material
    ]


def test_every_setting_of_every_plan_has_another_value():
    assert {f"{name}.{setting}" for name, setting in settings()} == set(other())


def test_a_plan_and_its_measurement_have_the_same_defaults():
    """Or a table and what a study keeps of it would be of different settings."""
    for name, plan in plans().items():
        measured = inspect.signature(
            next(one for one in ANALYSES if one.name == name.split(".")[0]).module.measure
        )
        for setting, own in inspect.signature(plan).parameters.items():
            if setting in measured.parameters and name.split(".")[1] in ("plan", "plan_with_maps"):
                assert own.default == measured.parameters[setting].default, (name, setting)


@pytest.mark.parametrize(("name", "setting"), settings())
def test_another_setting_is_another_key(name, setting):
    plan, first = plans()[name], given()[name]
    found = [keys(plan(**first))]
    assert keys(plan(**first)) == found[0]  # a key is of what is asked, and not of when
    found += [keys(plan(**{**first, setting: value})) for value in other()[f"{name}.{setting}"]]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", plans())
def test_other_images_are_another_key(name):
    plan, first = plans()[name], given()[name]
    images = first["images"]
    changes = [
        replace(images, batch=24),
        replace(images, seed=5),
        replace(images, pixels=images.pixels[:32], labels=images.labels[:32]),
    ]
    if name not in ("soft_nearest_neighbor.plan",):  # which chooses batches of its own from them
        found = {keys(plan(**{**first, "images": one})) for one in [images, *changes]}
        assert len(found) == 1 + len(changes)


CHOSEN: dict[str, Any] = {
    "source": "shapes",
    "root": None,
    "split": "validation",
    "limit": 40,
    "batch": 24,
    "seed": 3,
}
SAME = {"workers", "strict"}
"""Choices of images that change how they are read, and not which they are."""


def key_of(images: Images, module: nn.Module | None = None, **model: Any) -> str:
    torch.manual_seed(0)
    network = module or nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU())
    known = Model("m", network, Preprocessing(), "digest")
    return cka.plan([replace(known, **model)], images, layers=["0", "1"]).key()


def test_every_choice_of_images_is_in_the_key_or_changes_none_of_them():
    whole = Images(limit=48, batch=16)
    names = {field.name for field in fields(Images)}
    files = {
        "source",
        "root",
        "split",
        "image_column",
        "label_column",
    }  # tried with files: tests/sources/test_keys.py
    assert names == {"limit", "batch", "seed"} | files | SAME
    found = {name: key_of(replace(whole, **{name: CHOSEN[name]})) for name in ("limit", "batch", "seed")}
    assert len({key_of(whole), *found.values()}) == 4
    assert key_of(replace(whole, workers=0)) == key_of(replace(whole, strict=True)) == key_of(whole)


def test_everything_of_a_model_is_in_the_key():
    images = Images(limit=48, batch=16)
    network = nn.Sequential(nn.Conv2d(3, 4, 4), nn.ReLU())
    first = key_of(images, network)
    assert key_of(images, network) == first
    found = {
        "name": key_of(images, network, name="n"),
        "digest": key_of(images, network, digest="another"),
        "preprocessing": key_of(images, network, preprocessing=Preprocessing(input_size=(3, 64, 64))),
        "mean": key_of(images, network, preprocessing=Preprocessing(mean=(0.1, 0.2, 0.3))),
        "precision": key_of(images, network, precision="bf16"),
    }
    assert len({first, *found.values()}) == 1 + len(found)


def test_the_order_of_models_and_other_code_are_another_key(monkeypatch):
    pair = own().pair
    first = cka.plan(pair, own().images).key()
    assert cka.plan(pair[::-1], own().images).key() != first
    monkeypatch.setattr(measure, "code", lambda: "other")
    assert cka.plan(pair, own().images).key() != first


def test_other_versions_are_another_key_of_tables_and_of_states(monkeypatch, tmp_path):
    planned = cka.plan(own().pair, own().images)

    def both() -> tuple[str, str]:
        return passes._key([planned]), measure.state_path(tmp_path / "s", {"": planned}).name

    first = both()
    assert both() == first
    versions = table.versions()
    for package in versions:
        changed = versions | {package: "0.0"}
        monkeypatch.setattr(table, "versions", lambda changed=changed: changed)
        monkeypatch.setattr(measure, "versions", lambda changed=changed: changed)
        assert not {*both()} & {*first}, package
    monkeypatch.undo()
    monkeypatch.setattr(processes, "rank_and_size", lambda: (1, 2))
    assert both()[1] != first[1]  # every process has sums of its own


def test_two_measurements_of_the_same_settings_have_keys_of_their_own():
    """Tables of other kinds are of other sums; plans that differ in their end alone are one."""
    found = [keys(plan(**given()[name])) for name, plan in plans().items()]
    single = [one for own in found for one in set(own)]
    assert len(set(single)) == len(single)
    assert {lesions, attention_distance, receptive_field} <= {one.module for one in ANALYSES}
