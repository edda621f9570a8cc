"""The cast: which model plays which part, what it is, and what it learned from, as far as that is known."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import nn

from vit_analysis import models
from vit_analysis.lab import scenes, zoo
from vit_analysis.makers import of_timm
from vit_analysis.makers.request import Request
from vit_analysis.plot.style import display_name
from vit_analysis.spelling import Refusal
from vit_analysis.study import casts

LETTERS = {"vit": "V", "cnn": "R"}  # by which formulas call the first model of a part
ROLES: Mapping[str, str] = {
    "vit": "Vision Transformer",
    "cnn": "CNN",
    "gap": "V with average pooling instead of a class token",
    "less_data": "V trained on less data",
    "cnn_less_data": "R trained on less data",
    "other_seed": "V trained again, from other initial weights",
    "no_skip": "V trained without the skip connections of one block",
    "mixer": "MLP-Mixer",
    "tuned": "V fine-tuned to other data",
    "local": "V with attention to near patches alone",
    "flat": "R without downsampling after its stem",
}
TWIN, NOTHING = "the same network, untrained", "nothing"
TRANSFORMERS = "transformers/"

Parts = Mapping[str, Sequence[Sequence[str]]]  # by part, its models, each as the names of its training runs


class Member(NamedTuple):
    """A model of the study.

    Attributes:
        letter: V or R where formulas call it so.
        role: the part it plays, in words.
        name: as tables have it.
        called: as the page calls it.
        what: its family and size; empty where that is not known.
        learned: what it learned from and how well; empty where that is not known.
        runs: names of its training runs.
        stands_for: what the paper has in its place, and what is substituted; empty where that is not known.
    """

    letter: str
    role: str
    name: str
    called: str
    what: str
    learned: str
    runs: Sequence[str]
    stands_for: str = ""


def cast(parts: Parts, known: Mapping[str, Any]) -> list[Member]:
    """Return the models of a study in the order of their parts; untrained twins are the last.

    Args:
        parts: the models by the part they play.
        known: all models that were measured, by name.
    """
    found = []
    for part, several in parts.items():
        for number, runs in enumerate(several):
            letter = "" if number else LETTERS.get(part, "")
            role = ROLES.get(part, part.replace("_", " "))
            found.append(_member(letter, f"another {role}" if number and part in LETTERS else role, runs))
    firsts = {letter: parts[part][0][0] for part, letter in LETTERS.items() if parts.get(part)}
    twins = {letter: models.twin(name) for letter, name in firsts.items()}
    return found + [
        _member("", f"{letter}: {TWIN}", [twin])._replace(learned=NOTHING)
        for letter, twin in twins.items()
        if twin in known
    ]


def the_lab(members: Sequence[Member]) -> str:
    """Say in a sentence what the lab is, if any model is one of its; else nothing."""
    lab = [member for member in members if member.name.startswith(zoo.PREFIX)]
    if not lab:
        return ""
    sizes = [facts["input_size"][-1] for member in lab if "input_size" in (facts := _facts(member.name))]
    size = f" of {sizes[0]} px" if sizes else ""
    return (
        f"The lab, whose models are called {zoo.PREFIX}..., is a set of small networks that come with this program, trained "
        f"on pictures{size} that code draws, each of one of {len(scenes.SHAPES)} shapes with one of "
        f"{len(scenes.TEXTURES)} textures on a wavy ground: anyone can train them again, and what is found of them need not "
        "hold for large models of photographs."
    )


def _member(letter: str, role: str, runs: Sequence[str]) -> Member:
    name = runs[0]
    known = casts.members([name]).get(name)
    stands_for = f"{known.paper}. Here: {known.instead}" if known else ""
    return Member(letter, role, name, display_name(name), _what(name), _learned(runs), list(runs), stands_for)


def _what(name: str) -> str:
    """Family, size and settings of the network that a name stands for."""
    try:
        request = Request.of(name)
        with torch.device("meta"):  # shapes alone
            network, settings = _network(request)
    except Exception:  # constructors fail in their own ways, and a name may be anything
        return ""
    count = sum(weight.numel() for weight in network.parameters())
    about = "about " if request.file else ""
    told = [type(network).__name__, f"{about}{_millions(count)} parameters"]
    return ", ".join([*told, *(f"{key} {value}" for key, value in settings.items())])


def _network(request: Request) -> tuple[nn.Module, Mapping[str, Any]]:
    """An untrained network without values, and the settings that tell it from the usual one.

    Raises:
        Refusal: it would have to be looked up in a hub.
    """
    if request.name.startswith(zoo.PREFIX):
        recipe = zoo.recipe(request.name)
        usual = next(own.config for own in zoo.RECIPES.values() if own.architecture == recipe.architecture)
        more = {key: value for key, value in recipe.config.items() if usual.get(key) != value}
        return zoo.build(recipe.architecture, recipe.config), more
    if request.name.startswith(TRANSFORMERS):
        raise Refusal(f"{request.name} is described in a hub")
    maker = next(
        (own for start, own in models.MAKERS.items() if request.name.startswith(start)), of_timm.Timm()
    )
    return maker.untrained(request.name, request.settings), request.settings  # fmt: skip


def _millions(count: int) -> str:
    millions = count / 1e6
    return (
        f"{millions:.0f} M"
        if millions >= 10
        else f"{millions:.1f} M"
        if millions >= 1
        else f"{count / 1e3:.0f} k"
    )


def _learned(runs: Sequence[str]) -> str:
    """What a lab model learned from, and how well each run does; nothing of others, whose weights do not say it."""
    facts = [_facts(name) for name in runs]
    own = facts[0]
    if "data" not in own:
        return ""
    distinct, seen = own["data"].get("distinct"), own.get("images_seen", 0)
    told = (
        f"{seen:,} pictures, none twice"
        if distinct is None
        else f"{distinct:,} pictures, {seen:,} times in all"
    )
    right = [
        100 * value for each in facts for key, value in each.get("accuracy", {}).items() if key != "images"
    ]
    return f"{told}; {', '.join(f'{value:.1f}' for value in right)} % right on new ones" if right else told  # fmt: skip


def _facts(name: str) -> dict[str, Any]:
    """What a lab model's file of weights says of itself; nothing where there is none."""
    if not name.startswith(zoo.PREFIX) or "@" in name:
        return {}
    try:
        with safe_open(zoo.lab_file(name), framework="pt") as weights:
            return {key: _value(text) for key, text in (weights.metadata() or {}).items()}
    except (Refusal, OSError):
        return {}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
