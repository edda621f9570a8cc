"""Networks of `transformers`: ``transformers/FOLDER``, a name of its hub, or a kind such as ``transformers/vit@random``.

The package is optional: it is imported when such a name is asked for.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from vit_analysis.images import Preprocessing
from vit_analysis.loading.fitting import Shown
from vit_analysis.makers.making import built, no_weights
from vit_analysis.makers.processors import PROCESSOR, preprocessing, processed
from vit_analysis.makers.request import exists, path
from vit_analysis.spelling import Refusal, did_you_mean

logger = logging.getLogger(__name__)

PREFIX = "transformers/"
TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # the half that sees
CLASSIFIER = "ForImageClassification"
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
            return processed(facts.get("image_processor", facts), module)
        assumed = preprocessing(module)
        logger.warning(
            "%s: no %s says how its images are prepared; assumed are %d x %d pixels, squashed, mean and deviation 0.5",
            *(name, PROCESSOR, *assumed.input_size[1:]),
        )
        return assumed


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
