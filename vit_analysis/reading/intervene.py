"""Temporary changes to a model. Each is a ``with`` block that leaves the model as it found it, whatever happens inside."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from vit_analysis.anatomy.modes import evaluating
from vit_analysis.layers import Branch, Tap
from vit_analysis.reading.capture import attach, trouble
from vit_analysis.reading.replay import Tape
from vit_analysis.spelling import Refusal


@contextmanager
def channels_last(model: nn.Module) -> Iterator[nn.Module]:
    """Store the weights of convolutions with their channels last in memory: the same numbers, in less time.

    On a CPU the convolutions of a ResNet-50 took 5.6 s so instead of 8.3 s. Activations take over the order of the weights.
    """
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    before = [kernel.data for kernel in kernels]  # the same memory comes back, as others may share it
    with torch.inference_mode(False):
        for kernel in kernels:
            kernel.data = kernel.data.contiguous(memory_format=torch.channels_last)
    try:
        yield model
    finally:
        for kernel, data in zip(kernels, before, strict=True):
            kernel.data = data


@contextmanager
def edited(model: nn.Module, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[nn.Module]:
    """Pass what some modules return through functions: ``{"blocks.3": lambda x: 100 * x}``.

    The changed value is what the rest of the model goes on with, and what taps on these modules see, since hooks run in the
    order in which they were attached: enter this block before `Capture`.

    Raises:
        Refusal: there is no module of that path in the model.
    """
    with ExitStack() as hooks:
        for path, edit in edits.items():
            hook = (
                Tap(path).module(model).register_forward_hook(lambda _, __, output, edit=edit: edit(output))
            )
            hooks.callback(hook.remove)
        yield model


def true_branches(model: nn.Module, branches: Sequence[Branch], images: Tensor) -> list[Branch]:
    """Return the branches whose output is activation(z + f(z)), as one pass of the first image shows."""
    seen: dict[Tap, Any] = {}

    def see(tap: Tap, value: Any) -> None:
        own = _first(value)
        seen.setdefault(tap, None if own is None else own.clone())

    with evaluating(model), torch.no_grad(), ExitStack() as hooks:
        for tap in {tap for one in branches for tap in (one.skip, one.long, one.joined)}:
            attach(model, tap, see, hooks)
        try:
            model(images[:1].clone())
        except Refusal:
            raise
        except Exception as error:
            raise trouble(model, images[:1], error) from error
        return [one for one in branches if _is_sum(model, one, seen)]


def _is_sum(model: nn.Module, branch: Branch, seen: Mapping[Tap, Any]) -> bool:
    skip, long, joined = (seen.get(tap) for tap in (branch.skip, branch.long, branch.joined))
    if skip is None or long is None or joined is None:
        return False
    return branch.is_sum(model, skip, long, joined)


@contextmanager
def without_skips(model: nn.Module, branches: Sequence[Branch]) -> Iterator[nn.Module]:
    """Make blocks pass on activation(f(z)) instead of activation(z + f(z)); taps see it, even those attached before.

    Raises:
        Refusal: there is no module of that path in the model; or, from within the model and in the first pass, the output of a
            branch is not activation(z + f(z)).
    """
    held: dict[Branch, Tensor] = {}
    skips: dict[Branch, Tensor] = {}
    checked: set[Branch] = set()

    def hold_skip(branch: Branch, value: Any) -> None:
        if branch not in checked:
            skips[branch] = _tensor(branch, value)[:1].clone()

    def hold(branch: Branch, output: Any) -> None:
        held[branch] = _tensor(branch, output).clone()  # the addition may be done in place

    def replace(branch: Branch, value: Any) -> Any:
        joined = _tensor(branch, value)
        if branch not in held:
            raise branch.refusal()
        long = held.pop(branch)
        if branch not in checked:
            if branch not in skips or not branch.is_sum(model, skips.pop(branch), long[:1], joined[:1]):
                raise branch.refusal()
            checked.add(branch)
        changed = branch.join(model, long).reshape(joined.shape)
        return changed if isinstance(value, Tensor) else type(value)((changed, *value[1:]))

    with ExitStack() as hooks:
        for branch in branches:
            for handle in _hooked(model, branch, hold, replace):
                hooks.callback(handle.remove)
        # Hooks prepended last run first, so z is read before anything is replaced.
        for branch in branches:
            hooks.callback(_hooked_skip(model, branch, hold_skip).remove)
        yield model


def _first(value: Any) -> Tensor | None:
    """The activation in what a module passes on: the first of several, as attention weights come after it."""
    if isinstance(value, tuple | list) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def _tensor(branch: Branch, value: Any) -> Tensor:
    own = _first(value)
    if own is None:
        raise branch.refusal()
    return own


def _hooked(
    model: nn.Module,
    branch: Branch,
    hold: Callable[[Branch, Any], None],
    replace: Callable[[Branch, Any], Any],
) -> list[Any]:
    def replace_input(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return replace(branch, args[0]), *args[1:]

    joined = branch.joined.module(model)
    return [
        branch.long.module(model).register_forward_hook(
            lambda _, __, output: hold(branch, output), prepend=True
        ),
        joined.register_forward_pre_hook(replace_input, prepend=True)
        if branch.joined.at == "in"
        else joined.register_forward_hook(lambda _, __, output: replace(branch, output), prepend=True),
    ]


def _hooked_skip(model: nn.Module, branch: Branch, hold: Callable[[Branch, Any], None]) -> Any:
    module = branch.skip.module(model)
    if branch.skip.at == "in":
        return module.register_forward_pre_hook(lambda _, args: hold(branch, args[0]), prepend=True)
    return module.register_forward_hook(lambda _, __, output: hold(branch, output), prepend=True)


class Repeated(nn.Module):
    """A model that runs once under each of several changes, so that one pass over the images measures them all.

    Its layers are called ``model.`` and their path, with ``#2``, ``#3`` ... under the second, third ... change. It returns
    what the last run returned.

    Attributes:
        model: the model.
        changes: the changes; the first changes nothing where there is a tape.
        tape: its records of the first run on a batch, from which the others resume; None runs all of the model every time.
    """

    def __init__(
        self, model: nn.Module, changes: Sequence[Callable[[nn.Module], AbstractContextManager[Any]]]
    ) -> None:
        super().__init__()
        self.model = model
        self.changes = list(changes)
        self.tape: Tape | None = None

    def _get_name(self) -> str:
        return self.model._get_name()

    @property
    def unchanged(self) -> bool:
        """Whether all is still as in the first run, as the present one has not come to its change."""
        return self.tape is not None and self.tape.unchanged

    def forward(self, images: Tensor) -> Any:
        """Run the model under every change in turn."""
        try:
            for number, change in enumerate(self.changes):
                with change(self.model), self._taped(number):
                    output = self.model(images.clone())  # a model may write into its input
        finally:
            if self.tape:
                self.tape.clear()
        return output

    def _taped(self, number: int) -> AbstractContextManager[Any]:
        if self.tape is None:
            return nullcontext()
        return self.tape.replaying(number - 1) if number else self.tape.recording()
