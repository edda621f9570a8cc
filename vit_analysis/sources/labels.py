"""From what a source says of its images' classes to names of classes and a number for each image."""

import json
import re
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vit_analysis.sources.names import natural
from vit_analysis.spelling import Refusal

MOST = 100_000  # classes that have numbers and no names


class Labels:
    """The classes of a source, and the class of each of its images.

    Attributes:
        names: names of the classes, in order of their labels.
        labels: the class of every image, -1 where there are no classes.
    """

    def __init__(self, names: list[str], labels: Int[Tensor, " image"]) -> None:
        self.names, self.labels = names, labels

    @property
    def facts(self) -> tuple[str, memoryview]:
        """What a digest has to hold of them."""
        return json.dumps(self.names), self.labels.numpy().data


def of_codes(
    codes: Int[np.ndarray, " image"],
    values: Sequence[str | int],
    what: str,
    names: Sequence[str] | None = None,
) -> Labels:
    """Number the classes: whole numbers are labels as they are, anything else is a name, and names are sorted.

    Args:
        codes: for each image, which of ``values`` is said of it; -1 where nothing is.
        values: different numbers or names.
        what: the source, for messages.
        names: names of the classes in order of their labels, where they are known.

    Raises:
        Refusal: only some of the images have a class, or a number is none of a class.
    """
    unknown = np.array([_is_whole(value) and int(value) < 0 for value in values], dtype=bool)
    nothing = codes < 0
    if len(values):
        nothing |= unknown[codes]
    if nothing.all():
        return Labels([], torch.full((len(codes),), -1))
    if nothing.any():
        raise Refusal(
            f"{nothing.sum():,} of {len(codes):,} images of {what} have no class and the others have one"
        )
    if not all(_is_whole(value) for value in values):
        order = sorted({str(value) for value in values}, key=natural)
        place = {name: number for number, name in enumerate(order)}
        return Labels(order, _each(codes, [place[str(value)] for value in values]))
    labels = _each(codes, [int(value) for value in values])
    largest = int(labels.max())
    if names is None and largest < MOST:
        names = [str(number) for number in range(largest + 1)]
    if names is None or largest >= len(names):
        raise Refusal(
            f"{what} has an image of class {largest}, and {len(names or range(MOST)):,} classes at most"
        )
    return Labels(list(names), labels)


def _is_whole(value: str | int) -> bool:
    return not isinstance(value, str) or re.fullmatch(r"-?[0-9]{1,18}", value) is not None


def _each(codes: Int[np.ndarray, " image"], numbers: list[int]) -> Int[Tensor, " image"]:
    return torch.from_numpy(np.array(numbers, dtype=np.int64)[codes])
