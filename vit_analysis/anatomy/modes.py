"""A model as it is used for analysis, and as it was again afterwards."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Switch dropout off and BatchNorm to its running statistics; every module's own mode comes back afterwards.

    Modes are changed through ``train`` alone, as some modules (timm's TinyViT) keep there what depends on the mode. What was
    compiled runs as it is written, since in a compiled graph there is nothing for hooks to see.
    """
    modes = {module: module.training for module in model.modules()}
    if any(modes.values()):
        model.eval()
    try:
        with _uncompiled():
            yield model
    finally:
        for module, mode in modes.items():  # parents first, as `train` reaches their children
            if module.training != mode:
                module.train(mode)


@contextmanager
def _uncompiled() -> Iterator[None]:
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
