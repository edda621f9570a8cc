"""Changes to a model one after another, without running again what a change does not reach.

Up to the place where a change takes effect, a model computes what it computes unchanged. So what its modules return in the
unchanged run is recorded, and under a change each module that had finished before that place returns its record and computes
nothing. All code between modules, and every hook, runs as ever: a position embedding is added, a skip from the stem is taken.
Nothing is supposed of the model but that it does the same again on the same images; whether it does, `resume.prove` finds out.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vit_analysis.anatomy.find import CONTAINERS
from vit_analysis.layers import Branch, Tap
from vit_analysis.spelling import Refusal

# Bytes of records of one batch, or those of the first block if they are more. Blocks beyond are not recorded, and run again.
MOST = 2**31
FREE = (nn.Identity, nn.Dropout)  # they return what they are given, so there is nothing to save

Forward = Callable[..., Any]


class Place(NamedTuple):
    """Where in a model a change takes effect.

    Attributes:
        block: the block within which all that changes lies.
        branches: those of its branches that change; the first addition that runs is where the change takes effect.
    """

    block: nn.Module
    branches: Sequence[Branch] = ()

    @property
    def read(self) -> list[Tap]:
        """The places that the change reads."""
        return [tap for one in self.branches for tap in (one.skip, one.long)]

    def again(self, model: nn.Module) -> set[nn.Module]:
        """The modules that have to run under the change: where it reads and writes inputs, and activations after additions."""
        inputs = {tap.module(model) for tap in self.read if tap.at == "in"}
        written = {one.joined.module(model) for one in self.branches}
        return (
            inputs
            | written
            | {model.get_submodule(one.activation) for one in self.branches if one.activation}
        )


class Entry(NamedTuple):
    """What one call of a module returned; an inner one lies within the block that changes."""

    module: nn.Module
    value: Any
    inner: bool


class Tape:
    """The records of a model's unchanged run on one batch, and the runs under changes that return them.

    Inside a block that changes only what the change reads is recorded. Other modules return numbers that are not one, so that
    it shows if anything does read them.

    Args:
        model: the model.
        blocks: its blocks.
        places: where each change takes effect. Without branches a change takes effect where its block begins.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[nn.Module], places: Sequence[Place]) -> None:
        self._blocks = {place.block: number for number, place in enumerate(places)}
        self._starts = {
            (branch.joined.module(model), branch.joined.at): number
            for number, place in enumerate(places)
            for branch in place.branches
        }
        self._read = {tap.module(model) for place in places for tap in place.read if tap.at == "out"}
        self._outer = set(_recorded(model, set(blocks)))
        self._inner = {
            module: number
            for number, place in enumerate(places)
            for module in _within(place.block, self._read, place.again(model))
        }
        self.clear()

    def clear(self) -> None:
        """Forget all records."""
        self._line: list[Entry] = []  # calls that have finished, without those inside others that have
        self._lines: dict[int, list[Entry]] = {}  # that line where each change takes effect
        self._begun: set[int] = set()
        self._blanks: dict[tuple[Any, ...], Tensor] = {}
        self._bytes, self._keeps = 0, True
        self._replayed: list[Entry] = []
        self._at = 0

    @property
    def unchanged(self) -> bool:
        """Whether a run under a change has not come to the change yet, so that all is as in the unchanged run."""
        return self._at < len(self._replayed)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the unchanged run of one batch."""
        self.clear()
        modules = [*self._outer, *self._inner, *(module for module, _ in self._starts)]
        with _calls(modules, self._record):
            yield
        self._line = []

    @contextmanager
    def replaying(self, number: int) -> Iterator[None]:
        """Return records up to where a change takes effect; they are given up then, as lines share all that others need.

        Raises:
            Refusal: the model did something else than in the unchanged run of the same batch.
        """
        self._replayed, self._at = self._lines.pop(number, []), 0
        try:
            with _calls([entry.module for entry in self._replayed], self._replay):
                yield
            if self.unchanged:
                raise Refusal(
                    "the model does not run the same modules again on the same images, so nothing can be told from changing it"
                )
        finally:
            self._replayed, self._at = [], 0

    def _record(self, module: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if module in self._outer:
            self._keeps = self._bytes < MOST and len(self._lines) < len(self._blocks)
        if module in self._blocks:
            self._lines.setdefault(self._blocks[module], list(self._line))
        self._reach(module, "in")
        first = len(self._line)
        output = forward(*args, **kwargs)
        self._reach(module, "out")
        del self._line[first:]
        if self._keeps and (module in self._outer or self._inner.get(module) not in (None, *self._begun)):
            inner = module not in self._outer
            keep = self._blank if inner and module not in self._read else self._copy
            self._line.append(Entry(module, mapped(output, keep), inner))
        return output

    def _reach(self, module: nn.Module, at: Literal["in", "out"]) -> None:
        number = self._starts.get((module, at))
        if number is not None and number not in self._begun:
            self._begun.add(number)
            self._lines[number] = list(self._line)

    def _replay(self, module: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if not self.unchanged or self._replayed[self._at].module is not module:
            return forward(*args, **kwargs)
        entry = self._replayed[self._at]
        self._at += 1
        if entry.inner or (self.unchanged and not self._replayed[self._at].inner):
            return entry.value  # another record follows, so nothing but code between modules sees this one
        return mapped(entry.value, torch.clone)  # whatever reads it may write into it

    def _copy(self, value: Tensor) -> Tensor:
        self._bytes += value.nbytes
        return value.clone()

    def _blank(self, value: Tensor) -> Tensor:
        """Return a tensor of the same form that is read by nothing; one for all, and nothing but NaN where NaN exists."""
        if not value.is_floating_point():
            return self._copy(value)
        form = (value.shape, value.stride(), value.dtype, value.device)
        if form not in self._blanks:
            self._blanks[form] = torch.full_like(value, torch.nan)
            self._bytes += value.nbytes
        return self._blanks[form]


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in nested tuples, lists and dictionaries.

    Raises:
        TypeError: there is something else in them, in which a tensor may hide.
    """
    if isinstance(value, Tensor):
        return function(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) in (tuple, list):
        return type(value)(mapped(item, function) for item in value)
    if type(value) is dict:
        return {name: mapped(item, function) for name, item in value.items()}
    raise TypeError(f"what a {type(value).__name__} holds is not known")


def _recorded(module: nn.Module, blocks: set[nn.Module]) -> Iterator[nn.Module]:
    """The blocks, and the largest modules that hold no block."""
    for child in module.children():
        if child in blocks:
            yield child
        elif isinstance(child, CONTAINERS) or not blocks.isdisjoint(child.modules()):
            yield from _recorded(child, blocks)
        elif not isinstance(child, FREE):
            yield child


def _within(module: nn.Module, read: set[nn.Module], again: set[nn.Module]) -> Iterator[nn.Module]:
    """The modules in a block that a change reads, and the largest others that hold none that it reads or runs."""
    if not again:
        return
    for child in module.children():
        if child in read:
            yield child
        elif isinstance(child, CONTAINERS) or not (read | again).isdisjoint(child.modules()):
            yield from _within(child, read, again)
        elif not isinstance(child, FREE):
            yield child


@contextmanager
def _calls(modules: Sequence[nn.Module], instead: Callable[..., Any]) -> Iterator[None]:
    """Let ``instead(module, forward, ...)`` run in place of what modules compute; their hooks run as ever."""
    with ExitStack() as stack:
        for module in dict.fromkeys(modules):
            own = vars(module).get("forward")  # of this module and not of its class, as wrappers leave it
            stack.callback(partial(_give_back, module, own))
            module.forward = partial(instead, module, module.forward)
        yield


def _give_back(module: nn.Module, own: Forward | None) -> None:
    if own is None:
        vars(module).pop("forward", None)
    else:
        module.forward = own
