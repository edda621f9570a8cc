"""What a lower precision of the forward pass changes: similarities of the first batch, beside those in full precision."""

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float64
from torch import Tensor

from vit_analysis import layers
from vit_analysis.images import Images
from vit_analysis.models import Model
from vit_analysis.reading.stream import Activation, Reading, hooked, look
from vit_analysis.spelling import Refusal
from vit_analysis.tensors import similarity

logger = logging.getLogger(__name__)


def say(models: Mapping[str, Model], images: Images) -> None:
    """Say in the log what the precision of these models changes, if it is not full."""
    precisions = sorted({own.precision for own in models.values() if own.precision not in (None, "float32")})
    if not precisions or not logger.isEnabledFor(logging.INFO):
        return
    try:
        apart = changes(models, images)
    except Refusal as unknown:
        logger.info("what %s changes is not known: %s", " and ".join(precisions), unknown)
        return
    size = min(images.batch, len(images.order))
    logger.info(
        "%s changes CKA of block outputs by %.1g (median) and %.1g (most) on the first %d images",
        *(" and ".join(precisions), apart.nanmedian(), apart.nan_to_num().max(), size),
    )


def changes(models: Mapping[str, Model], images: Images) -> Float64[Tensor, "layer layer"]:
    """By how much the CKA of any two block outputs of the first batch differs from that in full precision.

    Raises:
        Refusal: the blocks of a model are not known, or there are too few images.
    """
    full = {name: replace(model, precision="float32") for name, model in models.items()}
    return (_similarities(models, images) - _similarities(full, images)).abs()


def _similarities(models: Mapping[str, Model], images: Images) -> Float64[Tensor, "layer layer"]:
    wanted = list(dict.fromkeys(own.preprocessing for own in models.values()))
    batch = next(iter(images.read(wanted)))
    reading = Reading(models, images, layers.choose(models, "blocks"), _vector)
    vectors = []
    for model in models.values():
        with hooked(reading, model) as run:
            pixels = batch.inputs[wanted.index(model.preprocessing)]
            vectors += [kept.cpu() for kept in look(reading, model, run, pixels, batch.images).values()]
    return similarity.cka(similarity.hsic(torch.stack(vectors)))


def _vector(activation: Activation) -> Tensor:
    return similarity.centred(activation.grams.all)
