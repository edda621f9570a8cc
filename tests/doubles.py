"""What several tests need: images that are given tensors, layers that are functions, an oracle for CKA."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from vit_analysis.images import Batch, Images, Preprocessing


@dataclass(frozen=True)
class Given(Images):
    """Images that are rows of a given tensor, the same for every preprocessing."""

    pixels: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def order(self) -> list[int]:
        return list(range(len(self.pixels)))

    def read(
        self, wanted: Sequence[Preprocessing], *, rank: int = 0, of: int = 1, start: int = 0
    ) -> Iterator[Batch]:
        for number in range(rank, self.batches, of):
            part = self.pixels[number * self.batch :][: self.batch]
            if number >= start:
                yield Batch(
                    number, [part] * len(wanted), torch.full((len(part),), -1), list(range(len(part))), []
                )


@dataclass(frozen=True)
class Labelled(Given):
    """Given images with labels; a choice of them keeps their numbers."""

    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    numbers: tuple[int, ...] | None = None

    @property
    def order(self) -> list[int]:
        return list(range(len(self.pixels)) if self.numbers is None else self.numbers)

    @property
    def targets(self) -> dict[str, list[str]]:
        return {"class": [f"kind {label}" for label in self.labels.unique().tolist()]}

    def truth(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        return {"class": self.labels[list(numbers)]}

    def only(self, numbers: Sequence[int], batch: int | None = None) -> "Labelled":
        return replace(self, numbers=tuple(numbers), batch=batch or self.batch)

    def read(
        self, wanted: Sequence[Preprocessing], *, rank: int = 0, of: int = 1, start: int = 0
    ) -> Iterator[Batch]:
        for number in range(rank, self.batches, of):
            part = self.order[number * self.batch :][: self.batch]
            if number >= start:
                yield Batch(number, [self.pixels[part]] * len(wanted), self.labels[part], part, [])


class Layers(nn.Module):
    """Functions of the input, each the output of a module of that name, run in the order given."""

    def __init__(self, **functions) -> None:
        super().__init__()
        self.functions = functions
        for name in functions:
            self.add_module(name, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        for name, function in self.functions.items():
            getattr(self, name)(function(x))
        return x


def song(k: np.ndarray, l: np.ndarray) -> float:
    """Unbiased HSIC as printed in Song et al. (2012, equation 5): three terms, float64."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))
    ones = np.ones(n)
    trace = np.trace(k @ l)
    product = (ones @ k @ ones) * (ones @ l @ ones) / ((n - 1) * (n - 2))
    return (trace + product - 2 / (n - 2) * (ones @ k @ l @ ones)) / (n * (n - 3))


def u_centred(x: np.ndarray) -> np.ndarray:
    """By its definition: off-diagonal entries whose every row sums to zero, least squares away from the Gram matrix."""
    n = len(x)
    k = x @ x.T
    np.fill_diagonal(k, 0)
    rows = k.sum(1) / (n - 2)
    a = k - rows[:, None] - rows + k.sum() / ((n - 1) * (n - 2))
    return a[np.triu_indices(n, 1)]


def oracle_cka(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> float:
    """Minibatch CKA of two layers, batch by batch, in float64 numpy with the formula above."""

    def grams(batches: Sequence[Tensor]) -> list[np.ndarray]:
        rows = [batch.detach().double().flatten(1).numpy() for batch in batches]
        return [
            (x - x.mean(0)) @ (x - x.mean(0)).T for x in rows
        ]  # HSIC does not depend on the offset; float64 does a little

    ks, ls = grams(xs), grams(ys)
    both, one, other = (
        sum(len(k) * song(k, l) for k, l in zip(a, b, strict=True)) for a, b in ((ks, ls), (ks, ks), (ls, ls))
    )
    return both / np.sqrt(one * other)


def cell(table, layer: str, other: str, column: str = "cka") -> float:
    """One number of a CKA table."""
    rows = table[(table["layer"] == layer) & (table["other_layer"] == other)]
    assert len(rows) == 1
    return float(rows[column].iloc[0])
