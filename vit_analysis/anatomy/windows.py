"""Which tokens of a map an attention in windows is given together, found by running the network on places in place of maps."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn

from vit_analysis.anatomy.modes import evaluating
from vit_analysis.spelling import Refusal

IMAGES = 2  # to see that windows of one image lie together
DIGIT = 128  # numbers below it are exact in every precision


class Partition(NamedTuple):
    """The modules of a block around its windows, by path: itself, the norm that may be before them, what is given windows."""

    block: str
    norm: str
    windowed: str


def windows(
    module: nn.Module, partitions: Mapping[str, Partition], pixels: Tensor
) -> dict[str, Int[Tensor, "window token"]]:
    """Find the numbers of the tokens in each window of an image, row by row of their map; -1 where a window is padded.

    Each block is given a map that holds the numbers of its own tokens, and what its attention is given is read: shifts,
    paddings and the order of windows are those of the network.

    Args:
        module: the network.
        partitions: the blocks, by any names.
        pixels: an image.

    Raises:
        Refusal: what an attention is given is not every token once, or not one image after another.
    """
    seen: dict[str, Tensor] = {}
    with evaluating(module), torch.inference_mode(False), torch.no_grad(), ExitStack() as hooks:
        for name, own in partitions.items():
            _attach(module, own, partial(seen.setdefault, name), hooks)
        module(pixels[:1].expand(IMAGES, *pixels.shape[1:]).clone())
    return {name: _numbers(seen.get(name), own.windowed) for name, own in partitions.items()}


def _attach(module: nn.Module, own: Partition, see: Callable[[Tensor], Any], hooks: ExitStack) -> None:
    def enter(_: nn.Module, args: tuple[Any, ...]) -> Any:
        return (_numbered(args[0]), *args[1:]) if args and isinstance(args[0], Tensor) else None

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            see(args[0].clone())

    block, norm, windowed = (module.get_submodule(path) for path in own)
    hooks.callback(block.register_forward_pre_hook(enter).remove)
    hooks.callback(norm.register_forward_hook(lambda _, __, output: _numbered(output)).remove)
    hooks.callback(windowed.register_forward_pre_hook(look).remove)


def _numbered(map: Tensor) -> Tensor:
    """A map whose channels say which image and which token it is, from 1 on, in digits; channels are last."""
    images, *places, channels = map.shape
    if channels < 4:
        return map
    count = torch.Size(places).numel()
    image, token = torch.meshgrid(torch.arange(images), torch.arange(count), indexing="ij")
    digits = [image + 1, token // DIGIT**2, token // DIGIT % DIGIT, token % DIGIT]
    told = torch.zeros(images, count, channels)
    told[..., :4] = torch.stack(digits, dim=-1).float()
    return told.reshape(map.shape).to(map)


def _numbers(given: Tensor | None, path: str) -> Int[Tensor, "window token"]:
    unknown = Refusal(
        f"which tokens {path!r} is given together is not known: not each token of an image once, and one image after another; "
        f"choose a model whose attention sees the whole image or its windows"
    )
    if given is None or given.ndim < 3 or given.shape[-1] < 4 or len(given) % IMAGES:
        raise unknown
    digits = given.flatten(1, -2)[..., :4].round().long()
    image, *places = digits.unflatten(0, (IMAGES, -1)).unbind(-1)
    numbers = places[0] * DIGIT**2 + places[1] * DIGIT + places[2]
    numbers = numbers.masked_fill(image == 0, -1)
    expected = torch.arange(1, IMAGES + 1, device=image.device)[:, None, None]
    real = numbers[0][numbers[0] >= 0]
    each = torch.arange(len(real), device=real.device)
    if ((image != expected) & (image != 0)).any() or not torch.equal(numbers[0], numbers[1]):
        raise unknown
    if not torch.equal(real.sort().values, each):
        raise unknown
    return numbers[0]
