"""What `Images` asks of a source of images, whatever kind it is."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from vit_analysis.sources.preprocessing import Batch, Preprocessing


@runtime_checkable
class Source(Protocol):
    """Images by number, with the answers that are known of them.

    Attributes:
        at_hand: whether an image costs less than handing it over from a worker process.
    """

    at_hand: bool

    def order(self, limit: int | None, seed: int) -> list[int]:
        """Choose images for a run, and put them in order."""

    def targets(self) -> dict[str, list[str]]:
        """The names of the answers to each question that images are labelled for; the first question is their class."""

    def truth(self, numbers: Sequence[int]) -> dict[str, Int[Tensor, " image"]]:
        """The right answers for each of `targets`."""

    def batches(self, wanted: Sequence[Preprocessing]) -> Dataset[Batch]:
        """A data set that makes a whole batch of a list of numbers."""

    def name(self, number: int) -> str:
        """The name of an image, as a user finds it again."""

    def contents(self) -> dict[str, Any]:
        """Facts, in types of JSON, that change whenever the images, their order or their labels do."""

    def origin(self) -> Hashable:
        """A key that is equal for two sources in which the same number is the same image."""

    def identity(self, number: int) -> str:
        """A text that is equal for the same image in any source: what is compared, and a digest of it.

        Raises:
            OSError: the image cannot be read.
        """


@dataclass(frozen=True)
class Named:
    """The name of a source, and what else says which images of it are meant; the fields are those of `Images`."""

    source: str
    root: Path | None = None
    split: str = "validation"
    image_column: str | None = None
    label_column: str | None = None
