"""Activations of a model, read by forward hooks while it runs.

A *tap* names a place in a model, as a string: the path of a module for what that module returns (``blocks.3.attn``), or the
path and ``:in`` for what it is given (``blocks.3.norm2:in``, the residual stream in the middle of a block). The model itself
is the empty path, so ``:in`` is the image as the model receives it. ``blocks.3.attn:heads`` is the queries, keys and values of
an attention: what the module hands to `scaled_dot_product_attention`, after its norms, rotations and biases (`Heads`).

Two facts decide the design. (1) A later in-place operation (``x += shortcut``, ``ReLU(inplace=True)``) overwrites what a hook
merely refers to, so that the BatchNorm layers of a ResNet would be read after their ReLU or the addition. So an
activation is reduced, or copied, inside the hook. (2) A module that a fast path skips (timm's fused attention) fires no hook
at all, silently. So a tap that saw nothing is an error.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from vit_analysis.spelling import did_you_mean

Reduce = Callable[[str, Tensor], Any]
Run = Callable[[Tensor], dict[str, Any]]


@dataclass(frozen=True)
class Heads:
    """What one call of `scaled_dot_product_attention` mixes: softmax(scale query key' + bias) value, per image and head."""

    query: Float[Tensor, "image head query feature"]
    key: Float[Tensor, "image head key feature"]
    value: Float[Tensor, "image head key width"]
    bias: Tensor | None
    scale: float

    def output(self) -> Float[Tensor, "image head query width"]:
        """Each head's mixture of values, before the projection that joins the heads."""
        return functional.scaled_dot_product_attention(
            self.query, self.key, self.value, attn_mask=self.bias, scale=self.scale
        )


def keep(layer: str, activation: Tensor) -> Tensor:  # noqa: ARG001  (a Reduce is told which layer it reads)
    """The activation itself, copied so that no later in-place operation can change it."""
    return activation.clone()


@contextmanager
def capture(model: nn.Module, taps: Iterable[str], reduce: Reduce = keep) -> Iterator[Run]:
    """Hook ``taps``; inside the block, calling the yielded function runs the model and returns what the taps saw.

    The result maps layer names to ``reduce(layer, activation)`` in order of execution, whatever the order of ``taps`` or of
    definition. Layers for which ``reduce`` returns None are left out. A layer's name is its tap, with ``#2``, ``#3`` ... from
    the second time a module runs in one pass, and with ``[0]`` or ``[key]`` where a module returns several tensors.
    Of several tensors those are left out that have not one row per image. The hooks are gone when the block ends, whatever
    ends it.

    Raises:
        KeyError: there is no module of that path in the model.
        RuntimeError: a tap saw nothing in a pass.
        TypeError: a tapped module passes on something without a floating-point tensor.
        ValueError: the model does not take such images, or what a tapped module passes on has not one row per image, as that
            of attention in windows.

    >>> with capture(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), ["0", "1"]) as run:
    ...     {layer: tuple(activation.shape) for layer, activation in run(torch.zeros(3, 4)).items()}
    {'0': (3, 2), '1': (3, 2)}
    """
    taps = list(dict.fromkeys(taps))
    seen: dict[str, Any] = {}
    runs: dict[str, int] = {}
    images = 0  # of the pass that `run` makes; where others call the model, it is not known

    def record(tap: str, value: Any) -> None:
        runs[tap] = runs.get(tap, 0) + 1
        layer = tap if runs[tap] == 1 else f"{tap}#{runs[tap]}"
        tensors: list[tuple[str, Any]] = (
            [("", value)] if isinstance(value, Heads) else list(floating_tensors(value))
        )
        if not tensors:
            raise TypeError(
                f"{tap!r} passes on {type(value).__name__} without a floating-point tensor; tap another layer"
            )
        # Whoever reads heads knows how many tokens an image has, and so finds windows.
        if images and not isinstance(value, Heads):
            tensors = _of_images(tap, tensors, images)
        for key, activation in tensors:
            name = layer if len(tensors) == 1 else layer + key
            reduced = reduce(name, activation)
            if reduced is not None:
                seen[name] = reduced

    def run(pixels: Tensor) -> dict[str, Any]:
        nonlocal images
        images = len(pixels)
        seen.clear()
        runs.clear()
        try:
            model(pixels)
        except AssertionError as error:  # how timm's models refuse images of another size
            shape = " x ".join(map(str, pixels.shape[1:]))
            raise ValueError(f"{type(model).__name__} does not take images of {shape}: {error}") from error
        images = 0
        if silent := [tap for tap in taps if tap not in runs]:
            told = f"{', '.join(map(repr, silent[:3]))}{f' and {len(silent) - 3} more' if len(silent) > 3 else ''}"
            why = (
                "an attention that does not call scaled_dot_product_attention"
                if silent[0].endswith(":heads")
                else "a fused or skipped module"
            )
            raise RuntimeError(
                f"{told} did not run in the forward pass of {type(model).__name__}, so there is nothing to read "
                f"({why}?); tap a module that runs"
            )
        result = dict(seen)
        seen.clear()  # the caller alone decides how long activations live
        return result

    with ExitStack() as hooks:
        for tap in taps:
            attach(model, tap, record, hooks)
        yield run


def _of_images(tap: str, tensors: list[tuple[str, Any]], images: int) -> list[tuple[str, Any]]:
    """The tensors that have one row per image."""
    own = [(key, tensor) for key, tensor in tensors if tensor.ndim and len(tensor) == images]
    if not own:
        shape = " x ".join(map(str, tensors[0][1].shape)) or "a number"
        raise ValueError(
            f"{tap!r} passes on {shape} for {images} images, not one row per image (attention in windows, a part of the "
            f"image at a time?), so images cannot be told apart in it; tap another layer, such as the output of its block"
        )
    return own


def floating_tensors(value: Any, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every floating-point tensor in nested tuples, lists and mappings, with its place: ``[0]``, ``[key]``, ``[0][key]``."""
    if isinstance(value, Tensor):
        if torch.is_floating_point(value):
            yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from floating_tensors(item, f"{key}[{name}]")
    elif isinstance(value, tuple | list):
        for number, item in enumerate(value):
            yield from floating_tensors(item, f"{key}[{number}]")


def find(model: nn.Module, tap: str) -> nn.Module:
    """The module that a tap names.

    Raises:
        KeyError: with the nearest right paths.
    """
    path = tap.removesuffix(":in").removesuffix(":heads")
    try:
        return model.get_submodule(path)
    except AttributeError:
        paths = [name for name, _ in model.named_modules() if name]
        raise KeyError(f"no layer {path!r} in {type(model).__name__}; {did_you_mean(path, paths)}") from None


def attach(model: nn.Module, tap: str, record: Callable[[str, Any], None], hooks: ExitStack) -> None:
    """Hook one tap until ``hooks`` closes: ``record(tap, value)`` is called with whatever passes there."""
    module = find(model, tap)
    if tap.endswith(":heads"):
        _attach_heads(module, lambda heads: record(tap, heads), hooks)
    elif tap.endswith(":in"):
        # The first positional argument is the activation in every model we know; the rest are masks, shapes and switches.
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: record(tap, args[0] if args else kwargs), with_kwargs=True
        )
        hooks.callback(handle.remove)
    else:
        hooks.callback(module.register_forward_hook(lambda _, __, output: record(tap, output)).remove)


def _attach_heads(module: nn.Module, see: Callable[[Heads], None], hooks: ExitStack) -> None:
    """Watch `scaled_dot_product_attention` while this module runs, and have the module call it.

    timm's attentions spell the softmax out where ``fused_attn`` is off; it is on until ``hooks`` closes. The two ways differ
    by rounding only, and queries and keys not at all.
    """
    watching = ExitStack()

    def start(*_: Any) -> None:
        watching.enter_context(_Watch(see))

    def stop(*_: Any) -> None:
        watching.close()

    hooks.callback(module.register_forward_pre_hook(start).remove)
    # Also after an error: what stays would watch every later attention of the process.
    hooks.callback(module.register_forward_hook(stop, always_call=True).remove)
    for part in module.modules():
        if getattr(part, "fused_attn", None) is False:
            setattr(part, "fused_attn", True)  # noqa: B010  (a module's attributes are tensors and modules to mypy)
            hooks.callback(setattr, part, "fused_attn", False)


class _Watch(TorchFunctionMode):
    def __init__(self, see: Callable[[Heads], None]) -> None:
        super().__init__()
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.scaled_dot_product_attention:
            self.see(_heads(*args, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def _heads(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,  # noqa: ARG001  (the names are torch's)
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Heads:
    """The arguments of `scaled_dot_product_attention`, with its defaults spelt out."""
    if is_causal:
        shape = query.shape[-2], key.shape[-2]
        attn_mask = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = query.new_zeros(attn_mask.shape).masked_fill(~attn_mask, -torch.inf)
    if enable_gqa:  # several heads of queries share a head of keys
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
    return Heads(query, key, value, attn_mask, query.shape[-1] ** -0.5 if scale is None else scale)
