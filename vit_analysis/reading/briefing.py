"""What a run will do, said in one block of lines before it begins: models, layers, images, device, passes, memory, results."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

import torch

from vit_analysis.models import Model
from vit_analysis.reading import processes, replay
from vit_analysis.reading.intervene import Repeated
from vit_analysis.reading.state import GROUPS
from vit_analysis.reading.stream import Reading

logger = logging.getLogger(__name__)

MOST = 12  # models that are told one by one
COPIES = 4  # of its largest activation, that a model holds at once: what goes in, what comes out, and what is made of it
WIDE = 8  # values of each channel in the middle of a block: an MLP is four times as wide, attention has queries, keys, values


def say(passes: Sequence[tuple[str, Reading, Sequence[type[Any]]]], results: str) -> None:
    """Say what a run will do.

    Args:
        passes: of each pass its title, what is read, and the types of the sums.
        results: where results will lie.
    """
    if passes and logger.isEnabledFor(logging.INFO):
        logger.info("%s", "\n".join(lines(passes, results)))
    for _, reading, _ in passes:
        for name, model in reading.models.items():
            logger.debug("%s: preprocessing %s; reads %s", name, model.preprocessing, _taps(reading, name))


def lines(passes: Sequence[tuple[str, Reading, Sequence[type[Any]]]], results: str) -> list[str]:
    """The lines; see `say`."""
    models: dict[str, Model] = {}
    layers: dict[str, int] = {}
    for _, reading, _ in passes:
        models |= {name: model for name, model in reading.models.items() if name not in models}
        layers |= {name: max(len(taps), layers.get(name, 0)) for name, taps in reading.taps.items()}
    told = [_model(models[name], own) for name, own in list(layers.items())[:MOST]]
    if len(layers) > MOST:
        told.append(f"and {len(layers) - MOST} more")
    images = list(dict.fromkeys(_images(reading) for _, reading, _ in passes))
    needed = max(estimate(reading, kinds) for _, reading, kinds in passes)
    weights = sum(_bytes(model) for model in {id(own.module): own for own in models.values()}.values())
    return [
        *listed("models", told),
        *listed("images", images),
        *listed("on", [_place(next(iter(models.values())))]),
        *listed("passes", [title for title, _, _ in passes]),
        *listed(
            "memory",
            [f"about {_size(needed + weights)}: {_size(weights)} of weights, the rest sums and activations"],
        ),
        *(listed("results", [results]) if results else []),
    ]


def _taps(reading: Reading, model: str) -> str:
    return ", ".join(map(str, reading.taps.get(model, ())))


def listed(name: str, told: Sequence[str]) -> list[str]:
    """Lines that stand below each other, the first behind a name."""
    return [f"{name + ':' if not number else '':9}{one}" for number, one in enumerate(told)]


def _model(model: Model, layers: int) -> str:
    parameters = sum(own.numel() for own in model.module.parameters())
    what = model.module._get_name()
    return f"{model.name} ({what}, {parameters / 1e6:.3g} M parameters, {model.digest[:8]}), {layers} layers"


def _images(reading: Reading) -> str:
    images = reading.images
    last = len(images.order) % images.batch
    short = f", the last of {last}" if last and images.batches > 1 else ""
    batches = f"{images.batches} batch{'es' if images.batches > 1 else ''} of {min(images.batch, len(images.order))}"
    return f"{len(images.order)} of {images.source}, in {batches}{short}"


def _place(model: Model) -> str:
    of = processes.rank_and_size()[1]
    threads = f", {_counted(torch.get_num_threads(), 'thread')}" if model.device.type == "cpu" else ""
    name = f" ({torch.cuda.get_device_name(model.device)})" if model.device.type == "cuda" else ""
    precision = f", {model.precision}" if model.precision not in (None, "float32") else ""
    return f"{model.device}{name}{precision}{threads}{f', {of} processes' if of > 1 else ''}"


def estimate(reading: Reading, kinds: Sequence[type[Any]]) -> int:
    """Bytes of a pass beside weights, roughly: its sums, what is kept of a batch to add to them, and a model's activations."""
    batch = min(reading.images.batch, len(reading.images.order))
    layers = sum(len(taps) for taps in reading.taps.values())
    sums = sum(_of_sums(kind, layers, reading.settings) for kind in kinds)
    grams = (
        layers * batch**2 * 8 if any("layer layer" in own for kind in kinds for own in _shapes(kind)) else 0
    )
    inputs = {own.preprocessing: own.preprocessing.input_size for own in reading.models.values()}
    pixels = sum(4 * batch * channels * rows * columns for channels, rows, columns in inputs.values())
    models = reading.models.values()
    return (
        sums
        + grams
        + 2 * pixels
        + max(_of_activations(own, batch) + _of_records(own, batch) for own in models)
    )


def _of_sums(kind: type[Any], layers: int, settings: Mapping[str, Any]) -> int:
    """Bytes of sums by group of layers, or of pairs of them; others are small."""
    known = {
        "group": GROUPS,
        "layer": layers,
        "view": len(settings.get("views", ".")),
        "run": 1,
        "temperature": 601,
    }
    total = 0
    for shape in _shapes(kind):
        axes = shape.split()
        if "layer" in axes:
            size = 8
            for axis in axes:
                size *= known.get(axis, int(axis) if axis.isdigit() else 1)
            total += 2 * size  # those of a batch are added to those of all
    return total


def _shapes(kind: type[Any]) -> list[str]:
    hints = get_type_hints(kind)
    return [str(getattr(hints[own.name], "dim_str", "")) for own in fields(kind)]


def _of_activations(model: Model, batch: int) -> int:
    """Bytes of a model's activations: a wide layer over all positions of a map of a quarter, or of a patch's, resolution."""
    first = _first(model)
    if first is None:
        return COPIES * WIDE * _of_map(model, batch)
    stride = first.stride[0] if isinstance(first.stride, tuple) else 1
    return COPIES * _of_map(model, batch) * (WIDE if int(stride) > 4 else 2)


def _of_map(model: Model, batch: int) -> int:
    """Bytes of what a model's first convolution returns, or of its images where there is none."""
    channels, rows, columns = model.preprocessing.input_size
    first = _first(model)
    if first is None:
        return 4 * batch * channels * rows * columns
    stride = first.stride[0] if isinstance(first.stride, tuple) else 1
    return 4 * batch * (rows * columns // int(stride) ** 2) * first.out_channels


def _first(model: Model) -> torch.nn.Conv2d | None:
    return next((own for own in model.module.modules() if isinstance(own, torch.nn.Conv2d)), None)


def _of_records(model: Model, batch: int) -> int:
    """Bytes of what a model that runs under changes resumes from: an output and a long branch of each block, to a bound."""
    if not isinstance(model.module, Repeated):
        return 0
    return min(replay.MOST, 2 * len(model.module.changes) * _of_map(model, batch))


def _bytes(model: Model) -> int:
    return sum(own.numel() * own.element_size() for own in model.module.parameters())


def _size(count: int) -> str:
    """Bytes in words."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.2g} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
