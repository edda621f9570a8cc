"""Places in a network: where activations are read (`Tap`), and what is added beside a skip connection (`Branch`)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from vit_analysis.spelling import Refusal, did_you_mean

# activation(z + f(z)) may differ from the output by this share of f(z), and by rounding in so many last places of the sum.
ROUNDING, LAST_PLACES = 1e-2, 1


class Tap(NamedTuple):
    """A place in a model where activations are read.

    Attributes:
        path: of a module, such as ``blocks.3.attn``; the model itself is the empty path.
        at: ``out`` is what the module returns. ``in`` is what it is given: for ``blocks.3.norm2`` the residual stream in the
            middle of a block, for the model itself its images. ``heads`` is the queries, keys and values of an attention: what
            it hands to `scaled_dot_product_attention`, after its norms, rotations and biases (`heads.Heads`).
    """

    path: str
    at: Literal["out", "in", "heads"] = "out"

    @classmethod
    def of(cls, name: str) -> "Tap":
        """The tap that is printed as ``PATH``, ``PATH:in`` or ``PATH:heads``."""
        path, colon, at = name.rpartition(":")
        return cls(path, at) if colon and at in ("in", "heads") else cls(name)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.path if self.at == "out" else f"{self.path}:{self.at}"

    def module(self, model: nn.Module) -> nn.Module:
        """The module of a model at this path.

        Raises:
            Refusal: there is none; it gives the nearest right paths.
        """
        try:
            return model.get_submodule(self.path)
        except AttributeError:
            paths = [name for name, _ in model.named_modules() if name]
            near = did_you_mean(self.path, paths)
            raise Refusal(f"no layer {self.path!r} in {type(model).__name__}; {near}") from None


INPUT = Tap("", "in")  # the images as the model receives them


class Branch(NamedTuple):
    """A long branch f beside a skip connection, with the output activation(z + f(z)).

    Attributes:
        block: path of the block that it is part of.
        sublayer: ``attention``, ``mlp`` or ``unit``.
        skip: where z is read, after its projection if it has one.
        long: where f(z) is read.
        joined: where the output is read.
        activation: path of a module between the addition and `joined`; None where there is none.
    """

    block: str
    sublayer: str
    skip: Tap
    long: Tap
    joined: Tap
    activation: str | None = None

    def join(self, model: nn.Module, total: Tensor) -> Tensor:
        """Return activation(total), which may overwrite total; no hook sees it."""
        return total if self.activation is None else model.get_submodule(self.activation).forward(total)

    def is_sum(self, model: nn.Module, skip: Tensor, long: Tensor, joined: Tensor) -> bool:
        """Return whether the output is activation(z + f(z)); NaN counts as equal, as other checks find it."""
        if not skip.numel() == long.numel() == joined.numel():
            return False
        expected = self.join(model, skip.reshape(joined.shape) + long.reshape(joined.shape))
        rounding = LAST_PLACES * torch.finfo(joined.dtype).eps * joined.norm()
        return not (expected - joined).norm() > ROUNDING * long.norm() + rounding

    def refusal(self) -> Refusal:
        """The refusal for a block that adds in another way."""
        return Refusal(
            f"what goes on after {str(self.long)!r} is not z + f(z) with z from {str(self.skip)!r}: its block adds in another "
            f"way (parallel branches, a norm or a scale after the branch), and such skip connections are not known"
        )


class Sublayer(NamedTuple):
    """A step of the residual stream.

    Attributes:
        name: its name, numbered as in the paper: ``attention 1``, ``MLP 1``, ``initial conv``, ``unit 1``.
        residual: tap of the stream after the step.
        long: tap of what the step adds to it, before the addition; None where it is unknown or there is no addition.
        branch: the addition of `long` as we suppose it; whether the model adds so, only a run of it shows
            (`intervene.true_branches`).
        needed: whether there is no such step at all if it adds in another way, as `residual` is then no residual stream.
    """

    name: str
    residual: Tap
    long: Tap | None
    branch: Branch | None = None
    needed: bool = False
