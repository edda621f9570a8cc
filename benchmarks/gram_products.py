"""Gram products by size and method on one device: time, share of the roofline, and the error of CKA that a method makes.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/gram_products.py    # on this machine's processor, in CPU time

`rows` gives the rows of a Markdown table; `benchmarks/gpu.py` prints it for a GPU. The roofline is measured first: the
bandwidth of a copy, and the rate of a large product in each precision. A method that passes over its input once cannot be
faster than the larger of its bytes over the one and its multiplications over the other. Of a symmetric product half is
enough, so that a method that makes only that may read more than 100 %.
"""

import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy.linalg import blas
from torch import Tensor

from vit_analysis.tensors import similarity
from vit_analysis.tensors.precision import computing

SUBBATCH = 32
CHUNK = (
    2**14
)  # columns whose products of half precision are added in float32, before those sums are added in float64
OFFSET = 0.3  # of all images, in sizes of what differs between them: in trained networks it does not dominate either
KEPT = ~0x1FFF  # what TF32 keeps of the bits of a float32


@dataclass(frozen=True)
class Roofline:
    """What a device can do: bytes a second of a copy, read and written, and multiply-adds a second by precision."""

    bytes: float
    rates: dict[str, float]

    def seconds(self, rows: Tensor, rate: str, images: int) -> float:
        """The least time of a product of all pairs within so many images, of rows that are read once."""
        return max(rows.nbytes / self.bytes, rows.numel() * images / self.rates[rate])


def plain(rows: Tensor) -> Tensor:
    """One product in float32."""
    with computing("float32", rows.device):
        return (rows @ rows.T).double()


def one_tf32(rows: Tensor) -> Tensor:
    """One product in TF32."""
    with computing("tf32", rows.device):
        return (rows @ rows.T).double()


def two_tf32(rows: Tensor) -> Tensor:
    """Two products in TF32 of centred rows, split into parts H + L that it holds exactly: HH' + HL' + (HL')'."""
    rows = rows - rows.mean(0)
    high = (rows.view(torch.int32) & KEPT).view(torch.float32)
    with computing("tf32", rows.device):
        mixed = high @ (rows - high).T
        return (high @ high.T + mixed + mixed.T).double()


def half(rows: Tensor) -> Tensor:
    """Products of half precision into float32, chunk by chunk added in float64."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
    for part in rows.split(CHUNK, dim=1):
        total += (
            torch.mm(part, part.T, out_dtype=torch.float32) if part.is_cuda else part.float() @ part.float().T
        )
    return total


def subbatches(rows: Tensor) -> Tensor:
    """One batched product in float32 within sub-batches."""
    with computing("float32", rows.device):
        parts = rows.view(-1, SUBBATCH, rows.shape[1])
        return (parts @ parts.mT).double()


def symmetric(rows: Tensor) -> Tensor:
    """One half of the product by the routine of BLAS for that, and its mirror image."""
    half = torch.from_numpy(blas.ssyrk(1.0, rows.numpy().T, trans=1, lower=1)).double()
    return half.tril() + half.tril(-1).T


def two_bf16(rows: Tensor) -> Tensor:
    """Two products in bfloat16 added in float32, which a CPU with matrix units has, of rows split into parts H + L."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    products = torch.backends.mkldnn.matmul
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        for part in rows.split(similarity.CPU_PIECE // len(rows), dim=1):
            high = part.bfloat16().float()
            mixed = high @ (part - high).T
            total += high @ high.T + mixed + mixed.T
    finally:
        products.fp32_precision = before
    return total


METHODS: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype, str]] = {
    "ours": (similarity.gram, torch.float32, "float32"),
    "float32": (plain, torch.float32, "float32"),
    f"float32, {SUBBATCH}s": (subbatches, torch.float32, "float32"),
    "tf32": (one_tf32, torch.float32, "tf32"),
    "2 x tf32": (two_tf32, torch.float32, "tf32"),
    "ours, bf16": (similarity.gram, torch.bfloat16, "bf16"),
    "bf16 into float32": (half, torch.bfloat16, "bf16"),
}
OF_CPU: dict[str, tuple[Callable[[Tensor], Tensor], torch.dtype, str]] = {
    **{name: METHODS[name] for name in ("ours", "float32")},
    "BLAS's symmetric": (symmetric, torch.float32, "float32"),
    "2 x bf16": (two_bf16, torch.float32, "bf16"),
}


def rows(
    images: Sequence[int],
    features: Sequence[int],
    time: Callable[[Callable[[], Any]], float],
    device: torch.device,
    methods: Sequence[str] = tuple(METHODS),
) -> Iterator[str]:
    """Rows of a table with a column per method: milliseconds, share of the roofline, error of CKA with 64-bit products."""
    roofline = measured(time, device)
    rates = ", ".join(f"{name} {2e-12 * rate:.3g}" for name, rate in roofline.rates.items())
    yield f"Measured: a copy moves {roofline.bytes / 1e12:.3g} TB/s; products in TFLOP/s: {rates}.\n"
    yield f"| images | features | {' | '.join(methods)} |"
    yield f"|--:|--:|{'---|' * len(methods)}"
    for count in images:
        for size in features:
            made = torch.randn(count, size, device=device) + OFFSET * torch.randn(size, device=device)
            cells = [cell(name, made, roofline, time) for name in methods]
            yield f"| {count} | {size} | {' | '.join(cells)} |"


def measured(time: Callable[[Callable[[], Any]], float], device: torch.device) -> Roofline:
    """The roofline of a device."""
    size = 8192 if device.type == "cuda" else 512
    source = torch.randn(size, 8 * size, device=device)
    target = torch.empty_like(source)
    rate = 2 * source.nbytes / time(lambda: target.copy_(source))
    rates = {}
    square = source[:, :size].contiguous()
    for name in ("float32", "tf32", "bf16"):
        with computing(name, device):
            rates[name] = size**3 / time(lambda: square @ square)
    return Roofline(rate, rates)


def cell(name: str, made: Tensor, roofline: Roofline, time: Callable[[Callable[[], Any]], float]) -> str:
    """Of one method: milliseconds, share of the roofline and, where that is cheap, the error of CKA."""
    method, dtype, rate = {**METHODS, **OF_CPU}[name]
    within = SUBBATCH if method is subbatches else len(made)
    if len(made) % within:
        return ""
    given = made.to(dtype)
    seconds = time(lambda: method(given))
    told = f"{1e3 * seconds:.3g} ms, {roofline.seconds(given, rate, within) / seconds:.0%}"
    exact = made.numel() <= 2**26 and method is not subbatches
    return f"{told}, {error(method, given):.0e}" if exact else told


def error(method: Callable[[Tensor], Tensor], given: Tensor) -> float:
    """By how much CKA with another layer is apart from that of products in float64."""
    other = given + given.std() * torch.randn_like(given)
    found, exact = (
        similarity.cka(similarity.hsic(torch.stack([similarity.centred(product(x)) for x in (given, other)])))
        for product in (method, in_float64)
    )
    return float((found - exact)[0, 1].abs())


def in_float64(rows: Tensor) -> Tensor:
    """The product, in float64."""
    rows = rows.double()
    rows = rows - rows.mean(0)
    return rows @ rows.T


def main() -> None:
    """Print the table of a processor."""

    def seconds(work: Callable[[], Any], times: int = 10) -> float:
        work()
        start = clock.process_time()
        for _ in range(times):
            work()
        return (clock.process_time() - start) / times

    print("\n".join(rows((32, 160), (37_824, 150_528), seconds, torch.device("cpu"), tuple(OF_CPU))))


if __name__ == "__main__":
    main()
