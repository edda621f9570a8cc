"""Whether a model can resume from the records of its unchanged run: found out by trying, and never trusted to a name.

It cannot where blocks hand each other something beside what they return, where the same images give other numbers the second
time, or where a block returns something unknown. Then every run is a run of the whole model, as slow as it was and as right.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vit_analysis import layers
from vit_analysis.layers import Branch, Tap
from vit_analysis.models import Model
from vit_analysis.reading.capture import Capture, attach, floating_tensors
from vit_analysis.reading.intervene import Repeated
from vit_analysis.reading.replay import Place, Tape
from vit_analysis.reading.stream import Reading, hooked, one_image
from vit_analysis.spelling import Refusal

logger = logging.getLogger(__name__)

SAME = 1e-6  # of the largest value of a layer; on a CPU runs that resume are equal to the last bit


def prove(repeated: Model, reading: Reading, model: Model, changed: Sequence[Sequence[Branch]]) -> None:
    """Let a repeated model resume as late as two images prove right: the first image and its mirror image.

    Tried is first to resume inside of the block that changes, then where that block begins.

    Args:
        repeated: the model that runs under changes, a `Repeated`; its tape is set.
        reading: what is read of it.
        model: the model itself.
        changed: the branches that each change but the first is confined to, those of one block.

    Raises:
        Refusal: a block runs several times for an image.
    """
    module = repeated.module
    assert isinstance(module, Repeated)
    network = module.model
    blocks = {path: network.get_submodule(path) for path in layers.blocks(model)}
    within = [Place(blocks[branches[0].block], branches) for branches in changed]
    one = one_image(reading.images, repeated)
    few = torch.cat([one, one.flip(-1)])
    with hooked(replace(reading, taps={repeated.name: []}), repeated) as run:
        module.tape = None
        anew = _seen(run, reading.taps[repeated.name], few)
        _refuse_twice(model, anew, len(module.changes))
        for places in (within, [Place(place.block) for place in within]):
            module.tape = Tape(network, list(blocks.values()), places)
            try:
                if _equal(anew, _seen(run, reading.taps[repeated.name], few)):
                    return
            except Exception as error:
                logger.debug("%s does not resume: %s", model.name, error)
            module.tape = None
    logger.info("%s cannot resume in the middle, so it runs as a whole for each block", model.name)


def _refuse_twice(model: Model, seen: Sequence[tuple[str, Tensor]], runs: int) -> None:
    counts = Counter(name for name, _ in seen)
    if twice := [name for name, count in counts.items() if count > runs]:
        block = twice[0].removeprefix("model.").partition(":")[0]
        raise Refusal(
            f"{block!r} of {model.name} runs several times for an image, so what is before it and what after is not known; "
            f"choose a model that runs each of its blocks once"
        )


def _seen(run: Capture, taps: Sequence[Tap], pixels: Tensor) -> list[tuple[str, Tensor]]:
    """Every tensor that passes the taps, with its name, in order."""
    seen: list[tuple[str, Tensor]] = []

    def see(tap: Tap, value: Any) -> None:
        seen.extend((f"{tap}{key}", own.clone()) for key, own in floating_tensors(value))

    with ExitStack() as hooks, torch.inference_mode(False), torch.no_grad():
        for tap in taps:
            attach(run.model, tap, see, hooks)
        run(pixels.clone())
    return seen


def _equal(anew: Sequence[tuple[str, Tensor]], resumed: Sequence[tuple[str, Tensor]]) -> bool:
    if [name for name, _ in anew] != [name for name, _ in resumed]:
        return False
    return all(_close(one, other) for (_, one), (_, other) in zip(anew, resumed, strict=True))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    room = SAME * one.abs().max().item() if one.numel() else 0.0
    return torch.equal(one, other) or bool(((one - other).abs() <= room).all())
