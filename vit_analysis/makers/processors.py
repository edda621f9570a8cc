"""How an image becomes the input of a network of `transformers`, by the configuration of its processor."""

from collections.abc import Mapping
from math import isclose
from typing import Any

from PIL import Image
from torch import nn

from vit_analysis.images import Preprocessing
from vit_analysis.spelling import Refusal

PROCESSOR = "preprocessor_config.json"
HALF = (0.5,) * 3  # mean and standard deviation of ViT's own processor
# Of a processor's configuration, what can only be as usual.
USUAL = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}
SQUASHING = ("ViT", "DeiT", "Beit", "Siglip")  # processors for which a size of one number is a square
EDGE_FROM = 384  # from this edge on ConvNeXt's processor does not crop


def preprocessing(module: nn.Module) -> Preprocessing:
    """The preprocessing of a network whose processor is not known: its own size, squashed, mean and deviation 0.5."""
    config: Any = module.config
    rows, columns = _sides(getattr(config, "image_size", 224) or 224, "image_size")
    return Preprocessing(
        (getattr(config, "num_channels", 3), rows, columns), HALF, HALF, "bilinear", 1.0, "squash"
    )


def processed(facts: Mapping[str, Any], module: nn.Module) -> Preprocessing:
    """Read a processor's configuration: squashed to a size or resized to an edge, then cropped or not.

    Raises:
        Refusal: it asks for what is not done here, or does not say what it asks for.
    """
    for key, usual in USUAL.items():
        if not isclose(facts.get(key, usual), usual, rel_tol=1e-4):
            raise _unread(key, facts[key])
    size = facts.get("size") or getattr(module.config, "image_size", 224)
    kind = str(facts.get("image_processor_type") or facts.get("feature_extractor_type") or "")
    if (
        isinstance(size, int)
        and not any(name in kind for name in SQUASHING)
        and facts.get("do_center_crop") is None
    ):
        raise _unread("size", f"{size} for a {kind or 'processor without a type'}, whose shape is not said")
    edge = _edge(size, facts)
    resized = _sides(edge if edge else size, "size")
    crop = _sides(facts.get("crop_size") or size, "crop_size") if facts.get("do_center_crop") else resized
    if (
        edge and facts.get("crop_pct") and edge < EDGE_FROM
    ):  # ConvNeXt's: resized to more, and cropped to the edge
        crop, resized = resized, (round(edge / facts["crop_pct"]),) * 2
    if crop[0] * resized[1] != crop[1] * resized[0]:
        raise _unread("crop_size", facts.get("crop_size"))
    mean, std = (_values(facts, key) for key in ("image_mean", "image_std"))
    if not facts.get("do_normalize", True):
        mean, std = (0.0,) * 3, (1.0,) * 3
    resample = facts.get("resample", Image.Resampling.BILINEAR)
    if resample is None:
        raise _unread("resample", None)
    channels = getattr(module.config, "num_channels", 3)
    cropped = facts.get("do_center_crop") or (facts.get("crop_pct") and edge and edge < EDGE_FROM)
    if edge and not cropped and not facts.get("crop_pct"):
        raise _unread("do_center_crop", facts.get("do_center_crop"))  # images of every shape
    way = "center" if edge and cropped else "squash"
    return Preprocessing(
        (channels, *crop), mean, std, Image.Resampling(resample).name.lower(), crop[0] / resized[0], way
    )


def _unread(key: str, value: Any) -> Refusal:
    return Refusal(
        f"{PROCESSOR} says {key}={value}, which is not known here; load the network in Python, and say how its images are "
        f"prepared with models.own(module, 'NAME', preprocessing=Preprocessing(...))"
    )


def _edge(size: Any, facts: Mapping[str, Any]) -> int | None:
    """The length that the shorter edge is resized to; None where both are squashed to a size."""
    if isinstance(size, Mapping) and "shortest_edge" in size:
        if "longest_edge" in size:
            raise _unread("size", dict(size))
        return int(size["shortest_edge"])
    return int(size) if isinstance(size, int) and facts.get("do_center_crop") else None


def _sides(size: Any, key: str) -> tuple[int, int]:
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        size = (size["height"], size["width"])
    if isinstance(size, Mapping) and size.keys() == {"shortest_edge"}:
        size = size["shortest_edge"]
    if isinstance(size, int):
        size = (size, size)
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(one, int) for one in size)):
        raise _unread(key, size)
    return size[0], size[1]


def _values(facts: Mapping[str, Any], key: str) -> tuple[float, ...]:
    value = facts.get(key, HALF)
    value = [value] * 3 if isinstance(value, int | float) else value
    if not isinstance(value, list | tuple) or not all(isinstance(one, int | float) for one in value):
        raise _unread(key, value)
    return tuple(float(one) for one in value)
