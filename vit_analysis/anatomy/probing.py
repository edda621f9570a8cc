"""What a network does not tell of itself, measured by running it on images of noise."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vit_analysis.anatomy import find
from vit_analysis.anatomy.modes import evaluating
from vit_analysis.anatomy.positions import positions
from vit_analysis.anatomy.roles import Anatomy
from vit_analysis.spelling import Refusal

IMAGES = 5  # no usual number of tokens
# Of images that a network may be built for.
SIDES = (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)

Size = tuple[int, int, int]  # channels, rows and columns


def measured(module: nn.Module, told: Anatomy, size: Size) -> Anatomy:
    """Count the tokens before the spatial ones, and find where those lie, in a network of no known codebase.

    What enters the first block that runs tells: tokens that are the same for different images are class tokens and registers;
    of the others the first must be what the first pixel of the image changes most, and the last what the last changes most, or
    else what has which place is not known.

    Args:
        module: the network.
        told: what its names tell.
        size: of the images; if the network does not run on them, other usual sizes are tried.

    Returns:
        What its names tell, with what was measured in its place: unknown where it contradicts itself. A network that has no
        blocks, does not run, or has no tokens is as its names tell.
    """
    entering, tried = _entering(module, size)
    if entering is None or tried is None:
        return told
    unknown = replace(told, prefix=None, class_token=None, grid=None, tokens=None, spatial=None, reads=None)
    again, _ = _entering(module, tried)
    if again is None or not torch.equal(entering, again):
        return unknown  # it is not the same twice
    plain, first, last, *others = entering
    same = torch.stack([(plain == other).all(-1) for other in others]).all(0)
    prefix, tokens = int(same.sum()), len(same) - int(same.sum())
    most = [int((plain - other).norm(dim=-1).argmax()) for other in (first, last)]
    if same[prefix:].any() or most != [prefix, len(same) - 1]:
        return unknown
    return _counted(module, told, (prefix, tokens), tried)


def _counted(module: nn.Module, told: Anatomy, counts: tuple[int, int], size: Size) -> Anatomy:
    prefix, tokens = counts
    agreed = told.prefix == prefix
    class_token = told.class_token if agreed else (None if prefix else False)
    maps = positions(module, _noise(module, size)[:1])
    grid = next((own for (rows, columns), own in reversed(maps.items()) if rows * columns == tokens), None)
    return replace(
        told,
        prefix=prefix,
        class_token=class_token,
        spatial=tokens,
        grid=grid,
        tokens=(grid.rows, grid.columns) if grid else None,
        reads=told.reads if agreed else ("mean" if not prefix else None),
        counted=True,
    )


def _entering(module: nn.Module, size: Size) -> tuple[Tensor | None, Size | None]:
    """What enters the first block that runs, for a few images, at the first size that the network takes.

    The images are: noise, the same with another first pixel, with another last pixel, and other noise.
    """
    try:
        blocks = find.blocks(module)
    except Refusal:
        return None, None
    for tried in dict.fromkeys([size, *((size[0], side, side) for side in SIDES)]):
        noise = _noise(module, tried)
        noise[1:3] = noise[0]
        noise[1, :, 0, 0] += 1
        noise[2, :, -1, -1] += 1
        try:
            seen = first_inputs(module, blocks, noise)
        except Exception:  # a network fails in its own way on images that it was not built for
            continue
        entering = next(iter(seen.values()), None)
        if entering is None or entering.ndim != 3 or list(entering.shape).count(IMAGES) != 1:
            return None, None
        return entering.movedim(list(entering.shape).index(IMAGES), 0), tried
    return None, None


def first_inputs(module: nn.Module, paths: list[str], images: Tensor) -> dict[str, Tensor]:
    """What is given to some modules when a network runs on images, by path, in order of execution."""
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def look(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                seen.setdefault(path, args[0].clone())

        return look

    with evaluating(module), torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
        for path in paths:
            hooks.callback(module.get_submodule(path).register_forward_pre_hook(keep(path)).remove)
        module(images.clone())
    return seen


@dataclass(frozen=True)
class Passage:
    """What a module around a network does: whether it runs it once, gives it what it is given, returns what it returns."""

    once: bool
    given: bool
    returned: bool


def passage(module: nn.Module, path: str, size: Size) -> Passage:
    """Find out, by running a module on noise, what it does around the network at a path; nothing if it does not run."""
    network, runs = module.get_submodule(path), []
    with evaluating(module), torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
        before = network.register_forward_pre_hook(
            lambda _, args: runs.append([args[0].clone() if args else None])
        )
        hooks.callback(before.remove)
        hooks.callback(network.register_forward_hook(lambda *own: runs[-1].append(own[2])).remove)
        images = _noise(module, size)[:2]
        try:
            returned = module(images.clone())
        except Exception:  # in its own way
            return Passage(False, False, False)
    once = len(runs) == 1 and len(runs[0]) == 2
    given = once and isinstance(runs[0][0], Tensor) and torch.equal(runs[0][0], images)
    return Passage(once, given, once and _same(returned, runs[0][1]))


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return one is other


def _noise(module: nn.Module, size: Size) -> Tensor:
    first = next((own for own in module.modules() if isinstance(own, nn.Conv2d)), None)
    weight = first.weight if first is not None else next(iter(module.parameters()), torch.empty(0))
    channels = first.in_channels if first is not None else size[0]
    noise = torch.rand(IMAGES, channels, *size[1:], generator=torch.Generator().manual_seed(0))
    return noise.to(weight.device, weight.dtype)
