"""Activations of a model, read by forward hooks while it runs.

Where to read is a `Tap`; what was read there is a `Layer`, one for each time that the module ran and for each tensor that it
returned. Three facts decide the design. (1) A later in-place operation (``x += shortcut``, ``ReLU(inplace=True)``) overwrites
what a hook merely refers to, so that the BatchNorm layers of a ResNet would be read after their ReLU or the addition. So an
activation is reduced, or copied, inside the hook. (2) A module that a fast path skips (timm's fused attention) fires no hook
at all, silently. So a tap that saw nothing is an error. (3) Images need not lie along the first axis (a
`nn.TransformerEncoder` has tokens there). So the axis of each activation is found once, with two sizes of batch
(`Capture.learn_axes`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vit_analysis.layers import Tap
from vit_analysis.reading.heads import Heads, attach_heads
from vit_analysis.spelling import Refusal, did_you_mean


class Layer(NamedTuple):
    """One activation of a forward pass, identified by where it was read.

    Attributes:
        tap: where it was read.
        run: which run of the module within the pass, from 1 on.
        key: which tensor it is where a module returns several: ``[0]``, ``[key]``, ``[0][key]``.
    """

    tap: Tap
    run: int = 1
    key: str = ""

    def __str__(self) -> str:
        return f"{self.tap}{f'#{self.run}' if self.run > 1 else ''}{self.key}"


class Seen(dict[Layer, Any]):
    """The record of what the taps saw in one pass, by layer in order of execution; a layer's name finds it too."""

    def __missing__(self, name: Any) -> Any:
        named = {str(layer): value for layer, value in self.items()}
        if str(name) not in named:
            raise KeyError(f"nothing was kept of {str(name)!r}; {did_you_mean(str(name), named)}")
        return named[str(name)]


def keep(layer: Layer, activation: Tensor) -> Tensor:  # noqa: ARG001  (a reducer is told which layer it reads)
    """Return a copy of the activation, which no later in-place operation can change."""
    return activation.clone()


class Capture:
    """Hooks on the taps of a model; inside the ``with`` block, calling it runs the model and returns what the taps saw.

    Layers for which ``reduce`` returns None are left out. Where a module returns several tensors, those without one row per
    image are left out. The hooks are gone when the block ends, whatever ends it.

    Args:
        model: the model whose activations are read.
        taps: where to read, each a `Tap` or its name, such as ``blocks.3.norm2:in``.
        reduce: function from a layer and its activation (a tensor, or `Heads`) to what is kept of it.

    Examples:
        >>> with Capture(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), ["0", "1"]) as run:
        ...     {str(layer): tuple(activation.shape) for layer, activation in run(torch.zeros(3, 4)).items()}
        {'0': (3, 2), '1': (3, 2)}
    """

    def __init__(
        self, model: nn.Module, taps: Iterable[Tap | str], reduce: Callable[[Layer, Any], Any] = keep
    ) -> None:
        self.model, self.reduce = model, reduce
        self.axes: dict[Layer, int | None] = {}
        self._shapes: dict[Layer, tuple[int, ...]] | None = (
            None  # where they are learnt, and nothing is reduced
        )
        self.taps = list(dict.fromkeys(tap if isinstance(tap, Tap) else Tap.of(tap) for tap in taps))
        self._hooks = ExitStack()
        self._images = 0  # in the current pass; 0 (unknown) where the model is called by others
        self._runs: dict[Tap, int] = {}
        self._seen = Seen()
        self._fault: Exception | None = None  # raised by the reducer, so not to be blamed on the model

    def __enter__(self) -> "Capture":
        """Attach the hooks.

        Raises:
            Refusal: there is no module of that path in the model.
        """
        with ExitStack() as hooks:
            for tap in self.taps:
                attach(self.model, tap, self._record, hooks)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def __call__(self, pixels: Tensor) -> Seen:
        """Run the model on some images.

        Raises:
            Refusal: a tap saw nothing, a tapped module passes on no floating-point tensor, or none with one row per image, as
                attention in windows; or the model does not take such images.
        """
        self._images, self._runs, self._seen, self._fault = len(pixels), {}, Seen(), None
        try:
            self.model(pixels)
        except (Refusal, OSError):
            raise
        except Exception as error:
            if error is self._fault:
                raise
            raise trouble(self.model, pixels, error) from error
        finally:
            self._images = 0
        if silent := [tap for tap in self.taps if tap not in self._runs]:
            raise _silence(self.model, silent)
        seen, self._seen = self._seen, Seen()  # the caller alone decides how long activations live
        return seen

    def learn_axes(self, pixels: Tensor) -> None:
        """Find the axis of images in everything that the taps see: the one that grows from two images to three.

        From then on it is the first axis of what is reduced. Tensors without such an axis are left out; of a square of
        images by images the rows count. Without this call images are taken to lie along the first axis.

        Args:
            pixels: some images, of which the first is enough.

        Raises:
            Refusal: the model does not take such images.
        """
        shapes = []
        for images in (2, 3):
            self._runs, self._shapes = {}, {}
            few = pixels[:1].expand(images, *pixels.shape[1:]).clone()
            try:
                self.model(few)
            except (Refusal, OSError):
                raise
            except Exception as error:
                raise trouble(self.model, few, error) from error
            finally:
                seen, self._shapes = self._shapes, None
            shapes.append(seen)
        two, three = shapes
        self.axes = {layer: _growing(shape, three.get(layer, ())) for layer, shape in two.items()}

    def _record(self, tap: Tap, value: Any) -> None:
        self._runs[tap] = self._runs.get(tap, 0) + 1
        if self._shapes is not None:
            for key, tensor in floating_tensors(value):
                self._shapes[Layer(tap, self._runs[tap], key)] = tuple(tensor.shape)
            return
        for key, activation in self._tensors(tap, value):
            layer = Layer(tap, self._runs[tap], key)
            try:
                reduced = self.reduce(layer, activation)
            except Exception as fault:
                self._fault = fault
                raise
            if reduced is not None:
                self._seen[layer] = reduced

    def _tensors(self, tap: Tap, value: Any) -> list[tuple[str, Any]]:
        """Return the tensors in a value that passes a tap, each with its place among several (empty if there is only one)."""
        if isinstance(value, Heads):
            return [("", replace(value, images=self._images or len(value)))]
        tensors = list(floating_tensors(value))
        if not tensors:
            raise Refusal(
                f"{str(tap)!r} passes on {type(value).__name__} without a floating-point tensor; tap another layer"
            )
        if self._images:
            tensors = self._of_images(tap, tensors)
        return tensors if len(tensors) > 1 else [("", tensors[0][1])]

    def _of_images(self, tap: Tap, tensors: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        """The tensors that have one row per image, with images along their first axis."""
        own = []
        for key, tensor in tensors:
            axis = self.axes.get(Layer(tap, self._runs[tap], key), 0)
            if axis is not None and tensor.ndim > axis and tensor.shape[axis] == self._images:
                own.append((key, tensor.movedim(axis, 0)))
        if not own:
            shape = " x ".join(map(str, tensors[0][1].shape)) or "a number"
            raise Refusal(
                f"{str(tap)!r} passes on {shape} for {self._images} images, not one row per image (attention in windows, "
                f"a part of the image at a time?), so images cannot be told apart in it; tap another layer, such as the "
                f"output of its block"
            )
        return own


def _growing(two: tuple[int, ...], three: tuple[int, ...]) -> int | None:
    if len(two) != len(three):
        return None
    return next((axis for axis, size in enumerate(two) if (size, three[axis]) == (2, 3)), None)


def trouble(model: nn.Module, pixels: Tensor, error: Exception) -> Refusal:
    """The refusal for a model that fails by itself, such as on images of another size."""
    if isinstance(error, torch.OutOfMemoryError):
        return Refusal(
            f"the memory of {pixels.device} is full with {len(pixels)} images in {model._get_name()}; lower images.batch"
        )
    shape, reason = (
        " x ".join(map(str, pixels.shape[1:])),
        str(error).partition("\n")[0] or type(error).__name__,
    )
    return Refusal(f"{model._get_name()} does not take images of {shape}: {reason}")


def _silence(model: nn.Module, silent: list[Tap]) -> Refusal:
    told = ", ".join(repr(str(tap)) for tap in silent[:3])
    more = f" and {len(silent) - 3} more" if len(silent) > 3 else ""
    heads = silent[0].at == "heads"
    why = (
        "an attention that does not call scaled_dot_product_attention"
        if heads
        else "a fused or skipped module"
    )
    return Refusal(
        f"{told}{more} did not run in the forward pass of {type(model).__name__}, so there is nothing to read ({why}?); "
        f"tap a module that runs"
    )


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


def attach(model: nn.Module, tap: Tap, record: Callable[[Tap, Any], None], hooks: ExitStack) -> None:
    """Hook one tap until ``hooks`` closes: ``record(tap, value)`` is called with whatever passes there."""
    module = tap.module(model)
    if tap.at == "heads":
        attach_heads(module, lambda heads: record(tap, heads), hooks)
    elif tap.at == "in":
        # The first positional argument is the activation in every model we know; the rest are masks, shapes and switches.
        handle = module.register_forward_pre_hook(
            lambda _, args, kwargs: record(tap, args[0] if args else kwargs), with_kwargs=True
        )
        hooks.callback(handle.remove)
    else:
        hooks.callback(module.register_forward_hook(lambda _, __, output: record(tap, output)).remove)
