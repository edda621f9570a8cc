"""Which layers of a model have a place in the image for each of their values, found by running it on one image."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from vit_analysis import layers
from vit_analysis.anatomy.modes import evaluating
from vit_analysis.layers import Tap
from vit_analysis.models import Model
from vit_analysis.reading.capture import attach, floating_tensors, trouble
from vit_analysis.spelling import Refusal
from vit_analysis.tensors.tokens import on_grid

TOLD = 3  # layers that are named; the others are counted


def refuse_without_places(model: Model, taps: Sequence[Tap], pixels: Tensor, images: int) -> None:
    """Refuse layers in which nothing has a place in the image, before a long run begins.

    Layers of which nothing is known after one image (some do not run, or mix images) are left to the run.

    Args:
        model: the model.
        taps: the layers.
        pixels: one image.
        images: how many there will be in a batch, for the shape that is told.

    Raises:
        Refusal: there are such layers; it names them, and the last one before them that has places.
    """
    layout, module = layers.layout(model), model.module
    placed: list[Tap] = []
    without: dict[Tap, Refusal] = {}
    nearest: dict[Tap, Tap | None] = {}

    def see(tap: Tap, value: Any) -> None:
        for _, tensor in floating_tensors(value):
            if tensor.ndim == 0 or len(tensor) != 1:
                continue
            try:
                on_grid(tensor.expand(images, *tensor.shape[1:]), layout, f"{str(tap)!r} of {model.name}")
            except Refusal as refusal:
                if tap in chosen:
                    without.setdefault(tap, refusal)
                    nearest.setdefault(tap, placed[-1] if placed else None)
            else:
                if tap.path and tap.at == "out":
                    placed.append(tap)

    chosen = set(taps)
    everything = dict.fromkeys([*taps, *(Tap(path) for path, _ in module.named_modules())])
    with evaluating(module), torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
        for tap in everything:
            attach(module, tap, see, hooks)
        try:
            module(pixels.clone())
        except (Refusal, OSError):
            raise
        except Exception as error:
            raise trouble(module, pixels, error) from error
    if without:
        raise _refusal(without, nearest)


def _refusal(without: dict[Tap, Refusal], nearest: dict[Tap, Tap | None]) -> Refusal:
    first, *more = without
    near = f", such as {str(nearest[first])!r}, the last before it that has" if nearest[first] else ""
    names = ", ".join(repr(str(tap)) for tap in more[:TOLD])
    counted = f" and {len(more) - TOLD} more" if len(more) > TOLD else ""
    others = f"; nor has anything in {names}{counted}" if more else ""
    return Refusal(f"{without[first]}{near}{others}")
