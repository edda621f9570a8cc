"""The precision of matrix products and convolutions, whose settings belong to the user and come back as they were."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from vit_analysis.typed import Precision

_current: ContextVar[Precision] = ContextVar("precision", default="float32")


@contextmanager
def computing(precision: Precision, device: torch.device) -> Iterator[None]:
    """Compute matrix products and convolutions in a precision, whatever is set outside; those settings come back.

    Args:
        precision: ``float32`` in full, which on a GPU torch's own default is not for convolutions; ``tf32``, its products with
            ten bits of the mantissa, on NVIDIA's GPUs; ``bf16``, what autocast computes in bfloat16, and the rest in full.
        device: where.
    """
    newer = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    of_products = "tf32" if precision == "tf32" else "ieee"
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
    before = _current.set(precision)
    try:
        with _newer(of_products) if newer else _older(of_products), autocast:
            yield
    finally:
        _current.reset(before)


def full_float32(device: torch.device) -> AbstractContextManager[None]:
    """Compute in true float32: no TF32, no bf16 substitution, no autocast."""
    return computing("float32", device)


def as_precise_as_features(device: torch.device) -> AbstractContextManager[None]:
    """Compute products of centred features in true float32, or in TF32 on a GPU whose features are no more precise.

    Beside a forward pass in TF32 or bf16, which changes CKA by 1e-4 or 1e-3, that changes it by 1e-5 or less, and takes a
    third of the time (benchmarks/README.md).
    """
    coarse = device.type == "cuda" and _current.get() != "float32"
    return computing("tf32" if coarse else "float32", device)


@contextmanager
def _older(precision: str) -> Iterator[None]:
    """Before torch 2.9 there is one setting of products and one of convolutions."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_older("high" if precision == "tf32" else "highest", precision == "tf32")
    try:
        yield
    finally:
        _set_older(*before)


@contextmanager
def _newer(precision: str) -> Iterator[None]:
    """Since torch 2.9 each backend has its own; the older two are set to the same, or whoever asks for them meets an error."""
    every: Any = torch.backends
    of_gpu = [every.cuda.matmul, every.cudnn.conv, every.cudnn.rnn]
    backends = [*of_gpu, every.mkldnn.matmul, every.mkldnn.conv, every.mkldnn.rnn]
    before = [own.fp32_precision for own in backends]
    products = _told(torch.get_float32_matmul_precision)
    convolutions = _told(lambda: torch.backends.cudnn.allow_tf32)
    try:
        _set_older("high" if precision == "tf32" else "highest", precision == "tf32")
        for own in backends:
            own.fp32_precision = precision if own in of_gpu else "ieee"
        yield
    finally:
        _set_older(products, convolutions)
        for own, set_before in zip(backends, before, strict=True):
            own.fp32_precision = "none"  # as the more general setting says, if that is what it was
            if own.fp32_precision != set_before:
                own.fp32_precision = set_before


def _told(ask: Callable[[], Any]) -> Any:
    """The older setting, or None: after a user has set the newer ones, asking for it is an error."""
    try:
        return ask()
    except RuntimeError:
        return None


def _set_older(products: str | None, convolutions: bool | None) -> None:
    """Set the older two, and by that the newer ones of the same; None stays as it is."""
    if products is not None:
        torch.set_float32_matmul_precision(products)
    if convolutions is not None:
        torch.backends.cudnn.allow_tf32 = convolutions
