"""From what a source says of its images' classes to names of classes and a number for each image."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from vit_analysis.sources.names import natural
from vit_analysis.spelling import Refusal


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


def said(value: Any) -> str | int | None:
    """The number or name of a class, which may be a whole float, or alone in a list or an array; None if it is neither.

    Examples:
        >>> said([3.0]), said("cat"), said(0.5), said([0, 1])
        (3, 'cat', None, None)
    """
    while isinstance(value, list | tuple | np.ndarray | Tensor):
        flat = value.reshape(-1) if isinstance(value, np.ndarray | Tensor) else value
        if len(flat) != 1:
            return None
        value = flat[0].item() if isinstance(flat, Tensor) else flat[0]
    if isinstance(value, float | np.floating):
        return int(value) if float(value).is_integer() else None
    if isinstance(value, str):
        return value.strip() or None
    return int(value) if isinstance(value, int | np.integer | np.bool_) else None


def of_codes(
    codes: Int[np.ndarray, " image"],
    values: Sequence[str | int],
    what: str,
    names: Sequence[str] | None = None,
) -> Labels:
    """Number the classes that occur: numbers in order of their value, names in natural order.

    Texts are numbers only if all of them are written as numbers are: "007" and "7" are two names.

    Args:
        codes: for each image, which of ``values`` is said of it; -1 where nothing is.
        values: different numbers or names; a negative number says that the class is not known.
        what: the source, for messages.
        names: names of the classes in order of their labels, where they are known; some of them may not occur.

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
    occurring, codes = np.unique(codes, return_inverse=True)
    values = [values[code] for code in occurring]
    if not all(_is_whole(value) for value in values):
        texts = [str(value) for value in values]
        return _numbered(codes, texts, sorted(set(texts), key=natural))
    numbers = [int(value) for value in values]
    if names is None:
        return _numbered(codes, numbers, sorted(set(numbers)))
    if max(numbers) >= len(names):
        raise Refusal(f"{what} has an image of class {max(numbers)}, and {len(names):,} classes at most")
    return Labels(list(names), torch.from_numpy(np.array(numbers, dtype=np.int64)[codes]))


def _numbered(codes: Int[np.ndarray, " image"], values: Sequence[Any], order: Sequence[Any]) -> Labels:
    """Number values by their place in an order."""
    place = {value: number for number, value in enumerate(order)}
    numbers = np.array([place[value] for value in values], dtype=np.int64)
    return Labels([str(value) for value in order], torch.from_numpy(numbers[codes]))


def _is_whole(value: str | int) -> bool:
    """Return whether this is a number of a class, or a text that is written as one: "7" is, and "007" is not."""
    return not isinstance(value, str) or re.fullmatch(r"0|-?[1-9][0-9]{0,99}", value) is not None
