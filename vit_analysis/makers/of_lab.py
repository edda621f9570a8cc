"""Networks of the lab: ``lab/vit``. A file of weights says of itself how its network was built and what images it takes."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from vit_analysis.images import Preprocessing
from vit_analysis.lab import zoo
from vit_analysis.loading import checkpoint, fitting
from vit_analysis.makers.making import seeded
from vit_analysis.makers.request import RANDOM, Request
from vit_analysis.spelling import Refusal

# The input of a model that no checkpoint describes, such as an untrained twin.
INPUT = {"input_size": "[3, 32, 32]", "mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"}


def make(request: Request) -> tuple[nn.Module, Preprocessing]:
    """Make one of the lab's networks, and say how an image becomes its input.

    Raises:
        Refusal: there is no such network, or weights do not fit it.
        OSError: a file is no checkpoint, or says of itself what cannot be.
    """
    if request.settings:
        key = next(iter(request.settings))
        raise Refusal(f"{request.name} is built as its weights say and takes no {key}=")
    recipe = zoo.recipe(request.name)
    own = zoo.home(request.name) if request.weights == RANDOM else zoo.lab_file(request.name)
    file = request.file or own
    state = None if request.weights == RANDOM else checkpoint.read(file).tensors
    facts = _metadata(file)
    try:
        config = json.loads(facts["config"]) if "config" in facts else recipe.config
        size, mean, std = (tuple(json.loads(facts.get(key, default))) for key, default in INPUT.items())
        preprocessing = Preprocessing(size, mean, std, crop_pct=1.0)
        with seeded(request.seed):
            module = zoo.build(recipe.architecture, config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise OSError(f"{str(file)!r} says of itself what cannot be: {error}") from error
    if state is not None:
        fitting.fit(module, state, request.weights or request.name)
    return module, preprocessing


def _metadata(file: Path) -> dict[str, Any]:
    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    with safe_open(file, framework="pt") as shipped:
        return shipped.metadata() or {}
