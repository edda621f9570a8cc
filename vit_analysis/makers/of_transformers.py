"""Networks of `transformers`: ``transformers/FOLDER``, a name of its hub, or a kind such as ``transformers/vit@random``.

The package is optional: it is imported when such a name is asked for.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from math import isclose
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn

from vit_analysis.images import Preprocessing
from vit_analysis.loading.fitting import Shown
from vit_analysis.makers.making import built, no_weights
from vit_analysis.makers.request import exists, path
from vit_analysis.spelling import Refusal, did_you_mean

logger = logging.getLogger(__name__)

PREFIX = "transformers/"
PROCESSOR = "preprocessor_config.json"
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # the half that sees
CLASSIFIER = "ForImageClassification"
HALF = (0.5,) * 3  # mean and standard deviation of ViT's own processor
# Of a processor's configuration, what can only be as usual.
USUAL = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}
SQUASHING = ("ViT", "DeiT", "Beit", "Siglip")  # processors for which a size of one number is a square
EDGE_FROM = 384  # from this edge on ConvNeXt's processor does not crop
# The pooler reads what the last norm gives, and no analysis reads it: many files of weights have none.
POOLER, WITH_POOLER = "pooler", "add_pooling_layer"


class Transformers:
    """Networks of `transformers`, made of their configuration."""

    def untrained(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        """Make a network without trained weights.

        Raises:
            Refusal: there is no such configuration, or it does not have the settings.
        """
        own = {key: value for key, value in settings.items() if key != WITH_POOLER}
        library, config = _library(), _config(name, own)
        more = {WITH_POOLER: settings[WITH_POOLER]} if WITH_POOLER in settings else {}
        return built(name, lambda **_: _kind(library, config).from_config(config, **more), own, set())

    def trained(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        """Make a network with the weights that lie beside its configuration.

        Raises:
            Refusal: there is no such configuration, or weights are missing.
            OSError: the weights cannot be had.
        """
        library, config = _library(), _config(name, settings)
        try:
            with _quiet(library):
                module, info = _kind(library, config).from_pretrained(
                    _place(name), config=config, output_loading_info=True
                )
        except Exception as error:  # a download fails in many ways
            raise no_weights(name, error) from error
        missing = [key for key in info["missing_keys"] if POOLER not in key]
        if missing or info["mismatched_keys"]:
            told = ", ".join(sorted(map(str, missing or info["mismatched_keys"]))[:3])
            raise Refusal(
                f"the weights of {name!r} do not fit {type(module).__name__}: {len(missing)} are missing and "
                f"{len(info['mismatched_keys'])} of another shape ({told})"
            )
        return module.float()

    def settings(self, shown: Shown, module: nn.Module) -> dict[str, Any]:
        """Say with which settings a network would be as a checkpoint shows, of those in which it is not."""
        config: Any = module.config
        patch = shown.patch[0] if shown.patch else config.patch_size
        side = shown.grid[0] * patch if shown.grid else config.image_size
        wanted = {
            "num_labels": shown.classes or config.num_labels,
            "patch_size": patch,
            "image_size": side,
            "num_register_tokens": shown.registers,
        }
        found = {
            key: value
            for key, value in wanted.items()
            if value is not None and hasattr(config, key) and getattr(config, key) != value
        }
        without = shown.pooler is False and getattr(module, POOLER, None) is not None
        return found | ({WITH_POOLER: False} if without else {})

    def preprocessing(self, name: str, module: nn.Module) -> Preprocessing:
        """Say how an image becomes the network's input: the processor's configuration beside the network's, or ViT's own."""
        if facts := _processor(name):
            return _processed(facts.get("image_processor", facts), module)
        assumed = preprocessing(module)
        logger.warning(
            "%s: no %s says how its images are prepared; assumed are %d x %d pixels, squashed, mean and deviation 0.5",
            *(name, PROCESSOR, *assumed.input_size[1:]),
        )
        return assumed


def preprocessing(module: nn.Module) -> Preprocessing:
    """The preprocessing of a network whose processor is not known: its own size, squashed, mean and deviation 0.5."""
    config: Any = module.config
    rows, columns = _sides(getattr(config, "image_size", 224) or 224, "image_size")
    return Preprocessing(
        (getattr(config, "num_channels", 3), rows, columns), HALF, HALF, "bilinear", 1.0, "squash"
    )


def _processed(facts: Mapping[str, Any], module: nn.Module) -> Preprocessing:
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


def _library() -> Any:
    try:
        return import_module("transformers")
    except ImportError as error:
        raise Refusal(
            f"names that begin with {PREFIX!r} need the package transformers: pip install transformers"
        ) from error


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Let the library draw no progress bars, which without a terminal are lines of text."""
    bars = library.utils.logging
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bar()


def _processor(name: str) -> dict[str, Any] | None:
    """The configuration of a processor in a folder or on the hub; None where there is none."""
    if _is_kind(_place(name)):
        return None
    try:
        file = _library().utils.cached_file(_place(name), PROCESSOR)
        return json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return None


def _place(name: str) -> str:
    own = name.removeprefix(PREFIX)
    return str(path(own)) if exists(path(own)) else own


def _config(name: str, settings: Mapping[str, Any]) -> Any:
    """The configuration of a folder, of a name on the hub, or of a kind of network; of two towers the one that sees."""
    library, place = _library(), _place(name)
    if _is_kind(place):
        config = library.AutoConfig.for_model(TOWERS.get(place, place))
    else:
        try:
            config = library.AutoConfig.from_pretrained(place)
        except Exception as error:  # a download fails in many ways
            near = did_you_mean(place, [*_kinds(), *_beside(place)])
            reason = str(error).strip().partition("\n")[0]
            raise OSError(f"no network of transformers is {place!r}; {near} ({reason})") from error
    config = getattr(config, "vision_config", config)
    for key, value in settings.items():
        if not hasattr(config, key):
            known = [own for own in vars(config) if not own.startswith("_")]
            raise Refusal(f"{name} does not take {key}={value}; {did_you_mean(key, known)}")
        try:
            setattr(config, key, value)
        except Exception as error:  # the library checks types with errors of its own
            reason = " ".join(str(error).split())
            raise Refusal(f"{name} does not take {key}={value}: {reason}") from error
    return config


def _kinds() -> Mapping[str, str]:
    return _library().models.auto.configuration_auto.CONFIG_MAPPING_NAMES


def _is_kind(place: str) -> bool:
    return not exists(path(place)) and place in _kinds()


def _beside(place: str) -> list[str]:
    folder = Path(place).parent
    return [str(one) for one in folder.iterdir() if one.is_dir()] if folder.is_dir() else []


def _kind(library: Any, config: Any) -> Any:
    """The class that makes the network: with its head if the configuration was written by a classifier."""
    if any(name.endswith(CLASSIFIER) for name in config.architectures or ()):
        return library.AutoModelForImageClassification
    return library.AutoModel
