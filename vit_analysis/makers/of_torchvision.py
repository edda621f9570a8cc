"""Networks of torchvision: ``torchvision/resnet50``."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision import models

from vit_analysis.images import Preprocessing
from vit_analysis.loading.fitting import Shown
from vit_analysis.makers.making import built, keys_of, no_weights
from vit_analysis.spelling import Refusal, did_you_mean

PREFIX = "torchvision/"
INPUT = Preprocessing(interpolation="bilinear")


class Torchvision:
    """torchvision's networks, `torchvision.models.get_model`."""

    def untrained(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        """Make a network without trained weights.

        Raises:
            Refusal: torchvision knows no such name, or it does not take the settings.
        """
        own = _known(name)
        known = keys_of(models.get_model_builder(own), models.VisionTransformer.__init__)
        return built(
            name, lambda **more: models.get_model(own, weights=None, **_quiet(own), **more), settings, known
        )

    def trained(self, name: str, settings: Mapping[str, Any]) -> nn.Module:
        """Make a network with torchvision's weights.

        Raises:
            Refusal: torchvision knows no such name.
            OSError: the weights did not come.
        """
        try:
            return models.get_model(_known(name), weights="DEFAULT", **settings)
        except Refusal:
            raise
        except Exception as error:  # a download fails in many ways
            raise no_weights(name, error) from error

    def settings(self, shown: Shown, module: nn.Module) -> dict[str, Any]:
        """Say with which settings a network would be as a checkpoint shows, of those in which it is not."""
        found: dict[str, Any] = {}
        heads = [part for part in module.modules() if isinstance(part, nn.Linear)]
        if shown.classes and heads and heads[-1].out_features != shown.classes:
            found["num_classes"] = shown.classes
        patch = getattr(module, "patch_size", None)
        if shown.grid and patch and shown.grid[0] * patch != module.image_size:
            found["image_size"] = shown.grid[0] * patch
        return found

    def preprocessing(self, name: str, module: nn.Module) -> Preprocessing:
        """Say how an image becomes the network's input: the transforms of torchvision's own weights."""
        try:
            own = models.get_model_weights(_known(name)).DEFAULT.transforms()
            size, resized = own.crop_size[0], own.resize_size[0]
        except (AttributeError, ValueError, IndexError):
            return INPUT
        return _sized(
            module,
            Preprocessing(
                (3, size, size), tuple(own.mean), tuple(own.std), own.interpolation.value, size / resized
            ),
        )


def preprocessing(module: nn.Module) -> Preprocessing:
    """The preprocessing of most of torchvision's weights, for a network whose name is not known."""
    return _sized(module, INPUT)


def _sized(module: nn.Module, own: Preprocessing) -> Preprocessing:
    side = getattr(module, "image_size", None)
    if not isinstance(side, int) or side == own.input_size[1]:
        return own
    return Preprocessing((own.channels, side, side), own.mean, own.std, own.interpolation, own.crop_pct)


def _known(name: str) -> str:
    own = name.removeprefix(PREFIX)
    everything = models.list_models(module=models)
    if own not in everything:
        raise Refusal(f"no model {name!r}; {did_you_mean(name, [PREFIX + known for known in everything])}")
    return own


def _quiet(name: str) -> dict[str, Any]:
    """Inception and GoogLeNet warn that they draw their weights slowly, unless told how."""
    return {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
