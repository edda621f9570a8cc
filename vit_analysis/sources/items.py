"""What an item of a data set is: an image, alone, with its class, or in a mapping."""

import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vit_analysis.sources.columns import CLASSES, IMAGES
from vit_analysis.sources.decoded import as_rgb
from vit_analysis.spelling import Refusal

UNKNOWN = -1  # a class that an item has a place for and does not say
# What PIL raises for broken files beside OSError, and nothing else does.
BROKEN = (SyntaxError, struct.error, zlib.error, Image.DecompressionBombError)
EXPECTED = "an image of PIL or a tensor, alone or with its class"


def taken(data: Any, number: int) -> tuple[Image.Image | Tensor, Any]:
    """An item's image and what is said of its class; None where it has no place for one.

    Raises:
        OSError: it cannot be read.
        Refusal: it gives something else, or fails otherwise.
    """
    try:
        item = data[number]
    except (OSError, MemoryError, Refusal):
        raise
    except BROKEN as error:
        raise OSError(str(error) or type(error).__name__) from error
    except Exception as error:  # of whatever kind: it is the user's data set that speaks
        told = " ".join(str(error).split())
        raise Refusal(
            f"item {number} of the data set ({type(data).__name__}) raises {type(error).__name__}"
            f"{f': {told}' if told else ''}; an item is {EXPECTED}"
        ) from error
    image, label = _parts(item)
    return _as_image(image), label


def _parts(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping):
        image = next((name for name in IMAGES if name in item), None)
        if image is None:
            raise Refusal(
                f"the data set gives a {type(item).__name__} of {', '.join(map(repr, item)) or 'nothing'}, and none of these "
                f"is known to be the image; give {{'image': ..., 'label': ...}}"
            )
        known = next((name for name in CLASSES if name in item), None)
        return item[image], _said(item[known]) if known else None
    if isinstance(item, tuple | list) and item:
        return item[0], _said(item[1]) if len(item) > 1 else None
    return item, None


def _said(label: Any) -> Any:
    return UNKNOWN if label is None else label


def _as_image(item: Any) -> Image.Image | Tensor:
    if isinstance(item, np.ndarray):
        return as_rgb(_of_array(item))
    if isinstance(item, Tensor):
        refuse_no_input(item)
        if item.ndim != 3:
            raise Refusal(
                f"the data set gives a tensor of {_shape(item.shape)} where an image is expected: channel x row x col"
            )
        return item
    if not isinstance(item, Image.Image):
        raise Refusal(f"the data set gives {type(item).__name__} where an image is expected: {EXPECTED}")
    return as_rgb(item)


def refuse_no_input(pixels: Tensor) -> None:
    """Check that a tensor can be a model's input: bytes from 0 to 255 would be taken for numbers from about -2 to 2.

    Raises:
        Refusal: it holds no floats.
    """
    if not pixels.is_floating_point():
        raise Refusal(
            f"a tensor of images is a model's input, of normalised floats, and this one of {_shape(pixels.shape)} holds "
            f"{pixels.dtype}; for pictures give images of PIL, as in "
            f"torchvision.transforms.functional.to_pil_image(pixels)"
        )


def _of_array(pixels: np.ndarray) -> Image.Image:
    """A picture of bytes, row x col or row x col x channel."""
    found = (
        f"the data set gives an array of {pixels.dtype}, {_shape(pixels.shape)}, where an image is expected"
    )
    if pixels.dtype != np.uint8:
        raise Refusal(
            f"{found}; a picture is uint8, and a model's input a tensor, as in torch.from_numpy(pixels).float()"
        )
    pixels = pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (3, 4)):
        return Image.fromarray(pixels)
    raise Refusal(f"{found}; a picture is row x col x channel, as in pixels.transpose(1, 2, 0)")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
