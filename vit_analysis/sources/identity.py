"""What tells that two images are the same one, whatever their sources are and however these were named.

Names do not tell it: a folder has many paths, a split several names, and a shard lies in a folder of shards. So images are
compared by a digest of what is stored of them, or, where a data set gives only pixels, of those.
"""

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vit_analysis.sources.source import Source
from vit_analysis.spelling import Refusal

logger = logging.getLogger(__name__)

TRIED = 8  # images that are read twice, to see whether they are the same again


def of_file(content: bytes) -> str:
    """The identity of an image by the bytes of its file."""
    return f"file {hashlib.sha256(content).hexdigest()}"


def of_pixels(image: Image.Image | Tensor) -> str:
    """The identity of an image of which only the pixels are known."""
    if isinstance(image, Tensor):
        own = image.detach().cpu().contiguous()
        kind, content = f"{tuple(own.shape)}{own.dtype}", own.flatten().view(torch.uint8).numpy().tobytes()
    else:
        kind, content = f"{image.mode}{image.size}", np.asarray(image).tobytes()
    return f"pixels {hashlib.sha256(kind.encode() + content).hexdigest()}"


def others(numbers: Sequence[int], source: Source, known: Sequence[int], known_source: Source) -> list[int]:
    """Those of some images of a source that are none of the known images of another source.

    Raises:
        Refusal: that cannot be known.
    """
    if not source.at_hand:  # then it takes a while
        logger.info("comparing %d images with the %d that are learned from", len(numbers), len(known))
    own, learned = _identities(source, numbers), _identities(known_source, known)
    kinds = [{identity.partition(" ")[0] for identity in found.values()} for found in (own, learned)]
    if all(kinds) and len(kinds[0] | kinds[1]) > 1:
        raise Refusal(
            "it cannot be known whether some of the images to judge on are among those to learn from: of some there are "
            "files, and of others pixels only; give both in one form, as two folders or two data sets"
        )
    same = set(learned.values())
    return [number for number in numbers if own.get(number) not in same]


def _identities(source: Source, numbers: Sequence[int]) -> dict[int, str]:
    """The identities of the images that can be read."""
    found = dict[int, str]()
    for number in sorted(numbers):  # neighbours lie together in tars and parquet files
        try:
            found[number] = source.identity(number)
            changing = len(found) <= TRIED and source.identity(number) != found[number]
        except OSError:
            continue
        if changing:
            raise Refusal(
                f"{source.name(number)} is another image each time it is read, so it cannot be known whether it is among "
                f"those to learn from; give the data set without random transforms"
            )
    return found
