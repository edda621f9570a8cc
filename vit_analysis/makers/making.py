"""What every codebase has in common: the shape of a maker, and how its errors are told."""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from vit_analysis.images import Preprocessing
from vit_analysis.loading.fitting import Shown
from vit_analysis.makers.request import RANDOM
from vit_analysis.spelling import Refusal, did_you_mean

logger = logging.getLogger(__name__)


@runtime_checkable
class Maker(Protocol):
    """How one codebase makes its networks."""

    def untrained(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        """Make a network without trained weights."""

    def trained(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        """Make a network with the codebase's own weights."""

    def settings(self, shown: Shown, module: nn.Module) -> dict[str, Any]:
        """Say with which settings a network would be as a checkpoint shows."""

    def preprocessing(self, name: str, module: nn.Module) -> Preprocessing:
        """Say how an image becomes the network's input."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial weights from a seed, and leave the random numbers of the rest of the program as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def built(
    name: str, make: Callable[..., nn.Module], settings: Mapping[str, Any], known: set[str]
) -> nn.Module:
    """Call a constructor with settings that a user wrote.

    Args:
        name: what is built, for messages.
        make: the constructor.
        settings: by KEY.
        known: keys that are known to be taken, to tell a misspelt one.

    Raises:
        Refusal: the constructor does not take them.
    """
    try:
        return make(**settings)
    except Exception as error:  # constructors fail in their own ways
        if not settings:
            raise
        near = next((f"; {did_you_mean(key, known)}" for key in settings if key not in known), "")
        told = ", ".join(f"{key}={value}" for key, value in settings.items())
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise Refusal(f"{name} does not take {told}: {reason}{near}") from error


def keys_of(*functions: Callable[..., Any]) -> set[str]:
    """The names of the arguments of functions."""
    found = {key for function in functions for key in inspect.signature(function).parameters}
    return found - {"self", "args", "kwargs"}


def no_weights(name: str, error: Exception) -> OSError:
    """The error for trained weights that did not come."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return OSError(
        f"no trained weights for {name!r}: {reason}; give a checkpoint file ({name}@FILE) or the untrained twin "
        f"({name}@{RANDOM})"
    )
